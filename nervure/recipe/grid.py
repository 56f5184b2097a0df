"""``compare`` and ``sweep``: grids of trials, networks x methods x budgets x seeds, able to go on at any trial.

Every network is trained once per seed, its evidence is gathered once, and every method cuts the same trained network
and gets the same recovery, with the same order of batches. One line of JSON is written for each finished trial.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypedDict, final

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.files import is_there, read_document, write_json, write_text
from nervure.core.schema import Count, Density, Positive, Seed, Workers, convert
from nervure.errors import RecipeError
from nervure.recipe.making import method_of, require_engines, require_views, source_of
from nervure.recipe.recipe import DECIDES_NOTHING, Options, Recipe, RefitSection, differences, plain
from nervure.recipe.results import Results, append_line, dense_key, engines_of, read_lines
from nervure.recipe.runner import RECIPE, alone_in, nothing, print_line, require_ours, threads
from nervure.recipe.steps import timed_in_turn
from nervure.recipe.study import Study, Trial, swept_trials
from nervure.recipe.trials import Job, answer, bench_of, carry_out, data_of_seed, pruned_of
from nervure.recipe.workers import pool_of
from nervure.report.comparison import TimedSetting, provenance_lines
from nervure.report.comparison_report import MethodComparison, write_comparison_pages
from nervure.report.outcome import Outcome
from nervure.report.run_report import DENSE, DENSE_PLUS, PRUNED
from nervure.report.sweep_report import Sweep, write_sweep

NOTES, LATENCY = "sweep.json", "latency.jsonl"
VARIED: Mapping[str, frozenset[str]] = {
    "run": frozenset({"seed", "folder", "threads", "twins"}),
    "prune": frozenset({"method", "keep", "options"}),
}


@checked
def compare(
    study: Study,
    *,
    folder: FilePath | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    limit: Count | None = None,
    workers: Workers = 1,
    ray: str = "",
) -> tuple[Outcome, ...]:
    """Run the trials of a study that are not done yet, and write tables and charts of all that are.

    The folder holds ``results.jsonl`` (one line per trial; a line that is there is never computed again),
    ``comparison.html``, the same as Markdown and as JSON, charts, and in ``cache`` the trained networks with their
    evidence. Stopped at any point, it goes on from there; only trials whose method has other defaults by now are done
    again. The test split is looked at once per trial, at its end; each line also has the validation quality, which is
    the one to choose by.

    Args:
        study: what to compare.
        folder: where results go; None: where the study says.
        progress: print one line per trial with an estimate of the time left.
        say: where lines go instead of standard output.
        limit: run so many trials at most; None: all.
        workers: so many trials at once, each in a process of its own with one thread; 0: one for each core.
        ray: the address of a Ray cluster, ``"auto"`` or ``"local"``: it does the trials; empty: none.

    Returns:
        The outcomes of this study's trials, those of earlier runs included, in the order of the study.

    Raises:
        RecipeError: the study names something unknown.
        ArgumentError: ``workers`` is negative.
        MissingExtraError: Ray is asked for and not installed.
        FileError: the folder cannot be written, another process works there, or its results are damaged.
    """
    grid = _Grid(study.trials(), study.study.threads, workers, ray, progress, limit)
    place = Path(folder if folder is not None else study.study.folder)
    tell = say or (print_line if progress else nothing)
    with alone_in(place, tell, "the same command"):
        results = grid.carry_out(place, tell)
        outcomes, told = results.of(grid.trials), study.study
        failed = tuple(results.failed[trial.key] for trial in grid.trials if trial.key in results.failed)
        write_comparison_pages(MethodComparison(told.title, told.baseline, (*outcomes, *failed)), place)
        return outcomes


@checked
def sweep(
    recipe: Recipe,
    *,
    keeps: Iterable[Density] | None = None,
    methods: Iterable[str | Options] | None = None,
    seeds: Iterable[Seed] | None = None,
    folder: FilePath | None = None,
    workers: Workers = 1,
    ray: str = "",
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    limit: Count | None = None,
) -> Sweep:
    """Prune the recipe's network at several budgets, with several methods and seeds; find the front and its knee.

    For each seed the dense network is trained once, and the evidence of all methods is gathered in one pass; each trial
    then plans, cuts, recovers and evaluates with the steps of :func:`nervure.run`. Latencies are measured at the end,
    when nothing else runs, each against the dense network in turn. The folder holds ``results.jsonl`` and
    ``latency.jsonl`` (one line per trial), ``sweep.json``, ``sweep.html``, ``sweep.md`` and its charts, the dense
    networks in ``cache``, and for each trial in ``trials`` its recipe, plan and model. Killed at any point, it goes on
    from there; more budgets, methods and seeds may be added later.

    Args:
        recipe: what to train, cut, recover and evaluate; ``[sweep]`` says what varies.
        keeps: fractions that stay, in the unit of ``[prune] budget``; None: as ``[sweep]`` says.
        methods: names, or tables as in ``[[sweep.method]]``; None: as ``[sweep]`` says, else that of ``[prune]``.
        seeds: None: as ``[sweep]`` says, else that of ``[run]``.
        folder: where results go; None: beside the folder of the run, with ``-sweep`` at the end.
        workers: so many trials at once, each in a process of its own with one thread; 0: one for each core.
        ray: the address of a Ray cluster, ``"auto"`` or ``"local"``: it does the trials; empty: none.
        progress: print one line per trial with an estimate of the time left.
        say: where lines go instead of standard output.
        limit: run so many trials at most; None: all.

    Returns:
        The settings with their means over seeds, also written to the folder.

    Raises:
        RecipeError: there is no budget, the recipe names something unknown, or the folder holds something else.
        ArgumentError: ``workers`` is negative.
        MissingExtraError: Ray, or an engine in which networks are to be timed, is asked for and not installed.
        FileError: the folder cannot be written, another process works there, or its results are damaged.
        DataError: the data are missing or damaged.
    """
    asked = _with(recipe, keeps, methods, seeds)
    grid = _Grid(swept_trials(asked), asked.run.threads, workers, ray, progress, limit)
    place = Path(folder if folder is not None else f"{recipe.run.folder}-sweep")
    tell = say or (print_line if progress else nothing)
    # All that can be refused is refused before anything is written.
    require_engines(asked)
    data = data_of_seed(asked.data, asked.run.seed)
    source_of(asked, data).build(asked.run.seed)
    require_views(asked, data)
    begun = Sweep(f"Sweep of {asked.model.label}, {data.name}", asked.to_dict(), str(place))
    with alone_in(place, tell, shlex.join(["nervure", "sweep", str(place / RECIPE), "--folder", str(place)])):
        _claim(place, asked, begun)
        results = grid.carry_out(place, tell, shift=bool(asked.evaluate.shift), keep=True)
        with threads(asked.run.threads):
            timed = _time_trials(grid.trials, results, place, tell)
        failures = {str(trial): results.failed[trial.key].error for trial in grid.trials if trial.key in results.failed}
        outcomes = results.of(grid.trials)
        ran = tuple(f"{key}: {value}" for key, value in engines_of(asked).items()) if timed else ()
        told: dict[str, Any] = {
            "title": begun.title,
            "recipe": begun.recipe,
            "folder": str(place),
            "failures": failures,
        }
        told |= {"provenance": (*provenance_lines(outcomes), *ran)}
        found = Sweep.of(outcomes, timed, notes=_notes(grid.trials, outcomes, place), **told)
        write_sweep(found, place)
        return found


@final
class _Grid:
    """Trials, and how they are done; raises RecipeError where a method is not there or does not fit.

    Args:
        trials: all of them.
        threads: of torch, where trials are done one at a time.
        workers: so many at once.
        ray: the address of a cluster; empty: none.
        progress: show bars while a dense network is trained and measured, where trials are done one at a time.
        limit: do so many at most; None: all.
    """

    def __init__(
        self, trials: Sequence[Trial], threads: int, workers: int, ray: str, progress: bool, limit: int | None
    ) -> None:
        self.trials, self._limit = trials, limit
        self._methods = {trial.key: repr(method_of(trial.recipe)) for trial in trials}
        self._pool = pool_of(answer, workers, ray)
        alone = self._pool.workers == 1
        self._job = Job(threads=threads if alone else 1, progress=progress and alone)

    def carry_out(
        self, folder: Path, say: Callable[[str], None], *, shift: bool = False, keep: bool = False
    ) -> Results:
        """Do what is not done yet in the folder; with ``shift`` measure under it too, with ``keep`` leave artefacts."""
        results = Results(folder, say, self._methods)
        job = replace(self._job, folder=str(folder.resolve()), shift=shift, keep=keep)
        with self._pool:
            carry_out(self.trials, results, self._pool, job, limit=self._limit)
        return results


def _with(
    recipe: Recipe,
    keeps: Iterable[float] | None,
    methods: Iterable[str | Options] | None,
    seeds: Iterable[int] | None,
) -> Recipe:
    """The recipe with what the call says instead of its ``[sweep]``, checked as if it had been written there."""
    given: dict[str, Any] = {
        "keeps": None if keeps is None else list(keeps),
        "seeds": None if seeds is None else list(seeds),
        "method": None if methods is None else [{"name": m} if isinstance(m, str) else m for m in methods],
    }
    if recipe.prune.tolerance:
        raise RecipeError(
            f"[prune] tolerance = {recipe.prune.tolerance:g}: a sweep tries the budgets it is told. Leave tolerance "
            "out, or look for the smallest with nervure run."
        )
    table = plain(recipe.sweep) | {key: value for key, value in given.items() if value is not None}
    return Recipe.from_dict(recipe.to_dict() | {"sweep": table}, source="the sweep")


def _notes(trials: Sequence[Trial], outcomes: Sequence[Outcome], folder: Path) -> tuple[str, ...]:
    """What the reader of a sweep should know: that shift was asked for, and why it was not measured."""
    asked = any(trial.recipe.evaluate.shift for trial in trials)
    if not asked or not outcomes or any(outcome.shift for outcome in outcomes):
        return ()
    return tuple(filter(None, [bench_of(trials[0], folder).without_shift]))


def _claim(folder: Path, recipe: Recipe, begun: Sweep) -> None:
    """Make a folder ready for this sweep; raises RecipeError where another sweep's, or something else, is there."""
    notes = folder / NOTES
    require_ours(folder, notes)
    if is_there(notes):
        before = read_document(notes, _SweepNotes, "a sweep")["recipe"]
        changed = differences(_base(before), _base(recipe.to_dict()))
        if changed:
            raise RecipeError(
                f"the folder {str(folder)!r} holds the sweep of another recipe: {'; '.join(changed)}. "
                "Give another folder; only methods, budgets and seeds may be added to a sweep."
            )
    else:
        write_json(notes, begun.to_json())
    write_text(folder / RECIPE, recipe.to_toml())


