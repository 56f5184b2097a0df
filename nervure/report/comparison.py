"""The means of trials over seeds, one table of them; and methods side by side, in pairs."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import final

from nervure.core.schema import NotNegative, Positive
from nervure.evaluation.metrics import wilson_interval
from nervure.report.outcome import NOTHING, Mean, Outcome, QualityScale, scale_of
from nervure.report.run_report import DENSE, DENSE_PLUS, milliseconds
from nervure.report.tables import MISSING, Table, quantity

COSTS: Mapping[str, str] = {"macs": "multiply-accumulates", "params": "parameters that are not zero"}
"""What a setting costs, in words."""


ACCURACY = QualityScale()


@final
@dataclass(frozen=True, slots=True)
class TimedSetting:
    """How long one trial's network takes: milliseconds, and times faster than its dense one, by batch size."""

    latency: Mapping[str, NotNegative] = field(default_factory=dict, hash=False)
    speedup: Mapping[str, Positive] = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class MeanOutcome:
    """One setting, a method at one budget on one network: means over its seeds.

    Attributes:
        method: its label; ``"dense"`` for the network as trained, ``"dense+"`` with the recovery of the others.
        keep: the fraction that was to stay.
        accuracy: on the clean test images, in [0, 1]; of nothing where it was not measured.
        shifted: mean over the corruptions, in [0, 1]; of nothing where it was not measured.
        validation: quality on the validation data: what to choose by.
        costs: shares of the dense network's, in [0, 1]: ``"macs"``, ``"params"`` (those that are not zero), and
            ``"latency, batch N"``.
        macs: multiply-accumulates.
        params: parameters that are not zero.
        latency: milliseconds, by batch size.
        key: of the trial with the first seed.
        ece: expected calibration error, in [0, 1].
        seconds: that planning took.
        quality: on the clean test data, in the measure of ``scale_of``: the accuracy where there is no other.
        interval: of one seed alone, the 95 % Wilson interval of its accuracy for so many test samples; else None.
    """

    method: str
    keep: float
    accuracy: Mean
    shifted: Mean
    validation: Mean
    costs: Mapping[str, Mean] = field(hash=False)
    macs: float
    params: float
    latency: Mapping[str, Mean] = field(hash=False)
    key: str
    ece: Mean = NOTHING
    seconds: Mean = NOTHING
    quality: Mean = NOTHING
    interval: tuple[float, float] | None = None

    @staticmethod
    def of(outcomes: Sequence[Outcome], timed: Mapping[str, TimedSetting]) -> "MeanOutcome":
        """From the outcomes of one setting, one for each seed, and how long their networks take, by key."""
        first, scale = outcomes[0], scale_of(outcomes)
        times = [timed[o.key] for o in outcomes if o.key in timed]
        batches = dict.fromkeys(batch for one in times for batch in one.speedup)
        costs = {"macs": Mean.of(o.macs_kept for o in outcomes), "params": Mean.of(o.params_kept for o in outcomes)}
        spent = {f"latency, batch {b}": Mean.of(1 / t.speedup[b] for t in times if b in t.speedup) for b in batches}
        return MeanOutcome(
            first.method,
            first.keep,
            Mean.of(o.accuracy for o in outcomes),
            Mean.of(statistics.fmean(o.shift.values()) for o in outcomes if o.shift),
            Mean.of(o.validation for o in outcomes),
            costs | spent,
            statistics.fmean(o.macs for o in outcomes),
            statistics.fmean(o.nonzero for o in outcomes),
            {b: Mean.of(t.latency[b] for t in times if b in t.latency) for b in batches},
            first.key,
            Mean.of(o.ece for o in outcomes),
            Mean.of(o.seconds["plan"] for o in outcomes if "plan" in o.seconds),
            Mean.of(map(scale.of, outcomes)),
            _interval(*outcomes),
        )

    @property
    def label(self) -> str:
        """What to call it, e.g. ``"Taylor at 0.4"``."""
        return self.method if self.method in (DENSE, DENSE_PLUS) else f"{self.method} at {self.keep:g}"


