"""A unit that says nothing new can leave without a trace: what stays takes over, exactly."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Keep, Plan, Pruned, prune, trace
from nervure.refit import refit

EXACT = 1e-6


class Case(NamedTuple):
    """A network, data for it, the group that loses units, and which stay."""

    model: nn.Module
    data: Tensor
    group: str
    keep: list[bool]


def seeded(*parts: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(part() for part in parts)).double().eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def make_redundant(layer: nn.Module, lost: int, *, of: tuple[int, int] = (0, 1), axis: int = 0) -> None:
    """Output ``lost`` of a layer is a linear combination of two others."""
    with torch.no_grad():
        for tensor in layer.parameters():
            at = axis if tensor.ndim > 1 else 0
            first, second = (tensor.select(at, n) for n in of)
            tensor.select(at, lost).copy_(2 * first - 0.5 * second)


def keep_all_but(size: int, *lost: int) -> list[bool]:
    return [unit not in lost for unit in range(size)]


def linear() -> Case:
    model = seeded(lambda: nn.Linear(7, 6), lambda: nn.Linear(6, 4), nn.ReLU, lambda: nn.Linear(4, 3))
    make_redundant(model[0], 5)
    return Case(model, noise(64, 7), "0", keep_all_but(6, 5))


def linear_without_bias() -> Case:
    model = seeded(lambda: nn.Linear(7, 6), lambda: nn.Linear(6, 4, bias=False))
    make_redundant(model[0], 5)
    return Case(model, noise(64, 7), "0", keep_all_but(6, 5))


def sequence() -> Case:
    model = seeded(lambda: nn.Linear(7, 6), lambda: nn.Linear(6, 4))
    make_redundant(model[0], 2, of=(4, 5))
    return Case(model, noise(32, 5, 7), "0", keep_all_but(6, 2))


def convolution() -> Case:
    model = seeded(
        lambda: nn.Conv2d(3, 6, 3, padding=1), lambda: nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2), nn.ReLU
    )
    make_redundant(model[0], 5)
    return Case(model, noise(48, 3, 9, 8), "0", keep_all_but(6, 5))


def line() -> Case:
    model = seeded(lambda: nn.Conv1d(3, 6, 3), lambda: nn.Conv1d(6, 4, 3, padding=1))
    make_redundant(model[0], 5)
    return Case(model, noise(48, 3, 12), "0", keep_all_but(6, 5))


def volume() -> Case:
    model = seeded(lambda: nn.Conv3d(2, 4, 2), lambda: nn.Conv3d(4, 3, 2, padding=1))
    make_redundant(model[0], 3)
    return Case(model, noise(32, 2, 4, 5, 4), "0", keep_all_but(4, 3))


def grouped() -> Case:
    model = seeded(lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1), nn.ReLU)
    make_redundant(model[0], 3)
    make_redundant(model[0], 7, of=(4, 5))
    return Case(model, noise(48, 3, 9, 9), "0.widths", keep_all_but(4, 3))


def transposed() -> Case:
    model = seeded(
        lambda: nn.Conv2d(3, 6, 3),
        lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU,
        lambda: nn.Conv2d(4, 2, 1),
    )
    make_redundant(model[0], 5)
    return Case(model, noise(48, 3, 6, 7), "0", keep_all_but(6, 5))


def grouped_transposed() -> Case:
    model = seeded(lambda: nn.Conv2d(3, 8, 1), lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2))
    make_redundant(model[0], 3)
    make_redundant(model[0], 7, of=(4, 5))
    return Case(model, noise(64, 3, 5, 5), "0.widths", keep_all_but(4, 3))


def through_a_transposed_one() -> Case:
    model = seeded(lambda: nn.ConvTranspose2d(3, 6, 2, stride=2), lambda: nn.Conv2d(6, 4, 3))
    make_redundant(model[0], 5, axis=1)
    return Case(model, noise(48, 3, 5, 5), "0", keep_all_but(6, 5))


def behind_a_norm() -> Case:
    model = seeded(
        lambda: nn.Conv2d(3, 6, 3, bias=False),
        lambda: nn.BatchNorm2d(6),
        nn.ReLU,
        lambda: nn.Conv2d(6, 4, 3, bias=False),
        lambda: nn.BatchNorm2d(4),
        nn.ReLU,
        nn.Flatten,
        lambda: nn.Linear(64, 3),
    )
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
        # A channel of twice another, also behind the norm and the rectifier.
        model[0].weight[5] = model[0].weight[1]
        for values in (model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias):
            values[5] = values[1]
        model[1].weight[5] *= 2
        model[1].bias[5] *= 2
    return Case(model, noise(64, 3, 8, 8), "0", keep_all_but(6, 5))


def constant() -> Case:
    """A unit that says one number, read by a layer without a bias, which a norm takes the mean off."""
    model = seeded(
        lambda: nn.Conv2d(3, 6, 1),
        nn.ReLU,
        lambda: nn.Conv2d(6, 4, 1, bias=False),
        lambda: nn.BatchNorm2d(4),
        nn.ReLU,
        lambda: nn.Conv2d(4, 2, 1),
    )
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = 0, 0.5
    return Case(model, noise(48, 3, 5, 5), "0", keep_all_but(6, 5))


class Attention(nn.Module):
    """Self-attention whose third head says what the first one says, turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        turn = torch.linalg.qr(torch.randn(4, 4))[0]
        with torch.no_grad():
            for tensor in (self.attention.in_proj_weight, self.attention.in_proj_bias):
                tensor[8:12], tensor[20:24] = tensor[0:4], tensor[12:16]
                tensor[32:36] = turn @ tensor[24:28]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return found


