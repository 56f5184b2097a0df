"""ERK: weights by lot, in densities by Erdos-Renyi kernels; the control of every criterion that picks weights.

Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners", 2020, section 3 (after Mocanu
et al., 2018). With good densities a lot is hard to beat (Liu et al., "The Unreasonable Effectiveness of Random
Pruning", 2022).
"""

from dataclasses import dataclass
from typing import final

import torch

from nervure.budget.weight_masks import Distribution
from nervure.core.schema import Seed
from nervure.methods.base import View
from nervure.methods.masks.base_masks import Guard, PrunableWeights, Scored, Sparse


@final
@dataclass(frozen=True, slots=True)
class ERK(Sparse):
    """Mask weights by lot.

    The hyper-parameters are those of every method that masks weights: ``density``, ``distribution`` (``"uniform"``
    gives every layer the same density), ``granularity``, ``block``, ``guard``, ``dense``.

    Attributes:
        seed: added to the seed of the view, so that either one draws another lot.
    """

    distribution: Distribution = "erk"
    guard: Guard = "outputs"
    seed: Seed = 0

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """Lots."""
        return field.lots(torch.Generator().manual_seed(self.seed + view.seed))
