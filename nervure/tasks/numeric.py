"""Tasks whose labels are numbers to come close to: values, several yes or no, vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.core.check import Checked, checked
from nervure.core.tensors import at_least_single
from nervure.errors import DataError
from nervure.tasks.batch_forms import Layout, Place, describe_batch
from nervure.tasks.metric_specs import (
    ALL_LABELS,
    COSINE,
    LABEL_F1,
    LABEL_PRECISION,
    MAE,
    R2,
    RMSE,
    YES,
    YES_F1,
    YES_PRECISION,
    MetricSpec,
)
from nervure.tasks.outputs import logits_in, vectors_in
from nervure.tasks.task import Measure, Read, Task, Total

Distance: TypeAlias = Literal["squared", "absolute", "huber"]


@final
@dataclass(frozen=True, slots=True)
class Numeric(Checked):
    """Numbers that stand side by side: how outputs and labels are read."""

    layout: Layout = field(default_factory=Layout)
    output: Place | None = None
    distance: Distance = "squared"

    def pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Outputs and labels of one shape, float; raises DataError where they are not, or labels are missing."""
        found = at_least_single(logits_in(output, self.output))
        return found, _like(found, self.layout.require_labels(batch))

    def columns(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The same as [samples, numbers]."""
        found, labels = self.pair(output, batch)
        return found.reshape(len(found), -1), labels.reshape(len(found), -1)

    def far(self, output: Any, batch: Any) -> Total:
        """How far the outputs are from the labels, summed over all numbers."""
        found, labels = self.pair(output, batch)
        measures = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.smooth_l1_loss}
        return Total(measures[self.distance](found, labels, reduction="sum"), labels.numel())

    def doubt(self, output: Any, batch: Any) -> Total:
        """Binary cross entropy of logits in nats, summed over all labels."""
        found, labels = self.pair(output, batch)
        if labels.numel() and not 0 <= float(labels.min()) <= float(labels.max()) <= 1:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(
                f"label {float(wrong):g} is out of range: each of the {found.shape[-1]} outputs is yes or no, 1 or 0. "
                "For one class of several give classification(), for numbers regression()."
            )
        return Total(F.binary_cross_entropy_with_logits(found, labels, reduction="sum"), labels.numel())

    def likely(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Probabilities and labels, 0 or 1, [samples, labels]."""
        found, labels = self.columns(output, batch)
        return found.sigmoid(), (labels >= 0.5).long()

    def apart(self, output: Any, batch: Any) -> Total:
        """One minus the cosine between each output and its label, summed over samples."""
        found, labels = self.vectors(output, batch)
        return Total((1 - F.cosine_similarity(found, labels)).sum(), len(found))

    def vectors(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """A vector for each sample, and the one that it should be like."""
        found = at_least_single(vectors_in(output, batch, self.output))
        return found, _like(found, self.layout.require_labels(batch))

    def task(self, name: str, loss: Any, read: Read, **metrics: MetricSpec | Measure) -> Task:
        """The task of one of these losses."""
        made = {key: spec.measure(read) if isinstance(spec, MetricSpec) else spec for key, spec in metrics.items()}
        layout = self.layout
        return Task(
            name=name,
            loss=loss,
            metrics=made,
            forward=layout.feed,
            inputs=layout.inputs_in,
            labels=layout.labels_in,
            samples=layout.count,
        )


def _like(found: Tensor, labels: Any) -> Tensor:
    """Labels in the shape of the outputs: where they differ in axes of length 1 only, nothing may be spread."""
    if isinstance(labels, Mapping | str):
        raise DataError(f"the labels are {describe_batch(labels)}; say which of them: labels=.")
    try:
        numbers: Tensor = torch.as_tensor(labels, device=found.device).to(found.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"the labels are {describe_batch(labels)}; give them as one tensor.") from None
    if [n for n in numbers.shape if n != 1] != [n for n in found.shape if n != 1]:
        raise DataError(
            f"labels {list(numbers.shape)} do not fit outputs {list(found.shape)}; give one for each output."
        )
    bad = int((~torch.isfinite(numbers)).sum())
    if bad:
        raise DataError(f"{bad} of {numbers.numel()} labels are NaN or infinite. Leave out samples without a label.")
    return numbers.reshape(found.shape)


@final
@dataclass(frozen=True, slots=True)
class _Either:
    """A metric for several labels, and the one that stands for it where there is but one."""

    several: MetricSpec
    one: MetricSpec

    def __call__(self, scores: Tensor) -> Any:
        return (self.several if scores.shape[1] > 1 else self.one)(scores)


@checked
def multilabel(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
) -> Task:
    """Several answers of yes or no: outputs (logits) and labels [samples, labels], labels in [0, 1].

    One output, [samples] or [samples, 1], is the task of two classes.

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
    """
    core = Numeric(Layout(inputs, labels), output)
    pairs = {
        "accuracy": _Either(ALL_LABELS, YES),
        "f1": _Either(LABEL_F1, YES_F1),
        "average_precision": _Either(LABEL_PRECISION, YES_PRECISION),
    }
    measures = {name: Measure(make, core.likely, True) for name, make in pairs.items()}
    return core.task("multilabel", core.doubt, core.likely, **measures)


@checked
def regression(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
    distance: Distance = "squared",
) -> Task:
    """Numbers to come close to: outputs and labels of one shape, or [samples] and [samples, 1].

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the labels are.
        output: which of several outputs.
        distance: the loss: ``"squared"``, ``"absolute"`` or ``"huber"`` (squared below 1, absolute above).
    """
    core = Numeric(Layout(inputs, labels), output, distance)
    return core.task("regression", core.far, core.columns, rmse=RMSE, mae=MAE, r2=R2)


@checked
def embedding(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    labels: Place | None = None,
    output: Place | None = None,
) -> Task:
    """A vector for each sample that points where its label does: both [samples, numbers].

    The labels are those of a larger model, say. Outputs of tokens become their mean where the batch's
    ``attention_mask`` is 1.

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        labels: where the vectors to be like are.
        output: which of several outputs.
    """
    core = Numeric(Layout(inputs, labels), output)
    return core.task("embedding", core.apart, core.vectors, cosine=COSINE)
