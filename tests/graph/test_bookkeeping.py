"""Widths that a module keeps for its other methods, and that its forward pass does not read: followed, or named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Graph, Keep, Magnitude, Plan, apply, prune, trace
from tests.networks import seeded


class Backbone(nn.Module):
    """Builds a new head from a number that it keeps under ``name``."""

    def __init__(
        self, name: str = "num_features", number: int = 12, scale: Callable[[Any], float] | None = None
    ) -> None:
        super().__init__()
        setattr(self, name, number)
        self.name, self.scale = name, scale
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y if self.scale is None else y * self.scale(getattr(self, self.name))

    def reset(self, classes: int) -> None:
        self.head = nn.Linear(getattr(self, self.name), classes)


def _cut(graph: Graph, **left: int) -> Plan:
    cuts = (Cut(name, Keep.of(torch.arange(graph[name].size) < n)) for name, n in left.items())
    return Plan(tuple(cuts), graph.fingerprint)


@pytest.mark.parametrize("name", ["num_features", "embed_dim", "out_channels"])
def test_a_width_that_only_another_method_reads_follows_the_cut(name: str) -> None:
    model, x = seeded(lambda: Backbone(name)).eval(), torch.randn(2, 5)
    pruned = prune(model, x, Magnitude(keep=0.5), progress=False)
    smaller: Any = pruned.model
    assert getattr(smaller, name) == smaller.head.in_features < 12
    smaller.reset(7)
    assert smaller(x).shape == (2, 7)
    assert any(name in note and "follow a cut" in note for note in pruned.graph.notes)
    assert getattr(model, name) == 12


def test_a_number_whose_name_does_not_tell_is_named_and_stays() -> None:
    model, x = seeded(lambda: Backbone("wirth")).eval(), torch.randn(2, 5)
    graph = trace(model, x)
    assert any("wirth: as large as units that a cut can take" in note for note in graph.notes)
    assert not any("features" in note for note in graph.notes), "torch's own layers describe themselves"
    smaller: Any = apply(model, graph, _cut(graph, **{"body.2": 6}))
    assert smaller.wirth == 12


def test_a_number_that_no_width_has_is_not_spoken_of() -> None:
    model, x = seeded(lambda: Backbone("wirth", 13)).eval(), torch.randn(2, 5)
    assert not any("wirth" in note for note in trace(model, x).notes)
    model = seeded(lambda: Backbone("num_features", 13)).eval()
    assert not any("num_features" in note for note in trace(model, x).notes)


READINGS: dict[str, Callable[[Any], float]] = {
    "seen": lambda n: n * 0.5,
    "out of sight": lambda n: 0.5 * n,
    "of a text": lambda n: float(len(str(n))),
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_width_that_the_forward_pass_reads_as_a_number_stays(reading: str) -> None:
    model, x = seeded(lambda: Backbone(scale=READINGS[reading])).eval(), torch.randn(2, 5)
    graph = trace(model, x)
    assert not graph["body.2"].pinned
    smaller: Any = apply(model, graph, _cut(graph, **{"body.2": 6}))
    keep = torch.arange(12) < 6
    torch.testing.assert_close(smaller(x), model.head(model.body(x) * keep) * READINGS[reading](12))  # type: ignore[operator]
    assert smaller.num_features == 12
    assert reading != "out of sight" or any("num_features: may be read" in note for note in graph.notes)


class Halves(nn.Module):
    """Splits what it computes in two; another way through it reads the width of a half."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 4
        self.up, self.a, self.down = nn.Linear(5, 8), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.up(x).chunk(2, -1)
        y: Tensor = self.down(torch.cat([one, self.a(two)], -1).relu())
        return y

    def split(self, x: Tensor) -> Tensor:
        one, two = self.up(x).split((self.c, self.c), -1)
        y: Tensor = self.down(torch.cat([one, self.a(two)], -1).relu())
        return y


def test_the_width_of_a_half_follows_where_both_halves_stay_alike() -> None:
    model, x = seeded(Halves).eval(), torch.randn(2, 5)
    graph = trace(model, x)
    halves = [g.name for g in graph.prunable if g.size == 4]
    smaller: Any = apply(model, graph, _cut(graph, **dict.fromkeys(halves, 2)))
    assert smaller.c == 2
    assert torch.equal(smaller.split(x), smaller(x))


def test_where_two_widths_of_that_size_are_cut_apart_the_number_stays_and_the_plan_says_so() -> None:
    model, x = seeded(lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), Backbone())).eval(), torch.randn(2, 5)
    model[2].body = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    graph = trace(model, x)
    plan = _cut(graph, **{"2.body.0": 4, "2.body.2": 6})
    smaller: Any = apply(model, graph, plan)
    assert smaller[2].num_features == 12
    assert "2.num_features stays 12, which is no longer true" in plan.describe(graph)
