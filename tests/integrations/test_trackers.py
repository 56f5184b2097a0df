"""Callbacks are told of each step and each epoch; trackers pass that on, to real libraries where they are installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import train
from nervure.errors import ArgumentError, MissingExtraError
from nervure.integrations.trackers import TRACKERS, Tracker, to_mlflow, to_tensorboard, to_wandb, track_to
from nervure.training import TrainingPoint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(count)]


def points(**how: Any) -> list[TrainingPoint]:
    told: list[TrainingPoint] = []
    train(network(), batches(), progress=False, callbacks=[told.append], **how)
    return told


# ---------------------------------------------------------------------------------------------------------- callbacks


def test_a_callback_is_told_of_every_step_and_every_epoch_in_order() -> None:
    told = points(epochs=2, validation=batches(1), lr=0.1, schedule="constant")
    assert [(p.kind, p.step, p.epoch) for p in told] == [
        ("step", 1, 0), ("step", 2, 0), ("step", 3, 0), ("epoch", 3, 1),
        ("step", 4, 1), ("step", 5, 1), ("step", 6, 1), ("epoch", 6, 2),
    ]  # fmt: skip
    assert all(p.values["learning_rate"] == 0.1 for p in told if p.kind == "step")
    losses = [p.values["loss"] for p in told[:3]]
    assert told[3].values["loss"] == pytest.approx(sum(losses) / 3)
    assert set(told[3].values) == {"loss", "validation", "seconds"}
    assert set(points(epochs=1)[-1].values) == {"loss", "seconds"}


def test_the_numbers_are_those_of_the_history_and_callbacks_change_nothing() -> None:
    told: list[TrainingPoint] = []
    watched, alone = network(), network()
    history = train(watched, batches(), epochs=3, progress=False, callbacks=[told.append, lambda _point: None])
    train(alone, batches(), epochs=3, progress=False)
    assert tuple(p.values["loss"] for p in told if p.kind == "epoch") == history.loss
    assert torch.equal(watched.state_dict()["weight"], alone.state_dict()["weight"])


def test_what_a_callback_raises_stops_the_training_which_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    file, told = tmp_path / "run.safetensors", list[TrainingPoint]()

    def full(point: TrainingPoint) -> None:
        told.append(point)
        if point.kind == "epoch":
            raise OSError("no room")

    model = network()
    with pytest.raises(OSError, match="no room"):
        train(model, batches(), epochs=2, progress=False, callbacks=[full], checkpoint=file)
    again = list[TrainingPoint]()
    train(model, batches(), epochs=2, progress=False, callbacks=[again.append], checkpoint=file)
    assert [p.step for p in told] == [1, 2, 3, 3]
    assert [p.step for p in again] == [4, 5, 6, 6]


# ------------------------------------------------------------------------------------------------------------ trackers


def test_names_say_what_a_number_is_of_and_a_context_closes() -> None:
    lines: list[Any] = []
    tracker = Tracker(
        lambda values, step: lines.append((dict(values), step)), lines.append, lambda: lines.append("end")
    )
    with pytest.raises(ZeroDivisionError), tracker as same:
        assert same is tracker
        same(TrainingPoint("step", 7, 0, {"loss": 0.5}))
        same.under("pruned")(TrainingPoint("epoch", 9, 1, {"validation": 0.9}))
        raise ZeroDivisionError
    assert lines == [({"step/loss": 0.5}, 7), ({"pruned/epoch/validation": 0.9}, 9), "end"]


@pytest.mark.parametrize("name", TRACKERS)
def test_without_its_library_a_tracker_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"needs {name}.*pip install '\.\[{name}\]'"):
        track_to(name)


def test_a_tracker_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="tracker='comet' is not one of 'tensorboard', 'wandb', 'mlflow'"):
        track_to("comet")


def double(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_wandb_gets_the_step_as_a_number_of_its_own_and_ends_only_what_was_begun_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[Any] = []
    run = SimpleNamespace(
        define_metric=lambda *names, **how: lines.append((names, how)),
        log=lambda values: lines.append(values),
        config=SimpleNamespace(update=lambda values, **_how: lines.append(values)),
        finish=lambda: lines.append("finished"),
    )
    begun: list[Any] = []
    wandb = double(monkeypatch, "wandb", run=None, init=lambda **how: begun.append(how) or run)
    with to_wandb("mine", mode="offline") as tracker:
        tracker.note({"keep": 0.5})
        train(network(), batches(1), progress=False, callbacks=[tracker])
    assert begun == [{"project": "mine", "mode": "offline"}]
    assert lines[0] == (("*",), {"step_metric": "training_step"})
    assert lines[1] == {"keep": 0.5}
    assert lines[2]["training_step"] == lines[3]["training_step"] == 1
    assert {"step/loss", "epoch/loss"} <= {*lines[2], *lines[3]}
    assert lines[-1] == "finished"
    wandb.run = run  # type: ignore[attr-defined]
    with to_wandb():
        pass
    assert lines[-1] != "finished" and len(begun) == 1


def test_mlflow_logs_to_the_run_that_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []
    active = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    double(
        monkeypatch,
        "mlflow",
        active_run=lambda: active,
        log_metrics=lambda values, **how: lines.append((values, how)),
        log_params=lambda values, **how: lines.append((values, how)),
        end_run=lambda: lines.append("ended"),
    )
    with to_mlflow() as tracker:
        tracker.log({"a/b": 1.0}, 3)
        tracker.note({"keep": 0.5})
    assert lines == [({"a/b": 1.0}, {"step": 3, "run_id": "r1"}), ({"keep": 0.5}, {"run_id": "r1"})]


@pytest.mark.parametrize("name", TRACKERS)
def test_of_several_processes_only_the_first_tells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    double(monkeypatch, name)  # which would fail if it were asked for anything
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with track_to(name) as tracker:
        tracker(TrainingPoint("step", 1, 0, {"loss": 1.0}))
        tracker.note({"a": 1})


# --------------------------------------------------------------------------------------------------- the real libraries


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with to_tensorboard(str(tmp_path)) as tracker:
        tracker.note({"keep": 0.5, "a|b": "c"})
        history = train(network(), batches(), epochs=2, progress=False, callbacks=[tracker.under("dense")])
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        f"dense/{name}" for name in ("step/loss", "step/learning_rate", "epoch/loss", "epoch/seconds")
    }
    assert [(e.step, e.value) for e in events.Scalars("dense/epoch/loss")] == [
        (3, pytest.approx(history.loss[0])), (6, pytest.approx(history.loss[1])),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("prune")
    with to_mlflow() as tracker:
        tracker.note({"keep": 0.5})
        history = train(network(), batches(), epochs=2, progress=False, callbacks=[tracker])
    run = mlflow.last_active_run()
    assert run.data.params == {"keep": "0.5"}
    assert run.data.metrics["epoch/loss"] == pytest.approx(history.loss[-1])
    assert mlflow.active_run() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_it_offline(tmp_path: Path) -> None:
    wandb: Any = pytest.importorskip("wandb")
    with to_wandb(mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off")) as tracker:
        tracker.note({"keep": 0.5})
        for name in ("dense", "pruned"):
            history = train(network(), batches(), epochs=2, progress=False, callbacks=[tracker.under(name)])
        assert wandb.run.summary["pruned/epoch/loss"] == pytest.approx(history.loss[-1])
    assert wandb.run is None
    assert list(tmp_path.rglob("*.wandb"))
