"""How large the weights are that make a unit: the oldest criterion, and hard to beat after recovery.

Li et al., "Pruning Filters for Efficient ConvNets", 2017 (L1 norm of a filter). Differs from the paper: filters coupled
by a shortcut are scored together, and groups can be made comparable so that one ranking goes over the whole network.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from nervure.check import require_choice, require_finite
from nervure.errors import ScoreError
from nervure.graph.types import Graph, Group, Slot

Scores: TypeAlias = Mapping[str, Tensor]
Weights: TypeAlias = Mapping[str, Tensor]
Normalise: TypeAlias = Literal["none", "mean"]


def magnitude(graph: Graph, weights: Weights, *, norm: int = 1, normalise: Normalise = "mean") -> Scores:
    """The norm of everything a unit writes, averaged over the tensors that write it.

    Groups without a writer (their units arrive from outside) are scored by what reads them.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, as in ``state_dict``.
        norm: 1 or 2.
        normalise: ``"mean"`` divides by the mean score of the group: a sum over many inputs is large in every unit of
            the layer, so raw norms would rank layers, not units. ``"none"`` leaves the norms as they are.

    Returns:
        For each prunable group a tensor [units], 0 or more, in the precision of the weights but float32 at least.

    Raises:
        ArgumentError: ``norm`` or ``normalise`` is not one of the choices.
        ScoreError: a tensor is missing, has another size than in the graph, or is not finite.
    """
    require_choice(norm, (1, 2), "norm")
    require_choice(normalise, ("none", "mean"), "normalise")
    raw = {group.name: _group_norms(group, weights, norm) for group in graph.prunable}
    return raw if normalise == "none" else {name: _relative(value) for name, value in raw.items()}


def _group_norms(group: Group, weights: Weights, norm: int) -> Tensor:
    slots = group.writers or group.readers or group.riders
    if not slots:
        raise ScoreError(
            f"group {group.name!r} sits in no tensor, so it has no magnitude. Pin it, or use other scores."
        )
    parts = [_slot_norms(group, slot, weights, norm) for slot in slots]
    dtype, device = parts[0][0].dtype, parts[0][0].device
    norms = torch.stack([value.to(device, dtype) for value, _ in parts]).sum(0)
    writers = torch.stack([written.to(device) for _, written in parts]).sum(0)
    return norms / writers.clamp(min=1)


def _slot_norms(group: Group, slot: Slot, weights: Weights, norm: int) -> tuple[Tensor, Tensor]:
    """Norms per unit, and which units the slot holds at all; both [units]."""
    weight = _tensor(slot, weights)
    powers = weight.abs().pow(norm).movedim(slot.axis, 0).flatten(1).sum(1)
    units = torch.tensor(slot.units.array, device=weight.device)
    held = units >= 0
    sums = torch.zeros(group.size, dtype=powers.dtype, device=powers.device)
    sums.index_add_(0, units[held], powers[held])
    written = torch.zeros(group.size, dtype=torch.bool, device=powers.device)
    written[units[held]] = True
    return sums.pow(1 / norm), written


def _tensor(slot: Slot, weights: Weights) -> Tensor:
    if slot.tensor not in weights:
        raise ScoreError(
            f"tensor {slot.tensor!r} is missing from the weights. Give the state_dict of the traced model."
        )
    weight = weights[slot.tensor].detach()
    if slot.axis >= weight.ndim or weight.shape[slot.axis] != len(slot.units):
        raise ScoreError(
            f"tensor {slot.tensor!r} has shape {tuple(weight.shape)}, but the graph has {len(slot.units)} positions "
            f"along axis {slot.axis}. Trace the model again: it changed since."
        )
    # Half precision overflows in sums of squares, and integers have no mean.
    if weight.is_complex() or weight.dtype == torch.float64:
        return require_finite(weight.abs(), f"tensor {slot.tensor!r}")
    return require_finite(weight.to(torch.float32), f"tensor {slot.tensor!r}")


def _relative(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
