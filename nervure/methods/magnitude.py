"""Magnitude: units whose weights have a small norm leave (Li et al., "Pruning Filters for Efficient ConvNets", 2017).

Differs from the paper: one ranking goes over all layers by default (norms relative to the mean of their group), units
coupled by a shortcut are scored and cut together, and the budget can be parameters or multiply-accumulates.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from nervure.budget import Scope, TimedBudget
from nervure.core.check import Checked
from nervure.core.schema import Density, Size
from nervure.engines import EngineName
from nervure.methods.base import View
from nervure.methods.channels.timed import Target, check_options, cut_lowest
from nervure.plan import Plan
from nervure.scores import magnitude


@final
@dataclass(frozen=True, slots=True)
class Magnitude(Checked):
    """Keep the units with the largest weights.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        norm: 1 or 2.
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
    norm: Literal[1, 2] = 1
    scope: Scope = "global"
    budget: TimedBudget = "channels"
    minimum: Size = 1
    multiple: Size | None = None
    engine: EngineName | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        check_options(self)

    def plan(self, view: View) -> Plan:
        """Cut the units of smallest norm; raises ScoreError or BudgetError where that cannot be done."""
        return cut_lowest(self, view, magnitude(view.graph, view.weights, norm=self.norm))
