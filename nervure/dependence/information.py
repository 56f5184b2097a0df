"""Mutual information of two variables, given others or not."""

from typing import Unpack, overload

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.core.schema import Seed
from nervure.dependence import gaussian, hashing, spanning
from nervure.dependence.binned import codes, joint_counts, quantile_edges, runs
from nervure.dependence.divergences import Divergence
from nervure.dependence.estimator_options import Choices, Correction, Estimator, Options
from nervure.dependence.interval import Interval
from nervure.dependence.interval import interval as interval_of
from nervure.dependence.regression import residuals
from nervure.dependence.residual import correct_bias
from nervure.dependence.samples import as_samples, require_same_samples, result_type, standardise


@overload
def mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    given: Tensor | None = None,
    interval: None = None,
    **choices: Unpack[Choices],
) -> Tensor: ...


@overload
def mutual_information(
    x: Tensor,
    y: Tensor,
    *,
    given: Tensor | None = None,
    interval: float,
    **choices: Unpack[Choices],
) -> Interval: ...


@checked
def mutual_information(  # noqa: PLR0913 - one choice per argument, all by keyword
    x: Tensor,
    y: Tensor,
    *,
    given: Tensor | None = None,
    estimator: Estimator = "residual",
    divergence: Divergence = "henze-penrose",
    bins: int = 8,
    ridge: float = 1e-3,
    correction: Correction | None = None,
    smooth: bool = True,
    faithful: bool = False,
    interval: float | None = None,
    seed: Seed = 0,
) -> Tensor | Interval:
    """How far ``x`` and ``y`` are from independent, given ``given`` where there is one.

    Args:
        x: [N] one variable, or [N, p].
        y: [N] or [N, q], of the same samples.
        given: [N] or [N, r], what is known already.
        estimator: ``"residual"`` (equal-mass bins of what a ridge regression on ``given`` leaves; a vector is replaced
            by its first principal component, which can only lose dependence), ``"gaussian"`` (canonical correlations),
            ``"hash"`` (EDGE, arXiv:1801.09125) or ``"mst"`` (MINT, arXiv:2003.08472; Henze-Penrose only).
        divergence: ``"henze-penrose"``, in [0, 1], or ``"shannon"``, in nats.
        bins: equal-mass bins per variable, for ``"residual"``.
        ridge: strength of the regression relative to the variance of what is given.
        correction: of the bias of small samples: ``"law"``, ``"permutation"`` or ``"none"``; by default the law, and
            permutations for ``"hash"``.
        smooth: for ``"residual"``: leave out of the joint histogram what cannot be told from sampling noise.
        faithful: for ``"hash"``: as first published.
        interval: confidence such as 0.95; the answer is then (value, low, high).
        seed: of hashes, permutations and subsamples.

    Returns:
        A scalar, at least 0, on the input's device; float64 where an input is, float32 otherwise. A constant variable
        (standard deviation below 1e-6) shares nothing: 0.

    Raises:
        ArgumentError: an argument is outside its range.
        DataError: NaN or infinite values, different numbers of samples, or fewer than 2.

    >>> x = torch.arange(800) % 4
    >>> round(float(mutual_information(x, x, bins=4, correction="none", smooth=False)), 4)
    0.6
    """
    options = Options(estimator, divergence, bins, ridge, correction, smooth=smooth, faithful=faithful, seed=seed)
    a, b = as_samples(x, "x"), as_samples(y, "y")
    z = None if given is None else as_samples(given, "given")
    n = require_same_samples(x=a, y=b, **({} if z is None else {"given": z}))
    options.warn_few(n if interval is None else n // 2)

    def estimate(rows: Tensor) -> Tensor:
        return _estimate(a[rows], b[rows], None if z is None else z[rows], options).clamp(min=0)

    dtype = result_type(x, y)
    if interval is None:
        return estimate(torch.arange(n, device=a.device)).to(dtype)
    return Interval(*(part.to(dtype) for part in interval_of(estimate, n, interval, seed, a.device)))


def _estimate(x: Tensor, y: Tensor, given: Tensor | None, options: Options) -> Tensor:
    n = len(x)
    if not all(bool(standardise(v)[1].any()) for v in (x, y)):
        return x.new_zeros(())
    if options.estimator == "hash":
        return hashing.information(x, y, given, options)
    if options.estimator == "mst":
        return spanning.information(x, y, given, options.seed)
    x, y = standardise(x)[0], standardise(y)[0]
    freedom = float(n - 1)
    if given is not None:
        left = residuals(given, torch.cat([x, y], dim=1), options.ridge)
        x, y = left.child[:, : x.shape[1]], left.child[:, x.shape[1] :]
        freedom = max(1.0, n - left.used)
    if options.estimator == "gaussian":
        return gaussian.information(x, y, freedom, options.divergence)
    return _from_bins(_component(x), _component(y), freedom, options)


def _from_bins(x: Tensor, y: Tensor, freedom: float, options: Options) -> Tensor:
    code = codes(x[:, None], quantile_edges(x[:, None], options.bins))[:, 0]
    edges = quantile_edges(y[:, None], options.bins)
    rows = torch.cat([y, y.new_full((1,), torch.inf)])[:, None]
    shuffles = options.shuffles(len(x), x.device)
    orders = (runs(c, options.bins) for c in (code, *(code[shuffle] for shuffle in shuffles)))
    return correct_bias((joint_counts(rows[order], edges) for order in orders), options, freedom)[0]


def _component(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x[:, 0]
    first: Tensor = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    return x @ first
