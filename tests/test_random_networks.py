"""A sample of the networks that ``benchmarks/random_networks.py`` draws, and what they are judged by."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.random_networks import RandomCuts, network, removed_by, tried
from benchmarks.survivors import UnknownFateError, exact_outputs, expected_outputs, verdict
from nervure import apply, trace

# Together they have nearly all pieces in them, in each of their ways to be written.
SEEDS = (
    3, 6, 29, 42, 47, 58, 65, 69, 71, 74, 76, 83, 89, 97, 116, 118, 119, 121, 147, 150, 160, 169, 174, 177, 179, 181,
    182, 183, 188, 196, 199, 204, 207, 208, 209, 225, 227, 237, 239, 242, 254, 256, 257, 268, 278, 283, 284, 296, 316,
    322, 331, 337, 344, 358, 365, 372, 409, 420, 455, 457,
)  # fmt: skip
GONE = torch.tensor([False, True, False, False, True])


@pytest.mark.sampled(times=0)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_drawn_at_random_computes_after_a_random_cut_what_it_should(seed):
    row = tried(seed)
    assert "fault" not in row, row


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_the_judge_tells_a_cut_apart_that_keeps_other_units_than_the_plan_says(seed):
    model, make = network(seed)
    example = make(2)
    graph = trace(model, example)
    method = RandomCuts(seed, [])
    plan = method.plan(type("Seen", (), {"graph": graph}))
    smaller = copy.deepcopy(apply(model, graph, plan)).double()
    with torch.no_grad():
        for parameter in smaller.parameters():
            if parameter.dim() > 1 and parameter.shape[0] > 1:
                parameter.copy_(parameter.roll(1, 0))
    wide = copy.deepcopy(model).double()
    example = make(2)
    example = _doubled(example)
    expected = expected_outputs(copy.deepcopy(wide), removed_by(graph, plan), example)
    assert verdict(expected, exact_outputs(smaller, example))[0] > 1e-6


def _doubled(example):
    if isinstance(example, Tensor):
        return example.double() if example.is_floating_point() else example
    if isinstance(example, dict):
        return {name: _doubled(value) for name, value in example.items()}
    return tuple(_doubled(value) for value in example)


class Middle(nn.Module):
    """Five units between two layers, with something done to them."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Linear(4, 5), nn.Linear(5, 3), act

    def forward(self, x):
        return self.last(self.act(self.first(x)))


def _left(model):
    """The same with the units that stay, by hand."""
    smaller = copy.deepcopy(model)
    smaller.first.weight = nn.Parameter(model.first.weight[~GONE])
    smaller.first.bias = nn.Parameter(model.first.bias[~GONE])
    smaller.last.weight = nn.Parameter(model.last.weight[:, ~GONE])
    return smaller


REMOVED = {"first.weight": [(0, GONE)], "first.bias": [(0, GONE)], "last.weight": [(1, GONE)]}
ACTS = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "standard": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "group_norm": lambda x: F.group_norm(x, 1),
    "maximum": lambda x: x * x.amax(-1, keepdim=True),
    "least": lambda x: x - x.min(-1, keepdim=True).values,
    "median": lambda x: x - x.median(-1, keepdim=True).values,
    "length": lambda x: F.normalize(x, dim=-1),
    "running": lambda x: x.cumsum(-1),
    "one hot": lambda x: torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0),
    "filled": lambda x: torch.zeros_like(x).copy_(x) + 1,
    "constant row": lambda x: torch.cat([torch.ones(1, x.shape[-1]), x])[1:] * 2,
    "noise": lambda x: x + torch.randn_like(x),
}


@pytest.mark.parametrize("act", ACTS)
def test_survivors_compute_what_a_network_without_the_others_does(act):
    model = Middle(ACTS[act]).double()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    worst, moved = verdict(expected_outputs(model, REMOVED, x), exact_outputs(_left(model), x), exact_outputs(model, x))
    assert worst < 1e-12 < moved


def test_a_weight_with_a_parametrization_is_cut_as_what_it_came_to():
    model = Middle(torch.relu).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    expected = expected_outputs(model, REMOVED, x)
    parametrizations.weight_norm(model.last)
    removed = {name: axes for name, axes in REMOVED.items() if name != "last.weight"}
    removed["last.parametrizations.weight.original1"] = REMOVED["last.weight"]
    assert verdict(expected, expected_outputs(model, removed, x))[0] < 1e-12


def test_numbers_of_units_stay_as_they_were():
    model = Middle(lambda x: x * x.argmax(-1, keepdim=True)).double()
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert verdict(expected_outputs(model, REMOVED, x), exact_outputs(_left(model), x))[0] > 0.1


def test_what_cannot_be_known_is_said():
    model = Middle(lambda x: F.conv1d(x[:, None], torch.ones(1, 1, 3, dtype=x.dtype), padding=1)[:, 0]).double()
    with pytest.raises(UnknownFateError, match="along an axis of units"):
        expected_outputs(model, REMOVED, torch.randn(6, 4, dtype=torch.float64))


def test_a_verdict_looks_at_every_column_by_its_own_scale():
    small = torch.tensor([[1e9, 1e-3], [2e9, 2e-3]])
    off = small.clone()
    off[0, 1] *= 1.5
    assert verdict([small], [off])[0] > 0.2
    assert verdict([small], [small[:1]])[0] == float("inf")
