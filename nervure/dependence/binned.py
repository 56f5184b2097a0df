"""Joint histograms of one variable with many, in equal-mass bins.

The counting is exact and the same for every tile: each value is compared with its edges, and whole numbers are summed.
Rows are sorted by the parent's bin first, so that a bin is a run of rows; comparisons are bytes, and eight of them are
added at once as one 64-bit number, in runs of at most 255 rows so that no byte overflows into its neighbour.
"""

import torch
from torch import Tensor

from nervure.dependence.divergences import CURVATURE, OF_MASSES, Divergence

LANES = 8
LONGEST_RUN = 255


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
    """Row numbers [bins, runs, length] sorted by ``code`` [N], each run within one bin; N stands for no row."""
    sizes = torch.bincount(code, minlength=bins)
    most = int(sizes.max())
    count = -(-most // LONGEST_RUN)
    length = -(-most // count)
    order = torch.argsort(code, stable=True)
    place = torch.full((bins, count * length), len(code), device=code.device)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(len(code), device=code.device) - starts[code[order]]
    place[code[order], within] = order
    return place.view(bins, count, length)


def joint_counts(values: Tensor, edges: Tensor) -> Tensor:
    """How many samples lie in each pair of bins.

    Args:
        values: [bins_x, runs, length, variables], rows grouped by the bin of X, infinity where there is no row; the
            number of variables is a multiple of 8.
        edges: [bins_y - 1, variables].

    Returns:
        [bins_x, bins_y, variables] whole numbers.
    """
    bins, count, _, width = values.shape
    below = torch.empty((len(edges) + 1, bins, width), dtype=torch.int64, device=values.device)
    for k, edge in enumerate(edges):
        lanes = (values <= edge).view(torch.int64).sum(2)
        below[k] = lanes.view(torch.uint8).view(bins, count, width).sum(1)
    below[-1] = torch.isfinite(values[..., 0]).sum((1, 2))[:, None]
    return below.diff(dim=0, prepend=torch.zeros_like(below[:1])).transpose(0, 1)


def dependence(counts: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Divergence of the joint histograms from their margins' products, and what of it to expect from chance alone.

    Args:
        counts: [bins_x, bins_y, variables].
        divergence: which one.

    Returns:
        Two tensors [variables]: the plug-in value over all cells, empty ones too, and (Bx - 1)(By - 1) g''(1) / 2N with
        the occupied bins.
    """
    counts = counts.to(torch.float64)
    n = counts.sum((0, 1))
    x, y = counts.sum(1) / n, counts.sum(0) / n
    value = OF_MASSES[divergence]((counts / n).flatten(0, 1), (x[:, None] * y[None]).flatten(0, 1))
    freedom = ((x > 0).sum(0) - 1) * ((y > 0).sum(0) - 1)
    return value, CURVATURE[divergence] * freedom / n
