"""GMP: gradual magnitude pruning. Train, and let the smallest weights go little by little.

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from nervure.budget.weight_masks import Distribution
from nervure.core.schema import Density
from nervure.errors import ArgumentError
from nervure.methods.base import View
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse, Masked
from nervure.methods.masks.base_masks import PrunableWeights, Scored
from nervure.training.dynamic.counts import Counts, Ramp
from nervure.training.dynamic.protocol import UpdateContext
from nervure.training.dynamic.sites import Site


@final
@dataclass(frozen=True, slots=True)
class GMP(DynamicSparse):
    """Let the smallest weights go along a cubic, from all of them to ``density``; what is gone stays away.

    ``train(model, data, hooks=[GMP(density=0.1)])``. ``distribution="uniform"`` is the paper's.

    Attributes:
        start: density to begin with.
        schedule: how the density falls from ``start`` to ``density``: ``"cubic"``, ``"linear"`` or ``"cosine"``.
    """

    used_to: ClassVar[int] = 30
    grows: ClassVar[bool] = False

    distribution: Distribution = "global"
    start: Density = 1.0
    schedule: Literal["cubic", "linear", "cosine"] = "cubic"

    def check(self) -> None:
        """Complain about a hyper-parameter that is out of range."""
        DynamicSparse.check(self)
        if self.start < self.density:
            raise ArgumentError(
                f"start={self.start:g} is below density={self.density:g}: weights only go. Give start={self.density:g} "
                "or more."
            )

    @property
    def first(self) -> float:
        """The density to begin with."""
        return self.start

    @property
    def begins_by_lot(self) -> bool:
        """The first masks leave out the smallest weights."""
        return False

    def scores(self, view: View, field: PrunableWeights) -> Scored:
        """Magnitudes: by which masks are chosen to begin with."""
        return field.sizes

    def kept(self, view: View, field: PrunableWeights) -> Masked:
        """The masks to begin with."""
        if self.start == 1:
            return field.whole()
        return DynamicSparse.kept(self, view, field)

    def staying(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """What the schedule says, never more than there is."""
        begun = sum(moment.start.values())
        way = (moment.number + 1) / moment.events
        return self.shared(moment, sites, round(Ramp(self.schedule, begun, round(self.density * moment.places))(way)))

    def after(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """Nothing grows."""
        return 0
