"""Boxes of detectors: what torchvision, transformers and ultralytics give and are given, in one form.

One form is a list with a mapping for each picture: ``boxes`` [boxes, 4] (left, top, right, bottom), ``scores`` and
``labels`` [boxes].
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.core.check import Checked, checked
from nervure.core.inputs import Inputs
from nervure.core.schema import Share, Size
from nervure.errors import ArgumentError, DataError
from nervure.graph.models import unwrap
from nervure.tasks.batch_forms import Layout, Place, describe_batch, map_tensors, parts_of, take_samples
from nervure.tasks.metric_specs import BOXES
from nervure.tasks.outputs import loss_in
from nervure.tasks.task import Measure, Read, Task

Boxes: TypeAlias = Mapping[str, Tensor]
FLAT_BOXES = ("batch_idx", "bboxes", "cls")
"""Parts of a batch of ultralytics that have a row for each box."""
TRAINED_ALONE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""What behaves otherwise in training, and must not while a detector is asked for its losses."""


@final
@dataclass(frozen=True, slots=True)
class Detection(Checked):
    """How a detector is called, what its loss is, and which boxes it finds.

    Attributes:
        layout: where pictures and targets are.
        score: boxes below it are left out.
        overlap: of boxes of one class that overlap by more (intersection over union) the best stays.
        most: boxes of one picture, the best.
    """

    layout: Layout = field(default_factory=Layout)
    score: Share = 0.05
    overlap: Share = 0.6
    most: Size = 300

    def feed(self, model: nn.Module, batch: Any) -> Any:
        """The model's output; models that answer a list of pictures with a list are given it."""
        if _is_flat(batch):
            return Inputs((_as_floats(batch["img"]),)).run(model)
        inputs = self.layout.inputs_in(batch)
        if _is_listed(inputs):
            return Inputs((list(map_tensors(torch.clone, inputs)),)).run(model)
        return self.layout.feed(model, batch)

    def objective(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean over pictures of all losses that the detector computes itself, given its targets.

        Raises:
            DataError: there are no targets.
            ArgumentError: it computes none.
        """
        if _is_flat(batch):
            # Losses of ultralytics are multiplied by the number of pictures.
            with _settings_by_attribute(unwrap(model)):
                losses = Inputs(({**batch, "img": _as_floats(batch["img"])},)).run(model)
            return torch.as_tensor(losses[0]).sum() / self.count(batch)
        targets, inputs = self.layout.require_labels(batch), self.layout.inputs_in(batch)
        parts = parts_of(inputs)
        if parts is not None:
            found = loss_in(Inputs((), {**map_tensors(torch.clone, parts), "labels": targets}).run(model))
        else:
            with _asked_for_losses(model):
                listed = list(inputs) if _is_listed(inputs) else inputs
                losses = Inputs((map_tensors(torch.clone, listed), map_tensors(torch.clone, targets))).run(model)
            each = [loss for loss in (parts_of(losses) or {}).values() if isinstance(loss, Tensor)]
            found = torch.stack([loss.sum() for loss in each]).sum() if each else None
        if found is None:
            raise ArgumentError("the detector computes no losses from its targets: give Task(objective=).")
        return found

    def count(self, batch: Any) -> int:
        """How many pictures there are."""
        if _is_flat(batch):
            return len(batch["img"])
        inputs = self.layout.inputs_in(batch)
        return len(inputs) if _is_listed(inputs) else self.layout.count(batch)

    def take(self, batch: Any, which: slice | Tensor, size: int) -> Any:
        """Some of the pictures, with their targets."""
        if not _is_flat(batch):
            return take_samples(batch, which, size)
        places = torch.arange(size)[which].to(batch["batch_idx"].device)
        rows = batch["batch_idx"].flatten()[:, None] == places
        kept = rows.any(1)
        of_boxes = {name: batch[name][kept] for name in ("bboxes", "cls")}
        taken = take_samples({k: v for k, v in batch.items() if k not in FLAT_BOXES}, which, size)
        return {**taken, **of_boxes, "batch_idx": rows[kept].float().argmax(1).to(batch["batch_idx"])}

    def found(self, output: Any) -> list[Boxes]:
        """The boxes of each picture."""
        first = output[0] if isinstance(output, tuple | list) and output else output
        parts = parts_of(output)
        if isinstance(output, list) and (not output or parts_of(first) is not None):
            return [{name: one[name] for name in ("boxes", "scores", "labels")} for one in output]
        if parts is not None and {"logits", "pred_boxes"} <= parts.keys():
            return self._of_queries(parts["logits"], parts["pred_boxes"])
        if not isinstance(first, Tensor) or first.ndim != 3:
            raise ArgumentError(
                f"the model returned {describe_batch(output)}, in which no boxes are known. Give a Task whose metrics "
                "read them."
            )
        if first.shape[2] == 6:
            return [self._best(rows[:, :4], rows[:, 4], rows[:, 5].long()) for rows in first]
        return [self._suppress(_corners(rows[:4].T), *rows[4:].max(0)) for rows in first]

    def wanted(self, batch: Any) -> list[Boxes]:
        """The true boxes of each picture; raises DataError where they are in no form that is known."""
        if _is_flat(batch):
            height, width = batch["img"].shape[-2:]
            sides = torch.tensor([width, height, width, height], device=batch["bboxes"].device)
            rows = [batch["batch_idx"].flatten() == number for number in range(len(batch["img"]))]
            boxes = _corners(batch["bboxes"]) * sides
            return [{"boxes": boxes[row], "labels": batch["cls"].flatten()[row].long()} for row in rows]
        targets = self.layout.require_labels(batch)
        if not isinstance(targets, tuple | list) or not all(parts_of(one) for one in targets):
            raise DataError(f"the targets are {describe_batch(targets)}; give a mapping with boxes for each picture.")
        return [_true_boxes(parts_of(one) or {}) for one in targets]

    def read(self, output: Any, batch: Any) -> tuple[list[Boxes], list[Boxes]]:
        """The boxes that are found, and the true ones."""
        return self.found(output), self.wanted(batch)

    def _of_queries(self, logits: Tensor, boxes: Tensor) -> list[Boxes]:
        # The last class of a query says that there is nothing.
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        return [self._best(*each) for each in zip(_corners(boxes), scores, labels, strict=True)]

    def _best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.score][: self.most]
        return {"boxes": boxes[order], "scores": scores[order], "labels": labels[order]}

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
        """The best boxes, none of which overlaps a better one of its class."""
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= self.score][: 10 * self.most]
        boxes, scores, labels = boxes[order], scores[order], labels[order]
        hides = (_overlaps(boxes) > self.overlap) & (labels[:, None] == labels)
        stays = torch.ones_like(labels, dtype=torch.bool)
        for row in range(len(labels)):
            if stays[row]:
                stays[row + 1 :] &= ~hides[row, row + 1 :]
        kept = stays.nonzero().flatten()[: self.most]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def _is_flat(batch: Any) -> bool:
    """Whether a batch is of ultralytics: boxes of all pictures in one list that says of which picture each is."""
    return isinstance(batch, Mapping) and {"img", "bboxes", "cls", "batch_idx"} <= batch.keys()


def _is_listed(inputs: Any) -> bool:
    """Whether inputs are a list of pictures that may differ in size, not arguments one after the other."""
    return (
        isinstance(inputs, tuple | list)
        and len(inputs) > 0
        and all(isinstance(picture, Tensor) and picture.ndim == 3 for picture in inputs)
    )


def _as_floats(pictures: Tensor) -> Tensor:
    return pictures.clone() if pictures.is_floating_point() else pictures.float() / 255


def _true_boxes(target: Mapping[str, Any]) -> Boxes:
    if "class_labels" in target:
        return {"boxes": _corners(target["boxes"]), "labels": target["class_labels"].long()}
    if "boxes" in target and "labels" in target:
        return {"boxes": target["boxes"], "labels": target["labels"].long()}
    raise DataError(f"a target is {describe_batch(target)}; it needs boxes and labels.")


def _corners(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom of boxes of centre x, y, width and height, the last axis."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs."""
    sides = torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])
    both, area = sides.clamp(min=0).prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return both / (area[:, None] + area - both).clamp(min=torch.finfo(boxes.dtype).tiny)


