"""Rules of dropping: how much each connection that is there deserves to stay; small functions by name in ``DROPS``."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from nervure.errors import ScoreError
from nervure.training.dynamic.sites import Noise, Site

Drop: TypeAlias = Callable[[Site, Noise], Tensor]


def by_magnitude(site: Site, noise: Noise) -> Tensor:
    """The absolute weight."""
    return site.weight.abs().double()


def by_sign(site: Site, noise: Noise) -> Tensor:
    """The place by absolute weight among weights of the same sign, in (0, 1].

    So the same share of the positive and of the negative weights goes, those nearest to zero (Mocanu et al., 2018).
    """
    scores = torch.zeros(site.weight.shape, dtype=torch.float64)
    for side in (site.mask & (site.weight >= 0), site.mask & (site.weight < 0)):
        sizes = site.weight[side].abs()
        places = sizes.argsort(stable=True).argsort().double()
        scores[side] = (places + 1) / max(len(sizes), 1)
    return scores


def by_saliency(site: Site, noise: Noise) -> Tensor:
    """What the loss would lose to first order: the absolute weight times the absolute gradient."""
    if site.gradient is None:
        raise ScoreError(f"tensor {site.name!r} has no gradient to drop by: is it frozen, or unused in the forward?")
    return (site.weight * site.gradient).abs().double()


def by_activation(site: Site, noise: Noise) -> Tensor:
    """What a connection carries: the absolute weight times the mean absolute activation of its input."""
    weight = site.weight.abs().double()
    return weight if site.activation is None else weight * site.activation[:, :, None]


def by_lot(site: Site, noise: Noise) -> Tensor:
    """Chance."""
    return noise(site.weight.shape)


DROPS: dict[str, Drop] = {
    "magnitude": by_magnitude,
    "signs": by_sign,
    "saliency": by_saliency,
    "activation": by_activation,
    "random": by_lot,
}
"""Rules of dropping by name. A rule of your own joins by ``DROPS["mine"] = function``."""


def drop_wants(drop: str) -> frozenset[str]:
    """What must be gathered for a rule: ``"gradients"``, ``"activations"``; for rules of one's own, both."""
    known = {"magnitude": (), "signs": (), "random": (), "saliency": ("gradients",), "activation": ("activations",)}
    return frozenset(known.get(drop, ("gradients", "activations")))
