"""What methods share that rank the units of all groups and cut the lowest."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from nervure.budget import Scope, TimedBudget
from nervure.core.check import Checked
from nervure.core.schema import Density, Size
from nervure.engines import EngineName
from nervure.errors import ScoreError
from nervure.methods.base import View
from nervure.methods.channels.timed import Target, check_options, cut_lowest
from nervure.plan import Plan
from nervure.scores import Scores
from nervure.stats import Stats


@dataclass(frozen=True, slots=True)
class Ranking(Checked, ABC):
    """Keep the units with the highest scores.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        scope: ``"global"`` (layers compete) or ``"layer"`` (each layer keeps the same fraction).
        budget: ``"channels"``, ``"params"``, ``"macs"`` or ``"latency"`` (timed on the engine, on the example).
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this. None: 16 for an engine, else 1.
        engine: what the plan is made for, see :func:`nervure.engines.runner`; with ``"latency"`` eager where none is
            named.
        target: the latency to meet: a share of the dense network's in (0, 1], or a time like ``"3 ms"``; None: the
            share ``keep``.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: Density = 0.5
    scope: Scope = "global"
    budget: TimedBudget = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = field(default=None, kw_only=True)
    target: Target | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)
        self.check()

    def check(self) -> None:
        """Complain about hyper-parameters of one's own that do not go together."""

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
        return cut_lowest(self, view, self.scores(view))
