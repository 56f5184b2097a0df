"""Magnitude: units whose weights have a small norm leave (Li et al., "Pruning Filters for Efficient ConvNets", 2017).

Differs from the paper: one ranking goes over all layers by default (norms relative to the mean of their group), units
coupled by a shortcut are scored and cut together, and the budget can be parameters or multiply-accumulates.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from nervure.budget import Budget, Scope, allocate, require_budget
from nervure.check import require_choice
from nervure.methods.base import View
from nervure.plan import Plan
from nervure.scores import magnitude


@final
@dataclass(frozen=True, slots=True)
class Magnitude:
    """Keep the units with the largest weights.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        norm: 1 or 2.
        scope: ``"global"`` (layers compete) or ``"layer"`` (each layer keeps the same fraction).
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: float = 0.5
    norm: Literal[1, 2] = 1
    scope: Scope = "global"
    budget: Budget = "channels"
    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        require_choice(self.norm, (1, 2), "norm")
        keep = require_budget(self.keep, self.budget, self.scope, self.minimum, self.multiple)
        object.__setattr__(self, "keep", keep)

    def plan(self, view: View) -> Plan:
        """Cut the units of smallest norm; raises ScoreError or BudgetError where that cannot be done."""
        return allocate(
            view.graph,
            magnitude(view.graph, view.weights, norm=self.norm),
            keep=self.keep,
            budget=self.budget,
            scope=self.scope,
            minimum=self.minimum,
            multiple=self.multiple,
        )
