"""Trials: what a comparison and a sweep are made of, each a run that shares its dense network and its evidence.

A dense network is trained, traced and measured once per seed in ``cache``; each trial then plans, cuts, recovers and
evaluates in a folder of its own with the steps of ``run``, and goes on where it was stopped.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypedDict, final

from torch import nn

from nervure.core.files import is_there, read_document, remove, require_folder, write_json, write_text
from nervure.errors import NervureError
from nervure.evaluation import evaluate
from nervure.recipe.context import Log, RunContext
from nervure.recipe.making import dataset_of, device_of, method_of, source_of
from nervure.recipe.own_data import Data
from nervure.recipe.purpose import purpose_of
from nervure.recipe.recipe import DataSection
from nervure.recipe.results import RESULTS, Results, dense_key, failed_outcome
from nervure.recipe.runner import RECIPE, begin_log, follow, nothing, read_log, threads
from nervure.recipe.steps import (
    Step,
    cut,
    gather,
    plan_cut,
    recover,
    refit_cut,
    row_of,
    shifted_results,
    trace_dense,
    train_dense,
)
from nervure.recipe.study import Trial
from nervure.recipe.summary import Trained
from nervure.recipe.workers import Plain, Pool
from nervure.report.outcome import Outcome
from nervure.report.run_report import DENSE, PRUNED, Row
from nervure.stats import Stats

METRICS, SHIFT = "metrics.json", "shift.json"


@final
@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for one worker: a dense network with the evidence for its trials, or one trial.

    Attributes:
        trials: those that the dense network is prepared for, or the one to do.
        folder: of the study or the sweep.
        prepare: whether it is the dense network that is to be made ready.
        shift: also measure under corruption.
        threads: of torch.
        progress: show bars while the dense network is trained and measured.
        keep: leave the artefacts of a finished trial in its folder.
    """

    trials: tuple[Trial, ...] = ()
    folder: str = ""
    prepare: bool = False
    shift: bool = False
    threads: int = 1
    progress: bool = False
    keep: bool = False

    @property
    def key(self) -> str:
        """The key of the outcome."""
        return dense_key(self.trials[0]) if self.prepare else self.trials[0].key

    def to_json(self) -> dict[str, Any]:
        """Plain data, for another process."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"trials": [t.to_json() for t in self.trials]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Job":
        """Read what :meth:`to_json` wrote."""
        return Job(**{**data, "trials": tuple(map(Trial.from_json, data["trials"]))})


def carry_out(trials: Sequence[Trial], results: Results, pool: Pool, job: Job, *, limit: int | None = None) -> None:
    """Do the trials that are not done yet, and note their outcomes as they come.

    Args:
        trials: all of them.
        results: what is done; outcomes are noted there.
        pool: who works.
        job: what all jobs have in common.
        limit: do so many trials at most; None: all.
    """
    todo = [trial for trial in trials if trial.key not in results.done]
    results.say(f"{len(trials) - len(todo)} of {len(trials)} trials are done; results: {results.folder / RESULTS}")
    for trial in trials:
        # A process that is killed just after it noted an outcome leaves the folder.
        if trial.key in results.done and not job.keep:
            remove(_folder_of(trial, Path(job.folder)))
    todo = todo[:limit]
    left = {trial.key: trial for trial in todo}
    # Evidence is gathered for all trials of a network at once, those of another call too.
    waiting = [
        replace(job, trials=tuple(t for t in trials if t.dense_key == key), prepare=True)
        for key in dict.fromkeys(trial.dense_key for trial in todo)
    ]
    ready: list[Job] = []
    running: dict[Future[Plain], Job] = {}
    while waiting or ready or running:
        while (waiting or ready) and len(running) < pool.workers:
            begun = ready.pop(0) if ready else waiting.pop(0)
            if begun.prepare and begun.key not in results.done:
                results.say(f"training {begun.trials[0].network}, seed {begun.trials[0].recipe.run.seed}")
            running[pool.submit(begun.to_json())] = begun
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            ended = running.pop(future)
            outcome = _answer(future, ended)
            mine = [t for t in ended.trials if t.key in left]
            if ended.prepare and not outcome.error:
                _note_dense(results, ended, outcome)
                ready += [replace(job, trials=(t,)) for t in mine]
                continue
            for trial in mine:
                del left[trial.key]
                noted = failed_outcome(trial, outcome.error) if outcome.error else outcome
                _note_trial(results, noted, trial, f"{len(todo) - len(left)}/{len(todo)}", left.values(), pool.workers)
                if not job.keep:
                    remove(_folder_of(trial, Path(job.folder)))


def _answer(future: Future[Plain], job: Job) -> Outcome:
    try:
        return Outcome.from_json(future.result())
    except BrokenExecutor as error:
        return failed_outcome(job.trials[0], str(error))


def _note_dense(results: Results, job: Job, outcome: Outcome) -> None:
    if job.key not in results.done:
        results.note(outcome)
        results.say(f"{outcome.network}, seed {outcome.seed}, dense: {outcome.quality}")


def _note_trial(
    results: Results, outcome: Outcome, trial: Trial, number: str, rest: Iterable[Trial], workers: int
) -> None:
    if outcome.error:
        # Where the disk is full, that is the error of all that would follow.
        require_folder(results.folder)
    results.note(outcome)
    if outcome.error:
        results.say(f"[{number}] {trial}: failed: {outcome.error}")
        return
    left = results.time_left(rest, workers)
    results.say(f"[{number}] {trial}: {outcome.quality} ({outcome.seconds['all']:.0f} s; {left})")


def answer(data: Plain) -> Plain:
    """Do the job that plain data tell; whatever goes wrong is an outcome too, so that it stops no other."""
    job = Job.from_json(data)
    try:
        with threads(job.threads):
            return asdict(_prepare(job) if job.prepare else _run_trial(job))
    except NervureError as error:
        reason = str(error)
    except Exception as error:
        # A method or a network of the user may raise anything.
        reason = f"{type(error).__name__}: {error}"
    return asdict(failed_outcome(job.trials[0], reason))


def bench_of(trial: Trial, folder: Path, *, prepare: bool = False, progress: bool = False) -> RunContext:
    """The bench of a trial, or that of the dense network which it cuts, in the folder of a study or a sweep."""
    recipe = trial.recipe
    data = data_of_seed(recipe.data, recipe.run.seed)
    shared = folder / "cache" / trial.dense_key
    own = require_folder(shared if prepare else _folder_of(trial, folder))
    method, source, device = method_of(recipe), source_of(recipe, data), device_of(recipe)
    purpose = purpose_of(recipe.task, data, lambda: source.build(recipe.run.seed).to(device))
    return RunContext(recipe, own, data, source, method, device, nothing, progress, shared, purpose)


def _folder_of(trial: Trial, folder: Path) -> Path:
    return folder / "trials" / trial.key


@lru_cache(maxsize=1)
def data_of_seed(section: DataSection, seed: int) -> Data:
    """The data of a seed, which draws the split; trials that follow each other mostly share them."""
    return dataset_of(section, seed)


def pruned_of(bench: RunContext) -> nn.Module:
    """The pruned network of a trial, recovered."""
    return bench.pruned("model.safetensors").model.eval()


def _prepare(job: Job) -> Outcome:
    """Train the dense network, trace it, and gather the evidence of all trials in one pass."""
    first = job.trials[0]
    bench = bench_of(first, Path(job.folder), prepare=True, progress=job.progress)
    log = _open_log(bench, "")
    follow(bench, log, {"train": train_dense, "trace": trace_dense})
    _gather_all([replace(bench, recipe=t.recipe, method=method_of(t.recipe)) for t in job.trials])
    follow(bench, log, _measures(RunContext.dense, shift=job.shift))
    outcome = _outcome(bench, first, log)
    return replace(outcome, key=job.key, method=DENSE, keep=1.0, options="")


def _gather_all(benches: Sequence[RunContext]) -> None:
    """Measure what trials want and was not measured before: once for what starts trained, once for what starts new."""
    for file in dict.fromkeys(bench.stats for bench in benches):
        these = [bench for bench in benches if bench.stats == file]
        want = frozenset[str]().union(*(bench.method.wants for bench in these))
        if want and not (file.exists() and want <= Stats.load(file).want):
            gather(these[0], want)


def _run_trial(job: Job) -> Outcome:
    """Plan, cut, check, recover, measure."""
    (trial,) = job.trials
    bench = bench_of(trial, Path(job.folder))
    log = _open_log(bench, repr(bench.method))
    write_text(bench.path(RECIPE), trial.recipe.to_toml())
    fitted: dict[str, Step] = {"refit": refit_cut} if trial.recipe.refit.samples else {}
    steps = {"plan": plan_cut, "cut": cut, **fitted, "recover": recover} | _measures(pruned_of, shift=job.shift)
    follow(bench, log, steps)
    remove(bench.path("cut.safetensors"))
    remove(bench.path("refit.safetensors"))
    history = read_document(bench.path(f"{PRUNED}.history.json"), Trained, "a history of training")
    return _outcome(bench, trial, log, history["loss"])


def _open_log(bench: RunContext, method: str) -> Log:
    """The log of what is done in the folder; what another version of the method left there goes."""
    log = read_log(bench)
    if log and log.get("method") == method:
        return log
    remove(bench.folder)
    require_folder(bench.folder)
    # At once: a training that is stopped before anything is done goes on from its checkpoint.
    return begin_log(bench, method=method)


def _measures(network: Callable[[RunContext], nn.Module], *, shift: bool) -> dict[str, Step]:
    """The steps that measure a network."""
    steps: dict[str, Step] = {"evaluate": partial(_evaluate, network)}
    return steps | ({"shift": partial(_evaluate_shifted, network)} if shift else {})


def _evaluate(network: Callable[[RunContext], nn.Module], bench: RunContext) -> None:
    model = network(bench)
    batches = bench.data.validation.batches(bench.recipe.evaluate.batch_size)
    write_json(
        bench.path(METRICS), {"validation": _choose_by(bench, model, batches), "row": asdict(row_of(bench, model))}
    )


def _choose_by(bench: RunContext, model: nn.Module, batches: Iterable[Any]) -> float | None:
    """The quality on the validation data, to choose by; None where it is no number."""
    if bench.task is None:
        return evaluate(model, batches, progress=False).accuracy
    name = next(iter(_directions(bench)))
    value = evaluate(model, batches, task=bench.task, progress=False).get(name, math.nan)
    return value if math.isfinite(value) else None


def _directions(bench: RunContext) -> dict[str, bool]:
    """In which direction what the task measures is good, the first what trials are compared by; empty: accuracy."""
    return {} if bench.task is None else {**bench.purpose.higher_is_better, "loss": False}


def _evaluate_shifted(network: Callable[[RunContext], nn.Module], bench: RunContext) -> None:
    if not (bench.recipe.evaluate.shift and bench.meets_shift):
        return
    (found,) = shifted_results(bench, {"": network(bench)})[1].values()
    write_json(bench.path(SHIFT), {"mean": found.accuracy, "accuracy": found.by_corruption})


class _Measured(TypedDict):
    validation: float | None
    row: Row


class _Shifted(TypedDict):
    accuracy: dict[str, float]


def _outcome(bench: RunContext, trial: Trial, log: Log, losses: Sequence[float | None] = ()) -> Outcome:
    found, shift = read_document(bench.path(METRICS), _Measured, "metrics"), bench.path(SHIFT)
    row = found["row"]
    whole = read_document((bench.shared or bench.folder) / METRICS, _Measured, "metrics")["row"]
    seconds = log["seconds"]
    measured = {
        **trial.identity,
        "options": repr(bench.method),
        "validation": found["validation"],
        "params_kept": row.nonzero / max(whole.params, 1),
        "macs_kept": row.macs / max(whole.macs, 1),
        "shift": read_document(shift, _Shifted, "accuracy under shift")["accuracy"] if is_there(shift) else {},
        "seconds": seconds | ({"all": round(sum(seconds.values()), 2)} if "plan" in seconds else {}),
        "loss_curve": losses,
        **{name: getattr(row, name) for name in ("accuracy", "loss", "ece", "samples", "params", "nonzero", "macs")},
        "metrics": dict(row.metrics),
        "higher_is_better": _directions(bench),
    }
    if "accuracy" in row.metrics:
        # That of tokens or pixels is one too, and is drawn as one.
        measured["accuracy"] = row.metrics["accuracy"]
    return Outcome.from_json(measured)