def _interval(outcome: Outcome, *others: Outcome) -> tuple[float, float] | None:
    """What the number of test samples leaves open; several seeds have their spread, and tokens are no samples."""
    if others or outcome.metrics or not outcome.samples or math.isnan(outcome.accuracy):
        return None
    return wilson_interval(round(outcome.accuracy * outcome.samples), outcome.samples)


def mean_outcomes(
    outcomes: Iterable[Outcome], timed: Mapping[str, TimedSetting] = MappingProxyType({})
) -> tuple[MeanOutcome, ...]:
    """The means of one network's outcomes, setting by setting, in the order in which they come."""
    settings: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        settings.setdefault((outcome.method, outcome.keep), []).append(outcome)
    return tuple(MeanOutcome.of(these, timed) for these in settings.values())


def results_table(
    means: Sequence[MeanOutcome], title: str, cell: Callable[[MeanOutcome], str], scale: QualityScale = ACCURACY
) -> Table:
    """One line for each setting, with a column of its own, ``title``, second; columns that say nothing are left out."""
    own = {} if scale.is_accuracy else {scale.column: lambda m: scale.spread(m.quality)}
    dense = next((m for m in means if m.method == DENSE), None)
    batches = dict.fromkeys(batch for mean in means for batch in mean.latency)
    chosen_by = replace(scale, split="validation")
    columns: dict[str, Callable[[MeanOutcome], str]] = {
        "setting": lambda m: m.label,
        title: cell,
        chosen_by.column: lambda m: chosen_by.spread(m.validation),
        **own,
        "accuracy (%)": _accuracy,
        "under shift (%)": lambda m: spread(m.shifted),
        "ECE (%)": lambda m: f"{100 * m.ece.value:.1f}" if m.ece.n else MISSING,
        "MACs": lambda m: _cost(m.macs, m.costs["macs"]),
        "parameters": lambda m: _cost(m.params, m.costs["params"]),
        "plan (s)": lambda m: f"{m.seconds.value:.1f}" if m.seconds.n else MISSING,
        **{f"ms, batch {batch}": partial(_milliseconds, dense, batch) for batch in batches},
        "seeds": lambda m: str(max(m.accuracy.n, m.quality.n)),
    }
    cells = {title: [show(mean) for mean in means] for title, show in columns.items()}
    told = {title: column for title, column in cells.items() if not {MISSING, ""}.issuperset(column)}
    return Table(tuple(told), tuple(zip(*told.values(), strict=True)))


def _milliseconds(dense: MeanOutcome | None, batch: str, mean: MeanOutcome) -> str:
    """Milliseconds, and how many times faster than the dense network's: as both are shown, divided."""
    if batch not in mean.latency:
        return MISSING
    shown = milliseconds(mean.latency[batch].value)
    if dense is None or batch not in dense.latency:
        return f"{shown:g}"
    return f"{shown:g} ({milliseconds(dense.latency[batch].value) / shown:.2f}x)" if shown else f"{shown:g}"


def _accuracy(mean: MeanOutcome) -> str:
    """In percent, with its deviation over seeds, or of one seed with its interval, e.g. ``89.60 (89.0 to 90.2)``."""
    if mean.interval is None:
        return spread(mean.accuracy)
    low, high = mean.interval
    return f"{spread(mean.accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def _cost(count: float, share: Mean) -> str:
    return f"{quantity(count)} ({100 * share.value:.0f} %)"


def spread(mean: Mean) -> str:
    """A share in percent with its standard deviation over seeds, e.g. ``89.60 ± 0.70``."""
    return ACCURACY.spread(mean)


