"""The hash estimator: samples fall into buckets of a grid, and buckets are counted (EDGE, arXiv:1801.09125; SNACS).

With counts of buckets of X, Y and Z together and apart the estimate is the sum over occupied cells of
``N_xz N_yz / (N N_z) * phi * g(N_xyz N_z / (N_xz N_yz))``, averaged over ten grids.
"""

from dataclasses import dataclass
from math import exp, log, log2
from typing import Final, final

import torch
from torch import Tensor

from nervure.dependence.distances import ranges
from nervure.dependence.estimator_options import SHUFFLES, Options
from nervure.dependence.samples import standardise, tile_size
from nervure.dependence.weighting import ON_ACTIVITY

HASHES: Final = 10
CAP: Final = 10.0
"""No cell counts for more than this: g is cut there."""
ANCHORS: Final = 500
PROJECTED_ABOVE: Final = 6
PER_SAMPLE_BYTES: Final = 160


@final
@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Buckets of one variable: their numbers ``bucket`` [hashes, N] and the norms of their grid positions ``norm``."""

    bucket: Tensor
    norm: Tensor


def connectivity(
    parents: Tensor, children: Tensor, groups: tuple[int, int], weights: Tensor | None, options: Options
) -> Tensor:
    """Scores [child groups, parent groups] in float64, every parent group given the channels of all the others."""
    p, heard = _prepare(parents, options)
    x, told = _prepare(children, options)
    members = torch.arange(p.shape[1], device=p.device).view(groups[1], -1)
    heard, told = heard.view(groups[1], -1).any(1), told.view(groups[0], -1).any(1)
    parts = [hash_codes(part, options.seed) for part in x.split(x.shape[1] // groups[0], dim=1)]
    x_codes = Codes(torch.stack([c.bucket for c in parts]), torch.stack([c.norm for c in parts]))
    width = tile_size(options.memory, HASHES * len(p) * PER_SAMPLE_BYTES, groups[0])
    scores = torch.zeros(groups, dtype=torch.float64, device=p.device)
    for i in torch.nonzero(heard).flatten().tolist():
        others = torch.cat([members[:i].flatten(), members[i + 1 :].flatten()])
        given = hash_codes(p[:, others], options.seed) if len(others) else None
        parent = hash_codes(p[:, members[i]], options.seed)
        for tile in ranges(groups[0], width):
            some = Codes(x_codes.bucket[tile], x_codes.norm[tile])
            w = None if weights is None else weights[tile, i]
            scores[tile, i] = estimate(some, parent, given, w, options)
    return torch.where(told[:, None], scores, torch.zeros_like(scores))


def information(x: Tensor, y: Tensor, given: Tensor | None, options: Options) -> Tensor:
    """The scalar for vectors ``x`` [N, p] and ``y`` [N, q] given [N, r] or not, in float64."""
    a, b = (hash_codes(_prepare(v, options)[0], options.seed) for v in (x, y))
    z = None if given is None else hash_codes(_prepare(given, options)[0], options.seed)
    return estimate(Codes(a.bucket[None], a.norm[None]), b, z, None, options)[0]


def hash_codes(values: Tensor, seed: int) -> Codes:
    """Ten grids over ``values`` [N, d]; above six dimensions over a Gaussian (2-stable) projection of them.

    The side of a cell follows from the distance to the k-th neighbour along each axis, with the constants of the
    released code; grid j of ten is up to a tenth coarser and shifted by j tenths of a side.
    """
    n, d = values.shape
    generator = torch.Generator().manual_seed(seed)
    if d > PROJECTED_ABOVE:
        values = values @ _projection(values, generator)
    r = values.shape[1]
    k = int(0.43 * n ** (2 / 3 + 0.17 * r / (r + 1)) * exp(-1 / max(1e4, r**4)))
    scale = 18 * r / max(1 + log(d), 1) * 0.4
    side = (_neighbour_distance(values, min(max(k, 1), n - 1), generator) + 1e-4) * scale
    steps = torch.arange(HASHES, dtype=torch.float64, device=values.device)[:, None, None] / HASHES
    sides = side * (1 + 0.1 * steps * HASHES / (HASHES - 1))
    grid = torch.floor(values / sides + steps).long()
    return Codes(_bucket_numbers(grid), grid.double().norm(dim=2))


def estimate(x: Codes, y: Codes, z: Codes | None, weights: Tensor | None, options: Options) -> Tensor:
    """Estimates [variables] for ``x`` with buckets [variables, hashes, N], bias taken off as the options say."""
    z = z or Codes(torch.zeros_like(y.bucket), torch.ones_like(y.norm))
    activity = x.norm * y.norm * z.norm
    phi = _activity_factor(activity, weights, options)
    value = _sum_buckets(x.bucket, y.bucket, z.bucket, phi, options)
    if options.bias == "permutation":
        shuffled = _shuffled_within(y.bucket, z.bucket, options.seed)
        return value - torch.stack([_sum_buckets(x.bucket, s, z.bucket, phi, options) for s in shuffled]).mean(0)
    if options.bias == "law":
        return value - _chance(x.bucket, y.bucket, z.bucket, options)
    return value


def _sum_buckets(x: Tensor, y: Tensor, z: Tensor, phi: Tensor, options: Options) -> Tensor:
    n = z.shape[-1]
    n_z, n_yz = _occupancy(z), _occupancy(_together(y, z))
    xz = _together(x, z.expand_as(x))
    n_xz, n_xyz = _occupancy(xz), _occupancy(_together(xz, y.expand_as(x)))
    product = n_xz * n_yz / (n * n_z)
    ratio = n_xyz / (n * product)
    if options.divergence == "shannon":
        terms = product * ratio * ratio.log().clamp(max=CAP)
    else:
        terms = product * ((ratio - 1).square() / (2 * (ratio + 1))).clamp(max=CAP)
    # A cell is met once by each of its samples.
    value = (phi * terms / n_xyz).sum(-1)
    if options.divergence == "henze-penrose" and not options.faithful:
        empty = 1 - (product / n_xyz).sum(-1)
        value = value + 0.5 * empty.clamp(min=0) * phi.mean(-1)
    return value.mean(-1)


def _chance(x: Tensor, y: Tensor, z: Tensor, options: Options) -> Tensor:
    n = z.shape[-1]
    n_z, yz, xz = _occupancy(z), _together(y, z), _together(x, z.expand_as(x))
    inside = torch.zeros(*x.shape[:-1], n, dtype=torch.float64, device=x.device)
    buckets = z.expand_as(x)
    xs = inside.scatter_add(-1, buckets, 1 / _occupancy(xz))
    ys = inside.scatter_add(-1, buckets, (1 / _occupancy(yz)).expand(x.shape))
    full = inside.scatter_add(-1, buckets, (1 / n_z).expand(x.shape))
    curvature = 0.5 if options.divergence == "shannon" else 0.25
    return curvature / n * ((xs - full) * (ys - full)).sum(-1).mean(-1)


def _activity_factor(activity: Tensor, weights: Tensor | None, options: Options) -> Tensor:
    if options.phi not in ON_ACTIVITY:
        return torch.ones_like(activity)
    if options.phi == "exp(-(w*act)^2/2)" and weights is not None and not options.faithful:
        activity = activity * weights[:, None, None]
    return ON_ACTIVITY[options.phi](activity)


def _prepare(values: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    scaled, alive = standardise(values)
    return (values if options.faithful else scaled), alive


def _projection(values: Tensor, generator: torch.Generator) -> Tensor:
    n, d = values.shape
    r = max(1, min(d, int(log2(max(n / 10, 2)))))
    spread = values.std(0, correction=0)
    spread = torch.where(spread < 1e-4, 1.0, spread)
    drawn = torch.randn(d, r, generator=generator, dtype=torch.float64).to(values.device)
    scaled: Tensor = drawn / (spread[:, None] * d**0.5)
    return scaled


def _neighbour_distance(values: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Mean distance [d] from some samples to the k-th nearest other one, along each axis."""
    n = len(values)
    ordered = values.T.contiguous().sort(dim=1).values
    at = torch.randint(0, n, (min(ANCHORS, n),), generator=generator).to(values.device)
    here = ordered[:, at]
    # The nearest k lie in one window of the order; slide it until both ends are as near.
    low, high = (at - k).clamp(min=0), at.clamp(max=n - 1 - k)
    low, high = low.expand_as(here).clone(), high.expand_as(here).clone()
    while bool((low < high).any()):
        middle = (low + high) // 2
        left_is_farther = here - ordered.gather(1, middle) > ordered.gather(1, middle + k) - here
        low = torch.where(left_is_farther & (low < high), middle + 1, low)
        high = torch.where(~left_is_farther & (low <= high), torch.minimum(high, middle), high)
    ends = [
        torch.maximum(here - ordered.gather(1, s), ordered.gather(1, s + k) - here)
        for s in (low, (low - 1).clamp(min=0))
    ]
    allowed = low > (at - k).clamp(min=0)
    return torch.where(allowed, torch.minimum(*ends), ends[0]).mean(1)


