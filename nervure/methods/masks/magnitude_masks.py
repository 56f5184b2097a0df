"""Magnitude of single weights: the small ones leave (Han, Pool, Tran and Dally, 2015).

"Learning both Weights and Connections for Efficient Neural Networks". Sensible after training; before it, weights are
as large as the initialisation made them, and a global ranking prunes the layers that began small.

Differs from the paper: in one go, to an exact density, and every output of the network stays connected.
"""

from dataclasses import dataclass
from typing import final

from nervure.methods.base import View
from nervure.methods.masks.base_masks import PrunableWeights, Scored, Sparse


@final
@dataclass(frozen=True, slots=True)
class MagnitudeMasks(Sparse):
    """Mask the weights of smallest magnitude, ``|w|``; kernels and blocks by the mean over theirs.

    The hyper-parameters are those of every method that masks weights: ``density``, ``distribution`` (``"uniform"`` and
    ``"erk"`` rank within each layer), ``granularity``, ``block``, ``guard``, ``dense``. For whole channels, see
    :class:`nervure.Magnitude`.
    """

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """Magnitudes."""
        return field.sizes
