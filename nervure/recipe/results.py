"""The lines of results that trials leave in a folder: written one by one, read back, never computed twice."""

import ast
import datetime
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from nervure.core import files
from nervure.core.documents import open_document, seal_document
from nervure.core.provenance import commit
from nervure.errors import FileError
from nervure.evaluation.timing import engine_versions, processor
from nervure.export import versions
from nervure.recipe.recipe import Recipe
from nervure.recipe.study import Trial
from nervure.report.outcome import Outcome

RESULTS = "results.jsonl"
LONGEST = 100_000
"""Characters of the ``repr`` of a method, at most."""


class Results:
    """The outcomes in a folder, and what is said about those that come.

    Args:
        folder: where ``results.jsonl`` is, or will be.
        say: tells one line.
        methods: of each trial as it is made now, by key. What was made otherwise is not done: a default changed since.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], methods: Mapping[str, str] | None = None) -> None:
        self.folder, self.say, made = folder, say, methods or {}
        done = {row.key: row for row in read_outcomes(folder / RESULTS) if not row.error}
        # Lines of what was made otherwise stay in the file; later ones count.
        self.done = {key: row for key, row in done.items() if key not in made or agree(row, made[key])}
        self.failed: dict[str, Outcome] = {}
        self.provenance = _provenance()

    def of(self, trials: Iterable[Trial]) -> tuple[Outcome, ...]:
        """The outcomes of these trials that are done, those of the dense networks first, in the order of the trials."""
        listed = tuple(trials)
        wanted = [*dict.fromkeys(map(dense_key, listed)), *(trial.key for trial in listed)]
        return tuple(self.done[key] for key in wanted if key in self.done)

    def note(self, outcome: Outcome) -> None:
        """Write an outcome down, and remember it."""
        noted = replace(outcome, provenance=self.provenance)
        append_line(self.folder / RESULTS, asdict(noted))
        (self.failed if noted.error else self.done)[noted.key] = noted

    def time_left(self, rest: Iterable[Trial], workers: int = 1) -> str:
        """What is left at the pace so far, network by network; the first training of a network is not counted."""
        seen: dict[str, list[float]] = {}
        for row in self.done.values():
            if "all" in row.seconds:
                seen.setdefault(row.network, []).append(row.seconds["all"])
        # Medians: a few trials on a machine that was busy then say nothing about those to come.
        middles = {network: median(values) for network, values in seen.items()}
        usual = max(middles.values(), default=0.0)
        seconds = sum(middles.get(trial.network, usual) for trial in rest) / workers
        return f"about {seconds / 60:.0f} min of trials left" if seconds else "that was all"


def dense_key(trial: Trial) -> str:
    """The key of the outcome of the dense network that a trial cuts."""
    return f"dense-{trial.dense_key}"


def failed_outcome(trial: Trial, reason: str) -> Outcome:
    """The outcome of a trial that came to nothing."""
    return Outcome(**trial.identity, error=reason)


def agree(outcome: Outcome, method: str) -> bool:
    """Whether an outcome is of the method as it is made now.

    A default that changed since makes another method; an option that is new does not.
    """
    before, now = _options(outcome.options), _options(method)
    return all(now[name] == value for name, value in before.items() if name in now)


def _options(method: str) -> dict[str, str]:
    """The options that the ``repr`` of a method shows, and its name; the text itself where it is no such call."""
    try:
        call = ast.parse(method, mode="eval").body if len(method) < LONGEST else None
        if isinstance(call, ast.Call):
            return {"": ast.unparse(call.func)} | {str(k.arg): ast.unparse(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return {"": method}


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """The outcomes in a file of results; a last line that was cut short is left out.

    Raises:
        FileError: a line is damaged, or no outcome.
    """
    return read_lines(path, Outcome.from_json)


def read_lines(path: Path, made: Callable[[Any], Any]) -> Iterator[Any]:
    """What ``made`` makes of each line of a file, which are sealed documents; a last line cut short is left out.

    Raises:
        FileError: a line is damaged, or nothing of the kind.
    """
    for number, line in enumerate(files.read_lines(path, "a file of lines of results"), start=1):
        if line:
            try:
                yield made(open_document(line, "it"))
            except FileError as error:
                raise FileError(f"{str(path)!r}, line {number}: {error}") from error


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file, on the disk before this returns; raises FileError where that fails."""
    files.append_line(path, seal_document(row, "the outcome of a trial", indent=-1).decode())


def engines_of(recipe: Recipe) -> dict[str, str]:
    """The engines in which networks are timed, with the versions of their libraries; empty where none are."""
    asked = recipe.evaluate
    return {f"timed in {engine}": engine_versions(engine) for engine in asked.engines} if asked.latency else {}


def _provenance() -> dict[str, str]:
    return {
        **versions(),
        "python": platform.python_version(),
        "processor": processor(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit() or "",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
