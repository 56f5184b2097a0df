"""What memory is predicted for a network, whole or cut, is what it takes when it runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.architectures import ARCHITECTURES
from nervure import SNACS, Depth, GCNet, Graph, Magnitude, Plan, apply, count, prune, trace, zoo
from nervure.budget import BUDGETS, Budget, CostModel, allocate, find_budget
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError, BudgetError, PlanError
from nervure.methods import method_keeping
from nervure.recipe import Recipe
from nervure.scores import random_scores
from tests.networks.registry import NETWORKS

MEMORY = BUDGETS["memory"]
EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LAWFUL = """
bottlenecks conv_next depthwise dense_block dict_output in_place inverted_residual llama mlp_mixer padding_modes
patch_merging pooling residual rms_norm rotary separate_qkv shuffle_unit squeeze_excitation tied_embedding two_inputs
unet vit attention_u_net high_resolution inception linear_attention mamba rep_vgg seg_net shifted_windows experts
wave_net
"""


def resnet() -> Any:
    torch.manual_seed(0)
    return zoo.build("resnet8", width=0.5).eval()


def made(name: str) -> tuple[nn.Module, Any]:
    factory, example = NETWORKS[name] if name in NETWORKS else ARCHITECTURES[name]
    torch.manual_seed(0)
    return factory().eval(), example()


class Storages(TorchDispatchMode):
    """Bytes of all storages that are alive, after every operator: a referee that knows nothing of nervure."""

    def __init__(self, *there: Any) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.look(there)

    def look(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.look(out)
        return out


def measured(model: nn.Module, example: Any) -> int:
    held = [list(model.parameters()), list(model.buffers())]
    with torch.no_grad(), Storages(held, example) as storages:
        Inputs.of(example).run(model)
    return storages.peak


@pytest.mark.sampled(times=0)
@pytest.mark.parametrize("name", LAWFUL.split())
def test_what_is_predicted_is_what_a_forward_takes(name: str) -> None:
    model, example = made(name)
    graph = trace(model, example)
    assert MEMORY.predict(graph) == pytest.approx(measured(model, example), rel=0.02)
    assert count(model, example).memory == MEMORY.predict(graph)
    for seed, keep in enumerate((0.7, 0.5)):
        # Of a single unit along an axis a view needs no copy: the smallest networks would take less than predicted.
        plan = allocate(graph, random_scores(graph, seed=seed), keep=keep, minimum=2)
        smaller = apply(model, graph, plan)
        assert MEMORY.predict(graph, plan) == pytest.approx(measured(smaller, example), rel=0.02)
        assert count(smaller, example).memory == pytest.approx(MEMORY.predict(graph, plan), rel=0.02)


def test_what_is_held_longer_than_it_is_read_counts() -> None:
    class Holds(nn.Module):
        def __init__(self, lets_go: bool) -> None:
            super().__init__()
            self.lets_go = lets_go
            self.wide, self.narrow = nn.Linear(4, 1000), nn.Linear(1000, 4)

        def forward(self, x: Tensor) -> Tensor:
            wide = self.wide(x)
            x = self.narrow(wide)
            if self.lets_go:
                del wide
            return x.repeat(1, 300)

    graphs = [trace(Holds(lets_go), torch.zeros(1, 4)) for lets_go in (True, False)]
    assert MEMORY.predict(graphs[1]) - MEMORY.predict(graphs[0]) == pytest.approx(4 * 1000, abs=100)


def test_the_kernels_of_a_recurrent_network_take_less_than_its_operators() -> None:
    # Traced operator by operator; oneDNN fuses them.
    model, example = made("lstm")
    assert measured(model, example) < MEMORY.predict(trace(model, example))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_attention_of_pytorch_takes_no_more_than_predicted_once_it_is_cut() -> None:
    model, example = made("detr")
    graph = trace(model, example)
    plan = allocate(graph, random_scores(graph, seed=0), keep=0.6)
    assert measured(apply(model, graph, plan), example) <= MEMORY.predict(graph, plan)


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_a_budget_of_memory_is_met_and_used(keep: float) -> None:
    model = resnet()
    found = prune(model, EXAMPLE, Magnitude(keep=keep, budget="memory"), progress=False)
    before, after = measured(model, EXAMPLE), measured(found.model, EXAMPLE)
    assert (before, after) == (found.cost_before.memory, found.cost_after.memory)
    assert 0.9 * keep * before < after <= keep * before
    assert found.plan.reached["memory"] == after and found.plan.reached["keep"] == after / before


def test_nothing_that_left_could_come_back() -> None:
    graph = trace(resnet(), EXAMPLE)
    scores = random_scores(graph, seed=0)
    plan = allocate(graph, scores, keep=0.5, budget="memory")
    for cut in plan.cuts:
        keep = cut.keep.tensor().clone()
        gone = torch.nonzero(~keep).flatten()
        keep[gone[scores[cut.group][gone].argmax()]] = True
        more = replace(cut, keep=type(cut.keep).of(keep))
        edits = tuple(more if other is cut else other for other in plan.cuts)
        assert MEMORY.predict(graph, replace(plan, edits=edits)) > 0.5 * MEMORY.predict(graph)


@pytest.mark.parametrize("target", ["0.1 MB", "100 KB", "100kb", 100_000, 100_000.0, "97.65625 KiB"])
def test_memory_is_asked_for_in_bytes(target: Any) -> None:
    found = prune(resnet(), EXAMPLE, Magnitude(budget="memory", target=target), progress=False)
    assert 95_000 < found.cost_after.memory <= 100_000
    assert found.plan.asked["target"] == target and found.plan.asked["budget"] == "memory"


def test_what_is_there_already_is_left_alone() -> None:
    assert not prune(resnet(), EXAMPLE, Magnitude(budget="memory", target="1.5 GiB"), progress=False).plan.edits


def test_prune_takes_a_budget_without_a_method() -> None:
    asked: list[dict[str, Any]] = [
        {"budget": "100 KB"},
        {"budget": "memory", "keep": 0.5},
        {"budget": MEMORY, "keep": 0.5},
    ]
    by_bytes, by_name, by_value = (prune(resnet(), EXAMPLE, **one, progress=False) for one in asked)
    assert by_bytes.cost_after.memory <= 100_000 and by_bytes.plan.asked["target"] == "100 KB"
    assert by_name.plan.cuts == by_value.plan.cuts and by_name.cost_after.memory <= by_name.cost_before.memory / 2
    assert prune(resnet(), EXAMPLE, keep=0.5, progress=False).plan.asked["budget"] == "macs"
    for wrong in ({}, {"budget": "memory"}, {"budget": "100 KB", "keep": 0.5}):
        with pytest.raises(ArgumentError, match="does not say how much stays"):
            prune(resnet(), EXAMPLE, **wrong)
    with pytest.raises(ArgumentError, match="say it in the method"):
        prune(resnet(), EXAMPLE, Magnitude(), keep=0.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": "200 MX"}, r"is no size. Write a number and its unit, like '3 MB' \(or KB, GB"),
        ({"target": "MB"}, "is no size"),
        ({"target": "0 MB"}, "is no size"),
        ({"target": "3 ms"}, "is no size"),
        ({"target": -1}, "target is a finite number above 0"),
        ({"target": 0.5, "budget": "macs"}, "needs budget='latency' or budget='memory'"),
        ({"target": "200 MB", "budget": "latency"}, "is no time"),
        ({"budget": "memroy"}, "Did you mean 'memory'"),
    ],
)
def test_what_is_no_amount_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        Magnitude(**({"budget": "memory"} | options))


def test_what_cannot_be_met_is_told_in_bytes() -> None:
    with pytest.raises(BudgetError, match=r"of 0\.\d+ MB allows 0\.\d+ MB.*smallest keep that can be met is") as found:
        prune(resnet(), EXAMPLE, Magnitude(budget="memory", target="1 KB"), progress=False)
    assert found.value.keep is not None
    prune(resnet(), EXAMPLE, Magnitude(budget="memory", keep=found.value.keep), progress=False)


def test_masks_save_no_memory() -> None:
    with pytest.raises(ArgumentError, match="a masked weight takes as much memory as before"):
        method_keeping("SynFlow", {}, keep=0.5, budget="memory")
    with pytest.raises(ArgumentError, match="budget='memory' is not one of 'weights'"):
        SNACS(budget="memory", granularity="kernels")


def test_a_graph_of_before_says_that_it_must_be_traced_again() -> None:
    data = trace(resnet(), EXAMPLE).to_json()
    graph = Graph.from_json({key: value for key, value in data.items() if key not in ("memory", "element_bytes")})
    assert BUDGETS["macs"].predict(graph) > 0
    allocate(graph, random_scores(graph, seed=0), keep=0.5)
    with pytest.raises(ArgumentError, match="Trace the model again"):
        MEMORY.predict(graph)


def test_memory_is_written_and_read_and_must_fit_the_graph() -> None:
    graph = trace(resnet(), EXAMPLE)
    assert Graph.from_json(graph.to_json()) == graph and graph.memory and graph.element_bytes
    for wrong in (replace(graph.memory[0], axes=(10_000,)), replace(graph.memory[0], last=1 << 40)):
        broken = replace(graph, memory=(wrong, *graph.memory[1:])).to_json()
        with pytest.raises(PlanError, match="memory 0"):
            Graph.from_json(broken)
    with pytest.raises(PlanError, match="memory of 'nowhere'"):
        Graph.from_json(replace(graph, element_bytes={"nowhere": 4}).to_json())


def test_the_table_is_small_where_layers_repeat() -> None:
    graph = trace(nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(50)]), torch.zeros(2, 8))
    assert len(graph.memory) < 4 * 50


def squares(costs: CostModel) -> Callable[[np.ndarray], float]:
    return lambda alive: 4.0 * costs.params(alive) + 1e-3 * costs.macs(alive)


SQUARES = Budget("squares", "bytes moved", squares, units={"kB": 1e3, "B": 1.0})


def test_a_budget_of_ones_own_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prune(resnet(), EXAMPLE, Magnitude(keep=0.5, budget=SQUARES), progress=False)
    graph = found.graph
    assert 0.4 < SQUARES.predict(graph, found.plan) / SQUARES.predict(graph) <= 0.5
    assert found.plan.reached["squares"] == SQUARES.predict(graph, found.plan) and "Budget('squares')" in found.method
    amount = prune(resnet(), EXAMPLE, Magnitude(target="30 kB", budget=SQUARES), progress=False)
    assert 25e3 < SQUARES.predict(amount.graph, amount.plan) <= 30e3
    (tmp_path / "own_budget.py").write_text(
        "from nervure.budget import Budget\nHALF = Budget('half', 'halves', lambda costs: costs.params)\nNONE = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_budget("own_budget:HALF").name == "half"
    assert Magnitude(keep=0.5, budget="own_budget:HALF").budget == "own_budget:HALF"
    assert prune(resnet(), EXAMPLE, keep=0.5, budget="own_budget:HALF", progress=False).plan.asked["budget"] == "half"
    with pytest.raises(ArgumentError, match="own_budget has no Budget 'NONE'"):
        find_budget("own_budget:NONE")


def test_a_recipe_asks_for_memory() -> None:
    text = (
        '[model]\nname = "resnet8"\n[data]\nname = "digits"\n[prune]\nbudget = "memory"\noptions = {target = "1 MB"}\n'
    )
    assert Recipe.from_toml(text).prune.budget == "memory"


def test_the_command_line_plans_for_memory(tmp_path: Path) -> None:
    words = ["plan", "--budget", "memory", "--target"]
    more = ["90 KB", "--model", "resnet8", "--input", "1x3x8x8", "-o", str(tmp_path / "plan.json")]
    done = subprocess.run([sys.executable, "-m", "nervure", *words, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Plan.from_json(json.loads((tmp_path / "plan.json").read_text())).reached["memory"] <= 90_000


@pytest.mark.parametrize("asked", [{"keep": 0.6}, {"memory": 0.6}, {"memory": "60 KB"}, {"memory": 60_000}])
def test_blocks_are_dropped_for_memory(asked: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[Residual() for _ in range(8)]).eval()
    found = prune(model, torch.zeros(1, 16), Depth(score="random", budget="memory", **asked), progress=False)
    before, after = measured(model, torch.zeros(1, 16)), measured(found.model, torch.zeros(1, 16))
    goal = 0.6 * before if isinstance(next(iter(asked.values())), float) else 60_000
    assert after <= goal and found.plan.drops
    # Everything that stays is in the last of the budget: one block more would not fit.
    assert after + before / 8 > goal


def test_an_amount_of_another_budget_is_refused_for_blocks() -> None:
    for wrong, told in (
        ({"memory": "3 MB"}, "needs budget='memory'. Else"),
        ({"latency": "3 ms", "budget": "memory"}, "needs budget='latency'. Else"),
        ({"memory": "3 ms", "budget": "memory"}, "memory='3 ms' is no size"),
        ({"memory": "3 MB", "budget": "memory", "drop": 1}, "say it in one way"),
    ):
        with pytest.raises(ArgumentError, match=told):
            Depth(**wrong)
    assert method_keeping("Depth", {}, keep=0.5, budget="memory", target="3 MB") == Depth(
        budget="memory", memory="3 MB"
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_every_plan_names_its_budget_in_plain_data() -> None:
    timed = Magnitude(budget=BUDGETS["latency"], target=1.0)
    whole = GCNet(density=1.0, budget=MEMORY, granularity="filters")
    data = [(EXAMPLE, torch.zeros(2, dtype=torch.long))]
    for method, name in ((timed, "latency"), (whole, "memory"), (Magnitude(keep=1.0, budget=SQUARES), "squares")):
        plan = prune(resnet(), EXAMPLE, method, data=data, progress=False).plan
        assert json.loads(json.dumps(plan.to_json()))["asked"]["budget"] == name
