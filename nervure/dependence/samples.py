"""Samples as the measures of dependence want them: the first axis counts, every value is a finite number."""

from typing import Final

import torch
from torch import Tensor

from nervure.dependence.distances import samples_of
from nervure.errors import ArgumentError, DataError

MEBIBYTE: Final = 2**20
DEAD: Final = 1e-6
"""A variable whose standard deviation is below this says nothing: it is never divided by, and scores 0."""


def as_samples(values: Tensor, name: str) -> Tensor:
    """``values`` [N] or [N, ...] as finite float64 [N, variables]; whole numbers are taken as they are.

    Raises:
        DataError: no real tensor, fewer than 2 samples, or NaN or infinite values (in how many samples is said).
    """
    samples = samples_of(values, name)
    if len(samples) < 2 or samples.shape[1] == 0:
        raise DataError(f"{name} has shape {tuple(values.shape)}: at least 2 samples of 1 variable are needed.")
    return samples.to(torch.float64)


def require_same_samples(**samples: Tensor) -> int:
    """The number of samples all share, else :class:`DataError` with each one's."""
    counts = {name: len(values) for name, values in samples.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise DataError(f"sample counts differ: {told}. Row n of each must come from the same input.")
    return next(iter(counts.values()))


def result_type(*values: Tensor) -> torch.dtype:
    """The dtype of an answer about ``values``: float64 where one of them is, float32 otherwise."""
    return torch.float64 if any(v.dtype == torch.float64 for v in values) else torch.float32


def standardise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Columns with mean 0 and standard deviation 1, and which of them are alive; the dead are all 0."""
    centred = values - values.mean(0)
    spread = centred.square().mean(0).sqrt()
    alive = spread >= DEAD
    return torch.where(alive, centred / torch.where(alive, spread, 1.0), 0.0), alive


def tile_size(memory: int, each: int, count: int, at_least: int = 1) -> int:
    """How many of ``count`` items fit in ``memory`` bytes at ``each`` bytes.

    Raises:
        ArgumentError: fewer than ``at_least`` fit; the message says how many bytes are the least.
    """
    fit = int(memory) // each
    if fit < min(at_least, count):
        raise ArgumentError(
            f"memory={memory} bytes hold no tile of this work: it needs at least {each * min(at_least, count)} bytes."
        )
    return min(fit, count)
