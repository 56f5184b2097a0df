"""Dependence of variables taken for jointly Gaussian: correlation is all there is."""

import torch
from torch import Tensor

from nervure.dependence.divergences import Divergence, of_correlation
from nervure.dependence.regression import Residuals


def connectivity(left: Residuals, divergence: Divergence) -> Tensor:
    """Scores [children, parents] in float64 from partial correlations, each less what chance alone gives it."""
    # With a ridge the two parts of a child's residual are not quite orthogonal.
    slope, crossed = left.slope.T, left.child.T @ left.parent / len(left.parent)
    heard, told = left.parent.square().mean(0), left.child.square().mean(0)[:, None]
    shared = crossed + slope * heard
    whole = told + 2 * slope * crossed + slope.square() * heard
    squared = (shared.square() / (heard * whole).clamp(min=1e-300)).clamp(max=1)
    values = of_correlation(remove_bias(squared, left.freedom).sqrt(), divergence)
    return torch.where(left.alive, values, torch.zeros_like(values))


def remove_bias(squared: Tensor, freedom: float) -> Tensor:
    """Squared correlations less their expectation under independence, 1 / freedom, at least 0; 1 stays 1."""
    chance = 1 / max(freedom, 2)
    return ((squared - chance) / (1 - chance)).clamp(min=0)


def information(x: Tensor, y: Tensor, freedom: float, divergence: Divergence) -> Tensor:
    """The divergence for two vectors [N, p] and [N, q] with mean 0, from their canonical correlations.

    Shannon's is the sum over them; Henze-Penrose's, which does not add up, is that of one pair with as much
    Shannon information.
    """
    correlations = torch.linalg.svdvals(_whiten(x).T @ _whiten(y))
    if min(x.shape[1], y.shape[1]) == 1:
        # One variable on p others: what chance gives is p / freedom, the adjusted coefficient of determination.
        squared = remove_bias(correlations[:1].square(), freedom / max(x.shape[1], y.shape[1]))
    else:
        squared = remove_bias(correlations.square(), freedom)
    whole = -torch.expm1(torch.log1p(-squared.clamp(max=1 - 1e-15)).sum())
    return of_correlation(whole.sqrt(), divergence)


def _whiten(x: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    full: Tensor = u[:, s > s[0] * 1e-7]
    return full if float(s[0]) > 0 else x[:, :1] * 0
