"""Connectivity scores weighted by what joins the pair: the factor phi of adaptive mutual information."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError

Phi: TypeAlias = Literal[
    "1",
    "w",
    "w^2",
    "act",
    "act^2",
    "w*act",
    "(w*act)^2",
    "exp(-w^2/2)",
    "exp(-act^2/2)",
    "exp(-(w*act)^2/2)",
]
Factor: TypeAlias = Callable[[Tensor], Tensor]

ON_WEIGHT: Final[Mapping[str, Factor]] = {
    "w": lambda w: w,
    "w^2": torch.square,
    "w*act": lambda w: w,
    "(w*act)^2": torch.square,
    "exp(-w^2/2)": lambda w: torch.exp(-w.square() / 2),
    "exp(-(w*act)^2/2)": lambda w: torch.exp(-w.square() / 2),
}
"""What multiplies a score, from the pair's weight in [0, 1]; the others multiply by 1."""

ON_ACTIVITY: Final[Mapping[str, Factor]] = {
    "act": lambda a: a,
    "act^2": torch.square,
    "w*act": lambda a: a,
    "(w*act)^2": torch.square,
    "exp(-act^2/2)": lambda a: torch.exp(-a.square() / 2),
    "exp(-(w*act)^2/2)": lambda a: torch.exp(-a.square() / 2),
}
"""What multiplies a term of the sum over hash cells, from the product of the norms of its codes."""

PHIS: Final = ("1", *dict.fromkeys((*ON_WEIGHT, *ON_ACTIVITY)))


def pair_weights(weights: Tensor, groups: tuple[int, int], channels: tuple[int, int], *, signed: bool) -> Tensor:
    """How strongly each pair of groups is joined, in [0, 1] of the layer's strongest.

    Args:
        weights: [children, parents, ...]; further axes (kernel positions) are averaged.
        groups: how many groups of children and of parents.
        channels: how many children and parents.
        signed: rescale signed weights from their least to their greatest, as first published, instead of magnitudes.

    Returns:
        [child groups, parent groups] float64.
    """
    if weights.shape[:2] != channels:
        raise DataError(f"weights have shape {tuple(weights.shape)}; {channels} children and parents were given.")
    w = weights.detach().to(torch.float64).reshape(*channels, -1)
    if not bool(torch.isfinite(w).all()):
        raise DataError(f"weights: {int((~torch.isfinite(w)).sum())} of {w.numel()} values are NaN or infinite.")
    if signed:
        low, high = w.min(), w.max()
        w = (w - low) / (high - low).clamp(min=1e-12)
    else:
        w = w.abs()
    blocks = w.reshape(groups[0], channels[0] // groups[0], groups[1], channels[1] // groups[1], -1).mean((1, 3, 4))
    return blocks if signed else blocks / blocks.max().clamp(min=1e-30)


def require_phi(phi: str, *, weighted: bool, hashed: bool) -> None:
    """Refuse a factor that is unknown, or that needs what is not there."""
    if phi not in PHIS:
        raise ArgumentError(f"phi={phi!r} is not one of {', '.join(map(repr, PHIS))}.")
    if phi in ON_WEIGHT and not weighted:
        raise ArgumentError(f"phi={phi!r} needs the weights that join children and parents: give weights=.")
    if phi in ON_ACTIVITY and not hashed:
        raise ArgumentError(f"phi={phi!r} weights hash codes: it needs estimator='hash'.")
