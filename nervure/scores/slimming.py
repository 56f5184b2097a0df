"""How far the batch norms open a channel: Liu et al., "Network Slimming", 2017.

Differs from the paper: channels coupled by a shortcut have several norms, whose factors are averaged; where there is no
batch norm, layer and group norms take its place; and the L1 penalty that makes factors small belongs to training, not
here.
"""

from typing import Literal, TypeAlias

from torch import Tensor

from nervure.core.check import require_choice
from nervure.errors import ScoreError
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.scores.common import (
    NORMALISE,
    Normalise,
    Scores,
    Weights,
    mean_over_slots,
    normalise_groups,
    slot_tensor,
    sum_positions,
)
from nervure.scores.completed import completed

Without: TypeAlias = Literal["magnitude", "error"]
WITHOUT = ("magnitude", "error")


def slimming(
    graph: Graph, weights: Weights, *, without: Without = "magnitude", normalise: Normalise = "none"
) -> Scores:
    """The absolute scale of each unit's norm, averaged over the norms that it passes through.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, as in ``state_dict``, running statistics included.
        without: what groups get that pass through no norm: ``"magnitude"`` (see :func:`completed`) or ``"error"``.
        normalise: ``"none"`` leaves the scales as they are, as the paper does; ``"mean"`` divides by the mean of the
            group.

    Returns:
        For each prunable group a tensor [units], 0 or more.

    Raises:
        ArgumentError: an argument is not one of the choices.
        ScoreError: no group passes through a norm, or one does not and ``without="error"``; or a tensor has another
            size than in the graph, or is not finite.
    """
    require_choice(without, WITHOUT, "without")
    require_choice(normalise, NORMALISE, "normalise")
    norms = {group.name: _norms(group, weights) for group in graph.prunable}
    bare = [name for name, slots in norms.items() if not slots]
    if bare and without == "error":
        raise ScoreError(
            f"group {bare[0]!r} passes through no norm. Pin it, use without='magnitude' or another method."
        )
    found = {group.name: _scales(group, norms[group.name], weights) for group in graph.prunable if norms[group.name]}
    return completed(
        graph, normalise_groups(found, normalise), weights, dict.fromkeys(bare, "it passes through no norm")
    )


def _norms(group: Group, weights: Weights) -> tuple[TensorAxis, ...]:
    """The scales of the batch norms that ride along, or of other norms where there are none."""
    scales = tuple(slot for slot in group.riders if _is_scale(slot, weights))
    batch_norms = tuple(slot for slot in scales if f"{_owner(slot)}.running_var" in weights)
    return batch_norms or scales


def _is_scale(slot: TensorAxis, weights: Weights) -> bool:
    # Activations with a slope per channel ride along too, but have no bias.
    return (
        slot.tensor.endswith(".weight")
        and slot.tensor in weights
        and weights[slot.tensor].ndim == 1
        and f"{_owner(slot)}.bias" in weights
    )


def _owner(slot: TensorAxis) -> str:
    return slot.tensor.rpartition(".")[0]


def _scales(group: Group, slots: tuple[TensorAxis, ...], weights: Weights) -> Tensor:
    return mean_over_slots([_slot_scales(slot, weights, group.size) for slot in slots])


def _slot_scales(slot: TensorAxis, weights: Weights, size: int) -> tuple[Tensor, Tensor]:
    """Mean absolute scale per unit (a head has several channels), and which units the slot holds; both [units]."""
    scale = slot_tensor(slot, weights).abs()
    sums, present = sum_positions(slot, scale, size)
    widths, _ = sum_positions(slot, scale.new_ones(len(scale)), size)
    return sums / widths.clamp(min=1), present
