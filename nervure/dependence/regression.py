"""What is left of variables when others have explained what they can: every pair at the price of one regression.

The Frisch-Waugh theorem: with ``T = (P'P + ridge)^-1`` and ``B = T P'X``, the residual of parent i given all the other
parents is ``P T[:, i] / T[i, i]``, and the residual of child j given the same others is
``(X - P B)[:, j] + B[i, j] R[:, i]``. Both hold for the ridge regression too.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.dependence.samples import DEAD, standardise
from nervure.errors import ArgumentError


@final
@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """``child[:, j] + slope[i, j] * parent[:, i]`` and ``parent[:, i]`` are free of the other parents.

    Attributes:
        parent: [N, parents], each parent given all the others, in units of its own standard deviation.
        child: [N, children], each child given all parents, in units of its own standard deviation.
        slope: [parents, children], what a child owes to a parent alone.
        freedom: degrees of freedom left to a pair: N less what the regression on the others used, at least 1.
        alive: [parents], whether anything is left of a parent.
        used: degrees of freedom of the whole regression.
    """

    parent: Tensor
    child: Tensor
    slope: Tensor
    freedom: float
    alive: Tensor
    used: float


def residuals(parents: Tensor, children: Tensor, ridge: float, noise: Tensor | None = None) -> Residuals:
    """Every parent given the others, and every child given all of them.

    Args:
        parents: [N, parents] float64.
        children: [N, children] float64.
        ridge: strength relative to a parent's variance, at least 0.
        noise: [N] added to every standardised child, less what the parents explain of it.

    Raises:
        ArgumentError: ``ridge`` is negative, or 0 where the parents are linearly dependent.
    """
    if not ridge >= 0:
        raise ArgumentError(f"ridge={ridge!r} must be 0 or more.")
    n = len(parents)
    p, heard = standardise(parents)
    x, _ = standardise(children)
    gram = p.T @ p
    weight = _inverse(gram + torch.diag(torch.where(heard, ridge * n, float(n))), ridge)
    slope = weight @ (p.T @ x)
    parent = (p @ weight) / weight.diagonal()
    alive = heard & (parent.square().mean(0).sqrt() >= DEAD)
    used = 1 + float((gram * weight).sum())
    others = used - (used - 1) / parents.shape[1]
    child = x - p @ slope
    if noise is not None:
        child = child + (noise - p @ (weight @ (p.T @ noise)))[:, None]
    return Residuals(parent, child, slope, max(1.0, n - others), alive, used)


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(gram)
    diagonal = factor.diagonal()
    if int(failed) or bool(diagonal.min() < 1e-7 * diagonal.max()):
        raise ArgumentError(
            f"ridge={ridge!r} leaves the regression on {len(gram)} variables singular: some are linear combinations of "
            "others, or there are more variables than samples. Give a larger ridge, such as 1e-3."
        )
    return torch.cholesky_inverse(factor)
