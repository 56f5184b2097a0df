"""What methods share that rank the units of all groups and cut the lowest."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from nervure.budget import Budget, Scope, allocate, require_budget
from nervure.errors import ScoreError
from nervure.methods.base import View
from nervure.plan import Plan
from nervure.scores import Scores
from nervure.stats import Stats


@dataclass(frozen=True, slots=True)
class Ranking(ABC):
    """Keep the units with the highest scores.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        scope: ``"global"`` (layers compete) or ``"layer"`` (each layer keeps the same fraction).
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: float = 0.5
    scope: Scope = "global"
    budget: Budget = "channels"
    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        keep = require_budget(self.keep, self.budget, self.scope, self.minimum, self.multiple)
        object.__setattr__(self, "keep", keep)
        self.check()

    def check(self) -> None:  # noqa: B027 - most have nothing more to check
        """Complain about a hyper-parameter of one's own that is out of range."""

    @abstractmethod
    def scores(self, view: View) -> Scores:
        """One number per unit, higher stays."""

    def evidence(self, view: View) -> Stats:
        """What was measured; raises ScoreError where nothing was."""
        if view.stats is None:
            raise ScoreError(f"{self!r} needs evidence. Measure want={set(self.wants)!r} and give it as stats.")
        return view.stats

    def plan(self, view: View) -> Plan:
        """Cut the units of lowest score; raises ScoreError or BudgetError where that cannot be done."""
        return allocate(
            view.graph,
            self.scores(view),
            keep=self.keep,
            budget=self.budget,
            scope=self.scope,
            minimum=self.minimum,
            multiple=self.multiple,
        )
