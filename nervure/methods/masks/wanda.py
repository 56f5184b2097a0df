"""Wanda: large weights with loud inputs stay, output by output; one pass over few samples, no gradient.

Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2024, equation 1.

Differs from the paper: all weights that multiply are pruned, those of convolutions, recurrent layers and experts as
well, and n:m is one of several granularities.
"""

from dataclasses import dataclass
from typing import final

from nervure.budget.weight_masks import Distribution, within_rows
from nervure.core.schema import Density, Size
from nervure.errors import DataError
from nervure.methods.base import View
from nervure.methods.masks.activation_norm import input_norms
from nervure.methods.masks.base_masks import Guard, NetworkScored, PrunableWeights, Scored
from nervure.methods.masks.gradients import twin
from nervure.scores.saliency import wanda


@final
@dataclass(frozen=True, slots=True)
class Wanda(NetworkScored):
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

    def ask_scores(self, view: View, field: PrunableWeights) -> Scored:
        """The size of each weight times how loud its input is."""
        if view.data is None:
            raise DataError(f"{self!r} listens to what enters the layers: give data=, batches of inputs.")
        norms = input_norms(twin(view), field.sheets, view.data, self.samples, view.seed, view.task)
        scores = {
            name: wanda(size, norms[name].to(size)) if name in norms else size for name, size in field.sizes.items()
        }
        by_row = self.rows and self.granularity == "element"
        return {n: within_rows(s) for n, s in scores.items()} if by_row else scores
