"""The Pareto front of known points, and the knee of known curves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nervure.report.front import front, knee, level_costs

POINTS = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def test_the_front_of_known_points() -> None:
    points = [
        (1.0, 0.90),
        (0.5, 0.80),
        (0.6, 0.70),
        (0.2, 0.50),
        (0.2, 0.45),
        (0.9, 0.90),
        (math.nan, 1.0),
        (0.1, math.nan),
    ]
    assert front(points) == (3, 1, 5)
    assert front([]) == ()
    assert front([(0.5, 0.8), (0.5, 0.8)]) == (0,)


@given(POINTS)
def test_nothing_on_the_front_is_beaten_and_everything_else_is_or_is_there_already(
    points: list[tuple[float, float]],
) -> None:
    found = front(points)
    assert not any(beats(p, points[i]) for i in found for p in points)
    for i, point in enumerate(points):
        assert i in found or any(beats(points[j], point) or points[j] == point for j in found)
    assert sorted(found, key=lambda i: points[i]) == list(found)


@given(POINTS)
def test_the_front_does_not_depend_on_the_order(points: list[tuple[float, float]]) -> None:
    assert [points[i] for i in front(points)] == [points[::-1][i] for i in front(points[::-1])]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (lambda x: -1 / (x + 0.1) + 5, math.sqrt(0.11) - 0.1),  # figure 2 of the paper: the slope is that of the chord
        (np.sqrt, 0.25),
        (lambda x: np.minimum(4 * x, 0.9 + 0.1 * x), 0.9 / 3.9),
    ],
)
def test_the_knee_of_known_curves_whatever_their_scale(curve: object, expected: float) -> None:
    x = np.linspace(0, 1, 1001)
    y = curve(x)  # type: ignore[operator]
    for scale, shift in ((1.0, 0.0), (250.0, -3.0)):
        points = list(zip((scale * x + shift).tolist(), (0.01 * y + 0.9).tolist(), strict=True))
        place = knee(points)
        assert place is not None
        assert x[place] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("curve", [lambda x: x, lambda x: x**2])
def test_a_straight_or_hollow_front_has_no_knee(curve: object) -> None:
    x = np.linspace(0, 1, 11)
    assert knee(list(zip(x.tolist(), curve(x).tolist(), strict=True))) is None  # type: ignore[operator]
    assert knee([(0.1, 0.5), (0.4, 0.9)]) is None
    assert knee([]) is None


@given(st.lists(st.floats(1e-6, 1e6), max_size=12))
def test_costs_that_count_as_the_same_are_within_the_factor_and_keep_their_order(costs: list[float]) -> None:
    found = level_costs(costs, 1.02)
    assert all(level <= cost <= 1.02 * level * (1 + 1e-12) for level, cost in zip(found, costs, strict=True))
    assert sorted(found) == [level for _, level in sorted(zip(costs, found, strict=True))]
