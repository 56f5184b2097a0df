"""Choosing the highest of many scores without sorting gives what sorting them all in double precision gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nervure.budget import radix_select
from nervure.budget.connection_masks import LayerBudget, allocate_connections
from nervure.budget.radix_select import add_highest, highest_by_place, highest_of_rows
from nervure.budget.weight_masks import n_of_m, sparse_masks, within_rows

VALUES = (0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 0.1, -1e-40, 1e-40, 3e38, -3e38, 2.0, 2.5)
SHAPES = ((3, 4, 1), (2, 5, 3), (1, 7, 1), (4, 8, 1))


def draw(seed: int, *, dtype: torch.dtype, ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, shape in enumerate(SHAPES):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if ties:
            chosen = torch.randint(len(VALUES), shape, generator=generator)
            values = torch.tensor(VALUES, dtype=torch.float64)[chosen]
        found[str(number)] = values.to(dtype)
    return found


def sort_all(scores: dict[str, Tensor], fixed: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """What the library did before: one stable sort of everything in double precision."""
    flat = np.concatenate([s.double().numpy().reshape(-1) for s in scores.values()])
    stays = np.concatenate([f.numpy().reshape(-1) for f in fixed.values()])
    order = np.argsort(-flat, kind="stable")
    stays[order[~stays[order]][:count]] = True
    parts = torch.from_numpy(stays).split([s.numel() for s in scores.values()])
    return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def some(scores: dict[str, Tensor], seed: int, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(s.shape, generator=generator) < share for name, s in scores.items()}


cases = given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
    fixed_share=st.sampled_from([0.0, 0.1, 0.6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    ties=st.booleans(),
    chunk=st.sampled_from([1, 5, 1 << 17]),
)


@cases
def test_the_highest_of_all_are_those_that_a_stable_sort_puts_first(
    seed: int, share: float, fixed_share: float, dtype: torch.dtype, ties: bool, chunk: int
) -> None:
    scores = draw(seed, dtype=dtype, ties=ties)
    fixed = some(scores, seed + 1, fixed_share)
    free = sum(int((~f).sum()) for f in fixed.values())
    count = round(share * free)
    masks = {name: f.clone().reshape(-1) for name, f in fixed.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radix_select, "CHUNK", chunk)
        add_highest(scores, masks, count)
    for name, expected in sort_all(scores, fixed, count).items():
        assert torch.equal(masks[name].reshape(expected.shape), expected)


@cases
def test_places_in_rows_come_first_as_they_do_where_all_is_sorted(
    seed: int, share: float, fixed_share: float, dtype: torch.dtype, ties: bool, chunk: int
) -> None:
    for scores in draw(seed, dtype=dtype, ties=ties).values():
        fixed = some({"": scores}, seed + 1, fixed_share)[""]
        count = round(share * int((~fixed).sum()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(radix_select, "CHUNK", chunk)
            found = highest_by_place(scores.flatten(1), fixed.flatten(1), count).reshape(scores.shape)
        assert torch.equal(found, sort_all({"": within_rows(scores)}, {"": fixed}, count)[""])


@cases
def test_n_of_m_are_those_that_a_stable_sort_of_each_row_puts_first(
    seed: int, share: float, fixed_share: float, dtype: torch.dtype, ties: bool, chunk: int
) -> None:
    scores = draw(seed, dtype=dtype, ties=ties)["3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radix_select, "CHUNK", chunk)
        found = n_of_m({"": scores}, 2, 4)[""]
        assert int(highest_of_rows(scores.flatten(1), 3).sum()) == 3 * len(scores)
    rows = scores.reshape(-1, 4)
    order = rows.argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, order[:, :2], True)
    assert torch.equal(found.reshape(-1, 4), expected)


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("density", [0.05, 0.31, 0.5, 0.93])
def test_weights_by_row_are_those_of_scores_that_say_their_place(distribution: str, density: float) -> None:
    scores = draw(3, dtype=torch.float32, ties=False)
    places = {name: within_rows(s) for name, s in scores.items()}
    how = {"density": density, "distribution": distribution}
    found, expected = sparse_masks(scores, **how, by_row=True), sparse_masks(places, **how)  # type: ignore[arg-type]
    assert all(torch.equal(found[name], expected[name]) for name in scores)


@pytest.mark.parametrize("fixed_share", [0.0, 0.2])
@pytest.mark.parametrize("most", [3, 6, 99])
def test_connections_at_one_price_are_as_those_at_prices_that_differ_by_nothing_that_counts(
    most: int, fixed_share: float
) -> None:
    scores = draw(5, dtype=torch.float32, ties=True)
    fixed = some(scores, 6, fixed_share)

    def buy(last: int) -> dict[str, Tensor]:
        stalls = {n: LayerBudget(s, torch.full(s.shape, 6), fixed[n], most) for n, s in scores.items()}
        # A connection that stays anyway, at another price, sends the rest the slow way.
        free = LayerBudget(torch.ones(1, 1), torch.full((1, 1), last), torch.ones(1, 1, dtype=torch.bool), 1)
        return allocate_connections({**stalls, "free": free}, 6 * 75 + last)

    fast, slow = buy(6), buy(7)
    assert all(torch.equal(fast[name], slow[name]) for name in scores)
    assert sum(int(fast[name].sum()) for name in scores) == 75


def test_a_mapping_that_makes_its_tensors_is_enough() -> None:
    scores = draw(8, dtype=torch.float32, ties=False)

    class Made(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            return super().__getitem__(name).abs()

    whole = {name: s.abs() for name, s in scores.items()}
    found, expected = (sparse_masks(s, density=0.4) for s in (Made(whole), whole))
    assert all(torch.equal(found[name], expected[name]) for name in scores)
