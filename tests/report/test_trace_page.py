"""The page of a graph: its costs add up, a group looks the same everywhere, and a plan shows what it takes."""

import re

import pytest
import torch
from torch import nn

from nervure import Cut, Drop, Mask, Plan, trace
from nervure.errors import PlanError
from nervure.graph import Graph
from nervure.methods import Magnitude
from nervure.methods.base import View
from nervure.report import graph_page
from nervure.report.layer_tree import group_lines, layer_lines, layer_tree, total
from nervure.zoo import build


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(build("resnet8", width=0.25), torch.randn(1, 3, 16, 16))


@pytest.fixture(scope="module")
def half(graph: Graph) -> Plan:
    weights = build("resnet8", width=0.25).state_dict()
    return Magnitude(keep=0.5, budget="macs").plan(View(graph, weights))


def test_what_layers_cost_adds_up_to_the_network_before_and_after_a_plan(graph: Graph, half: Plan) -> None:
    params, macs = total(layer_lines(graph, half))
    keeps = {cut.group: cut.keep.tensor() for cut in half.cuts}
    assert params == (graph.params(), graph.params(keeps))
    assert macs == (graph.macs(), graph.macs(keeps))


def test_what_hangs_on_a_group_is_what_leaves_with_all_its_units(graph: Graph) -> None:
    for line in group_lines(graph, Plan()):
        nothing = {line.group.name: torch.zeros(line.group.size, dtype=torch.bool)}
        assert line.params == graph.params() - graph.params(nothing)
        assert line.macs == graph.macs() - graph.macs(nothing)


def test_what_a_dropped_block_holds_leaves(graph: Graph) -> None:
    block = next(block for block in graph.blocks if not block.pinned)
    gone = [line for line in layer_lines(graph, Plan((Drop(block.name),))) if line.is_dropped]
    assert gone and all(line.params.after == line.macs.after == 0 for line in gone)
    assert "dropped by the plan" in graph_page(graph, "x", Plan((Drop(block.name),)))


def test_modules_lie_in_one_another_and_a_lone_one_is_told_with_its_parent(graph: Graph) -> None:
    root = layer_tree(layer_lines(graph, Plan()), graph.blocks)
    assert {"conv1", "layer1", "fc"} <= set(root.children)
    assert root.children["layer1"].label == "layer1.0"  # the only one in it
    assert root.children["layer1"].block is graph.block("layer1.0")
    assert len(list(root.lines)) == len(layer_lines(graph, Plan()))


def test_a_group_has_one_number_and_one_look_wherever_it_stands(graph: Graph) -> None:
    page = graph_page(graph, "x")
    looks: dict[str, set[str]] = {}
    for kind, number in re.findall(r'<a class="([^"]*)" href="#g(\d+)">', page.split("<h2>What stays")[0]):
        looks.setdefault(number, set()).add(kind)
    assert looks and all(len(kinds) == 1 for kinds in looks.values())
    coupled = {str(line.number) for line in group_lines(graph, Plan()) if len(line.group.writers) > 1}
    assert {number for number, kinds in looks.items() if " c" in min(kinds)} == coupled & set(looks)
    assert {f'id="g{line.number}"' in page for line in group_lines(graph, Plan())} == {True}


def test_what_stays_is_told_with_its_reason(graph: Graph) -> None:
    page = graph_page(graph, "x")
    assert "stay: model output" in page and "stays</a>" in page
    assert "can be dropped" in page


def test_a_plan_shows_what_leaves_each_group_and_layer(graph: Graph, half: Plan) -> None:
    page = graph_page(graph, "x", half)
    for cut in half.cuts:
        assert f"{cut.keep.size} → {cut.keep.count}" in page
        assert f"{cut.keep.size - cut.keep.count} leave" in page
    assert "leave</em>" not in graph_page(graph, "x")
    tensor = graph.products[0].tensor
    masked = Plan((Mask(tensor, torch.rand(graph.products[0].shape) < 0.5),))
    assert "of the weights stay" in graph_page(graph, "x", masked)


def test_the_plan_of_another_network_is_refused(graph: Graph, half: Plan) -> None:
    other = trace(build("resnet8", width=0.5), torch.randn(1, 3, 16, 16))
    with pytest.raises(PlanError, match="made for a graph with fingerprint"):
        graph_page(other, "x", half)
    with pytest.raises(PlanError, match="which has"):
        graph_page(graph, "x", Plan((Cut(graph.prunable[0].name, [True, False]),)))


def test_many_groups_are_folded_and_few_are_not(graph: Graph) -> None:
    deep = trace(nn.Sequential(*(nn.Linear(3, 3) for _ in range(60))), torch.randn(1, 3))
    assert "made by one layer each" in graph_page(deep, "x")
    assert "made by one layer each" not in graph_page(graph, "x")
