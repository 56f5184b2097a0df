"""A sweep can be killed anywhere and goes on; several workers find what one finds; evidence is gathered once."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest

from nervure import Recipe, Taylor, sweep
from nervure.errors import ArgumentError, RecipeError
from nervure.methods.snacs import survey as surveys
from nervure.recipe import steps, trials
from nervure.recipe.results import Results
from nervure.recipe.study import Trial, swept_trials
from nervure.recipe.workers import Beside, pool_of
from nervure.report import Sweep

ROOT = Path(__file__).parent.parent
TINY: dict[str, Any] = {
    "model": {"name": "resnet8", "options": {"width": 0.25, "stem_stride": 2}},
    "data": {"name": "digits", "train_samples": 128, "test_samples": 60},
    "train": {"epochs": 1},
    "prune": {"samples": 64},
    "recover": {"epochs": 1},
    "evaluate": {"latency": [], "shift": ["brightness"], "shift_samples": 20},
    "sweep": {"keeps": [0.5, 0.4], "seeds": [0, 1], "method": [{"name": "Random"}, {"name": "Taylor"}]},
}


def tiny(**sections: Mapping[str, Any]) -> Recipe:
    return Recipe.from_dict(TINY | {name: TINY.get(name, {}) | table for name, table in sections.items()})


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of results by key, without what differs from time to time; no key comes twice."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().split("\n") if line]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: {k: v for k, v in row.items() if k not in ("seconds", "provenance", "sha256")} for row in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep, list[frozenset[str]]]:
    """An uninterrupted sweep by one worker, its result, and what was measured on the way."""
    wanted: list[frozenset[str]] = []
    original = steps.measure

    def counted(*given: Any, **options: Any) -> Any:
        wanted.append(options["want"])
        return original(*given, **options)

    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "measure", counted)
        found = sweep(tiny(), folder=folder, progress=False)
    return folder, found, wanted


Whole = tuple[Path, Sweep, list[frozenset[str]]]


def test_every_setting_is_tried_with_every_seed(whole: Whole) -> None:
    folder, found, _ = whole
    labels = ["dense", "dense+", "Random at 0.5", "Random at 0.4", "Taylor at 0.5", "Taylor at 0.4"]
    assert [c.label for c in found.means] == labels
    assert {(c.accuracy.n, c.shifted.n) for c in found.means} == {(2, 2)}
    assert len(lines(folder)) == 12
    assert found.means[0].costs["macs"].value == 1
    assert 0.3 < found.means[4].costs["macs"].value <= 0.5
    assert {"sweep.json", "sweep.html", "sweep.md", "recipe.toml"} <= {p.name for p in folder.iterdir()}
    assert Recipe.from_toml(folder / "recipe.toml") == tiny()


def test_evidence_is_gathered_once_for_each_seed(whole: Whole) -> None:
    _, _, wanted = whole
    assert wanted == [Taylor().wants] * 2
    assert wanted[0]


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
def test_budgets_share_what_a_method_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, scored = surveys.connectivity, list[str]()

    def counted(layer: Any, *given: Any, **options: Any) -> Any:
        scored.append(layer.tensor)
        return real(layer, *given, **options)

    monkeypatch.setattr(surveys, "connectivity", counted)
    methods = [{"name": "SNACS", "options": {"granularity": "filters", "limits": False, "samples": 64}}]
    sweep(tiny(sweep={"method": methods, "seeds": [0]}), folder=tmp_path, progress=False)
    assert {line["error"] for line in lines(tmp_path).values()} == {""}
    assert len(scored) == len(set(scored)) > 0


def test_each_trial_leaves_a_recipe_and_a_model(whole: Whole) -> None:
    folder, found, _ = whole
    place = folder / "trials" / found.means[-1].key
    recipe = Recipe.from_toml(place / "recipe.toml")
    assert (recipe.prune.method, recipe.prune.keep, recipe.sweep.keeps) == ("Taylor", 0.4, ())
    trial = next(t for t in swept_trials(tiny()) if t.key == place.name)
    assert trials.pruned_of(trials.bench_of(trial, folder)) is not None


def test_killed_with_two_workers_it_goes_on_with_one_and_repeats_nothing(whole: Whole, tmp_path: Path) -> None:
    folder, results = tmp_path / "killed", tmp_path / "killed" / "results.jsonl"
    (tmp_path / "tiny.toml").write_text(tiny().to_toml())
    command = [sys.executable, "-m", "nervure", "sweep", str(tmp_path / "tiny.toml"), "--folder", str(folder)]
    process = subprocess.Popen([*command, "--workers", "2", "--quiet"], cwd=ROOT)
    deadline = time.monotonic() + 200
    while not (results.exists() and results.read_text().count("\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results.read_text()
    assert 3 < before.count("\n") < 12
    sweep(tiny(), folder=folder, progress=False)
    assert results.read_text().startswith(before[: before.rfind("\n") + 1])
    assert lines(folder) == lines(whole[0])


def test_more_budgets_and_seeds_are_added_to_what_is_there(whole: Whole, tmp_path: Path) -> None:
    one = tiny(run={"twins": False}, sweep={"keeps": [0.5], "seeds": [0], "method": [{"name": "Random"}]})
    sweep(one, folder=tmp_path, progress=False)
    said: list[str] = []
    more = sweep(one, keeps=[0.5, 0.4], methods=["Random", "Taylor"], folder=tmp_path, say=said.append, limit=2)
    assert said[0].startswith("1 of 4 trials are done")
    assert [c.label for c in more.means] == ["dense", "Random at 0.5", "Random at 0.4", "Taylor at 0.5"]
    assert lines(tmp_path).items() <= lines(whole[0]).items()


def test_the_sweep_of_another_recipe_is_refused_with_what_differs(whole: Whole) -> None:
    folder = whole[0]
    with pytest.raises(RecipeError, match=r"another recipe: \[train\] epochs: 1 -> 2\. Give another folder"):
        sweep(tiny(train={"epochs": 2}), folder=folder, progress=False)
    with pytest.raises(RecipeError, match="something else was done there"):
        sweep(tiny(), folder=folder / "cache", progress=False)


def test_a_trial_that_fails_is_noted_and_stops_no_other(tmp_path: Path) -> None:
    few = tiny(run={"twins": False}, evaluate={"shift": []}, sweep={"seeds": [0], "method": [{"name": "Random"}]})
    found = sweep(few, keeps=[0.01, 0.5], folder=tmp_path, progress=False)
    assert [c.label for c in found.means] == ["dense", "Random at 0.5"]
    ((trial, reason),) = found.failures.items()
    assert trial == "resnet8, seed 0, Random at 0.01 of macs"
    assert "floors" in reason
    assert reason.split(";")[0] in (tmp_path / "sweep.md").read_text()


def test_whatever_a_network_raises_is_an_outcome(tmp_path: Path) -> None:
    trial = Trial("n", "m", tiny(model={"name": "", "factory": "math:sqrt", "options": {}}))
    told = trials.answer(trials.Job((trial,), str(tmp_path), prepare=True).to_json())
    assert "math:sqrt cannot be built" in told["error"]


DIES = "import sys, os\nfor line in sys.stdin:\n    os.abort() if 'die' in line else print(line, end='', flush=True)"


def test_a_worker_that_dies_is_told_and_replaced() -> None:
    with Beside(1, [sys.executable, "-c", DIES]) as pool:
        assert pool.submit({"a": 1}).result() == {"a": 1}
        with pytest.raises(BrokenExecutor, match="exit code -6"):
            pool.submit({"die": 1}).result()
        assert pool.submit({"b": 2}).result() == {"b": 2}


def test_a_trial_whose_worker_died_is_noted(tmp_path: Path) -> None:
    todo = swept_trials(tiny(run={"twins": False}))
    results = Results(tmp_path, lambda _: None)
    with Beside(1, [sys.executable, "-c", "import os; os.abort()"]) as pool:
        trials.carry_out(todo, results, pool, trials.Job(folder=str(tmp_path)))
    assert results.failed.keys() == {trial.key for trial in todo}
    assert all("died (exit code -6)" in row.error for row in results.failed.values())


def test_latency_is_measured_once_against_the_dense_network(tmp_path: Path) -> None:
    few = tiny(
        run={"twins": False}, evaluate={"shift": [], "latency": [2], "rounds": 3}, sweep={"seeds": [0], "keeps": [0.5]}
    )
    first = sweep(few, folder=tmp_path, methods=["Random"], progress=False)
    text = (tmp_path / "latency.jsonl").read_text()
    assert first.means[0].costs["latency, batch 2"].value == 1
    assert first.means[1].latency["2"].value > 0
    assert repr(sweep(few, folder=tmp_path, methods=["Random"], progress=False)) == repr(first)  # NaN is not NaN
    assert (tmp_path / "latency.jsonl").read_text() == text


def test_trials_that_differ_in_a_refit_alone_are_timed_once(tmp_path: Path) -> None:
    methods = [{"name": "Random"}, {"label": "refitted", "name": "Random", "refit": {"samples": 32}}]
    found = sweep(
        tiny(
            run={"twins": False},
            recover={"epochs": 0},
            evaluate={"shift": [], "latency": [2], "rounds": 3},
            sweep={"seeds": [0], "keeps": [0.5], "method": methods},
        ),
        folder=tmp_path,
        progress=False,
    )
    plain, refitted = found.means[1:]
    assert plain.latency["2"].value == refitted.latency["2"].value > 0
    assert len((tmp_path / "latency.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keeps": []}, r"nothing to sweep for 'Random': give the fractions that stay"),
        ({"keeps": [1.5]}, r"keeps is .* \(0, 1\]"),
        ({"keeps": [0.5, 0.5]}, "keeps .* once"),
        ({"seeds": [-1]}, "seeds is .*a whole number, 0 or more"),
        ({"seeds": [0.5]}, "seeds is .*a whole number"),
        ({"methods": ["Tailor"]}, "no method 'Tailor'. Did you mean 'Taylor'"),
        ({"methods": ["Random", "Random"]}, "label 'Random' must be there, once"),
        ({"methods": [{"name": "Random", "label": "a"}, {"name": "Random"}]}, "are the same trial"),
        ({"methods": [{"name": "Random", "networks": ["x"]}]}, "a sweep has one network"),
        ({"methods": [{"nmae": "Random"}]}, "no key 'nmae'"),
        ({"methods": [{"name": "Random", "options": {"width": 2}}]}, "width"),
    ],
)
def test_a_sweep_is_checked_before_any_work(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ArgumentError, RecipeError), match=message):
        sweep(tiny(), **change, folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_the_number_of_workers_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"workers is a whole number in \[0, 4096\]"):
        sweep(tiny(), workers=-1, folder=tmp_path / "new", progress=False)
    assert pool_of(trials.answer, 0).workers >= 1


def test_the_example_is_a_sweep_and_as_a_run_it_is_one_trial() -> None:
    recipe = Recipe.from_toml(ROOT / "examples" / "sweep.toml")
    assert len(swept_trials(recipe)) == 2 * (1 + 2 * 3)
    assert (
        recipe.fingerprint == Recipe.from_dict({k: v for k, v in recipe.to_dict().items() if k != "sweep"}).fingerprint
    )
