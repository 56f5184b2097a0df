"""``compare``: methods side by side under one protocol, able to go on at any trial.

Every network is trained once per seed, its evidence is gathered once, and every method cuts the same trained network
and gets the same recovery, with the same order of batches. One line of JSON is written for each finished trial.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.schema import Count, Workers
from nervure.recipe.making import method_of
from nervure.recipe.results import Results, agree, dense_key
from nervure.recipe.runner import alone_in, nothing, print_line
from nervure.recipe.study import Study, Trial
from nervure.recipe.trials import Job, answer, carry_out
from nervure.recipe.workers import pool_of
from nervure.report.comparison import Outcome, write_comparison


@checked
def compare(
    study: Study,
    *,
    folder: FilePath | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    limit: Count | None = None,
    workers: Workers = 1,
) -> tuple[Outcome, ...]:
    """Run the trials of a study that are not done yet, and write tables and charts of all that are.

    The folder holds ``results.jsonl`` (one line per trial; a line that is there is never computed again),
    ``comparison.md``, charts, and in ``cache`` the trained networks with their evidence. Stopped at any point, it goes
    on from there; only trials whose method has other defaults by now are done again. The test split is looked at once
    per trial, at its end; each line also has the validation accuracy, which is the one to choose by.

    Args:
        study: what to compare.
        folder: where results go; None: where the study says.
        progress: print one line per trial with an estimate of the time left.
        say: where lines go instead of standard output.
        limit: run so many trials at most; None: all.
        workers: so many trials at once, each in a process of its own with one thread; 0: one for each core.

    Returns:
        The outcomes of this study's trials, those of earlier runs included, in the order of the study.

    Raises:
        RecipeError: the study names something unknown.
        ArgumentError: ``workers`` is negative.
        FileError: the folder cannot be written, another process works there, or its results are damaged.
    """
    trials = {trial.key: trial for trial in study.trials()}
    made = made_of(trials)
    place, tell = (
        Path(folder if folder is not None else study.study.folder),
        say or (print_line if progress else nothing),
    )
    with alone_in(place, tell, "the same command"):
        results = open_results(place, made, tell)
        job = Job(folder=str(place), threads=study.study.threads, progress=progress and workers == 1)
        with pool_of(answer, workers) as pool:
            carry_out(trials, results, pool, job, limit=limit)
        outcomes = outcomes_of(results, trials)
        write_comparison(outcomes, place, title=study.study.title, baseline=study.study.baseline)
        return outcomes


def made_of(trials: Mapping[str, Trial]) -> dict[str, str]:
    """The method of each trial as it is made now; raises RecipeError for one that is not there or does not fit."""
    return {key: repr(method_of(trial.recipe)) for key, trial in trials.items()}


def open_results(folder: Path, made: Mapping[str, str], say: Callable[[str], None]) -> Results:
    """The results in a folder, without those of methods that were made otherwise: their defaults changed since."""
    results = Results(folder, say)
    results.forget(key for key, method in made.items() if key in results.done and not agree(results.done[key], method))
    return results


def outcomes_of(results: Results, trials: Mapping[str, Trial]) -> tuple[Outcome, ...]:
    """The outcomes of these trials that are done, those of the dense networks first, in the order of the trials."""
    wanted = [*dict.fromkeys(dense_key(trial) for trial in trials.values()), *trials]
    return tuple(results.done[key] for key in wanted if key in results.done)
