"""What answers lose: as a refit loses it, of all outputs, and of a copy of the network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nervure import SNACS, Compensated, Cut, Keep, Plan, prune, trace
from nervure.errors import NervureWarning
from nervure.methods import View
from nervure.methods.channels import answer_costs
from nervure.methods.channels.compensation import CompensationCurves, CompensationSurvey
from nervure.refit import Refit, refit
from nervure.stats.loaders import Batch
from nervure.tasks import Task

SAMPLES = 256


def vectors(seed: int = 0, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES, width, generator=generator) @ torch.randn(width, width, generator=generator)


def pictures() -> Tensor:
    drawn = torch.randn(SAMPLES, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.avg_pool2d(drawn, 3, 1, 1) + 0.1 * drawn


def view_of(model: nn.Module, data: list[Any]) -> View:
    example = data[0][:2]
    return View(trace(model, example), dict(model.state_dict()), None, 0, model, example, data)


def curves(model: nn.Module, data: list[Any], **options: Any) -> CompensationCurves:
    options = {"ridge": 0.0, "positions": 1000, "samples": 10_000, "currency": "answers", **options}
    return CompensationSurvey(**options).of(view_of(model, data))


class Two(nn.Module):
    """Two branches, each with an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.one(x), {"other": self.other(x)}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), vectors(), "0"),
    "before a norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)),
        pictures(),
        "0",
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)),
        pictures(),
        "0.widths",
    ),
    "without a bias": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4, bias=False)), vectors(), "0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_lose_what_they_lose_after_a_refit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, x, group = NETWORKS[name]
    torch.manual_seed(1)
    model = make().eval()
    # One size alone: what is lost there is a power of it, which is undone here.
    monkeypatch.setattr(answer_costs, "SHARES", (0.5,))
    monkeypatch.setattr(answer_costs, "OF_ANSWERS", 1.0)
    monkeypatch.setattr(answer_costs, "OF_READERS", 0.0)
    monkeypatch.setattr(answer_costs, "PASSES", 1000)
    graph = trace(model, x[:2])
    found = curves(model, [x])
    count = round(0.5 * graph[group].size)
    keep = torch.ones(graph[group].size, dtype=torch.bool)
    keep[found.order[group][:count]] = False
    pruned = prune(model, x[:2], Plan((Cut(group, Keep.of(keep)),), graph.fingerprint), progress=False)
    how = Refit(samples=SAMPLES, positions=1000, ridge=1e-9, norms=False)
    fitted = refit(pruned, [x], reference=model, how=how, progress=False).result.model
    apart = x[-SAMPLES // 4 :]
    with torch.no_grad():
        dense, now = model(apart), fitted(apart)
    lost = float((dense - now).square().sum() / (dense - dense.mean(0)).square().sum())
    assert lost > 1e-4
    assert float(found.costs[group][:count].sum()) == pytest.approx(lost, rel=0.2)


def test_readers_are_fitted_by_least_squares_and_asked_on_samples_they_were_not_fitted_on() -> None:
    torch.manual_seed(1)
    model, x = NETWORKS["linear"][0]().eval(), vectors()
    found = curves(model, [x])
    lost = []
    for share in answer_costs.SHARES:
        left = found.order["0"][round(share * 12) :]
        with torch.no_grad():
            inner, dense = model[1](model[0](x)), model(x)
        bias = torch.ones(SAMPLES, 1)
        seen, told = torch.cat([inner[:, left], bias], 1).double(), dense.double()
        fitted = torch.linalg.lstsq(seen[: -SAMPLES // 4], told[: -SAMPLES // 4]).solution
        missing = (seen @ fitted - told)[-SAMPLES // 4 :]
        apart = told[-SAMPLES // 4 :]
        lost.append(float(missing.square().sum() / (apart - apart.mean(0)).square().sum()))
    of_readers = curves(model, [x[: -SAMPLES // 4]], currency="outputs").costs["0"].cumsum(0)
    for count, share in zip((6, 11), lost, strict=True):
        expected = share**answer_costs.OF_ANSWERS * float(of_readers[count - 1]) ** answer_costs.OF_READERS
        assert float(found.costs["0"][:count].sum()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("sizes", "groups", "apart"), [([100], 1, 25), ([64, 64], 3, 32), ([8, 4], 100, 1), ([3], 1, 0), ([4000], 1, 256)]
)
def test_some_samples_are_set_apart_but_never_many(sizes: list[int], groups: int, apart: int) -> None:
    numbers = torch.arange(sum(sizes)).float()
    parts = [Batch(part, len(part)) for part in numbers.split(sizes)]
    rest, last = answer_costs.set_apart(parts, groups)
    first, second = (sorted(v for part in found for v in part.raw.tolist()) for found in (rest, last))
    if not apart:
        assert first == second == numbers.tolist()
    else:
        assert first + second == numbers.tolist() and len(second) == apart


def test_units_that_only_another_output_hears_are_not_free() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), vectors()
    found = curves(model, [x])
    first, second = (float(found.costs[name].sum()) for name in ("one.0", "other.0"))
    assert first > 0 and second == pytest.approx(first, rel=0.5)


def test_of_two_groups_that_lose_the_same_the_one_that_reaches_the_answer_is_dearer() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), vectors()
    model.other.load_state_dict(model.one.state_dict())
    joined = Joined(model)
    graph = trace(joined, x[:2])
    asked = {"ridge": 0.0, "samples": SAMPLES}
    by_readers = CompensationSurvey(currency="alone", **asked).of(view_of(joined, [x])).costs
    by_answers = CompensationSurvey(currency="answers", **asked).of(view_of(joined, [x])).costs
    loud, quiet = (group.name for group in graph.prunable)
    assert float(by_readers[loud].sum()) == pytest.approx(float(by_readers[quiet].sum()), rel=1e-3)
    assert float(by_answers[loud].sum()) > 10 * float(by_answers[quiet].sum())


class Joined(nn.Module):
    """Both branches of :class:`Two`, of which the second is hardly heard."""

    def __init__(self, two: Two) -> None:
        super().__init__()
        self.two = two

    def forward(self, x: Tensor) -> Tensor:
        loud, rest = self.two(x)
        return torch.cat([loud, 0.01 * rest["other"]], 1)


def test_the_model_stays_as_it_is_and_the_copy_comes_back() -> None:
    torch.manual_seed(0)
    model, x = NETWORKS["before a norm"][0]().train(), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    once, again = (curves(model, [x]) for _ in range(2))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(once.costs["0"], again.costs["0"])


def test_groups_that_are_asked_about_later_find_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    x = vectors()
    layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)]
    whole = curves(nn.Sequential(*layers).eval(), [x])
    # The last group alone: its readers are the same, and so is what answers lose.
    alone = curves(nn.Sequential(nn.Sequential(*layers[:2]).requires_grad_(False), *layers[2:]).eval(), [x])
    assert torch.allclose(whole.costs["2"], alone.costs["1"], rtol=1e-6)


def test_where_answers_never_vary_readers_count() -> None:
    torch.manual_seed(0)
    model, x = NETWORKS["linear"][0]().eval(), vectors()
    with torch.no_grad():
        deaf = nn.Sequential(model, nn.Linear(4, 2))
        deaf[1].weight.zero_()
    expected = curves(deaf, [x[: -SAMPLES // 4]], currency="outputs").costs["0.0"]
    assert torch.equal(curves(deaf, [x]).costs["0.0"], expected)


def test_outputs_of_several_lengths_and_whole_numbers_are_no_obstacle() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            logits = self.down(self.up(x).relu())
            return {"logits": logits, "classes": logits.argmax(-1), "hidden": x}

    torch.manual_seed(0)
    x = vectors().reshape(-1, 4, 6)
    found = curves(Tokens().eval(), [x[:40], x[40:, :3]])
    assert bool(torch.isfinite(found.costs["up"]).all()) and float(found.costs["up"].sum()) > 0


class Asked(nn.Module):
    """A layer, what is done with it, and another one."""

    def __init__(self, inner: Callable[[nn.Module, Tensor], Tensor], outer: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.inner, self.outer, self.calls = inner, outer, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.outer(self, self.down(self.inner(self, self.up(x).relu())))


def through(_: nn.Module, x: Tensor) -> Tensor:
    return x


def asked(inner: Callable[[nn.Module, Tensor], Tensor] = through, outer: Callable[..., Any] = through) -> Tensor:
    """What units of the only group of such a network cost."""
    torch.manual_seed(0)
    return curves(Asked(inner, outer).eval(), [*vectors().split(64)]).costs["up"]


def test_what_is_masked_with_infinity_says_nothing() -> None:
    masked = asked(outer=lambda _, x: x.masked_fill(torch.tensor([False, True, False]), -torch.inf))
    dropped = asked(outer=lambda _, x: x[:, [0, 2]])
    assert torch.allclose(masked, dropped)


def test_complex_answers_count() -> None:
    real, turned = asked(), asked(outer=lambda _, x: torch.complex(x, 0 * x))
    assert torch.allclose(real, turned)


def test_a_state_that_changes_with_each_call_is_none_of_the_units() -> None:
    assert torch.allclose(asked(outer=lambda model, x: x * min(model.calls, 4)), asked(), rtol=0.2)


def test_chance_is_the_same_each_time_and_stays_what_it_was() -> None:
    def dropped(_: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, training=True)

    torch.manual_seed(0)
    model, x = Asked(through, dropped).eval(), vectors()
    state = torch.get_rng_state()
    found = curves(model, [x])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(curves(model, [x]).costs["up"], found.costs["up"])
    torch.manual_seed(0)
    assert torch.allclose(found.costs["up"], curves(Asked(through, through).eval(), [x]).costs["up"], rtol=0.2)


@pytest.mark.parametrize("outer", [lambda _, x: x[x[:, 0] > 0], lambda _, x: list(x)])
def test_answers_of_other_shapes_each_time_are_not_compared(outer: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Asked(through, outer).eval(), vectors()
    parts = [x[:192], x[192:236], x[236:]]
    with pytest.warns(NervureWarning, match="currency='outputs'"):
        found = curves(model, parts)
    assert torch.equal(found.costs["up"], curves(model, parts[:1], currency="outputs").costs["up"])


@pytest.mark.parametrize("count", [3, 5])
def test_one_sample_says_something(count: int) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS["linear"][0]().eval(), vectors()[:count]
    by_readers = curves(model, [x[: max(count - 1, 3)]], currency="outputs", ridge=0.1)
    assert not torch.equal(curves(model, [x], ridge=0.1).costs["0"], by_readers.costs["0"])


def test_of_large_answers_a_part_is_held_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat(_: nn.Module, x: Tensor) -> Tensor:
        return x.repeat_interleave(500, 1)

    whole = asked(outer=repeat)
    monkeypatch.setattr(answer_costs, "HELD", 64 * 400)
    torch.manual_seed(0)
    meter = answer_costs.AnswerMeter(Asked(through, repeat).eval(), [Batch(part, 32) for part in vectors().split(32)])
    assert sum(value.numel() for answers in meter._dense for value in answers) <= 64 * 400
    assert torch.allclose(asked(outer=repeat), whole, rtol=0.1)


def test_what_is_a_table_or_the_layer_before_as_well_is_only_cut() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.up(x).relu(), self.up.weight.t())

    torch.manual_seed(0)
    model, x = Tied().eval(), vectors()
    lost = []
    meter = answer_costs.AnswerMeter(model, [Batch(x[192:], 64)])
    found = curves(model, [x])
    for share in answer_costs.SHARES:
        cut = Tied().eval()
        cut.load_state_dict(model.state_dict())
        with torch.no_grad():
            cut.up.weight[found.order["up"][: round(8 * share)]] = 0
            change = (cut(x[192:]) - model(x[192:])).square().sum()
        lost.append(float(change) / meter._spread[0])
    of_readers = curves(model, [x[:192]], currency="outputs").costs["up"].cumsum(0)
    for count, share in zip((4, 7), lost, strict=True):
        expected = share**answer_costs.OF_ANSWERS * float(of_readers[count - 1]) ** answer_costs.OF_READERS
        assert float(found.costs["up"][:count].sum()) == pytest.approx(expected, rel=1e-3)


def test_the_last_units_of_a_group_with_more_units_than_it_needs_are_dear() -> None:
    torch.manual_seed(0)
    x = vectors()[:, :3]
    # Three inputs, and nothing that is not linear: three units say all.
    model = nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 6), nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    found = curves(model, [x], ridge=1e-3)
    assert found.costs["0"][-4:].max() > 0.1 > 10 * float(found.costs["0"][:-3].sum())
    graph = trace(model, x[:2])
    plan = Compensated(keep=0.1).plan(view_of(model, [x]))
    left = {cut.group: cut.keep.count for cut in plan.cuts}
    assert left.get("0", graph["0"].size) >= 2


def test_no_group_is_asked_about_more_often_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_about: list[int] = []
    lose = answer_costs.AnswerMeter._lost
    monkeypatch.setattr(
        answer_costs.AnswerMeter, "_lost", lambda self, *args: asked_about.append(len(args[1])) or lose(self, *args)
    )
    torch.manual_seed(0)
    curves(nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 6)).eval(), [vectors()[:, :3]], ridge=1e-3)
    assert len(asked_about) == len(answer_costs.SHARES) and max(asked_about) > 58


def test_losses_that_fall_with_more_units_do_not_make_the_last_ones_free() -> None:
    readers = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = answer_costs._price(readers, [1, 3], [0.3, 0.2]) / readers.clip(1e-9) ** answer_costs.OF_READERS
    answers = found ** (1 / answer_costs.OF_ANSWERS)
    assert answers.tolist() == pytest.approx([0.0, 0.3, 0.3, 0.3, 0.4])


def test_a_bias_of_fewer_entries_than_outputs_is_none_of_theirs() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 12, bias=False)
            self.offset = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu()).view(-1, 3, 4) + self.offset

    torch.manual_seed(0)
    assert float(curves(Heads().eval(), [vectors()]).costs["up"].sum()) > 0


def test_modes_of_the_caller_make_no_difference() -> None:
    torch.manual_seed(0)
    model, x = NETWORKS["linear"][0]().eval(), vectors()
    view = view_of(model, [x])
    expected = CompensationSurvey(currency="answers").of(view).costs["0"]
    with torch.autocast("cpu"):
        assert torch.equal(CompensationSurvey(currency="answers").of(view).costs["0"], expected)


def test_samples_go_to_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    to = Batch.to
    monkeypatch.setattr(Batch, "to", lambda self, device: moved.append(device) or to(self, device))
    torch.manual_seed(0)
    answer_costs.AnswerMeter(NETWORKS["linear"][0](), [Batch(vectors(), SAMPLES)])
    assert moved == [torch.device("cpu")]


def test_whole_batches_are_taken_as_they_are() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    parts = [Batch(torch.zeros(8, 2), 8, Task(take=refuse)) for _ in range(4)]
    assert answer_costs.set_apart(parts, 1) == (parts[:3], parts[3:])


@pytest.mark.parametrize("scope", ["layer", "uniform"])
def test_where_no_groups_compete_the_network_is_not_asked(scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("nervure.methods.channels.compensation.AnswerMeter", refuse)
    torch.manual_seed(0)
    model, x = NETWORKS["linear"][0]().eval(), vectors()
    for method in (Compensated(keep=0.5, scope=scope), Compensated(keep=None), SNACS(keep=None)):
        assert method.plan(view_of(model, [x])).cuts
    with pytest.raises(AssertionError):
        SNACS(keep=0.5).plan(view_of(model, [x]))
