"""A graph that comes from a file names modules and attributes: plain numbers of the model's own, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nervure import Drop, Graph, Keep, Link, Magnitude, Mask, Plan, apply, trace
from nervure.errors import PlanError
from nervure.graph.types import Block, ConfigSize, SizeAttribute, ZeroStub
from nervure.methods import View
from nervure.plan import Route


class Config:
    """Says a size, and has a property that must not be asked."""

    def __init__(self) -> None:
        self.hidden_size = 8

    @property
    def trap(self) -> int:
        raise AssertionError("a property was called")


class Net(nn.Module):
    """One hidden layer of 8, whose width is noted in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.width, self.sizes, self.share = Config(), 8, (8, 3), 8.0
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    @property
    def trap(self) -> int:
        raise AssertionError("a property was called")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]


@pytest.fixture
def traced() -> tuple[Net, Graph, Plan]:
    torch.manual_seed(0)
    net = Net()
    graph = trace(net, torch.randn(2, 4))
    weights = {name: tensor.detach() for name, tensor in net.named_parameters()}
    return net, graph, Magnitude(keep=0.5, budget="channels").plan(View(graph, weights))


HOSTILE = [
    ("", "trap"), ("", "config.trap"), ("", "__class__"), ("", "__dict__"), ("", "training"), ("", "_parameters"),
    ("", "config"), ("", "config.__class__"), ("", "config.none"), ("", "none.hidden_size"), ("", "share"),
    ("", "sizes"), ("", "sizes[2]"), ("", "sizes[-1]"), ("", "sizes[x]"), ("", "sizes[0"), ("", "width[0]"), ("", ""),
    ("", "first.in_features"), ("trap", "width"), ("none", "width"), ("config", "hidden_size"), ("first.", "width"),
    ("first", "weight"), ("second", "forward.__globals__"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "attribute"), HOSTILE)
def test_a_graph_sets_whole_numbers_of_modules_and_configs_only(
    traced: tuple[Net, Graph, Plan], module: str, attribute: str
) -> None:
    net, graph, plan = traced
    axis = graph.tensors["first.weight"][0]
    with pytest.raises(PlanError, match="whole number"):
        apply(net, replace(graph, resizes=(SizeAttribute(module, attribute, 8, axis),)), plan)
    with pytest.raises(PlanError, match="whole number"):
        apply(net, replace(graph, declared=(ConfigSize(module, attribute, 8, (plan.cuts[0].group,)),)), plan)


@pytest.mark.parametrize("attribute", ["width", "sizes[0]", "config.hidden_size"])
def test_whole_numbers_that_are_there_follow(traced: tuple[Net, Graph, Plan], attribute: str) -> None:
    net, graph, plan = traced
    smaller = apply(
        net, replace(graph, resizes=(SizeAttribute("", attribute, 8, graph.tensors["first.weight"][0]),)), plan
    )
    assert {"width": smaller.width, "sizes[0]": smaller.sizes[0], "config.hidden_size": smaller.config.hidden_size}[
        attribute
    ] == 4
    assert (net.width, net.sizes, net.config.hidden_size) == (8, (8, 3), 8)


@pytest.mark.parametrize(
    "block",
    [
        Block("b", ("none",), "residual"),
        Block("b", ("trap",), "residual"),
        Block("b", ("",), "residual"),
        Block("b", ("__class__",), "residual"),
        Block("b", ("config",), "residual"),
        Block("b", ("first",), "residual", aliases=("trap",)),
        Block("b", ("first",), "residual", silences=(ZeroStub("trap", (2, 4), (2, 8)),)),
        Block("b", ("first",), "residual", element="first"),
        Block("b", ("first",), "residual", element="layers.x"),
    ],
)
def test_a_block_is_made_of_modules_that_are_there(traced: tuple[Net, Graph, Plan], block: Block) -> None:
    net, graph, _ = traced
    with pytest.raises(PlanError, match="another model: block 'b' names"):
        apply(net, replace(graph, blocks=(block,)), Plan((Drop("b"),)))


@pytest.mark.parametrize("tensor", ["trap", "trap.weight", "first.forward", "first.__class__", "config.trap", "none"])
def test_a_mask_is_laid_on_a_tensor_that_is_there(traced: tuple[Net, Graph, Plan], tensor: str) -> None:
    net, graph, _ = traced
    mask = Mask(tensor, Keep.of(torch.ones(8, dtype=torch.bool)))
    with pytest.raises(PlanError, match="no such tensor|another model"):
        apply(
            net, replace(graph, tensors={**graph.tensors, tensor: (graph.tensors["first.weight"][0],)}), Plan((mask,))
        )


@pytest.mark.parametrize("module", ["trap", "first.weight", "config", "__class__", "none"])
def test_a_link_joins_modules_that_are_there(traced: tuple[Net, Graph, Plan], module: str) -> None:
    net, graph, _ = traced
    keep = Keep.of(torch.ones(8, 8, dtype=torch.bool))
    for route in (Route(reads=module, joins="first"), Route(reads="first", joins=module)):
        with pytest.raises(PlanError):
            apply(net, graph, Plan((Link("", "", keep, route),)))
