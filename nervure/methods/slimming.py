"""Slimming: channels that their batch norm has closed leave (Liu et al., "Network Slimming", 2017).

Differs from the paper: no L1 penalty is added to training; several norms of coupled channels are averaged; see
``nervure.scores.slimming``.
"""

from dataclasses import dataclass
from typing import final

from nervure.methods.base import View
from nervure.methods.channels.ranking import Ranking
from nervure.scores import Normalise, Scores, Without, slimming


@final
@dataclass(frozen=True, slots=True)
class Slimming(Ranking):
    """Keep the units with the largest scale in their norms.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        without: what groups without a norm get: ``"magnitude"``, at the level of the others, or ``"error"``.
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    without: Without = "magnitude"
    normalise: Normalise = "none"

    def scores(self, view: View) -> Scores:
        """The absolute scale of the norms."""
        return slimming(view.graph, view.weights, without=self.without, normalise=self.normalise)
