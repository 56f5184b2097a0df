"""How large the weights are that make a unit: the oldest criterion, and hard to beat after recovery.

Li et al., "Pruning Filters for Efficient ConvNets", 2017 (L1 norm of a filter). Differs from the paper: filters coupled
by a shortcut are scored together, and groups can be made comparable so that one ranking goes over the whole network.
"""

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
    sum_positions,
)


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
    require_choice(normalise, NORMALISE, "normalise")
    return normalise_groups({group.name: _group_norms(group, weights, norm) for group in graph.prunable}, normalise)


def _group_norms(group: Group, weights: Weights, norm: int) -> Tensor:
    return mean_over_slots([_slot_norms(slot, weights, norm, group.size) for slot in main_slots(group)])


def _slot_norms(slot: TensorAxis, weights: Weights, norm: int, size: int) -> tuple[Tensor, Tensor]:
    """Norms per unit, and which units the slot holds at all; both [units]."""
    powers = slot_tensor(slot, weights).abs().pow(norm).movedim(slot.axis, 0).reshape(len(slot.units), -1).sum(1)
    sums, present = sum_positions(slot, powers, size)
    return sums.pow(1 / norm), present
