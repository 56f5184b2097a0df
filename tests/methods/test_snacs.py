"""SNACS: what is irrelevant goes first, what is protected stays, limits hold, and nothing is measured twice."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nervure import Magnitude, Plan, apply, prune, trace, train
from nervure.budget import BUDGETS, Budget
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning
from nervure.graph.tape import named_tensors
from nervure.methods import View, base
from nervure.methods.snacs import published
from nervure.methods.snacs import survey as surveys
from nervure.methods.snacs.layerwise import LayerwiseSensitivity
from nervure.methods.snacs.survey import ConnectivityEvidence, SurveyOptions
from nervure.scores.bundles import layers
from nervure.scores.parent_dependence import weigh_by_magnitude
from nervure.stats import Stats, measure
from tests.networks import NETWORKS, traced
from tests.old_snacs import old_snacs

Data = list[tuple[Tensor, Tensor]]


def net(hidden: int = 12) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, hidden, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(hidden, 3),
    )


def pictures(samples: int = 400, seed: int = 1) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 2, 6, 6, generator=generator) + y[:, None, None, None] * 0.5
    return list(zip(x.split(100), y.split(100), strict=True))


def view(model: nn.Module, data: Any, seed: int = 0, stats: Stats | None = None) -> View:
    batch = next(iter(data))
    example = (batch[0] if isinstance(batch, tuple) else batch)[:2]
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return View(trace(model, example), weights, stats, seed, model, example, data)


def masks(plan: Plan) -> dict[str, Tensor]:
    return {mask.tensor: mask.keep.tensor() for mask in plan.masks}


def with_idle_parents(idle: list[int]) -> nn.Sequential:
    """The second layer reads these channels of the first with the largest weights, but they never change."""
    model = net()
    with torch.no_grad():
        model[0].weight[idle] = 0
        model[0].bias[idle] = 1
        model[2].weight[:, idle] *= 5
    return model


@pytest.mark.parametrize("idle", [[2, 5], [0, 1, 7]])
def test_parents_that_tell_nothing_are_pruned_first_however_large_their_weights(idle: list[int]) -> None:
    model = with_idle_parents(idle)
    found = masks(old_snacs(keep=0.6, limits=False, protect=False).plan(view(model, pictures())))
    assert not found["2.weight"][:, idle].any()
    kept = [i for i in range(8) if i not in idle]
    assert found["2.weight"][:, kept].float().mean() > 0.5
    cut = old_snacs(keep=0.8, budget="channels", granularity="filters", limits=False, protect=False)
    keeps = {c.group: c.keep.tensor() for c in cut.plan(view(model, pictures())).cuts}
    assert not keeps["0"][idle].any()


def test_an_irrelevant_input_of_a_generated_layer_scores_lowest() -> None:
    generator = torch.Generator().manual_seed(4)
    common = torch.randn(2000, 1, generator=generator)
    x = 0.7 * common + 0.7 * torch.randn(2000, 6, generator=generator)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(4, 6, generator=generator) + 0.5)
        layer.weight[:, 3] = 0.0
    model = nn.Sequential(nn.Linear(6, 6), layer)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        model[0].bias.zero_()
    found = SurveyOptions(limits=False).of(view(model, [(x, None)]))
    assert (found.scores["1.weight"].argmin(1) == 3).all()


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.77])
@pytest.mark.parametrize("budget", ["connections", "weights"])
def test_the_number_of_connections_is_exactly_what_was_asked(keep: float, budget: str) -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 3))
    data = [(torch.randn(200, 4), torch.arange(200) % 3)]
    plan = old_snacs(keep=keep, budget=budget, limits=False).plan(view(model, data))
    kept = sum(int(keep.sum()) for keep in masks(plan).values())
    assert kept == round(keep * (10 * 9 + 9 * 3)) == plan.reached["connections"]


def test_what_is_ignored_stays_dense_and_is_not_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 3))
    data = [(torch.randn(200, 4), torch.arange(200) % 3)]
    method = old_snacs(keep=0.4, limits=False, protect=False)
    for choice in ({"ignore": ["4"]}, {"ignore": [model[4]]}, {"only": ["0", "2"]}):
        found = prune(model, data[0][0][:2], method, data=data, progress=False, **choice)
        assert {name: int(mask.sum()) for name, mask in found.masks.items()} == {"2.weight": 36}
    with pytest.raises(BudgetError, match="ignored"):
        prune(model, data[0][0][:2], method, data=data, progress=False, ignore=["2", "4"])


def test_equal_scores_are_counted_too() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.fill_(1.0)
        model[0].weight.zero_()
    plan = old_snacs(keep=0.5, budget="connections", limits=False, protect=False).plan(view(model, pictures()))
    assert plan.reached["connections"] == round(0.5 * (8 * 12 + 12 * 3))


@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_budgets_of_the_whole_network_are_met_and_never_exceeded(granularity: Any, budget: Any) -> None:
    model, data = net(), pictures()
    plan = old_snacs(keep=0.6, budget=budget, granularity=granularity, limits=False).plan(view(model, data))
    assert 0.55 < plan.reached["keep"] <= 0.6
    if (granularity, budget) == ("kernels", "params"):
        pruned = prune(model, data[0][0][:1], plan, progress=False)
        alive = sum(int((p != 0).sum()) for p in pruned.model.parameters())
        assert alive == plan.reached["keep"] * sum(p.numel() for p in model.parameters())


def test_permuting_channels_permutes_scores_and_masks() -> None:
    model, data = net(), pictures()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    twin = net()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    ours, theirs = (SurveyOptions(limits=False).of(view(m, data)).scores["2.weight"] for m in (model, twin))
    torch.testing.assert_close(theirs, ours[:, order], rtol=1e-3, atol=1e-5)


def test_protected_units_are_never_pruned() -> None:
    model, data = net(hidden=20), pictures()
    with torch.no_grad():
        model[6].weight[:, 7] = 30.0
        model[2].weight[7] = 1e-3
    for keep in (0.7, 0.4):
        found = masks(old_snacs(keep=keep, limits=False).plan(view(model, data)))
        assert found["2.weight"][7].all()
    bare = masks(old_snacs(keep=0.4, limits=False, protect=False).plan(view(model, data)))
    assert not bare["2.weight"][7].all()
    found = SurveyOptions(limits=False).of(view(model, data))
    assert found.protected["2"].nonzero().flatten().tolist() == [7]
    cut = old_snacs(keep=0.3, budget="channels", granularity="filters", limits=False).plan(view(model, data))
    assert {c.group: c.keep.tensor() for c in cut.cuts}["2"][7]


def test_protection_gives_way_where_it_would_take_most_of_what_stays() -> None:
    model, data = net(hidden=20), pictures()
    with torch.no_grad():
        model[6].weight[:, 7] = 30.0
        model[2].weight[7] = 1e-3
    with pytest.warns(NervureWarning, match="nothing is protected"):
        plan = old_snacs(keep=0.08, limits=False).plan(view(model, data))
    assert not masks(plan)["2.weight"][7].all()
    assert plan == old_snacs(keep=0.08, limits=False, protect=False).plan(view(model, data))


@cache
def taught() -> nn.Sequential:
    """A small network that tells the pictures apart. Not to be changed."""
    torch.manual_seed(0)
    model = net()
    train(model, pictures(), epochs=12, lr=0.1, progress=False)
    return model.eval()


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_limits_by_a_probe_hold_or_are_raised_with_a_warning(granularity: Any) -> None:
    model, data = net(), pictures()
    method = old_snacs(keep=0.85, granularity=granularity, probe=True, slack=0.1)
    seen = view(model, data)
    limits = method.evidence(seen).limits
    assert any(limit.upper < 0.5 for limit in limits.values())
    plan = method.plan(seen)
    require_within(plan, {name: limit.upper for name, limit in limits.items()})
    assert "limits raised" not in plan.reached
    tight = old_snacs(keep=0.15, granularity=granularity, probe=True, slack=0.0)
    with pytest.warns(NervureWarning, match="limits"):
        plan = tight.plan(seen)
    assert 0 < plan.reached["limits raised"] <= 1
    assert plan.reached["keep"] <= 0.15 + 1e-6


def require_within(plan: Plan, uppers: Mapping[str, float]) -> None:
    for name, keep in masks(plan).items():
        shares = keep.flatten(2).any(2) if keep.ndim > 2 else keep
        assert 1 - shares.float().mean() <= uppers[name] + 1e-6
    for cut in plan.cuts:
        assert 1 - cut.keep.count / cut.keep.size <= uppers[cut.group] + 1e-6


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_limits_are_what_the_network_bears_and_give_way_together(granularity: Any) -> None:
    seen = view(taught(), pictures())
    method = old_snacs(keep=0.85, granularity=granularity, probe=False, slack=0.4, protect=False)
    found = method.evidence(seen)
    assert any(limit.upper < 0.9 for limit in found.limits.values())
    for name, limit in found.limits.items():
        bar = limit.quality[0] - 0.4 * (limit.quality[0] - 1 / 3)
        assert limit.chance == pytest.approx(1 / 3)
        assert all(
            quality >= bar - 1e-6 for x, quality in zip(limit.shares, limit.quality, strict=True) if x <= limit.upper
        )
        assert found.upper(name) == limit.upper <= found.upper(name, 0.5) <= found.upper(name, 1.0) == 1.0
    plan = method.decide(seen, found)
    require_within(plan, {name: found.upper(name) for name in found.limits})
    assert "slack" not in plan.reached
    strict = old_snacs(keep=0.5, granularity=granularity, probe=False, slack=0.0, protect=False)
    found = strict.evidence(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NervureWarning)
        plan = strict.decide(seen, found)
    assert 0 < plan.reached["slack"] < 1
    require_within(plan, {name: found.upper(name, plan.reached["slack"] + 1e-4) for name in found.limits})
    assert plan.reached["keep"] <= 0.5


def test_a_budget_that_costs_most_of_what_the_network_knows_warns() -> None:
    seen = view(taught(), pictures())
    with pytest.warns(NervureWarning, match="what the network knows"):
        plan = old_snacs(keep=0.15, budget="channels", granularity="filters", protect=False).plan(seen)
    assert plan.reached["slack"] > 0.5
    assert plan.reached["channels"] == 3


def test_units_that_the_network_can_do_without_have_no_limit() -> None:
    model = copy.deepcopy(taught())
    with torch.no_grad():
        model[6].weight[:, 3:] = 0
        model[6].weight[:, :3] *= 3
    limit = old_snacs(granularity="filters").evidence(view(model, pictures())).limits["2"]
    lost = {
        round(share * 12): limit.quality[0] - quality
        for share, quality in zip(limit.shares, limit.quality, strict=True)
    }
    assert lost[9] == pytest.approx(0, abs=1e-5)
    assert lost[11] > 0.1
    untaught = old_snacs(granularity="filters").evidence(view(net(), pictures()))
    assert all(limit.upper == 1 for limit in untaught.limits.values())


def test_labels_that_are_no_classes_of_the_network_are_refused() -> None:
    data = [(x, y + 5) for x, y in pictures()]
    with pytest.raises(DataError, match="how likely the right class is"):
        old_snacs(keep=0.7, probe=False).plan(view(net(), data))


def test_magnitude_can_rank_within_the_limits() -> None:
    seen = view(taught(), pictures())
    method = old_snacs(keep=0.5, granularity="filters", ranking="magnitude", protect=False, limits=False)
    assert method.plan(seen).cuts == Magnitude(keep=0.5, budget="macs").plan(seen).cuts
    assert method.plan(seen).cuts != replace(method, ranking="connectivity").plan(seen).cuts
    bounded = replace(method, limits=True, keep=0.7)
    plan, found = bounded.plan(seen), bounded.evidence(seen)
    require_within(
        plan, {name: limit.raise_by(plan.reached.get("slack", 0.15)) for name, limit in found.limits.items()}
    )


def test_dependence_can_rank_without_the_weight() -> None:
    seen = view(net(), pictures())
    with_weight = old_snacs(limits=False).evidence(seen).scores
    without = old_snacs(limits=False, ranking="dependence").evidence(seen).scores
    for layer in layers(seen.graph, seen.weights, with_weight):
        torch.testing.assert_close(with_weight[layer.tensor], weigh_by_magnitude(layer, without[layer.tensor]))
    assert all(bool((values >= 0).all()) and bool((values <= 1 + 1e-6).all()) for values in without.values())
    ranks = [
        (a.flatten().argsort(), b.flatten().argsort())
        for a, b in zip(with_weight.values(), without.values(), strict=True)
    ]
    assert any(not torch.equal(a, b) for a, b in ranks)


def test_every_output_still_hears_an_input_when_next_to_nothing_stays() -> None:
    model, data = net(), pictures()
    plan = old_snacs(keep=0.06, budget="connections", limits=False, protect=False).plan(view(model, data))
    pruned = apply(model, trace(model, data[0][0][:2]), plan)
    x = data[0][0][:4].requires_grad_()
    heard = [torch.autograd.grad(pruned(x)[:, k].sum(), x)[0].abs().sum() for k in range(3)]
    paths = [bool((masks(plan)["2.weight"].flatten(2).any(2)[masks(plan)["6.weight"][k]]).any()) for k in range(3)]
    assert len(heard) == 3
    assert all(paths)
    with pytest.raises(BudgetError, match="connected"):
        old_snacs(keep=0.01, budget="connections", limits=False, protect=False).plan(view(model, data))


class Counting:
    """Counts how often the model runs, out of the model's reach: what a run writes into it is put back."""

    def __init__(self, model: nn.Module) -> None:
        self.runs = 0
        model.register_forward_pre_hook(lambda *args: self.count())

    def count(self) -> None:
        self.runs += 1


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_the_cache_gives_the_same_plan_without_running_the_model(tmp_path: Path, granularity: Any) -> None:
    model, data = net(), pictures()
    seen = view(model, data)
    counting = Counting(model)
    method = old_snacs(keep=0.6, granularity=granularity, cache=str(tmp_path), slack=0.9)
    first = method.plan(seen)
    runs = counting.runs
    assert runs >= len(data)
    assert method.plan(seen) == first
    assert counting.runs == runs
    assert first == old_snacs(keep=0.6, granularity=granularity, slack=0.9).plan(seen)
    runs = counting.runs
    other = old_snacs(keep=0.8, granularity=granularity, cache=str(tmp_path), slack=0.9).plan(seen)
    assert counting.runs == runs
    assert other != first


