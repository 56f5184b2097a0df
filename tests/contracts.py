"""The laws that every criterion, allocator, edit and method keeps; a new one gets them all by a line in a list here."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import nervure
from nervure import (
    ERK,
    FPGM,
    GMP,
    MINT,
    SET,
    SNACS,
    SNIP,
    Activation,
    Compensated,
    Cut,
    Depth,
    Drop,
    Energy,
    Fisher,
    GCNet,
    Graph,
    GraSP,
    Keep,
    Link,
    Magnitude,
    MagnitudeMasks,
    Mask,
    N2NSkip,
    Plan,
    Random,
    Ranking,
    Slimming,
    SparseGPT,
    SynFlow,
    Synthesis,
    Taylor,
    Wanda,
    apply,
    count,
    hold,
    prune,
    trace,
    verify,
)
from nervure.budget import allocate
from nervure.budget.allocate import kind_of, structure_of
from nervure.errors import VerificationError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Axis, Units
from nervure.methods import OBS, Method, View, gather_evidence
from nervure.scores import Scores, fpgm, magnitude, random_scores, slimming
from nervure.surgery.price import price
from tests.networks import NETWORKS, traced
from tests.old_snacs import old_snacs
from tests.oracle import call, difference, tensors

Weights = Mapping[str, Tensor]

CRITERIA: dict[str, Callable[[Graph, Weights], Scores]] = {
    "magnitude, norm 1": lambda graph, weights: magnitude(graph, weights, norm=1),
    "magnitude, norm 2": lambda graph, weights: magnitude(graph, weights, norm=2),
    "random": lambda graph, weights: random_scores(graph, seed=3),
    "fpgm": fpgm,
    "slimming": slimming,
}
EQUIVARIANT = ("magnitude, norm 1", "magnitude, norm 2", "fpgm", "slimming")
"""Criteria that see the weights: permuting channels permutes their scores."""

ALLOCATORS: dict[str, dict[str, Any]] = {
    f"{scope} {budget}": {"scope": scope, "budget": budget}
    for scope in ("global", "layer", "kind", "isomorphic", "uniform")
    for budget in ("channels", "params", "macs")
}

METHODS: tuple[Method, ...] = (
    Magnitude(keep=0.5),
    Magnitude(keep=0.6, norm=2, scope="layer", budget="macs"),
    Magnitude(keep=0.6, budget="params", multiple=2),
    Random(keep=0.5),
    Random(keep=0.7, seed=4, scope="global", budget="params"),
    FPGM(keep=0.5, budget="macs"),
    Slimming(keep=0.5, scope="layer"),
    Taylor(keep=0.5, budget="macs"),
    Fisher(keep=0.6, normalise="none"),
    Activation(keep=0.5, of="alive", multiple=2),
    OBS(keep=0.5, samples=60),
    Ranking(keep=0.5, criterion="fpgm", scope="kind"),
    MINT(keep=0.5, groups=2, samples=6, minimum=2),
    SNACS(keep=0.5, samples=6),
    SNACS(keep=0.6, granularity="kernels", limits=False),
    SNACS(keep=None, granularity="kernels"),
    Compensated(keep=None, slack=0.5, samples=60),
    old_snacs(keep=0.6),
    old_snacs(keep=0.7, granularity="filters"),
    old_snacs(keep=0.5, granularity="filters", budget="params", multiple=2, propagated=True, limits=False),
    GCNet(density=0.6, granularity="filters", mode="product", estimator="correlation"),
)

MASKING: tuple[Method, ...] = (
    SNIP(density=0.5),
    SNIP(density=0.4, steps=2, revive=True, distribution="erk", batches=2, statistics="running"),
    GraSP(density=0.5, guard="outputs"),
    SynFlow(density=0.4, steps=4),
    ERK(density=0.4),
    ERK(density=0.5, distribution="uniform", granularity="block", block=(2, 1), seed=3),
    Wanda(density=0.5),
    Wanda(density=0.4, distribution="outliers", samples=40),
    MagnitudeMasks(density=0.4, distribution="spectrum", guard="outputs"),
    SparseGPT(density=0.5, samples=60),
    GCNet(density=0.5, samples=60, guard="outputs"),
    GCNet(density=0.5, mode="mix", distribution="erk", granularity="element", estimator="gaussian", rounds=2),
    MagnitudeMasks(density=0.5, granularity="kernel"),
    N2NSkip(density=0.5, span=2),
    N2NSkip(density=0.4, share=0.3, first=ERK(), span=2, granularity="element", norm=False, reinit=True, seed=2),
    SET(density=0.5),
    GMP(density=0.3, start=0.6),
    Synthesis(density=0.6, start=0.45),
)
"""Methods that mask weights; some of them lay links too."""

DROPPING: tuple[Method, ...] = (
    Energy(keep=0.9, budget="macs", rounds=1),
    Energy(keep=0.9, score="r2", target="labels", policy="ckmeans", rounds=1),
    Energy(drop=1, score="dcor", target="outputs", policy="rank"),
    Depth(drop=1, score="cka"),
    Depth(keep=0.9, score="random", seed=3),
)
"""Methods that drop blocks, for the models that have some."""

ASKING_MEANWHILE: dict[Method, str] = {
    N2NSkip(density=0.4, first=SynFlow(steps=2), span=2): "the rounds of the first step go to what the skips leave it",
}
"""Methods whose plans run the network all the same, and why. Those that cut for a latency time what they try too."""

WITH_BLOCKS = ("projection", "bottlenecks", "mlp_mixer", "encoder_layer")

MODELS = (
    "residual",
    "concat",
    "grouped_conv",
    "depthwise",
    "squeeze_excitation",
    "shared_twice",
    "flatten_linear",
    "vit",
)


class Case(NamedTuple):
    """A model, an example that fits it and its graph."""

    model: nn.Module
    example: Any
    graph: Graph
    weights: dict[str, Tensor]


def case(name: str) -> Case:
    """One of the shared models, traced."""
    model, example, graph = traced(name)
    return Case(model, example, graph, {k: v.detach() for k, v in named_tensors(model).items()})


def data_for(model: nn.Module, example: Any) -> list[Any]:
    """Batches like the example, labelled by chance, for methods that measure."""
    inputs = example if isinstance(example, tuple) else (example,)
    classes = next(iter(tensors(call(model, example)))).shape[1]
    generator = torch.Generator().manual_seed(5)
    drawn = [tuple(torch.randn(x.shape, generator=generator) for x in inputs) for _ in range(12)]
    return [(x, torch.randint(classes, (len(x[0]),), generator=generator)) for x in drawn]


class Epochs:
    """The batches in another order in each epoch; in their own in the first."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.epoch = batches, 0

    def __iter__(self) -> Iterator[Any]:
        drawn = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        order = drawn if self.epoch else range(len(self.batches))
        self.epoch += 1
        return iter([self.batches[i] for i in order])


