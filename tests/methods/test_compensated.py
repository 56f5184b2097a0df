"""Compensated: predicted losses are those of the refit, and the laws of permutation and scale."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import OBS, SNACS, Compensated, Cut, Keep, Plan, prune, trace
from nervure.errors import ArgumentError, DataError, NervureWarning
from nervure.methods import View
from nervure.methods.channels.compensation import CompensationCurves, CompensationSurvey, places_in, removable
from nervure.refit import Refit, refit
from nervure.stats.loaders import Batch
from nervure.zoo import build


def pictures(count: int = 64, channels: int = 2, side: int = 8, seed: int = 0) -> Tensor:
    """Neighbours have to do with each other, as in pictures."""
    drawn = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(drawn, 3, 1, 1) + 0.1 * drawn


def vectors(count: int = 512, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) @ torch.randn(6, 6, generator=generator)


class Heads(nn.Module):
    """Attention with a projection of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Stream(nn.Module):
    """What a layer writes is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 5), nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        return self.one(x), self.two(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), vectors(), "0"),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)),
        pictures(),
        "0",
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
        pictures(512),
        "0",
    ),
    "behind a depthwise one": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        pictures(),
        "0",
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.ReLU()),
        pictures(),
        "0.widths",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, 2)),
        pictures(),
        "0",
    ),
    "heads": (Heads, torch.randn(128, 5, 8, generator=torch.Generator().manual_seed(0)), "qkv"),
    "stream": (Stream, vectors(), "stem"),
}


def network(name: str) -> tuple[nn.Module, Tensor, str]:
    make, data, group = NETWORKS[name]
    torch.manual_seed(1)
    return make().eval(), data, group


def curves(model: nn.Module, data: Tensor, **options: Any) -> CompensationCurves:
    graph = trace(model, data[:2])
    options = {"ridge": 0.0, "positions": 1000, "samples": len(data), **options}
    return CompensationSurvey(**options).of(View(graph, {}, None, 0, model, data[:2], [data]))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_predicted_is_what_the_refit_loses(name: str) -> None:
    model, data, group = network(name)
    graph = trace(model, data[:2])
    # A refit leaves every fourth sample out of its fits.
    fitted_on = data[torch.arange(len(data)) % 4 != 3]
    found = curves(model, fitted_on, currency="layers")
    count = len(found.order[group]) // 2
    keep = torch.ones(graph[group].size, dtype=torch.bool)
    keep[found.order[group][:count]] = False
    pruned = prune(model, data[:2], Plan((Cut(group, Keep.of(keep)),), graph.fingerprint), progress=False)
    how = Refit(samples=len(data), positions=1000, ridge=1e-9)
    layers = refit(pruned, [data], reference=model, how=how, progress=False).layers
    readers = {slot.tensor for slot in graph[group].slots if slot.role != "writer"}
    lost = sum(layer.after for layer in layers if layer.tensor in readers)
    assert lost > 1e-4
    assert float(found.costs[group][:count].sum()) == pytest.approx(lost, rel=0.01)


def test_a_layer_with_more_inputs_than_samples_is_not_free() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    few, many = (curves(model, x, ridge=1e-3, currency="alone").costs["0"] for x in (vectors(16), vectors(512)))
    assert float(few[:48].sum()) > 0.3 * float(many[:48].sum())


class Branch(nn.Module):
    """A branch beside a shortcut, behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 10), nn.Linear(10, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.down(self.up(x).relu()))  # type: ignore[no-any-return]


def test_what_is_added_to_a_stream_counts_as_much_as_it_makes_of_it() -> None:
    model, data = Branch().eval(), vectors()
    with torch.no_grad():
        alone, before = curves(model, data, currency="alone").costs["up"], curves(model, data).costs["up"]
        added = model(data) - data
        share = added.var(0) / (added + data).var(0)
        model.norm.weight.mul_(0.01)
        after = curves(model, data).costs["up"]
        assert torch.allclose(curves(model, data, currency="alone").costs["up"], alone, rtol=1e-3)
    assert float(before.sum()) == pytest.approx(float(share.sum()), rel=0.01)
    assert float(alone.sum()) == pytest.approx(6, rel=0.01)
    assert float(after.sum()) < 1e-3 * float(before.sum())


