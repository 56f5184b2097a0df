"""N2NSkip: its budget to the weight, its forward pass by hand, and links that live like any other part of a network."""

import copy
import math
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import SNIP, Cut, Keep, Magnitude, N2NSkip, Plan, Pruned, RigL, SynFlow, load, prune, save, trace, train
from nervure.errors import ArgumentError, BudgetError, DataError, PlanError
from nervure.graph.models import evaluating
from nervure.graph.skip_sites import SkipSite, places
from nervure.graph.trace import draw
from nervure.methods import Method
from nervure.plan import Link, Mask, Route
from nervure.surgery import apply

WIDTHS = (12, 20, 16, 10, 4)


class MLP(nn.Module):
    """Linear layers with functional ReLUs, so that no module tells where activations are."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A residual block that changes channels and size, with functional ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += self.shortcut(x)
        return self.fc(F.relu(out, inplace=True).mean((2, 3)))  # type: ignore[no-any-return]


def convolutions(*widths: int, pool: tuple[int, ...] = (2,)) -> nn.Sequential:
    """A plain network: convolution, batch norm and ReLU, and a maximum over 2 x 2 behind the layers in ``pool``."""
    modules: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise(widths)):
        modules += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        modules += [nn.MaxPool2d(2)] if number in pool else []
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 3))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A small network with first weights that are always the same, and an example."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: dict[str, Any] = {
            "mlp": lambda: (MLP(*WIDTHS), torch.randn(2, WIDTHS[0])),
            "plain": lambda: (convolutions(2, 6, 6, 8, 8, 8), torch.randn(2, 2, 9, 7)),
            "residual": lambda: (Residual(), torch.randn(2, 2, 7, 7)),
        }[name]()
        return made  # type: ignore[return-value]


def batches(example: Tensor, number: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(16, *example.shape[1:], generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(number)
    ]


def pruned(name: str, method: Method, **options: Any) -> Pruned:
    model, example = network(name)
    return prune(model, example, method, data=batches(example), progress=False, **options)


def found_places(model: nn.Module, example: Tensor, **options: Any) -> tuple[SkipSite, ...]:
    with evaluating(model):
        return places(model, draw(model, example), **options)


def total(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def counts(result: Pruned) -> tuple[int, int]:
    """Weights that are not zero in the layers, and in the skips."""
    weights = {n: p for n, p in result.model.named_parameters() if p.ndim > 1}
    sizes = {n: int(p.count_nonzero()) for n, p in weights.items()}
    skips = sum(size for n, size in sizes.items() if ".link_" in n)
    return sum(sizes.values()) - skips, skips


def identities(result: Pruned) -> dict[str, Tensor]:
    return {n: b for n, b in result.model.named_buffers() if n.endswith(".map.weight")}


# -- skips by the identity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_skips_by_the_identity_stand_where_others_do_and_cost_nothing(name: str) -> None:
    result, twin = (pruned(name, N2NSkip(density=0.4, **o)) for o in ({"skips": "identity"}, {"share": 0.0}))
    other = pruned(name, N2NSkip(density=0.4))
    ends = [{(e.route.reads, e.route.joins) for e in r.plan.links} for r in (result, other)]
    assert ends[0] == ends[1] and len(identities(result)) == len(result.plan.links)
    assert counts(result) == counts(twin) and result.plan.masks == twin.plan.masks
    assert result.masks.keys() == twin.masks.keys() and result.plan.reached["skips"] == 0
    parameters = [dict(r.model.named_parameters()).keys() for r in (result, twin)]
    assert parameters[0] == parameters[1]


def test_what_enters_a_skip_by_the_identity_is_added_as_it_is() -> None:
    result, (_, x) = pruned("mlp", N2NSkip(density=0.5, first="random", skips="identity", reach=2)), network("mlp")
    layers = result.model.layers
    first = F.linear(x, layers[0].weight, layers[0].bias).relu()
    second = F.linear(first, layers[1].weight, layers[1].bias)
    second = (second + F.pad(x, (0, 4)).relu()).relu()
    third = (F.linear(second, layers[2].weight, layers[2].bias) + first[:, :10]).relu()
    out = F.linear(third, layers[3].weight, layers[3].bias) + second[:, :4]
    assert torch.allclose(result.model(x), out, atol=1e-6)


def test_skips_by_the_identity_are_not_trained_and_stay_through_files_cuts_and_rewiring(tmp_path: Path) -> None:
    result, (model, x) = pruned("plain", N2NSkip(density=0.6, skips="identity")), network("plain")
    before = {n: b.clone() for n, b in identities(result).items()}
    train(result.model, batches(x), epochs=2, masks=result.masks, hooks=[RigL(density=0.6, events=1)], progress=False)
    assert before and all(torch.equal(b, before[n]) for n, b in identities(result).items())
    again = load(save(tmp_path / "model.safetensors", result), model)
    assert again.plan == result.plan and torch.equal(again.model.eval()(x), result.model.eval()(x))
    smaller = prune(result, x, Magnitude(keep=0.5), progress=False)
    assert smaller.verification is not None and smaller.verification < 1e-5
    assert all(b.numel() < before[n].numel() for n, b in identities(smaller).items())


def test_plans_without_them_say_nothing_of_the_identity() -> None:
    for skips, told in (("sparse", False), ("identity", True)):
        plan = pruned("mlp", N2NSkip(density=0.4, skips=skips)).plan
        assert all(("identity" in edit.get("route", {})) == told for edit in plan.to_json()["edits"] if "route" in edit)
        assert Plan.from_json(plan.to_json()) == plan


def test_as_published_half_of_the_weights_are_skips_without_norms() -> None:
    method = N2NSkip(density=0.4, paper=True)
    assert replace(N2NSkip(density=0.4), paper=True) == method
    assert pruned("mlp", replace(N2NSkip(skips="identity", density=0.4), skips="sparse")).plan.reached["skips"] > 0
    assert pruned("mlp", method).plan.edits == pruned("mlp", N2NSkip(density=0.4, share=0.5, norm=False)).plan.edits
    assert N2NSkip(paper=True, share=0.1).share == 0.1


# -- budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_the_budget_is_met_to_the_weight_and_split_to_the_kernel(name: str, share: float) -> None:
    model, _ = network(name)
    result = pruned(name, N2NSkip(density=0.3, share=share, first="random"))
    budget = round(0.3 * total(model))
    layers, skips = counts(result)
    assert layers + skips == budget
    unit = 1 if name == "mlp" else 9
    assert round(share * budget) - unit < skips <= round(share * budget)
    assert sum(int(keep.sum()) for n, keep in result.masks.items() if ".link_" in n) == skips
    assert result.plan.reached["skips"] == skips


@pytest.mark.parametrize(
    "first", ["snip", "random", "erk", "grasp", "synflow", "magnitude", SNIP(steps=3), SynFlow(steps=2)]
)
def test_every_first_step_keeps_what_the_skips_leave(first: Any) -> None:
    result = pruned("mlp", N2NSkip(density=0.4, share=0.5, first=first))
    budget = round(0.4 * total(network("mlp")[0]))
    assert counts(result) == (budget - round(budget / 2), round(budget / 2))


def test_skips_hold_connections_in_proportion_to_what_they_could_and_no_more_than_all() -> None:
    model, example = network("mlp")
    result = pruned("mlp", N2NSkip(density=0.4, first="erk"))
    links = result.plan.links
    fair = sum(link.keep.count for link in links) / sum(link.keep.size for link in links)
    assert len(links) == 6
    assert all(abs(link.keep.count - fair * link.keep.size) <= 1 for link in links)
    crowded = prune(model, example, N2NSkip(density=0.95, share=0.8, first="erk", reach=2), progress=False)
    assert all(link.keep.count == link.keep.size for link in crowded.plan.links)
    assert sum(counts(crowded)) == round(0.95 * total(model))


def test_other_seeds_draw_other_skips_and_elements_need_no_whole_kernels() -> None:
    first, again, other = (
        pruned("plain", N2NSkip(density=0.3, share=0.5, first="erk", granularity="element", seed=seed))
        for seed in (0, 0, 1)
    )
    assert first.plan == again.plan
    assert first.plan.links != other.plan.links
    kernels = first.plan.links[0].keep.tensor().flatten(2)
    assert bool((kernels.any(2) & ~kernels.all(2)).any())
    assert counts(first)[1] == round(round(0.3 * total(network("plain")[0])) / 2)


# -- the forward pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["snip", "random"])
def test_an_mlp_computes_the_formula_of_the_paper(first: str) -> None:
    result = pruned("mlp", N2NSkip(density=0.4, first=first, norm=False))
    state, (_, x) = dict(result.model.named_parameters()), network("mlp")
    heard, skips = [x], {(link.route.reads, link.route.joins) for link in result.plan.links}
    for number in range(4):
        z = F.linear(heard[-1], state[f"layers.{number}.weight"], state[f"layers.{number}.bias"])
        for order, source in enumerate(range(number)):
            assert (f"layers.{source}", f"layers.{number}") in skips
            z = z + F.relu(F.linear(heard[source], state[f"layers.{number}.link_{order}.map.weight"]))
        heard.append(F.relu(z) if number < 3 else z)
    assert torch.allclose(result.model(x), heard[-1], atol=1e-6)
    assert not torch.allclose(result.model(x), prune(*network("mlp"), Plan(result.plan.masks)).model(x))


def test_a_residual_block_computes_the_formula_of_the_paper() -> None:
    result = pruned("residual", N2NSkip(density=0.5, first="magnitude", norm=False))
    model, (_, x) = result.model.eval(), network("residual")
    a = F.relu(model.stem(x))
    wire = model.bn2.link_0
    inner = copy.deepcopy(model)
    inner.bn2.__dict__["_ends"].added = []
    z = inner.bn2(model.conv2(F.relu(model.bn1(model.conv1(a))))) + model.shortcut(a)
    branch = F.relu(F.conv2d(a, wire.map.weight, stride=2, padding=1))
    assert branch.abs().sum() > 0
    assert torch.allclose(model(x), model.fc(F.relu(z + branch).mean((2, 3))), atol=1e-6)


def test_a_branch_norm_stands_before_the_inner_non_linearity() -> None:
    model, x = network("mlp")
    result = prune(model, x, N2NSkip(density=0.4, first="random", reach=2), progress=False)
    wire = result.model.train().layers[1].link_0
    out = wire(x, torch.zeros(2, 16))
    mapped = F.linear(x, wire.map.weight)
    assert torch.allclose(out, F.relu(F.batch_norm(mapped, None, None, training=True)), atol=1e-5)


def test_the_inner_non_linearity_is_that_of_the_target() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    found = found_places(model, torch.randn(2, 4))
    assert [(p.joins, p.activation) for p in found] == [("2", "gelu"), ("4", "tanh"), ("4", "tanh")]


def test_without_its_skips_it_is_the_network_that_the_first_step_left() -> None:
    result = pruned("plain", N2NSkip(density=0.3, share=0.3))
    alone = apply(network("plain")[0], result.graph, Plan(result.plan.masks)).eval()
    x = network("plain")[1]
    assert not torch.allclose(result.model.eval()(x), alone(x))
    for name, parameter in result.model.named_parameters():
        if ".link_" in name:
            nn.init.zeros_(parameter)
    assert torch.equal(result.model(x), alone(x))


# -- places --------------------------------------------------------------------------------------------------------


def test_all_layers_of_an_mlp_that_are_not_neighbours_are_joined() -> None:
    model, example = network("mlp")
    pairs = {(p.reads, p.joins, p.span) for p in found_places(model, example)}
    assert pairs == {(f"layers.{i}", f"layers.{j}", j - i + 1) for j in range(4) for i in range(j)}
    assert {p.span for p in found_places(model, example, reach=3)} == {2, 3}


@pytest.mark.parametrize("side", [8, 9, 13])
def test_skips_over_convolutions_reach_the_size_of_their_target(side: int) -> None:
    model, example = convolutions(2, 4, 5, 6, 7, 8, pool=(0, 1, 3)), torch.randn(2, 2, side, side + 1)
    found = found_places(model, example, span=3)
    assert [(p.inputs, p.outputs, p.span, p.normed) for p in found] == [
        (2, 6, 3, True),
        (4, 7, 3, True),
        (5, 8, 3, True),
    ]
    result = prune(model, example, N2NSkip(density=0.5, first="random"), progress=False)
    assert len(result.plan.links) == 3
    assert result.model(example).isfinite().all()
    assert result.model(torch.randn(2, 2, side + 3, side)).shape == (2, 3)


def test_a_residual_block_has_one_skip_and_none_goes_from_maps_to_vectors() -> None:
    found = found_places(*network("residual"))
    assert [(p.reads, p.joins, p.layer, p.stride) for p in found] == [("conv1", "bn2", "conv2", (2, 2))]
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3))
    assert [(p.reads, p.joins) for p in found_places(flat, torch.randn(2, 1, 8, 8))] == [("3", "5")]


def test_a_layer_that_runs_twice_is_no_place() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.again(self.first(x)).relu()).relu())  # type: ignore[no-any-return]

    assert {(p.reads, p.joins) for p in found_places(Shared(), torch.randn(2, 4))} == {("first", "last")}


# -- starts --------------------------------------------------------------------------------------------------------


def test_all_connections_that_meet_start_at_the_scale_of_one_layer() -> None:
    model = MLP(200, 300, 300, 300, 10)
    for layer in model.layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=torch.Generator().manual_seed(4))
    result = prune(model, torch.randn(2, 200), N2NSkip(density=0.1, first="erk", norm=False), progress=False)
    state = dict(result.model.named_parameters())
    for number, layer in enumerate(result.model.layers):
        names = [n for n in state if n.startswith(f"layers.{number}.") and n.endswith("weight")]
        held = [state[n].detach()[result.masks[n]] for n in names]
        wanted = math.sqrt(2 * len(layer.weight) / sum(len(values) for values in held))
        assert all(values.std().item() == pytest.approx(wanted, rel=0.15) for values in held)


def test_a_dense_start_is_that_of_the_papers_code_and_scaled_as_asked() -> None:
    model = MLP(200, 300, 300, 10)
    for scale in (1.0, 0.5):
        result = prune(
            model,
            torch.randn(2, 200),
            N2NSkip(density=0.2, first="erk", start="dense_fan", scale=scale),
            progress=False,
        )
        weight = result.model.layers[1].link_0.map.weight.detach()
        assert weight[weight != 0].std().item() == pytest.approx(scale * math.sqrt(2 / 200), rel=0.1)


def test_a_zero_start_changes_nothing_and_learns() -> None:
    result = pruned("mlp", N2NSkip(density=0.4, start="zero"))
    x, alone = network("mlp")[1], pruned("mlp", Plan(result.plan.masks))
    assert torch.equal(result.model(x), alone.model(x))
    before = copy.deepcopy(result.model.state_dict())
    train(result.model, batches(x), epochs=1, lr=0.1, masks=result.masks, progress=False)
    links = [n for n in before if ".link_" in n]
    assert any("gate" in n for n in links)
    assert all(not torch.equal(before[n], value) for n, value in result.model.state_dict().items() if n in links)


def test_what_a_criterion_scored_stays_unless_it_is_drawn_anew() -> None:
    model, _ = network("mlp")
    scored, fresh = (pruned("mlp", N2NSkip(density=0.4, reinit=reinit)) for reinit in (False, True))
    for name, keep in scored.masks.items():
        if ".link_" not in name:
            weight = model.get_parameter(name)
            assert torch.equal(scored.model.get_parameter(name), weight * keep)
            new = fresh.model.get_parameter(name)
            assert torch.equal(fresh.masks[name], keep)
            assert not torch.equal(new, weight * keep)
            assert set(new[keep].tolist()) <= set(weight.flatten().tolist())


# -- links live like any other part --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_zeros_of_layers_and_skips_stay_through_training_and_the_rest_learns(name: str) -> None:
    result = pruned(name, N2NSkip(density=0.4, share=0.4))
    before = copy.deepcopy(result.model)
    options: dict[str, Any] = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2)}
    train(result.model, batches(network(name)[1]), epochs=4, masks=result.masks, progress=False, **options)
    assert any(".link_" in masked for masked in result.masks)
    for masked, keep in result.masks.items():
        weight = result.model.get_parameter(masked)
        assert not weight[~keep].any()
        assert not torch.equal(weight, before.get_parameter(masked))


@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_copies_saved_files_and_exports_compute_the_same(name: str, tmp_path: Path) -> None:
    result, (model, x) = pruned(name, N2NSkip(density=0.4, norm=name != "plain")), network(name)
    train(result.model, batches(x), epochs=1, masks=result.masks, progress=False)
    expected = result.model.eval()(x)
    assert torch.equal(copy.deepcopy(result.model)(x), expected)
    again = load(save(tmp_path / "model.safetensors", result), model)
    assert torch.equal(again.model.eval()(x), expected)
    assert again.plan == result.plan
    assert again.masks.keys() == result.masks.keys()
    assert all(torch.equal(again.masks[n], keep) for n, keep in result.masks.items())
    assert torch.allclose(torch.export.export(result.model, (x,)).module()(x), expected, atol=1e-6)


def test_it_runs_in_another_engine(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    engine = pytest.importorskip("onnxruntime")
    result, (_, x) = pruned("residual", N2NSkip(density=0.4, norm=True)), network("residual")
    with warnings.catch_warnings():
        # The exporter warns of its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(result.model.eval(), (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "m.onnx"))
    session = engine.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(out), result.model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "plain", "residual"])
def test_a_later_cut_takes_skips_along(name: str, tmp_path: Path) -> None:
    result, (model, x) = pruned(name, N2NSkip(density=0.6)), network(name)
    smaller = prune(result, x, Magnitude(keep=0.5), progress=False)
    assert smaller.verification is not None
    assert smaller.verification < 1e-5
    links = [n for n in smaller.masks if ".link_" in n]
    assert len(links) == len(result.plan.links)
    for n in links:
        weight = smaller.model.get_parameter(n)
        assert weight.shape == smaller.masks[n].shape
        assert torch.equal(weight != 0, smaller.masks[n])
    assert any(smaller.masks[n].numel() < result.masks[n].numel() / 2 for n in links)
    train(smaller.model, batches(x), epochs=1, masks=smaller.masks, progress=False)
    again = load(save(tmp_path / "model.safetensors", smaller), model)
    assert torch.equal(again.model.eval()(x), smaller.model.eval()(x))


def test_links_follow_a_cut_in_the_same_plan() -> None:
    model, x = network("mlp")
    graph = trace(model, x)
    keep = torch.rand(10, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    route = Route(reads="layers.1", joins="layers.2", activation="relu", std=1.0)
    cuts = (Cut("layers.0", Keep.of(torch.arange(20) % 2 == 0)), Cut("layers.2", Keep.of(torch.arange(10) > 3)))
    result = prune(model, x, Plan((*cuts, Link("layers.0", "layers.2", Keep.of(keep), route)), graph.fingerprint))
    name = "layers.2.link_0.map.weight"
    assert torch.equal(result.masks[name], keep[4:, ::2])
    assert torch.equal(result.model.get_parameter(name) != 0, keep[4:, ::2])


def test_edits_with_all_their_fields_survive_json() -> None:
    keep = Keep.of(torch.ones(2, 3, 1, 1, dtype=torch.bool))
    plan = Plan((Link("", "b", keep, Route("x", "y", (2, 1), True, "relu", 0.5, 7, 0.0)), Mask("w", keep, 1.5, 3)))
    assert Plan.from_json(plan.to_json()) == plan
    assert set(Mask("w", keep).__slots__) > set(Plan((Mask("w", keep),)).to_json()["edits"][0]) - {"edit"}
    assert "gain" not in Plan((Mask("w", keep),)).to_json()["edits"][0]


def test_a_link_to_nowhere_or_through_an_unknown_function_is_refused() -> None:
    model, x = network("mlp")
    graph, keep = trace(model, x), Keep.of(torch.ones(10, 20, dtype=torch.bool))
    for route, message in (
        (Route("layers.1", "layers.9"), "no module"),
        (Route("layers.1", "layers.2", activation="a"), "a"),
    ):
        with pytest.raises(PlanError, match=message):
            apply(model, graph, Plan((Link("", "", keep, route),)))


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["random", "snip"])
def test_a_density_that_cannot_connect_is_refused_with_the_layer_and_the_least_that_can(first: str) -> None:
    with pytest.raises(BudgetError, match=r"layer 'layers\.\d\.weight'.*Give density=0\.\d+ or more") as caught:
        pruned("mlp", N2NSkip(density=0.01, share=0.5, first=first))
    least = float(str(caught.value).split("Give density=")[1].split()[0])
    result = pruned("mlp", N2NSkip(density=least, share=0.5, first=first))
    weights = [result.model.get_parameter(f"layers.{n}.weight") != 0 for n in range(4)]
    alive = torch.ones(1, dtype=torch.bool)
    for weight in weights:
        alive = (weight & alive).any(1)
    assert alive.all()
    with pytest.raises(BudgetError):
        pruned("mlp", N2NSkip(density=least - 2 / total(network("mlp")[0]), share=0.5, first=first))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, r"share=1\.0.: share is a .*number in \[0, 1\)"),
        ({"share": -0.1}, "share"),
        ({"density": 0}, "density=0"),
        ({"first": "snap"}, "'snip'"),
        ({"first": SNIP}, "first"),
        ({"first": Magnitude()}, "density"),
        ({"first": SNIP(density=0.5, granularity="2:4")}, "n of every m"),
        ({"span": 1}, "neighbours"),
        ({"reach": 1}, "neighbours"),
        ({"scale": 0.0}, "scale"),
        ({"start": "warm"}, "start"),
        ({"seed": 0.5}, "whole number"),
        ({"skips": "identical"}, "'identity'"),
        ({"skips": "identity", "share": 0.2}, r"share=0\.2 spends some"),
        ({"skips": "identity", "paper": True}, "paper=True spends some"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        N2NSkip(**options)


def test_a_network_without_a_place_and_a_first_step_without_data_are_told() -> None:
    with pytest.raises(BudgetError, match="no place for a skip"):
        prune(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4), N2NSkip(first="random"), progress=False)
    with pytest.raises(BudgetError, match="no place for a skip"):
        pruned("residual", N2NSkip(first="random"), ignore=["conv2"])
    with pytest.raises(DataError, match="data="):
        prune(*network("mlp"), N2NSkip(), progress=False)


def test_density_one_is_the_empty_plan_and_share_zero_the_first_step() -> None:
    assert not pruned("mlp", N2NSkip(density=1.0)).plan
    assert pruned("mlp", N2NSkip(density=0.3, share=0.0)).plan.masks == pruned("mlp", SNIP(density=0.3)).plan.masks
