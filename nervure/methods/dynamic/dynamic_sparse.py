"""What methods share that rewire while a network trains: a start, a timetable, and events that drop and grow."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from nervure.analysis.live_paths import LivePaths
from nervure.budget.weight_masks import Distribution, distribute, erk
from nervure.core.annotations import Among
from nervure.core.check import require_choice
from nervure.core.schema import Count, Fraction, Part, Seed
from nervure.errors import ArgumentError, BudgetError
from nervure.graph.tape import named_tensors
from nervure.methods.base import View, model_of
from nervure.methods.masks.base_masks import Guard, PrunableWeights, Sparse
from nervure.plan import Keep, Plan
from nervure.surgery.link import Wire
from nervure.tracing import trace
from nervure.training.dynamic.counts import Counts, Ramp, Shape, drop_weakest, grow_best, protected_connections
from nervure.training.dynamic.drop_rules import DROPS, drop_wants
from nervure.training.dynamic.growth import GROWTH, Ask, Reading, wants_of
from nervure.training.dynamic.protocol import InitialTopology, RollbackPolicy, TopologyUpdate, UpdateContext
from nervure.training.dynamic.recycling import grow_on_paths, live_connections, open_sites, rank_dead_last
from nervure.training.dynamic.sites import Noise, Site, noise
from nervure.training.masks import Masks, require_masks

DropRule: TypeAlias = Annotated[str, Among(DROPS)]
GrowthRule: TypeAlias = Annotated[str, Among(GROWTH)]
Initial: TypeAlias = Literal["zero", "gauss", "first"]
Masked: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class DynamicSparse(Sparse):
    """Begin with masks, and change them at events of the training.

    Attributes:
        distribution: as of every method that masks weights. With ``"global"`` all layers compete at every event, with
            the others each layer goes on with its share.
        granularity: ``"element"`` or ``"kernel"``.
        guard: ``"outputs"``: every output of every layer goes on hearing something; ``"paths"``: every output of the
            network does, and connections on no path from an input to an output go first, and grow again where they lie
            on one, the first lots too (needs scipy); ``"none"``.
        every: steps from one event to the next; 0: as ``events`` says.
        events: how many events, spread evenly; 0, where ``every`` is 0 too: as many as the method is used to, fewer
            where the training is short.
        begin: share of the training before the first event may be, in [0, 1).
        end: share of the training after which there are no events, in (0, 1].
        drop: which connections go first: a name in ``nervure.training.dynamic.drop_rules.DROPS``.
        growth: which connections come first: a name in ``nervure.training.dynamic.growth.GROWTH``.
        grace: events that a connection survives for certain after it grew.
        initial: with what weight a connection begins: ``"zero"``, which leaves the function as it was; ``"gauss"``:
            drawn with mean and deviation of the weights of its layer, times ``scale``; ``"first"``: what it had before
            the training, times ``scale``.
        scale: of what ``initial`` says.
        rescale: where the start is by lot, multiply the weights of each layer by ``sqrt(places / weights there)``, so
            that its outputs vary as much as those of the whole would (after Evci et al., "Gradient Flow in Sparse
            Neural Networks and How Lottery Tickets Win", 2022). For networks that begin with fresh weights.
        seed: added to the seed of the training, so that either one draws another lot.
    """

    distribution: Distribution = "erk"
    guard: Guard = "outputs"
    every: Count = 0
    events: Count = 0
    begin: Part = 0.0
    end: Fraction = 0.75
    drop: DropRule = "magnitude"
    growth: GrowthRule = "random"
    grace: Count = 0
    initial: Initial = "zero"
    scale: float = 0.1
    rescale: bool = True
    seed: Seed = 0

    used_to: ClassVar[int] = 0
    """Events that are spread over a training unless something else is asked; 0: one after each epoch."""
    reading: ClassVar[Reading] = Reading()
    grows: ClassVar[bool] = True
    """Whether what goes at an event is made up for."""

    def check(self) -> None:
        """Complain about a hyper-parameter that is out of range."""
        require_choice(self.granularity, ("element", "kernel"), "granularity")
        require_choice(self.distribution, ("global", "uniform", "erk"), "distribution")
        if self.every and self.events:
            raise ArgumentError(f"every={self.every} and events={self.events} both say when; give one of them.")
        if self.begin >= self.end:
            raise ArgumentError(f"begin={self.begin!r} and end={self.end!r}: events begin before they end.")

    @property
    def hears(self) -> frozenset[str]:
        """What is gathered at events."""
        firsts = {"firsts"} if self.initial == "first" else set[str]()
        paths = {"paths"} if self.guard == "paths" else set[str]()
        return drop_wants(self.drop) | wants_of(self.growth, self._read()) | firsts | paths

    @property
    def judge(self) -> RollbackPolicy | None:
        """Events are not judged."""
        return None

    @property
    def first(self) -> float:
        """The density to begin with."""
        return self.density

    def scores(self, view: View, field: PrunableWeights) -> Mapping[str, Tensor]:
        """Lots: by which masks are chosen to begin with."""
        return field.lots(torch.Generator().manual_seed(self.seed + view.seed))

    def kept(self, view: View, field: PrunableWeights) -> Masked:
        """The masks to begin with."""
        masks = self.best(field, self.scores(view, field), self.first)
        recycles = self.guard == "paths" and self.begins_by_lot and view.example is not None
        return self._recycle_lots(view, field, masks) if recycles else masks

    @property
    def begins_by_lot(self) -> bool:
        """Whether the first masks follow from chance alone, so that nothing learnt is lost with a fresh network."""
        return self.first < 1

    def plan(self, view: View) -> Plan:
        """The first masks; raises as every method that masks weights."""
        plan = Sparse.plan(self, view)
        if not (self.rescale and self.begins_by_lot):
            return plan
        return replace(plan, edits=tuple(replace(mask, gain=gain_of(mask.keep)) for mask in plan.masks))

    def ground(self, model: nn.Module, example: Any, masks: Masks, seed: int) -> InitialTopology:
        """Where connections can be, and which are there first.

        Raises:
            ArgumentError: masks that are given do not fit the model, or are of another density than this method's.
            BudgetError: there is nothing to prune, or too little stays to keep every output connected.
        """
        require_masks(masks, dict(model.named_parameters(remove_duplicate=False)))
        graph = trace(model, example)
        weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
        view = View(graph, weights, None, seed, model, example)
        field = PrunableWeights.of(view, self.dense)
        whole = {s.tensor: torch.ones(weights[s.tensor].shape, dtype=torch.bool) for s in field.sheets}
        wires = {f"{name}.map.weight" for name, module in model.named_modules() if isinstance(module, Wire)}
        places = sum(mask.numel() for name, mask in whole.items() if name not in wires)
        if any(name in masks for name in whole):
            start = {name: masks[name].cpu() if name in masks else full for name, full in whole.items()}
            self._require_density(start, places)
            begin: Masked = {}
        else:
            plan = self.plan(view)
            start = whole | {mask.tensor: mask.keep.tensor() for mask in plan.masks}
            begin = {mask.tensor: weights[mask.tensor] * mask.gain for mask in plan.masks}
        self._require_room([weight for name, weight in field.weights.items() if name not in wires], places)
        return InitialTopology(field.sheets, graph, start, places, begin)

    def timetable(self, steps: int, per_epoch: int) -> tuple[int, ...]:
        """The steps before which there is an event.

        Raises:
            ArgumentError: the training is too short for them.
        """
        first, last = self.begin * steps, self.end * steps
        events = self.events or (0 if self.every else min(self.used_to, int(min(last, steps - 1) - first)))
        if events:
            each = (first + (last - first) * (i + 1) / events for i in range(events))
            numbers = [min(round(number), steps - 1) for number in each]
        else:
            every = self.every or per_epoch
            numbers = [n for n in range(every, steps, every) if first < n <= last]
        if not numbers or numbers[0] < 1 or len(set(numbers)) < len(numbers):
            wanted = f"events={self.events}" if self.events else f"every={self.every or f'epoch ({per_epoch} steps)'}"
            raise ArgumentError(
                f"{wanted} does not fit a training of {steps} steps with begin={self.begin:g} and end={self.end:g}: "
                "there would be no event, or two at once. Train longer, or ask for other events."
            )
        return tuple(numbers)

    def rewire(self, moment: UpdateContext) -> TopologyUpdate:
        """Drop the worst connections, then grow the best of the free places; counts are exact."""
        sites = [site.in_kernels() if self.granularity == "kernel" else site for site in moment.sites]
        chance = {s.name: noise(self.seed + moment.seed, moment.step, s.name) for s in sites}
        kept, total = self._drop(moment, sites, chance), self.after(moment, sites)
        masks = self._grow([site.under(kept[site.name]) for site in sites], total, chance, moment.paths)
        if moment.paths is not None and self.grows:
            # What growth has joined to nothing either goes too, and grows again where it lies on a path.
            live = live_connections(moment.paths, sites, masks)
            kept = {name: mask & live[name] for name, mask in kept.items()}
            left = [site.under(live[site.name]) for site in sites]
            masks = self._grow(left, total, chance, moment.paths, joins=True)
        spread = {s.name: s.weight.shape for s in moment.sites}
        kept, masks = ({n: m.expand(spread[n]) for n, m in of.items()} for of in (kept, masks))
        return TopologyUpdate(kept, masks, self._values(moment, masks, chance))

    @abstractmethod
    def staying(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """How many weights survive the dropping: by tensor, or in all."""

    @abstractmethod
    def after(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """How many weights there are after the growth: by tensor, or in all."""

    def without(self, part: float, sites: list[Site]) -> Counts | int:
        """What there is but for a part, in [0, 1], of all connections or of each layer's."""
        if self.distribution == "global":
            there = sum(site.count() for site in sites)
            return there - int(part * there)
        return {s.name: s.count() - s.price * int(part * int(s.mask.sum())) for s in sites}

    def shared(self, moment: UpdateContext, sites: list[Site], total: int) -> Counts | int:
        """So many weights, shared as ``distribution`` says; no layer loses what it has now unless there are fewer."""
        if self.distribution == "global":
            return total
        sizes = [site.mask.numel() * site.price for site in sites]
        relative = [1.0] * len(sites)
        if self.distribution == "erk":
            laid = {site.name: moment_site.weight for site, moment_site in zip(sites, moment.sites, strict=True)}
            relative = list(erk(laid, moment.kernels).values())
        now = [site.count() for site in sites]
        fewer = total < sum(now)
        # A layer that only shrinks, or only grows, stays so: rounding must not make it do the other.
        bounds = (now, self._floors(sites)) if fewer else (sizes, now)
        scaled = [share * size / max(bound, 1) for share, size, bound in zip(relative, sizes, bounds[0], strict=True)]
        shares = distribute(bounds[0], scaled, total, bounds[1])
        whole = [share // site.price * site.price for site, share in zip(sites, shares, strict=True)]
        for place, site in enumerate(sites):
            # Kernels that no layer could pay for alone.
            while total - sum(whole) >= site.price and whole[place] + site.price <= bounds[0][place]:
                whole[place] += site.price
        return {site.name: share for site, share in zip(sites, whole, strict=True)}

    def _drop(self, moment: UpdateContext, sites: list[Site], chance: Mapping[str, Noise]) -> Masked:
        """What stays: the best, and what is guarded."""
        scores = {s.name: DROPS[self.drop](s, chance[s.name]) for s in sites}
        spare = {s.name: protected_connections(s, grace=self.grace, lifelines=self._guards_outputs) for s in sites}
        if moment.paths is not None:
            scores, spare = rank_dead_last(moment.paths, sites, scores, spare)
        return drop_weakest(sites, scores, spare, self.staying(moment, sites))

    def _grow(
        self,
        sites: list[Site],
        total: Counts | int,
        chance: Mapping[str, Noise],
        paths: LivePaths | None,
        *,
        joins: bool = False,
    ) -> Masked:
        masks = {site.name: site.mask for site in sites}
        there = sum(site.count() for site in sites)
        wanted = (total if isinstance(total, int) else sum(total.values())) - there
        if wanted <= 0:
            return masks
        if paths is not None:
            sites = open_sites(paths, sites)
        free = sum(int((~site.mask).sum()) * site.price for site in sites)
        scores = {}
        for site in sites:
            mine = wanted * int((~site.mask).sum()) // max(free, 1)
            count = mine if isinstance(total, int) else (total[site.name] - site.count()) // site.price
            scores[site.name] = GROWTH[self.growth](site, Ask(max(count, 1), chance[site.name], self._read()))
        if paths is None:
            return grow_best(sites, masks, scores, total)
        return grow_on_paths(paths, sites, scores, total, joins=joins)

    def _recycle_lots(self, view: View, field: PrunableWeights, masks: Masked) -> Masked:
        """Masks by lot, of which those connections that lie on no path are drawn again from the places that do."""
        paths = LivePaths.of(model_of(view), view.example)
        whole = [Site(n, field.weights[n], mask, torch.zeros(mask.shape)) for n, mask in masks.items()]
        sites = [site.in_kernels() if self.granularity == "kernel" else site for site in whole]
        live = live_connections(paths, sites, {site.name: site.mask for site in sites})
        lots = {s.name: noise(self.seed + view.seed, -1, s.name)(s.mask.shape) for s in sites}
        left = open_sites(paths, [site.under(live[site.name]) for site in sites])
        found = grow_on_paths(paths, left, lots, {s.name: s.count() for s in sites}, joins=True)
        return {name: mask.expand(masks[name].shape) for name, mask in found.items()}

    def _floors(self, sites: list[Site]) -> list[int]:
        """The least each layer needs for every output to go on hearing."""
        rows = [site.price * int(site.mask.flatten(1).any(1).sum()) for site in sites]
        return rows if self._guards_outputs else [0] * len(sites)

    @property
    def _guards_outputs(self) -> bool:
        return self.guard not in ("paths", "none")

    def _read(self) -> Reading:
        return self.reading

    def _values(self, moment: UpdateContext, masks: Masked, chance: Mapping[str, Any]) -> Masked:
        if self.initial == "zero":
            return {}
        if self.initial == "first":
            return {name: self.scale * first for name, first in moment.firsts.items()}
        found = {}
        for site in moment.sites:
            there = site.weight[site.mask]
            mean, spread = (float(there.mean()), float(there.std(correction=0))) if len(there) else (0.0, 0.0)
            # Two uniform draws make a normal one (Box and Muller, 1958).
            first, second = chance[site.name](site.weight.shape), chance[site.name](site.weight.shape)
            normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
            found[site.name] = (self.scale * (mean + spread * normal)).float()
        return found

    def _require_density(self, start: Masked, places: int) -> None:
        there = sum(int(mask.sum()) for mask in start.values())
        if abs(there - self.first * places) > max(1.0, 0.01 * self.first * places):
            raise ArgumentError(
                f"the masks given hold {there} of {places} weights, a density of {there / places:.4g}, but "
                f"{type(self).__name__} begins with {self.first:g}. Give masks of that density, or none, or the "
                "method that density."
            )

    def _require_room(self, layers: list[Tensor], whole: int) -> None:
        """Every output keeps a connection, so there must be so many in the end."""
        whole_kernels = self.granularity == "kernel"
        rows = sum(len(w) * (w.shape[2] if whole_kernels else 1) for w in layers)
        if self._guards_outputs and round(self.density * whole) < rows:
            least = math.ceil(rows / whole * 1e6) / 1e6
            raise BudgetError(
                f"density={self.density:g} leaves {round(self.density * whole)} of {whole} weights, but it takes "
                f'{rows} to keep every output connected. Give density={least:g} or more, or guard="paths" or "none".'
            )


@dataclass(frozen=True, slots=True)
class Exchanging(DynamicSparse):
    """At every event a fraction of the connections is exchanged for others, exactly as many.

    Attributes:
        fraction: of the connections (of each layer, unless the distribution is global) exchanged at the first event.
        schedule: how the fraction goes on from there to 0 at the end: ``"cosine"``, ``"linear"``, ``"cubic"``, or
            ``"constant"``.
    """

    fraction: Fraction = 0.3
    schedule: Shape = "cosine"

    def staying(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """All but the fraction."""
        return self.without(Ramp(self.schedule, self.fraction)(moment.way), sites)

    def after(self, moment: UpdateContext, sites: list[Site]) -> Counts | int:
        """As many as before."""
        if self.distribution == "global":
            return sum(moment.start.values())
        return {site.name: site.count() for site in sites}


def gain_of(keep: Keep) -> float:
    """What makes up for the places that are not taken, so that the outputs of a layer keep their variance."""
    return math.sqrt(keep.size / max(keep.count, 1))
