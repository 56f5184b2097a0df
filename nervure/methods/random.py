"""Random: units leave by lot. The control of Mittal et al., "Recovering from Random Pruning", 2018.

A method that does not beat it after equal recovery has learnt nothing about the network.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.budget import Budget, Scope, allocate, require_budget
from nervure.errors import ArgumentError
from nervure.methods.base import View
from nervure.plan import Plan
from nervure.scores import random_scores


@final
@dataclass(frozen=True, slots=True)
class Random:
    """Keep units by lot.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        seed: added to the seed of the view, so that either one draws another lot.
        scope: ``"layer"`` (each layer keeps the same fraction) or ``"global"``.
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: float = 0.5
    seed: int = 0
    scope: Scope = "layer"
    budget: Budget = "channels"
    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ArgumentError(f"seed={self.seed!r} must be a whole number.")
        keep = require_budget(self.keep, self.budget, self.scope, self.minimum, self.multiple)
        object.__setattr__(self, "keep", keep)

    def plan(self, view: View) -> Plan:
        """Cut units by lot; raises BudgetError where the budget cannot be met."""
        return allocate(
            view.graph,
            random_scores(view.graph, seed=self.seed + view.seed),
            keep=self.keep,
            budget=self.budget,
            scope=self.scope,
            minimum=self.minimum,
            multiple=self.multiple,
        )
