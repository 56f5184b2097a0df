"""What criteria share: the tensors of a slot, checked; scores relative to their group."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from nervure.core.check import require_finite
from nervure.core.tensors import without_history
from nervure.errors import ScoreError
from nervure.graph.types import Group, TensorAxis

Scores: TypeAlias = Mapping[str, Tensor]
Weights: TypeAlias = Mapping[str, Tensor]
Normalise: TypeAlias = Literal["none", "mean"]
NORMALISE = ("none", "mean")
F = TypeVar("F", bound=Callable[..., Any])


def wants(*signals: str) -> Callable[[F], F]:
    """Say on a criterion that takes ``stats`` which evidence it needs, as in ``measure(want=...)``.

    >>> @wants("readings")
    ... def loud(graph, stats):
    ...     return {name: value[:, 0].square() for name, value in stats.readings.items()}
    """

    def mark(criterion: F) -> F:
        criterion.__dict__["wants"] = frozenset(signals)
        return criterion

    return mark


def main_slots(group: Group) -> tuple[TensorAxis, ...]:
    """The slots that say what a unit is: its writers, or its readers where it arrives from outside, or its riders.

    An expert is all of its matrices and its row of the gate.

    Raises:
        ScoreError: the group sits in no tensor.
    """
    slots = group.slots if group.kind == "experts" else group.writers or group.readers or group.riders
    if not slots:
        raise ScoreError(f"group {group.name!r} sits in no tensor, so it has no weights. Pin it, or use other scores.")
    return slots


def slot_tensor(slot: TensorAxis, weights: Weights) -> Tensor:
    """The tensor of a slot, detached, in float32 at least; raises ScoreError where it does not fit or is not finite."""
    if slot.tensor not in weights:
        raise ScoreError(
            f"tensor {slot.tensor!r} is missing from the weights. Give the state_dict of the traced model."
        )
    weight = without_history(weights[slot.tensor])
    if slot.axis >= weight.ndim or weight.shape[slot.axis] != len(slot.units):
        raise ScoreError(
            f"tensor {slot.tensor!r} has shape {tuple(weight.shape)}, but the graph has {len(slot.units)} positions "
            f"along axis {slot.axis}. Trace the model again: it changed since."
        )
    # Half precision overflows in sums of squares, and integers have no mean.
    if weight.is_complex() or weight.dtype == torch.float64:
        return require_finite(weight.abs() if weight.is_complex() else weight, f"tensor {slot.tensor!r}")
    return require_finite(weight.to(torch.float32), f"tensor {slot.tensor!r}")


def sum_positions(slot: TensorAxis, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values per position of the slot's axis, summed per unit, and which units the slot holds at all; both [units]."""
    units = torch.tensor(slot.units.array, device=values.device)
    held = units >= 0
    sums = torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, units[held], values[held])
    present = torch.zeros(size, dtype=torch.bool, device=values.device)
    present[units[held]] = True
    return sums, present


def mean_over_slots(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over slots of values [units], for each unit over the slots that hold it; 0 where none does."""
    dtype, device = parts[0][0].dtype, parts[0][0].device
    total = torch.stack([value.to(device, dtype) for value, _ in parts]).sum(0)
    return total / torch.stack([present.to(device) for _, present in parts]).sum(0).clamp(min=1)


def normalise_groups(raw: Scores, normalise: Normalise) -> Scores:
    """The scores as they are (``"none"``), or each group divided by its mean (``"mean"``)."""
    return raw if normalise == "none" else {name: _relative(value) for name, value in raw.items()}


def _relative(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def match_ranks(scores: Tensor, like: Tensor) -> Tensor:
    """``like``, put into the order of ``scores``: the best score gets the largest value, and so on.

    In one ranking over all layers, each then keeps as many connections as it would by ``like``, but others.

    >>> match_ranks(torch.tensor([5.0, 9.0, 1.0]), torch.tensor([0.1, 0.2, 0.3]))
    tensor([0.2000, 0.3000, 0.1000])
    """
    order = scores.reshape(-1).argsort(descending=True, stable=True)
    result = torch.empty_like(like.reshape(-1))
    result[order] = like.reshape(-1).sort(descending=True).values
    return result.reshape(like.shape)
