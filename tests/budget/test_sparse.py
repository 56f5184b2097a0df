"""Densities, patterns and exact counts, on numbers alone."""

import pytest
import torch

from nervure.budget.weight_masks import distribute, erk, n_of_m, sparse_masks, within_rows
from nervure.budget.weights import Pattern
from nervure.errors import ArgumentError, BudgetError, ScoreError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def counts(masks: dict[str, torch.Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("density", [0.013, 0.1, 1 / 3, 0.5, 0.977])
def test_exactly_as_many_weights_stay_as_were_asked_for_even_where_all_scores_are_equal(
    density: float, distribution: str
) -> None:
    scores = {"a": torch.ones(7, 3, 9), "b": torch.ones(11, 7, 1), "c": torch.ones(5, 77, 1)}
    masks = sparse_masks(scores, density=density, distribution=distribution)  # type: ignore[arg-type]
    assert sum(counts(masks)) == round(density * (189 + 77 + 385))


def test_ties_go_to_the_earlier_tensor_and_the_lower_index() -> None:
    masks = sparse_masks({"a": torch.ones(1, 2, 1), "b": torch.ones(1, 2, 1)}, density=0.75)
    assert masks["a"].flatten().tolist() == [True, True]
    assert masks["b"].flatten().tolist() == [True, False]


def test_shares_are_in_proportion_and_what_a_full_layer_leaves_goes_to_the_others() -> None:
    assert distribute([100, 50, 10], [1, 1, 50], 40, [0, 0, 0]) == [20, 10, 10]
    assert distribute([10, 10, 10], [1, 1, 1], 10, [0, 0, 0]) == [4, 3, 3]
    assert distribute([10, 100], [1, 1], 11, [5, 0]) == [5, 6]
    assert distribute([3, 4], [1, 2], 7, [0, 0]) == [3, 4]


def test_shares_sum_exactly_within_their_limits() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        sizes = torch.randint(1, 1000, (9,), generator=generator).tolist()
        floors = [size // 20 for size in sizes]
        weights = (torch.rand(9, generator=generator) * 10).tolist()
        budget = int(torch.randint(sum(floors), sum(sizes) + 1, (1,), generator=generator))
        found = distribute(sizes, weights, budget, floors)
        assert sum(found) == budget
        assert all(low <= n <= high for low, n, high in zip(floors, found, sizes, strict=True))


def test_erdos_renyi_kernels_have_the_densities_of_the_published_formula() -> None:
    scores = {"conv": torch.ones(8, 4, 9), "fc": torch.ones(10, 20, 1)}
    found = erk(scores, {"conv": (3, 3), "fc": ()})
    assert found == pytest.approx({"conv": (8 + 4 + 3 + 3) / (8 * 4 * 9), "fc": 30 / 200})
    masks = sparse_masks(scores, density=0.2, distribution="erk", kernels={"conv": (3, 3), "fc": ()})
    # 0.2 * 488 weights in proportion 18 to 30.
    assert counts(masks) == [round(97.6 * 18 / 48), 98 - round(97.6 * 18 / 48)]


def test_whole_kernels_stay_or_go_and_those_with_the_highest_mean_stay() -> None:
    scores = noise(4, 5, 9)
    mask = sparse_masks({"a": scores}, density=0.5, pattern=Pattern.of("kernel", (4, 4)))["a"]
    assert torch.equal(mask.any(2), mask.all(2))
    assert int(mask.sum()) == 90
    assert scores.mean(2)[mask.all(2)].min() > scores.mean(2)[~mask.all(2)].max()


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_blocks_of_different_sizes_come_as_near_as_they_can_from_below(distribution: str) -> None:
    scores = {"a": noise(6, 5, 9), "b": noise(7, 6, 1, seed=1)}
    pattern = Pattern.of("block", (2, 3))
    masks = sparse_masks(scores, density=0.5, distribution=distribution, pattern=pattern)  # type: ignore[arg-type]
    kept = sum(counts(masks))
    # The smallest blocks that are still there to take: 2 x 2 kernels of 9, or 1 x 3 weights.
    assert 0 <= 156 - kept < (36 if masks["b"].all() else 3)
    blocks = masks["b"][:6].reshape(3, 2, 2, 3).transpose(1, 2).reshape(6, 6)
    assert torch.equal(blocks.any(1), blocks.all(1))


def test_two_of_four_inputs_in_a_row_stay_at_every_output_and_kernel_position() -> None:
    scores = noise(3, 8, 9)
    mask = n_of_m({"a": scores, "stem": noise(3, 3, 9)}, 2, 4)
    assert list(mask) == ["a"]
    assert (mask["a"].reshape(3, 2, 4, 9).sum(2) == 2).all()
    groups, kept = scores.reshape(3, 2, 4, 9), mask["a"].reshape(3, 2, 4, 9)
    assert (groups.masked_fill(~kept, 9).amin(2) >= groups.masked_fill(kept, -9).amax(2)).all()


def test_a_pattern_that_divides_no_layer_is_refused() -> None:
    with pytest.raises(BudgetError, match="stem 3"):
        n_of_m({"stem": torch.ones(4, 3, 9)}, 2, 4)
    for granularity in ("rows", "4:2", "0:4", ""):
        with pytest.raises(ArgumentError):
            Pattern.of(granularity, (4, 4))


def test_weights_that_compete_in_their_rows_leave_the_same_number_in_each() -> None:
    scores = noise(6, 10, 1) * torch.arange(1.0, 7)[:, None, None]
    mask = sparse_masks({"a": within_rows(scores)}, density=0.35)["a"]
    assert int(mask.sum()) == 21
    assert sorted(mask.sum((1, 2)).tolist()) == [3, 3, 3, 4, 4, 4]
    for row, kept in zip(scores[:, :, 0], mask[:, :, 0], strict=True):
        assert row[kept].min() > row[~kept].max()


def test_what_must_stay_stays_and_is_part_of_the_count() -> None:
    scores = {"a": torch.arange(10.0).reshape(1, 10, 1), "b": torch.arange(10.0, 20).reshape(1, 10, 1)}
    fixed = {name: torch.zeros(1, 10, 1, dtype=torch.bool) for name in scores}
    fixed["a"][0, 3] = True
    masks = sparse_masks(scores, density=0.15, fixed=fixed)
    assert masks["a"].flatten().nonzero().flatten().tolist() == [3]
    assert masks["b"].flatten().nonzero().flatten().tolist() == [8, 9]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_a_density_that_is_too_low_is_refused_with_the_least_that_can_and_that_can(distribution: str) -> None:
    scores = {"few": noise(2, 50, 1), "many": noise(30, 40, 1)}
    fixed = {name: torch.zeros(v.shape, dtype=torch.bool) for name, v in scores.items()}
    for mask in fixed.values():
        mask[:, 0] = True
    options = {"distribution": distribution, "fixed": fixed}
    with pytest.raises(BudgetError, match="'many' alone takes 30 of its 1200") as error:
        sparse_masks(scores, density=0.02, **options)  # type: ignore[arg-type]
    least = float(str(error.value).rpartition("density=")[2].split()[0])
    masks = sparse_masks(scores, density=least, **options)  # type: ignore[arg-type]
    assert counts(masks) == [2, 30]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ScoreError, match="'a'"):
        sparse_masks({"a": torch.tensor([[[float("nan")]]])}, density=0.5)
