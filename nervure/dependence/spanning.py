"""The minimum-spanning-tree estimator of MINT (arXiv:2003.08472): the slow reference.

Friedman and Rafsky's statistic: in the spanning tree of two pooled samples, few edges join one sample to the other when
their distributions differ. ``1 - R (m + n) / 2mn`` tends to the Henze-Penrose divergence (Henze and Penrose 1999). The
sample without the dependence is made by a nearest-neighbour bootstrap.
"""

import torch
from torch import Tensor

from nervure.dependence.samples import standardise
from nervure.errors import DataError


def connectivity(parents: Tensor, children: Tensor, groups: tuple[int, int], seed: int) -> Tensor:
    """Scores [child groups, parent groups] in float64, a tree for every pair; groups are vectors, as in MINT."""
    p, heard = standardise(parents)
    x, told = standardise(children)
    scores = torch.zeros(groups, dtype=torch.float64, device=p.device)
    p_parts, x_parts = p.split(p.shape[1] // groups[1], dim=1), x.split(x.shape[1] // groups[0], dim=1)
    heard, told = heard.view(groups[1], -1).any(1), told.view(groups[0], -1).any(1)
    for i, parent in enumerate(p_parts):
        others = torch.cat([*p_parts[:i], *p_parts[i + 1 :]], dim=1) if len(p_parts) > 1 else None
        for j, child in enumerate(x_parts):
            if heard[i] and told[j]:
                scores[j, i] = information(parent, child, others, seed)
    return scores


def information(x: Tensor, y: Tensor, given: Tensor | None, seed: int) -> Tensor:
    """Henze-Penrose dependence of ``x`` [N, p] and ``y`` [N, q] given [N, r] or not, in float64; N is 6 or more.

    A third of the samples stand for the joint distribution; in a second third, y is replaced by the y of that sample of
    the last third whose ``given`` is nearest (by the y of any other sample where nothing is given).
    """
    third = len(x) // 3
    if third < 2:
        raise DataError(
            f"{len(x)} samples are too few for estimator='mst': 6 or more are needed, a third for each part."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    joint, first, second = order[:third], order[third : 2 * third], order[2 * third : 3 * third]
    partner = second
    if given is not None:
        partner = second[torch.cdist(given[first], given[second]).argmin(1)]
    parts = [torch.cat([x[joint], x[first]]), torch.cat([y[joint], y[partner]])]
    if given is not None:
        parts.append(torch.cat([given[joint], given[first]]))
    return friedman_rafsky(torch.cat(parts, dim=1), third)


def friedman_rafsky(pooled: Tensor, first: int) -> Tensor:
    """Henze-Penrose divergence of the first ``first`` rows of ``pooled`` from the others, at least 0."""
    second = len(pooled) - first
    ends = spanning_tree(pooled)
    crossing = int(((ends[:, 0] < first) != (ends[:, 1] < first)).sum())
    value = 1 - crossing * len(pooled) / (2 * first * second)
    return pooled.new_tensor(max(0.0, value), dtype=torch.float64)


def spanning_tree(points: Tensor) -> Tensor:
    """Edges [N - 1, 2] of the Euclidean minimum spanning tree by Prim's algorithm, a row of distances at a time."""
    n = len(points)
    nearest = torch.full((n,), torch.inf, dtype=points.dtype, device=points.device)
    link = torch.zeros(n, dtype=torch.long, device=points.device)
    inside = torch.zeros(n, dtype=torch.bool, device=points.device)
    ends = torch.empty((n - 1, 2), dtype=torch.long, device=points.device)
    last = torch.zeros((), dtype=torch.long, device=points.device)
    for edge in range(n - 1):
        inside[last] = True
        distance = (points - points[last]).square().sum(1)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        link = torch.where(closer, last, link)
        last = torch.where(inside, torch.inf, nearest).argmin()
        ends[edge, 0], ends[edge, 1] = link[last], last
    return ends
