"""Activation: units that are silent leave (Hu et al., "Network Trimming", 2016, with ``of="alive"``).

Differs from the paper: one ranking over all layers, and mean absolute values by default.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.check import require_choice
from nervure.methods.base import View
from nervure.methods.ranking import Ranking
from nervure.scores import Loudness, Normalise, Scores, activation
from nervure.scores.common import NORMALISE
from nervure.scores.effects import HEARD


@final
@dataclass(frozen=True, slots=True)
class Activation(Ranking):
    """Keep the units that are loud where they are read.

    The other hyper-parameters are those of every ranking: ``keep``, ``scope``, ``budget``, ``minimum``, ``multiple``.

    Attributes:
        of: ``"absolute"``, ``"square"`` or ``"alive"`` (the share of values that are not zero).
        normalise: ``"none"`` compares raw scores over all layers; ``"mean"`` divides by the mean of the group.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"readings"})

    of: Loudness = "absolute"
    normalise: Normalise = "mean"

    def check(self) -> None:
        """Complain about a hyper-parameter that is not one of the choices."""
        require_choice(self.of, HEARD, "of")
        require_choice(self.normalise, NORMALISE, "normalise")

    def scores(self, view: View) -> Scores:
        """How much of a unit arrives at its readers."""
        return activation(view.graph, view.weights, self.evidence(view), of=self.of, normalise=self.normalise)
