"""From the artefacts of a run to its report."""

import datetime
import itertools
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypedDict

import torch

from nervure.core.files import is_there, read_document, read_json
from nervure.core.provenance import commit
from nervure.evaluation.timing import machine
from nervure.export import versions
from nervure.graph import Graph
from nervure.prune import Step
from nervure.recipe.context import REFIT, SEARCH, Log, RunContext
from nervure.recipe.making import methods_after, refit_of
from nervure.recipe.own_data import describe_sizes
from nervure.recipe.results import engines_of
from nervure.report import Point, Report, Row, Width
from nervure.report.run_report import DENSE, DENSE_PLUS, PRUNED, RANDOM, check_report

HISTORIES: Mapping[str, str] = {DENSE: "dense", PRUNED: "pruned", DENSE_PLUS: "dense-plus", RANDOM: "random"}


class Reloaded(TypedDict):
    """What ``reload.json`` holds."""

    error: float


class Trained(TypedDict):
    """What a curve takes from a history of training."""

    loss: list[float | None]
    validation: list[float | None]


def summary(bench: RunContext) -> Report:
    """The report of a run whose other steps are done; raises FileError where one of its artefacts is missing."""
    cut = bench.pruned("cut.safetensors")
    steps = [*cut.earlier, Step(cut.graph, cut.plan)]
    first, *later = [step.plan for step in steps]
    rows = read_document(bench.path("metrics.json"), dict[str, Row], "metrics")
    report = Report(
        title=f"{type(bench.method).__name__} on {bench.recipe.model.label}, {bench.data.name}",
        task=bench.purpose.facts,
        method=", then ".join(map(repr, (bench.decided, *methods_after(bench.recipe), *refit_of(bench.recipe)))),
        recipe=bench.recipe.to_dict(),
        plan=first if later else bench.final_plan(),
        later=tuple(later),
        rows=rows,
        widths=widths(bench.graph(), steps),
        curves={name: _curve(bench, file) for name, file in HISTORIES.items() if name in rows},
        verification={
            "cut against silenced original": cut.verification,
            "saved file in a fresh process": read_document(bench.path("reload.json"), Reloaded, "a check")["error"],
        },
        provenance=_provenance(bench),
        evidence=_evidence(bench),
        shift=_read(bench, "shift.json", "accuracy under shift"),
        refit=_read(bench, REFIT, "what a refit did"),
        search=_read(bench, SEARCH, "a search for an amount"),
    )
    unmeasured = [bench.without_shift] if bench.recipe.evaluate.shift and bench.without_shift else []
    return check_report(replace(report, notes=(*_notes(report), *unmeasured)))


def _read(bench: RunContext, name: str, what: str) -> Mapping[str, Any]:
    path = bench.path(name)
    found: dict[str, Any] = read_json(path, what) if is_there(path) else {}
    return found


def _evidence(bench: RunContext) -> Mapping[str, Any]:
    events = _read(bench, "pruned.history.json", "a history of training").get("events", [])
    return {**_read(bench, "evidence.json", "what the plan rests on"), **({"events": events} if events else {})}


def widths(graph: Graph, steps: Iterable[Step]) -> tuple[Width, ...]:
    """Every group of the graph before and after the cuts of all steps, with the reason where it is pinned."""
    names = {slot.tensor: group.name for group in graph.groups for slot in group.writers}
    kept: dict[str, int] = {}
    for step in steps:
        for cut in step.plan.cuts:
            # Where a block has left, its group is called by another of the tensors that write it.
            others = [names[slot.tensor] for slot in step.graph[cut.group].writers if slot.tensor in names]
            kept[cut.group if cut.group in graph or not others else others[0]] = cut.keep.count
    return tuple(
        Width(g.name, g.size, kept.get(g.name, g.size), _why(g.pinned, g.size), tuple(g.kinds_of_notes))
        for g in graph.groups
    )


def _why(pinned: str, size: int) -> str:
    return pinned or ("a single unit" if size == 1 else "")


def _curve(bench: RunContext, file: str) -> tuple[Point, ...]:
    history = read_document(bench.path(f"{file}.history.json"), Trained, "a history of training")
    pairs = itertools.zip_longest(history["loss"], history["validation"])
    if not bench.purpose.tells_classes:
        # What was noted of the validation data is a loss then.
        return tuple(Point(epoch, loss, None, noted) for epoch, (loss, noted) in enumerate(pairs, start=1))
    return tuple(Point(epoch, loss, accuracy) for epoch, (loss, accuracy) in enumerate(pairs, start=1))


def _notes(report: Report) -> Iterator[str]:
    rows, task = report.rows, report.task
    if task.get("reason"):
        yield f"Nobody said what the network is for; the first batch tells that it is {task['name']}: {task['reason']}."
    if DENSE_PLUS in rows and RANDOM in rows:
        yield (
            f"The dense network given the same extra training reaches {report.quality(rows[DENSE_PLUS])}; the pruned "
            f"one's random twin, as wide and as dense and recovered alike, {report.quality(rows[RANDOM])}."
        )
        yield from _caution(rows[PRUNED], rows[RANDOM])


def _caution(pruned: Row, random: Row) -> Iterator[str]:
    """Say so where the test samples are too few to tell the method from chance."""
    if pruned.accuracy is None or random.accuracy is None:
        return
    error = math.hypot(pruned.standard_error or 0.0, random.standard_error or 0.0)
    if abs(pruned.accuracy - random.accuracy) < 2 * error:
        yield (
            f"On {pruned.samples:,} test samples and one seed, the method and its random twin cannot be told apart "
            f"(they differ by less than two standard errors, {200 * error:.1f} points)."
        )


def _provenance(bench: RunContext) -> dict[str, Any]:
    data = bench.data
    seconds = read_document(bench.path("steps.json"), Log, "the steps of a run")["seconds"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": bench.recipe.run.seed,
        "threads": torch.get_num_threads(),
        "device": str(bench.device),
        "nervure": versions()["nervure"],
        "torch": str(torch.__version__),
        **engines_of(bench.recipe),
        "python": platform.python_version(),
        "processor": machine(bench.device),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": commit() or "none: the working folder is no repository",
        "data": f"{data.name}: {describe_sizes(data)}",
        "recipe": bench.recipe.fingerprint,
        "seconds": round(sum(seconds.values()), 1),
        "again": f"nervure run {bench.path('recipe.toml')} --folder {bench.folder} --fresh",
    }
