"""The random twin of what was pruned: as wide and as dense everywhere, with what was chosen drawn by lot."""

import random
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from nervure.graph import count
from nervure.methods import View
from nervure.methods.base import model_of
from nervure.methods.blocks.evaluator import plan_of
from nervure.methods.dynamic.dynamic_sparse import gain_of
from nervure.methods.masks.random_baseline import masks_by_lot
from nervure.plan import Cut, Keep, Link, Mask, Plan
from nervure.prune import Pruned, Step, prune
from nervure.surgery import apply
from nervure.surgery.link import wire_names

TRIES = 20
"""Lots of blocks, until one comes to the cost of those chosen."""


def random_twin(
    result: Pruned, model: nn.Module, example: Any, *, seed: int, rescale: bool = False, progress: bool = True
) -> Pruned:
    """Prune ``model`` as ``result`` was, step by step, but by lot: parameters, non-zeros and MACs come out the same.

    Each group keeps as many units as there, each tensor as many weights, in the same pattern. Skip connections are the
    same. So are dropped blocks, unless the last step does nothing else: then others of the same cost leave, where
    there are some. Masks are drawn last, as many as are left in ``result``.

    Args:
        result: what was pruned, once or several times.
        model: the model that it was made from.
        example: an input of it.
        seed: of the lots.
        rescale: make weights larger that stay, to make up for those that leave.
        progress: show progress of what takes longer than two seconds.
    """
    steps = (*result.earlier, Step(result.graph, result.plan, result.method))
    lots = [_lot(step.plan, seed + number) for number, step in enumerate(steps) if step.plan.cuts or step.plan.drops]
    if steps[-1].plan and len(steps[-1].plan.drops) == len(steps[-1].plan) and not result.masks:
        lots[-1] = _ByLot("blocks by lot", partial(_blocks, steps[-1].plan, seed))
    if result.masks:
        # What was asked of masks tells their pattern where no later cut went through them.
        asked = steps[-1].plan.asked if steps[-1].plan.masks else {}
        links = dict(_links(result, steps))
        masks = Plan(tuple(_masks(result, steps, links)), asked=asked)
        lots.append(_ByLot("masks by lot", partial(_connections, masks, tuple(links.values()), seed, rescale)))
    return prune(model, example, lots or Plan(), seed=seed, progress=progress)


@final
@dataclass(frozen=True, slots=True, repr=False)
class _ByLot:
    """A method that draws its plan."""

    wants: ClassVar[frozenset[str]] = frozenset()

    name: str
    drawn: Callable[[View], Plan]

    def plan(self, view: View) -> Plan:
        return self.drawn(view)

    def __repr__(self) -> str:
        return self.name


def _lot(plan: Plan, seed: int) -> _ByLot:
    return _ByLot("units by lot", partial(_units, plan, seed))


def _units(plan: Plan, seed: int, view: View) -> Plan:
    """As many units of each group, any of them; the same blocks leave."""
    generator = torch.Generator().manual_seed(seed)
    keeps: dict[str, Tensor] = {}
    for cut in plan.cuts:
        keeps[cut.group] = cut.keep.tensor() & keeps.get(cut.group, torch.tensor(True))
    cuts = (Cut(name, Keep.of(keep[torch.randperm(len(keep), generator=generator)])) for name, keep in keeps.items())
    return Plan((*cuts, *plan.drops), view.graph.fingerprint)


def _blocks(plan: Plan, seed: int, view: View) -> Plan:
    """As many blocks of each cost, any of them; those of ``plan`` where lots do not come to its cost."""
    lot, chosen = random.Random(seed), [drop.block for drop in plan.drops]
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    for block in view.graph.blocks:
        if not block.pinned:
            alike[_cost_without([block.name], view)].append(block.name)
    numbers = {cost: sum(name in chosen for name in names) for cost, names in alike.items()}
    for _ in range(TRIES):
        drawn = [name for cost, names in alike.items() for name in lot.sample(names, numbers[cost])]
        # Blocks lie inside one another: two alike need not save what two others do.
        if _cost_without(drawn, view) == _cost_without(chosen, view):
            return plan_of(view.graph, drawn)
    return plan


def _cost_without(names: Iterable[str], view: View) -> tuple[int, int]:
    cost = count(apply(model_of(view), view.graph, plan_of(view.graph, names)).eval(), view.example)
    return cost.params, cost.macs


def _connections(masks: Plan, links: tuple[Link, ...], seed: int, rescale: bool, view: View) -> Plan:
    """As many weights of each tensor, any of them, and the links."""
    drawn = masks_by_lot(view, masks, seed=seed)
    if rescale:
        drawn = tuple(replace(mask, gain=gain_of(mask.keep)) for mask in drawn)
    return Plan((*drawn, *links), view.graph.fingerprint)


def _links(result: Pruned, steps: Iterable[Step]) -> Iterator[tuple[str, Link]]:
    """The links that are left, as wide as they are now, by the name of their weight."""
    buffers = dict(result.model.named_buffers())
    for step in steps:
        for name, link in zip(wire_names(step.graph, step.plan), step.plan.links, strict=True):
            weight = f"{name}.map.weight"
            if weight in result.masks:
                yield weight, replace(link, keep=Keep.of(result.masks[weight]))
            elif link.route.identity and weight in buffers:
                yield weight, replace(link, keep=Keep.of(buffers[weight] != 0))


def _masks(result: Pruned, steps: Iterable[Step], links: Container[str]) -> Iterator[Mask]:
    """The masks that are left but those of links, with what their plans say of how weights start."""
    starts = {mask.tensor: mask for step in steps for mask in step.plan.masks}
    for name, keep in result.masks.items():
        if name not in links and not bool(keep.all()):
            start = starts.get(name, Mask(name, Keep.of(keep)))
            yield replace(start, keep=Keep.of(keep))