def attention() -> Case:
    model = seeded(Attention)
    group = next(g.name for g in trace(model, noise(2, 5, 12)).prunable if g.kind == "heads")
    return Case(model, noise(64, 5, 12), group, keep_all_but(3, 2))


CASES = [
    linear, linear_without_bias, sequence, convolution, line, volume, grouped, transposed, grouped_transposed,
    through_a_transposed_one, behind_a_norm, constant, attention,
]  # fmt: skip


def batches(data: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in data.split(16)]


def cut(case: Case) -> Pruned:
    return prune(case.model, case.data[:2], Plan((Cut(case.group, Keep.of(case.keep)),)), progress=False)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_unit_that_others_can_say_leaves_without_a_trace(make: Callable[[], Case]) -> None:
    case = make()
    pruned = cut(case)
    refitted = refit(pruned, batches(case.data), reference=case.model, progress=False)
    new = noise(16, *case.data.shape[1:]) + 0.1
    expected = case.model(new)
    assert (pruned.model(new) - expected).abs().max() > 1e-3, "the cut hurt nothing: the test shows nothing"
    assert (refitted.result.model(new) - expected).abs().max() < EXACT


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_lost_nothing_does_not_change(make: Callable[[], Case]) -> None:
    case = make()
    refitted = refit(case.model, batches(case.data), reference=case.model, progress=False)
    for name, value in refitted.result.state_dict().items():
        assert torch.equal(value, case.model.state_dict()[name]), name
    assert all(layer.freedom == "none" for layer in refitted.layers)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_inputs_stay_as_they_are_and_answers_are_the_same_again(make: Callable[[], Case]) -> None:
    case = make()
    pruned = cut(case)
    before = {name: value.clone() for name, value in pruned.model.state_dict().items()}
    first, second = (refit(pruned, batches(case.data), reference=case.model, progress=False) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in pruned.model.state_dict().items())
    assert first.layers == second.layers
    for name, value in first.result.model.state_dict().items():
        assert torch.equal(value, second.result.model.state_dict()[name])


class Raw(nn.Module):
    """Matrices and biases of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(7, 6)), nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.first).relu() @ self.second + self.bias


def test_a_bias_that_was_moved_since_comes_back() -> None:
    model, data = seeded(Raw), noise(32, 5, 7)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].bias += 0.5
    refitted = refit(moved, [data], reference=model, progress=False)
    torch.testing.assert_close(refitted.result[0].bias, model[0].bias)
