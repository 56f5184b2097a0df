"""What the estimators of mutual information can be told, checked once."""

import warnings
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, final, get_args

import torch
from torch import Tensor

from nervure.core.check import require_choice
from nervure.dependence.divergences import OF_MASSES, Divergence
from nervure.dependence.samples import MEBIBYTE
from nervure.dependence.weighting import Phi
from nervure.errors import ArgumentError, NervureWarning

Estimator: TypeAlias = Literal["residual", "hash", "gaussian", "mst"]
Correction: TypeAlias = Literal["law", "permutation", "none"]

SHUFFLES = 5


class Choices(TypedDict, total=False):
    """What may be given by keyword, whatever is estimated; see :class:`Options`."""

    estimator: Estimator
    divergence: Divergence
    bins: int
    ridge: float
    correction: Correction | None
    smooth: bool
    faithful: bool
    seed: int


@final
@dataclass(frozen=True, slots=True)
class Options:
    """Settings common to the estimators; see :func:`nervure.dependence.conditional_connectivity`."""

    estimator: Estimator = "residual"
    divergence: Divergence = "henze-penrose"
    bins: int = 8
    ridge: float = 1e-3
    correction: Correction | None = None
    phi: Phi = "1"
    smooth: bool = True
    noise: float = 0.0
    faithful: bool = False
    memory: int = 256 * MEBIBYTE
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no estimator understands."""
        require_choice(self.estimator, get_args(Estimator), "estimator")
        require_choice(self.divergence, OF_MASSES, "divergence")
        require_choice(self.correction, (None, *get_args(Correction)), "correction")
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or not 2 <= self.bins <= 64:
            raise ArgumentError(f"bins={self.bins!r} must be a whole number from 2 to 64.")
        if not 0 <= self.noise < float("inf"):
            raise ArgumentError(
                f"noise={self.noise!r} must be 0 or more; it is relative to a child's standard deviation."
            )
        if self.estimator == "mst" and self.divergence != "henze-penrose":
            raise ArgumentError("estimator='mst' estimates divergence='henze-penrose' only.")
        if self.faithful and self.estimator != "hash":
            raise ArgumentError(f"faithful=True is about estimator='hash', not {self.estimator!r}.")

    @property
    def bias(self) -> Correction:
        """How bias is taken off: what was asked, or what suits the estimator."""
        if self.correction is not None:
            return self.correction
        if self.estimator != "hash":
            return "law"
        return "none" if self.faithful else "permutation"

    def shuffles(self, samples: int, device: torch.device) -> list[Tensor]:
        """Permutations of the samples for the permutation correction; none for the others."""
        if self.bias != "permutation":
            return []
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randperm(samples, generator=generator).to(device) for _ in range(SHUFFLES)]

    def drawn_noise(self, samples: int, device: torch.device) -> Tensor | None:
        """What is added to every child, the same for all so that their order does not matter; None for nothing."""
        if self.noise == 0:
            return None
        drawn = torch.randn(samples, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return self.noise * drawn.to(device)

    def warn_few(self, samples: int) -> None:
        """Warn where the bins outnumber what the samples can fill: the bias is then no longer small or known."""
        needed = 5 * self.bins**2
        if self.estimator == "residual" and samples < needed:
            warnings.warn(
                f"{samples} samples are few for {self.bins} x {self.bins} bins: {needed} are needed for 5 in a cell."
                f" Give more samples, or bins={max(2, int((samples / 5) ** 0.5))}.",
                NervureWarning,
                stacklevel=4,
            )
