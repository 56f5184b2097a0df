"""Plans for an engine: what every method shares that meets a latency, and what its options mean."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias, final

from msgspec import Meta

from nervure.budget import BUDGETS, Budget, allocate, find_budget
from nervure.budget.allocate import stream_floors, unit_multiple
from nervure.budget.kinds import is_known, is_timed
from nervure.budget.latency_table import LatencyTable
from nervure.core.check import show_value
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning
from nervure.evaluation.timing import Stopwatch
from nervure.graph.types import Graph
from nervure.methods.base import Folder, View
from nervure.plan import Plan
from nervure.scores import Scores

MULTIPLE = 16
"""Channels of one step of the engines measured (one register of AVX-512 in single precision)."""
JUST_ABOVE = 4
"""A size is just above a step where it takes at most this part of the next one."""
Target: TypeAlias = (
    Annotated[float, Meta(gt=0, description="the share of the whole network's that stays in (0, 1], or bytes")]
    | Annotated[str, Meta(description='an amount with its unit, like "3 ms" or "200 MB"')]
)
ROUNDS = 7
ENOUGH = 0.96
"""Of the target: a plan that takes so much of it is not made larger."""
MARGIN = 0.99
NAMED = 6


def check_options(method: Any) -> None:
    """Set ``engine`` and ``multiple`` where a frozen method leaves them open; ArgumentError where they contradict."""
    engine, multiple = for_engine(method.budget, method.engine, method.target, method.multiple)
    for name, value in (("multiple", multiple), ("engine", engine)):
        object.__setattr__(method, name, value)


def is_left_to_limits(method: Any) -> bool:
    """Whether a method says neither a share nor an amount, so that the limits of groups decide how much stays.

    Raises:
        ArgumentError: it counts a latency, which has to be asked for.
    """
    if method.keep is not None or method.target is not None:
        return False
    if is_timed(method.budget):
        raise ArgumentError(
            f"{type(method).__name__}(keep=None, budget={find_budget(method.budget).name!r}): limits know no time. Say "
            "keep= or target=, or count something else."
        )
    return True


def for_engine(
    budget: str | Budget, engine: str | None, target: float | str | None, multiple: int | None
) -> tuple[str | None, int | None]:
    """The engine that a plan is made for and what sizes are multiples of, as asked or by default.

    Where a cost is counted sizes may be rounded within it, so None stays; where units are, as many stay as was asked.

    Raises:
        ArgumentError: the target is no amount of the budget, or one is given where that has none.
    """
    require_target(target, budget)
    engine = "eager" if is_timed(budget) and engine is None else engine
    if multiple is None and engine is not None:
        return engine, MULTIPLE
    counts_cost = is_known(budget) and not find_budget(budget).counts_units
    return engine, 1 if multiple is None and not counts_cost else multiple


def require_target(target: float | str | None, budget: str | Budget, name: str = "target") -> None:
    """Raise ArgumentError where the option ``name`` is no amount of ``budget``, or that has none to ask for."""
    if target is None:
        return
    kind = find_budget(budget) if is_known(budget) else None
    if kind is None or not kind.units:
        amounts = [one.name for one in BUDGETS.values() if one.units]
        known = " or ".join(f"budget={one!r}" for one in amounts if name not in amounts or one == name)
        raise ArgumentError(f"{name}={show_value(target)} is an amount, so it needs {known}. Else say keep=.")
    if isinstance(target, str):
        kind.read_amount(target, name)
    elif kind.is_timed and target > 1:
        raise ArgumentError(f'{name}={show_value(target)} is no share in (0, 1]. A time has a unit, like "3 ms".')


def seconds_of(text: str, name: str = "target") -> float:
    """Seconds of a time like ``"3 ms"``; raises ArgumentError, about the option ``name``, where it is none.

    >>> seconds_of("3 ms"), seconds_of("1.5s")
    (0.003, 1.5)
    """
    return BUDGETS["latency"].read_amount(text, name)


def cut_lowest(method: Any, view: View, scores: Scores, floors: Mapping[str, int] | None = None) -> Plan:
    """Cut the units of lowest score, within the budget of ``method``; raises BudgetError, or ScoreError.

    Of each group at least as many stay as ``floors`` say, if any.
    """
    floors = stream_floors(view.graph, getattr(method, "streams", 0.0)) if floors is None else floors

    def cut(keep: float | None, table: LatencyTable | None = None) -> Plan:
        return allocate(
            view.graph,
            scores,
            keep=keep,
            budget=method.budget,
            scope=method.scope,
            minimum=method.minimum,
            multiple=1 if keep is None else method.multiple,
            floors=floors,
            table=table,
        )

    return plan_within(method, view, cut)


def plan_within(method: Any, view: View, cut: Callable[[float | None, LatencyTable | None], Plan]) -> Plan:
    """The plan that ``cut`` makes for the budget of ``method``; within a latency, one that keeps it when timed.

    Args:
        method: has ``keep``, ``budget``, ``engine``, ``target`` and ``multiple``.
        view: what it sees.
        cut: makes a plan that keeps such a share of the budget; of a latency, as a table predicts it. None: what has
            to stay, and no more.

    Raises:
        BudgetError: no plan meets the budget; for a latency the nearest that can be reached is told.
        DataError: a latency is asked and the view has no model or no example to time.
    """
    if is_timed(method.budget):
        # Where a step costs too much is known to the table, and what comes out is timed.
        return _within(method, view, cut)
    plan = cut(method.keep, None) if method.target is None else _cut_to_amount(method, view, cut)
    if method.engine is not None:
        warn_above_steps(view.graph, plan)
    return plan


def _cut_to_amount(method: Any, view: View, cut: Callable[[float | None, LatencyTable | None], Plan]) -> Plan:
    kind = find_budget(method.budget)
    plan = cut(min(1.0, kind.share_of(method.target, kind.predict(view.graph))), None)
    return replace(plan, asked={**plan.asked, "target": method.target})


@final
@dataclass(frozen=True, slots=True)
class LatencyInquiry:
    """How long a network takes on an engine, and others cut at random: what plans are predicted from.

    The table is kept in the user's folder for caches, with what was timed since, whatever folder is given.
    """

    engine: str

    def of(self, view: View, folder: Folder = None) -> tuple[Stopwatch, LatencyTable]:
        """What times the plans of a view, and its table; raises DataError where there is nothing to time."""
        if view.model is None or view.example is None:
            raise DataError('budget="latency" times the network: give the model and the example it was traced with.')
        watch = Stopwatch(view.model, view.graph, Inputs.of(view.example), self.engine)
        return watch, watch.table()


def timed_inquiries(method: Any) -> tuple[LatencyInquiry, ...]:
    """What a method asks that has to meet a latency; it has ``keep``, ``budget``, ``engine`` and ``target``."""
    asks = is_timed(method.budget) and (method.keep if method.target is None else method.target) != 1
    return (LatencyInquiry(method.engine or "eager"),) if asks else ()


def _within(method: Any, view: View, cut: Callable[[float | None, LatencyTable | None], Plan]) -> Plan:
    asked = {"budget": find_budget(method.budget).name, "engine": method.engine, "target": method.target or method.keep}
    whole = Plan((), view.graph.fingerprint, asked, {"keep": 1.0})
    if asked["target"] == 1:
        return whole
    watch, table = view.ask(LatencyInquiry(method.engine))
    goal = goal_of(method.keep, method.target, table.dense)
    if goal >= 1:
        return whole

    def attempt(limit: float) -> tuple[Plan, float]:
        try:
            plan = cut(limit, table)
        except BudgetError as error:
            if error.keep is None:
                raise
            plan = cut(error.keep, table)
        return plan, watch.ratio(plan)

    plan, took = _search(attempt, goal)
    if took > goal:
        raise BudgetError(_unreachable(method, goal, took, table), keep=min(1.0, math.ceil(took * 1000) / 1000))
    reached = {
        **plan.reached,
        "keep": took,
        "predicted": plan.reached["keep"],
        "milliseconds": 1e3 * took * table.dense,
    }
    reached.pop("seconds", None)
    return replace(plan, asked=asked, reached=reached)


def goal_of(keep: float, target: float | str | None, dense: float) -> float:
    """The share of the dense network's latency that is asked for; ``dense`` is that latency in seconds."""
    if target is None:
        return keep
    return BUDGETS["latency"].share_of(target, dense)


