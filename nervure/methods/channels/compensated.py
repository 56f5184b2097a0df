"""Cut the units that the others can stand in for: what readers lose after the best refit, at the price of a unit."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from nervure.budget import BUDGETS, BudgetName, Scope, find_budget
from nervure.budget.cost_model import CostModel
from nervure.core.check import Checked
from nervure.core.schema import Count, Density, NotNegative, Share, Size
from nervure.engines import EngineName
from nervure.errors import NervureWarning
from nervure.graph.types import Graph, keeps_of
from nervure.methods.base import Inquiry, View
from nervure.methods.channels.compensation import CURVE_SLACK, CompensationCurves, CompensationSurvey, Currency
from nervure.methods.channels.data_views import ViewsLike, take_views, views_of
from nervure.methods.channels.timed import Target, check_options, cut_lowest, is_left_to_limits, timed_inquiries
from nervure.plan import Plan
from nervure.scores import Scores
from nervure.scores.common import match_ranks
from nervure.scores.completed import completed

ROUNDS = 4
"""How often units are priced where the plan before arrived."""
LIMITS = "limits"
"""What a plan says of how much was asked to stay, where limits decided."""
STEP = 1e-9
"""Of its score, by how much a unit that leaves later is worth more: units that cost nothing leave in their order."""


@final
@dataclass(frozen=True, slots=True)
class Compensated(Checked):
    """Keep the units that the others cannot stand in for.

    The optimal brain surgeon for whole units: the price of one is what all that read it (convolutions, linear layers,
    projections of attention) lose of their outputs after the best least-squares refit of the weights of the others;
    units leave one after the other, each time the cheapest of its group. What a group has lost is its curve, and by
    these curves, per unit of the budget, groups compete. No labels, no gradients. A refit (:func:`nervure.refit`) makes
    it true: ``prune(..., refit=True)``.

    Hassibi and Stork, "Optimal Brain Surgeon", 1993; for units of language models ZipLM (Kurtic et al., 2023) and
    OSSCAR (Meng et al., 2024). Differs from these: convolutions, streams with many readers, all groups in one currency.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1]. None: each group is cut to its own limit, as
            ``slack`` says, and ``budget`` has no say.
        scope: ``"global"`` (layers compete), ``"layer"`` (each layer keeps the same fraction) or ``"kind"`` (each kind
            of group does).
        budget: ``"channels"``, ``"params"``, ``"macs"``, ``"latency"`` (timed on the engine, on the example),
            ``"memory"`` (of a forward pass on the example), or a :class:`nervure.budget.Budget` of your own.
        currency: what counts alike: ``"answers"`` (groups by what the network's answers lose when each alone is cut and
            its readers are fitted to what is left; where no groups compete, and where limits decide, this is
            ``"outputs"``), ``"outputs"`` (each output of each reader, relative to its variance, and to that of
            the stream where it is added to one, and inside a block less where the block makes less of its stream; of
            gates, queries and keys the part that they are of a value), ``"alone"`` (the same without streams) or
            ``"layers"`` (each reader).
        samples: how many samples at most are measured.
        positions: at how many places of each sample a convolution is looked at, at most. 0: 8, or more where samples
            are few, so that a layer sees about 8,192.
        ridge: the share of its variance that is added to each input's.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this. None: 16 for an engine; else what fast kernels take,
            8 in wide groups (see :func:`nervure.budget.allocate`), but 1 where channels are counted or limits
            decide.
        engine: what the plan is made for, see :func:`nervure.engines.runner`; with ``"latency"`` eager where none is
            named.
        target: the latency or memory to meet: a share of the dense network's in (0, 1], or an amount like ``"3 ms"`` or
            ``"200 MB"`` (above 1: bytes); None: the share ``keep``.
        slack: where limits decide (``keep=None``): what a unit may cost, as a share of what one of its group costs on
            average, in [0, 1]. Units leave, the cheapest first, until the next one would cost more. 0.1 was chosen on
            VGG-16 and ResNet-20 (pictures held out, two seeds each): it left 0.19 to 0.22 and 0.73 to 0.82 of the
            multiply-accumulates and cost 0.7 to 3.1 points refitted, 0.3 to 1.4 after one more epoch; 0.05 cost one
            point at most without training.
        views: another view of the data, where others have to stand in as well: a function of a batch and a seed, as
            :func:`nervure.training.picture_views` makes one, or its name ``"package.module:name"``; or batches of
            another domain. A unit then costs what it costs in the worse of both, and measuring takes twice as long.
    """

    wants: ClassVar[frozenset[str]] = frozenset()
    refits: ClassVar[bool] = True
    has_limits: ClassVar[bool] = True

    keep: Density | None = 0.5
    scope: Scope = "global"
    budget: BudgetName = "channels"
    currency: Currency = "answers"
    samples: Size = 1024
    positions: Count = 0
    ridge: NotNegative = 1e-3
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = field(default=None, kw_only=True)
    target: Target | None = field(default=None, kw_only=True)
    slack: Share = field(default=CURVE_SLACK, kw_only=True)
    views: ViewsLike | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)
        is_left_to_limits(self)
        take_views(self)

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """The curves, and times where a latency is to be met."""
        return (self._survey, *timed_inquiries(self))

    @property
    def _survey(self) -> CompensationSurvey:
        competes = self.scope not in ("layer", "uniform") and not is_left_to_limits(self)
        currency = self.currency if competes or self.currency != "answers" else "outputs"
        return CompensationSurvey(self.samples, self.positions, self.ridge, currency, views_of(self.views))

    def evidence(self, view: View) -> CompensationCurves:
        """What the plan rests on."""
        return view.ask(self._survey)

    def plan(self, view: View) -> Plan:
        """Cut the units that are missed least; raises DataError without data, and BudgetError."""
        return self.decide(view, self.evidence(view))

    def decide(self, view: View, found: CompensationCurves) -> Plan:
        """The plan that follows from what was found; raises BudgetError."""
        if not is_left_to_limits(self):
            return plan_by_curves(view, found, self.budget, lambda scores: cut_lowest(self, view, scores))
        floors = {group.name: group.size - found.removable(group.name, self.slack) for group in view.graph.prunable}
        plan = plan_by_curves(view, found, None, lambda scores: cut_lowest(self, view, scores, floors))
        return replace(plan, asked={**plan.asked, "keep": LIMITS, "slack": self.slack})


def plan_by_curves(
    view: View, found: CompensationCurves, budget: BudgetName | None, plan_of: Callable[[Scores], Plan]
) -> Plan:
    """The plan that ``plan_of`` makes of scores per unit of the budget, as units are priced where it arrives.

    At the least loss for a budget, what the last unit of each group adds is in proportion to what it costs there; what
    a channel costs in multiply-accumulates depends on how many there are beside it. Without a budget limits decide, and
    groups do not compete.
    """
    missing = [group.name for group in view.graph.prunable if group.name not in found.order]
    _warn_of_missing(missing, found.skipped, whole=budget is None)
    if budget is None:
        return plan_of(curve_scores(view, found))
    prices = unit_prices(view.graph, budget)
    kind = find_budget(budget)
    for _ in range(0 if kind.is_timed or kind.counts_units else ROUNDS):
        there = unit_prices(view.graph, budget, plan_of(curve_scores(view, found, prices)))
        prices = {name: math.sqrt(price * there[name]) for name, price in prices.items()}
    return plan_of(curve_scores(view, found, prices))


def _warn_of_missing(missing: Sequence[str], skipped: Mapping[str, str], whole: bool) -> None:
    if missing:
        stays = (
            "stay whole, since they have no limit. To cut them too, say keep=."
            if whole
            else "keep their units of largest magnitude, as many as the others do on average. To leave them whole, "
            "name what makes them in ignore=."
        )
        warnings.warn(
            f"what readers lose with units of {', '.join(missing[:3])}{', ...' if missing[3:] else ''} is not known "
            f"({skipped.get(missing[0], 'it was not measured')}): {len(missing)} of the groups {stays}",
            NervureWarning,
            stacklevel=4,
        )


def curve_scores(view: View, found: CompensationCurves, prices: Mapping[str, float] | None = None) -> Scores:
    """What each unit adds to what is lost, per unit of price, never falling along the curve of its group.

    A group without a curve keeps its units of largest magnitude, as many as all groups with curves keep together.
    """
    scores = {
        group.name: _along(found.order[group.name], found.costs[group.name] / (prices or {}).get(group.name, 1.0))
        for group in view.graph.prunable
        if group.name in found.order
    }
    whole = completed(view.graph, scores, view.weights, found.skipped)
    # Magnitudes are close to one another: as costs, all of them would go, or none.
    return {name: scores[name] if name in scores else _spread(values, scores) for name, values in whole.items()}


def _spread(ranked: Tensor, measured: Scores) -> Tensor:
    """Values of all that was measured, evenly drawn, in the order of ``ranked``."""
    values = torch.cat(list(measured.values())).sort().values
    places = (torch.arange(len(ranked)) + 0.5) / len(ranked) * len(values)
    return match_ranks(ranked.cpu(), values[places.long()])


def _along(order: Tensor, costs: Tensor) -> Tensor:
    rising = costs.double().clamp(min=0).cummax(0).values
    places = torch.arange(len(order), dtype=torch.float64)
    scores = torch.empty_like(rising)
    scores[order] = rising * (1 + STEP * places) + torch.finfo(torch.float32).tiny * places
    return scores


def unit_prices(graph: Graph, budget: BudgetName, plan: Plan | None = None) -> Mapping[str, float]:
    """What a unit of each prunable group costs of a budget once a plan was made.

    It is the average over half of those units of the group that are left. Multiply-accumulates where the budget is of
    another kind than these and parameters; 1 where units are counted.
    """
    kind = find_budget(budget)
    if kind.counts_units:
        return {group.name: 1.0 for group in graph.prunable}
    ledger = CostModel.of(graph)
    cost = (kind if kind.name == "params" else BUDGETS["macs"]).cost(ledger, None)
    keeps = keeps_of(() if plan is None else plan.cuts)
    whole = {group.name: torch.ones(group.size, dtype=torch.bool) for group in graph.prunable}
    kept = torch.cat([keeps.get(name, ones) for name, ones in whole.items()]).numpy() if whole else np.ones(0, bool)
    now, prices, start = ledger.price(cost, kept), dict[str, float](), 0
    for group in graph.prunable:
        left = start + np.flatnonzero(kept[start : start + group.size])
        half, without = left[: max(1, len(left) // 2)], kept.copy()
        without[half] = False
        prices[group.name] = max((now - ledger.price(cost, without)) / len(half), 1.0)
        start += group.size
    return prices
