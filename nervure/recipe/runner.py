"""``run``: the whole pipeline, step by step, able to go on where it stopped."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.files import (
    contents,
    file_errors,
    is_there,
    read_document,
    remove,
    require_folder,
    write_json,
    write_text,
)
from nervure.core.locks import exclusive_folder
from nervure.core.markup import listing
from nervure.errors import RecipeError
from nervure.recipe.context import Log, RunContext
from nervure.recipe.making import (
    data_of,
    device_of,
    method_of,
    methods_after,
    require_engines,
    require_views,
    source_of,
)
from nervure.recipe.purpose import purpose_of
from nervure.recipe.recipe import Recipe, TrackSection, differences
from nervure.recipe.steps import ARTEFACTS, STEPS, Step, remove_checkpoints
from nervure.recipe.tracking import open_tracker, require_tracker, settings_of
from nervure.report import Report

NOTES, RECIPE = "steps.json", "recipe.toml"


@checked
def run(
    recipe: Recipe,
    *,
    folder: FilePath | None = None,
    progress: bool = True,
    resume: bool = True,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Train, trace, plan, cut, verify, recover, compare with two honest twins, save, load again, report.

    Each step leaves its artefacts in the folder and is noted in ``steps.json``. A run that stopped goes on from its
    last finished step, and within a training from its last finished epoch.

    Args:
        recipe: what to do.
        folder: where artefacts go; None: where the recipe says.
        progress: print what happens (the plan before anything is cut) and show bars on a terminal.
        resume: False begins anew: the artefacts of an earlier run in the folder are removed first.
        say: where lines go instead of standard output.

    Returns:
        The report, also written to ``report.json``, ``report.html`` and ``report.md`` in the folder.

    Raises:
        RecipeError: the recipe names something unknown, or the folder holds the run of another recipe.
        MissingExtraError: an engine in which networks are to be timed, or a tracker, is not installed.
        FileError: the folder cannot be written, another process works there, or an artefact in it is damaged.
        NervureError: whatever the steps raise; what was finished stays.
    """
    place = Path(folder if folder is not None else recipe.run.folder)
    tell = say or (print_line if progress else nothing)
    require_engines(recipe)
    require_tracker(recipe.track)
    with threads(recipe.run.threads):
        data = data_of(recipe)
        bench = RunContext(
            recipe, place, data, source_of(recipe, data), method_of(recipe), device_of(recipe), tell, progress
        )
        # Built once before any work: an option that does not fit should not wait for the data to be read twice.
        fresh = bench.fresh()
        bench = replace(bench, purpose=purpose_of(recipe.task, data, lambda: fresh))
        methods_after(recipe)
        require_views(recipe, data, bench.task)
        if bench.purpose.reason:
            tell(f"task: {bench.purpose.name}, told from the first batch: {bench.purpose.reason}")
        with alone_in(place, tell, shlex.join(["nervure", "run", str(place / RECIPE), "--folder", str(place)])):
            _follow_tracked(bench, _open_log(bench, resume))
            return Report.load(bench.path("report.json"))


def _follow_tracked(bench: RunContext, log: Log) -> None:
    """Take the steps of a run, with a tracker where its recipe names one and something is left to do."""
    section = bench.recipe.track if set(STEPS) - set(log["done"]) else TrackSection()
    with open_tracker(section, bench.folder) or nullcontext() as tracker:
        if tracker is not None:
            tracker.note(settings_of(bench))
        follow(replace(bench, tracker=tracker), log, STEPS)


def follow(bench: RunContext, log: Log, steps: Mapping[str, Step]) -> None:
    """Take each step unless the log says that it is done, and note it there and in ``steps.json``."""
    for name, step in steps.items():
        if name in log["done"]:
            bench.say(f"{name}: done before")
            continue
        bench.say(f"{name} ...")
        start = time.perf_counter()
        step(bench)
        log["done"].append(name)
        log["seconds"][name] = round(time.perf_counter() - start, 2)
        write_json(bench.path(NOTES), log)
        # Only now: stopped between the two, the training would be lost.
        remove_checkpoints(bench.folder)


def read_log(bench: RunContext) -> Log | None:
    """What was noted when work was begun in the folder, and which steps are done; None where nothing was begun."""
    notes = bench.path(NOTES)
    return read_document(notes, Log, "the steps of a run") if is_there(notes) else None


def begin_log(bench: RunContext, **told: Any) -> Log:
    """Note what is begun, as ``told``, with no step done."""
    log = cast(Log, {**told, "done": [], "seconds": {}})
    write_json(bench.path(NOTES), log)
    return log


def _open_log(bench: RunContext, resume: bool) -> Log:
    """The log of the run in this folder, begun if there was none; raises where another recipe's run is there."""
    require_ours(bench.folder, bench.path(NOTES))
    log, recipe = read_log(bench), bench.recipe
    if log and resume:
        _require_same_recipe(bench.folder, log, recipe)
    if not log or not resume or log.get("clearing"):
        told = {"recipe": recipe.to_dict(), "fingerprint": recipe.fingerprint}
        # Stopped in between, the next run knows that what is left of an earlier one is not its own.
        begin_log(bench, **told, clearing=True)
        for name in set(ARTEFACTS) - {NOTES, RECIPE}:
            remove(bench.path(name))
        log = begin_log(bench, **told)
    write_text(bench.path(RECIPE), recipe.to_toml())
    return log


def require_ours(folder: Path, notes: Path) -> None:
    """Raise RecipeError where a folder holds something, but not the notes of work begun here."""
    strangers = contents(folder)
    if strangers and not is_there(notes):
        raise RecipeError(
            f"the folder {str(folder)!r} holds {strangers[0]!r}, but no {notes.name}: something else was done there. "
            "Give an empty folder, or one that is not there yet."
        )


def _require_same_recipe(folder: Path, log: Log, recipe: Recipe) -> None:
    if log.get("fingerprint") != recipe.fingerprint:
        changed = "; ".join(differences(log.get("recipe", {}), recipe.to_dict())) or "another version's recipe"
        raise RecipeError(
            f"the folder {str(folder)!r} holds the run of another recipe: {changed}. "
            "Give another folder, or begin anew (--fresh, resume=False)."
        )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside the block; 0: as torch has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None], again: str) -> Iterator[None]:
    """Work in a folder, made if need be, that no other process works in; where that is stopped, say what goes on.

    Raises:
        FileError: the folder cannot be written, or another process works there.
    """
    with exclusive_folder(require_folder(folder)):
        try:
            yield
        except KeyboardInterrupt:
            say(f"stopped; what is done is kept. Go on with: {again}")
            raise


def print_line(line: str) -> None:
    """Print a line, or lines, at once; raises FileError where they cannot be written, for want of room say."""
    with file_errors("standard output", "write"):
        print(listing(line.split("\n")), flush=True, file=sys.stdout)


def nothing(line: str) -> None:
    """Stand in for a printer where nobody listens."""