def paired_differences(
    outcomes: Iterable[Outcome], method: str, baseline: str, *, metric: str = "quality"
) -> dict[tuple[str, int, float], float]:
    """Differences of a metric between two methods, by (network, seed, keep) that both have; in the metric's unit."""
    trials = tuple(outcomes)
    scale = scale_of(trials, metric)
    found = {(o.method, o.network, o.seed, o.keep): scale.of(o) for o in trials}
    return {
        (network, seed, keep): value - found[baseline, network, seed, keep]
        for (name, network, seed, keep), value in found.items()
        if name == method and (baseline, network, seed, keep) in found
    }


def network_table(outcomes: Sequence[Outcome], network: str, baseline: str, *, metric: str = "quality") -> Table:
    """One line per method and budget: means over seeds, and the paired difference to ``baseline``."""
    scale = scale_of(outcomes, metric)
    mine = [o for o in outcomes if o.network == network]

    def difference(mean: MeanOutcome) -> str:
        return scale.difference(mean_difference(mine, mean.method, baseline, mean.keep, metric))

    means = sorted(mean_outcomes(mine), key=lambda mean: -mean.keep)
    return results_table(means, f"minus {baseline} ({scale.unit})", difference, scale_of(outcomes))


def mean_difference(outcomes: Iterable[Outcome], method: str, baseline: str, keep: float, metric: str) -> Mean:
    """The mean of the paired differences between two methods at one budget."""
    found = paired_differences(outcomes, method, baseline, metric=metric)
    return Mean.of(value for (_, _, at), value in found.items() if at == keep and method != baseline)


def summary_table(outcomes: Sequence[Outcome], baseline: str, *, metric: str = "quality") -> Table:
    """For each method the paired difference to ``baseline``, over all networks and seeds, budget by budget."""
    keeps = sorted({o.keep for o in outcomes if o.method not in (DENSE, baseline) and o.keep < 1}, reverse=True)
    methods = [m for m in dict.fromkeys(o.method for o in outcomes) if m != baseline]
    rows, scale = [], scale_of(outcomes, metric)
    for method in methods:
        means = [mean_difference(outcomes, method, baseline, keep, metric) for keep in keeps]
        if any(mean.n for mean in means):
            rows.append((method, *(f"{scale.difference(mean)} (n={mean.n})" if mean.n else MISSING for mean in means)))
    return Table(("method", *(f"keep {keep:g}" for keep in keeps)), tuple(rows))


def trials_table(outcomes: Iterable[Outcome]) -> Table:
    """One line for each trial, with its numbers as they are, for other programs to read."""
    decided = ("network", "method", "keep", "budget", "seed")
    quality, costs = ("accuracy", "validation", "loss", "ece", "samples"), ("macs", "macs_kept", "params", "nonzero")
    names = (*decided, *quality, *costs, "params_kept")
    trials = tuple(outcomes)
    metrics = [name for name in dict.fromkeys(name for o in trials for name in o.metrics) if name not in names]
    rows = [
        (
            *(_plain(getattr(o, name)) for name in names),
            _plain(statistics.fmean(o.shift.values())) if o.shift else "",
            *(_plain(o.metrics.get(name, math.nan)) for name in metrics),
        )
        for o in trials
    ]
    return Table((*names, "under_shift", *metrics), tuple(rows))


def _plain(value: str | float) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def provenance_lines(rows: Sequence[Outcome]) -> list[str]:
    """Versions, machine, dates and time spent of these outcomes."""
    lines = []
    for key in ("nervure", "torch", "python", "processor", "machine", "commit", "date"):
        values = sorted({o.provenance[key] for o in rows if o.provenance.get(key)})
        lines += (
            [f"{key}: {', '.join(values) if len(values) < 4 else f'{values[0]} to {values[-1]}'}"] if values else []
        )
    spent = sum(o.seconds.get("all", 0.0) for o in rows)
    return [*lines, f"trials: {len(rows)}, {spent / 60:.0f} minutes after the training of dense networks"]


def provenance_rows(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Such lines as key and value."""
    return [(key, value) for key, _, value in (line.partition(": ") for line in lines)]
