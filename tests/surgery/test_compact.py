"""Silent channels become cuts, and the network computes the same."""

import pytest
import torch
from torch import Tensor, nn

from nervure import Keep, Mask, Plan, apply, compact, trace
from nervure.errors import ArgumentError, PlanError
from nervure.graph.types import Graph
from tests.networks import NETWORKS, traced
from tests.oracle import call, difference

X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def net(norm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    ).eval()


def ones(model: nn.Module, *names: str) -> dict[str, Tensor]:
    return {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}


def same(model: nn.Module, graph: Graph, masks: dict[str, Tensor], plan: Plan) -> None:
    masked = Plan(tuple(Mask(name, Keep.of(keep)) for name, keep in masks.items()))
    expected = call(apply(model, graph, masked), X)
    assert difference(expected, call(apply(model, graph, plan), X)) < 1e-5


def keeps(plan: Plan) -> dict[str, list[bool]]:
    return {cut.group: cut.keep.tensor().tolist() for cut in plan.cuts}


def test_channels_that_nothing_reads_leave_and_what_only_they_heard_leaves_too() -> None:
    model = net()
    graph, masks = trace(model, X), ones(model, "3.weight", "6.weight")
    masks["6.weight"][:, 36:72] = False
    masks["3.weight"][[0, 2, 3], 4] = False
    plan = compact(graph, masks)
    assert keeps(plan) == {"3": [True, False, True, True], "0": [True, True, True, True, False]}
    same(model, graph, masks, plan)
    assert compact(graph, plan) == plan


def test_one_reader_is_enough_to_stay() -> None:
    model = net()
    graph, masks = trace(model, X), ones(model, "3.weight")
    masks["3.weight"][:, 1] = False
    masks["3.weight"][2, 1, 0, 0] = True
    assert not compact(graph, masks).cuts


def test_a_group_keeps_a_unit_even_where_all_are_silent() -> None:
    model = net()
    graph, masks = trace(model, X), ones(model, "3.weight")
    masks["3.weight"][:] = False
    plan = compact(graph, masks)
    assert keeps(plan) == {"0": [True, False, False, False, False]}
    same(model, graph, masks, plan)


def test_deaf_channels_that_say_zero_leave_where_the_model_is_shown() -> None:
    model = net()
    graph, masks = trace(model, X), ones(model, "0.weight")
    masks["0.weight"][[1, 3]] = False
    assert not compact(graph, masks).cuts
    plan = compact(graph, masks, model=model, example=X)
    assert keeps(plan) == {"0": [True, False, True, False, True]}
    same(model, graph, masks, plan)


def test_deaf_channels_that_say_something_constant_stay() -> None:
    model = net(norm=True)
    with torch.no_grad():
        model[1].bias[1] = 2.0
        model[1].bias[3] = -1.0
    graph, masks = trace(model, X), ones(model, "0.weight")
    masks["0.weight"][[1, 3]] = False
    plan = compact(graph, masks, model=model, example=X)
    assert keeps(plan) == {"0": [True, True, True, False, True]}
    same(model, graph, masks, plan)


def test_a_norm_over_the_channels_keeps_them() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 3)).eval()
    x = torch.randn(5, 2)
    graph, masks = trace(model, x), ones(model, "2.weight")
    masks["2.weight"][:, 1] = False
    assert not compact(graph, masks).cuts


def test_bad_input_is_refused() -> None:
    model = net()
    graph = trace(model, X)
    with pytest.raises(ArgumentError, match="example"):
        compact(graph, Plan(), model=model)
    with pytest.raises(PlanError):
        compact(graph, {"nothing.weight": torch.ones(2, dtype=torch.bool)})


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_compact_networks_compute_what_the_masked_ones_do(name: str) -> None:
    model, example, graph = traced(name)
    generator = torch.Generator().manual_seed(1)
    masks: dict[str, Tensor] = {}
    for group in graph.prunable:
        silent = torch.rand(group.size, generator=generator) < 0.4
        for slot in group.readers:
            units = torch.tensor(slot.units.array)
            gone = (units >= 0) & silent[units.clamp(min=0)]
            shape = [graph.axes[axis].size for axis in graph.tensors[slot.tensor]]
            index = [1] * len(shape)
            index[slot.axis] = len(gone)
            before = masks.get(slot.tensor, torch.ones(shape, dtype=torch.bool))
            masks[slot.tensor] = before & ~gone.reshape(index)
    masked = Plan(tuple(Mask(n, Keep.of(keep)) for n, keep in masks.items()), graph.fingerprint)
    plan = compact(graph, masked, model=model, example=example)
    expected = call(apply(model, graph, masked), example)
    assert difference(expected, call(apply(model, graph, plan), example)) < 1e-4


def test_a_model_without_numbers_is_told() -> None:
    model = net()
    graph = trace(model, X)
    with pytest.raises(ArgumentError, match="shapes without numbers"):
        compact(graph, ones(model, "0.weight"), model=net().to("meta"), example=X)
