"""The smallest network that keeps enough under shift: by hand, with networks whose answers are known."""

import pytest
import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError, BudgetError
from nervure.evaluation import HELD_OUT, live_weights, smallest_robust


class Right(nn.Module):
    """Reads the label off the first pixel where it is below a limit, else says 0; with so many weights."""

    def __init__(self, weights: int, below: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(weights))
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 20).round().long().clamp(0, 9)
        return nn.functional.one_hot(torch.where(label < self.below, label, 0), 10).float()


def data() -> list[tuple[Tensor, Tensor]]:
    y = torch.arange(100) % 10
    return [((y / 20)[:, None, None, None].expand(-1, 1, 8, 8).float().contiguous(), y)]


def same(kind: list[tuple[Tensor, Tensor]]) -> dict[tuple[str, int], list[tuple[Tensor, Tensor]]]:
    return {("as it is", 1): kind}


def test_the_smallest_that_keeps_enough_is_chosen() -> None:
    candidates = {0.9: Right(90, 10), 0.5: Right(50, 9), 0.3: Right(30, 8), 0.1: Right(10, 5)}
    options = {"shift": same(data()), "progress": False}
    for share, expected in ((1.0, 0.9), (0.9, 0.5), (0.8, 0.3), (0.5, 0.1)):
        found = smallest_robust(candidates, Right(100, 10), data(), share=share, **options)  # type: ignore[arg-type]
        assert found.name == expected
    assert found.kept == pytest.approx({0.9: 1.0, 0.5: 0.9, 0.3: 0.8, 0.1: 0.5})
    assert found.sizes == {0.9: 90, 0.5: 50, 0.3: 30, 0.1: 10}
    assert found.table().splitlines()[2].startswith("| 0.1 (chosen) | 10 | 50.0")
    assert found.to_json()["chosen"] == "0.1"


def test_where_none_keeps_enough_the_best_is_named() -> None:
    with pytest.raises(BudgetError, match=r"'b' keeps most, 90.0%"):
        smallest_robust({"a": Right(3, 5), "b": Right(5, 9)}, Right(9, 10), data(), shift=same(data()), progress=False)


def test_masked_weights_count_as_gone() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0] = 0
    assert live_weights(model) == 8 + 3


def test_it_is_chosen_by_the_corruptions_that_tests_leave_alone() -> None:
    found = smallest_robust({"a": Right(5, 10)}, Right(9, 10), data(), share=0.1, severities=[1], progress=False)
    assert found.dense.names == HELD_OUT


@pytest.mark.parametrize("shift", ["all", "noise", ["speckle_noise", "fog"]])
def test_corruptions_of_the_test_are_refused(shift: str | list[str]) -> None:
    with pytest.raises(ArgumentError, match="spoil the test"):
        smallest_robust({"a": Right(5, 10)}, Right(9, 10), data(), shift=shift)


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ArgumentError, match="no candidates"):
        smallest_robust({}, Right(9, 10), data())
    with pytest.raises(ArgumentError, match="share=0"):
        smallest_robust({"a": Right(5, 10)}, Right(9, 10), data(), share=0)
