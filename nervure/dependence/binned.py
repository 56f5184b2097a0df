"""Joint histograms of one variable with many, in equal-mass bins.

The counting is exact and the same for every tile: each value is compared with its edges, and whole numbers are summed.
Rows are sorted by the parent's bin first, so that a bin is a run of rows.
"""

from functools import lru_cache
from math import log, pi

import torch
from torch import Tensor

from nervure.dependence.divergences import CURVATURE, OF_MASSES, Divergence


def quantile_edges(values: Tensor, bins: int) -> Tensor:
    """Edges [bins - 1, variables] that cut each column of ``values`` [N, variables] into bins of equal mass.

    An edge never splits equal values: it goes to whichever end of their run is nearer.
    """
    n = len(values)
    ordered = values.T.contiguous().sort(dim=1).values
    ranks = torch.arange(1, bins, device=values.device) * n / bins
    at = ordered[:, ranks.floor().long().clamp(max=n - 1)].contiguous()
    below, above = (torch.searchsorted(ordered, at, right=right) for right in (False, True))
    cut = torch.where(ranks - below <= above - ranks, below, above)
    padded = torch.cat([ordered[:, :1] - 1, ordered, ordered[:, -1:] + 1], dim=1)
    return ((padded.gather(1, cut) + padded.gather(1, cut + 1)) / 2).T.contiguous()


def codes(values: Tensor, edges: Tensor) -> Tensor:
    """Bin number of each of ``values`` [N, variables] between ``edges`` [bins - 1, variables]."""
    return torch.searchsorted(edges.T.contiguous(), values.T.contiguous()).T


def runs(code: Tensor, bins: int) -> Tensor:
    """Row numbers [bins, longest] sorted by ``code`` [N], a bin in each line; N stands for no row."""
    sizes = torch.bincount(code, minlength=bins)
    order = torch.argsort(code, stable=True)
    place = torch.full((bins, int(sizes.max())), len(code), device=code.device)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(len(code), device=code.device) - starts[code[order]]
    place[code[order], within] = order
    return place


def joint_counts(values: Tensor, edges: Tensor) -> Tensor:
    """How many samples lie in each pair of bins.

    Args:
        values: [bins_x, rows, variables], rows grouped by the bin of X, infinity where there is no row.
        edges: [bins_y - 1, variables].

    Returns:
        [bins_x, bins_y, variables] whole numbers below 2^24, in float32.
    """
    bins, _, width = values.shape
    below = torch.empty((len(edges) + 1, bins, width), device=values.device)
    # Comparing into float32 and adding takes less time than comparing into booleans does.
    is_below = torch.empty_like(values)
    for k, edge in enumerate(edges):
        torch.sum(torch.le(values, edge, out=is_below), dim=1, out=below[k])
    below[-1] = torch.isfinite(values[..., :1]).sum(1)
    return below.diff(dim=0, prepend=torch.zeros_like(below[:1])).transpose(0, 1)


def dependence(counts: Tensor, divergence: Divergence, *, freedom: float, smooth: bool) -> tuple[Tensor, Tensor]:
    """Divergence of the joint histograms from their margins' products, and what of it to expect from chance alone.

    Args:
        counts: [bins_x, bins_y, variables].
        divergence: which one.
        freedom: degrees of freedom a correlation of the two has left, at most N.
        smooth: drop what cannot be told from noise.

    Returns:
        Two tensors [variables]: the value over all cells, empty ones too, and its expectation under independence,
        g''(1) / 2 times 1 / freedom for what is linear and 1 / N for each other of (Bx - 1)(By - 1) ways to depend (of
        occupied bins).
    """
    counts = counts.to(torch.float64)
    n = counts.sum((0, 1))
    x, y = counts.sum(1) / n, counts.sum(0) / n
    joint, product = counts / n, x[:, None] * y[None]
    ways = (((x > 0).sum(0) - 1) * ((y > 0).sum(0) - 1)).to(torch.float64)
    others = (ways - 1) / n
    if smooth:
        threshold = 2 * log((len(x) - 1) * (len(y) - 1)) if len(x) * len(y) > 4 else 0.0
        joint = denoise(joint, product, n, threshold)
        others = others * left_of_noise(threshold)
    value = OF_MASSES[divergence](joint.flatten(0, 1), product.flatten(0, 1))
    return value, CURVATURE[divergence] * torch.where(ways > 0, others + 1 / freedom, torch.zeros_like(others))


def denoise(joint: Tensor, product: Tensor, samples: Tensor, threshold: float) -> Tensor:
    """The masses ``joint`` [bins_x, bins_y, variables] with only what stands out of sampling noise.

    Under independence ``(joint - product) / sqrt(product)``, turned into a cosine basis over the bins, has coefficients
    of variance 1 / N, and their squares sum to the chi-squared distance. The first is the monotone one and stays; any
    other is multiplied by ``1 - threshold / (N c^2)``, at least 0. The threshold is the universal one, twice the
    logarithm of their number: dependence that is there at all has large coefficients and hardly changes.
    """
    root = product.sqrt()
    turn, back = _cosines(len(joint), joint.device), _cosines(joint.shape[1], joint.device)
    # Where the product is 0 so is the joint.
    wave = (joint - product) / torch.where(root > 0, root, 1.0)
    wave = back @ (turn @ wave.flatten(1)).view(wave.shape)
    kept = (1 - threshold / (samples * wave.square()).clamp(min=1e-300)).clamp(min=0)
    kept[1, 1] = 1.0
    wave = (turn.T @ (back.T @ (wave * kept)).flatten(1)).view(wave.shape)
    return (product + root * wave).clamp(min=0)


def _cosines(bins: int, device: torch.device) -> Tensor:
    """The orthonormal cosine basis [bins, bins] of a row of bins, the constant first."""
    k = torch.arange(bins, dtype=torch.float64, device=device)
    waves: Tensor = torch.cos(pi * (k + 0.5) * k[:, None] / bins) * (2 / bins) ** 0.5
    waves[0] = bins**-0.5
    return waves


@lru_cache
def left_of_noise(threshold: float) -> float:
    """Mean square of a standard normal coefficient after it was shrunk: E[(z - t/z)^2 where z^2 > t]."""
    z = torch.linspace(max(threshold, 1e-12) ** 0.5, 12.0, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) * (2 / pi) ** 0.5
    return float(torch.trapezoid(density * (z - threshold / z).square(), z))
