"""Optimal k-means on a line: Wang and Song, "Ckmeans.1d.dp: optimal k-means clustering in one dimension" (2011)."""

from collections.abc import Sequence

import numpy as np

from nervure.errors import ArgumentError


def line_clusters(values: Sequence[float], clusters: int) -> tuple[tuple[int, ...], ...]:
    """Split numbers into ``clusters`` groups with the least sum of squared distances to their means.

    Dynamic programming over the sorted numbers, so the answer is the optimum and the same at every call; equal numbers
    are taken in the order in which they stand, and of equally good splits the one with the lower first borders.

    >>> line_clusters([1.0, 9.0, 1.2, 8.0], 2)
    ((0, 2), (3, 1))

    Args:
        values: finite numbers.
        clusters: 1 .. as many as there are numbers.

    Returns:
        For each cluster, from the lowest numbers to the highest, the places of its members in ``values``.

    Raises:
        ArgumentError: a number is not finite, or ``clusters`` is out of range.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ArgumentError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are NaN or infinite.")
    if not 1 <= clusters <= len(numbers):
        raise ArgumentError(f"clusters={clusters!r} must be 1 .. {len(numbers)}, the number of values.")
    order = np.argsort(numbers, kind="stable")
    spread, count = _spreads(numbers[order]), len(numbers)
    cost = spread[0].copy()
    starts = np.zeros((clusters, count), dtype=np.int64)
    for k in range(1, clusters):
        # cost[last] of k + 1 clusters: the last one begins at start, those before end at start - 1.
        options = np.full((count, count), np.inf)
        options[1:] = cost[:-1, None] + spread[1:]
        options[:k] = np.inf
        starts[k], cost = options.argmin(0), options.min(0)
    return _members(order, starts)


def _spreads(numbers: np.ndarray) -> np.ndarray:
    """Sum of squared distances to their mean of ``numbers[i .. j]`` for every i <= j, infinite below. Shape [n, n]."""
    count = len(numbers)
    # Centred and scaled first: prefix sums of squares would cancel for numbers far from zero.
    scaled = numbers - numbers.mean()
    scaled = scaled / max(float(np.abs(scaled).max()), 1e-300)
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (scaled, scaled**2))
    i, j = np.arange(count)[:, None], np.arange(count)[None]
    size = np.maximum(j - i + 1, 1)
    total = sums[j + 1] - sums[i]
    found = np.maximum(squares[j + 1] - squares[i] - total**2 / size, 0.0)
    return np.where(i <= j, found, np.inf)


def _members(order: np.ndarray, starts: np.ndarray) -> tuple[tuple[int, ...], ...]:
    found, stop = [], len(order)
    for k in reversed(range(len(starts))):
        start = int(starts[k, stop - 1])
        found.append(tuple(order[start:stop].tolist()))
        stop = start
    return tuple(reversed(found))
