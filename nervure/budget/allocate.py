"""Scores and a budget in, a plan out: exactly what was asked, ties by index, never an empty group."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from nervure.budget.budget import Budget, Cost
from nervure.budget.cost_model import CostModel
from nervure.budget.kinds import ALWAYS, BUDGETS, BudgetName, find_budget
from nervure.budget.latency_table import Clock, LatencyTable
from nervure.core.check import checked, nearest, require_finite
from nervure.core.schema import Count, Density, Size
from nervure.errors import ArgumentError, BudgetError, ScoreError
from nervure.graph.repeats import repeated_groups
from nervure.graph.types import Graph, Group
from nervure.plan import Cut, Keep, Plan

Scope: TypeAlias = Literal["global", "layer", "kind", "isomorphic", "uniform"]
NAMED_PINS = 4
WHOLE_KINDS = ("heads", "blocks")
"""Groups whose units have several channels each."""
BLOCK, WIDE = 8, 32
"""Channels that fast kernels take at a time, and how many channels a group has at least that keeps whole blocks."""
USED = 0.97
"""The part of what a budget allows that is used at least where blocks are left open: else they are made finer."""


@checked
def top(scores: Tensor, k: Count) -> Tensor:
    """Mark the ``k`` highest scores: boolean, of the shape of ``scores``, exactly ``k`` True, ties to the lower index.

    Raises:
        ArgumentError: ``k`` is below 0 or above the number of scores.
        ScoreError: a score is NaN or infinite.

    >>> top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
    tensor([False,  True,  True, False])
    """
    if k > scores.numel():
        raise ArgumentError(f"k={k!r} of {scores.numel()} scores cannot be kept; k is a whole number from 0 to that.")
    flat = require_finite(scores.detach(), "scores").reshape(-1)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[torch.argsort(flat, descending=True, stable=True)[:k]] = True
    return kept.reshape(scores.shape)


@checked
def allocate(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    keep: Density | None,
    budget: BudgetName = "channels",
    scope: Scope = "global",
    minimum: Size = 1,
    multiple: Size | None = 1,
    floors: Mapping[str, Count] | None = None,
    table: LatencyTable | None = None,
) -> Plan:
    """Cut the units with the lowest scores until ``keep`` of the budget is left.

    * ``budget="channels"``: exactly ``round(keep * units)`` stay, over all prunable groups together
      (``scope="global"``), in each (``"layer"``, ``"uniform"``), in all of a kind (``"kind"``, see :func:`kind_of`) or
      in all that are built alike (``"isomorphic"``, see :func:`structure_of`), but never fewer than the floors.
    * ``budget="params"``, ``"macs"``, ``"memory"`` or a :class:`Budget` of your own: the cost of what stays is at most
      ``keep`` times the cost of the whole model, and no single removed unit could come back within it. ``"global"``
      removes the lowest scores of all groups, ``"layer"`` the same fraction of each group, ``"kind"`` and
      ``"isomorphic"`` the lowest scores of each kind, the same fraction of its units; then the best removed units that
      still fit come back. ``"uniform"`` does as ``"layer"``, and groups that repeat by layer keep the same number of
      units each, so that a config of one number for all layers says them (see
      :func:`nervure.graph.repeats.repeated_groups`).
    * ``budget="latency"``: the same with the time that ``table`` predicts. Sizes are multiples of the engine's block,
      between which channels only cost time, and units beside a step of the engine come back for nothing.

    Args:
        graph: the model's graph.
        scores: for each prunable group a tensor [units], higher stays. Groups that cannot be cut are ignored.
        keep: the fraction that stays, in (0, 1]; 1.0 gives the empty plan. None: each group keeps its floor, whatever
            that comes to.
        budget: what is counted, see above.
        scope: which units compete with one another, see above.
        minimum: the floor: every group keeps so many units (or all that it has).
        multiple: the number of channels of each group that is cut becomes a multiple of this, for hardware (a head
            brings all of its channels). Sizes are rounded up, at most to the whole group, so with
            ``budget="channels"`` more can stay than was asked; other budgets still hold. None: what fast kernels take,
            8 in groups of 32 channels or more, where more than 8 stay; sizes below are free. Where 97 % of the budget
            could not be used that way, 4 or 2.
        floors: for some groups a floor of their own, where it is above ``minimum``. With ``budget="channels"`` floors
            go first: more stays than was asked where they are above it.
        table: what was timed on an engine, for ``budget="latency"``.

    Returns:
        A plan with one cut for each group that loses units; ``reached`` has the fraction (``keep``) and, as counts,
        the prunable ``channels`` and the ``params`` and ``macs`` of the whole model, and what the budget counts;
        ``seconds`` where they were predicted.

    Raises:
        ArgumentError: ``keep``, ``budget``, ``scope``, ``minimum`` or ``multiple`` is out of range, or a table is
            missing.
        PlanError: the table is of another network.
        ScoreError: scores are missing, unknown, of the wrong size, NaN or infinite.
        BudgetError: nothing can be cut, or the floors alone cost more than the budget.
    """
    least = tuple(max(minimum, (floors or {}).get(group.name, 0)) for group in graph.prunable)
    kind = find_budget(budget)
    clock = table.clock(graph) if kind.is_timed and table is not None else None
    market = AllocationProblem(graph, _values(graph, scores), scope, least, multiple, clock)
    kept = np.ones(len(market.owner), dtype=bool) if keep == 1 else _kept_in_blocks(market, keep, kind)
    plan = _plan(market, kept, {"budget": kind.name, "keep": keep, "scope": scope}, kind)
    return plan if table is None else replace(plan, reached={**plan.reached, "seconds": table.predict(graph, plan)})


@final
@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """All units of all prunable groups in one row (flat units), ranked, with what they cost."""

    graph: Graph
    values: tuple[np.ndarray, ...]
    scope: Scope
    least: tuple[int, ...]
    multiple: int | None
    clock: Clock | None = None
    finer: int = 1

    @cached_property
    def ledger(self) -> CostModel:
        """Prices."""
        return CostModel.of(self.graph)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Units of each group. Shape [groups]."""
        return np.array([len(v) for v in self.values], dtype=np.int64)

    @cached_property
    def owner(self) -> np.ndarray:
        """The group of each flat unit, as an index into ``graph.prunable``."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of each flat unit in its own group, 0 for the best."""
        return np.concatenate([np.empty(0, np.int64), *map(_places_from_best, self.values)])

    @cached_property
    def pool(self) -> np.ndarray:
        """Who each flat unit competes with: units of the same number, from 0 on."""
        names = [_POOLS[self.scope](group, self.graph) for group in self.graph.prunable]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.asarray(np.array([numbers[name] for name in names], dtype=np.int64)[self.owner])

    @cached_property
    def pool_sizes(self) -> np.ndarray:
        """Units of each pool. Shape [pools]."""
        return np.bincount(self.pool)

    @cached_property
    def order(self) -> np.ndarray:
        """Flat units, best first; units in the floor of their group are left out, they are not for sale."""
        # The same fraction of every pool goes first where the worst ranks, relative to the pool's size, go first.
        by_score = np.argsort(-np.concatenate(self.values), kind="stable")
        by_pool = by_score[np.argsort(self.pool[by_score], kind="stable")]
        firsts = np.cumsum(self.pool_sizes) - self.pool_sizes
        place = np.empty(len(self.owner))
        place[by_pool] = np.arange(len(self.owner)) - firsts[self.pool[by_pool]]
        order = np.argsort((place + 0.5) / self.pool_sizes[self.pool], kind="stable")
        return np.asarray(order[self.rank[order] >= self.floors[self.owner[order]]])

    @cached_property
    def floors(self) -> np.ndarray:
        """The fewest units that each group keeps. Shape [groups]."""
        return self.round_up(np.minimum(self.sizes, np.array(self.least, dtype=np.int64)))

    @cached_property
    def families(self) -> np.ndarray:
        """Which groups keep the same number of units, by a number for each family. Shape [groups]."""
        if self.scope != "uniform":
            return np.arange(len(self.sizes))
        families = repeated_groups(self.graph, self.graph.prunable)
        number = {name: n for n, names in enumerate(families) for name in names}
        return np.array([number[group.name] for group in self.graph.prunable], dtype=np.int64)

    def for_family(self, counts: np.ndarray) -> np.ndarray:
        """The largest of the counts [groups] in the family of each group."""
        largest = np.zeros(len(counts), dtype=counts.dtype)
        np.maximum.at(largest, self.families, counts)
        return np.asarray(largest[self.families])

    @cached_property
    def multiples(self) -> np.ndarray:
        """How many units of each group make its channels a multiple of what was asked. Shape [groups].

        For an engine also a multiple of its block, in groups that have four of them at least.
        """
        asked = np.array([unit_multiple(group, self.multiple or 1) for group in self.graph.prunable], dtype=np.int64)
        if self.clock is None:
            return asked
        both = math.lcm(self.multiple or 1, self.clock.tally.block)
        whole = np.array([unit_multiple(group, both) for group in self.graph.prunable], dtype=np.int64)
        return np.where(4 * whole <= self.sizes, whole, asked)

    @cached_property
    def blocks(self) -> np.ndarray:
        """How many units of each group fast kernels take at a time, where nothing else was asked. Shape [groups]."""
        if self.multiple is not None:
            return self.multiples
        return np.array([units_of_block(group, self.finer) for group in self.graph.prunable], dtype=np.int64)

    def steps(self, counts: np.ndarray) -> np.ndarray:
        """What sizes near ``counts`` [groups] are multiples of: of a block only where one stays."""
        return np.where(counts > self.blocks, self.blocks, self.multiples)

    def round_up(self, counts: np.ndarray) -> np.ndarray:
        """Group sizes [groups] rounded up to what is allowed."""
        steps = self.steps(counts)
        rounded = np.minimum(self.sizes, -(-counts // steps) * steps)
        return np.asarray(rounded) if self.scope != "uniform" else self.for_family(rounded)

    def best(self, counts: np.ndarray) -> np.ndarray:
        """Keep so many [groups] of the best of each group, rounded up. Boolean [flat units]."""
        return np.asarray(self.rank < self.round_up(counts)[self.owner])

    def first(self, n: int) -> np.ndarray:
        """Keep the floors and the first ``n`` in ``order``. Boolean [flat units]."""
        return self.and_floors(self.order[:n])

    def and_floors(self, units: np.ndarray) -> np.ndarray:
        """Keep the floors and so many of each group as there are in ``units``. Boolean [flat units]."""
        return self.best(self.floors + np.bincount(self.owner[units], minlength=len(self.sizes)))

    def share(self, keep: float) -> np.ndarray:
        """Keep the best ``round(keep * units)`` of each pool, or its floors. Boolean [flat units]."""
        floors = np.bincount(self.pool, weights=self.rank < self.floors[self.owner])
        asked = [max(0, round(keep * int(n)) - int(least)) for n, least in zip(self.pool_sizes, floors, strict=True)]
        pools = self.pool[self.order]
        by_pool = np.argsort(pools, kind="stable")
        firsts = np.searchsorted(pools[by_pool], np.arange(len(asked)))
        place_in_pool = np.arange(len(pools)) - firsts[pools[by_pool]]
        return self.and_floors(self.order[by_pool[place_in_pool < np.array(asked, dtype=np.int64)[pools[by_pool]]]])

    def cost(self, budget: Budget) -> Cost:
        """What survivors along each axis come to, for a budget that is not counted in channels."""
        return budget.cost(self.ledger, self.clock)

    def alive(self, kept: np.ndarray) -> np.ndarray:
        """Survivors along each axis when these flat units are kept. Shape [axes + 1]."""
        return self.ledger.alive(self.ledger.deaths(kept))


def _places_from_best(values: np.ndarray) -> np.ndarray:
    """The place of each value among all, 0 for the largest; of equal ones the first comes first."""
    places = np.empty(len(values), dtype=np.int64)
    places[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return places


def _kept_in_blocks(market: AllocationProblem, keep: float | None, budget: Budget) -> np.ndarray:
    """What stays, in blocks as large as use the budget. Boolean [flat units]."""
    if keep is None or budget.counts_units or market.multiple is not None:
        return _kept_share(market, keep, budget)
    coarsest: np.ndarray | None = None
    while bool((market.blocks > market.multiples).any()):
        with suppress(BudgetError):  # floors in whole blocks may cost more than floors do
            kept = _kept_share(market, keep, budget)
            if _share_of(market, kept, budget) >= USED * keep:
                return kept
            coarsest = kept if coarsest is None else coarsest
        market = replace(market, finer=2 * market.finer)
    kept = _kept_share(market, keep, budget)
    return kept if coarsest is None or _share_of(market, kept, budget) >= USED * keep else coarsest


def _share_of(market: AllocationProblem, kept: np.ndarray, budget: Budget) -> float:
    cost = market.cost(budget)
    return float(cost(market.alive(kept)) / (cost(market.ledger.sizes) or 1))


def _kept_share(market: AllocationProblem, keep: float | None, budget: Budget) -> np.ndarray:
    if not market.values:
        goal = "" if keep is None else f" to reach keep={keep:g}"
        raise BudgetError(f"nothing can be cut{goal}: {_pins(market.graph)}")
    if keep is None:
        return market.first(0)
    if not budget.counts_units:
        return _within(market, keep, budget)
    return market.share(keep)


def _within(market: AllocationProblem, keep: float, budget: Budget) -> np.ndarray:
    cost = market.cost(budget)
    whole = cost(market.ledger.sizes)
    if whole == 0:
        raise BudgetError(
            f"the graph counts no {budget.name}, so keep={keep:g} of them means nothing. Choose another budget."
        )
    limit = keep * whole
    least = cost(market.alive(market.first(0)))
    if least > limit:
        nearest = _ceil(least / whole)
        raise BudgetError(
            f"keep={keep:g} of {budget.format_amount(whole)} allows {budget.format_amount(limit)}, but the floors "
            f"(minimum={min(market.least)}, multiple={market.multiple or 1}) and what cannot be cut cost "
            f"{budget.format_amount(least)}. The smallest keep that can be met is {nearest}.",
            keep=nearest,
        )
    low, high = 0, len(market.order)
    while low < high:
        middle = (low + high + 1) // 2
        fits = cost(market.alive(market.first(middle))) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    kept, before = market.first(low), -1
    # Beside a step a unit costs nothing, so what was too dear can fit once others are back; else one pass is enough,
    # since units only get dearer.
    while budget.is_timed and before != kept.sum():
        before = kept.sum()
        kept = _fill(market, kept, cost, limit)
    return kept if budget.is_timed else _fill(market, kept, cost, limit)


def _fill(market: AllocationProblem, kept: np.ndarray, cost: Cost, limit: float) -> np.ndarray:
    """Bring back, best first, what still fits."""
    ledger, kept = market.ledger, kept.copy()
    deaths = ledger.deaths(kept)
    alive = ledger.alive(deaths)
    too_dear: set[bytes | int] = set()
    for unit in market.order.tolist():
        if kept[unit]:
            continue
        alone = market.blocks[market.owner[unit]] == 1 and market.scope != "uniform"
        key = ledger.kind(unit) if alone else int(market.families[market.owner[unit]])
        if key in too_dear:
            continue
        chunk = [unit] if alone else _chunk(market, kept, unit)
        gain = ledger.gain(deaths, chunk)
        if cost(alive + gain.axes) > limit:
            too_dear.add(key)
            continue
        kept[chunk] = True
        deaths[gain.positions] -= gain.counts
        alive = alive + gain.axes
    return kept


def _chunk(market: AllocationProblem, kept: np.ndarray, unit: int) -> list[int]:
    """The best removed units that bring the group of ``unit``, and its family, to their next allowed size."""
    (owners,) = np.nonzero(market.families == market.families[market.owner[unit]])
    return [one for owner in owners.tolist() for one in _next_of(market, kept, owner)]


def _next_of(market: AllocationProblem, kept: np.ndarray, owner: int) -> list[int]:
    """The best removed units that bring a group to its next allowed size."""
    (members,) = np.nonzero(market.owner == owner)
    removed = members[~kept[members]]
    best = removed[np.argsort(market.rank[removed])]
    have = len(members) - len(removed)
    step = int(market.steps(np.full(len(market.sizes), have + 1))[owner])
    return [int(u) for u in best[: step - have % step]]


def units_of_block(group: Group, finer: int = 1) -> int:
    """How many units of ``group`` make a block of channels that fast kernels take at a time, where it is wide enough.

    Where it is not, so many as it is cut in anyway. Blocks are divided by ``finer``, a power of 2.
    """
    is_wide = group.size * _channels_of_unit(group) >= WIDE
    return unit_multiple(group, max(BLOCK // finer, 1) if is_wide else 1)


def unit_multiple(group: Group, multiple: int) -> int:
    """How many units of ``group`` make its channels a multiple of ``multiple``, and fit the kernels that take them.

    A head brings all of its channels.
    """
    if group.kind not in WHOLE_KINDS:
        return math.lcm(multiple, group.multiple)
    return math.lcm(multiple // math.gcd(multiple, _channels_of_unit(group)), group.multiple)


def _channels_of_unit(group: Group) -> int:
    """What all slots of a group have for each unit; more than 1 only where units are whole."""
    if group.kind not in WHOLE_KINDS:
        return 1
    return math.gcd(*(int((slot.units.array >= 0).sum()) // group.size for slot in (*group.writers, *group.readers)))


def kind_of(group: Group) -> str:
    """What ``group`` is ranked with under ``scope="kind"``.

    ``"streams"``: channels that more than one layer writes (residual sums); ``"channels"``: those of one layer; else
    what the group is: ``"heads"``, ``"head widths"``, ``"blocks"``, ``"widths"``.
    """
    layers = {slot.tensor.rpartition(".")[0] for slot in group.writers}
    return "streams" if group.kind == "channels" and len(layers) > 1 else group.kind


def structure_of(group: Group, graph: Graph) -> tuple[tuple[str, ...], ...]:
    """What ``group`` is ranked with under ``scope="isomorphic"``: all groups whose dependence graphs are the same.

    Fang et al., "Isomorphic Pruning for Vision Models", 2024. Two groups are alike where as many tensors hang together
    in them, of the same roles, kinds (a weight, a bias, a running mean) and ranks, along the same axes, whatever their
    sizes. So streams of stages with different numbers of blocks are apart, as are channels with a norm and without.
    """
    slots = [
        (slot.role, slot.tensor.rpartition(".")[2], str(len(graph.tensors[slot.tensor])), str(slot.axis))
        for slot in group.slots
    ]
    return ((group.kind,), *sorted(slots))


_POOLS: Mapping[Scope, Callable[[Group, Graph], object]] = {
    "global": lambda group, graph: "",
    "layer": lambda group, graph: group.name,
    "kind": lambda group, graph: kind_of(group),
    "isomorphic": structure_of,
    "uniform": lambda group, graph: group.name,
}
"""Groups that give the same compete with one another."""


def stream_floors(graph: Graph, share: float) -> dict[str, int]:
    """The fewest units that streams keep, as in ``allocate(floors=)``: ``share`` of each, rounded up."""
    return {g.name: math.ceil(share * g.size) for g in graph.prunable if share and kind_of(g) == "streams"}


def _values(graph: Graph, scores: Mapping[str, Tensor]) -> tuple[np.ndarray, ...]:
    for name in scores:
        if name not in graph:
            hint = nearest(name, [g.name for g in graph.groups])
            raise ScoreError(f"scores came for {name!r}, which is no group.{hint}")
    return tuple(_value(group, scores) for group in graph.prunable)


def _value(group: Group, scores: Mapping[str, Tensor]) -> np.ndarray:
    if group.name not in scores:
        raise ScoreError(f"group {group.name!r} ({group.size} units) has no scores. Score it, or pin it while tracing.")
    value = scores[group.name].detach()
    if tuple(value.shape) != (group.size,):
        raise ScoreError(
            f"scores of {group.name!r} have shape {tuple(value.shape)}; one per unit makes ({group.size},)."
        )
    require_finite(value, f"scores of {group.name!r}")
    return value.to("cpu", torch.float64).numpy()


def _plan(market: AllocationProblem, kept: np.ndarray, asked: Mapping[str, Any], budget: Budget) -> Plan:
    masks = np.split(kept, np.cumsum(market.sizes)[:-1]) if market.values else []
    pairs = zip(market.graph.prunable, masks, strict=True)
    cuts = [Cut(group.name, Keep.of(torch.from_numpy(mask))) for group, mask in pairs if not mask.all()]
    told = {name: BUDGETS[name] for name in ALWAYS} | ({} if budget.is_timed else {budget.name: budget})
    reached = {name: kind.amount(market.ledger, kept) for name, kind in told.items()}
    share_of_units = float(kept.mean()) if len(kept) else 1.0
    fraction = share_of_units if budget.counts_units else _share_of(market, kept, budget)
    return Plan(tuple(cuts), market.graph.fingerprint, dict(asked), {"keep": fraction, **reached})


def _pins(graph: Graph) -> str:
    reasons = [f"{g.name!r} ({g.pinned or 'a single unit'})" for g in graph.groups]
    if not reasons:
        return "the graph has no groups."
    more = len(reasons) - NAMED_PINS
    return f"no group can lose units: {', '.join(reasons[:NAMED_PINS])}{f' and {more} more' if more > 0 else ''}."


def _ceil(fraction: float) -> float:
    """Four digits, rounded up, so that the number in the message works when it is asked."""
    return min(1.0, math.ceil(fraction * 10_000) / 10_000)
