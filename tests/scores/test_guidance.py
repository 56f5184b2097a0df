"""Magnitude and connectivity in one score: by hand, on four connections."""

import torch
from torch import Tensor

from nervure.methods.gcnet.guidance import combine_scores, match_ranks, ranks, score_companion

DIRECT = torch.tensor([[4.0, 1.0], [3.0, 2.0]])
GUIDE = torch.tensor([[0.1, 0.4], [0.3, 0.2]])


def best(scores: Tensor, count: int) -> set[int]:
    return set(scores.flatten().argsort(descending=True, stable=True)[:count].tolist())


def test_pure_and_split_are_connectivity() -> None:
    for mode in ("pure", "split"):
        assert torch.equal(combine_scores(DIRECT, GUIDE, mode), GUIDE)


def test_the_product_is_relative_to_the_mean_connectivity() -> None:
    expected = torch.tensor([[1.6, 1.6], [3.6, 1.6]])
    torch.testing.assert_close(combine_scores(DIRECT, GUIDE, "product"), expected)
    torch.testing.assert_close(combine_scores(DIRECT, 7 * GUIDE, "product"), expected)


def test_the_union_of_the_best_is_best_by_the_larger_rank() -> None:
    # By magnitude 0 then 2, by connectivity 1 then 2.
    scores = combine_scores(DIRECT, GUIDE, "union")
    assert best(scores, 2) == {0} | {1}
    assert best(scores, 3) == {0, 2} | {1, 2}


def test_the_intersection_of_the_best_is_best_by_the_smaller_rank() -> None:
    scores = combine_scores(DIRECT, GUIDE, "intersection")
    assert best(scores, 1) == {0, 2} & {1, 2}
    assert best(scores, 2) == {0, 2, 3} & {1, 2, 3}


def test_a_mix_goes_from_connectivity_to_magnitude() -> None:
    for alpha, alone in ((0.0, GUIDE), (1.0, DIRECT)):
        order = combine_scores(DIRECT, GUIDE, "mix", alpha).flatten().argsort()
        assert torch.equal(order, alone.flatten().argsort())
    torch.testing.assert_close(combine_scores(DIRECT, GUIDE, "mix"), (ranks(DIRECT) * ranks(GUIDE)).sqrt())


def test_what_has_no_weight_left_scores_nothing() -> None:
    direct = torch.tensor([[0.0, 1.0]])
    for mode in ("pure", "split", "product", "mix", "union", "intersection"):
        scores = combine_scores(direct, torch.tensor([[0.9, 0.1]]), mode)
        assert scores[0, 0] == 0
        assert scores[0, 1] > 0


def test_structured_criteria_put_whole_rows_and_columns_first() -> None:
    # The last column by itself is highest, the first row on the whole.
    guide = torch.tensor([[0.5, 0.5, 0.6], [0.0, 0.1, 0.9]])
    generator = torch.Generator()
    assert best(score_companion(guide, "rows", generator), 3) == {0, 1, 2}
    assert best(score_companion(guide, "columns", generator), 2) == {2, 5}
    assert torch.equal(score_companion(guide, "magnitude", generator), guide)


def test_a_lot_knows_only_its_seed() -> None:
    draws = [score_companion(guide, "random", torch.Generator().manual_seed(3)) for guide in (GUIDE, 1 - GUIDE)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], score_companion(GUIDE, "random", torch.Generator().manual_seed(4)))


def test_matching_keeps_the_values_of_one_and_the_order_of_the_other() -> None:
    found = match_ranks(GUIDE, DIRECT)
    assert torch.equal(found.flatten().sort().values, DIRECT.flatten().sort().values)
    assert torch.equal(found.flatten().argsort(), GUIDE.flatten().argsort())
