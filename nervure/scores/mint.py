"""Dependence of groups of filters, by spanning trees: Ganesh, Corso and Yasaei Sekeh, "MINT: Deep Network Compression
via Mutual Information-based Neuron Trimming", 2020 (arXiv:2003.08472), the predecessor of SNACS.
"""  # noqa: D205

import torch
from torch import Tensor

from nervure.dependence import conditional_connectivity
from nervure.scores.bundles import Layer
from nervure.stats import response


def mint(layer: Layer, heard: Tensor, *, groups: int = 8, seed: int = 0) -> Tensor:
    """Geometric conditional mutual information of each child with each of its parents, given the other parents.

    Parents and children are cut into blocks of neighbours, which are scored as vectors: all filters of a block have one
    score. No weight enters. Slow: one spanning tree for each pair of blocks.

    Args:
        layer: the layer.
        heard: what enters it, [samples, inputs, kernel positions] as in ``Stats.connections``; six samples at least.
        groups: how many blocks at most; the largest divisor of the number of channels that is not above it is taken.
        seed: of the thirds into which the samples are cut.

    Returns:
        [children, parents], in [0, 1]; children of a grouped convolution have the parents of their own group. A child
        with a single parent depends on it: 1.
    """
    if layer.parents == 1:
        return torch.ones(layer.children, 1)
    splits = layer.splits(heard)
    parents = layer.said(heard)
    children = response(layer.weight, heard).reshape(len(heard), splits, -1)
    blocks = _blocks(children.shape[2], groups), _blocks(parents.shape[2], groups)
    found = [
        conditional_connectivity(parents[:, s], children[:, s], estimator="mst", groups=blocks, seed=seed)
        for s in range(splits)
    ]
    wide = [children.shape[2] // blocks[0], parents.shape[2] // blocks[1]]
    return torch.cat([f.repeat_interleave(wide[0], 0).repeat_interleave(wide[1], 1) for f in found]).float()


def _blocks(channels: int, groups: int) -> int:
    return max(n for n in range(1, min(channels, groups) + 1) if channels % n == 0)
