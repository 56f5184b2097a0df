"""RigL: rigged lottery. Drop the smallest weights, grow where the gradient is largest.

Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners", 2020.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from nervure.methods.dynamic.dynamic_sparse import Exchanging, GrowthRule


@final
@dataclass(frozen=True, slots=True)
class RigL(Exchanging):
    """Exchange the smallest weights for those of the largest gradient, fewer and fewer along half a cosine.

    ``train(model, data, hooks=[RigL(density=0.1)])`` begins with weights by lot in densities by Erdos-Renyi kernels and
    keeps their number to the end. ``every=100`` are the paper's events; the default spreads 30 over the training
    whatever its length.

    Attributes:
        density: the fraction of prunable weights that is there, in (0, 1]; exactly ``round(density * weights)``.
    """

    used_to: ClassVar[int] = 30

    growth: GrowthRule = "gradient"
