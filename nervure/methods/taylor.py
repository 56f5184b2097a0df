"""Taylor: units whose removal changes the loss least, to first order (Molchanov et al., 2017 and 2019).

Differs from the papers: the effect is measured where a unit is read, so that coupled units have one effect; see
``nervure.scores.taylor``.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.methods.base import View
from nervure.methods.channels.ranking import Ranking
from nervure.scores import Normalise, Scores, taylor


@final
@dataclass(frozen=True, slots=True)
class Taylor(Ranking):
    """Keep the units that the loss listens to.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"effects"})

    normalise: Normalise = "mean"

    def scores(self, view: View) -> Scores:
        """Mean absolute effect on the loss."""
        return taylor(view.graph, view.weights, self.evidence(view), normalise=self.normalise)
