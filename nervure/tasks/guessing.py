"""Which task a model and a batch of its data are for, where that is certain."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.tensors import are_whole
from nervure.errors import ArgumentError, DataError, ForwardError, NervureError
from nervure.graph.models import device_of, evaluating, unwrap
from nervure.graph.preserve import restore_after
from nervure.tasks.batch_forms import Layout, describe_batch, move_batch, parts_of
from nervure.tasks.boxes import Detection, detection
from nervure.tasks.categorical import (
    are_next,
    classification,
    ids_in,
    language_modelling,
    segmentation,
    token_classification,
)
from nervure.tasks.numeric import embedding, multilabel, regression
from nervure.tasks.outputs import logits_in, loss_in
from nervure.tasks.sequences import model_loss, sequence
from nervure.tasks.task import Task

Guess: TypeAlias = tuple[Task, str] | None
TaskLike: TypeAlias = Task | Callable[[nn.Module, Any], Tensor]
"""A task, or an objective: from a model and a batch to the mean loss."""
LOG = logging.getLogger("nervure")
EXAMPLES = "tasks.classification(), tasks.regression(), or Task(objective=) of your own"


def _of_sequences(model: nn.Module) -> Task | None:
    """What a classifier of transformers is trained for, as its config says it; None where the labels say it."""
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    known: Mapping[Any, Callable[[], Task]] = {
        "regression": regression,
        "single_label_classification": classification,
        "multi_label_classification": multilabel,
    }
    return known[kind]() if kind in known else None


def _ctc(model: nn.Module) -> Task:
    frames = getattr(model, "_get_feat_extract_output_lengths", None)
    blank = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    return sequence("ctc", blank=blank, lengths=partial(_count_frames, frames) if callable(frames) else None)


def _count_frames(frames: Callable[[Any], Any], batch: Any) -> Any:
    """How many frames the model makes of what the batch's mask leaves of each signal; None where it has none."""
    mask = (parts_of(batch) or {}).get("attention_mask")
    return None if mask is None else frames(mask.sum(-1))


NAMED: Mapping[str, Callable[[nn.Module], Task | None]] = {
    "ForCausalLM": lambda _: language_modelling(),
    "LMHeadModel": lambda _: language_modelling(),
    "ForMaskedLM": lambda _: language_modelling("masked"),
    "ForTokenClassification": lambda _: token_classification(),
    "ForSequenceClassification": _of_sequences,
    "ForImageClassification": _of_sequences,
    "ForAudioClassification": _of_sequences,
    "ForSemanticSegmentation": lambda _: segmentation(),
    "ForConditionalGeneration": lambda _: sequence("seq2seq"),
    "ForObjectDetection": lambda _: detection(),
    "ForCTC": _ctc,
    "DetectionModel": lambda _: detection(),
    "GeneralizedRCNN": lambda _: detection(),
    "RetinaNet": lambda _: detection(),
    "FCOS": lambda _: detection(),
    "SSD": lambda _: detection(),
}
"""What the classes of well-known libraries are for, by their names or how these end."""


def as_task(given: TaskLike | None) -> Task | None:
    """The task that is meant: itself, that of an objective, or None."""
    return given if given is None or isinstance(given, Task) else Task(objective=given)


def find_task(model: nn.Module, batch: Any, given: TaskLike | None = None) -> Task:
    """The task that was given, or the one that is :func:`guessed <guess>`; what was guessed is logged.

    Where several fit a pair with whole numbers as labels, these are classes: what does not fit is told with the loss.

    Raises:
        ArgumentError: as :func:`guess`.
        DataError: there are no labels, and none can do without.
        ForwardError: the model does not run on the batch.
    """
    task = as_task(given)
    if task is not None:
        return task
    try:
        task = guess(model, batch)
    except ArgumentError as error:
        labels = Layout().labels_in(batch)
        if labels is None:
            raise DataError(f"there are no labels, and they are needed for what is wanted: {error}") from error
        if not isinstance(labels, Tensor) or not (are_whole(labels) or _are_shares(labels)):
            raise
        task = classification()
    LOG.info("task: %s (%s)", task.name, task.reason or "the labels are classes")
    return task


@checked
def guess(model: nn.Module, batch: Any) -> Task:
    """The task that a model and a batch of its data are for, with what it was seen by in ``Task.reason``.

    Known are the classes of transformers, torchvision and ultralytics by their names; of any other model, the output
    and the labels say it, where only one task fits them.

    Args:
        model: the model; it may run once, in evaluation mode, and is left as it was.
        batch: one batch of the data.

    Raises:
        ArgumentError: several tasks fit, or none; the message says which, and what to give.
        ForwardError: the model does not run on the batch.
    """
    inner = unwrap(model)
    found = _by_name(inner)
    if found is not None:
        return found
    layout, batch = Layout(), move_batch(batch, device_of(inner))
    labels = layout.labels_in(batch)
    with restore_after(inner), evaluating(inner):
        output = _run(inner, batch, layout)
    seen = _by_boxes(output) or _by_labels(output, labels, ids_in(layout, batch)) or _by_own_loss(inner, batch)
    if seen is None:
        raise ArgumentError(
            f"the task cannot be told from {_told(output)} and {_said(labels)}. Give one, e.g. {_advice(labels)}."
        )
    return replace(seen[0], reason=seen[1])


