"""A storage is there from the operator that makes it until nothing holds it any more."""

import pytest
import torch
from torch import Tensor, nn

from nervure.graph.lifetimes import peak_bytes, spans_of
from nervure.graph.tape import Tape, record

SEEN = torch.arange(4)


class Steps(nn.Module):
    """Makes a large tensor of a type, lets go of it or not, and goes on."""

    def __init__(self, dtype: torch.dtype, lets_go: bool) -> None:
        super().__init__()
        self.dtype, self.lets_go = dtype, lets_go

    def forward(self, x: Tensor) -> Tensor:
        large = x.repeat(100).to(self.dtype)
        first = large[:1] + 1
        if self.lets_go:
            del large
        return (first + x).sum() + (first * x).sum()


class Unseen(nn.Module):
    """Asks a tensor for its size before any operator has met it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * SEEN.size(0) + SEEN


def tape_of(model: nn.Module) -> Tape:
    return record(model, torch.ones(4))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_what_is_let_go_is_gone_and_what_is_held_is_not(dtype: torch.dtype) -> None:
    # The tape holds whole numbers itself, which must not count.
    for lets_go in (True, False):
        tape = tape_of(Steps(dtype, lets_go))
        (large,) = [span for span in spans_of(tape) if tape.storages.nbytes[span.storage] == 3200]
        assert (large.last < len(tape.entries) // 2 + 1) == lets_go


def test_views_and_writes_in_place_take_no_memory() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1).view(2, 2).t().relu_().reshape(2, 2)[0]

    assert peak_bytes(tape_of(Views())) == 2 * 4 * 4


def test_looking_at_a_tensor_leaves_no_trace_on_the_tape() -> None:
    assert [entry.name for entry in tape_of(Unseen()).entries] == ["mul", "add"]
