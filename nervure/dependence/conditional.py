"""How much every child depends on every parent given all the other parents."""

from typing import Unpack, overload

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.core.schema import Seed
from nervure.dependence import gaussian, hashing, residual, spanning
from nervure.dependence.divergences import Divergence
from nervure.dependence.estimator_options import Choices, Correction, Estimator, Options
from nervure.dependence.interval import Interval
from nervure.dependence.interval import interval as interval_of
from nervure.dependence.regression import residuals
from nervure.dependence.samples import MEBIBYTE, as_samples, require_same_samples, result_type
from nervure.dependence.weighting import ON_WEIGHT, Phi, pair_weights, require_phi
from nervure.errors import ArgumentError


@overload
def conditional_connectivity(
    parents: Tensor,
    children: Tensor,
    *,
    weights: Tensor | None = None,
    phi: Phi | None = None,
    groups: int | tuple[int, int] | None = None,
    noise: float = 0.0,
    memory: int = 256 * MEBIBYTE,
    interval: None = None,
    **choices: Unpack[Choices],
) -> Tensor: ...


@overload
def conditional_connectivity(
    parents: Tensor,
    children: Tensor,
    *,
    weights: Tensor | None = None,
    phi: Phi | None = None,
    groups: int | tuple[int, int] | None = None,
    noise: float = 0.0,
    memory: int = 256 * MEBIBYTE,
    interval: float,
    **choices: Unpack[Choices],
) -> Interval: ...


@checked
def conditional_connectivity(  # noqa: PLR0913 - one choice per argument, all by keyword
    parents: Tensor,
    children: Tensor,
    *,
    estimator: Estimator = "residual",
    divergence: Divergence = "henze-penrose",
    bins: int = 8,
    ridge: float = 1e-3,
    weights: Tensor | None = None,
    phi: Phi | None = None,
    groups: int | tuple[int, int] | None = None,
    correction: Correction | None = None,
    smooth: bool = True,
    noise: float = 0.0,
    faithful: bool = False,
    interval: float | None = None,
    memory: int = 256 * MEBIBYTE,
    seed: Seed = 0,
) -> Tensor | Interval:
    """Dependence of every child on every parent given all the other parents.

    The score of a pair is the divergence between the joint distribution of the two and the one in which they are
    independent given the other parents; the connectivity of SNACS (arXiv:2006.12463).

    Args:
        parents: [N, parents], one value per sample and channel; [N] is one parent.
        children: [N, children], of the same samples.
        estimator: ``"residual"`` bins what a ridge regression on the other parents leaves of both (about N pairs of
            operations per pair of channels), ``"gaussian"`` takes the partial correlation, ``"hash"`` is the published
            estimator, ``"mst"`` the spanning tree of MINT (arXiv:2003.08472), for reference on small work.
        divergence: ``"henze-penrose"``, in [0, 1], or ``"shannon"``, in nats.
        bins: equal-mass bins per variable, for ``"residual"``.
        ridge: strength of the regression relative to a parent's variance.
        weights: [children, parents, ...] the weights that join them, for ``phi``; magnitudes are averaged over kernel
            positions and groups and divided by the largest.
        phi: the factor on a score; ``"w"`` where weights are given, ``"1"`` where not. Those with ``act``: ``"hash"``.
        groups: cut parents and children into that many blocks of neighbours and score blocks; two numbers are those of
            (children, parents). ``"hash"`` and ``"mst"`` take a block as a vector, the others its mean.
        correction: how the bias of small samples is taken off: ``"law"`` (the expectation of a chi-squared distance),
            ``"permutation"`` (the mean of five estimates without dependence) or ``"none"``; by default the law, and
            permutations for ``"hash"``, whose many cells no law describes.
        smooth: for ``"residual"``: leave out of the joint histogram what cannot be told from sampling noise.
        noise: standard deviation of what is added to every child, relative to its own, for ``"residual"`` and
            ``"gaussian"``: a child that is a noiseless function of its parents depends on all of them completely,
            and only with some noise, such as 0.1, shows on which it depends most.
        faithful: for ``"hash"``: as first published, with what is known to be wrong in it.
        interval: confidence such as 0.95; the answer is then (value, low, high), at 20 times the cost.
        memory: bytes the pairwise work may take beyond a few copies of the input.
        seed: of hashes, permutations and subsamples.

    Returns:
        [children, parents] (of groups, where asked), at least 0, on the input's device, float64 where the input is and
        float32 otherwise. A constant parent or child (standard deviation below 1e-6) scores 0.

    Raises:
        ArgumentError: an argument is outside its range, or ``memory`` holds no tile; the least is said.
        DataError: NaN or infinite values, different numbers of samples, or fewer than 2.

    >>> generator = torch.Generator().manual_seed(0)
    >>> parents = torch.randn(1000, 3, generator=generator)
    >>> child = parents[:, 0] + 0.5 * torch.randn(1000, generator=generator)
    >>> [round(float(v), 1) for v in conditional_connectivity(parents, child)[0]]
    [0.3, 0.0, 0.0]
    """
    phi = phi or ("1" if weights is None else "w")
    require_phi(phi, weighted=weights is not None, hashed=estimator == "hash")
    options = Options(estimator, divergence, bins, ridge, correction, phi, smooth, noise, faithful, memory, seed)
    p, x = as_samples(parents, "parents"), as_samples(children, "children")
    n = require_same_samples(parents=p, children=x)
    sizes = _group_counts(groups, x.shape[1], p.shape[1])
    w = None if weights is None else pair_weights(weights, sizes, (x.shape[1], p.shape[1]), signed=faithful)
    options.warn_few(n if interval is None else n // 2)

    def estimate(rows: Tensor) -> Tensor:
        scores = _scores(p[rows], x[rows], sizes, w, options).clamp(min=0)
        return scores if w is None or phi not in ON_WEIGHT else scores * ON_WEIGHT[phi](w)

    dtype = result_type(parents, children)
    if interval is None:
        return estimate(torch.arange(n, device=p.device)).to(dtype)
    return Interval(*(part.to(dtype) for part in interval_of(estimate, n, interval, seed, p.device)))


def _scores(p: Tensor, x: Tensor, groups: tuple[int, int], w: Tensor | None, options: Options) -> Tensor:
    if options.estimator == "hash":
        return hashing.connectivity(p, x, groups, w, options)
    if options.estimator == "mst":
        return spanning.connectivity(p, x, groups, options.seed)
    p, x = _group_means(p, groups[1]), _group_means(x, groups[0])
    left = residuals(p, x, options.ridge, options.drawn_noise(len(p), p.device))
    if options.estimator == "gaussian":
        return gaussian.connectivity(left, options.divergence)
    return residual.connectivity(left, options)


def _group_counts(groups: int | tuple[int, int] | None, children: int, parents: int) -> tuple[int, int]:
    wanted = (children, parents) if groups is None else (groups, groups) if isinstance(groups, int) else tuple(groups)
    for count, channels, name in zip(wanted, (children, parents), ("children", "parents"), strict=True):
        if count < 1 or channels % count:
            raise ArgumentError(
                f"groups={groups!r}: {channels} {name} cannot be cut into {count} blocks of equal size. "
                "Give a divisor, for each of (children, parents)."
            )
    return wanted[0], wanted[1]


def _group_means(values: Tensor, groups: int) -> Tensor:
    return values if groups == values.shape[1] else values.reshape(len(values), groups, -1).mean(2)
