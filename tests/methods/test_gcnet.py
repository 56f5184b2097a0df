"""GCNet: the companion holds what was measured, and what is pruned there is pruned here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as operators

from nervure import GCNet, MagnitudeMasks, prune, trace
from nervure.dependence import correlation
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning
from nervure.graph.tape import named_tensors
from nervure.methods import View, companion
from nervure.methods.gcnet.guidance import Mode
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.report.connectivity_charts import connectivity_page
from tests.networks import NETWORKS

Data = list[tuple[Tensor, Tensor]]
MODES = ("pure", "split", "product", "mix", "union", "intersection")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)
    )


def maps() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def vectors(samples: int = 120, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 6, generator=generator) + 0.5 * y[:, None]
    return list(zip(x.split(40), y.split(40), strict=True))


def pictures(samples: int = 90, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 2, 4, 4, generator=generator) + 0.5 * y[:, None, None, None]
    return list(zip(x.split(30), y.split(30), strict=True))


def view(model: nn.Module, data: Any) -> View:
    example = next(iter(data))[0][:2]
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return View(trace(model, example), weights, None, 0, model, example, data)


def masks(method: GCNet | MagnitudeMasks, model: nn.Module, data: Any) -> dict[str, Tensor]:
    whole = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    return whole | {mask.tensor: mask.keep.tensor() for mask in method.plan(view(model, data)).masks}


class Passes:
    """Batches that count how often they are gone through."""

    def __init__(self, data: Data) -> None:
        self.data, self.count = data, [0]

    def __iter__(self) -> Any:
        self.count[0] += 1
        return iter(self.data)


# -- the companion ---------------------------------------------------------------------------------------------------


def test_the_companion_holds_the_correlation_of_what_layers_are_given_and_give() -> None:
    model, data = mlp(), vectors()
    found = companion(model, data[0][0][:2], data)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    assert found.names == ("2.weight", "4.weight", "6.weight")
    for name, depth in (("2.weight", 2), ("6.weight", 6)):
        given, said = model[:depth](x).detach(), model[: depth + 1](x).detach()
        torch.testing.assert_close(found[name].weight.data, correlation(given, said, y), atol=1e-5, rtol=1e-4)


def test_the_companion_sees_what_independent_parents_do_to_a_child() -> None:
    # With independent parents of one variance, a linear child correlates with each by its share of the weights' norm.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.copy_(torch.tensor([[3.0, -4.0, 0.0, 0.0]]))
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    found = companion(model, x[:2], [(x, torch.zeros(20_000, dtype=torch.long))])
    expected = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
    torch.testing.assert_close(found["1.weight"].weight.data, expected, atol=0.02, rtol=0)


def test_permuting_the_units_permutes_the_companion() -> None:
    model, data, order = maps(), pictures(), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    before = companion(model, data[0][0][:2], data)
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[order])
        model[2].bias.copy_(model[2].bias[order])
        model[4].weight.copy_(model[4].weight[:, order])
    after = companion(model, data[0][0][:2], data)
    torch.testing.assert_close(after["2.weight"].weight.data, before["2.weight"].weight.data[order])
    torch.testing.assert_close(after["4.weight"].weight.data, before["4.weight"].weight.data[:, order])


def test_a_flattened_map_is_one_parent_and_goes_as_one() -> None:
    model, data = maps(), pictures()
    assert companion(model, data[0][0][:2], data)["8.weight"].weight.shape == (12, 8)
    keep = masks(GCNet(density=0.5, mode="pure"), model, data)["8.weight"].reshape(12, 8, 4)
    assert torch.equal(keep.any(2), keep.all(2))
    assert not keep.all()


@pytest.mark.parametrize("name", ["residual", "concat", "grouped_conv", "vit"])
def test_any_traced_network_has_a_companion(name: str) -> None:
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    inputs = torch.randn(24, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    found = companion(model, example, [inputs], estimator="correlation")
    weights = named_tensors(model)
    assert found.names
    for tensor in found.names:
        assert len(found[tensor].weight) == len(weights[tensor])
        assert 0 <= found[tensor].weight.min() <= found[tensor].weight.max() <= 1


def test_an_operator_of_torch_prunes_the_companion_and_with_it_the_network() -> None:
    model, data = maps(), pictures()
    found = companion(model, data[0][0][:2], data)
    operators.l1_unstructured(found["4.weight"], "weight", amount=40)
    kept = found.kept()["4.weight"]
    pruned = prune(model, data[0][0][:2], found.plan())
    assert int(kept.sum()) == 24
    assert torch.equal(pruned.masks["4.weight"], kept[:, :, None, None].expand(8, 8, 3, 3))
    assert set(pruned.masks) == {"4.weight"}


def test_the_companion_can_be_saved_and_drawn(tmp_path: Path) -> None:
    model, data = mlp(), vectors()
    found = companion(model, data[0][0][:2], data)
    again = ConnectivityEvidence.load(found.connectivity.save(tmp_path / "found.safetensors"))
    twin = companion(model, data[0][0][:2], found=again)
    twin.load_state_dict(found.state_dict())
    assert torch.equal(twin["4.weight"].weight, found["4.weight"].weight)
    page = connectivity_page(found.to_json())
    assert page.count("<svg") == 3
    assert "9 children, 8 parents" in page
    operators.random_unstructured(found["2.weight"], "weight", amount=0.5)
    assert (torch.tensor(found.to_json()["layers"]["2.weight"]) == 0).sum() == 36


# -- pruning by it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("mode", MODES)
def test_what_stays_is_exactly_what_was_asked(mode: Any, distribution: Any) -> None:
    model, data = mlp(), vectors()
    method = GCNet(density=0.4, mode=mode, distribution=distribution, guard="none")
    kept = masks(method, model, data)
    assert sum(int(mask.sum()) for mask in kept.values()) == round(0.4 * sum(mask.numel() for mask in kept.values()))


def test_the_network_is_exactly_as_sparse_as_its_companion() -> None:
    model, data = maps(), pictures()
    plan = GCNet(density=0.5, mode="pure", guard="none").plan(view(model, data))
    found = companion(model, data[0][0][:2], data)
    found.follow(plan)
    here = {mask.tensor: mask.keep.tensor().float().mean() for mask in plan.masks}
    there = {name: kept.float().mean() for name, kept in found.kept().items()}
    assert all(there[name] == here.get(name, 1.0) for name in found.names)
    assert min(there.values()) < 1


def test_pure_keeps_the_best_connected_and_split_the_largest_where_it_is_early() -> None:
    model, data = mlp(), vectors()
    found = companion(model, data[0][0][:2], data)
    options: Any = {"density": 0.5, "distribution": "uniform", "guard": "none"}
    pure, split = (masks(GCNet(mode=mode, estimator="classwise", **options), model, data) for mode in ("pure", "split"))
    largest = masks(MagnitudeMasks(**options), model, data)
    for name in ("2.weight", "4.weight", "6.weight"):
        scores = found[name].weight.data
        assert scores[pure[name]].min() >= scores[~pure[name]].max()
    assert torch.equal(pure["0.weight"], largest["0.weight"])
    assert torch.equal(split["2.weight"], largest["2.weight"])
    assert torch.equal(split["4.weight"], pure["4.weight"])
    assert torch.equal(split["6.weight"], largest["6.weight"])
    assert not torch.equal(split["4.weight"], largest["4.weight"])


@pytest.mark.parametrize("mode", MODES)
def test_in_a_global_ranking_magnitude_says_how_many_and_connectivity_which(mode: Mode) -> None:
    model, data = mlp(), vectors()
    with torch.no_grad():
        model[4].weight.mul_(3)
    ours = masks(GCNet(density=0.3, mode=mode, start=0.0, guard="none"), model, data)
    largest = masks(MagnitudeMasks(density=0.3, guard="none"), model, data)
    assert {n: int(m.sum()) for n, m in ours.items()} == {n: int(m.sum()) for n, m in largest.items()}
    assert any(not torch.equal(ours[name], largest[name]) for name in ours)


def test_by_default_products_decide_in_late_layers_and_magnitude_in_early_ones() -> None:
    model, data = mlp(), vectors()
    largest = masks(MagnitudeMasks(density=0.5, guard="none"), model, data)
    ours = masks(GCNet(density=0.5, guard="none"), model, data)
    differ = [name for name in ours if not torch.equal(ours[name], largest[name])]
    assert differ == ["4.weight"]
    nothing = masks(GCNet(density=0.5, guard="none", start=1.0), model, data)
    assert all(torch.equal(nothing[name], largest[name]) for name in nothing)


def unheard(kept: dict[str, Tensor]) -> int:
    """Units that hear nothing or that nothing hears, in all layers."""
    count = 0
    for name, mask in kept.items():
        pairs = mask.reshape(len(mask), 8 if name == "8.weight" else mask.shape[1], -1).any(2)
        count += int((~pairs.any(1)).sum()) + int((~pairs.any(0)).sum())
    return count


@pytest.mark.parametrize("granularity", ["connection", "element"])
def test_every_child_has_a_parent_and_every_parent_a_child(granularity: str) -> None:
    model, data = maps(), pictures()
    guarded, bare = (
        GCNet(density=0.25, mode="pure", granularity=granularity, distribution="uniform", guard=guard)
        for guard in ("units", "none")
    )
    assert unheard(masks(guarded, model, data)) == 0
    assert unheard(masks(bare, model, data)) > 0
    with pytest.raises(BudgetError, match="Give density="):
        masks(GCNet(density=0.02), model, data)


def test_dead_channels_go_first() -> None:
    model, data = maps(), pictures()
    with torch.no_grad():
        model[2].weight[[1, 5]] = 0
        model[4].weight[:, [1, 5]] *= 100
    kept = masks(GCNet(density=0.6, mode="pure", distribution="uniform", guard="outputs"), model, data)["4.weight"]
    assert not kept[:, [1, 5]].any()
    plan = GCNet(density=0.8, granularity="filters", budget="channels", mode="pure").plan(view(model, data))
    keeps = {cut.group: cut.keep.tensor() for cut in plan.cuts}
    assert not keeps["2"][[1, 5]].any()


def test_filters_leave_within_the_budget() -> None:
    model, data = maps(), pictures()
    pruned = prune(model, data[0][0][:2], GCNet(density=0.5, granularity="filters", mode="product"), data=data)
    assert not pruned.plan.masks
    assert 0.3 < pruned.cost_after.macs / pruned.cost_before.macs <= 0.5


def test_each_round_measures_what_the_last_has_left() -> None:
    data = Passes(vectors())
    once, often = (
        GCNet(density=0.3, mode="pure", rounds=rounds, distribution="uniform", guard="outputs") for rounds in (1, 3)
    )
    start = view(mlp(), data)
    plans = []
    counts = []
    for method in (once, often):
        data.count[0] = 0
        plans.append(method.plan(start))
        counts.append(data.count[0])
    assert counts[1] == counts[0] + 2 * (counts[0])
    assert plans[0] != plans[1]
    assert plans[0].reached == plans[1].reached


@pytest.mark.parametrize("seed", range(8))
def test_what_is_gone_already_stays_gone(seed: int) -> None:
    model, data = mlp(), vectors()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        model[4].weight[::2, ::2] = 0
    for mode in MODES:
        kept = masks(GCNet(density=0.6, mode=mode, distribution="uniform", guard="none"), model, data)["4.weight"]
        assert not kept[::2, ::2].any(), mode


def test_a_plan_follows_from_connectivity_without_measuring_again() -> None:
    model, data = mlp(), vectors()
    method = GCNet(density=0.4)
    found = method.evidence(view(model, data))
    unmeasured = replace(view(model, data), data=None)
    assert method.decide(unmeasured, found) == method.plan(view(model, data))


def test_the_estimators_see_different_things() -> None:
    start = view(mlp(), vectors())
    estimators: Any = ("classwise", "correlation", "residual", "gaussian")
    assert len({GCNet(density=0.4, mode="pure", estimator=one).plan(start) for one in estimators}) == 4


def test_structured_criteria_prune_the_companion_by_rows_and_columns() -> None:
    model, data = mlp(), vectors()
    options: Any = {"density": 1 / 3, "mode": "pure", "distribution": "uniform", "guard": "none"}
    rows = masks(GCNet(criterion="rows", **options), model, data)["2.weight"]
    columns = masks(GCNet(criterion="columns", **options), model, data)["4.weight"]
    assert sorted(rows.sum(1).tolist()) == [0] * 6 + [8] * 3
    assert sorted(columns.sum(0).tolist()) == [0] * 6 + [7] * 3


def test_the_form_of_the_paper_overrides_what_decides() -> None:
    method = GCNet(density=0.2, paper=True, mode="pure", estimator="residual", rounds=4)
    assert (method.mode, method.estimator, method.distribution) == ("split", "classwise", "uniform")
    assert (method.rounds, method.granularity, method.density) == (1, "connection", 0.2)


# -- what is given -----------------------------------------------------------------------------------------------------


def test_without_labels_the_error_says_what_needs_none() -> None:
    model, bare = mlp(), [x for x, _ in vectors()]
    with pytest.raises(DataError, match="estimator='correlation'"):
        prune(model, bare[0][:2], GCNet(density=0.5, estimator="classwise"), data=bare)
    with pytest.raises(DataError, match="data="):
        prune(model, bare[0][:2], GCNet(density=0.5))
    pruned = prune(model, bare[0][:2], GCNet(density=0.5, estimator="correlation"), data=bare)
    assert pruned.plan.reached["density"] == 0.5


def test_a_class_that_no_sample_is_of_is_told() -> None:
    data = [(x, y.clamp(max=1)) for x, y in vectors()]
    with pytest.warns(NervureWarning, match=r"of 3 classes 1 are not among the 120 samples measured \(2\)"):
        GCNet(density=0.5, estimator="classwise").plan(view(mlp(), data))


def test_fewer_samples_than_a_class_needs_are_looked_at_together() -> None:
    data = [(x[:4], y[:4]) for x, y in vectors()]
    few, pooled = (
        GCNet(density=0.5, mode="pure", estimator=e).plan(view(mlp(), data)) for e in ("classwise", "correlation")
    )
    assert few == pooled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode='both'"),
        ({"start": 1.5}, "start=1.5"),
        ({"alpha": -1}, "alpha=-1"),
        ({"estimator": "pearson"}, "estimator='pearson'"),
        ({"criterion": "l3"}, "criterion='l3'"),
        ({"rounds": 0}, "rounds=0"),
        ({"granularity": "filters", "distribution": "erk"}, "filters"),
        ({"granularity": "filters", "rounds": 2}, "filters"),
        ({"granularity": "atoms"}, "atoms"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GCNet(**options)


def test_a_kernel_that_sums_to_zero_counts_on_patches() -> None:
    reading = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), reading, nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[0].bias.zero_()
        model[2].weight.zero_()
        model[2].weight[:, 0, 1] = torch.tensor([1.0, 0.0, -1.0])  # a difference: on average it says nothing
        model[2].weight[:, 1, 1, 1] = 0.2
    x = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = [(x, torch.arange(40) % 2)]
    means, patches = (
        method.evidence(view(model, data)).scores["2.weight"]
        for method in (GCNet(estimator="correlation"), GCNet(of="patches"))
    )
    assert float(means[:, 0].max()) < 0.5 < float(means[:, 1].min())  # what a difference says on average is rounding
    assert bool((patches[:, 0] > 5 * patches[:, 1]).all())
    watching = companion(model, x[:2], data, of="patches")
    assert torch.equal(watching["2.weight"].weight, patches) and "4.weight" in watching.names


def test_on_patches_connectivity_is_the_variance_that_no_other_parent_takes_over() -> None:
    model, data = mlp(), vectors(600)
    found = GCNet(of="patches").evidence(view(model, data)).scores["2.weight"].double()
    with torch.no_grad():
        heard = torch.cat([model[:2](x) for x, _ in data]).double()
    covariance = heard.T.cov(correction=0)
    live = covariance.diagonal() > 1e-3
    weight = model[2].weight.detach().double()
    expected = weight[:, live] ** 2 / torch.linalg.inv(covariance[live][:, live]).diagonal()
    expected /= ((weight @ covariance) * weight).sum(1, keepdim=True)
    assert torch.allclose(found[:, live], expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"mode": "split"}, {"granularity": "filters"}, {"rounds": 2}])
def test_patches_guide_as_means_do(options: dict[str, Any]) -> None:
    model, data = maps(), pictures()
    seen = view(model, data)
    plan = GCNet(density=0.4, of="patches", start=0.0, **options).plan(seen)
    assert plan == GCNet(density=0.4, of="patches", start=0.0, **options).plan(seen)
    assert plan != GCNet(density=0.4, start=0.0, **options).plan(seen)
    prune(model, data[0][0][:2], plan, progress=False)


def test_patches_need_no_labels_and_are_told_what_is_for_means() -> None:
    x = vectors()
    GCNet(density=0.5, of="patches").plan(view(mlp(), [(one, torch.zeros(len(one))) for one, _ in x]))
    assert GCNet(of="patches", paper=True).of == "means"
    for wrong in ({"estimator": "classwise"}, {"per_class": 5}):
        with pytest.raises(ArgumentError, match="these are for of='means'"):
            GCNet(of="patches", **wrong)
        with pytest.raises(ArgumentError, match="these are for of='means'"):
            companion(mlp(), x[0][0], x, of="patches", **wrong)
    with pytest.raises(DataError, match="no data"):
        GCNet(of="patches").plan(replace(view(mlp(), x), data=None))
