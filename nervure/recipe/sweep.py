"""``sweep``: one network at several budgets, with several methods and seeds; the Pareto front and its knee."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.files import is_there, read_document, write_json, write_text
from nervure.core.schema import Count, Density, Positive, Seed, Workers, convert
from nervure.errors import RecipeError
from nervure.recipe.compare import made_of, open_results, outcomes_of
from nervure.recipe.making import require_engines, source_of
from nervure.recipe.recipe import Options, PruneSection, Recipe, SweepSection, differences, plain
from nervure.recipe.results import Results, append_line, dense_key, read_lines
from nervure.recipe.runner import RECIPE, alone_in, nothing, print_line, require_ours, threads
from nervure.recipe.steps import timed_in_turn
from nervure.recipe.study import DENSE_PLUS, MethodEntry, Trial, entry_of
from nervure.recipe.trials import Job, answer, bench_of, carry_out, data_of_seed, dense_of, pruned_of
from nervure.recipe.workers import pool_of
from nervure.report.comparison import DENSE
from nervure.report.run_report import PRUNED
from nervure.report.sweep_report import Sweep, TimedSetting, write_sweep

NOTES, LATENCY = "sweep.json", "latency.jsonl"
VARIED: Mapping[str, frozenset[str]] = {
    "run": frozenset({"seed", "folder", "threads", "twins"}),
    "prune": frozenset({"method", "keep", "options"}),
}


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
    trials = {trial.key: trial for trial in trials_of(asked)}
    tell = say or (print_line if progress else nothing)
    place = Path(folder if folder is not None else f"{recipe.run.folder}-sweep")
    # All that can be refused is refused before anything is written.
    require_engines(asked)
    made, pool = made_of(trials), pool_of(answer, workers, ray)
    data = data_of_seed(asked.data, asked.run.seed)
    source_of(asked, data).build(asked.run.seed)
    found = Sweep(f"Sweep of {_name(asked)}, {data.name}", asked.to_dict(), str(place))
    with alone_in(place, tell, shlex.join(["nervure", "sweep", str(place / RECIPE), "--folder", str(place)])):
        _claim(place, asked, found)
        results = open_results(place, made, tell)
        job = Job(
            folder=str(place.resolve()),
            shift=bool(asked.evaluate.shift),
            threads=1 if pool.workers > 1 else asked.run.threads,
            progress=progress and pool.workers == 1,
            keep=True,
        )
        with pool:
            carry_out(trials, results, pool, job, limit=limit)
        with threads(asked.run.threads):
            timed = _time_trials(trials, results, place, tell)
        failures = {str(trials[key]): row.error for key, row in results.failed.items() if key in trials}
        outcomes = outcomes_of(results, trials)
        found = Sweep.of(outcomes, timed, title=found.title, recipe=found.recipe, folder=str(place), failures=failures)
        write_sweep(found, place)
        return found


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
    table = plain(recipe.sweep) | {key: value for key, value in given.items() if value is not None}
    return Recipe.from_dict(recipe.to_dict() | {"sweep": table}, source="the sweep")


def trials_of(recipe: Recipe) -> tuple[Trial, ...]:
    """Every trial that the recipe's ``[sweep]`` asks for, seed by seed, so that what is finished early is whole.

    Raises:
        RecipeError: there is no budget, or two methods are alike.
    """
    entries = _entries(recipe)
    found = [trial for seed in recipe.sweep.seeds or (recipe.run.seed,) for trial in _trials(recipe, entries, seed)]
    if len({trial.key for trial in found}) < len(found):
        raise RecipeError("[[sweep.method]]: two methods are the same, with the same options. Leave one out.")
    return tuple(found)


def _entries(recipe: Recipe) -> list[MethodEntry]:
    own = {"name": recipe.prune.method, "options": recipe.prune.options}
    entries = [entry_of(MethodEntry, table, "[[sweep.method]]") for table in recipe.sweep.method or (own,)]
    labels = [entry.label for entry in entries]
    for entry in entries:
        if not entry.label or labels.count(entry.label) > 1 or entry.label in (DENSE, DENSE_PLUS):
            raise RecipeError(f"[[sweep.method]] label {entry.label!r} must be there, once, and not {DENSE!r}.")
        if entry.networks:
            raise RecipeError("[[sweep.method]] networks: a sweep has one network. Compare several with a study.")
        if not (entry.keeps or recipe.sweep.keeps):
            raise RecipeError(
                f"nothing to sweep for {entry.label!r}: give the fractions that stay, e.g. keeps = [0.8, 0.6, 0.4] "
                "under [sweep], --keep 0.8 --keep 0.6 on the command line, keeps=(0.8, 0.6) in Python."
            )
    return entries


def _trials(recipe: Recipe, entries: Sequence[MethodEntry], seed: int) -> Iterable[Trial]:
    run = replace(recipe.run, seed=seed)
    alone = replace(recipe, run=run, sweep=SweepSection())
    if recipe.run.twins and recipe.recover.epochs:
        # Keeping everything is the empty plan.
        whole = PruneSection(keep=1.0, budget=recipe.prune.budget)
        yield Trial(_name(recipe), DENSE_PLUS, replace(alone, prune=whole))
    for entry in entries:
        for keep in entry.keeps or recipe.sweep.keeps:
            prune = replace(recipe.prune, method=entry.name, keep=keep, options=entry.options)
            yield Trial(_name(recipe), entry.label, replace(alone, prune=prune))


def _name(recipe: Recipe) -> str:
    return recipe.model.name or recipe.model.factory


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
        if name != "sweep"
    }


def _time_trials(
    trials: Mapping[str, Trial], results: Results, folder: Path, say: Callable[[str], None]
) -> dict[str, TimedSetting]:
    """How long the network of each finished trial takes; measured once, one line each."""
    rows = {(row["key"], row["method"]): row for row in read_lines(folder / LATENCY, _timing)}
    # The dense twin has the shapes of the dense network: timing it again would only show the noise.
    timed = {
        key: (key, results.done[key].options)
        for key, trial in trials.items()
        if key in results.done and trial.method != DENSE_PLUS and trial.recipe.evaluate.latency
    }
    due = [key for key, name in timed.items() if name not in rows]
    if due:
        say(f"timing {len(due)} networks, each against its dense one in turn")
    for key in due:
        bench = bench_of(trials[key], folder)
        found = timed_in_turn(bench, {DENSE: dense_of(bench), PRUNED: pruned_of(bench)})
        rows[timed[key]] = {"key": key, "method": timed[key][1]} | {name: found[name] for name in (DENSE, PRUNED)}
        append_line(folder / LATENCY, rows[timed[key]])
    return _in_one_measure({key: rows[name] for key, name in timed.items()}, trials)


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


def _in_one_measure(rows: Mapping[str, Mapping[str, Any]], trials: Mapping[str, Trial]) -> dict[str, TimedSetting]:
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
        key: TimedSetting(
            {b: dense[b] / s for b, s in row[PRUNED]["speedup"].items() if b in dense}, row[PRUNED]["speedup"]
        )
        for key, row in rows.items()
    }
    return found | {dense_key(trials[key]): TimedSetting(dense, dict.fromkeys(dense, 1.0)) for key in rows}
