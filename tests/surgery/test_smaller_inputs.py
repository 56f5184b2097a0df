"""Where a model computes the same on smaller pictures, it is checked on those: a check all the same."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Graph, Inputs, Keep, Magnitude, Plan, apply, prune, trace, verify
from nervure.errors import VerificationError
from nervure.graph.trace import draw
from nervure.surgery.checker import Checker
from tests.contracts import misread
from tests.networks import noise, seeded

SIZE = 192


class Pictures(nn.Module):
    """Convolutions, and what becomes of their answer; notes the size and the precision of what it is given."""

    def __init__(self, finish: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=8), nn.Conv2d(8, 4, 3, stride=8)
        self.finish, self.head = finish, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        _SEEN.add((x.shape[-1], x.dtype))
        return self.head(self.finish(self.second(self.first(x).relu()).relu()))


_SEEN: set[tuple[int, torch.dtype]] = set()


def pooled(y: Tensor) -> Tensor:
    return y.mean((2, 3))


def flat(y: Tensor) -> Tensor:
    return y.flatten(1)


def by_size(y: Tensor) -> Tensor:
    return (F.avg_pool2d(y, 2) if y.shape[-1] > 2 else y).mean((2, 3))


def sizes_in_double(model: nn.Module, work: Callable[[], Any]) -> set[int]:
    _SEEN.clear()
    work()
    return {size for size, dtype in _SEEN if dtype == torch.float64}


def half_of(graph: Graph, group: str) -> Plan:
    return Plan((Cut(group, Keep.of(torch.arange(graph[group].size) % 2 == 0)),))


def made(model: nn.Module, graph: Graph, plan: Plan) -> SimpleNamespace:
    return SimpleNamespace(model=apply(model, graph, plan), graph=graph, plan=plan)


def pruned(model: nn.Module) -> Any:
    return prune(model, noise(1, 3, SIZE, SIZE), Magnitude(keep=0.5), progress=False)


def test_what_computes_the_same_on_a_smaller_picture_is_checked_on_one() -> None:
    model = seeded(lambda: Pictures(pooled)).eval()
    assert sizes_in_double(model, lambda: pruned(model)) == {96}
    assert pruned(model).verification is not None


@pytest.mark.parametrize(("finish", "width"), [(flat, 36), (by_size, 4)], ids=["flat", "by_size"])
def test_what_computes_something_else_there_is_checked_on_the_whole_picture(
    finish: Callable[[Tensor], Tensor], width: int
) -> None:
    model = seeded(lambda: Pictures(finish, width)).eval()
    assert SIZE in sizes_in_double(model, lambda: pruned(model))
    assert pruned(model).verification is not None


def test_small_pictures_are_left_as_they_are() -> None:
    model = seeded(lambda: Pictures(pooled)).eval()
    x = noise(1, 3, 128, 128)
    assert sizes_in_double(model, lambda: prune(model, x, Magnitude(keep=0.5), progress=False)) == {128}


@pytest.mark.parametrize("tensor", ["second.weight", "head.weight"])
def test_a_wrong_cut_is_seen_on_smaller_pictures(tensor: str) -> None:
    model, x = seeded(lambda: Pictures(pooled)).eval(), noise(1, 3, SIZE, SIZE)
    graph = trace(model, x)
    plan = half_of(graph, "first" if tensor.startswith("second") else "second")
    wrong = misread(graph, tensor, 1)
    assert verify(model, made(model, graph, plan), x)
    with pytest.raises(VerificationError, match="differs from the original"):
        verify(model, made(model, wrong, plan), x)
    # Where groups are tried, random numbers in double precision are all there is.
    given = Inputs.several(x)
    with torch.no_grad(), pytest.raises(VerificationError, match="differs from the original"):
        Checker(model, draw(model, given), given).check(wrong, plan)


def test_other_numbers_than_the_plan_leaves_are_seen() -> None:
    model, x = seeded(lambda: Pictures(pooled)).eval(), noise(1, 3, SIZE, SIZE)
    found = pruned(model)
    with torch.no_grad():
        found.model.head.weight[3, 0] += 1e-3
    with pytest.raises(VerificationError, match="differs from the original"):
        verify(model, found, x)


def test_what_breaks_in_training_alone_is_seen() -> None:
    class Odd(Pictures):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (self.first.weight.view(8, -1).sum() if self.training else 0)

    model, x = seeded(lambda: Odd(pooled)).eval(), noise(1, 3, SIZE, SIZE)
    graph = trace(model, x)
    found = made(model, graph, half_of(graph, "first"))
    with pytest.raises(VerificationError, match="in training mode"):
        verify(model, found, x)
