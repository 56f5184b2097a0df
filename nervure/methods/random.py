"""Random: units leave by lot. The control of Mittal et al., "Recovering from Random Pruning", 2018.

A method that does not beat it after equal recovery has learnt nothing about the network.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.budget import Scope, TimedBudget
from nervure.core.check import Checked
from nervure.core.schema import Density, Seed, Size
from nervure.engines import EngineName
from nervure.methods.base import View
from nervure.methods.channels.timed import Target, check_options, cut_lowest
from nervure.plan import Plan
from nervure.scores import random_scores


@final
@dataclass(frozen=True, slots=True)
class Random(Checked):
    """Keep units by lot.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        seed: added to the seed of the view, so that either one draws another lot.
        scope: ``"layer"`` (each layer keeps the same fraction) or ``"global"``.
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
    seed: Seed = 0
    scope: Scope = "layer"
    budget: TimedBudget = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)

    def plan(self, view: View) -> Plan:
        """Cut units by lot; raises BudgetError where the budget cannot be met."""
        return cut_lowest(self, view, random_scores(view.graph, seed=self.seed + view.seed))
