"""``compare``: methods side by side under one protocol, able to go on at any trial.

Every network is trained once per seed, its evidence is gathered once, and every method cuts the same trained network
and gets the same recovery, with the same order of batches. One line of JSON is written for each finished trial.
"""

import ast
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from torch import nn

from nervure.errors import FileError, NervureError
from nervure.evaluation import evaluate
from nervure.export import load_state, save_state, versions
from nervure.files import require_folder, write_text
from nervure.graph import Graph, count
from nervure.graph.tape import named_tensors
from nervure.methods import View
from nervure.recipe.parts import Source, dataset_of, device_of, method_of, source_of, trained
from nervure.recipe.runner import nothing, printed, threads
from nervure.recipe.study import Study, Trial
from nervure.report.comparison import DENSE, Outcome, write_comparison
from nervure.stats import Stats, measure
from nervure.surgery import apply, masks_after, verify
from nervure.tracing import trace
from nervure.zoo import Dataset

RESULTS = "results.jsonl"


def compare(
    study: Study,
    *,
    folder: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    limit: int | None = None,
) -> tuple[Outcome, ...]:
    """Run the trials of a study that are not done yet, and write tables and charts of all that are.

    The folder holds ``results.jsonl`` (one line per trial; a line that is there is never computed again),
    ``comparison.md``, charts, and in ``cache`` the trained networks. Stopped at any point, it goes on from there; only
    trials whose method has other defaults by now are done again. The
    test split is looked at once per trial, at its end; each line also has the validation accuracy, which is the one to
    choose by.

    Args:
        study: what to compare.
        folder: where results go; None: where the study says.
        progress: print one line per trial with an estimate of the time left.
        say: where lines go instead of standard output.
        limit: run so many trials at most; None: all.

    Returns:
        The outcomes of this study's trials, those of earlier runs included, in the order of the study.

    Raises:
        RecipeError: the study names something unknown.
        FileError: the folder cannot be written, or a cached file is damaged.
        DataError: the data are missing or damaged.
    """
    place = require_folder(Path(folder if folder is not None else study.study.folder))
    require_folder(place / "cache")
    trials = {trial.key: trial for trial in study.trials()}
    made = {key: repr(method_of(trial.recipe)) for key, trial in trials.items()}
    with threads(study.study.threads):
        desk = _Desk(study, place, say or (printed if progress else nothing), progress)
        desk.forget(key for key, method in made.items() if key in desk.done and not _agree(desk.done[key], method))
        todo = [(key, trial) for key, trial in trials.items() if key not in desk.done]
        desk.say(f"{len(trials) - len(todo)} of {len(trials)} trials are done; results: {place / RESULTS}")
        for number, (key, trial) in enumerate(todo[:limit]):
            _take(desk, key, trial, f"{number + 1}/{len(todo)}", [t for _, t in todo[number + 1 :]])
    outcomes = _of_study(desk, trials)
    write_comparison(outcomes, place, title=study.study.title, baseline=study.study.baseline)
    return outcomes


def _of_study(desk: "_Desk", trials: Mapping[str, Trial]) -> tuple[Outcome, ...]:
    wanted = [f"dense-{key}" for key in dict.fromkeys(trial.dense_key for trial in trials.values())] + list(trials)
    return tuple(desk.done[key] for key in wanted if key in desk.done)


