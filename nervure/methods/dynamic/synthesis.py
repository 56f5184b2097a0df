"""Synthesis: a sparse network that grows to a capacity from its strong nodes, and is pruned on the way.

Finlinson and Moschoyiannis, "Synthesis and Pruning as a Dynamic Compression Strategy for Efficient Deep Neural
Networks", 2020. A reconstruction: only the abstract and the beginning of the introduction could be read, so what the
paper leaves open here is offered as options, and what is our own is said to be.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from msgspec import Meta

from nervure.core.schema import Count, Density, Fraction, Part
from nervure.errors import ArgumentError
from nervure.methods.dynamic.dynamic_sparse import DynamicSparse, GrowthRule
from nervure.training.dynamic.counts import Counts, Ramp, Shape
from nervure.training.dynamic.growth import Endpoints, Origins, Reading, Strength
from nervure.training.dynamic.protocol import RollbackPolicy, UpdateContext
from nervure.training.dynamic.sites import Site


@final
@dataclass(frozen=True, slots=True)
class Synthesis(DynamicSparse):
    """Grow from ``start`` to ``density`` from strong nodes, dropping weak connections on the way.

    ``train(model, data, hooks=[Synthesis(density=0.1)])`` begins with a random sparse sub-network. The defaults are the
    variant that did best on validation data, which is our own: nodes are strong by weight times activation, end points
    are likelier the stronger they are, and gradients choose among thirty times as many candidates. The most literal
    reading of the paper is ``Synthesis(strength="weight", endpoints="density", pool=1)``.

    Attributes:
        density: the capacity: the fraction of prunable weights that is there in the end, in (0, 1].
        granularity: ``"kernel"``: convolutions grow by pairs of channels; ``"element"``.
        start: density to begin with, in (0, density].
        ramp: how the density goes from one to the other: ``"linear"``, ``"cubic"`` (fast first) or ``"cosine"``.
        growth: ``"strategic"``, or a control: ``"random"``, ``"gradient"``, ``"links"``.
        origins: see :class:`nervure.training.dynamic.growth.Reading`, as ``share``, ``endpoints``, ``strength``,
            ``sample`` and ``pool``.
        share: of the inputs of a layer that count as strong, where origins are ``"hard"``; of its connections, where
            they are ``"edges"``.
        endpoints: how strength decides about end points.
        strength: by what nodes are strong.
        sample: draw; False: take the likeliest.
        pool: so many times as many candidates as are wanted, of which gradients choose; 1: the strategy alone.
        candidates: the share of all free places, in [0, 1), that are candidates at least: of few that are wanted, as in
            a very sparse network, ``pool`` times as many are few, too.
        prune: fraction of the connections of each layer that go at the first event; 0: none.
        schedule: how the fraction goes on: ``"constant"``, or to 0 at the end along a ``"cosine"``, ``"linear"`` or
            ``"cubic"``.
        gate: undo events after which accuracy and macro AUC on validation data both fell.
        tolerance: how far they may fall, in [0, 1].
        patience: end after so many events in a row without a better validation accuracy; 0: never.
    """

    used_to: ClassVar[int] = 10

    granularity: str = "kernel"
    end: Fraction = 0.8
    growth: GrowthRule = "strategic"
    grace: Count = 2
    start: Density = 0.02
    ramp: Literal["linear", "cubic", "cosine"] = "cubic"
    origins: Origins = "soft"
    share: Fraction = 0.1
    endpoints: Endpoints = "strong"
    strength: Strength = "activation"
    sample: bool = True
    pool: Annotated[float, Meta(ge=1)] = 30.0
    prune: Part = 0.1
    schedule: Shape = "cosine"
    gate: bool = False
    tolerance: Part = 0.0
    patience: Count = 0
    candidates: Part = 0.0

    def check(self) -> None:
        """Complain about a hyper-parameter that is out of range."""
        DynamicSparse.check(self)
        if self.density < self.start:
            raise ArgumentError(
                f"the capacity, density={self.density:g}, is below start={self.start:g}: a network that grows "
                f"ends with more than it began with. Give density={self.start:g} or more, or a smaller start."
            )

    @property
    def first(self) -> float:
        """The density to begin with."""
        return self.start

    @property
    def judge(self) -> RollbackPolicy | None:
        """How events are judged."""
        return RollbackPolicy(self.gate, self.tolerance, self.patience) if self.gate or self.patience else None

    def staying(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """All but the fraction that is pruned."""
        return self.without(Ramp(self.schedule, self.prune)(moment.way), sites)

    def after(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """What the ramp says, shared by the layers; the capacity at the last event."""
        way = (moment.number + 1) / moment.events
        total = round(Ramp(self.ramp, sum(moment.start.values()), round(self.density * moment.places))(way))
        return self.shared(moment, sites, max(total, sum(site.count() for site in sites)))

    def _read(self) -> Reading:
        return Reading(self.origins, self.share, self.endpoints, self.strength, self.sample, self.pool, self.candidates)
