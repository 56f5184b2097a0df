"""Giving things up for a saving, against trying all selections."""

import itertools
import random

import pytest

from nervure.budget.knapsack import frontier
from nervure.errors import ArgumentError


def brute(losses: list[float], savings: list[float], wanted: float) -> float:
    return min(
        sum(losses[i] for i in chosen)
        for r in range(len(losses) + 1)
        for chosen in itertools.combinations(range(len(losses)), r)
        if sum(savings[i] for i in chosen) >= wanted
    )


@pytest.mark.parametrize("seed", range(8))
def test_for_every_saving_the_first_that_is_enough_loses_least(seed: int) -> None:
    draw = random.Random(seed)
    losses = [draw.random() for _ in range(7)]
    savings = [float(draw.randint(0, 9)) for _ in range(7)]
    found = frontier(losses, savings)
    for wanted in range(int(sum(savings)) + 1):
        first = next(s for s in found if sum(savings[i] for i in s) >= wanted)
        assert sum(losses[i] for i in first) == pytest.approx(brute(losses, savings, wanted))


def test_savings_and_losses_rise_from_nothing_to_everything() -> None:
    draw = random.Random(1)
    losses, savings = [draw.random() for _ in range(30)], [draw.random() for _ in range(30)]
    found = frontier(losses, savings)
    assert (found[0], found[-1]) == ((), tuple(range(30)))
    for values in (losses, savings):
        sums = [sum(values[i] for i in s) for s in found]
        assert sums == sorted(sums)


def test_few_selections_are_followed_where_there_are_many_and_little_is_lost() -> None:
    draw = random.Random(2)
    losses, savings = [draw.random() for _ in range(12)], [draw.random() for _ in range(12)]
    coarse, wanted = frontier(losses, savings, resolution=50), 0.5 * sum(savings)
    assert len(coarse) <= 52
    first = next(s for s in coarse if sum(savings[i] for i in s) >= wanted)
    assert brute(losses, savings, wanted) <= sum(losses[i] for i in first) < 1.1 * brute(losses, savings, wanted)


def test_what_is_worth_nothing_is_not_given_up_without_need() -> None:
    assert frontier([0.0, -1.0, 5.0], [1, 1, 1]) == [(), (1,), (0, 1), (0, 1, 2)]
    assert frontier([0.0, 0.0], [2, 2]) == [(), (1,), (0, 1)]


def test_of_equal_things_the_first_stay() -> None:
    assert frontier([3.0, 1.0, 1.0, 2.0], [1] * 4)[1] == (2,)


def test_what_cannot_be_is_refused() -> None:
    assert frontier([], []) == [()]
    for losses, savings in (([1.0], []), ([float("nan")], [1.0]), ([1.0], [float("inf")]), ([1.0], [-1.0])):
        with pytest.raises(ArgumentError):
            frontier(losses, savings)
    with pytest.raises(ArgumentError, match="resolution"):
        frontier([1.0], [1.0], resolution=0)
