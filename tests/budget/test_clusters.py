"""Optimal k-means on a line against trying every split."""

from itertools import combinations

import numpy as np
import pytest

from nervure.budget.clusters import line_clusters
from nervure.errors import ArgumentError


def cost(values: np.ndarray, clusters: tuple[tuple[int, ...], ...]) -> float:
    return float(sum(((values[list(c)] - values[list(c)].mean()) ** 2).sum() for c in clusters))


def best(values: np.ndarray, k: int) -> float:
    """The least cost over all ways to cut the sorted numbers into k pieces."""
    order = np.argsort(values)
    cuts = combinations(range(1, len(values)), k - 1)
    return min(cost(values, tuple(tuple(p) for p in np.split(order, c))) for c in cuts)


@pytest.mark.parametrize("seed", range(6))
def test_the_split_is_the_best_there_is(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=4 + seed) ** 3 + 1e6 * (seed == 5)
    for k in range(1, len(values) + 1):
        found = line_clusters(values, k)
        assert len(found) == k
        assert sorted(i for c in found for i in c) == list(range(len(values)))
        assert cost(values, found) == pytest.approx(best(values, k), rel=1e-6, abs=1e-9)


def test_clusters_go_from_low_to_high_and_equal_numbers_keep_their_order() -> None:
    assert line_clusters([5.0, 1.0, 5.0, 1.0], 2) == ((1, 3), (0, 2))
    assert line_clusters([2.0, 2.0, 2.0], 3) == ((0,), (1,), (2,))
    assert line_clusters([1e-9, 2e-9, 9e-9], 2) == ((0, 1), (2,))


@pytest.mark.parametrize(("values", "k"), [([1.0, 2.0], 3), ([1.0], 0), ([1.0, float("nan")], 1)])
def test_what_cannot_be_split_is_refused(values: list[float], k: int) -> None:
    with pytest.raises(ArgumentError):
        line_clusters(values, k)