class _Desk:
    """What trials share: results so far, and the network, evidence and data last worked on."""

    def __init__(self, study: Study, folder: Path, say: Callable[[str], None], progress: bool) -> None:
        self.study, self.folder, self.say, self.progress = study, folder, say, progress
        self.done = {row.key: row for row in read_outcomes(folder / RESULTS) if not row.error}
        self.provenance = _provenance()
        self._subject: _Subject | None = None
        self._data: tuple[int, Dataset] | None = None

    def note(self, outcome: Outcome) -> None:
        """Write an outcome down, and remember it."""
        noted = replace(outcome, provenance=self.provenance)
        _append(self.folder / RESULTS, asdict(noted))
        if not noted.error:
            self.done[noted.key] = noted

    def forget(self, keys: Iterable[str]) -> None:
        """Take outcomes for not done; their lines stay in the file, later ones count."""
        for key in list(keys):
            del self.done[key]

    def data(self, seed: int) -> Dataset:
        """The data of a seed: the split is drawn by it."""
        if self._data is None or self._data[0] != seed:
            self._data = seed, dataset_of(self.study.data, seed)
        return self._data[1]

    def subject(self, trial: Trial) -> "_Subject":
        """The trained network of a trial, with its evidence."""
        if self._subject is None or self._subject.key != trial.dense_key:
            self._subject = None
            self._subject = _prepared(self, trial)
        return self._subject


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """One trained network: what every method is given."""

    key: str
    model: nn.Module
    graph: Graph
    stats: Stats | None
    data: Dataset
    source: Source
    device: torch.device

    def example(self) -> torch.Tensor:
        return self.data.example(1).to(self.device)

    def view(self, trial: Trial, want: frozenset[str]) -> View:
        weights = {name: tensor.detach() for name, tensor in named_tensors(self.model).items()}
        seed, size = trial.recipe.run.seed, trial.recipe.evaluate.batch_size
        batches = self.data.train.batches(size, shuffle_seed=seed, device=self.device)
        # Nothing but what it asks for: what another method of the study wants must not change a plan.
        stats = self.stats.only(want) if self.stats is not None and want else None
        return View(self.graph, weights, stats, seed, self.model, self.example(), batches)


def _take(desk: _Desk, key: str, trial: Trial, number: str, rest: list[Trial]) -> None:
    try:
        subject = desk.subject(trial)
        outcome = _tried(subject, key, trial)
    except NervureError as error:
        desk.note(_failed(key, trial, str(error)))
        desk.say(f"[{number}] {trial}: failed: {error}")
        return
    desk.note(outcome)
    left = _time_left(rest, desk.done.values())
    desk.say(f"[{number}] {trial}: {100 * outcome.accuracy:.2f} % ({outcome.seconds['all']:.0f} s; {left})")


def _tried(subject: _Subject, key: str, trial: Trial) -> Outcome:
    """Plan, cut, check, recover, measure."""
    start = time.perf_counter()
    method, recipe = method_of(trial.recipe), trial.recipe
    view = subject.view(trial, method.wants)
    plan = method.plan(view)
    planned = time.perf_counter()
    smaller = apply(subject.model, subject.graph, plan)
    masks = masks_after(subject.graph, plan)
    verify(subject.model, _Cut(smaller, subject.graph, plan), subject.example())
    # One more than the first training: the same order of batches twice would be a hidden difference.
    history = trained(
        smaller,
        subject.data,
        recipe.recover,
        seed=recipe.run.seed + 1,
        masks=masks,
        teacher=subject.model,
        progress=False,
    )
    recovered = time.perf_counter()
    outcome = _measured(subject, key, trial, smaller, repr(method))
    seconds = {"plan": planned - start, "recover": recovered - planned, "all": time.perf_counter() - start}
    return replace(outcome, seconds={k: round(v, 2) for k, v in seconds.items()}, loss_curve=history.loss)


def _measured(subject: _Subject, key: str, trial: Trial, model: nn.Module, method: str) -> Outcome:
    batch, cost = trial.recipe.evaluate.batch_size, count(model.eval(), subject.example())
    whole = count(subject.model, subject.example())
    found = evaluate(model, subject.data.test.batches(batch), progress=False)
    return Outcome(
        key=key,
        network=trial.network,
        method=trial.method,
        seed=trial.recipe.run.seed,
        keep=trial.recipe.prune.keep,
        budget=trial.recipe.prune.budget,
        options=method,
        accuracy=found.accuracy,
        loss=found.loss,
        ece=found.ece,
        validation=evaluate(model, subject.data.validation.batches(batch), progress=False).accuracy,
        samples=found.samples,
        params=cost.params,
        nonzero=cost.nonzero,
        macs=cost.macs,
        params_kept=cost.nonzero / max(whole.params, 1),
        macs_kept=cost.macs / max(whole.macs, 1),
    )


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """What ``verify`` looks at."""

    model: nn.Module
    graph: Graph
    plan: Any


