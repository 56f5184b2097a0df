"""The residual estimator: dependence of every child on every parent given all the other parents, in one regression."""

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor

from nervure.dependence.binned import codes, dependence, joint_counts, quantile_edges, runs
from nervure.dependence.distances import ranges
from nervure.dependence.estimator_options import Options
from nervure.dependence.regression import Residuals
from nervure.dependence.samples import tile_size

# More columns at a time than fit the cache of a core only cost time there; a GPU wants them all.
CACHED: Final = 2**22
FLOAT_BYTES: Final = 4
# Counts, masses and what the divergence makes of them, in float64.
CELL_BYTES: Final = 80


def connectivity(left: Residuals, options: Options) -> Tensor:
    """Scores [children, parents] in float64, the expected bias taken off, not yet clipped."""
    bins = options.bins
    shuffles = options.shuffles(len(left.parent), left.parent.device)
    parent, child, slope = left.parent.float(), left.child.float(), left.slope.float()
    parent_edges = quantile_edges(parent, bins)
    code = codes(parent, parent_edges)
    mixed = _edge_mixer(left, parent_edges, quantile_edges(child, bins), bins)
    rows = torch.cat([child, child.new_full((1, child.shape[1]), torch.inf)])
    loads = torch.cat([parent, parent.new_zeros((1, parent.shape[1]))])
    scores = torch.zeros(child.shape[1], parent.shape[1], dtype=torch.float64, device=parent.device)
    width = _tile_width(code, rows.shape[1], options)
    for i in torch.nonzero(left.alive).flatten().tolist():
        orders = [runs(code[:, i], bins), *(runs(code[shuffle, i], bins) for shuffle in shuffles)]
        for tile in ranges(child.shape[1], width):
            edges = mixed(i, tile)
            counts = (joint_counts(_group_rows(rows, loads, slope, i, tile, order), edges) for order in orders)
            scores[tile, i] = correct_bias(counts, options, left.freedom)
    return scores


def correct_bias(counts: Iterable[Tensor], options: Options, freedom: float) -> Tensor:
    """Divergences [variables] of the first of ``counts`` less their bias; the others are of permuted samples."""
    first, *others = (dependence(count, options.divergence, freedom=freedom, smooth=options.smooth) for count in counts)
    if others:
        return first[0] - torch.stack([value for value, _ in others]).mean(0)
    return first[0] - first[1] if options.bias == "law" else first[0]


def _edge_mixer(left: Residuals, parent: Tensor, child: Tensor, bins: int) -> Callable[[int, slice], Tensor]:
    """Edges [bins - 1, tile] of ``child + slope * parent`` from the edges of both.

    Each pair would need a sort of its own. The sum of two independent normal variables has the quantiles
    ``(s1 q1 + s2 q2) / hypot(s1, s2)``, and so has every sum in which one of the two is nothing. Bins not quite of
    equal mass cost a little resolution and nothing else: the divergence is taken from the masses they have.
    """
    parent_spread = left.parent.square().mean(0).sqrt().float()
    child_spread = left.child.square().mean(0).sqrt().float()
    turned = -parent.flip(0)

    def mix(i: int, tile: slice) -> Tensor:
        slope = left.slope[i, tile].float()
        ours, theirs = child_spread[tile], slope.abs() * parent_spread[i]
        whole = torch.hypot(ours, theirs).clamp(min=1e-30)
        pushed = torch.where(slope >= 0, parent[:, i, None], turned[:, i, None]) * slope.abs()
        return (ours / whole) * child[:, tile] + (theirs / whole) * pushed

    return mix


def _group_rows(rows: Tensor, loads: Tensor, slope: Tensor, i: int, tile: slice, order: Tensor) -> Tensor:
    """Children given all parents but ``i``: [bins, longest, tile], in the order of that parent's bins."""
    part = loads[order, i, None] * slope[i, tile]
    # Not fused with the product: that would round differently at the end of a tile.
    return part.add_(rows[:, tile].index_select(0, order.flatten()).view_as(part))


def _tile_width(code: Tensor, children: int, options: Options) -> int:
    places = options.bins * max(int(torch.bincount(column).max()) for column in code.T)
    each = places * 3 * FLOAT_BYTES + CELL_BYTES * options.bins**2
    width = tile_size(options.memory, each, children)
    return max(1, min(width, CACHED // (FLOAT_BYTES * places))) if code.device.type == "cpu" else width
