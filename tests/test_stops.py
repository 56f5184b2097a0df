"""Killed at any write, on a disk that is full or broken at any write: what goes on ends as if nothing had happened.

``NERVURE_STOPS=100`` tries so many of the events of each work, spread over all of them, instead of a few.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nervure.cli import main
from nervure.core.files import contents, write_json
from nervure.core.locks import exclusive_file, exclusive_folder
from nervure.errors import FileError
from nervure.recipe import Recipe, run, sweep
from nervure.recipe.results import failed_outcome
from nervure.recipe.steps import ARTEFACTS, STEPS
from nervure.recipe.trials import Job
from tests.faults import Action, Event, fault, in_child, record
from tests.stopped import RECIPE, WORKS, differences, facts

TRIED = int(os.environ.get("NERVURE_STOPS", "2"))
Whole = tuple[list[Event], Mapping[str, Any]]


@pytest.fixture(scope="module", params=WORKS)
def work(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return WORKS[request.param]


@pytest.fixture(scope="module")
def whole(work: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The events of the work where nothing stops it, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole")
    events = record(partial(work, folder), folder)
    return events, facts(folder)


def spread(events: list[Event], begin: int, tried: int = TRIED) -> range:
    """Numbers of events from all over, an early one first."""
    return range(begin, len(events), -(-len(events) // max(tried, 1)))


def test_killed_anywhere_it_goes_on_to_the_same(work: Callable[[Path], None], whole: Whole, tmp_path: Path) -> None:
    events, expected = whole
    for at in spread(events, begin=1):
        folder = tmp_path / str(at)
        folder.mkdir()
        assert in_child(partial(work, folder), folder, at=at).killed
        again = in_child(partial(work, folder), folder)
        assert again.code == 0, (at, events[at], again.said)
        assert differences(facts(folder), expected) == [], (at, events[at])


@pytest.mark.parametrize("action", [Action.FULL, Action.BROKEN])
def test_whatever_the_disk_refuses_is_told_and_it_goes_on_to_the_same(
    work: Callable[[Path], None], whole: Whole, tmp_path: Path, action: Action
) -> None:
    events, expected = whole
    middle = len(events) // 2 if TRIED < 4 else 0
    for at in spread(events, middle + (action is Action.FULL), TRIED // 2):
        folder = tmp_path / str(at)
        folder.mkdir()
        refused = in_child(partial(work, folder), folder, at=at, action=action)
        assert refused.code == 0 or FileError.__name__ in refused.said.splitlines()[-1], (at, events[at], refused.said)
        again = in_child(partial(work, folder), folder)
        assert again.code == 0, (at, events[at], again.said)
        assert differences(facts(folder), expected) == [], (at, events[at])


def test_asked_to_end_it_leaves_no_lock_and_no_draft(
    work: Callable[[Path], None], whole: Whole, tmp_path: Path
) -> None:
    events, expected = whole

    def interrupted() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        work(tmp_path)

    ended = in_child(interrupted, tmp_path, at=len(events) // 2, action=Action.TERM)
    assert "KeyboardInterrupt" in ended.said.splitlines()[-1]
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []
    assert in_child(lambda: work(tmp_path), tmp_path).code == 0
    assert differences(facts(tmp_path), expected) == []


@pytest.mark.parametrize("name", ["run", "sweep", "compare"])
def test_what_desktops_and_killed_processes_leave_in_a_folder_makes_it_nobody_elses(name: str, tmp_path: Path) -> None:
    folder = tmp_path / {"compare": "comparison"}.get(name, name)
    folder.mkdir()
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._x", ".nfs000", ".probe.a1b2c3d4.part"):
        (folder / litter).touch()
    assert in_child(partial(WORKS[name], tmp_path), folder, at=40).killed


@pytest.mark.parametrize("name", WORKS)
def test_the_second_process_is_told_who_works_there(name: str, tmp_path: Path) -> None:
    hold = exclusive_file if name == "train" else exclusive_folder
    place = tmp_path / {"compare": "comparison", "train": "training.safetensors"}.get(name, name)
    if name != "train":
        place.mkdir()
    with hold(place), pytest.raises(FileError, match=rf"is in use: process {os.getpid()} on .* works there\. Wait"):
        WORKS[name](tmp_path)
    assert contents(tmp_path) == ([] if name == "train" else [place.name])


def test_beginning_anew_killed_while_the_old_run_is_removed_takes_nothing_of_it(tmp_path: Path) -> None:
    """A stale network beside a new log would be taken for a result."""
    (tmp_path / "run").mkdir()
    for name in ARTEFACTS:
        if name not in ("steps.json", "recipe.toml"):
            (tmp_path / "run" / name).write_text("of the old run", encoding="utf-8")
    recipe = Recipe.from_dict(RECIPE)
    begun = {"recipe": recipe.to_dict(), "fingerprint": recipe.fingerprint, "done": list(STEPS), "seconds": {}}
    write_json(tmp_path / "run" / "steps.json", begun)

    def anew() -> None:
        run(recipe, folder=tmp_path / "run", progress=False, resume=False)

    removals = [i for i, event in enumerate(_until_training(anew, tmp_path)) if event.path.endswith("plan.json")]
    (tmp_path / "run" / "random.safetensors").write_text("of the old run", encoding="utf-8")
    write_json(tmp_path / "run" / "steps.json", begun)
    assert in_child(anew, tmp_path, at=removals[0]).killed
    assert in_child(partial(_until_training, lambda: WORKS["run"](tmp_path), tmp_path), tmp_path).code == 0
    assert set(contents(tmp_path / "run")) <= {"steps.json", "recipe.toml"}


def _until_training(work: Callable[[], object], folder: Path) -> list[Event]:
    """Do work until the first training, and return its events."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, fault(folder) as events, pytest.raises(KeyboardInterrupt):
        patch.setattr("nervure.recipe.runner.STEPS", {"train": stop})
        work()
    return events


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_on_the_command_line_being_asked_to_end_is_one_line(
    sent: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nervure.recipe.runner.STEPS", {"train": lambda _: os.kill(os.getpid(), sent)})
    # A test of workers, which ignore Ctrl-C, may have run in this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (tmp_path / "recipe.toml").write_text(Recipe.from_dict(RECIPE).to_toml(), encoding="utf-8")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "recipe.toml"), "--folder", str(tmp_path / "run")])
    assert done.exit_code == code
    assert done.stderr == "stopped\n"
    assert f"what is done is kept. Go on with: nervure run {tmp_path / 'run' / 'recipe.toml'}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["recipe.toml", "steps.json"]


def test_where_the_disk_is_full_no_further_trial_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of results may find room where nothing else does: every trial would be noted as failed."""
    begun: list[object] = []

    def refused(job: Mapping[str, Any]) -> Mapping[str, Any]:
        begun.append(job)
        return asdict(failed_outcome(Job.from_json(job).trials[0], "cannot write"))

    def full(folder: Path) -> Path:
        raise FileError("No space left on device")

    monkeypatch.setattr(sys.modules["nervure.recipe.grid"], "answer", refused)
    monkeypatch.setattr("nervure.recipe.trials.require_folder", full)
    recipe = Recipe.from_dict(RECIPE | {"sweep": {"keeps": [0.5], "seeds": [0, 1]}})
    with pytest.raises(FileError, match="No space left"):
        sweep(recipe, folder=tmp_path, progress=False)
    assert len(begun) == 1
    assert not (tmp_path / "results.jsonl").exists()


def test_on_the_command_line_an_output_that_finds_no_room_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(line: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.print", full)
    (tmp_path / "recipe.toml").write_text(Recipe.from_dict(RECIPE).to_toml(), encoding="utf-8")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "recipe.toml"), "--folder", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: cannot write 'standard output': No space left on device")
