"""How far the answers of a model moved from those of another: no labels are needed."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.core.check import checked
from nervure.core.tensors import at_least_single
from nervure.errors import ArgumentError
from nervure.graph.models import device_of, evaluating
from nervure.tasks.batch_forms import Layout, Place, move_batch
from nervure.tasks.boxes import Boxes, Detection, box_metrics
from nervure.tasks.metric_specs import COSINE, DIVERGENCE, FLIPS, R2
from nervure.tasks.outputs import logits_in, mask_in
from nervure.tasks.task import Forward, Task, Total

Answers: TypeAlias = Literal["classes", "values", "boxes"]


@final
@dataclass(eq=False, slots=True)
class Reference:
    """A model to compare with. It answers a batch once, however often it is asked.

    Weights of it that change meanwhile are not noticed.

    Attributes:
        model: the model; it is neither copied nor changed.
        forward: how it is called.
        batch: the batch that it answered last, and the answer.
    """

    model: nn.Module
    forward: Forward
    batch: tuple[Any, Any] | None = field(default=None, repr=False)

    def answer(self, batch: Any, device: torch.device) -> Any:
        """What it says, in evaluation mode and without gradients, on a device."""
        if self.batch is None or self.batch[0] is not batch:
            with evaluating(self.model):
                found = self.forward(self.model, move_batch(batch, device_of(self.model)))
            self.batch = batch, move_batch(found, device)
        return self.batch[1]


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of two models, side by side."""

    dense: Reference
    output: Place | None = None
    axis: int | None = None

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Of both the tensor that is compared; raises ArgumentError where their shapes differ."""
        own = logits_in(output, self.output)
        other = logits_in(self.dense.answer(batch, own.device), self.output)
        if own.shape != other.shape:
            raise ArgumentError(
                f"the dense model answers {list(other.shape)}, this one {list(own.shape)}; they need the same outputs."
            )
        own = at_least_single(own)
        return own, other.to(own.dtype)

    def rows(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities of both, [rows, classes]; tokens that are padding are left out."""
        own, other = self.pair(output, batch)
        axis = self.axis if self.axis is not None else (1 if own.ndim > 3 else -1)
        if own.ndim < 2 or not -own.ndim <= axis < own.ndim:
            raise ArgumentError(
                f"outputs {list(own.shape)} have no classes on axis {axis}: say axis=, or kind='values'."
            )
        logs = [x.movedim(axis, -1).log_softmax(-1) for x in (own, other)]
        mask = mask_in(batch, logs[0]) if own.ndim == 3 else None
        own, other = (x.flatten(0, -2) if mask is None else x[mask] for x in logs)
        return own, other

    def divergence(self, output: Any, batch: Any) -> Total:
        """Kullback-Leibler divergence from the dense model's answers, in nats, summed over rows."""
        own, other = self.rows(output, batch)
        return Total(F.kl_div(own, other, reduction="sum", log_target=True), len(own))

    def difference(self, output: Any, batch: Any) -> Total:
        """Squared difference, summed over all numbers."""
        own, other = self.pair(output, batch)
        return Total(F.mse_loss(own, other, reduction="sum"), own.numel())

    def both(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The dense model's and these logarithms, as a divergence is fed."""
        own, other = self.rows(output, batch)
        return other, own

    def choices(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """These logarithms, and the class that the dense model chooses."""
        own, other = self.rows(output, batch)
        return own, other.argmax(-1)

    def columns(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Both as [samples, numbers]."""
        own, other = self.pair(output, batch)
        return own.flatten(1), other.flatten(1)


@final
@dataclass(frozen=True, slots=True)
class BoxComparison:
    """The boxes of two detectors, side by side."""

    dense: Reference
    detector: Detection
    sure: Detection

    def read(self, output: Any, batch: Any) -> tuple[list[Boxes], list[Boxes]]:
        """The boxes that are found, and those of which the dense model is sure."""
        found = self.detector.found(output)
        place = next((one["boxes"].device for one in found), torch.device("cpu"))
        return found, self.sure.found(self.dense.answer(batch, place))


@checked
def agreement(
    dense: nn.Module,
    kind: Answers = "classes",
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    axis: int | None = None,
) -> Task:
    """How far answers moved from those of the ``dense`` model; labels are not looked at.

    At the dense model itself the loss is 0 and so is its slope: methods that listen to gradients hear nothing there.
    Train with it, or measure.

    Args:
        dense: the model to compare with; it is neither copied nor changed.
        kind: ``"classes"``: the divergence of their probabilities, and how often the likeliest class is another;
            ``"values"``: squared differences, and the share of the spread that stays explained; ``"boxes"``: mean
            average precision with the dense model's boxes as the truth, and no loss.
        inputs: where the inputs are, see :class:`Layout`.
        labels: what of the batch is no input.
        output: which of several outputs.
        axis: which axis is the classes; None: the last, or axis 1 of more than three.
    """
    layout = Layout(inputs, labels)
    if kind == "boxes":
        finder = Detection(layout)
        boxes = BoxComparison(Reference(dense, finder.feed), finder, Detection(layout, score=0.25))
        return Task(
            name="agreement, boxes",
            forward=finder.feed,
            inputs=layout.inputs_in,
            metrics=box_metrics(boxes.read),
            labels=_NoLabels(),
            samples=finder.count,
        )
    both = Comparison(Reference(dense, layout.feed), output, axis)
    divergence = {"kl": DIVERGENCE.measure(both.both), "flips": FLIPS.measure(both.choices)}
    closeness = {
        "r2": R2.measure(both.columns, multioutput="variance_weighted"),
        "cosine": COSINE.measure(both.columns),
    }
    return Task(
        name=f"agreement, {kind}",
        loss=both.divergence if kind == "classes" else both.difference,
        forward=layout.feed,
        inputs=layout.inputs_in,
        metrics=divergence if kind == "classes" else closeness,
        labels=_NoLabels(),
        samples=layout.count,
    )


@final
@dataclass(frozen=True, slots=True)
class _NoLabels:
    """No labels are needed."""

    def __call__(self, batch: Any) -> None:
        return None
