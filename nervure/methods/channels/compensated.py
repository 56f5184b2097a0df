"""Cut the units that the others can stand in for: what readers lose after the best refit, at the price of a unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from nervure.budget import BUDGETS, BudgetName, Scope, find_budget
from nervure.budget.cost_model import CostModel
from nervure.core.check import Checked
from nervure.core.schema import Density, NotNegative, Size
from nervure.engines import EngineName
from nervure.graph.types import Graph
from nervure.methods.base import Inquiry, View
from nervure.methods.channels.compensation import CompensationCurves, CompensationSurvey, Currency
from nervure.methods.channels.timed import Target, check_options, cut_lowest, timed_inquiries
from nervure.plan import Plan
from nervure.scores import Scores
from nervure.scores.completed import completed

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
        keep: the fraction of the budget that stays, in (0, 1].
        scope: ``"global"`` (layers compete), ``"layer"`` (each layer keeps the same fraction) or ``"kind"`` (each kind
            of group does).
        budget: ``"channels"``, ``"params"``, ``"macs"``, ``"latency"`` (timed on the engine, on the example),
            ``"memory"`` (of a forward pass on the example), or a :class:`nervure.budget.Budget` of your own.
        currency: what counts alike: ``"outputs"`` (each output of each reader, relative to its variance) or
            ``"layers"`` (each reader).
        samples: how many samples at most are measured.
        positions: at how many places of each sample a convolution is looked at, at most.
        ridge: the share of its variance that is added to each input's.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this. None: 16 for an engine, else 1.
        engine: what the plan is made for, see :func:`nervure.engines.runner`; with ``"latency"`` eager where none is
            named.
        target: the latency or memory to meet: a share of the dense network's in (0, 1], or an amount like ``"3 ms"`` or
            ``"200 MB"`` (above 1: bytes); None: the share ``keep``.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: Density = 0.5
    scope: Scope = "global"
    budget: BudgetName = "channels"
    currency: Currency = "outputs"
    samples: Size = 1024
    positions: Size = 8
    ridge: NotNegative = 1e-3
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = field(default=None, kw_only=True)
    target: Target | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """The curves, and times where a latency is to be met."""
        return (self._survey, *timed_inquiries(self))

    @property
    def _survey(self) -> CompensationSurvey:
        return CompensationSurvey(self.samples, self.positions, self.ridge, self.currency)

    def evidence(self, view: View) -> CompensationCurves:
        """What the plan rests on."""
        return view.ask(self._survey)

    def plan(self, view: View) -> Plan:
        """Cut the units that are missed least; raises DataError without data, and BudgetError."""
        return self.decide(view, self.evidence(view))

    def decide(self, view: View, found: CompensationCurves) -> Plan:
        """The plan that follows from what was found; raises BudgetError."""
        return cut_lowest(self, view, curve_scores(view, found, self.budget))


def curve_scores(view: View, found: CompensationCurves, budget: BudgetName) -> Scores:
    """What each unit adds to what is lost, per unit of the budget that it costs, never falling along its curve."""
    prices = unit_prices(view.graph, budget)
    scores = {
        name: _along(order, found.costs[name] / prices[name]) for name, order in found.order.items() if name in prices
    }
    return completed(view.graph, scores, view.weights, found.skipped)


def _along(order: Tensor, costs: Tensor) -> Tensor:
    rising = costs.double().clamp(min=0).cummax(0).values
    places = torch.arange(len(order), dtype=torch.float64)
    scores = torch.empty_like(rising)
    scores[order] = rising * (1 + STEP * places) + torch.finfo(torch.float32).tiny * places
    return scores


def unit_prices(graph: Graph, budget: BudgetName) -> Mapping[str, float]:
    """What a unit of each prunable group costs of a budget, on average while half of the group leaves.

    Multiply-accumulates where the budget is of another kind than these and parameters; 1 where units are counted.
    """
    kind = find_budget(budget)
    if kind.counts_units:
        return {group.name: 1.0 for group in graph.prunable}
    ledger = CostModel.of(graph)
    cost = (kind if kind.name == "params" else BUDGETS["macs"]).cost(ledger, None)
    kept, prices, start = np.ones(sum(group.size for group in graph.prunable), dtype=bool), {}, 0
    whole = cost(ledger.sizes)
    for group in graph.prunable:
        half = max(1, group.size // 2)
        kept[start : start + half] = False
        prices[group.name] = max((whole - cost(ledger.alive(ledger.deaths(kept)))) / half, 1.0)
        kept[start : start + half] = True
        start += group.size
    return prices
