"""Backward elimination against exhaustive search, and against least squares done anew."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from nervure.scores.elimination import ReaderProblem, eliminate

UNITS = 10


def problem(seed: int, *, outputs: int = 4, width: int = 1, noise: float = 0.3) -> ReaderProblem:
    """Inputs that have to do with each other, and weights of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = UNITS * width
    mixed = torch.randn(inputs, 4, generator=generator).double()
    moments = mixed @ mixed.T + noise * torch.eye(inputs, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=generator) * torch.rand(inputs, generator=generator) ** 2
    order = torch.randperm(inputs, generator=generator)
    return ReaderProblem(weight, moments, order.reshape(UNITS, width))


def loss_without(reader: ReaderProblem, gone: list[int]) -> float:
    """What is lost after the best refit of the others, from the normal equations."""
    columns = reader.columns[gone].flatten()
    columns = columns[columns >= 0]
    stays = torch.tensor([i for i in range(len(reader.moments)) if i not in columns.tolist()], dtype=torch.long)
    weight, s = reader.weight.double(), reader.moments
    left: Tensor = s[columns[:, None], columns]
    if len(stays):
        cross = s[stays[:, None], columns]
        left = left - cross.T @ torch.linalg.solve(s[stays[:, None], stays], cross)
    part = weight[:, columns]
    return float(torch.trace(part @ left @ part.T))


@pytest.mark.parametrize("readers", [[problem(0)], [problem(1, width=3)], [problem(2), problem(3, outputs=20)]])
def test_each_step_removes_what_is_then_cheapest_and_costs_what_a_refit_loses(readers: list[ReaderProblem]) -> None:
    order, costs = eliminate(readers, UNITS)
    gone: list[int] = []
    for unit, lost in zip(order.tolist(), costs.cumsum(0).tolist(), strict=True):
        others = [u for u in range(UNITS) if u not in gone]
        losses = {u: sum(loss_without(reader, [*gone, u]) for reader in readers) for u in others}
        assert losses[unit] == pytest.approx(min(losses.values()), rel=1e-6)
        assert lost == pytest.approx(losses[unit], rel=1e-6)
        gone.append(unit)


@pytest.mark.parametrize("seed", range(3))
def test_the_greedy_order_is_near_the_best_of_all_sets(seed: int) -> None:
    reader = problem(seed)
    lost = eliminate([reader], UNITS).costs.cumsum(0)
    for count in range(1, UNITS):
        best = min(loss_without(reader, list(gone)) for gone in combinations(range(UNITS), count))
        assert best - 1e-9 <= float(lost[count - 1]) <= 1.3 * best


def test_of_two_that_are_the_same_one_costs_nothing_and_the_other_all() -> None:
    moments = torch.eye(UNITS, dtype=torch.float64)
    moments[0, 1] = moments[1, 0] = 1 - 1e-9
    reader = ReaderProblem(torch.ones(1, UNITS), moments, torch.arange(UNITS)[:, None])
    order, costs = eliminate([reader], UNITS)
    assert order[0] in (0, 1)
    assert float(costs[0]) == pytest.approx(0, abs=1e-6)
    assert float(costs[(order == 1 - int(order[0])).nonzero()]) >= 1


def test_units_that_hold_fewer_inputs_or_none_are_priced_by_those_they_hold() -> None:
    whole = problem(0, width=2)
    columns = whole.columns.clone()
    columns[3, 1], columns[5] = -1, -1
    ragged = ReaderProblem(whole.weight, whole.moments, columns)
    order, costs = eliminate([ragged], UNITS)
    assert (int(order[0]), float(costs[0])) == (5, 0.0)
    assert float(costs.sum()) == pytest.approx(loss_without(ragged, list(range(UNITS))), rel=1e-6)


@pytest.mark.parametrize("width", [1, 3])
def test_blocks_change_the_order_little(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = 120 * width
    mixed = torch.randn(inputs, inputs // 2, generator=generator).double()
    moments = mixed @ mixed.T / inputs + 0.01 * torch.eye(inputs)
    columns = torch.arange(inputs).reshape(-1, width)
    reader = ReaderProblem(torch.randn(30, inputs, generator=generator), moments, columns)
    exact, blocks = eliminate([reader], 120, 10**6), eliminate([reader], 120, 48)
    assert sorted(blocks.order.tolist()) == list(range(120))
    assert float(blocks.costs[:60].sum()) <= 1.1 * float(exact.costs[:60].sum())
    assert float(blocks.costs.sum()) == pytest.approx(float(exact.costs.sum()), rel=1e-6)


def test_of_several_views_each_step_removes_what_is_then_cheapest_in_all_of_them() -> None:
    views = [problem(4), replace(problem(5), view=1), replace(problem(6, outputs=7), view=1)]
    order, costs = eliminate(views, UNITS)
    gone: list[int] = []
    spent = {0: 0.0, 1: 0.0}
    for unit, price in zip(order.tolist(), costs.tolist(), strict=True):
        others = [u for u in range(UNITS) if u not in gone]
        lost = {
            u: {v: sum(loss_without(r, [*gone, u]) for r in views if r.view == v) - spent[v] for v in spent}
            for u in others
        }
        prices = {u: max(each.values()) for u, each in lost.items()}
        assert prices[unit] == pytest.approx(min(prices.values()), rel=1e-6)
        assert price == pytest.approx(prices[unit], rel=1e-6)
        spent = {v: spent[v] + lost[unit][v] for v in spent}
        gone.append(unit)


def test_the_same_view_twice_is_one() -> None:
    readers = [problem(2), problem(3, outputs=20)]
    once, twice = (
        eliminate(readers, UNITS),
        eliminate([*readers, *(replace(r, view=1) for r in readers)], UNITS),
    )
    assert torch.equal(once.order, twice.order)
    assert torch.allclose(once.costs, twice.costs, rtol=1e-9)