def test_permuted_units_leave_in_the_permuted_order() -> None:
    model, data, _ = network("convolution")
    before = curves(model, data)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    first, second = model[0], model[2]  # type: ignore[index]
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    after = curves(model, data)
    assert torch.equal(order[after.order["0"]], before.order["0"])
    torch.testing.assert_close(after.costs["0"], before.costs["0"], rtol=1e-4, atol=1e-6)


def test_the_scale_of_a_unit_changes_nothing() -> None:
    model, data, _ = network("linear")
    before = curves(model, data, ridge=0.01)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):  # type: ignore[index]
            tensor[:5] *= 100
        model[2].weight[:, :5] /= 100  # type: ignore[index]
    after = curves(model, data, ridge=0.01)
    assert torch.equal(after.order["0"], before.order["0"])
    torch.testing.assert_close(after.costs["0"], before.costs["0"], rtol=1e-3, atol=1e-6)


def test_kernels_that_sum_to_zero_are_ranked_by_what_they_say() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    with torch.no_grad():
        model[2].weight.mul_(0.02)
        for i in range(4):
            model[2].weight[:, i] = sobel * (0.5 + torch.rand(8)).view(8, 1, 1)
    assert set(curves(model, pictures()).order["0"][:4].tolist()) == {4, 5, 6, 7}


def test_all_groups_of_a_network_with_streams_and_heads_have_curves_that_meet_a_budget() -> None:
    model = build("vit_tiny", in_channels=2, image_size=8, patch=4, dim=8, depth=1, heads=4, mlp_ratio=2.0).eval()
    data = [pictures()]
    pruned = prune(model, data[0][:2], Compensated(keep=0.5, budget="macs"), data=data, progress=False)
    assert pruned.plan.reached["keep"] <= 0.5
    assert not curves(model, data[0]).skipped


def test_memory_is_bounded_by_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, _ = network("behind a depthwise one")
    whole = curves(model, data)
    monkeypatch.setattr("nervure.methods.channels.compensation.MEMORY", 1)
    for name, order in curves(model, data).order.items():
        assert torch.equal(order, whole.order[name])


def test_without_data_it_says_what_to_give() -> None:
    model, data, _ = network("linear")
    with pytest.raises(DataError, match="data="):
        prune(model, data[:2], Compensated(keep=0.5))


def wide() -> nn.Module:
    """A flattened picture is read by a linear layer."""
    torch.manual_seed(0)
    body = (nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16 * 64, 24), nn.ReLU(), nn.Linear(24, 4))


def test_a_group_whose_reader_is_too_wide_shrinks_with_the_others_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.methods.channels.compensation.WIDEST", 1000)
    model, data = wide(), [pictures()]
    for keep in (0.7, 0.4):
        with pytest.warns(NervureWarning, match=r"units of 2 is not known \(nothing reads it that can be fitted"):
            plan = prune(model, data[0][:2], Compensated(keep=keep), data=data, refit=False).plan
        shares = {cut.group: float(cut.keep.tensor().float().mean()) for cut in plan.cuts}
        assert shares["2"] == pytest.approx(keep, abs=0.1)


def test_data_that_are_gone_after_one_pass_are_refused_before_anything_is_measured() -> None:
    model, x = wide(), pictures()
    with pytest.raises(DataError, match="a list_iterator gives its batches once"):
        prune(model, x[:2], Compensated(keep=0.5), data=iter([x]))
    assert prune(model, x[:2], Compensated(keep=0.5), data=iter([x]), refit=False).plan.cuts


