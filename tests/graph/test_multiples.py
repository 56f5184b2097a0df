"""Kernels that take units in multiples only: the graph says so, and every plan keeps to it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Magnitude, Random, apply, compact, prune, trace
from nervure.errors import PlanError
from nervure.evaluation.timing import random_plan
from nervure.graph import Graph
from nervure.methods.snacs.layerwise import unit_trials
from nervure.plan import Cut, Keep, Plan


class Experts(nn.Module):
    """Rows sorted by expert; gate and up stand beside each other in one matrix for each expert."""

    def __init__(self, width: int = 32, inner: int = 40) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.up = nn.Parameter(torch.randn(2, width, 2 * inner))
        self.down = nn.Parameter(torch.randn(2, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x, ends = self.embed(x), torch.tensor([3, 8], dtype=torch.int32)
        gate, up = F.grouped_mm(x, self.up, offs=ends).chunk(2, -1)
        return self.head(x + F.grouped_mm(F.silu(gate) * up, self.down, offs=ends))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Experts().eval().bfloat16()


@pytest.fixture
def graph(model: nn.Module) -> Graph:
    return trace(model, example())


def example(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


def half(graph: Graph, name: str, count: int) -> Plan:
    return Plan((Cut(name, Keep.of(torch.arange(graph[name].size) < count)),))


@pytest.mark.parametrize(("dtype", "multiple"), [(torch.bfloat16, 8), (torch.float32, 4)])
def test_units_of_a_grouped_product_go_in_multiples_of_16_bytes(dtype: torch.dtype, multiple: int) -> None:
    graph = trace(Experts().eval().to(dtype), example(dtype))
    assert {g.name: g.multiple for g in graph.prunable} == {"embed": multiple, "up.widths": multiple}
    assert f"in multiples of {multiple}" in str(graph)


def test_two_places_for_each_unit_halve_the_multiple() -> None:
    class Halves(Experts):
        def forward(self, x: Tensor) -> Tensor:
            x, ends = self.embed(x), torch.tensor([3, 8], dtype=torch.int32)
            gate, up = F.grouped_mm(x, self.up, offs=ends).chunk(2, -1)
            return (gate * up) @ self.down[0]

    assert trace(Halves().eval(), example(torch.float32))["up.widths"].multiple == 2


def test_too_few_units_for_a_multiple_are_pinned() -> None:
    graph = trace(Experts(width=4).eval(), example(torch.float32))
    assert "multiples of 4" in graph["embed"].pinned


@pytest.mark.parametrize("budget", ["channels", "params", "macs"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("method", [Magnitude, Random])
def test_every_budget_keeps_to_it(model: nn.Module, method: type[Magnitude | Random], budget: str, scope: str) -> None:
    pruned = prune(model, example(), method(keep=0.6, budget=budget, scope=scope), progress=False)
    assert pruned.plan.cuts and all(cut.keep.count % 8 == 0 for cut in pruned.plan.cuts)


def test_what_the_user_asks_beside_holds_too(model: nn.Module) -> None:
    pruned = prune(model, example(), Magnitude(keep=0.5, scope="layer", multiple=12), progress=False)
    assert {cut.group: cut.keep.count for cut in pruned.plan.cuts} == {"embed": 24, "up.widths": 24}


def test_a_cut_to_another_number_is_refused_with_the_next_that_fits(model: nn.Module, graph: Graph) -> None:
    with pytest.raises(PlanError, match="leaves 9 of 32 units.*multiples of 8 only: keep 16"):
        apply(model, graph, half(graph, "embed", 9))
    assert apply(model, graph, half(graph, "embed", 16))(example()).shape == (8, 3)


def test_a_size_that_is_no_multiple_may_stay_or_come_down_to_one(graph: Graph) -> None:
    odd = replace(graph["embed"], size=30)
    assert [odd.round_up(n) for n in (1, 8, 9, 25, 30)] == [8, 8, 16, 30, 30]


def test_sampled_widths_and_trials_of_single_groups_keep_to_it(graph: Graph) -> None:
    cuts = [cut for number in range(12) for cut in random_plan(graph, number).cuts]
    trials = unit_trials(graph, {g.name: torch.arange(g.size).float() for g in graph.prunable})
    cuts += [cut for steps in trials.values() for _, cut in steps if isinstance(cut, Cut)]
    assert cuts and all(cut.keep.count % 8 == 0 for cut in cuts)


def test_silent_units_stay_where_their_number_would_not_fit(graph: Graph) -> None:
    down, up = torch.ones(2, 40, 32, dtype=torch.bool), torch.ones(2, 32, 2, 40, dtype=torch.bool)
    down[:, :13], up[..., :13] = False, False
    (cut,) = compact(graph, {"down": down, "up": up.flatten(2)}).cuts
    assert cut.keep.count == 32 and cut.keep.tensor()[13:].all()


def test_a_graph_keeps_it_in_its_file_and_reads_files_without(graph: Graph) -> None:
    data = graph.to_json()
    assert Graph.from_json(data) == graph
    for group in data["groups"]:
        del group["multiple"]
    old = Graph.from_json(data)
    assert old["embed"].multiple == 1 and old.fingerprint == graph.fingerprint
