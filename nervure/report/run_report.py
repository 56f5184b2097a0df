"""What happened in a run, as a frozen value: costs, quality, plan and provenance; made once, shown in several ways."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, final

import msgspec
from msgspec import Meta

from nervure.core.documents import open_document
from nervure.core.files import read_json, write_json
from nervure.core.schema import Count, NotNegative, Share, Size, convert, written_schema
from nervure.errors import FileError, PlanError
from nervure.evaluation.tolerance import AmountSearch
from nervure.plan import Plan

KIND = "nervure-report"
EAGER = "eager"
DENSE, PRUNED, DENSE_PLUS, RANDOM = "dense", "pruned", "dense+", "random"


def place(batch: int, engine: str = EAGER) -> str:
    """The name of a batch size in an engine, by which times are kept: ``"64"``, or ``"64 in onnxruntime"``."""
    return str(batch) if engine == EAGER else f"{batch} in {engine}"


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One network of the comparison.

    Attributes:
        accuracy: share of test samples named right, in [0, 1]; None where it was not measured.
        loss: mean cross-entropy on the test samples, in nats; of another task the mean of its own loss.
        ece: expected calibration error, in [0, 1].
        samples: number of test samples.
        params: number of parameters; ``nonzero``: those that are not zero.
        macs: multiply-accumulates of one forward pass of one sample.
        bytes: size of the saved file.
        latency: milliseconds of a forward pass, by batch size and engine, see :func:`place`: the dense network's
            median over the speed-up.
        speedup: dense latency over this network's in the same engine (median of pairs, steadier than two medians).
        speedup_low: first quartile of the paired ratios; ``speedup_high``: the third.
        metrics: what the task measures on the test samples, by name; None where it is no number. Empty without a task.
    """

    accuracy: Share | None = None
    loss: float | None = None
    ece: float | None = None
    samples: Count = 0
    params: Count = 0
    nonzero: Count = 0
    macs: Count = 0
    bytes: Count = 0
    latency: Mapping[str, NotNegative] = field(default_factory=dict, hash=False)
    speedup: Mapping[str, float] = field(default_factory=dict, hash=False)
    speedup_low: Mapping[str, float] = field(default_factory=dict, hash=False)
    speedup_high: Mapping[str, float] = field(default_factory=dict, hash=False)
    metrics: Mapping[str, float | None] = field(default_factory=dict, hash=False)

    def speedups(self, dense: "Row") -> dict[str, float]:
        """Times faster than ``dense``, by batch size and engine; where milliseconds are shown, these divided."""
        return dict(self.speedup) | {
            place: milliseconds(dense.latency[place]) / milliseconds(own)
            for place, own in self.latency.items()
            if place in dense.latency and own > 0
        }

    @property
    def standard_error(self) -> float | None:
        """Standard error of the accuracy from the number of test samples alone (not from the seed)."""
        if self.accuracy is None or not self.samples:
            return None
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.samples)


def in_words(metric: str) -> str:
    """The name of a metric as it is read."""
    return metric.replace("_", " ")


def milliseconds(latency: float) -> float:
    """A latency as it is shown, in three digits.

    >>> milliseconds(0.51449), milliseconds(1234.5)
    (0.514, 1230.0)
    """
    return float(f"{latency:.3g}")


@final
@dataclass(frozen=True, slots=True)
class Width:
    """Units of one group before and after the cut, and why it was left alone (``pinned``), if it was.

    ``notes`` say what a cut of it changes beside removing units.
    """

    group: str
    before: Size
    after: Count
    pinned: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))


