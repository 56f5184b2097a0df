"""Tasks whose labels are numbers of classes: of a sample, a token, a pixel."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.core.check import Checked, checked
from nervure.core.late import checks_late, fit_classes
from nervure.core.schema import Part
from nervure.core.tensors import at_least_single
from nervure.errors import ArgumentError, DataError
from nervure.tasks.batch_forms import Layout, Place, describe_batch
from nervure.tasks.metric_specs import ACCURACY, CALIBRATION, F1, IOU, PERPLEXITY, TOP5, MetricSpec
from nervure.tasks.outputs import logits_in, mask_in
from nervure.tasks.task import Task, Total

IGNORE = -100
"""The label of what does not count, as torch and transformers have it."""


@final
@dataclass(frozen=True, slots=True)
class Categorical(Checked):
    """Cross entropy of classes: how outputs and labels are read, and what the loss is.

    Attributes:
        layout: where labels are.
        axis: of the logits, which one is the classes.
        ignore: the label that does not count; None: every label does.
        smoothing: the part of a label that is spread over all classes.
        shift: whether the logits at a token are about the next one, and labels stand at their own.
        resize: whether logits become pictures as large as the labels.
        output: which of several outputs.
        labels: from a batch to the labels, where they do not stand in it as they are.
    """

    layout: Layout = field(default_factory=Layout)
    axis: int = 1
    ignore: int | None = None
    smoothing: Part = 0.0
    shift: bool = False
    resize: bool = False
    output: Place | None = None
    labels: Callable[[Any], Any] | None = None

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits [samples, classes, ...] and labels [samples, ...] that fit them.

        Raises:
            DataError: there are no labels, they have another shape, or one is no class of the model.
        """
        logits = logits_in(output, self.output)
        labels = (self.labels or self.layout.require_labels)(batch)
        labels = torch.as_tensor(labels, device=logits.device) if _are_numbers(labels) else labels
        if not isinstance(labels, Tensor):
            raise DataError(f"the labels are {describe_batch(labels)}; give them as one tensor.")
        if labels.is_floating_point() and labels.shape == logits.shape:
            return logits.movedim(self.axis, 1), labels.movedim(self.axis, 1)
        logits = _resized(logits, labels) if self.resize else logits
        labels = self._require_fit(labels, logits)
        labels = self._next(labels, batch) if self.shift else labels
        return logits.movedim(self.axis, 1), labels

    def loss(self, output: Any, batch: Any) -> Total:
        """Cross entropy in nats, summed over the labels that count."""
        logits, labels = self.pair(output, batch)
        ignore = IGNORE if self.ignore is None else self.ignore
        count = self._count(labels)
        labels, unfit = self._keep_fit(labels, logits.shape[1])
        rows = logits.movedim(1, -1)
        if rows.is_contiguous() and not labels.is_floating_point():
            # Sums over classes that lie side by side are more exact, and a vocabulary is large.
            logits, labels = rows.flatten(0, -2), labels.flatten()
        # Half-precision exponentials lose the small probabilities that the gradient of a confident model consists of.
        logits = at_least_single(logits)
        labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
        total = F.cross_entropy(logits, labels, ignore_index=ignore, label_smoothing=self.smoothing, reduction="sum")
        return Total(total if unfit is None else total.masked_fill(unfit, math.nan), count)

    def _count(self, labels: Tensor) -> int:
        """How many labels count."""
        if labels.is_floating_point():
            return labels.numel() // labels.shape[1]
        if self.ignore is None:
            # Nothing is left out but the last token, which has no next one: an accelerator need not be asked.
            return labels.numel() - (len(labels) if self.shift else 0)
        return int((labels != self.ignore).sum())

    def _keep_fit(self, labels: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
        """Labels that can be looked up, and whether some were no classes, where that is not raised at once."""
        if not checks_late() or labels.is_floating_point():
            return labels, None
        return fit_classes(labels, classes, IGNORE if self.ignore is None and self.shift else self.ignore)

    def scored(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits and labels for a metric; labels that are probabilities become the likeliest class."""
        logits, labels = self.pair(output, batch)
        return at_least_single(logits), labels.argmax(1) if labels.is_floating_point() else labels

    def counted(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and labels [n] of all that counts."""
        logits, labels = self.tokens(output, batch)
        counts = labels != (IGNORE if self.ignore is None else self.ignore)
        return logits[counts], labels[counts]

    def tokens(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`scored`, the classes last."""
        logits, labels = self.scored(output, batch)
        return logits.movedim(1, -1), labels

    def task(self, name: str, **metrics: MetricSpec) -> Task:
        """The task of this loss, with metrics of logits and labels."""
        return Task(
            name=name,
            loss=self.loss,
            metrics={key: spec.measure(self.scored, ignore_index=self.ignore) for key, spec in metrics.items()},
            classes=self.counted,
            forward=self.layout.feed,
            inputs=self.layout.inputs_in,
            labels=self.labels or self.layout.labels_in,
            samples=self.layout.count,
        )

    def _require_fit(self, labels: Tensor, logits: Tensor) -> Tensor:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(f"labels have dtype {labels.dtype}; give the numbers of the classes, as int64.")
        if logits.ndim < 2 or not -logits.ndim <= self.axis < logits.ndim:
            raise DataError(f"the model gives outputs {list(logits.shape)}, which have no axis {self.axis} of classes.")
        axis = self.axis % logits.ndim
        expected = (*logits.shape[:axis], *logits.shape[axis + 1 :])
        if labels.ndim == logits.ndim and labels.shape[1] == 1 and (labels.shape[:1] + labels.shape[2:]) == expected:
            labels = labels.squeeze(1)
        if labels.shape != expected:
            raise DataError(
                f"labels {list(labels.shape)} do not fit outputs {list(logits.shape)}: with the classes on axis {axis} "
                f"they must be {list(expected)}."
            )
        if not checks_late():
            self._require_classes(labels, logits.shape[axis], axis if logits.ndim > 2 else None)
        return labels.to(logits.device).long()

    def _require_classes(self, labels: Tensor, classes: int, axis: int | None) -> None:
        counted = labels if self.ignore is None else labels[labels != self.ignore]
        if not counted.numel():
            return
        for label in reversed(torch.stack(torch.aminmax(counted)).tolist()):
            if not 0 <= label < classes:
                where = "" if axis is None else f" on axis {axis}"
                raise DataError(
                    f"label {label} is out of range: the model has {classes} outputs{where}, for the labels "
                    f"0 .. {classes - 1}. {_advise(label, classes, self.ignore)}"
                )

    def _next(self, labels: Tensor, batch: Any) -> Tensor:
        ids = ids_in(self.layout, batch)
        if ids is not None and ids.shape == labels.shape and are_next(ids, labels):
            raise DataError("the labels are the next tokens already, and would be shifted twice. Give shift=False.")
        # The last token has no next one. A row of logits less would be a copy of all of them.
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE if self.ignore is None else self.ignore)


def _advise(label: int, classes: int, ignore: int | None) -> str:
    if label < 0 or label == 255:
        other = "" if ignore is None else f" in place of {ignore}"
        return f"Where it marks what does not count, give ignore={label}{other}."
    if label == 1 and classes == 1:
        return "One output that says yes or no is a task of its own: multilabel()."
    return "Number the classes from 0, or give the model more outputs."


def _are_numbers(labels: Any) -> bool:
    """Whether labels are no tensor yet, but an array or a list of numbers."""
    return isinstance(labels, np.ndarray) or (
        isinstance(labels, list) and all(isinstance(label, int | float) for label in labels)
    )


def _resized(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits as pictures of the size of the labels."""
    size = labels.shape[-2:]
    if logits.ndim != 4 or labels.ndim < 3 or logits.shape[2:] == size:
        return logits
    return F.interpolate(at_least_single(logits), size=size, mode="bilinear", align_corners=False)


def are_next(ids: Tensor, labels: Tensor) -> bool:
    """Whether each label is the token that comes next; text that repeats one token does not say so."""
    return ids.shape[1] > 1 and torch.equal(ids[:, 1:], labels[:, :-1]) and not torch.equal(ids, labels)


def ids_in(layout: Layout, batch: Any) -> Tensor | None:
    """The numbers of the tokens that go in, [samples, tokens]; None where no such tensor does."""
    inputs = layout.inputs_in(batch)
    found = inputs.get("input_ids", next(iter(inputs.values()), None)) if isinstance(inputs, Mapping) else inputs
    found = found[0] if isinstance(found, tuple | list) and found else found
    whole = isinstance(found, Tensor) and not found.is_floating_point() and found.ndim == 2
    return found if whole else None


@checked
def classification(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    smoothing: Part = 0.0,
    ignore: int | None = None,
) -> Task:
    """One class for each sample: outputs [samples, classes], labels [samples].

    Labels may be probabilities of the shape of the outputs (mixed samples).

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
        smoothing: the part of a label that is spread over all classes.
        ignore: the label of samples that do not count.
    """
    core = Categorical(Layout(inputs, labels), 1, ignore, smoothing, output=output)
    return core.task("classification", accuracy=ACCURACY, top5=TOP5, f1=F1, calibration_error=CALIBRATION)


@checked
def token_classification(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    axis: int = -1,
    smoothing: Part = 0.0,
    ignore: int | None = IGNORE,
) -> Task:
    """One class for each token or frame: outputs [samples, tokens, classes], labels [samples, tokens].

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
        axis: of the outputs, which one is the classes.
        smoothing: the part of a label that is spread over all classes.
        ignore: the label of tokens that do not count.
    """
    core = Categorical(Layout(inputs, labels), axis, ignore, smoothing, output=output)
    return core.task("token classification", accuracy=ACCURACY, f1=F1)


@checked
def segmentation(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    ignore: int | None = 255,
) -> Task:
    """One class for each pixel: outputs [samples, classes, height, width], labels [samples, height, width].

    Outputs of another size become as large as the labels, by bilinear interpolation.

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs; ``"out"`` and ``"logits"`` are found.
        ignore: the label of pixels that do not count.
    """
    core = Categorical(Layout(inputs, labels), 1, ignore, resize=True, output=output)
    return core.task("segmentation", mean_iou=IOU, accuracy=ACCURACY)


@checked
def language_modelling(
    kind: Literal["causal", "masked"] = "causal",
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    shift: bool | None = None,
    ignore: int = IGNORE,
    padding: int | None = None,
) -> Task:
    """The next token, or those that are masked: outputs [samples, tokens, vocabulary].

    A causal model needs no labels: where there are none, its tokens are its labels, but for those that the batch's
    ``attention_mask`` leaves out.

    Args:
        kind: ``"causal"`` or ``"masked"``.
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
        shift: whether labels stand at their own tokens, as in transformers, so that logits are compared with those of
            the next; False: they stand one earlier already. None: True for a causal model.
        ignore: the label of tokens that do not count.
        padding: the number of a token that never counts.
    """
    if kind == "masked" and shift:
        raise ArgumentError("language_modelling('masked', shift=True): what is masked is told at its own place.")
    layout = Layout(inputs, labels)
    wanted = _TokenLabels(layout, kind == "causal", ignore, padding)
    shifted = kind == "causal" if shift is None else shift
    core = Categorical(layout, -1, ignore, shift=shifted, output=output, labels=wanted.find)
    task = core.task(f"language modelling, {kind}", accuracy=ACCURACY)
    perplexity = PERPLEXITY.measure(core.tokens, ignore_index=ignore)
    return replace(task, metrics={"perplexity": perplexity, **task.metrics})


@final
@dataclass(frozen=True, slots=True)
class _TokenLabels:
    """Labels of a language model: those of the batch, or its tokens."""

    layout: Layout
    own: bool
    ignore: int
    padding: int | None

    def find(self, batch: Any) -> Tensor:
        labels = self.layout.labels_in(batch)
        ids = ids_in(self.layout, batch) if labels is None and self.own else None
        if ids is not None:
            mask = mask_in(batch, ids)
            labels = ids if mask is None else ids.masked_fill(~mask, self.ignore)
        found: Tensor = torch.as_tensor(self.layout.require_labels(batch) if labels is None else labels)
        return found if self.padding is None else found.masked_fill(found == self.padding, self.ignore)
