"""Class-balanced draws: which samples of a labelled set are taken, fixed by a seed."""

import numpy as np
import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError


def require_seed(seed: int, name: str = "seed") -> int:
    """Return ``seed`` if it is a whole number, 0 or more; else raise :class:`ArgumentError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError(f"{name}={seed!r} must be a whole number, 0 or more.")
    return seed


def draw_fraction(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split sample indices in two, every class in the same proportion.

    Args:
        labels: int64 [samples].
        fraction: share of every class that is drawn, in (0, 1); at least one sample of a class is drawn and one left.
        seed: fixes the draw.

    Returns:
        (left, drawn): two sorted int64 index vectors that are disjoint and together complete.

    Raises:
        ArgumentError: fraction outside (0, 1), or a negative seed.
        DataError: a class has a single sample, which cannot be on both sides.
    """
    if isinstance(fraction, bool) or not 0 < fraction < 1:
        raise ArgumentError(
            f"validation={fraction!r} is not in (0, 1). It is the share of the training images held out, as in 0.1."
        )
    shuffled = np.random.default_rng(require_seed(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels.numpy()[by_class], return_index=True, return_counts=True)
    if counts.min() < 2:
        lonely = int(labels[int(by_class[starts[counts.argmin()]])])
        raise DataError(f"Class {lonely} has a single image; two are needed, one to train on and one to hold out.")
    take = np.clip(np.round(counts * fraction).astype(np.int64), 1, counts - 1)
    is_drawn = np.zeros(len(labels), dtype=bool)
    for start, count in zip(starts, take, strict=True):
        is_drawn[by_class[start : start + count]] = True
    return torch.from_numpy(np.flatnonzero(~is_drawn)), torch.from_numpy(np.flatnonzero(is_drawn))


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of the first ``count`` samples of every class, in the order of ``labels`` [samples].

    Raises:
        DataError: a class has fewer than ``count`` samples.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise DataError(f"Class {label} has {len(members)} images, fewer than the {count} asked for.")
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))
