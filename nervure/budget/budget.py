"""What a fraction that stays is a fraction of: a kind of budget is one value."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, final

import numpy as np

from nervure.budget.cost_model import CostModel
from nervure.budget.latency_table import Clock, LatencyTable
from nervure.core.check import show_value
from nervure.errors import ArgumentError
from nervure.graph.types import Graph
from nervure.plan import Plan

Cost: TypeAlias = Callable[[np.ndarray], float]
"""From the survivors along each axis [axes + 1] to what they cost. What survives more must not cost less."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Budget:
    """A kind of budget.

    Attributes:
        name: as in ``budget="macs"``.
        words: what is counted, for people: ``"multiply-accumulates"``.
        terms: from the costs of a graph to what survivors cost, such as the products that are summed; None where units
            are counted, or time.
        is_timed: whether it is timed on an engine.
        units: what amounts are written in, and how much one of each is, the usual one first. Without units only a share
            can be asked for.
        noun: what such an amount is called.
    """

    name: str
    words: str
    terms: Callable[[CostModel], Cost] | None = None
    is_timed: bool = False
    units: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    noun: str = "amount"

    def __repr__(self) -> str:
        return f"Budget({self.name!r})"

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
            return self.terms(costs)
        if clock is None:
            raise ArgumentError(
                f"budget={self.name!r} needs times of an engine: give "
                "table=nervure.latency_table(model, example, engine=...)."
                if self.is_timed
                else f"budget={self.name!r} counts units, whatever axes they lie along."
            )
        return clock.ratio

    def amount(self, costs: CostModel, kept: np.ndarray) -> float:
        """What it comes to when these flat units are kept, for a budget that is not timed."""
        return int(kept.sum()) if self.terms is None else costs.price(self.terms(costs), kept)

    def predict(self, graph: Graph, plan: Plan | None = None, table: LatencyTable | None = None) -> float:
        """What the network of ``graph`` costs once the cuts of ``plan`` are made; in seconds where it is timed.

        Blocks that a plan drops are not seen, except in times. Masks change nothing.

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
        if self.is_timed:
            return f"{amount:.4g} of the dense {self.name}"
        if not self.units:
            return f"{amount:.10g} {self.name}"
        usual = next(iter(self.units))
        return f"{amount / self.units[usual]:.4g} {usual}"

    def read_amount(self, text: str, option: str = "target") -> float:
        """An amount with its unit, such as ``"3 ms"``; raises ArgumentError, about ``option``, where it is none."""
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)\s*", text)
        units = {name.lower(): factor for name, factor in self.units.items()} | dict(self.units)
        factor = (units.get(found[2]) or units.get(found[2].lower())) if found else None
        if found is None or factor is None or float(found[1]) <= 0:
            usual, *others = self.units
            raise ArgumentError(
                f"{option}={show_value(text)} is no {self.noun}. Write a number and its unit, like '3 {usual}' "
                f"(or {', '.join(others)}), or the share of the dense network's {self.name} as a number, like 0.5."
            )
        return float(found[1]) * factor

    def share_of(self, target: float | str, whole: float) -> float:
        """What share of the ``whole`` a target is: a share itself, or an amount."""
        if isinstance(target, str):
            return self.read_amount(target) / whole
        return target if target <= 1 else target / whole
