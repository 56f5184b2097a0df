"""Criteria of other papers against answers known by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import trace
from nervure.errors import ArgumentError, ScoreError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph, Group, TensorAxis, Units
from nervure.scores import activation, completed, fisher, fpgm, slimming, taylor
from nervure.stats import Stats, measure
from tests.graphs import chain, heads, weights_of


def one_group(size: int, *slots: TensorAxis, name: str = "g") -> Graph:
    return Graph(groups=(Group(name, size, "channels", slots),))


def writer(tensor: str, units: list[int]) -> TensorAxis:
    return TensorAxis(tensor, 0, "writer", Units(units))


def rider(tensor: str, units: list[int]) -> TensorAxis:
    return TensorAxis(tensor, 0, "rider", Units(units))


def linear(seed: int = 0) -> tuple[nn.Module, Graph, dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    return model, trace(model, x[:1]), dict(named_tensors(model)), [(x[:25], y[:25]), (x[25:], y[25:])]


def test_fpgm_sums_distances_to_the_other_filters() -> None:
    graph = one_group(3, writer("w", [0, 1, 2]))
    weights = {"w": torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])}
    assert fpgm(graph, weights, normalise="none")["g"].tolist() == [5.0, 10.0, 5.0]
    assert fpgm(graph, weights)["g"].tolist() == [0.75, 1.5, 0.75]


def test_fpgm_gives_up_the_filter_in_the_middle_and_not_the_smallest() -> None:
    graph = one_group(5, writer("w", [0, 1, 2, 3, 4]))
    centre = torch.tensor([9.0, 9.0])
    around = centre + torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -20.0]])
    scores = fpgm(graph, {"w": torch.cat([around, centre[None]])})["g"]
    assert int(scores.argmin()) == 4
    assert int(scores.argmax()) == 3


def test_fpgm_agrees_with_the_plain_distances_on_coupled_and_wide_units() -> None:
    graph = heads(3, 4)
    weights = weights_of(graph)
    rows = weights["in.weight"].reshape(3, -1).double()
    expected = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    assert torch.allclose(fpgm(graph, weights, normalise="none")["heads"].double(), expected)


def test_fpgm_sees_twins_as_twins_however_large_they_are() -> None:
    rows = torch.full((2, 1000), 1e4) + torch.arange(1000.0)
    scores = fpgm(one_group(2, writer("w", [0, 1])), {"w": rows}, normalise="none")["g"]
    assert scores.tolist() == [0.0, 0.0]


def test_slimming_follows_the_scale_of_the_batch_norms_that_a_unit_passes() -> None:
    slots = (writer("a.weight", [0, 1]), rider("n.weight", [0, 1]), rider("n.bias", [0, 1]), rider("m.weight", [0, 1]))
    weights = {
        "a.weight": torch.ones(2, 3),
        "n.weight": torch.tensor([1.0, -3.0]),
        "n.bias": torch.tensor([50.0, 0.0]),
        "n.running_var": torch.ones(2),
        "m.weight": torch.tensor([2.0, 1.0]),
        "m.bias": torch.zeros(2),
        "m.running_var": torch.ones(2),
    }
    assert slimming(one_group(2, *slots), weights)["g"].tolist() == [1.5, 2.0]
    assert slimming(one_group(2, *slots), weights, normalise="mean")["g"].mean() == 1
    # A layer norm beside a batch norm does not count, alone it does.
    del weights["m.running_var"]
    assert slimming(one_group(2, *slots), weights)["g"].tolist() == [1.0, 3.0]
    del weights["n.running_var"]
    assert slimming(one_group(2, *slots), weights)["g"].tolist() == [1.5, 2.0]


def test_slopes_of_activations_and_biases_are_no_norms() -> None:
    slots = (writer("a.weight", [0, 1]), rider("a.bias", [0, 1]), rider("prelu.weight", [0, 1]))
    weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "prelu.weight": torch.ones(2)}
    with pytest.raises(ScoreError, match="'g': it passes through no norm"):
        slimming(one_group(2, *slots), weights)


def test_groups_without_a_norm_compete_at_the_level_of_the_others_or_are_refused() -> None:
    normed = Group("n", 2, "channels", (writer("a", [0, 1]), rider("n.weight", [0, 1])))
    bare = Group("b", 2, "channels", (writer("b", [0, 1]),))
    weights = {
        "a": torch.ones(2, 1),
        "b": torch.tensor([[1.0], [3.0]]),
        "n.weight": torch.tensor([4.0, 8.0]),
        "n.bias": torch.zeros(2),
        "n.running_var": torch.ones(2),
    }
    graph = Graph(groups=(normed, bare))
    assert slimming(graph, weights)["b"].tolist() == [3.0, 9.0]
    with pytest.raises(ScoreError, match="'b' passes through no norm"):
        slimming(graph, weights, without="error")


def test_taylor_is_the_loss_of_removing_a_unit_to_first_order() -> None:
    model, graph, weights, data = linear()
    stats = measure(model, graph, data, want={"effects"})
    share, falls = 1e-4, []
    x, y = torch.cat([x for x, _ in data]).double(), torch.cat([y for _, y in data])
    model.double()
    whole = F.cross_entropy(model(x), y, reduction="none")
    for unit in range(4):
        kept = model[2].weight.detach().clone()
        model[2].weight.data[:, unit] *= 1 - share
        falls.append((whole - F.cross_entropy(model(x), y, reduction="none")) / share)
        model[2].weight.data.copy_(kept)
    fall = torch.stack(falls, 1).detach()
    assert torch.allclose(taylor(graph, weights, stats, normalise="none")["0"].double(), fall.abs().mean(0), rtol=1e-3)
    assert torch.allclose(
        fisher(graph, weights, stats, normalise="none")["0"].double(), fall.square().mean(0) / 2, rtol=1e-3
    )


def test_taylor_is_exact_where_the_loss_is_linear_in_the_unit() -> None:
    effects = {"0": torch.tensor([[1.0, -4.0, 0.0], [-1.0, 0.0, 0.0]])}
    graph = one_group(3, writer("w", [0, 1, 2]), name="0")
    stats = Stats(effects=effects, want=frozenset({"effects"}), fingerprint=graph.fingerprint)
    assert taylor(graph, {}, stats, normalise="none")["0"].tolist() == [1.0, 2.0, 0.0]
    assert fisher(graph, {}, stats, normalise="none")["0"].tolist() == [0.5, 4.0, 0.0]
    assert taylor(graph, {}, stats, normalise="mean")["0"].tolist() == [1.0, 2.0, 0.0]


def test_activation_measures_what_arrives() -> None:
    model, graph, weights, data = linear()
    stats = measure(model, graph, data, want={"readings"})
    heard = model[0](torch.cat([x for x, _ in data])).relu().detach()
    for of, expected in {
        "absolute": heard.abs().mean(0),
        "square": heard.square().mean(0),
        "alive": (heard > 0).float().mean(0),
    }.items():
        scores = activation(graph, weights, stats, of=of, normalise="none")["0"]  # type: ignore[arg-type]
        assert torch.allclose(scores, expected, atol=1e-6)


def test_unmeasured_groups_are_completed_and_a_network_without_any_is_refused_with_the_reason() -> None:
    graph = chain(4, 6, 10)
    weights = weights_of(graph)
    scores = completed(graph, {"0": torch.tensor([1.0, 2.0, 3.0, 6.0])}, weights, {})
    assert torch.allclose(scores["1"].mean(), torch.tensor(3.0))
    with pytest.raises(ScoreError, match="'0': it is deaf"):
        completed(graph, {}, weights, {"0": "it is deaf"})


def test_evidence_must_be_of_this_model_and_of_this_kind() -> None:
    model, graph, weights, data = linear()
    stats = measure(model, graph, data, want={"readings"})
    with pytest.raises(ScoreError, match="no effects"):
        taylor(graph, weights, stats)
    with pytest.raises(ScoreError, match="another model"):
        activation(graph, weights, replace(stats, fingerprint="other"))
    with pytest.raises(ArgumentError, match="of='loud'"):
        activation(graph, weights, stats, of="loud")  # type: ignore[arg-type]