@contextmanager
def _asked_for_losses(model: nn.Module) -> Iterator[None]:
    """Detectors of torchvision tell losses while they train only; norms and dropout stay as they were."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module, mode in modes.items():
            module.training = mode if isinstance(module, TRAINED_ALONE) else True
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _settings_by_attribute(model: Any) -> Iterator[None]:
    """Losses of ultralytics read settings as attributes; a model that nobody trained yet holds them in a dict."""
    given = getattr(model, "args", None)
    if not isinstance(given, dict):
        yield
        return
    try:
        model.args = SimpleNamespace(**given)
        yield
    finally:
        model.args = given


def box_metrics(read: Read) -> dict[str, Measure]:
    """Mean average precision of boxes, over overlaps from 0.5 to 0.95, and at 0.5."""
    return {key: BOXES.measure(read, key=key) for key in ("map", "map_50")}


@checked
def detection(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    score: Share = 0.05,
    overlap: Share = 0.6,
    most: Size = 300,
) -> Task:
    """Boxes in pictures; the loss is what the detector computes itself.

    Detectors and their loaders of three families are known: torchvision (a list of pictures, a list of targets with
    ``boxes`` and ``labels``), transformers (``pixel_values`` and ``labels``, a list with ``class_labels`` and ``boxes``
    of centre and size) and ultralytics (``img``, ``bboxes``, ``cls``, ``batch_idx``).

    Args:
        inputs: where the pictures are, see :class:`Layout`.
        labels: where the targets are.
        score: boxes below it are left out.
        overlap: of boxes of one class that overlap by more the best stays (ultralytics; others do it themselves).
        most: boxes of one picture.
    """
    core = Detection(Layout(inputs, labels), score, overlap, most)
    return Task(
        name="detection",
        objective=core.objective,
        forward=core.feed,
        inputs=core.layout.inputs_in,
        metrics=box_metrics(core.read),
        labels=core.layout.labels_in,
        samples=core.count,
        take=core.take,
    )
