"""N2NSkip: part of the weights that pruning at initialisation leaves become sparse skip connections between neurons.

Subramaniam and Sharma, "N2NSkip: Learning Highly Sparse Networks using Neuron-to-Neuron Skip Connections", 2020.

    B = density * N weights in all, of which share * B connect layers that are not neighbours
    a' = g(z' + g(S a))    a skip S from the activation a to a later pre-activation z', as equation 2 of the paper

Differs from the paper: both halves are counted exactly, no output is ever disconnected, places are found in any traced
network, fewer of the weights are skips, and each skip has a batch norm; ``paper=True`` takes the last two back. Skips
by the identity (``skips="identity"``), which cost no weight, are the control.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias, final

from msgspec import Meta

from nervure.budget.weights import left_dense
from nervure.core.check import Checked, require_choice
from nervure.core.schema import Density, Part, Positive, Seed
from nervure.errors import ArgumentError, BudgetError
from nervure.graph.models import evaluating
from nervure.graph.skip_sites import SkipSite, places
from nervure.graph.trace import draw
from nervure.methods.base import Folder, Inquiry, Method, View, inquiries_of
from nervure.methods.masks.base_masks import PrunableWeights, Sparse
from nervure.methods.masks.erk import ERK
from nervure.methods.masks.grasp import GraSP
from nervure.methods.masks.magnitude_masks import MagnitudeMasks
from nervure.methods.masks.snip import SNIP
from nervure.methods.masks.synflow import SynFlow
from nervure.methods.n2nskip.skips import Starts, draws, identity_edits, masks_of, shares, starting_edits
from nervure.plan import Link, Mask, Plan

Jump: TypeAlias = Annotated[int, Meta(ge=2, lt=1 << 62, description="as neighbours are connected as it is")]
SHARE, PAPER_SHARE = 0.25, 0.5
FIRST: Mapping[str, Sparse] = {
    "snip": SNIP(),
    "random": ERK(distribution="uniform"),
    "erk": ERK(),
    "grasp": GraSP(),
    "synflow": SynFlow(),
    "magnitude": MagnitudeMasks(),
}


@final
@dataclass(frozen=True, slots=True)
class N2NSkip(Checked):
    """Mask weights to part of a budget, and spend the rest on random sparse connections that skip layers.

    Skips are placed by what the network computes: between all layers of a chain of linear ones that are not
    neighbours, over ``span`` convolutions in a row, and one across each residual block, from its input to the sum
    behind it. None crosses from maps to vectors. Their masks are in ``Pruned.masks`` beside the others.

    Attributes:
        density: the fraction of prunable weights that the network has afterwards, skips included, in (0, 1];
            exactly ``round(density * weights)``. 1 leaves the network as it is.
        share: the part of these that are skips, in [0, 1); 0 is the twin without skips. Where skips cannot take so
            many, or whole kernels do not add up, the layers keep the rest. None: a quarter; as published a half.
        first: what decides which weights of the layers stay: ``"snip"``, ``"random"`` (the same density everywhere),
            ``"erk"``, ``"grasp"``, ``"synflow"``, ``"magnitude"``, or a method that masks weights to a ``density``,
            such as ``SNIP(steps=10)``; its own density is not looked at.
        span: how many convolutions a skip jumps.
        reach: how many linear layers it jumps at most; None: any number.
        granularity: what a skip over maps is made of: whole ``"kernel"``s, or each ``"element"`` by lot.
        start: where skips start: ``"sparse_fan"``: at the variance of all connections that meet at the target together;
            ``"dense_fan"``: at that of a dense layer, as in the paper's code; ``"zero"``: behind a gate at zero.
        scale: skips start this many times as large.
        norm: whether each skip has a batch norm of its own before its non-linearity, without trained numbers. The
            paper's formula has none, its code has one. None: as published not, otherwise it has.
        rescale: whether what stays in the layers grows to make up for the inputs that left, so that signals keep their
            size; None: where the first step draws by lot (a criterion scored the weights as they were).
        reinit: draw the weights of the layers anew, by changing their places, once the masks are chosen.
        seed: added to the seed of the view, so that either one draws other skips.
        skips: ``"sparse"``: random connections, trained; ``"identity"``: at the same places what enters is added as it
            is, as many channels as fit, at no weight (the layers keep them all): ``share``, ``start``, ``scale`` and
            ``norm`` say nothing then.
        paper: as published where that is not the best that is known: half of the weights are skips, without norms of
            their own. ``start="dense_fan"`` is the start of the paper's code.
    """

    density: Density = 0.1
    share: Part | None = None
    first: str | Method = "snip"
    span: Jump = 3
    reach: Jump | None = None
    granularity: Literal["kernel", "element"] = "kernel"
    start: Literal["sparse_fan", "dense_fan", "zero"] = "sparse_fan"
    scale: Positive = 1.0
    norm: bool | None = None
    rescale: bool | None = None
    reinit: bool = False
    seed: Seed = 0
    skips: Literal["sparse", "identity"] = "sparse"
    paper: bool = False

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        _first(self.first, 1.0)
        if self.skips == "identity" and (self.share or self.paper):
            asked = "paper=True" if self.paper else f"share={self.share:g}"
            raise ArgumentError(f'skips="identity" cost no weight, and {asked} spends some on them: leave one out.')

    @property
    def wants(self) -> frozenset[str]:
        """What the first step wants."""
        return _first(self.first, self.density).wants

    @property
    def asks(self) -> tuple[Inquiry[Any], ...]:
        """Where skips fit; and what the first step asks, unless that depends on how much the skips leave to it."""
        if self.density == 1:
            return ()
        whole, half = (inquiries_of(_first(self.first, density)) for density in (self.density, self.density / 2))
        sites = (self._sites,) if self._has_skips else ()
        return (*sites, *(inquiry for inquiry in whole if inquiry in half))

    def plan(self, view: View) -> Plan:
        """Mask the layers and lay the skips.

        Raises:
            DataError: the first step needs data and there are none.
            BudgetError: there is nothing to prune, no place for a skip, or the density is too low to keep the outputs
                connected.
        """
        first = _first(self.first, self.density)
        asked = {"budget": "weights", "density": self.density, "share": self._share, "first": repr(first)}
        if self.density == 1:
            return Plan((), view.graph.fingerprint, asked, {"density": 1.0})
        field = PrunableWeights.of(view, getattr(first, "dense", ()))
        whole = sum(weight.numel() for weight in field.weights.values())
        budget = round(self.density * whole)
        found = self._places(view) if self._has_skips else ()
        counts = shares(found, round(self._share * budget), self.granularity)
        skips = draws(found, counts, self.granularity, view.seed + self.seed)
        left = budget - sum(int(keep.sum()) for keep in skips.values())
        masks = masks_of(field, self._layers(view, first, left, whole))
        starts = Starts(
            self.start, self.scale, self._norm, self._is_rescaled(first), self.reinit, view.seed + self.seed
        )
        edits: tuple[Mask | Link, ...] = starting_edits(field, masks, skips, starts)
        if self.skips == "identity":
            edits += identity_edits(field, found)
        stay = [sum(int(keep.sum()) for keep in part.values()) for part in (masks, skips)]
        # The first step has told what stays dense because it must.
        left = sum(product.size for product in left_dense(view.graph, view.ignored))
        reached = {"density": (sum(stay) + left) / (whole + left), "weights": sum(stay), "skips": stay[1]}
        return Plan(edits, view.graph.fingerprint, asked, reached)

    @property
    def _share(self) -> float:
        usual = PAPER_SHARE if self.paper else SHARE
        return 0.0 if self.skips == "identity" else usual if self.share is None else self.share

    @property
    def _norm(self) -> bool:
        return not self.paper if self.norm is None else self.norm

    @property
    def _has_skips(self) -> bool:
        return self._share > 0 or self.skips == "identity"

    @property
    def _sites(self) -> "SkipSiteInquiry":
        return SkipSiteInquiry(self.span, self.reach)

    def _places(self, view: View) -> tuple[SkipSite, ...]:
        found = tuple(site for site in view.ask(self._sites) if f"{site.layer}.weight" not in view.ignored)
        if not found:
            raise BudgetError(
                f"there is no place for a skip: it takes a residual block, {self.span} convolutions "
                "in a row (see span=) or two linear layers in a row, that may change. share=0 prunes without skips."
            )
        return found

    def _layers(self, view: View, first: Method, left: int, whole: int) -> Plan:
        """The first step, told to leave so many weights of the layers."""
        if left < 1:
            raise BudgetError(f"density={self.density:g} and share={self._share:g} leave the layers no weight at all.")
        try:
            return replace(first, density=left / whole).plan(view)  # type: ignore[type-var]
        except BudgetError as error:
            if error.least is None:
                raise
            least = next(n for n in range(error.least, whole + 1) if n - round(self._share * n) >= error.least)
            raise BudgetError(
                f"density={self.density:g} with share={self._share:g} leaves the layers {left} of {whole} weights, but "
                f"it takes {error.least} to keep every output connected, most of them in layer {error.layer!r}. "
                f"Give density={math.ceil(least / whole * 1e6) / 1e6:g} or more, or a smaller share.",
                layer=error.layer,
                least=least,
            ) from error

    def _is_rescaled(self, first: Method) -> bool:
        return isinstance(first, ERK) if self.rescale is None else self.rescale


@final
@dataclass(frozen=True, slots=True)
class SkipSiteInquiry:
    """Where skips fit into what a network computes; the fields are those of :class:`N2NSkip`."""

    span: int
    reach: int | None

    def of(self, view: View, folder: Folder = None) -> tuple[SkipSite, ...]:
        """Read them off a run of the model on its example, which is soon done again; raises ArgumentError."""
        if view.model is None or view.example is None:
            raise ArgumentError("N2NSkip reads its places off a run of the model: give the view its model and example.")
        with evaluating(view.model):
            drawing = draw(view.model, view.example, **view.graph.settings)
        return tuple(places(view.model, drawing, span=self.span, reach=self.reach))


def _first(first: Any, density: float) -> Method:
    """The first step, with that density."""
    if isinstance(first, str):
        return replace(FIRST[require_choice(first, FIRST, "first")], density=density)
    named = is_dataclass(first) and not isinstance(first, type) and isinstance(first, Method)
    if not named or "density" not in {f.name for f in fields(first)}:
        raise ArgumentError(
            f"first={first!r} must be one of {', '.join(map(repr, FIRST))}, or a method with a density, as SNIP()."
        )
    if ":" in getattr(first, "granularity", ""):
        raise ArgumentError(f"first={first!r} keeps n of every m weights, so that none of them can become skips.")
    found: Method = replace(first, density=density)
    return found