@final
@dataclass(frozen=True, slots=True)
class Point:
    """One epoch of a training curve: mean training loss, and validation accuracy, or loss, where it was measured."""

    epoch: Count
    loss: float | None
    accuracy: float | None = None
    validation_loss: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Report:
    """What happened in a run.

    Attributes:
        title: one line: the method, the network, the data.
        method: ``repr`` of the method.
        recipe: the recipe as plain data.
        plan: the plan, with what was asked and what it reaches.
        rows: the networks compared, by name; ``"dense"`` and ``"pruned"`` are always there.
        widths: each group before and after.
        curves: training curves by name.
        verification: largest differences between outputs that should agree, by check (``None``: not made).
        provenance: seed, versions, threads, date, command to reproduce.
        notes: what the reader should know.
        evidence: what the plan rests on, as the method tells it: matrices of connectivity (``layers``), curves with
            their ``limits`` and ``protected`` units, and the ``events`` of a method that rewires, for those that have
            any.
        shift: accuracy under corruption by network, as ``report.shift`` lays it out; empty: not measured.
        later: the plans of the methods that came after the first.
        refit: what a refit did: its ``seconds`` and samples, and the errors of each layer (``fits``); empty: there was
            none.
        search: how the amount was looked for: the ``tolerance``, and the ``path`` of all that was tried, as
            :class:`nervure.evaluation.tolerance.AmountSearch` writes it; empty: the recipe told it.
        task: what the network is for: its ``name``, the ``reason`` where it was told from the first batch, and for each
            metric whether ``higher_is_better``, the one to look at first; empty: it tells classes of images.
    """

    title: str
    method: str
    recipe: Mapping[str, Any]
    plan: Plan
    rows: Mapping[str, Row]
    widths: tuple[Width, ...] = ()
    curves: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    verification: Mapping[str, float | None] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    shift: Mapping[str, Any] = field(default_factory=dict)
    later: tuple[Plan, ...] = ()
    refit: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, bool]:
        """What was measured beside the loss, with the direction in which it is good; empty where accuracy was."""
        known = self.task.get("higher_is_better", {})
        return {
            name: better for name, better in known.items() if any(name in row.metrics for row in self.rows.values())
        }

    def quality(self, row: Row) -> str:
        """How good a network is, in a few words: ``"89.6 %"``, or the task's first metric, ``"perplexity 53.1"``."""
        if row.accuracy is not None:
            return f"{100 * row.accuracy:.1f} %"
        if not self.task:
            return "–"
        name = next(iter(self.metrics), "loss")
        value = row.metrics.get(name, row.loss)
        return "–" if value is None else f"{in_words(name)} {value:.4g}"

    @property
    def headline(self) -> str:
        """The result in one sentence.

        E.g. ``"52 % of the multiply-accumulates removed, accuracy 89.9 -> 89.6 %, 1.4x faster"``.
        """
        dense, pruned = self.rows[DENSE], self.rows[PRUNED]
        return ", ".join(
            filter(
                None,
                (
                    _format_removed(dense, pruned),
                    _accuracies(dense, pruned) or self._metrics_before_and_after(dense, pruned),
                    self._under_shift(),
                    _faster(dense, pruned),
                ),
            )
        )

    def _metrics_before_and_after(self, dense: Row, pruned: Row) -> str:
        if not self.task:
            return ""
        name = next(iter(self.metrics), "loss")
        before, after = (row.metrics.get(name, row.loss) for row in (dense, pruned))
        return "" if before is None or after is None else f"{in_words(name)} {before:.4g} → {after:.4g}"

    def _under_shift(self) -> str:
        networks = self.shift.get("networks", {})
        if not {DENSE, PRUNED} <= set(networks):
            return ""
        return f"under shift {100 * networks[DENSE]['mean']:.1f} → {100 * networks[PRUNED]['mean']:.1f} %"

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back to an equal report."""
        return {
            "kind": KIND,
            "headline": self.headline,
            "title": self.title,
            "method": self.method,
            "recipe": self.recipe,
            "plan": self.plan.to_json(),
            "rows": {name: asdict(row) for name, row in self.rows.items()},
            "widths": [asdict(width) for width in self.widths],
            "curves": {name: [asdict(point) for point in curve] for name, curve in self.curves.items()},
            "verification": dict(self.verification),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "evidence": dict(self.evidence),
            "shift": dict(self.shift),
            "later": [plan.to_json() for plan in self.later],
            "refit": dict(self.refit),
            "task": dict(self.task),
            "search": dict(self.search),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> "Report":
        """Read what :meth:`to_json` wrote (or its text); raises :class:`FileError` on anything else."""
        what = "this report"
        plain = open_document(data, what)
        if plain.get("kind") != KIND:
            raise FileError("this is not a report of nervure. Give the report.json of a run.")
        found = convert(plain, _REPORT, what)
        plans = {"plan": _plan(found.plan), "later": tuple(map(_plan, found.later))}
        return check_report(Report(**msgspec.structs.asdict(found) | plans))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON to ``path``, atomically; raises :class:`FileError`."""
        return write_json(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Report":
        """Read a report saved by :meth:`save`; raises :class:`FileError`."""
        return Report.from_json(read_json(path, "a report of nervure"))


def _plan(data: Mapping[str, Any]) -> Plan:
    try:
        return Plan.from_json(data)
    except PlanError as error:
        raise FileError(f"this report cannot be read: {error}") from error


class ShiftOfNetwork(TypedDict):
    """What one network did under shift, as ``report.shift`` lays it out."""

    clean: float
    mean: float
    interval: tuple[float, float]
    mce: float | None
    relative_mce: float | None
    accuracy: dict[str, float]


class ShiftFacts(TypedDict):
    """What is told of networks under shift."""

    severities: list[int]
    samples: Count
    networks: dict[str, ShiftOfNetwork]
    original: list[str]
    pictures: dict[str, list[str]]


class LimitFacts(TypedDict):
    """What is told of a limit."""

    shares: list[Share]
    quality: list[float]
    upper: Share


class EventFacts(TypedDict):
    """What is told of an event of rewiring."""

    kind: str
    step: Count
    density: float
    dropped: Count
    grown: Count
    weights: Size


Matrix = Annotated[list[Annotated[list[float], Meta(min_length=1)]], Meta(min_length=1)]


class EvidenceData(TypedDict, total=False):
    """What is told of what a plan rests on, as far as it is drawn."""

    layers: dict[str, Matrix]
    sizes: dict[str, tuple[Count, Count]]
    samples: Count
    limits: dict[str, LimitFacts]
    protected: dict[str, list[Count]]
    events: list[EventFacts]


class FitFacts(TypedDict):
    """What is told of a layer that was refitted, or why it was not, as in :class:`nervure.refit.LayerFit`."""

    tensor: str
    freedom: str
    ridge: NotNegative
    before: float
    after: float
    held_before: float
    held_after: float
    reason: str


class RefitFacts(TypedDict):
    """What is told of a refit."""

    seconds: NotNegative
    samples: Count
    left_out: Count
    fits: list[FitFacts]


class TaskFacts(TypedDict):
    """What is told of a task."""

    name: str
    reason: str
    higher_is_better: dict[str, bool]


_REPORT = written_schema(Report, {"plan": dict[str, Any], "later": tuple[dict[str, Any], ...]})


def check_report(found: Report) -> Report:
    """Return a report if it has what its pages show; raises :class:`FileError` naming what it lacks."""
    convert(found.evidence, EvidenceData, "the evidence of this report")
    if found.refit:
        convert(found.refit, RefitFacts, "the refit of this report")
    if found.search:
        AmountSearch.from_json(found.search)
    if found.task:
        convert(found.task, TaskFacts, "the task of this report")
    if not {DENSE, PRUNED} <= set(found.rows):
        raise FileError(f"this report cannot be read: it has no rows {DENSE!r} and {PRUNED!r}.")
    if found.shift:
        networks = convert(found.shift, ShiftFacts, "the accuracy under shift of this report")["networks"].values()
        if not networks or len({tuple(one["accuracy"]) for one in networks}) > 1:
            raise FileError("this report cannot be read: its networks were not shown the same corruptions.")
    for name, limit in found.evidence.get("limits", {}).items():
        if len(limit["shares"]) != len(limit["quality"]):
            raise FileError(f"this report cannot be read: the curve of {name!r} has not one quality for each share.")
    return found


def share_removed(before: int, after: int) -> float:
    """The share that went, in [0, 1]; 0 where there was nothing."""
    return 1 - after / before if before else 0.0


def _format_removed(dense: Row, pruned: Row) -> str:
    if pruned.macs < dense.macs or not dense.nonzero:
        return f"{100 * share_removed(dense.macs, pruned.macs):.0f} % of the multiply-accumulates removed"
    if pruned.nonzero < dense.nonzero:
        return f"{100 * share_removed(dense.nonzero, pruned.nonzero):.0f} % of the weights zeroed"
    return "nothing removed"


def _accuracies(dense: Row, pruned: Row) -> str:
    if dense.accuracy is None or pruned.accuracy is None:
        return ""
    return f"accuracy {100 * dense.accuracy:.1f} → {100 * pruned.accuracy:.1f} %"


def _faster(dense: Row, pruned: Row) -> str:
    """The best measured speed-up, called so, and for which batch size; no claim where timings scatter around none."""
    speedups = pruned.speedups(dense)
    if not speedups:
        return ""
    best, ratio = max(speedups.items(), key=lambda item: item[1])
    if min(ratio, pruned.speedup_low.get(best, ratio)) > 1:
        return f"{'up to ' if len(speedups) > 1 else ''}{ratio:.1f}x faster at batch {best}"
    if all(high < 1 for high in pruned.speedup_high.values()) and ratio < 1:
        return f"slower ({ratio:.1f}x as fast at batch {best})"
    return "no measurable speed-up"
