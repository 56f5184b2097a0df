"""How far a joint distribution is from the product of its margins: Henze-Penrose and Shannon."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import log
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

Divergence: TypeAlias = Literal["henze-penrose", "shannon"]


def henze_penrose(joint: Tensor, product: Tensor) -> Tensor:
    """Henze-Penrose divergence of masses over axis 0: (1/2) sum (p-q)^2/(p+q), in [0, 1].

    Cells where only one of the two has mass count too.
    """
    total = joint + product
    return 0.5 * ((joint - product).square() / torch.where(total > 0, total, 1.0)).sum(0)


def shannon(joint: Tensor, product: Tensor) -> Tensor:
    """Shannon's divergence of masses over axis 0: sum p log(p/q) - p + q, in nats, at least 0."""
    ratio = torch.where(joint > 0, joint / torch.where(joint > 0, product, 1.0), 1.0)
    return (joint * ratio.log() - joint + product).sum(0)


OF_MASSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "henze-penrose": henze_penrose,
    "shannon": shannon,
}
CURVATURE: Final[Mapping[str, float]] = {"henze-penrose": 0.25, "shannon": 0.5}
"""Each divergence near independence, as a multiple of the chi-squared distance, g''(1) / 2: the bias follows."""


def of_correlation(correlation: Tensor, divergence: Divergence) -> Tensor:
    """The divergence of two jointly Gaussian variables with that correlation.

    Shannon's is -1/2 log(1 - r^2). Henze-Penrose has no closed form: it is integrated numerically once, and read from a
    table in atanh |r| (error below 1e-6).

    >>> [round(float(of_correlation(torch.tensor(r), "henze-penrose")), 4) for r in (0.0, 0.3, 0.5, 0.8, 0.9, 0.95)]
    [0.0, 0.0231, 0.0683, 0.2263, 0.3517, 0.4701]
    """
    r = correlation.to(torch.float64).abs().clamp(max=1 - 1e-15)
    if divergence == "shannon":
        return -0.5 * torch.log1p(-r.square())
    nodes, ratios = (values.to(r.device) for values in _gaussian_table())
    z = torch.atanh(r).clamp(max=float(nodes[-1]) * (1 - 1e-12))
    place = z / nodes[1]
    low = place.floor().long().clamp(1, len(nodes) - 3)
    t = place - low
    cubic = (
        ratios[low - 1] * (t * (1 - t) * (t - 2) / 6)
        + ratios[low] * ((t + 1) * (1 - t) * (2 - t) / 2)
        + ratios[low + 1] * ((t + 1) * t * (2 - t) / 2)
        + ratios[low + 2] * ((t + 1) * t * (t - 1) / 6)
    )
    return r.square() * cubic


@lru_cache(maxsize=1)
def _gaussian_table() -> tuple[Tensor, Tensor]:
    """Nodes of atanh |r| and HP(r)/r^2 at them.

    With s and t the sum and difference of the two variables over root 2, the logarithm of the density ratio is
    l = -1/2 log(1-r^2) + (s^2 r/(1+r) - t^2 r/(1-r))/2, and HP = 1/2 E[(1 + e^l) tanh^2(l/2)] where s and t are
    standard normal: no difference of close numbers, so it is right for small r too.
    """
    z = torch.linspace(0, 16, 801, dtype=torch.float64)
    z[0] = 1e-3  # the ratio is flat at 0, where it is 0/0
    ratios = torch.cat([_gaussian_henze_penrose(part) for part in z.split(50)]) / torch.tanh(z).square()
    z[0] = 0
    return z, ratios


def _gaussian_henze_penrose(z: Tensor) -> Tensor:
    # Both densities are even; on a logarithmic grid the trapezoidal rule resolves every scale a strong correlation has.
    s, s_mass = _half_normal(1e-5, 80)
    t, t_mass = _half_normal(1e-12, 250)
    r, rest = torch.tanh(z)[:, None, None], (2 / (torch.exp(2 * z) + 1))[:, None, None]
    s, t = s[:, None].square(), t[None, :].square()
    logit = -0.5 * torch.log(rest * (1 + r)) + 0.5 * (s * r / (1 + r) - t * r / rest)
    each = (1 + logit.exp()) * torch.tanh(logit / 2).square()
    return 0.5 * (each * (s_mass[:, None] * t_mass)).sum((1, 2))


def _half_normal(least: float, points: int) -> tuple[Tensor, Tensor]:
    nodes = torch.linspace(log(least), log(9.0), points, dtype=torch.float64).exp()
    mass = torch.exp(-nodes.square() / 2) * nodes
    return nodes, mass / mass.sum()
