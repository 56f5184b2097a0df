"""Wanda: large weights with loud inputs stay, output by output; one pass over few samples, no gradient.

Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2024, equation 1.

Differs from the paper: all weights that multiply are pruned, those of convolutions, recurrent layers and experts as
well, and n:m is one of several granularities.
"""

from dataclasses import dataclass
from typing import Any, final

from nervure.budget.weight_masks import Distribution
from nervure.core.schema import Density, Size
from nervure.methods.base import Inquiry, View
from nervure.methods.masks.activation_norm import InputNorms
from nervure.methods.masks.base_masks import Guard, PrunableWeights, Scored, Sparse


@final
@dataclass(frozen=True, slots=True)
class Wanda(Sparse):
    """Mask the weights of each output with the smallest ``|w| * ||x||``.

    The other hyper-parameters are those of every method that masks weights: ``density``, ``distribution``,
    ``granularity``, ``block``, ``guard``, ``dense``. Needs data; labels are not looked at. Where nothing enters (an
    expert that no sample is sent to), inputs count as equally loud.

    Attributes:
        samples: how many samples at most are listened to.
        rows: whether weights compete with those of the same output only, as in the paper, or within the layer (the
            network, with ``distribution="global"``).
    """

    density: Density = 0.5
    distribution: Distribution = "uniform"
    guard: Guard = "outputs"
    samples: Size = 128
    rows: bool = True

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """How loud the inputs are."""
        return (InputNorms(self.dense, self.samples),)

    @property
    def heard(self) -> int:
        """How many samples at most are listened to."""
        return self.samples

    @property
    def by_row(self) -> bool:
        """Whether weights compete with those of the same output only."""
        return self.rows and self.granularity == "element"

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """The size of each weight times how loud its input is."""
        return field.loud_sizes(InputNorms(self.dense, self.samples))
