"""What a fraction that stays is a fraction of: one value for each kind of budget, and the table that names them.

A new kind is one entry in ``BUDGETS``; methods, recipes, studies and the command line look it up there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeAlias, final

import numpy as np

from nervure.budget.cost_model import CostModel, Terms, total
from nervure.budget.latency_table import Clock, LatencyTable
from nervure.core.annotations import Among
from nervure.errors import ArgumentError
from nervure.graph.types import Graph
from nervure.plan import Plan

Cost: TypeAlias = Callable[[np.ndarray], float]
"""From the survivors along each axis [axes + 1] to what they cost."""


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """A kind of budget.

    Attributes:
        name: as in ``budget="macs"``.
        words: what is counted, for people: ``"multiply-accumulates"``.
        terms: the products that add up to the cost; None where units are counted, or time.
        is_timed: whether it is timed on an engine.
    """

    name: str
    words: str
    terms: Callable[[CostModel], Terms] | None = None
    is_timed: bool = False

    @property
    def counts_units(self) -> bool:
        """Whether a unit costs 1 wherever it is, so that exactly so many can stay."""
        return self.terms is None and not self.is_timed

    def cost(self, costs: CostModel, clock: Clock | None = None) -> Cost:
        """What survivors along each axis come to, for a budget that does not count units.

        Raises:
            ArgumentError: it counts units, or is timed and there is no clock.
        """
        if self.terms is not None:
            return partial(total, self.terms(costs))
        if clock is None:
            raise ArgumentError(
                f"budget={self.name!r} needs times of an engine: give "
                "table=nervure.latency_table(model, example, engine=...)."
                if self.is_timed
                else f"budget={self.name!r} counts units, whatever axes they lie along."
            )
        return clock.ratio

    def amount(self, costs: CostModel, kept: np.ndarray) -> int:
        """What it comes to when these flat units are kept, for a budget that is not timed."""
        return costs.price(self.terms(costs), kept) if self.terms is not None else int(kept.sum())

    def predict(self, graph: Graph, plan: Plan | None = None, table: LatencyTable | None = None) -> float:
        """What the network of ``graph`` costs once the cuts of ``plan`` are made; in seconds where it is timed.

        Blocks that a plan drops are not seen, except in times.

        Raises:
            ArgumentError: it is timed, and no ``table`` is given.
        """
        if self.is_timed:
            if table is None:
                raise ArgumentError(f"{self.name} is predicted from a table: nervure.latency_table(model, example).")
            return table.predict(graph, plan or Plan())
        keeps = {cut.group: cut.keep.tensor().numpy() for cut in plan.cuts} if plan else {}
        flags = [keeps.get(group.name, np.ones(group.size, dtype=bool)) for group in graph.prunable]
        return self.amount(CostModel.of(graph), np.concatenate([np.ones(0, dtype=bool), *flags]))

    def format_amount(self, amount: float) -> str:
        """An amount as :meth:`cost` gives it, in words."""
        return f"{amount:.4g} of the dense {self.name}" if self.is_timed else f"{int(amount)} {self.name}"


BUDGETS: Mapping[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("channels", "channels of prunable groups"),
        Budget("params", "parameters", lambda costs: costs.params),
        Budget("macs", "multiply-accumulates", lambda costs: costs.macs),
        Budget("latency", "seconds on an engine", is_timed=True),
    )
}
COUNTED = tuple(name for name, budget in BUDGETS.items() if not budget.is_timed)
"""Names of the budgets that are known without an engine."""
BudgetName: TypeAlias = Annotated[str, Among(BUDGETS)]
CountedName: TypeAlias = Annotated[str, Among(COUNTED)]


def is_timed(name: str) -> bool:
    """Whether the budget of that name is timed on an engine; names of other families of methods are not."""
    return name in BUDGETS and BUDGETS[name].is_timed
