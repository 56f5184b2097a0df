"""Tasks whose labels are sequences: read off frames without knowing where (CTC), or written token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.core.check import Checked, checked
from nervure.core.inputs import Inputs
from nervure.core.schema import Count
from nervure.core.tensors import at_least_single
from nervure.errors import DataError
from nervure.tasks.batch_forms import Layout, Place, describe_batch, find_part, map_tensors, parts_of
from nervure.tasks.categorical import IGNORE, Categorical
from nervure.tasks.metric_specs import ACCURACY, CHARACTERS, PERPLEXITY, WORDS
from nervure.tasks.outputs import logits_in, loss_in
from nervure.tasks.task import Task, Total

Decode: TypeAlias = Callable[[list[int]], str]
DECODER_INPUTS = frozenset({"decoder_input_ids", "decoder_inputs_embeds"})
FIRST = 0x10000
"""Characters from here on stand for numbers, one for each: a rate of wrong characters is one of wrong numbers."""


@final
@dataclass(frozen=True, slots=True)
class Frames(Checked):
    """Connectionist temporal classification (Graves et al. 2006): how outputs and labels are read, and the loss."""

    layout: Layout = field(default_factory=Layout)
    blank: Count = 0
    time_first: bool = False
    ignore: int = IGNORE
    lengths: Place | None = None
    decode: Decode | None = None
    output: Place | None = None

    def scores(self, output: Any) -> Tensor:
        """Logarithms of probabilities, [samples, frames, classes]."""
        logits = at_least_single(logits_in(output, self.output))
        if logits.ndim != 3:
            raise DataError(f"outputs {list(logits.shape)} are not [samples, frames, classes].")
        return (logits.transpose(0, 1) if self.time_first else logits).log_softmax(-1)

    def labels(self, batch: Any, classes: int) -> list[Tensor]:
        """The labels of each sample, without padding and blanks; raises DataError where one is no class."""
        found = [row[(row != self.ignore) & (row != self.blank)].long() for row in _rows(self.layout, batch)]
        for row in found:
            wrong = row[(row < 0) | (row >= classes)]
            if len(wrong):
                raise DataError(
                    f"label {int(wrong[0])} is out of range: the model has {classes} outputs for each frame, "
                    f"of which {self.blank} is the blank. Number the labels from 0, or say what is padding: ignore=."
                )
        return found

    def frames(self, scores: Tensor, batch: Any) -> Tensor:
        """How many frames of each sample count, int64 [samples]."""
        count = torch.full((len(scores),), scores.shape[1], dtype=torch.long)
        told = None if self.lengths is None else find_part(batch, self.lengths)
        return count if told is None else torch.as_tensor(told).cpu().long().reshape(-1).minimum(count)

    def loss(self, output: Any, batch: Any) -> Total:
        """Minus the logarithm of the probability of the labels, summed over samples; each label counts."""
        scores = self.scores(output)
        labels, frames = self.labels(batch, scores.shape[2]), self.frames(scores, batch)
        if len(labels) != len(scores):
            raise DataError(
                f"there are labels of {len(labels)} samples, and outputs {list(scores.shape)} of {len(scores)}. "
                "Where frames come first, give time_first=True."
            )
        _require_room(labels, frames)
        sizes = torch.tensor([len(row) for row in labels])
        whole = torch.cat(labels).to(scores.device)
        total = F.ctc_loss(scores.transpose(0, 1), whole, frames, sizes, self.blank, reduction="sum")
        return Total(total, int(sizes.sum()))

    def texts(self, output: Any, batch: Any) -> tuple[list[str], list[str]]:
        """What is read, the likeliest class of each frame, and what should be."""
        scores = self.scores(output)
        best, frames = scores.argmax(-1), self.frames(scores, batch).tolist()
        runs = [torch.unique_consecutive(row[:count]) for row, count in zip(best, frames, strict=True)]
        read = [row[row != self.blank] for row in runs]
        return self._spell(read), self._spell(self.labels(batch, scores.shape[2]))

    def _spell(self, rows: Sequence[Tensor]) -> list[str]:
        decode = self.decode or _as_characters
        return [decode(row.tolist()) for row in rows]


def _as_characters(numbers: list[int]) -> str:
    return "".join(chr(FIRST + number) for number in numbers)


def _rows(layout: Layout, batch: Any) -> list[Tensor]:
    """The labels of each sample: rows of a tensor, a list of them, or (all in one row, their lengths)."""
    labels = layout.require_labels(batch)
    if isinstance(labels, Tensor) and labels.ndim == 2:
        return list(labels)
    if isinstance(labels, tuple | list) and labels and all(isinstance(row, Tensor) for row in labels):
        whole, sizes = labels[0], labels[-1]
        if isinstance(labels, tuple) and len(labels) == 2 and sizes.ndim == 1 and not sizes.is_floating_point():
            if whole.ndim == 2 and len(whole) == len(sizes):
                return [row[:size] for row, size in zip(whole, sizes.tolist(), strict=True)]
            if whole.ndim == 1 and int(sizes.sum()) == len(whole):
                return list(whole.split(sizes.tolist()))
        if all(row.ndim == 1 for row in labels):
            return list(labels)
    raise DataError(
        f"the labels are {describe_batch(labels)}; give [samples, labels], padded, or (labels, lengths), or a list of "
        "rows."
    )


def _require_room(labels: Sequence[Tensor], frames: Tensor) -> None:
    """Raise where a sample has fewer frames than its labels take: those that repeat need a blank between them."""
    for number, (row, count) in enumerate(zip(labels, frames.tolist(), strict=True)):
        least = len(row) + int((row[1:] == row[:-1]).sum())
        if least > count:
            raise DataError(
                f"sample {number} has {len(row)} labels, which take {least} frames, and the model gives {count}. "
                "Leave it out, or give more of the signal."
            )


@checked
def sequence(
    kind: Literal["ctc", "seq2seq"],
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    blank: Count = 0,
    time_first: bool = False,
    lengths: Place | None = None,
    ignore: int = IGNORE,
    decode: Decode | None = None,
) -> Task:
    """Sequences for sequences.

    ``"ctc"``: outputs [samples, frames, classes], logits or logarithms of probabilities; labels [samples, labels],
    padded by ``ignore`` or by the blank, or (labels, lengths), or a list. Measured is what the likeliest classes spell.

    ``"seq2seq"``: outputs [samples, tokens, vocabulary] for labels [samples, tokens] whose earlier tokens the decoder
    was given. A model of transformers gets its decoder's inputs from the labels.

    Args:
        kind: ``"ctc"`` or ``"seq2seq"``.
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
        blank: the class that stands for nothing (CTC).
        time_first: whether outputs are [frames, samples, classes] (CTC).
        lengths: where the batch says how many frames of each output count (CTC); None: all.
        ignore: the label of what does not count.
        decode: from numbers to a text (CTC): then rates of wrong characters and words are measured, else that of
            wrong labels.
    """
    layout = Layout(inputs, labels)
    if kind == "seq2seq":
        core = Categorical(layout, -1, ignore, output=output)
        task = core.task("sequence, seq2seq", accuracy=ACCURACY)
        perplexity = PERPLEXITY.measure(core.tokens, ignore_index=ignore)
        return replace(task, forward=WithLabels(layout), metrics={"perplexity": perplexity, **task.metrics})
    frames = Frames(layout, blank, time_first, ignore, lengths, decode, output)
    names = {"label_error_rate": CHARACTERS}
    if decode is not None:
        names = {"character_error_rate": CHARACTERS, "word_error_rate": WORDS}
    metrics = {name: spec.measure(frames.texts) for name, spec in names.items()}
    return Task(
        name="sequence, ctc",
        loss=frames.loss,
        metrics=metrics,
        forward=layout.feed,
        inputs=layout.inputs_in,
        labels=layout.labels_in,
        samples=layout.count,
    )


@final
@dataclass(frozen=True, slots=True)
class WithLabels:
    """A forward that gives a model its labels too: its decoder is given them, or it computes its loss itself."""

    layout: Layout
    decoder_only: bool = True

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of inputs and labels."""
        parts = parts_of(self.layout.inputs_in(batch))
        if parts is None or (self.decoder_only and DECODER_INPUTS & parts.keys()):
            return self.layout.feed(model, batch)
        # Where labels have names of their own, the model finds them.
        labels = self.layout.require_labels(batch) if self.decoder_only else self.layout.labels_in(batch)
        given = {} if labels is None else {"labels": labels}
        prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if self.decoder_only and callable(prepare):
            given = {"decoder_input_ids": prepare(labels=labels)}
        return Inputs((), {**map_tensors(torch.clone, parts), **given}).run(model)


@checked
def model_loss(*, inputs: Place | tuple[Place, ...] | None = None, labels: Place | None = None) -> Task:
    """What the model itself computes where it is given labels, as all models of transformers with a head do.

    Its output has a part ``loss``, the mean over samples. There are no metrics; give them by
    ``dataclasses.replace(task, metrics=...)``.

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
    """
    layout = Layout(inputs, labels)
    return Task(
        name="the model's own loss",
        loss=_own_loss,
        forward=WithLabels(layout, decoder_only=False),
        inputs=layout.inputs_in,
        labels=layout.labels_in,
        samples=layout.count,
    )


def _own_loss(output: Any, batch: Any) -> Tensor:
    loss = loss_in(output)
    if loss is None:
        raise DataError(
            f"the model gave {describe_batch(output)}, without a 'loss' of its own. Name the task, or give "
            "Task(objective=)."
        )
    return loss