def _prepared(desk: _Desk, trial: Trial) -> _Subject:
    """Train the network of a trial, or take it from the cache; trace it and gather the evidence of all methods."""
    recipe, key = trial.recipe, trial.dense_key
    data, device = desk.data(recipe.run.seed), device_of(recipe)
    source, file = source_of(recipe, data), desk.folder / "cache" / f"{key}.safetensors"
    model = source.build(recipe.run.seed).to(device)
    if file.exists():
        load_state(file, model)
    else:
        desk.say(f"training {trial.network}, seed {recipe.run.seed}")
        checkpoint = file.with_suffix(".training")
        trained(model, data, recipe.train, seed=recipe.run.seed, checkpoint=checkpoint, progress=desk.progress)
        save_state(file, model, meta={"model": source.to_json()})
        checkpoint.unlink(missing_ok=True)
    model.eval()
    graph = trace(model, data.example(1).to(device))
    start = time.perf_counter()
    stats = _evidence(desk, trial, model, graph, data, device)
    subject = _Subject(key, model, graph, stats, data, source, device)
    if f"dense-{key}" not in desk.done:
        dense = _measured(subject, f"dense-{key}", replace(trial, method=DENSE), model, "")
        desk.note(replace(dense, keep=1.0, seconds={"evidence": round(time.perf_counter() - start, 2)}))
        desk.say(f"{trial.network}, seed {recipe.run.seed}, dense: {100 * dense.accuracy:.2f} %")
    return subject


def _evidence(
    desk: _Desk, trial: Trial, model: nn.Module, graph: Graph, data: Dataset, device: torch.device
) -> Stats | None:
    """All evidence that the trials still to come want of this network, gathered in one pass over training images."""
    due = [t for t in desk.study.trials() if t.dense_key == trial.dense_key and t.key not in desk.done]
    want = frozenset[str]().union(*(method_of(t.recipe).wants for t in due))
    if not want:
        return None
    section = trial.recipe
    batches = data.train.batches(section.evaluate.batch_size, shuffle_seed=section.run.seed, device=device)
    samples = desk.study.study.samples
    return measure(model, graph, batches, want=want, samples=samples, seed=section.run.seed, progress=desk.progress)


def _agree(outcome: Outcome, method: str) -> bool:
    """Whether an outcome is of the method as it is made now.

    A default that changed since makes another method; an option that is new does not.
    """
    before, now = _options(outcome.options), _options(method)
    return all(now[name] == value for name, value in before.items() if name in now)


def _options(method: str) -> dict[str, str]:
    """The options that the ``repr`` of a method shows, and its name."""
    call = ast.parse(method, mode="eval").body
    if not isinstance(call, ast.Call):
        return {"": method}
    return {"": ast.unparse(call.func)} | {str(k.arg): ast.unparse(k.value) for k in call.keywords}


def _failed(key: str, trial: Trial, reason: str) -> Outcome:
    recipe = trial.recipe
    return Outcome(
        key=key,
        network=trial.network,
        method=trial.method,
        seed=recipe.run.seed,
        keep=recipe.prune.keep,
        budget=recipe.prune.budget,
        error=reason,
    )


def _time_left(rest: Iterable[Trial], done: Iterable[Outcome]) -> str:
    """What is left at the pace so far, network by network; the first training of a network is not counted."""
    seen: dict[str, list[float]] = {}
    for row in done:
        if "all" in row.seconds:
            seen.setdefault(row.network, []).append(row.seconds["all"])
    # Medians: a few trials on a machine that was busy then say nothing about those to come.
    middles = {network: median(values) for network, values in seen.items()}
    usual = max(middles.values(), default=0.0)
    seconds = sum(middles.get(trial.network, usual) for trial in rest)
    return f"about {seconds / 60:.0f} min of trials left" if seconds else "that was all"


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """The outcomes in a file of results; a last line that was cut short is left out.

    Raises:
        FileError: a line is no outcome.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield Outcome.from_json(json.loads(line))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise FileError(f"{str(path)!r} line {number} is no outcome of a trial: {error}.") from error


def _append(path: Path, row: Mapping[str, Any]) -> None:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        # A run was killed while it wrote: what it began is no result.
        write_text(path, text[: text.rfind("\n") + 1])
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"cannot write {str(path)!r}: {error.strerror}.") from error


def _provenance() -> dict[str, str]:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        commit = found.stdout.strip() if found.returncode == 0 else ""
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {
        **versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
