"""Rules of growth: which connections that are not there should be; small functions by name in ``GROWTH``.

A rule gives every place a score; the places that are free and score highest are taken, exactly as many as were asked.
A rule that leaves things to chance adds noise to the logarithm of its odds, see
:func:`nervure.training.dynamic.sites.draw_scores`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.errors import ScoreError
from nervure.training.dynamic.sites import Noise, Site, draw_scores

Origins: TypeAlias = Literal["soft", "hard", "all", "edges"]
Endpoints: TypeAlias = Literal["density", "rank", "tail", "strong", "uniform"]
Strength: TypeAlias = Literal["weight", "activation"]

LAST = -1e6
"""Added to the logarithm of what a rule rules out: taken only where nothing else is left, so that counts stay exact."""
CLOSED = 4 * LAST
"""Added to the score of a place where a weight would lie on no path: taken only where no other place is left."""


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """How "from strong nodes, to end points chosen by the Gaussian over the weights" is read.

    Attributes:
        origins: ``"soft"``: drawn in proportion to strength; ``"hard"``: only the strongest; ``"all"``: all alike;
            ``"edges"``: the strongest connections name both ends, in proportion to their strength: an input where one
            of them begins is joined to an output where one ends, and ``endpoints`` says nothing.
        share: of the inputs of a layer that ``"hard"`` starts from, or of its connections that ``"edges"`` takes, in
            (0, 1].
        endpoints: by the z-score of an output's strength among the outputs of its layer. ``"density"``: under the
            Gaussian, ``exp(-z^2 / 2)``; ``"rank"``: a half-Gaussian over the rank, the strongest most likely;
            ``"tail"``: only above the mean; ``"strong"``: ``exp(z)``; ``"uniform"``: all alike.
        strength: of a connection: ``"weight"``: its absolute weight; ``"activation"``: times what it hears.
        sample: draw; False: take the likeliest.
        pool: so many times as many candidates are drawn as are wanted, and gradients choose among them; 1: no choice.
        candidates: the share of all free places that are candidates at least, in [0, 1), where gradients choose.
    """

    origins: Origins = "soft"
    share: float = 0.1
    endpoints: Endpoints = "density"
    strength: Strength = "weight"
    sample: bool = True
    pool: float = 1.0
    candidates: float = 0.0

    @property
    def leads(self) -> bool:
        """Whether gradients choose among candidates."""
        return self.pool > 1 or self.candidates > 0


@final
@dataclass(frozen=True, slots=True)
class Ask:
    """What a rule of growth is asked: how many connections, from what chance, in which reading."""

    count: int
    noise: Noise
    reading: Reading = Reading()


Growth: TypeAlias = Callable[[Site, Ask], Tensor]


def random_growth(site: Site, ask: Ask) -> Tensor:
    """All free places alike (Mocanu et al., 2018)."""
    return draw_scores(torch.zeros(site.weight.shape, dtype=torch.float64), ask.noise)


def gradient_growth(site: Site, ask: Ask) -> Tensor:
    """Where the loss falls fastest: the absolute gradient (Evci et al., 2020)."""
    return _gradient(site)


def link_growth(site: Site, ask: Ask) -> Tensor:
    """Where the topology alone predicts a link: paths of three links, the degrees on the way divided out.

    ``sum over u, v of a[j,u] a[v,u] a[v,i] / sqrt(k_u k_v)`` (Kovacs et al., "Network-based prediction of protein
    interactions", 2019, the score L3). Equal scores, as of all places that no such path reaches, are broken by lot.
    """
    there = site.mask.any(2).double()
    heard, hears = there.sum(0).clamp_min(1).rsqrt(), there.sum(1).clamp_min(1).rsqrt()
    paths = (there * heard) @ (hears[:, None] * there).T @ there
    # Less than any difference between two scores, more than nothing.
    ties = 1e-9 * ask.noise(site.weight.shape)
    return paths[:, :, None] + ties


def strategic_growth(site: Site, ask: Ask) -> Tensor:
    """From strong inputs to outputs chosen by their strength; the readings are those of :class:`Reading`.

    ``P(i -> j) = v_i / sum v * p_j / (sum of p over the outputs that i does not reach yet)``: an origin is chosen, then
    an end point among those it is not joined to. A reconstruction of the growth in Finlinson and Moschoyiannis,
    "Synthesis and Pruning as a Dynamic Compression Strategy for Efficient Deep Neural Networks", 2020.
    """
    reading, free = ask.reading, ~site.mask.all(2)
    strength = site.strength(heard=reading.strength == "activation")
    if reading.origins == "edges":
        odds = _named_by_edges(site, strength, reading.share)
    else:
        ends = _ends(strength.sum(1), reading)[:, None]
        # The odds of an end point among those that this origin does not reach.
        reachable = ends.expand(free.shape).masked_fill(~free, -math.inf).logsumexp(0)
        # An input that reaches everything has no end point to choose; its places are taken anyway.
        odds = _starts(_origin_strength(site, strength), reading) + ends - reachable.nan_to_num(neginf=0.0)
    logarithms = odds[:, :, None].expand(site.weight.shape).contiguous()
    scores = draw_scores(logarithms, ask.noise) if reading.sample else logarithms
    if not reading.leads:
        return scores
    closed = site.mask if site.open is None else site.mask | ~site.open
    share = math.ceil(reading.candidates * int((~closed).sum()))
    return _chosen_by_gradient(site, scores, closed, max(share, math.ceil(reading.pool * ask.count)))


GROWTH: dict[str, Growth] = {
    "random": random_growth,
    "gradient": gradient_growth,
    "links": link_growth,
    "strategic": strategic_growth,
}
"""Rules of growth by name. A rule of your own joins by ``GROWTH["mine"] = function``."""


def wants_of(growth: str, reading: Reading) -> frozenset[str]:
    """What must be gathered for a rule: ``"gradients"``, ``"activations"``; for rules of one's own, both."""
    if growth not in {"random", "links", "strategic", "gradient"}:
        return frozenset({"gradients", "activations"})
    gradients = growth == "gradient" or (growth == "strategic" and reading.leads)
    heard = growth == "strategic" and reading.strength == "activation"
    return frozenset({"gradients"} if gradients else ()) | frozenset({"activations"} if heard else ())


def _gradient(site: Site) -> Tensor:
    if site.gradient is None:
        raise ScoreError(f"tensor {site.name!r} has no gradient to grow by: is it frozen, or unused in the forward?")
    return site.gradient.abs().double()


def _origin_strength(site: Site, strength: Tensor) -> Tensor:
    """What leaves each input, and what arrives at the unit behind it. Shape [inputs]."""
    outgoing = strength.sum(0)
    return outgoing if site.incoming is None else outgoing + site.incoming


def _starts(strength: Tensor, reading: Reading) -> Tensor:
    """Logarithm of the odds of each origin, up to a constant. Shape [inputs]."""
    if reading.origins == "all":
        return torch.zeros_like(strength)
    # An input of no strength at all is the last to be chosen, but can be.
    odds = strength.clamp_min(1e-12).log()
    if reading.origins == "hard":
        few = max(1, round(reading.share * len(odds)))
        others = torch.ones_like(odds, dtype=torch.bool)
        others[odds.argsort(descending=True, stable=True)[:few]] = False
        odds = torch.where(others, odds + LAST, 0.0)
    return odds


def _ends(strength: Tensor, reading: Reading) -> Tensor:
    """Logarithm of the odds of each end point, up to a constant. Shape [outputs]."""
    spread = strength.std(correction=0)
    z = (strength - strength.mean()) / spread if float(spread) > 0 else torch.zeros_like(strength)
    rank = z.argsort(descending=True, stable=True).argsort().double()
    odds = {
        "density": -z.square() / 2,
        "rank": -(rank / (len(z) / 3)).square() / 2,
        "tail": torch.where(z > 0, 0.0, LAST + z),
        "strong": z,
        "uniform": torch.zeros_like(z),
    }
    return odds[reading.endpoints]


def _named_by_edges(site: Site, strength: Tensor, share: float) -> Tensor:
    """Logarithm of the odds of each pair of ends of the strongest connections. Shape [outputs, inputs]."""
    there = int(site.mask.any(2).sum())
    strongest = strength.flatten().argsort(descending=True, stable=True)[: max(1, round(share * there))]
    named = torch.zeros_like(strength).flatten()
    named[strongest] = strength.flatten()[strongest]
    sums = (named.reshape(strength.shape).sum(axis) for axis in (0, 1))
    starts, ends = (torch.where(total > 0, total.clamp_min(1e-12).log(), LAST / 2) for total in sums)
    return starts + ends[:, None]


def _chosen_by_gradient(site: Site, scores: Tensor, closed: Tensor, candidates: int) -> Tensor:
    """The gradient of the best candidates; the others follow in the order they had."""
    free = scores.masked_fill(closed, -math.inf).reshape(-1)
    first = free.argsort(descending=True, stable=True)[:candidates]
    found = scores + 2 * LAST
    found.reshape(-1)[first] = _gradient(site).reshape(-1)[first]
    return found
