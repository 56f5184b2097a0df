"""Norms of what a unit writes, and lots."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from nervure.errors import ArgumentError, ScoreError
from nervure.graph.types import Graph, Group, TensorAxis, Units
from nervure.scores import magnitude, random_scores
from tests.graphs import chain, dense, heads, residual, weights_of

GRAPHS = {
    "chain": chain(6, 5, 10),
    "residual": residual(8, [4, 6]),
    "dense": dense(6, [4, 3]),
    "heads": heads(3, 4),
}
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def test_a_unit_scores_the_norm_of_its_filter() -> None:
    graph = chain(4, 10)
    weights = weights_of(graph)
    filters = weights["0.weight"].flatten(1)
    assert torch.allclose(magnitude(graph, weights, normalise="none")["0"], filters.abs().sum(1))
    assert torch.allclose(magnitude(graph, weights, norm=2, normalise="none")["0"], filters.norm(dim=1))


def test_coupled_writers_are_averaged() -> None:
    graph = residual(8, [4, 6])
    weights = weights_of(graph)
    writers = ["stem.weight", "block0.b.weight", "block1.b.weight"]
    expected = torch.stack([weights[w].flatten(1).norm(dim=1) for w in writers]).mean(0)
    assert torch.allclose(magnitude(graph, weights, norm=2, normalise="none")["stem"], expected)


def test_a_writer_that_makes_only_some_units_counts_for_those_only() -> None:
    slots = (TensorAxis("a", 0, "writer", Units([0, 1, 2])), TensorAxis("b", 0, "writer", Units([2, -1])))
    graph = Graph(groups=(Group("g", 3, "channels", slots),))
    scores = magnitude(graph, {"a": torch.ones(3, 2), "b": torch.full((2, 2), 5.0)}, normalise="none")
    assert scores["g"].tolist() == [2.0, 2.0, 6.0]


def test_several_positions_of_one_unit_are_one_filter() -> None:
    graph = heads(3, 4)
    weights = weights_of(graph)
    scores = magnitude(graph, weights, norm=2, normalise="none")
    assert torch.allclose(scores["heads"], weights["in.weight"].reshape(3, -1).norm(dim=1))
    assert torch.allclose(scores["uneven"][0], weights["mid.weight"][:3].norm())


def test_a_group_that_nothing_writes_is_scored_by_its_readers() -> None:
    graph = Graph(groups=(Group("g", 2, "channels", (TensorAxis("w", 1, "reader", Units([0, 1])),)),))
    assert magnitude(graph, {"w": torch.tensor([[1.0, 2.0]])}, normalise="none")["g"].tolist() == [1.0, 2.0]


@every_graph
@pytest.mark.parametrize("norm", [1, 2])
def test_groups_are_comparable_whatever_their_fan_in(graph: Graph, norm: int) -> None:
    scores = magnitude(graph, weights_of(graph), norm=norm)
    for group in graph.prunable:
        assert scores[group.name].shape == (group.size,)
        assert bool(torch.isfinite(scores[group.name]).all())
        assert torch.allclose(scores[group.name].mean(), torch.ones(()))


def test_a_dead_layer_scores_zero_and_not_nan() -> None:
    graph = chain(4, 10)
    weights = {name: torch.zeros_like(w) for name, w in weights_of(graph).items()}
    assert magnitude(graph, weights)["0"].tolist() == [0.0] * 4


def test_permuting_channels_permutes_scores() -> None:
    graph, order = residual(8, [4, 6]), torch.randperm(8)
    weights = weights_of(graph)
    permuted = dict(weights)
    for slot in graph["stem"].slots:
        permuted[slot.tensor] = permuted[slot.tensor].index_select(slot.axis, order)
    assert torch.allclose(magnitude(graph, permuted)["stem"], magnitude(graph, weights)["stem"][order])


def test_inputs_are_left_alone_and_gradients_are_not_followed() -> None:
    graph = chain(4, 10)
    weights = {name: w.requires_grad_() for name, w in weights_of(graph).items()}
    before = {name: w.detach().clone() for name, w in weights.items()}
    assert not magnitude(graph, weights)["0"].requires_grad
    assert all(before[name].equal(w.detach()) for name, w in weights.items())


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
def test_precision_is_kept_and_half_precision_does_not_overflow(given: torch.dtype, expected: torch.dtype) -> None:
    graph = chain(4, 10)
    weights = {name: torch.full_like(w, 60000.0).to(given) for name, w in weights_of(graph).items()}
    scores = magnitude(graph, weights, norm=2)["0"]
    assert scores.dtype == expected
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    graph = chain(4, 10)
    weights = weights_of(graph)
    weights["0.weight"][1, 2, 0, 0] = value
    with pytest.raises(ScoreError, match="tensor '0.weight': 1 of"):
        magnitude(graph, weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [({}, "'0.weight' is missing"), ({"0.weight": torch.zeros(3, 3, 3, 3)}, "has shape \\(3, 3, 3, 3\\)")],
)
def test_weights_of_another_model_are_refused(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        magnitude(chain(4, 10), weights)


def test_a_group_in_no_tensor_is_refused() -> None:
    with pytest.raises(ScoreError, match="sits in no tensor"):
        magnitude(Graph(groups=(Group("g", 2, "channels", ()),)), {})


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"normalise": "max"}])
def test_choices_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        magnitude(chain(4, 10), {}, **wrong)


def test_lots_depend_on_the_seed_and_not_on_other_groups() -> None:
    small, large = random_scores(chain(6, 5, 10), seed=1), random_scores(chain(6, 5, 4, 10), seed=1)
    assert small["0"].equal(large["0"])
    assert small["1"].equal(large["1"])
    assert not small["0"].equal(random_scores(chain(6, 5, 10), seed=2)["0"])
    assert not large["0"][:5].equal(large["1"])


def test_lots_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    random_scores(chain(6, 5, 10), seed=-1)
    assert before.equal(torch.get_rng_state())


def test_lots_are_the_same_in_another_process() -> None:
    code = "from nervure.scores import random_scores as r; from tests.graphs import chain; "
    code += "print(r(chain(6, 10), seed=3)['0'].tolist())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(random_scores(chain(6, 10), seed=3)["0"].tolist())
