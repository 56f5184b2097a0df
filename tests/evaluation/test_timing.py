"""Tables are measured once, go on where they were stopped, and are measured anew where they are stale."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nervure import latency_table, trace
from nervure.core.inputs import Inputs
from nervure.errors import ArgumentError
from nervure.evaluation.timing import Stopwatch, random_plan
from nervure.plan import Cut, Keep, Plan
from nervure.surgery import apply
from tests.clocks import Clock, installed
from tests.networks import NETWORKS

SAMPLES = 12


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    return installed(monkeypatch, tmp_path, Clock())


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 5)]
    return nn.Sequential(*layers).eval()


EXAMPLE = torch.zeros(2, 3, 8, 8)


def only_file(folder: Path) -> Path:
    (found,) = folder.rglob("*.json")
    return found


def test_a_table_is_measured_once_and_read_afterwards(clock: Clock, tmp_path: Path) -> None:
    model = network()
    table = latency_table(model, EXAMPLE, samples=SAMPLES)
    assert clock.timed == SAMPLES
    assert latency_table(model, EXAMPLE, samples=SAMPLES) == table
    assert clock.timed == SAMPLES
    assert only_file(tmp_path / "nervure" / "latency").name.startswith("eager-")


def test_what_it_predicts_is_what_the_clock_says(clock: Clock) -> None:
    model = network()
    graph = trace(model, EXAMPLE)
    table = latency_table(model, EXAMPLE, graph=graph, samples=30)
    assert table.dense == pytest.approx(clock.seconds(model, EXAMPLE))
    for number in range(100, 110):
        plan = random_plan(graph, number)
        assert table.predict(graph, plan) == pytest.approx(clock.seconds(apply(model, graph, plan), EXAMPLE), rel=0.1)


@pytest.mark.parametrize("other", [{"threads": 3}, {"example": torch.zeros(5, 3, 8, 8)}, {"engine": "compile"}])
def test_another_batch_engine_or_number_of_threads_is_another_table(clock: Clock, other: dict[str, object]) -> None:
    model = network()
    latency_table(model, EXAMPLE, samples=SAMPLES)
    latency_table(model, **({"example": EXAMPLE, "samples": SAMPLES} | other))
    assert clock.timed == 2 * SAMPLES


def test_a_table_that_was_stopped_goes_on(clock: Clock) -> None:
    model = network()
    clock.stops_after = 1
    with pytest.raises(KeyboardInterrupt):
        latency_table(model, EXAMPLE, samples=SAMPLES)
    done, clock.stops_after = clock.timed, None
    assert 0 < done < SAMPLES
    latency_table(model, EXAMPLE, samples=SAMPLES)
    assert clock.timed == SAMPLES


@pytest.mark.parametrize("spoil", ["versions", "garbage"])
def test_a_table_of_other_versions_or_that_cannot_be_read_is_measured_anew(
    clock: Clock, tmp_path: Path, spoil: str
) -> None:
    model = network()
    table = latency_table(model, EXAMPLE, samples=SAMPLES)
    file = only_file(tmp_path)
    data = json.loads(file.read_text())
    data["key"]["versions"] = "torch 0.1"
    file.write_text(json.dumps(data) if spoil == "versions" else "{")
    assert latency_table(model, EXAMPLE, samples=SAMPLES) == table
    assert clock.timed == 2 * SAMPLES


def test_a_plan_that_was_timed_is_known_and_changes_no_prediction(clock: Clock) -> None:
    model = network()
    graph = trace(model, EXAMPLE)
    watch = Stopwatch(model, graph, Inputs.of(EXAMPLE))
    table = watch.table(samples=SAMPLES)
    plan = Plan((Cut("0", Keep.of(torch.arange(12) < 4)),), graph.fingerprint)
    ratio = watch.ratio(plan)
    assert ratio == pytest.approx(clock.seconds(apply(model, graph, plan), EXAMPLE) / table.dense)
    assert watch.ratio(plan) == ratio
    assert clock.timed == SAMPLES + 1
    assert watch.table(samples=SAMPLES).rates == table.rates
    assert watch.ratio(Plan()) == 1


def test_the_dense_network_is_made_ready_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timings = sys.modules["nervure.evaluation.latency"]  # the package has a function of this name
    real, prepared = timings.prepare, list[nn.Module]()

    def counted(engine: str, model: nn.Module, *given: Any, **options: Any) -> Any:
        prepared.append(model)
        return real(engine, model, *given, **options)

    monkeypatch.setattr(timings, "prepare", counted)
    monkeypatch.setattr("nervure.evaluation.timing.CHECK_SECONDS", 0.0)
    model = network()
    watch = Stopwatch(model, trace(model, EXAMPLE), Inputs.of(EXAMPLE), cache=tmp_path)
    plans = [Plan((Cut("0", Keep.of(torch.arange(12) < size)),)) for size in range(2, 12)]
    assert all(ratio > 0 for ratio in watch.ratios(plans))
    assert sum(one is model for one in prepared) == 1
    assert len(prepared) == 1 + len(plans)


@pytest.mark.parametrize("name", ["residual", "vit", "concat"])
def test_networks_that_are_sampled_run_and_are_the_same_each_time(name: str) -> None:
    model, example = NETWORKS[name].factory().eval(), NETWORKS[name].example()
    graph = trace(model, example)
    plans = [random_plan(graph, number) for number in range(6)]
    assert plans == [random_plan(graph, number) for number in range(6)]
    assert len({repr(plan) for plan in plans}) > 3
    for plan in plans[:3]:
        args = example if isinstance(example, tuple) else (example,)
        apply(model, graph, plan).eval()(*args)


def test_an_engine_that_is_none_is_refused(clock: Clock) -> None:
    with pytest.raises(ArgumentError, match="engine='tensorrt'"):
        latency_table(network(), EXAMPLE, engine="tensorrt")
    with pytest.raises(ArgumentError, match="samples=0"):
        latency_table(network(), EXAMPLE, samples=0)
