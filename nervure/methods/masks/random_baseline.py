"""The honest twin of a plan that masks: as many weights, in the same layers and patterns, chosen by lot."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nervure.budget.weight_masks import n_of_m, sparse_masks
from nervure.budget.weights import Pattern
from nervure.errors import BudgetError, NervureWarning
from nervure.methods.base import View
from nervure.methods.masks.base_masks import PrunableWeights, Scored
from nervure.plan import Keep, Mask, Plan

CROWDING = (0.0, 1.0, 4.0, 1e3)
"""How strongly paths are drawn to the same units, tried in turn until they fit into the layers."""


def masks_by_lot(view: View, plan: Plan, *, seed: int) -> tuple[Mask, ...]:
    """Masks that differ from those of a plan in which weights stay, and in nothing else.

    Each tensor keeps as many weights as in the plan, whole kernels, blocks or n of m where the plan does (blocks at the
    edge may be smaller: then as many as fit). Every output of the network hears its input: an unguarded lot loses
    whole classes at low densities, and beating that shows nothing. Where so few weights cannot connect the outputs
    (the plan itself does not, perhaps), the lot is left unguarded, with a :class:`NervureWarning`.

    Args:
        view: what the method saw of the model.
        plan: a plan for it.
        seed: of the lot.
    """
    keeps = {mask.tensor: mask.keep.tensor() for mask in plan.masks}
    if not keeps:
        return ()
    field, generator = PrunableWeights.of(view, ()), torch.Generator().manual_seed(seed)
    lots = field.rank_silent_last(field.lots(generator))
    laid = {s.tensor: s.to_matrix(keeps[s.tensor]) for s in field.sheets if s.tensor in keeps}
    drawn = field.from_matrices(_draw_masks(field, lots, laid, plan, generator))
    others = {name: _permute(keep, generator) for name, keep in keeps.items() if name not in drawn}
    starts = {mask.tensor: mask for mask in plan.masks}
    return tuple(replace(starts[name], keep=Keep.of((drawn | others)[name])) for name in keeps)


def _draw_masks(
    field: PrunableWeights, lots: Scored, keeps: Mapping[str, Tensor], plan: Plan, generator: torch.Generator
) -> dict[str, Tensor]:
    parents = {layer.tensor: layer.blocks for layer in field.layers()}
    told = {name: (keep, _pattern(keep, plan), parents.get(name)) for name, keep in keeps.items()}
    popular = _popularity(field, generator)
    for strength in CROWDING:
        biased = {name: lots[name] + strength * popular[name] for name in lots}
        fixed = field.lifelines(biased, "paths") or {}
        try:
            return {name: _of_one(lots[name], *one, fixed.get(name)) for name, one in told.items()}
        except BudgetError:
            continue
    warnings.warn(
        "the twin by lot is not guarded: as few weights as the plan leaves in each layer cannot connect every output "
        "with the input. Compare with care.",
        NervureWarning,
        stacklevel=4,
    )
    return {name: _of_one(lots[name], *one, None) for name, one in told.items()}


def _of_one(lots: Tensor, keep: Tensor, pattern: Pattern, parents: Tensor | None, fixed: Tensor | None) -> Tensor:
    """As many of one tensor as ``keep`` has; BudgetError where what is fixed are more."""
    if pattern.most is not None:
        # Of every m inputs some stay, so every output hears.
        return n_of_m({"": lots}, *pattern.most)[""]
    if not keep.any():
        if fixed is not None and fixed.any():
            raise BudgetError("nothing of this tensor stays.")
        return keep
    density = int(keep.sum()) / keep.numel()
    return sparse_masks(
        {"": lots},
        density=density,
        pattern=pattern,
        fixed=None if fixed is None else {"": fixed},
        parents=None if parents is None else {"": parents},
    )[""]


def _pattern(keep: Tensor, plan: Plan) -> Pattern:
    """As the plan was asked; else whole kernels where all are."""
    asked = plan.asked.get("granularity")
    if "density" in plan.asked and asked is not None:
        return Pattern.of(str(asked), tuple(plan.asked.get("block", (1, 1))))
    whole = bool((keep.all(2) | ~keep.any(2)).all())
    return Pattern(block=(1, 1)) if whole and keep.shape[2] > 1 else Pattern()


def _popularity(field: PrunableWeights, generator: torch.Generator) -> Scored:
    """One random number for each unit that is read, the same wherever it is read; laid out as the weights are."""
    graph = field.view.graph
    units = {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in graph.groups}
    found = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in field.weights.items()}
    for layer in field.layers():
        parents = torch.zeros(layer.parents, dtype=torch.float64)
        for group, part in layer.columns:
            index = torch.tensor(part.array)
            parents += torch.where(index >= 0, units[group][index.clamp(min=0)], 0.0)
        found[layer.tensor] += parents[layer.blocks][None, :, None]
    return found


def _permute(keep: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor that no layer was found for: the same number, anywhere in it."""
    return keep.reshape(-1)[torch.randperm(keep.numel(), generator=generator)].reshape(keep.shape)
