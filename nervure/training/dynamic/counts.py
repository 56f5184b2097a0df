"""Counts of rewiring: connections that go and connections that come, exactly as many as were asked.

Shares are by layer (a mapping from tensor to count), or one count over all layers, which then compete.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.budget.connection_masks import LayerBudget, allocate_connections
from nervure.training.dynamic.sites import Site

Counts: TypeAlias = Mapping[str, int]
Shape: TypeAlias = Literal["cosine", "linear", "cubic", "constant"]


@final
@dataclass(frozen=True, slots=True)
class Ramp:
    """A number that changes while a network trains: a frozen value, called with the share of the way.

    Attributes:
        shape: ``"cosine"`` (Evci et al., 2020), ``"cubic"`` (fast first; Zhu and Gupta, 2017), ``"linear"`` or
            ``"constant"`` (at ``first``).
        first: the number at 0.
        last: the number at 1.

    >>> [round(Ramp("cosine", 0.3, 0.0)(x), 2) for x in (0.0, 0.5, 1.0)]
    [0.3, 0.15, 0.0]
    >>> [round(Ramp("cubic", 1.0, 0.2)(x), 2) for x in (0.0, 0.5, 1.0)]
    [1.0, 0.3, 0.2]
    """

    shape: Shape
    first: float
    last: float = 0.0

    def __call__(self, way: float) -> float:
        """The number at ``way``, in [0, 1]."""
        left = {
            "constant": 1.0,
            "linear": 1 - way,
            "cubic": (1 - way) ** 3,
            "cosine": (1 + math.cos(math.pi * way)) / 2,
        }
        return self.last + (self.first - self.last) * left[self.shape]


def protected_connections(site: Site, *, grace: int, lifelines: bool) -> Tensor:
    """The connections that must not go: the young, and with ``lifelines`` the strongest of each output. Boolean.

    Args:
        site: the layer.
        grace: events that a new connection survives for certain.
        lifelines: whether every output keeps a connection, so that it goes on hearing. Where weights are divided by
            norms, every output and every input does anyway.
    """
    found = site.mask & (site.age <= grace)
    for axis in (0, 1) if site.is_divided else (0,) if lifelines else ():
        found = found | _strongest(site, axis)
    return found


def _strongest(site: Site, axis: int) -> Tensor:
    """The strongest connection at each place along an axis, where there is one."""
    sizes = torch.where(site.mask, site.weight.abs().double(), -1.0).movedim(axis, 0)
    rows = sizes.reshape(len(sizes), -1)
    strongest = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.argmax(1, keepdim=True), True)
    return strongest.reshape(sizes.shape).movedim(0, axis) & site.mask


def drop_weakest(
    sites: Sequence[Site], scores: Mapping[str, Tensor], spare: Mapping[str, Tensor], keep: Counts | int
) -> dict[str, Tensor]:
    """Of the connections that are there, those that stay: the best, ``keep`` weights of them, and all that are spared.

    Where more than ``keep`` are spared, just these stay.
    """
    stalls = {s.name: _stall(s, scores[s.name], s.mask, spare[s.name] & s.mask) for s in sites}
    kept = _buy(sites, stalls, keep)
    return {s.name: kept[s.name] & s.mask for s in sites}


def grow_best(
    sites: Sequence[Site], masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], total: Counts | int
) -> dict[str, Tensor]:
    """All connections of ``masks``, and the best of the free places until there are ``total`` weights."""
    everywhere = {s.name: torch.ones_like(s.mask) for s in sites}
    stalls = {s.name: _stall(s, scores[s.name], everywhere[s.name], masks[s.name]) for s in sites}
    return _buy(sites, stalls, total)


def _buy(sites: Sequence[Site], stalls: Mapping[str, LayerBudget], counts: Counts | int) -> dict[str, Tensor]:
    if isinstance(counts, int):
        return allocate_connections(stalls, max(counts, _fixed(stalls)), "weights")
    found: dict[str, Tensor] = {}
    for site in sites:
        alone = {site.name: stalls[site.name]}
        found |= allocate_connections(alone, max(counts[site.name], _fixed(alone)), "weights")
    return found


def _fixed(stalls: Mapping[str, LayerBudget]) -> int:
    return sum(int(stall.price[stall.fixed].sum()) for stall in stalls.values())


def _stall(site: Site, scores: Tensor, offered: Tensor, fixed: Tensor) -> LayerBudget:
    lowest = torch.finfo(torch.float64).min
    price = torch.full(site.mask.shape, site.price, dtype=torch.int64)
    return LayerBudget(torch.where(offered, scores.double(), lowest), price, fixed, site.mask.numel())
