import pytest
import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError
from nervure.evaluation import Memory, peak_memory


def test_what_is_alive_at_once_is_counted() -> None:
    # The widest moment: what the first layer put out and what the ReLU makes of it.
    model = nn.Sequential(nn.Linear(10, 400, bias=False), nn.ReLU(), nn.Linear(400, 10, bias=False))
    found = peak_memory(model, torch.randn(2, 10), batch=8)
    assert found == Memory(weights=4 * 2 * 10 * 400, inputs=4 * 8 * 10, activations=4 * 8 * 400 * 2)
    assert found.total == 32_000 + 320 + 25_600 and model.training


def test_memory_in_place_and_views_are_counted_once() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1).relu_().view(-1)[1:]

    assert peak_memory(InPlace(), torch.zeros(1, 5)).activations == 4 * 5


def test_tied_weights_count_once_and_what_is_kept_alive_counts() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.b = nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            return self.b(self.b(first)) + first

    found = peak_memory(Kept(), torch.zeros(1, 6))
    assert found.weights == 4 * 36
    assert found.activations == 3 * 4 * 6


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(ArgumentError, match="batch=0"):
        peak_memory(nn.Linear(1, 1), torch.zeros(1, 1), batch=0)