def frozen(weights: Weights) -> dict[str, Tensor]:
    """Copies, to see later that nothing was changed."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def assert_same(weights: Weights, before: Weights) -> None:
    """Bit for bit."""
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


def scores_are_one_finite_number_per_unit_and_inputs_stay(c: Case, criterion: str) -> None:
    """Laws 1 and 3."""
    before = frozen(c.weights)
    scores = CRITERIA[criterion](c.graph, c.weights)
    assert set(scores) == {g.name for g in c.graph.prunable}
    for group in c.graph.prunable:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].is_floating_point()
        assert torch.isfinite(scores[group.name]).all()
    assert_same(c.weights, before)


def scores_keep_the_precision_of_the_weights(c: Case, criterion: str) -> None:
    """Law 3: what is measured in double precision is scored in double precision, on the same device."""
    weights = {name: t.double() if t.is_floating_point() else t for name, t in c.weights.items()}
    for score in CRITERIA[criterion](c.graph, weights).values():
        assert (score.dtype, score.device) == (torch.float64, next(iter(weights.values())).device)


def permuting_channels_permutes_scores(c: Case, criterion: str) -> None:
    """Law 4: the weights with unit order[u] where u was give the scores in that order."""
    scores, compared = CRITERIA[criterion](c.graph, c.weights), 0
    for group in c.graph.prunable:
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))
        weights = dict(c.weights)
        for slot in group.slots:
            index = _permuted(slot.units.array.tolist(), order.tolist())
            if index is None:
                break
            weights[slot.tensor] = weights[slot.tensor].index_select(slot.axis, index)
        else:
            again = CRITERIA[criterion](c.graph, weights)[group.name]
            torch.testing.assert_close(again, scores[group.name][order])
            compared += 1
    assert compared


def _permuted(units: list[int], order: list[int]) -> Tensor | None:
    """Positions with the n-th place of unit order[u] at the n-th place of u; None where a unit has fewer places."""
    places: dict[int, list[int]] = {}
    for position, unit in enumerate(units):
        places.setdefault(unit, []).append(position)
    if len({len(places.get(unit, [])) for unit in order}) > 1:
        return None
    index = list(range(len(units)))
    for unit, source in enumerate(order):
        for to, start in zip(places.get(unit, []), places.get(source, []), strict=True):
            index[to] = start
    return torch.tensor(index)


def the_budget_is_met_and_never_exceeded(c: Case, allocator: str, keep: float) -> None:
    """Law 5, with ties: all scores equal."""
    scores = {g.name: torch.ones(g.size) for g in c.graph.prunable}
    options = ALLOCATORS[allocator]
    plan = allocate(c.graph, scores, keep=keep, **options)
    keeps = {cut.group: cut.keep.tensor() for cut in plan.cuts}
    assert all(mask.any() for mask in keeps.values())
    if options["budget"] == "channels":
        left = sum(int(keeps[g.name].sum()) if g.name in keeps else g.size for g in c.graph.prunable)
        by_scope: dict[str, Callable[[Any], object]] = {
            "global": lambda g: "all",
            "kind": kind_of,
            "isomorphic": lambda g: structure_of(g, c.graph),
        }
        pool_of = by_scope.get(options["scope"], lambda g: g.name)
        pools = [[g.size for g in c.graph.prunable if pool_of(g) == p] for p in {*map(pool_of, c.graph.prunable)}]
        assert left == sum(max(round(keep * sum(sizes)), len(sizes)) for sizes in pools)
    else:
        price = c.graph.params if options["budget"] == "params" else c.graph.macs
        assert price(keeps) <= keep * price()


def a_method_keeps_the_laws(c: Case, method: Method) -> None:
    """Laws 1, 2, 6, 9 to 15 for one method on one model."""
    before = frozen(c.weights)
    data = data_for(c.model, c.example)
    pruned = prune(c.model, c.example, method, data=data, progress=False)
    assert_same(c.weights, before)
    assert pruned.verification is not None
    again = prune(c.model, c.example, method, data=Epochs(data), progress=False, verify=False)
    assert again.plan == pruned.plan
    assert eval(repr(method), {name: getattr(nervure, name) for name in nervure.__all__}) == method
    assert Plan.from_json(json.loads(json.dumps(pruned.plan.to_json()))) == pruned.plan
    cost = count(pruned.model, c.example)
    links = pruned.plan.links
    alone = replace(pruned.plan, edits=tuple(edit for edit in pruned.plan if edit not in links))
    counted = count(apply(c.model, c.graph, alone), c.example) if links else cost
    assert price(pruned.graph, pruned.plan) == (counted.params, counted.macs)
    assert cost == pruned.cost_after
    assert all(g.size > 0 for g in trace(pruned.model, c.example).groups)
    the_result_is_an_ordinary_model(pruned.model, c.example)


def a_plan_follows_from_evidence(c: Case, method: Method) -> None:
    """Law 16: given what the method wants, its plan needs no data and runs no network; without, it is the same plan."""
    view = View(c.graph, c.weights, None, 0, c.model, c.example, data_for(c.model, c.example))
    plan = a_plan_runs_no_network(view, method)
    assert plan == method.plan(view)


def a_plan_runs_no_network(view: View, method: Method) -> Plan:
    """The first half of it; the plan."""
    gathered = replace(gather_evidence(method, view), data=None)
    with counting_runs() as runs:
        plan = method.plan(gathered)
    assert not runs, f"{len(runs)} modules ran, first {runs[0]}"
    return plan


@contextmanager
def counting_runs() -> Iterator[list[str]]:
    """The modules that are called meanwhile, of whatever model or copy."""
    runs: list[str] = []
    hook = register_module_forward_pre_hook(lambda module, args: runs.append(type(module).__name__))
    try:
        yield runs
    finally:
        hook.remove()


def the_result_is_an_ordinary_model(model: nn.Module, example: Any) -> None:
    """Law 11: deepcopy, state_dict, export, backward; and law 15: every output hears the inputs."""
    expected = call(model, example)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert difference(expected, call(twin, example)) == 0
    args = example if isinstance(example, tuple) else (example,)
    exported = torch.export.export(twin, args).module()
    assert difference(expected, call(exported, args)) < 1e-5
    outputs = twin(*args)
    leaves = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(out.square().sum() for out in leaves).backward()
    assert all(p.grad is not None for p in twin.parameters())
    other = tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) for x in args)
    for here, there in zip(tensors(expected), tensors(call(model, other)), strict=True):
        assert not torch.equal(here, there)


def planned(method: Method, model: str) -> Plan:
    """The plan of a method for a shared model."""
    net, example = NETWORKS[model].factory().eval(), NETWORKS[model].example()
    return prune(net, example, method, data=data_for(net, example), progress=False).plan


def the_same_in_another_process(methods: Sequence[Method], model: str) -> None:
    """Law 2: the same plans, whatever the process; one process for all, since it takes seconds to start."""
    code = (
        "import json; from nervure import *; from tests.contracts import planned\n"
        f"print(json.dumps([planned(method, {model!r}).to_json() for method in {[*methods]!r}]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for method, plan in zip(methods, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert Plan.from_json(plan) == planned(method, model), f"{method!r} plans otherwise in another process"


def edits_of_every_kind(c: Case) -> Plan:
    """A plan with a cut, a mask and, where the model has them, a link and a drop."""
    group = c.graph.prunable[0]
    writer = group.writers[0]
    generator = torch.Generator().manual_seed(0)
    edits: list[Any] = [
        Cut(group.name, Keep.of(torch.arange(group.size) % 2 == 0)),
        Mask(writer.tensor, Keep.of(torch.rand(c.weights[writer.tensor].shape, generator=generator) > 0.5)),
    ]
    edits += [Drop(b.name) for b in c.graph.blocks if not b.pinned][:1]
    maps = [
        g for g in c.graph.prunable if g.writers and c.weights[g.writers[0].tensor].dim() == 4 and g.kind == "channels"
    ]
    if len(maps) > 1:
        keep = torch.rand(maps[1].size, maps[0].size, generator=generator) > 0.5
        edits.append(Link(maps[0].name, maps[1].name, Keep.of(keep)))
    return Plan(tuple(edits), c.graph.fingerprint)


class Finished(nn.Module):
    """A network and what is made of each of its answers."""

    def __init__(self, inner: nn.Module, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.finish = inner, finish

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answers = [x for x in tensors(self.inner(*args, **kwargs)) if x.is_floating_point()]
        return tuple(self.finish(x) for x in answers)


FINISHES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda y: y,
    "times 1e-6": lambda y: y * 1e-6,
    "softmax": lambda y: (8 * y).softmax(-1),
    "beside a sentinel": lambda y: torch.cat([y, torch.full_like(y, 1e9)], -1),
}
"""What can hide a wrong cut from a check: outputs that are small, close to one another, or beside a large one."""


def misread(graph: Graph, tensor: str, axis: int) -> Graph:
    """The graph with the positions along one axis of a tensor shifted by one: what is cut by it is cut wrong."""
    number = len(graph.axes)
    old = graph.axes[graph.tensors[tensor][axis]]
    parts = tuple((name, Units(np.roll(units.array, 1))) for name, units in old.parts)
    axes = tuple(number if i == axis else a for i, a in enumerate(graph.tensors[tensor]))
    return replace(graph, axes=(*graph.axes, Axis(old.size, parts)), tensors={**graph.tensors, tensor: axes})


def a_wrong_cut_is_caught(model: nn.Module, example: Any, groups: int) -> int:
    """A consumer of each of a few groups takes the wrong units of a cut; how many did."""
    graph, wrong = trace(model, example), 0
    for group in graph.prunable:
        if wrong == groups:
            break
        keep = Keep.of(torch.arange(group.size) < group.round_up(-(-group.size // 2)))
        plan = Plan((Cut(group.name, keep),))
        for slot in group.readers[:1]:
            bad = misread(graph, slot.tensor, slot.axis)
            made = apply(model, bad, plan)
            if not _are_same(named_tensors(made), named_tensors(apply(model, graph, plan))):
                with pytest.raises(VerificationError):
                    verify(model, SimpleNamespace(model=made, graph=bad, plan=plan), example)
                wrong += 1
    return wrong


def _are_same(one: Weights, other: Weights) -> bool:
    return all(one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in other)


def apply_leaves_its_input_alone(c: Case) -> None:
    """Law 9 for every kind of edit."""
    before = frozen(c.weights)
    kinds = [type(module) for module in c.model.modules()]
    call(apply(c.model, c.graph, edits_of_every_kind(c)), c.example)
    assert_same(c.weights, before)
    assert [type(module) for module in c.model.modules()] == kinds


def masked_entries_stay_zero_through_training(c: Case, optimizer: type[torch.optim.Optimizer]) -> None:
    """Law 7: in the weights and in the optimizer's moments, after every step; and what is not masked learns."""
    plan = Plan(tuple(e for e in edits_of_every_kind(c) if isinstance(e, Mask)), c.graph.fingerprint)
    masks = {mask.tensor: mask.keep.tensor() for mask in plan.masks}
    model = apply(c.model, c.graph, plan).train()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(model.parameters(), lr=0.05, weight_decay=0.1, **options)  # type: ignore[call-arg]
    before = frozen(dict(model.named_parameters()))
    with hold(model, steps, masks):
        for _ in range(3):
            steps.zero_grad()
            sum(out.square().mean() for out in tensors(model(c.example))).backward()
            steps.step()
            for name, keep in masks.items():
                parameter = model.get_parameter(name)
                moments = [v for v in steps.state[parameter].values() if isinstance(v, Tensor) and v.dim()]
                assert moments
                assert all(not bool(value[~keep].any()) for value in (parameter, *moments))
    assert all(not torch.equal(model.get_parameter(name), before[name]) for name in masks)