def test_other_weights_other_data_and_another_seed_are_other_surveys(tmp_path: Path) -> None:
    model, data = net(), pictures()
    method = old_snacs(keep=0.6, cache=str(tmp_path), limits=False)
    method.plan(view(model, data))
    method.plan(view(model, pictures(seed=9)))
    method.plan(view(model, data, seed=1))
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] += 1
    method.plan(view(model, data))
    assert len(list(tmp_path.iterdir())) == 4


class Shuffling:
    """A loader that shuffles anew each time it is read."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        (x, y), order = pictures(100)[0], torch.randperm(100, generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        return iter([(x[order], y[order])])


def test_a_loader_that_shuffles_anew_each_time_gives_the_same_survey(tmp_path: Path) -> None:
    seen = view(net(), Shuffling())
    method = old_snacs(keep=0.6, cache=str(tmp_path), limits=False, samples=60)
    assert method.plan(seen) == method.plan(seen)
    assert len(list(tmp_path.iterdir())) == 1


def test_limits_of_a_loader_that_draws_by_lot_are_the_same_whatever_was_drawn_before() -> None:
    pairs = [(x, y) for batch in pictures() for x, y in zip(*batch, strict=True)]
    loader: Any = DataLoader(pairs, batch_size=40, shuffle=True)
    seen = replace(view(taught(), pictures()), data=loader)
    method, stats = (
        old_snacs(granularity="filters"),
        measure(taught(), seen.graph, pictures(), want={"connections", "labels"}),
    )
    found = []
    for _ in range(2):
        torch.rand(5)
        found.append(method.evidence(replace(seen, stats=stats)).limits)
    assert found[0] == found[1]


def test_two_may_survey_the_same_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view(net(), pictures())
    method = old_snacs(keep=0.6, cache=str(tmp_path), limits=False)
    expected = old_snacs(keep=0.6, limits=False).plan(seen)
    real, others = surveys.write_container, list[Any]()

    def overtaken(*given: Any) -> Path:
        path = real(*given)
        if not others:
            others.append(None)
            others.append(method.plan(seen))
        return path

    monkeypatch.setattr(surveys, "write_container", overtaken)
    assert method.plan(seen) == expected
    assert others == [None, expected]
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["connectivity.safetensors"]


def test_a_survey_that_was_stopped_goes_on_from_its_last_finished_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = view(net(), pictures())
    method = old_snacs(keep=0.6, cache=str(tmp_path), limits=False)
    expected = old_snacs(keep=0.6, limits=False).plan(seen)
    real, scored = surveys.connectivity, []

    def stopping(layer: Any, heard: Tensor, **options: Any) -> Tensor:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(layer.tensor)
        return real(layer, heard, **options)

    monkeypatch.setattr(surveys, "connectivity", stopping)
    with pytest.raises(KeyboardInterrupt):
        method.plan(seen)
    assert scored == ["0.weight", "2.weight"]
    again = []
    monkeypatch.setattr(surveys, "connectivity", lambda *a, **k: again.append(a[0].tensor) or real(*a, **k))
    monkeypatch.setattr(base, "measure", None)
    assert method.plan(seen) == expected
    assert again == ["6.weight"]


def test_the_paper_scores_what_layers_put_out_and_takes_weights_with_their_sign() -> None:
    model, data = net(hidden=5), pictures(60)
    with torch.no_grad():
        model[2].weight[3] = -2.0
    seen = view(model, data)
    paper = old_snacs(keep=0.9, paper=True)
    assert (old_snacs().probe, old_snacs().slack) == (paper.probe, paper.slack) == (True, 0.7)
    assert (old_snacs(granularity="filters").probe, old_snacs(granularity="filters").slack) == (False, 0.15)
    assert (paper.estimator, paper.per_class, paper.samples) == ("hash", 250, 2500)
    found, ours = paper.evidence(seen), old_snacs(keep=0.6).evidence(seen)
    assert found.scores["2.weight"][3].sum() == 0
    assert ours.scores["2.weight"][3].sum() > 0
    assert found.limits["2.weight"] != ours.limits["2.weight"]
    assert paper.plan(seen).reached["keep"] == pytest.approx(0.9, abs=0.04)


def test_the_papers_parents_are_raw_outputs() -> None:
    heard = {"a": torch.randn(50, 2, 1), "b": torch.rand(50, 3, 1)}
    graph = view(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), [torch.randn(4, 2)])
    first, second = layers(graph.graph, graph.weights, ["0.weight", "2.weight"])
    named = {"0.weight": heard["a"], "2.weight": heard["b"]}
    raw = published._raw(second, [first], named, second.said(heard["b"])[:, 0])
    torch.testing.assert_close(raw, heard["a"][:, :, 0] @ graph.weights["0.weight"].T)


def test_evidence_survives_a_file_and_speaks_json(tmp_path: Path) -> None:
    found = SurveyOptions().of(view(net(), pictures()))
    again = ConnectivityEvidence.load(found.save(tmp_path / "found.safetensors"))
    assert list(again.scores) == list(found.scores)
    assert all(torch.equal(again.scores[name], values) for name, values in found.scores.items())
    assert again.to_json() == found.to_json()
    assert set(found.to_json()["limits"]) == {"2.weight", "6.weight"}


def test_evidence_measured_before_is_used() -> None:
    model, data = net(), pictures()
    seen = view(model, data)
    stats = measure(model, seen.graph, data, want={"connections", "labels"}, seed=0)
    given = View(seen.graph, seen.weights, stats)
    for method in (old_snacs(keep=0.7), old_snacs(keep=0.7, granularity="filters", limits=False)):
        assert method.plan(given) == method.plan(seen)
    asking = old_snacs(keep=0.7, granularity="filters")
    assert asking.plan(replace(seen, stats=stats)) == asking.plan(seen)
    with pytest.raises(DataError, match="give model and data, or use probe=True"):
        asking.plan(given)


def test_limits_need_labels_and_nothing_else_does() -> None:
    model, data = net(), [x for x, _ in pictures()]
    with pytest.raises(DataError, match="limits=False"):
        old_snacs(keep=0.7).plan(view(model, data))
    seen = view(model, data)
    stats = measure(model, seen.graph, data, want={"connections"})
    with pytest.raises(DataError, match="limits of the layers need labels"):
        old_snacs(keep=0.7).plan(View(seen.graph, seen.weights, stats))
    assert old_snacs(keep=0.7, limits=False).plan(seen).masks


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.zeros(40, dtype=torch.long), "same label"), (torch.arange(40), "too few")],
    ids=["one class", "fewer samples than classes"],
)
def test_labels_that_teach_nothing_are_refused(labels: Tensor, message: str) -> None:
    x = pictures()[0][0][:40]
    with pytest.raises(DataError, match=message):
        old_snacs(keep=0.7).plan(view(net(), [(x, labels)]))


def test_constant_and_dead_channels_are_no_trouble() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    for granularity in ("kernels", "filters"):
        plan = old_snacs(keep=0.5, granularity=granularity, slack=1.0).plan(view(model, pictures()))
        assert plan.reached["keep"] <= 0.5


def test_nan_activations_and_missing_data_are_refused() -> None:
    model, data = net(), pictures()
    seen = view(model, data)
    with pytest.raises(DataError, match="data="):
        old_snacs().plan(View(seen.graph, seen.weights))
    model[2].bias.data[0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        old_snacs().plan(seen)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.0},
        {"granularity": "layers"},
        {"budget": "channels"},
        {"granularity": "filters", "budget": "weights"},
        {"slack": 1.5},
        {"samples": 0},
        {"estimator": "tarot"},
        {"ranking": "size"},
        {"ranking": "magnitude"},
        {"ranking": "dependence", "paper": True},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        old_snacs(**options)


def test_filters_go_by_a_budget_of_ones_own_and_masks_by_those_of_the_library() -> None:
    own, seen = Budget("weight", "weights and products", lambda costs: costs.params), view(net(), pictures())
    found, same = (old_snacs(budget=kind, granularity="filters", limits=False).plan(seen) for kind in (own, "params"))
    assert found.cuts == same.cuts != () and found.asked["budget"] == "weight"
    assert old_snacs(budget=BUDGETS["macs"]) == old_snacs(budget="macs")
    with pytest.raises(ArgumentError, match=r"Budget\('weight'\) counts whole units: take granularity='filters'"):
        old_snacs(budget=own)


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_planned_for_or_says_why_not(name: str) -> None:
    model, example, graph = traced(name)
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    stats = measure(model, graph, [(example, None)] * 10, want={"connections"})
    seen = View(graph, weights, stats)
    found = old_snacs(limits=False, protect=False, estimator="gaussian").evidence(seen)
    for granularity in ("kernels", "filters"):
        try:
            plan = old_snacs(keep=0.8, granularity=granularity, limits=False).decide(seen, found)
        except BudgetError as error:
            assert "nothing can be cut" in str(error) or "can be pruned" in str(error) or "smallest keep" in str(error)
        else:
            apply(model, graph, plan)


def test_a_model_in_training_mode_is_judged_as_it_runs_and_stays_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.ReLU(), nn.Linear(6, 1))
    data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(3)]
    view = View(trace(model, data[0][0]), dict(model.named_parameters()), None, 0, model, data[0][0], data)
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    assert float(LayerwiseSensitivity(view, data).curve([])[0]) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_task_cannot_be_told_from_no_batch():
    model = nn.Linear(4, 2)
    with pytest.raises(DataError, match="no batch to tell the task by"):
        base.task_of(View(trace(model, torch.randn(2, 4)), {}, None, 0, model, data=[]))
