"""From masks to cuts: channels that nothing hears any more leave, and with them what only they heard."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.collectives import group_used
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.plan import Cut, Keep, Mask, Plan
from nervure.stats import measure
from nervure.surgery.apply import apply, keeps_of, masks_after
from nervure.surgery.link import linked_groups


@checked
def compact(
    graph: Graph, plan: Plan | Mapping[str, Tensor], *, model: nn.Module | None = None, example: Any = None
) -> Plan:
    """Turn silent channels into cuts, so that masks save memory and time; the network computes the same.

    A channel is silent where all that reads it is masked. With ``model``, so is one that hears nothing and says exactly
    zero; one that says another constant stays, since no edit of a plan can hand the constant on. Groups in which a cut
    changes more than the units (a norm over them) stay whole. What only silent channels heard falls silent in turn.

    Args:
        graph: the graph of the model that the plan is for.
        plan: edits, or boolean masks (True stays) by the name of their parameter.
        model: the model, to see which channels say zero; it is not changed.
        example: inputs for it, as for :func:`nervure.trace`.

    Returns:
        The plan with its cuts extended. Each group keeps at least one unit.

    Raises:
        ArgumentError: one of ``model`` and ``example`` is given without the other, or the model is on the meta device.
        PlanError: the plan does not fit the graph.
    """
    if (model is None) != (example is None):
        raise ArgumentError("model= and example= go together: what channels say is seen by running the model.")
    if model is not None and any(tensor.is_meta for tensor in named_tensors(model).values()):
        raise ArgumentError(
            "the model has shapes without numbers (it is on the meta device), and what channels say cannot be seen. "
            "Give it weights first, or leave model= and example= out."
        )
    made = plan if isinstance(plan, Plan) else _plan(graph, plan)
    linked = {name for link in made.links for name in linked_groups(graph, link)}
    candidates = [group for group in graph.prunable if not group.notes and group.name not in linked]
    keeps = {group.name: torch.ones(group.size, dtype=torch.bool) for group in candidates}
    for cut in made.cuts:
        keeps[cut.group] = keeps.get(cut.group, torch.tensor(True)) & cut.keep.tensor()
    masks_after(graph, made)
    alive = _masks(graph, made)
    zero = {} if model is None else _zeros(graph, made, model, Inputs.several(example, model))
    while any([_silence(group, keeps[group.name], alive, zero) for group in candidates]):
        for name, keep in keeps.items():
            _leave(graph[name], keep, alive)
    asked = keeps_of(graph, made)
    for name, keep in keeps.items():
        _come_back(graph[name], keep, torch.as_tensor(asked.get(name, keep | True)))
    cuts = [Cut(name, Keep.of(keep)) for name, keep in keeps.items() if not keep.all()]
    return replace(made, edits=(*cuts, *(edit for edit in made.edits if not isinstance(edit, Cut))))


def _plan(graph: Graph, masks: Mapping[str, Tensor]) -> Plan:
    return Plan(tuple(Mask(name, Keep.of(keep)) for name, keep in masks.items()), graph.fingerprint)


def _masks(graph: Graph, plan: Plan) -> dict[str, Tensor]:
    """The connections that stay, for every tensor that reads a group or is masked."""
    readers = {slot.tensor for group in graph.groups for slot in group.slots if _may_read(slot)}
    sizes = {name: [graph.axes[axis].size for axis in graph.tensors[name]] for name in readers}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in sizes.items()}
    for mask in plan.masks:
        masks[mask.tensor] = masks.get(mask.tensor, torch.tensor(True)) & mask.keep.tensor()
    return masks


def _silence(group: Group, keep: Tensor, alive: Mapping[str, Tensor], zero: Mapping[str, Tensor]) -> bool:
    """Mark the silent units of ``group`` in ``keep``; whether there were new ones."""
    heard = torch.full((group.size,), not group.readers)
    for slot in group.slots:
        if _may_read(slot):
            keeps = alive[slot.tensor]
            heard |= _places(slot, group.size, torch.ones_like(keeps) if _is_rescaled(slot) else keeps)
    silent = ~heard | zero.get(group.name, torch.zeros_like(heard))
    new = silent & keep
    if new.equal(keep):
        # A group of nothing would cut the network in two: the first one stays, masked.
        new[keep.nonzero()[0]] = False
    keep &= ~new
    return bool(new.any())


def _come_back(group: Group, keep: Tensor, asked: Tensor) -> None:
    """Mark as many of the silent units, of those that were ``asked`` to stay, as make a number that a cut may leave."""
    missing = group.round_up(int(keep.sum())) - int(keep.sum())
    keep[(asked & ~keep).nonzero()[:missing, 0]] = True


def _may_read(slot: TensorAxis) -> bool:
    # A weight that writes along another axis than the first may be tied: then it also reads along it.
    return slot.role == "reader" or (slot.role == "writer" and slot.axis > 0)


def _is_rescaled(slot: TensorAxis) -> bool:
    # A normalised weight makes up for what is masked of it, and a cut does not.
    return ".parametrizations." in slot.tensor or slot.tensor.endswith("weight_v")


def _leave(group: Group, keep: Tensor, alive: dict[str, Tensor]) -> None:
    """Units that left neither hear nor are heard: their entries no longer count in any mask."""
    for slot in group.slots:
        if slot.tensor in alive:
            units = torch.tensor(slot.units.array)
            gone = (units >= 0) & ~keep[units.clamp(min=0)]
            shape = [1] * alive[slot.tensor].ndim
            shape[slot.axis] = len(gone)
            alive[slot.tensor] = alive[slot.tensor] & ~gone.reshape(shape)


def _places(slot: TensorAxis, size: int, keep: Tensor) -> Tensor:
    """Units with an entry that is not masked. Boolean [units]."""
    units = torch.tensor(slot.units.array)
    marked = (units >= 0) & keep.movedim(slot.axis, 0).reshape(len(units), -1).any(1)
    found = torch.zeros(size, dtype=torch.bool)
    found[units[marked]] = True
    return found


def _zeros(graph: Graph, plan: Plan, model: nn.Module, given: Sequence[Inputs]) -> dict[str, Tensor]:
    """Units that hear nothing and say zero wherever they are read. Boolean [units] for each group."""
    alive = _masks(graph, plan)
    masked = apply(model, graph, Plan(plan.masks, plan.fingerprint))
    placed = [(one.to(masked), None) for one in given]
    with group_used(None):
        heard = measure(masked, graph, placed, want={"connections"}, progress=False).connections
    found = {}
    for group in graph.prunable:
        if group.notes or not group.writers or not group.readers or not _all_masked(group, alive, heard):
            continue
        deaf = torch.ones(group.size, dtype=torch.bool)
        for slot in group.writers:
            deaf &= ~_places(slot, group.size, alive[slot.tensor])
        for slot in group.readers:
            spoken = heard[slot.tensor].abs().amax((0, 2))
            deaf &= ~_places(replace(slot, axis=0), group.size, spoken > 0) if len(spoken) == len(slot.units) else False
        found[group.name] = deaf
    return found


def _all_masked(group: Group, alive: Mapping[str, Tensor], heard: Mapping[str, Tensor]) -> bool:
    return all(s.tensor in alive for s in group.writers) and all(s.tensor in heard for s in group.readers)
