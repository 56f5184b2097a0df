"""Activation: units that are silent leave (Hu et al., "Network Trimming", 2016, with ``of="alive"``).

Differs from the paper: one ranking over all layers, and mean absolute values by default.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.methods.base import View
from nervure.methods.channels.ranking import Ranking
from nervure.scores import Loudness, Normalise, Scores, activation


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

    def scores(self, view: View) -> Scores:
        """How much of a unit arrives at its readers."""
        return activation(view.graph, view.weights, self.evidence(view), of=self.of, normalise=self.normalise)
