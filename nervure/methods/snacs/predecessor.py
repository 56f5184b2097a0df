"""MINT: connections between groups of filters leave where child and parent share little information.

Ganesh, Corso and Yasaei Sekeh, "MINT: Deep Network Compression via Mutual Information-based Neuron Trimming", 2020
(arXiv:2003.08472). The predecessor of SNACS: the same question, answered by spanning trees, without weights, without
protection, and with an upper limit that is given instead of found.

Differs from the paper, with reasons in ``docs/methods/yardsticks.md``: parents and children are of the same samples,
parents are what enters a layer, budgets are met exactly, and whole units leave by default.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

from msgspec import Meta

from nervure.core.check import Checked
from nervure.core.schema import Density, Size
from nervure.methods.base import Inquiry, View, stats_of
from nervure.methods.channels.timed import timed_inquiries
from nervure.methods.snacs.limits import Limit
from nervure.methods.snacs.snacs import SNACS, Granularity, Price
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.plan import Plan
from nervure.scores.bundles import layers
from nervure.scores.mint import mint


@final
@dataclass(frozen=True, slots=True)
class MINT(Checked):
    """Keep the units, or the connections, that share information with their readers.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        budget: what is counted, see :class:`SNACS`.
        granularity: ``"filters"`` cuts units, ``"kernels"`` masks connections as in the paper.
        groups: blocks of filters in each layer that are scored together; the work grows with its square.
        samples: how many of the measured samples are used; the work grows with its square too.
        upper: the largest share of any layer that may go, in (0, 1]. Without a limit whole layers vanish: trees of few
            samples score many connections 0.
        minimum: units that every group keeps (filters).
        multiple: group sizes are rounded up to a multiple of this (filters).
    """

    wants: ClassVar[frozenset[str]] = frozenset({"connections"})

    keep: Density = 0.5
    budget: Price | None = None
    granularity: Granularity = "filters"
    groups: Size = 8
    samples: Size = 300
    upper: Annotated[float, Meta(gt=0, le=1, description="the largest share of a layer that goes")] = 0.75
    minimum: Size = 1
    multiple: Size = 1

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        object.__setattr__(self, "budget", self._successor().budget)

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """Times, where a latency is to be met."""
        return timed_inquiries(self._successor())

    def plan(self, view: View) -> Plan:
        """Cut units or mask connections.

        Raises:
            ScoreError: what enters the layers was not measured.
            BudgetError: the budget cannot be met.
        """
        if self.keep == 1:
            return self._successor().plan(view)
        return self._successor().decide(view, self.evidence(view))

    def evidence(self, view: View) -> ConnectivityEvidence:
        """The dependence of every connection, and the limit of every layer and group."""
        stats = stats_of(self, view)
        heard = {name: values[: self.samples] for name, values in stats.connections.items()}
        scores = {
            layer.tensor: mint(layer, heard[layer.tensor], groups=self.groups, seed=view.seed)
            for layer in layers(view.graph, view.weights, heard)
        }
        names = [*scores, *(group.name for group in view.graph.prunable)]
        limits = dict.fromkeys(names, Limit((), (), self.upper))
        return ConnectivityEvidence(scores, limits, skipped=stats.skipped, samples=min(self.samples, stats.samples))

    def _successor(self) -> SNACS:
        """The method that meets a budget from scores of connections."""
        return SNACS(
            keep=self.keep,
            budget=self.budget,
            granularity=self.granularity,
            minimum=self.minimum,
            multiple=self.multiple,
            ranking="connectivity",
            of="means",
            sizes="threshold",
        )
