"""Fisher: units whose removal raises the loss least, to second order (Theis et al., 2018; Liu et al., 2021).

Sources: "Faster gaze prediction with dense networks and Fisher pruning"; "Group Fisher Pruning".

Differs from the papers: one cut instead of one unit at a time between steps of training.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.methods.base import View
from nervure.methods.channels.ranking import Ranking
from nervure.scores import Normalise, Scores, fisher


@final
@dataclass(frozen=True, slots=True)
class Fisher(Ranking):
    """Keep the units that the loss listens to, weighted by the square.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"effects"})

    normalise: Normalise = "mean"

    def scores(self, view: View) -> Scores:
        """Half the mean squared effect on the loss."""
        return fisher(view.graph, view.weights, self.evidence(view), normalise=self.normalise)