def _search(tried: Callable[[float], tuple[Plan, float]], goal: float) -> tuple[Plan, float]:
    """The largest plan found that takes at most ``goal`` when timed; where there is none, the fastest.

    What was predicted is put right by what was timed: the limit is raised or lowered by their ratio, between those
    that were found too low and too high.
    """
    low, high, limit = 0.0, 1.0, MARGIN * goal
    best: tuple[Plan, float] | None = None
    fastest: tuple[Plan, float] | None = None
    for _ in range(ROUNDS):
        plan, took = tried(limit)
        predicted = float(plan.reached["keep"])
        if fastest is None or took < fastest[1]:
            fastest = plan, took
        if took <= goal:
            if best is None or took > best[1]:
                best = plan, took
            if took >= ENOUGH * goal:
                break
            low = max(low, limit)
        else:
            high = min(high, limit, predicted)
            if predicted > limit:
                # Even the floors are above the limit: there is nothing smaller.
                break
        limit = limit * MARGIN * goal / took
        limit = limit if low < limit < high else (low + high) / 2
    assert fastest is not None
    return best or fastest


def _unreachable(method: Any, goal: float, took: float, table: LatencyTable) -> str:
    asked, nearest = (f"{1e3 * share * table.dense:.3g} ms" for share in (goal, took))
    return (
        f"target={method.target or method.keep!r} of the latency on {table.engine} ({asked} of "
        f"{1e3 * table.dense:.3g} ms) cannot be reached by cutting units: the fastest plan found "
        f"(minimum={method.minimum}, multiple={method.multiple}) was timed at {took:.3f} of the dense network "
        f"({nearest}). Ask for {math.ceil(took * 100) / 100:g} or more, take a smaller multiple, or drop blocks first "
        "(Depth, Energy)."
    )


def warn_above_steps(graph: Graph, plan: Plan, step: int = MULTIPLE) -> None:
    """Warn, once for a whole plan, of groups that it leaves just above a step of the engine."""
    found = list(above_steps(graph, plan, step))
    if not found:
        return
    named = ", ".join(f"{name!r} {size}" for name, size in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    warnings.warn(
        f"{len(found)} groups end just above a multiple of {step} and cost as much as the next one ({step + 1} as much "
        f"as {2 * step}): {named}{more}. Take multiple={step} to fill or spare the rest of the step.",
        NervureWarning,
        stacklevel=4,
    )


def above_steps(graph: Graph, plan: Plan, step: int = MULTIPLE) -> Iterable[tuple[str, int]]:
    """Groups of channels that ``plan`` cuts to a size just above a multiple of ``step``, with that size."""
    for cut in plan.cuts:
        size = cut.keep.count
        if unit_multiple(graph[cut.group], step) == step and size > step and 0 < size % step <= step // JUST_ABOVE:
            yield cut.group, size