def _bucket_numbers(grid: Tensor) -> Tensor:
    """Bucket numbers [hashes, N] of grid positions [hashes, N, r]; equal numbers are equal positions."""
    numbers = torch.zeros(grid.shape[:2], dtype=torch.long, device=grid.device)
    for axis in grid.unbind(2):
        numbers = _together(numbers, axis - axis.min())
    return numbers


def _together(first: Tensor, second: Tensor) -> Tensor:
    """Numbers of the pairs of two rows of numbers [..., N], each row from 0 to N - 1."""
    pairs = first * (int(second.max()) + 1) + second
    ordered, order = pairs.sort(dim=-1)
    new = torch.zeros_like(ordered)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return torch.empty_like(new).scatter_(-1, order, new.cumsum(-1))


def _occupancy(numbers: Tensor) -> Tensor:
    """How many samples of its row have the number each sample has, in float64."""
    counts = torch.zeros_like(numbers).scatter_add_(-1, numbers, torch.ones_like(numbers))
    return counts.gather(-1, numbers).double()


def _shuffled_within(y: Tensor, z: Tensor, seed: int) -> list[Tensor]:
    """``y`` [hashes, N] permuted among the samples that share a bucket of ``z``, a few times."""
    generator = torch.Generator().manual_seed(seed)
    sorted_by_z = z.argsort(dim=-1, stable=True)
    values = y.gather(-1, sorted_by_z)
    shuffled = []
    for _ in range(SHUFFLES):
        order = torch.randperm(z.shape[-1], generator=generator).to(z.device)
        places = order[z[:, order].argsort(dim=-1, stable=True)]
        shuffled.append(torch.empty_like(y).scatter_(-1, places, values))
    return shuffled