def _run(model: nn.Module, batch: Any, layout: Layout) -> Any:
    try:
        return layout.feed(model, batch)
    except ForwardError:
        if not isinstance(layout.inputs_in(batch), tuple | list):
            raise
        # Detectors take their pictures as one list.
        return Detection(layout).feed(model, batch)


def _by_name(model: nn.Module) -> Task | None:
    for kind in type(model).__mro__:
        name = kind.__name__
        known = [key for key in NAMED if name == key or (key.startswith(("For", "LM")) and name.endswith(key))]
        # Its subclasses in ultralytics find more than boxes, in other outputs.
        if known and (name != "DetectionModel" or kind is type(model)):
            task = NAMED[known[0]](model)
            return None if task is None else replace(task, reason=f"the model is a {name}")
    return None


def _by_boxes(output: Any) -> Guess:
    first = output[0] if isinstance(output, list) and output else output
    boxes = {"boxes", "scores", "labels"} <= (parts_of(first) or {}).keys()
    return (detection(), "the model gives boxes, scores and labels") if boxes else None


def _by_own_loss(model: nn.Module, batch: Any) -> Guess:
    task = model_loss()
    if parts_of(batch) is None:
        return None
    with restore_after(model), evaluating(model):
        try:
            loss = loss_in(task.forward(model, batch))
        except NervureError:
            return None
    return None if loss is None else (task, "the model computes a loss of its own from the labels")


def _by_labels(output: Any, labels: Any, ids: Tensor | None) -> Guess:
    try:
        found = logits_in(output)
    except ArgumentError:
        return None
    if not isinstance(labels, Tensor) or labels.ndim == 0 or found.ndim == 0 or len(labels) != len(found):
        return None
    if labels.is_floating_point():
        return _by_numbers(found, labels)
    return None if labels.dtype == torch.bool else _by_classes(found, labels, ids)


def _are_shares(labels: Tensor) -> bool:
    """Whether labels [samples, numbers] may be probabilities of classes."""
    return labels.ndim > 1 and labels.shape[1] > 1 and bool((labels >= 0).all()) and _are_all(labels.sum(1), 1)


def _by_numbers(found: Tensor, labels: Tensor) -> Guess:
    """Floating labels: yes and no, vectors, or numbers; not where they may be probabilities of classes."""
    if labels.numel() != found.numel() or found.ndim > 2:
        return None
    rows, columns = labels.reshape(len(labels), -1), found.reshape(len(found), -1)
    if not bool(torch.isin(rows, rows.new_tensor([0, 1])).all()):
        are_shares = _are_shares(rows)
        if rows.shape[1] > 1 and _are_all(rows.norm(dim=1), 1) and _are_all(columns.norm(dim=1), 1):
            return embedding(), "outputs and labels are vectors of length 1"
        return None if are_shares else (regression(), "the labels are numbers, one for each output")
    if rows.shape[1] > 1 and not _are_all(rows.sum(1), 1):
        return multilabel(), "the labels are 0 or 1, one for each output, and not one 1 in each row"
    return None


def _are_all(values: Tensor, value: float) -> bool:
    return bool(torch.allclose(values, torch.full_like(values, value), atol=1e-3))


def _by_classes(found: Tensor, labels: Tensor, ids: Tensor | None) -> Guess:
    """Whole labels: a class of each sample, pixel or token, or yes and no."""
    shape, at = tuple(labels.shape), f"labels {list(labels.shape)} for outputs {list(found.shape)}"
    if labels.ndim == 1 and found.ndim == 2 and found.shape[1] > 1:
        return classification(), at
    if labels.shape == found.shape and labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()):
        return multilabel(), f"{at}, all 0 or 1"
    if found.ndim == 4 and labels.ndim in (3, 4) and found.shape[1] > 1 and len(shape) - 3 == (shape[1:2] == (1,)):
        return segmentation(), at
    if found.ndim == 3 and labels.ndim == 2 and shape == tuple(found.shape[:2]) and shape[1] != found.shape[2]:
        return _by_tokens(found, labels, ids, at)
    return None


def _by_tokens(found: Tensor, labels: Tensor, ids: Tensor | None, at: str) -> Guess:
    if ids is None or int(ids.max()) >= found.shape[2]:
        return token_classification(), at
    if ids.shape != labels.shape or ids.shape[1] < 2:
        return None
    counted = labels >= 0
    if are_next(ids, labels):
        return language_modelling(shift=False), "each label is the token that comes next"
    if bool(counted.any()) and torch.equal(ids[counted], labels[counted]):
        return language_modelling(), "the labels are the tokens themselves"
    return None


def _told(output: Any) -> str:
    try:
        return f"outputs {list(logits_in(output).shape)}"
    except ArgumentError:
        return f"an output that is {describe_batch(output)}"


def _said(labels: Any) -> str:
    if labels is None:
        return "a batch without labels"
    return f"labels {list(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else describe_batch(labels)


def _advice(labels: Any) -> str:
    return f"tasks.agreement(dense), which needs no labels, {EXAMPLES}" if labels is None else EXAMPLES
