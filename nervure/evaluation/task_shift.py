"""How good a model of any task stays when its data shift: every metric of the task, clean and under each shift."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, TypedDict, final

from torch import nn

from nervure.core.annotations import Batches
from nervure.core.check import checked, nearest, require_choice, show_value
from nervure.core.markup import listing
from nervure.core.progress import length, track
from nervure.core.schema import Count, Seed, convert
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.answers import Key
from nervure.evaluation.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, SHIFTS
from nervure.evaluation.features import TOKEN_SHIFTS
from nervure.evaluation.picture_range import Normalisation, PictureRange
from nervure.evaluation.shifts import (
    AUDIO_SHIFTS,
    TABLE_SHIFTS,
    TEXT_SHIFTS,
    Shift,
    picture_shifts,
    table_shifts,
    token_shifts,
)
from nervure.graph.models import device_of, evaluating
from nervure.tasks.batch_forms import Layout, iterate_batches, move_batch, naming
from nervure.tasks.running import TaskTally
from nervure.tasks.task import Task

DOMAIN = 1
"""The severity of data that were given as they are."""


@final
@dataclass(frozen=True, slots=True)
class TaskShift:
    """What a task measures of one model, clean and under shift.

    Attributes:
        clean: each metric by its name, on the data as they are.
        rows: the same by (shift, severity).
        higher_is_better: for each metric in which direction it is good.
    """

    clean: Mapping[str, float]
    rows: Mapping[Key, Mapping[str, float]]
    higher_is_better: Mapping[str, bool]

    @property
    def names(self) -> tuple[str, ...]:
        """Shifts that were tried, in order."""
        return tuple(dict.fromkeys(name for name, _ in self.rows))

    @property
    def shifted(self) -> dict[str, float]:
        """Each metric, the mean over shifts, each the mean over its severities."""
        return {metric: fmean(self.by_shift(metric).values()) for metric in self.clean}

    @property
    def drops(self) -> dict[str, float]:
        """How much worse each metric is under shift, relative to clean: 0.1 is a tenth worse, below 0 better."""
        shifted = self.shifted
        return {metric: self._drop(metric, shifted[metric]) for metric in self.clean}

    def by_shift(self, metric: str) -> dict[str, float]:
        """A metric under each shift, the mean over its severities; raises ArgumentError for an unknown metric."""
        self._require(metric)
        rows = {name: [row[metric] for (own, _), row in self.rows.items() if own == name] for name in self.names}
        return {name: fmean(values) for name, values in rows.items()}

    def by_severity(self, metric: str) -> dict[int, float]:
        """A metric at each severity, the mean over shifts; raises ArgumentError for an unknown metric."""
        self._require(metric)
        severities = sorted({severity for _, severity in self.rows})
        return {s: fmean(row[metric] for (_, own), row in self.rows.items() if own == s) for s in severities}

    def worst(self, metric: str) -> Key:
        """The shift and severity at which a metric is worst; raises ArgumentError for an unknown metric."""
        self._require(metric)
        choose = min if self.higher_is_better[metric] else max
        return choose(self.rows, key=lambda key: self.rows[key][metric])

    def describe(self, metric: str | None = None) -> str:
        """A metric (the first that is no loss) under each shift by severity, as lines of text."""
        metric = self._require(metric or next((name for name in self.clean if name != "loss"), "loss"))
        severities = sorted({severity for _, severity in self.rows})
        width = max(len(metric), *map(len, self.names))
        lines = [f"{metric:<{width}}  " + "  ".join(f"{s:>8}" for s in severities) + "      mean"]
        for name, mean in self.by_shift(metric).items():
            row = (self.rows.get((name, severity)) for severity in severities)
            cells = "  ".join("       –" if one is None else f"{one[metric]:8.4g}" for one in row)
            lines.append(f"{name:<{width}}  {cells}  {mean:8.4g}")
        lines.append(
            f"mean {self.shifted[metric]:.4g}, clean {self.clean[metric]:.4g}: "
            f"{100 * self.drops[metric]:.1f} % worse; worst: {self.worst(metric)[0]} at {self.worst(metric)[1]}"
        )
        return listing(lines)

    def table(self) -> str:
        """Metrics down: clean, under shift, and how much worse; as Markdown."""
        lines = ["| metric | clean | shifted | worse |", "|---|---|---|---|"]
        for metric, value in self.shifted.items():
            lines.append(f"| {metric} | {self.clean[metric]:.4g} | {value:.4g} | {100 * self.drops[metric]:.1f} % |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        rows = [{"shift": name, "severity": level, "metrics": dict(row)} for (name, level), row in self.rows.items()]
        return {"clean": dict(self.clean), "rows": rows, "higher_is_better": dict(self.higher_is_better)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TaskShift":
        """Inverse of :meth:`to_json`; raises :class:`FileError` on anything else."""
        found = convert(data, _WrittenTask, "these metrics under shift")
        rows = {(row["shift"], row["severity"]): row["metrics"] for row in found["rows"]}
        return cls(found["clean"], rows, found["higher_is_better"])

    def _require(self, metric: str) -> str:
        if metric not in self.clean:
            raise ArgumentError(
                f"no metric {show_value(metric)} was measured.{nearest(metric, self.clean, listed=True)}"
            )
        return metric

    def _drop(self, metric: str, shifted: float) -> float:
        clean = self.clean[metric]
        lost = clean - shifted if self.higher_is_better[metric] else shifted - clean
        return lost / abs(clean) if clean else math.nan


class _WrittenRow(TypedDict):
    shift: str
    severity: Count
    metrics: dict[str, float]


class _WrittenTask(TypedDict):
    clean: dict[str, float]
    rows: list[_WrittenRow]
    higher_is_better: dict[str, bool]


@checked
def evaluate_task_shift(
    models: Mapping[str, nn.Module],
    data: Batches,
    task: Task,
    *,
    shift: Any = "all",
    severities: Iterable[int] = SEVERITIES,
    prepare: Callable[[Any], Any] | None = None,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> dict[str, TaskShift]:
    """What a task measures of models, clean and under shift, all on the same shifted batches, without gradients.

    Args:
        models: by name, each on its own device; they come back as they were.
        data: batches of any form that the task reads.
        task: what the models are for.
        shift: a :class:`Shift`, a list of them, data of other domains by name (``{"kjv": batches}``, or by name and
            severity), or a list of all these. Names are for pictures, rows and tokens, which need nothing else;
            ``"all"`` is every name for such batches.
        severities: which of 1 to 5.
        prepare: from a batch, after it was shifted, to what the task reads: a tokenizer for texts, features of sounds.
        normalisation: mean and std per channel of the pictures of shifts that are given by name.
        seed: another seed draws other chance.
        progress: show a bar on a terminal.

    Raises:
        DataError: the data are empty, or a batch cannot be shifted or measured; it names the batch.
        ArgumentError: a shift or severity is unknown, two have one name, or there is no model.
        MissingExtraError: a metric is not installed; the message names the extra.
    """
    levels = [require_choice(severity, SEVERITIES, "severity") for severity in severities]
    if not models or not levels:
        raise ArgumentError("nothing to evaluate: give at least one model and one severity.")
    shifts, domains = _sort_shifts(shift, data, normalisation)
    keys: list[Key] = [(name, level) for name, level in product(shifts, levels)]
    tallies = {name: {key: TaskTally(task) for key in (None, *keys, *domains)} for name in models}

    def add(key: Key | None, batch: Any) -> None:
        given = batch if prepare is None else prepare(batch)
        for name, model in models.items():
            tallies[name][key].add(model, move_batch(given, device_of(model)))

    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for number, batch in enumerate(
            track(iterate_batches(data), "evaluating under shift", length(data), enabled=progress)
        ):
            with naming(f"batch {number}"):
                add(None, batch)
                for name, level in keys:
                    add((name, level), shifts[name](batch, level, seed=seed))
        for key, part in domains.items():
            for number, batch in enumerate(iterate_batches(part, f"shift {key[0]!r}")):
                with naming(f"batch {number} of shift {key[0]!r}"):
                    add(key, batch)
    return {name: _collect(found, task) for name, found in tallies.items()}


def _collect(found: Mapping[Key | None, TaskTally], task: Task) -> TaskShift:
    results = {key: tally.results() for key, tally in found.items()}
    clean = results.pop(None)
    # A metric that does not apply to some data is compared nowhere.
    common = [name for name in clean if all(name in row for row in results.values())]
    rows = {key: {name: row[name] for name in common} for key, row in results.items() if key is not None}
    directions = {name: task.higher_is_better[name] for name in common}
    return TaskShift({name: clean[name] for name in common}, rows, directions)


def _sort_shifts(
    shift: Any, data: Batches, normalisation: Normalisation | None
) -> tuple[dict[str, Shift], dict[Key, Batches]]:
    """Shifts by their names, and data of other domains."""
    asked = [shift] if isinstance(shift, str | Shift | Mapping) else list(shift)
    shifts: dict[str, Shift] = {}
    domains: dict[Key, Batches] = {}
    for entry in asked:
        if isinstance(entry, Mapping):
            domains |= {key if isinstance(key, tuple) else (str(key), DOMAIN): part for key, part in entry.items()}
            continue
        for one in [entry] if isinstance(entry, Shift) else _shifts_by_name(entry, data, normalisation):
            if one.name in shifts:
                raise ArgumentError(f"two shifts are called {one.name!r}. Give one of them another name.")
            shifts[one.name] = one
    if twice := shifts.keys() & {name for name, _ in domains}:
        raise ArgumentError(f"a shift and a domain are both called {twice.pop()!r}. Give one of them another name.")
    if not shifts and not domains:
        raise ArgumentError(f"shift={show_value(shift)} names no shift; give 'all', shifts, or data by their names.")
    return shifts, domains


def _shifts_by_name(name: Any, data: Batches, normalisation: Normalisation | None) -> tuple[Shift, ...]:
    kind = _kind_of(data) if name == "all" else name
    pictures = PictureRange.of(data, normalisation)
    known = None if pictures.mean is None or pictures.std is None else (pictures.mean, pictures.std)
    if kind == "pictures" or name in (*CORRUPTIONS, *SHIFTS, *GROUPS):
        return picture_shifts(name, normalisation=known)
    if kind == "tokens" or name in TOKEN_SHIFTS:
        return token_shifts(name)
    if kind == "rows" or name in TABLE_SHIFTS:
        _require_again(data, name)
        return table_shifts(data, name)
    if name in (*TEXT_SHIFTS, *AUDIO_SHIFTS):
        call = "audio_shifts({!r}, rate=...)" if name in AUDIO_SHIFTS else "text_shifts({!r}, tokenizer=...)"
        raise ArgumentError(f"shift={name!r} needs to know more: give shift={call.format(name)}.")
    every = (*CORRUPTIONS, *SHIFTS, *GROUPS, *TOKEN_SHIFTS, *TABLE_SHIFTS)
    raise ArgumentError(f"shift {show_value(name)} is unknown.{nearest(str(name), every)}")


def _require_again(data: Batches, name: Any) -> None:
    """What is looked at before it is measured must give its batches twice."""
    if isinstance(data, Iterator):
        raise DataError(
            f"shift={name!r} looks at the data first, and a {type(data).__name__} gives its batches once. "
            "Give a list of batches or a loader, or the shifts themselves."
        )


def _kind_of(data: Batches) -> str:
    """What the first batch holds."""
    _require_again(data, "all")
    inputs = tensors_in(Layout().inputs_in(next(iterate_batches(data))))
    if any(x.ndim == 4 for x in inputs):
        return "pictures"
    if any(x.ndim == 2 and not x.is_floating_point() for x in inputs):
        return "tokens"
    if any(x.ndim == 2 for x in inputs):
        return "rows"
    raise ArgumentError(
        "shift='all' is for pictures, tokens and rows of features. For other data give shifts: text_shifts(), "
        "audio_shifts(rate=...), or Shift(name, change)."
    )
