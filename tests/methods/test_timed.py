"""Plans for an engine meet their latency when timed, round to its step, and say what cannot be had."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nervure import FPGM, Cut, Graph, Keep, Magnitude, Plan, Random, prune, trace
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning
from nervure.graph.types import Group
from nervure.methods import Method, View
from nervure.methods.channels.timed import above_steps, seconds_of, warn_above_steps
from tests import contracts
from tests.clocks import Clock, installed
from tests.old_snacs import old_snacs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    return installed(monkeypatch, tmp_path, Clock())


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 16, 5)]
    return nn.Sequential(*layers).eval()


EXAMPLE = torch.zeros(2, 3, 8, 8)


def timed(clock: Clock, method: Method) -> float:
    """The share of the dense network's time that the result takes by the clock."""
    model = network()
    pruned = prune(model, EXAMPLE, method, progress=False)
    assert pruned.plan.cuts
    return clock.seconds(pruned.model, EXAMPLE) / clock.seconds(model, EXAMPLE) * clock.slower


@pytest.mark.parametrize("slower", [1.0, 1.25, 0.8])
@pytest.mark.parametrize("target", [0.6, 0.8])
def test_the_target_is_met_when_timed_also_where_predictions_are_wrong(
    clock: Clock, target: float, slower: float
) -> None:
    clock.slower = slower
    assert 0.8 * target < timed(clock, Magnitude(budget="latency", target=target, multiple=1)) <= target


def test_a_target_can_be_a_time_and_keep_is_a_share(clock: Clock) -> None:
    dense = 1e3 * clock.seconds(network(), EXAMPLE)
    half = timed(clock, Magnitude(budget="latency", keep=0.6, multiple=1))
    assert timed(clock, Magnitude(budget="latency", target=f"{0.6 * dense:.4f} ms", multiple=1)) == half
    model = network()
    assert not prune(model, EXAMPLE, Magnitude(budget="latency", target="100 s"), progress=False).plan
    assert not prune(model, EXAMPLE, Magnitude(budget="latency", target=1.0), progress=False).plan


def test_a_plan_tells_what_was_asked_predicted_and_timed(clock: Clock) -> None:
    plan = prune(network(), EXAMPLE, Random(budget="latency", target=0.7, multiple=4), progress=False).plan
    assert plan.asked == {"budget": "latency", "engine": "eager", "target": 0.7}
    assert plan.reached["keep"] <= 0.7
    assert plan.reached["predicted"] == pytest.approx(plan.reached["keep"], rel=0.1)
    dense = clock.seconds(network(), EXAMPLE)
    assert plan.reached["milliseconds"] == pytest.approx(1e3 * dense * plan.reached["keep"], rel=1e-3)


def test_a_target_that_no_plan_reaches_is_told_with_the_nearest(clock: Clock) -> None:
    with pytest.raises(BudgetError, match=r"timed at 0\.\d+ of the dense network .*Ask for 0\.\d+ or more") as caught:
        prune(network(), EXAMPLE, Magnitude(budget="latency", target=0.05), progress=False)
    assert caught.value.keep is not None
    assert timed(clock, Magnitude(budget="latency", target=caught.value.keep)) <= caught.value.keep


def test_plans_for_an_engine_have_sizes_of_sixteen_and_others_have_not(clock: Clock) -> None:
    assert Magnitude(keep=0.5).multiple == 1
    assert Magnitude(keep=0.5, budget="macs").multiple is None
    assert Magnitude(keep=0.5, engine="openvino").multiple == 16
    assert FPGM(budget="latency").multiple == 16
    assert Magnitude(engine="openvino", multiple=8).multiple == 8
    assert old_snacs(granularity="filters", engine="onnxruntime").multiple == 16
    for method in (Magnitude(keep=0.4, engine="compile", budget="macs"), Magnitude(budget="latency", target=0.7)):
        plan = prune(network(), EXAMPLE, method, progress=False).plan
        assert all(cut.keep.count % 16 == 0 for cut in plan.cuts)


@pytest.mark.filterwarnings("ignore:.*limits")
@pytest.mark.parametrize("model", ["residual"])
@pytest.mark.parametrize(
    "method",
    [
        Magnitude(budget="latency", target=0.8, multiple=1),
        FPGM(budget="latency", keep=0.8, scope="layer", multiple=2),
        old_snacs(budget="latency", granularity="filters", target=0.8, multiple=1, limits=False),
    ],
    ids=lambda m: type(m).__name__,
)
def test_methods_with_a_latency_keep_the_laws(clock: Clock, method: Method, model: str) -> None:
    contracts.a_method_keeps_the_laws(contracts.case(model), method)


def test_sizes_just_above_a_step_are_told_once_for_a_plan() -> None:
    groups = tuple(Group(name, 128, "channels", ()) for name in "abcde")
    graph = Graph(groups=groups)
    sizes = {"a": 65, "b": 64, "c": 33, "d": 79, "e": 3}
    plan = Plan(tuple(Cut(name, Keep.of(torch.arange(128) < size)) for name, size in sizes.items()))
    assert dict(above_steps(graph, plan, 16)) == {"a": 65, "c": 33}
    with pytest.warns(NervureWarning, match=r"2 groups end just above a multiple of 16.*'a' 65, 'c' 33.*multiple=16"):
        warn_above_steps(graph, plan)


def test_plans_that_are_for_no_engine_warn_of_nothing(clock: Clock) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = Magnitude(keep=0.55, scope="layer").plan(view())
    assert [cut.keep.count for cut in plan.cuts] == [18, 26]
    with pytest.warns(NervureWarning, match="'0' 18"):
        Magnitude(keep=0.55, scope="layer", engine="eager", multiple=1).plan(view())


def view(**more: Any) -> View:
    model = network()
    graph = trace(model, EXAMPLE)
    return View(graph, {name: tensor.detach() for name, tensor in model.state_dict().items()}, **more)


def test_a_latency_needs_a_model_to_time() -> None:
    with pytest.raises(DataError, match="give the model and the example"):
        Magnitude(budget="latency").plan(view())


@pytest.mark.parametrize(("text", "seconds"), [("3 ms", 3e-3), ("250us", 2.5e-4), (" .5 s ", 0.5)])
def test_times_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": 3, "budget": "latency"}, '"3 ms"'),
        ({"target": 0, "budget": "latency"}, r"\(0, 1\]"),
        ({"target": True, "budget": "latency"}, r"\(0, 1\]"),
        ({"target": "3", "budget": "latency"}, "number and its unit"),
        ({"target": "0 ms", "budget": "latency"}, "is no time"),
        ({"target": "3 m", "budget": "latency"}, "is no time"),
        ({"target": 0.5, "budget": "macs"}, "needs budget='latency'"),
        ({"engine": "tensorrt"}, "engine='tensorrt'"),
    ],
)
def test_what_can_be_misread_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        Magnitude(**options)


def test_masks_are_for_no_engine() -> None:
    with pytest.raises(ArgumentError, match="masks make no engine faster"):
        old_snacs(engine="eager")