def _base(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What all trials of a sweep have in common."""
    return {
        name: {key: value for key, value in table.items() if key not in VARIED.get(name, ())}
        for name, table in recipe.items()
        if name not in DECIDES_NOTHING
    }


def _time_trials(
    trials: Sequence[Trial], results: Results, folder: Path, say: Callable[[str], None]
) -> dict[str, TimedSetting]:
    """How long the network of each finished trial takes; measured once, one line each."""
    rows = {(row["key"], row["method"]): row for row in read_lines(folder / LATENCY, _timing)}
    # The dense twin has the shapes of the dense network: timing it again would only show the noise.
    timed = {
        trial: (trial.key, results.done[trial.key].options)
        for trial in trials
        if trial.key in results.done and trial.method != DENSE_PLUS and trial.recipe.evaluate.latency
    }
    # A refit changes no shape: trials that differ in it alone are timed once.
    shapes = {trial: str(replace(trial.recipe, refit=RefitSection()).to_dict()) for trial in timed}
    first = {shapes[trial]: trial for trial in reversed(timed)}
    due = [trial for trial in first.values() if timed[trial] not in rows]
    if due:
        say(f"timing {len(due)} networks, each against its dense one in turn")
    for trial in due:
        bench = bench_of(trial, folder)
        found = timed_in_turn(bench, {DENSE: bench.dense(), PRUNED: pruned_of(bench)})
        name = timed[trial]
        rows[name] = {"key": name[0], "method": name[1]} | {place: found[place] for place in (DENSE, PRUNED)}
        append_line(folder / LATENCY, rows[name])
    return _in_one_measure({trial: rows[timed[first[shapes[trial]]]] for trial in timed})


class _SweepNotes(TypedDict):
    recipe: dict[str, dict[str, Any]]


class _Times(TypedDict):
    latency: dict[str, Positive]
    speedup: dict[str, Positive]


class _Timing(TypedDict):
    key: str
    method: str
    dense: _Times
    pruned: _Times


def _timing(data: Any) -> _Timing:
    return convert(data, _Timing, "this latency of a trial")


def _in_one_measure(rows: Mapping[Trial, Mapping[str, Any]]) -> dict[str, TimedSetting]:
    """Latencies from the speed-ups, which are paired, and the median time of the dense network over all pairs.

    A machine that was busy for a while then moves no network against the others.
    """
    if not rows:
        return {}
    dense = {
        batch: median(row[DENSE]["latency"][batch] for row in rows.values() if batch in row[DENSE]["latency"])
        for batch in dict.fromkeys(batch for row in rows.values() for batch in row[DENSE]["latency"])
    }
    found = {
        trial.key: TimedSetting(
            {b: dense[b] / s for b, s in row[PRUNED]["speedup"].items() if b in dense}, row[PRUNED]["speedup"]
        )
        for trial, row in rows.items()
    }
    return found | {dense_key(trial): TimedSetting(dense, dict.fromkeys(dense, 1.0)) for trial in rows}
