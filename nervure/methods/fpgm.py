"""FPGM: filters that the others can stand in for leave (He et al., "Filter Pruning via Geometric Median", 2019).

Differs from the paper: one ranking over all layers by default, and one cut instead of one after each epoch.
"""

from dataclasses import dataclass
from typing import final

from nervure.methods.base import View
from nervure.methods.channels.ranking import Ranking
from nervure.scores import Normalise, Scores, fpgm


@final
@dataclass(frozen=True, slots=True)
class FPGM(Ranking):
    """Keep the units farthest from the geometric median of their group.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    normalise: Normalise = "mean"

    def scores(self, view: View) -> Scores:
        """Sums of distances to the other units."""
        return fpgm(view.graph, view.weights, normalise=self.normalise)
