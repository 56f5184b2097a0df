"""A recipe and the command line tell their trainings to a tracker, and say early where there is none."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from nervure import Recipe, run
from nervure.cli import main
from nervure.errors import MissingExtraError, RecipeError
from nervure.recipe import runner as runner_module
from nervure.recipe.recipe import differences
from nervure.recipe.study import Trial

SHORT = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
train_samples = 128
[train]
epochs = 1
[recover]
epochs = 1
"""
TRACKED = (
    SHORT
    + """
[track]
to = "mlflow"
run_name = "mine"
"""
)


class FakeMlflow(SimpleNamespace):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(begun=[], metrics=[], params={}, ended=0)

    def active_run(self) -> None:
        """There is none."""

    def start_run(self, *, run_name: str = "") -> Any:
        self.begun.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def log_metrics(self, values: dict[str, float], step: int, run_id: str) -> None:
        self.metrics += values

    def log_params(self, settings: dict[str, Any], run_id: str) -> None:
        self.params |= settings

    def end_run(self) -> None:
        self.ended += 1


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_a_run_tells_each_training_and_closes(
    mlflow: FakeMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {name: step for name, step in runner_module.STEPS.items() if name in ("train", "trace", "plan", "cut")}
    monkeypatch.setattr(runner_module, "STEPS", steps | {"recover": runner_module.STEPS["recover"]})
    monkeypatch.setattr(runner_module.Report, "load", lambda path: None)
    recipe = Recipe.from_toml(TRACKED)
    run(recipe, folder=tmp_path / "out", progress=False)
    assert {"dense/step/loss", "dense/epoch/validation", "pruned/epoch/loss"} <= set(mlflow.metrics)
    assert (mlflow.begun, mlflow.ended, mlflow.params["recipe"]) == (["mine"], 1, recipe.fingerprint)
    run(recipe, folder=tmp_path / "out", progress=False)
    assert mlflow.begun == ["mine"], "nothing is left to do, nothing to tell"


def test_a_run_that_fails_closes_its_tracker(
    mlflow: FakeMlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bench: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(runner_module, "STEPS", {"train": fail})
    with pytest.raises(OSError, match="no room"):
        run(Recipe.from_toml(TRACKED), folder=tmp_path / "out", progress=False)
    assert mlflow.ended == 1


def test_a_tracker_decides_nothing() -> None:
    plain, tracked = Recipe.from_toml(SHORT), Recipe.from_toml(TRACKED)
    assert plain.fingerprint == tracked.fingerprint and differences(plain.to_dict(), tracked.to_dict()) == []
    assert Trial("n", "m", plain).key == Trial("n", "m", tracked).key
    assert tracked.track.options == {"run_name": "mine"} and Recipe.from_toml(tracked.to_toml()) == tracked


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"to": "comet"}, r"\[track\] to = 'comet'.* is not one of 'tensorboard', 'wandb', 'mlflow'"),
        ("comet", "is not one of 'tensorboard'"),
        ({"project": "mine"}, r'\[track\] needs to = "tensorboard" or another beside \'project\''),
    ],
)
def test_what_is_no_tracker_is_told_at_once(section: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({"model": {"name": "resnet8"}, "data": {"name": "digits"}, "track": section})


def test_a_library_that_is_missing_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"\[track\] to = 'mlflow' needs mlflow.*pip install '\.\[mlflow\]'"):
        run(Recipe.from_toml(TRACKED), folder=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_options_that_it_does_not_take_are_told(mlflow: FakeMlflow, tmp_path: Path) -> None:
    recipe = Recipe.from_toml(TRACKED.replace("run_name", "nonsense"))
    with pytest.raises(RecipeError, match="'mlflow' does not take these options: .*nonsense"):
        run(recipe, folder=tmp_path / "out", progress=False)


def test_nervure_train_tells_a_tracker(mlflow: FakeMlflow, tmp_path: Path) -> None:
    words = ["train", "--model", "resnet8", "--option", "width=0.25", "--data", "digits", "--epochs", "1"]
    words += ["-o", str(tmp_path / "a.safetensors")]
    done = CliRunner().invoke(main, [*words, "--track", "mlflow", "--track-option", "run_name=mine"])
    assert done.exit_code == 0, done.output
    assert (mlflow.begun, mlflow.ended) == (["mine"], 1) and "epoch/validation" in mlflow.metrics
    refused = CliRunner().invoke(main, [*words, "--track-option", "run_name=mine"])
    assert refused.exit_code and "--track-option run_name: it needs --track" in refused.output