def test_limits_decide_where_nothing_says_how_much_stays() -> None:
    model = Stream().eval()
    data = [vectors()]
    view = View(trace(model, data[0][:2]), dict(model.state_dict()), None, 0, model, data[0][:2], data)
    curves = Compensated(keep=None).evidence(view)
    plan = Compensated(keep=None, slack=0.3).plan(view)
    assert plan.asked["keep"] == "limits" and plan.asked["slack"] == 0.3
    (cut,) = plan.cuts
    assert cut.keep.size - cut.keep.count == curves.removable("stem", 0.3) > 0
    stays = set(cut.keep.tensor().nonzero().flatten().tolist())
    assert stays == set(curves.order["stem"][curves.removable("stem", 0.3) :].tolist())
    assert Compensated(keep=None, slack=0.3, budget="params").plan(view).edits == plan.edits
    assert Compensated(keep=None, slack=0.3, minimum=9).plan(view).cuts[0].keep.count == 9


@pytest.mark.parametrize(
    ("costs", "slack", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.9, 0),
        ([1.0, 1.0, 1.0, 1.0], 1.0, 4),
        ([0.0, 0.0, 1.0, 3.0], 0.0, 2),
        ([0.0, 2.0, 0.0, 2.0], 0.5, 1),  # never falling: what is dear stops the group, whatever comes behind it
        ([0.0, 0.0], 0.5, 2),
    ],
)
def test_a_limit_is_where_the_next_unit_costs_too_much(costs: list[float], slack: float, expected: int) -> None:
    assert removable(torch.tensor(costs), slack) == expected


def test_a_limit_does_not_depend_on_units_of_measure() -> None:
    costs = torch.rand(50, generator=torch.Generator().manual_seed(0)).sort().values
    assert {removable(costs * scale, 0.3) for scale in (1e-6, 1.0, 1e6)} == {removable(costs, 0.3)}


def test_a_group_without_a_curve_stays_whole_where_limits_decide() -> None:
    model, x = (
        nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        vectors(),
    )
    view = View(trace(model, x[:2]), dict(model.state_dict()), None, 0, model, x[:2], [x])
    found = Compensated().evidence(view)
    partly = CompensationCurves({"0": found.order["0"]}, {"0": found.costs["0"]})
    with pytest.warns(NervureWarning, match="stay whole, since they have no limit"):
        plan = Compensated(keep=None, slack=0.5).decide(view, partly)
    assert [cut.group for cut in plan.cuts] == ["0"]
    with pytest.warns(NervureWarning, match="largest magnitude"):
        assert len(Compensated(keep=0.5).decide(view, partly).cuts) == 2


def test_limits_know_no_time() -> None:
    with pytest.raises(ArgumentError, match=r"Compensated\(keep=None, budget='latency'\).*keep= or target="):
        Compensated(keep=None, budget="latency")
    assert Compensated(keep=None, budget="latency", target="3 ms").target == "3 ms"


def test_few_samples_are_looked_at_in_more_places() -> None:
    """A layer of many inputs sees as many positions of few samples as of many."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).eval()
    data = torch.randn(16, 1, 12, 12)
    view = View(trace(model, data[:2]), {}, None, 0, model, data[:2], [data])
    every, few = (CompensationSurvey(positions=n).of(view).costs["0"] for n in (144, 8))
    assert torch.equal(CompensationSurvey().of(view).costs["0"], every)
    assert not torch.equal(few, every)


@pytest.mark.parametrize(
    "method", [Compensated(keep=0.5), OBS(keep=0.5), SNACS(keep=0.5), SNACS(keep=0.5, budget="weights")]
)
def test_shapes_without_numbers_are_refused_before_they_are_run(method: Any) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    data = [(vectors(8), torch.zeros(8, dtype=torch.long))]
    with pytest.raises(DataError, match=r"shapes without numbers .* Give it its weights first"):
        prune(model, data[0][0][:2], method, data=data, verify=False, progress=False)


def test_obs_looks_at_more_places_where_samples_are_few() -> None:
    few, many = ([Batch(torch.zeros(n, 1), n)] for n in (64, 4096))
    assert (places_in(few), places_in(many)) == (128, 8)
    model, x = NETWORKS["convolution"][0]().eval(), pictures()
    view = View(trace(model, x[:2]), dict(model.state_dict()), None, 0, model, x[:2], [x])
    assert torch.equal(OBS().scores(view)["0"], OBS(positions=128).scores(view)["0"])
    assert not torch.equal(OBS().scores(view)["0"], OBS(positions=8).scores(view)["0"])
