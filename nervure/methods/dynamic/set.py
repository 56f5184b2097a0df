"""SET: sparse evolutionary training. Drop the weights nearest to zero, grow as many at random, epoch after epoch.

Mocanu, Mocanu, Stone, Nguyen, Gibescu and Liotta, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", 2018.
"""

from dataclasses import dataclass
from typing import final

from nervure.core.schema import Fraction
from nervure.methods.dynamic.dynamic_sparse import DropRule, Exchanging, GrowthRule
from nervure.training.dynamic.counts import Shape


@final
@dataclass(frozen=True, slots=True)
class SET(Exchanging):
    """Exchange the weights nearest to zero, of either sign, for others by lot.

    ``train(model, data, hooks=[SET(density=0.1)])`` begins with weights by lot in densities by Erdos-Renyi kernels and
    keeps their number to the end. The hyper-parameters are those of :class:`RigL`; the defaults are the paper's: an
    event after each epoch but the last, 30 % at each, half of what is meant for the positive and half for the negative
    weights in proportion to their numbers.
    """

    end: Fraction = 1.0
    drop: DropRule = "signs"
    growth: GrowthRule = "random"
    schedule: Shape = "constant"
