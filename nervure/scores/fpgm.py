"""How far a filter is from the others of its layer: He et al., "Filter Pruning via Geometric Median", 2019.

The filters near the geometric median are those that the others can stand in for; as in the paper, a filter's distance
from it is measured by the sum of its distances to all filters. Differs from the paper: filters coupled by a shortcut
are scored together, and groups can be made comparable so that one ranking goes over the whole network.
"""

import torch
from torch import Tensor

from nervure.core.check import require_choice
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.scores.common import (
    NORMALISE,
    Normalise,
    Scores,
    Weights,
    main_slots,
    mean_over_slots,
    normalise_groups,
    slot_tensor,
)


def fpgm(graph: Graph, weights: Weights, *, normalise: Normalise = "mean") -> Scores:
    """The sum of the Euclidean distances of a unit's weights to those of all units of its group.

    Several tensors that write the units are averaged; groups without a writer are scored by what reads them.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, as in ``state_dict``.
        normalise: ``"mean"`` divides by the mean of the group, so that layers can compete; ``"none"`` does not.

    Returns:
        For each prunable group a tensor [units], 0 or more, in the precision of the weights but float32 at least.

    Raises:
        ArgumentError: ``normalise`` is not one of the choices.
        ScoreError: a tensor is missing, has another size than in the graph, or is not finite.
    """
    require_choice(normalise, NORMALISE, "normalise")
    return normalise_groups({group.name: _distances(group, weights) for group in graph.prunable}, normalise)


def _distances(group: Group, weights: Weights) -> Tensor:
    return mean_over_slots([_slot_distances(slot, weights, group.size) for slot in main_slots(group)])


def _slot_distances(slot: TensorAxis, weights: Weights, size: int) -> tuple[Tensor, Tensor]:
    """Sums of distances per unit, and which units the slot holds at all; both [units]."""
    weight = slot_tensor(slot, weights)
    rows, present = _vectors(weight.movedim(slot.axis, 0).reshape(len(slot.units), -1), slot, size)
    gram = rows @ rows.T
    squares = gram.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0).sqrt().fill_diagonal_(0)
    return (distances * present[None, :] * present[:, None]).sum(1).to(weight.dtype), present


def _vectors(filters: Tensor, slot: TensorAxis, size: int) -> tuple[Tensor, Tensor]:
    """The weights of each unit as one row, float64 [units, entries], and which units have some [units].

    A unit of several positions (a head) is their filters one after the other; shorter units are padded with zeros.
    """
    units = torch.tensor(slot.units.array, device=filters.device)
    counts = torch.bincount(units[units >= 0], minlength=size)
    order = torch.argsort(units, stable=True)[int((units < 0).sum()) :]
    owner = units[order]
    place = torch.arange(len(order), device=filters.device) - (counts.cumsum(0) - counts)[owner]
    # Float64: squares of distances between near twins cancel.
    rows = filters.new_zeros((size, int(counts.max()), filters.shape[1]), dtype=torch.float64)
    rows[owner, place] = filters[order].double()
    return rows.flatten(1), counts > 0
