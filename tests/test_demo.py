"""The demo says what it costs, is never silent, and finds a torch for CPUs wherever there is one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nervure.recipe import Recipe
from nervure.recipe.study import swept_trials

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nervure_demo", ROOT / "docs" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_silent_command_is_spoken_for_and_its_lines_are_passed_on(demo, capsys, monkeypatch):
    monkeypatch.setattr(demo, "PATIENCE", 0.2)
    demo.follow([sys.executable, "-c", "import time; print('hello'); time.sleep(0.7); print('done')"], "waiting")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "..." not in line] == ["hello", "done"]
    assert sum(line.startswith("  ... waiting, ") for line in said) >= 2


def test_lines_that_are_not_shown_do_not_count_as_said(demo, capsys, monkeypatch):
    monkeypatch.setattr(demo, "PATIENCE", 0.3)
    chatter = "import time\nfor n in range(12): print('Collecting'); time.sleep(0.1)\nprint('Downloading torch')"
    demo.follow([sys.executable, "-c", chatter], "installing", show=demo.WORTH_SHOWING)
    said = capsys.readouterr().out
    assert "Collecting" not in said and "Downloading torch" in said
    assert "... installing" in said


def test_what_failed_is_told_with_what_it_said(demo):
    with pytest.raises(SystemExit, match="failed with 3: .*\n*the disk is full"):
        demo.follow([sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"], "work")


def test_torch_for_cpus_is_looked_for_in_turn_and_the_usual_one_announced(demo, capsys, monkeypatch):
    asked = []

    def follow(command, what, *, show=None):
        asked.append(command[1:-2])
        if "torch==2.0" not in command:
            raise demo.Failed(command, 1, "ERROR: No matching distribution found for torch==2.0+cpu")

    monkeypatch.setattr(demo, "follow", follow)
    monkeypatch.setattr(demo.sys, "platform", "linux")
    demo.install(["pip"], "2.0", "nervure[onnx]")
    assert asked == [["torch==2.0+cpu"], ["torch==2.0+cpu", "--extra-index-url", demo.CPU_INDEX], ["torch==2.0"]]
    assert "gigabytes" in capsys.readouterr().out


def test_another_failure_of_pip_is_not_tried_again(demo, monkeypatch):
    def follow(command, what, *, show=None):
        raise demo.Failed(command, 1, "No space left on device")

    monkeypatch.setattr(demo, "follow", follow)
    with pytest.raises(SystemExit, match="No space left"):
        demo.install(["pip"], "2.0", "nervure")


def test_elsewhere_the_usual_torch_is_for_cpus(demo):
    assert demo.torch_choices("2.0", "darwin") == [["torch==2.0"]]
    assert demo.pinned("torch", "rich==1\ntorch==2.13.0\n") == "2.13.0"


def test_without_a_model_it_says_how_to_get_one(demo, tmp_path):
    for model in ("", str(tmp_path)):
        with pytest.raises(SystemExit, match="MODEL=.*no folder with a config.json(.|\n)*make demo-lm MODEL="):
            demo.shrink_language_model(tmp_path / "env", model, "texts", "")


def test_a_language_model_is_pruned_and_answers_beside_the_smaller_one(demo, tmp_path, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(demo, "follow", lambda command, what: ran.append(command[1:]))
    monkeypatch.setattr(demo, "make_environment", lambda env, extras: env / "python")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").touch()
    demo.shrink_language_model(tmp_path / "env", str(tmp_path / "tiny"), str(tmp_path), "Once")
    pruning, answering = ran
    smaller = str(ROOT / "runs" / "demo-lm" / "tiny")
    assert pruning[2:] == [
        *("prune", f"hf:{tmp_path / 'tiny'}", "--keep", "0.75"),
        *("--data", f"text:{tmp_path}", "--out", smaller),
    ]
    assert answering == ["examples/side_by_side.py", str(tmp_path / "tiny"), smaller, "Once"]
    assert "What it costs" in capsys.readouterr().out


def test_only_what_a_demo_left_is_removed(demo, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    demo.clear(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "mine" / "sweep.json").touch()
    demo.clear(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_recipe_compares_each_cut_with_and_without_a_refit_and_trains_none():
    trials = swept_trials(Recipe.from_toml(ROOT / "examples" / "demo.toml"))
    assert {t.recipe.recover.epochs for t in trials} == {0}
    assert {t.recipe.prune.keep for t in trials} == {0.12}
    pairs = {(t.recipe.prune.method, t.recipe.refit.samples > 0) for t in trials}
    assert pairs == {(name, refit) for name in ("SNACS", "Magnitude", "Random") for refit in (True, False)}
    assert trials[0].recipe.evaluate.engines[0] == "onnxruntime"
