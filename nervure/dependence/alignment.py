"""Similarity of two representations of the same samples: HSIC and centred kernel alignment."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from nervure.core.check import checked, require_choice
from nervure.dependence.samples import as_samples, require_same_samples, result_type
from nervure.errors import ArgumentError, DataError

Kernel: TypeAlias = Literal["linear", "rbf"]


@checked
def hsic(x: Tensor, y: Tensor, *, kernel: Kernel = "linear", bandwidth: float = 0.5, unbiased: bool = True) -> Tensor:
    """Hilbert-Schmidt independence criterion of two representations.

    Args:
        x: [N, p] or [N], samples first.
        y: [N, q] or [N], of the same samples.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: of the RBF kernel, as a multiple of the median distance between samples.
        unbiased: the estimator of Song et al. (JMLR 2012), which averages 0 under independence and may be negative; it
            needs 4 samples. Otherwise tr(KHLH)/(N-1)^2 of Gretton et al. (2005), at least 0.

    Returns:
        A scalar on the input's device, float64 where an input is and float32 otherwise.

    Raises:
        ArgumentError: an argument is outside its range.
        DataError: NaN or infinite values, different numbers of samples, or too few.
    """
    k, ell = (_gram(v, kernel, bandwidth, unbiased=unbiased) for v in _pair(x, y, unbiased=unbiased))
    n = len(k)
    scale = n * (n - 3) if unbiased else (n - 1) ** 2
    return ((k * ell).sum() / scale).to(result_type(x, y))


@checked
def cka(x: Tensor, y: Tensor, *, kernel: Kernel = "linear", bandwidth: float = 0.5, debiased: bool = True) -> Tensor:
    """Centred kernel alignment (Kornblith et al., arXiv:1905.00414): HSIC over its value for each with itself.

    It does not change when a representation is turned, mirrored or scaled as a whole.

    Args:
        x: [N, p] or [N], samples first.
        y: [N, q] or [N], of the same samples.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: of the RBF kernel, as a multiple of the median distance between samples.
        debiased: from unbiased HSICs (Nguyen et al., arXiv:2010.15327): near 0 for independent representations however
            few the samples, where the plain one comes near 1.

    Returns:
        A scalar, at most 1; at least 0 when not debiased. 0 where a representation is constant.

    Raises:
        ArgumentError: an argument is outside its range.
        DataError: NaN or infinite values, different numbers of samples, or too few.

    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(float(cka(x, 2 * x)), 4)
    1.0
    """
    k, ell = (_gram(v, kernel, bandwidth, unbiased=debiased) for v in _pair(x, y, unbiased=debiased))
    scale = k.norm() * ell.norm()
    return torch.where(scale > 0, (k * ell).sum() / torch.where(scale > 0, scale, 1.0), 0.0).to(result_type(x, y))


def _pair(x: Tensor, y: Tensor, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    a, b = as_samples(x, "x"), as_samples(y, "y")
    n = require_same_samples(x=a, y=b)
    if unbiased and n < 4:
        raise DataError(
            f"{n} samples are too few for the unbiased estimate, which needs 4. Give more, or ask for the plain one."
        )
    return a, b


def _gram(values: Tensor, kernel: Kernel, bandwidth: float, *, unbiased: bool) -> Tensor:
    """The centred Gram matrix [N, N]; U-centred, with no diagonal, where the unbiased estimate is wanted.

    The sum of products of two U-centred matrices is N (N - 3) times the unbiased HSIC (Szekely and Rizzo 2014).
    """
    require_choice(kernel, ("linear", "rbf"), "kernel")
    if not bandwidth > 0:
        raise ArgumentError(f"bandwidth={bandwidth!r} must be above 0: it multiplies the median distance.")
    centred = values - values.mean(0)
    gram = centred @ centred.T if kernel == "linear" else _rbf(centred, bandwidth)
    n = len(gram)
    if not unbiased:
        rows = gram.mean(1)
        return gram - rows[:, None] - rows[None] + rows.mean()
    gram = gram.fill_diagonal_(0)
    rows = gram.sum(1)
    gram = gram - (rows[:, None] + rows[None]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)


def _rbf(values: Tensor, bandwidth: float) -> Tensor:
    squares = torch.cdist(values, values).square()
    upper = squares[tuple(torch.triu_indices(len(values), len(values), 1, device=values.device))]
    typical = upper.median().clamp(min=1e-300)
    return torch.exp(-squares / (2 * bandwidth**2 * typical))
