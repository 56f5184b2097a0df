"""Methods side by side: outcomes of trials as values, means over seeds, paired differences, tables and charts."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from nervure.core.files import write_text
from nervure.core.markup import escape_markdown
from nervure.core.schema import Count, Fraction, Seed, convert
from nervure.report.charts import file_names
from nervure.report.dots import Dot, dot_chart
from nervure.report.markdown import table_text
from nervure.report.tables import MISSING, Table, quantity

DENSE = "dense"


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial gave.

    Attributes:
        key: digest of everything that decides the result.
        network: label of the network.
        method: label of the method; ``"dense"`` for the network before any cut.
        seed: the seed of training, data and choices.
        keep: the fraction that was to stay, of ``budget``.
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        options: the method as it was made.
        accuracy: on the test split after recovery, in [0, 1].
        loss: cross entropy on the test split, in nats.
        ece: expected calibration error on the test split, in [0, 1].
        validation: accuracy on the validation split: the one to choose by.
        samples: number of test samples.
        params: parameters of the result.
        nonzero: how many of them are not zero.
        macs: multiply-accumulates of the result.
        params_kept: non-zero parameters as a fraction of all parameters of the dense network.
        macs_kept: multiply-accumulates as a fraction of those of the dense network.
        shift: accuracy by corruption, where it was measured.
        seconds: how long the steps of the trial and all of them took.
        loss_curve: training loss of each epoch of recovery.
        provenance: versions, commit, machine and date.
        error: why there is no result; empty where there is one.
    """

    key: str
    network: str
    method: str
    seed: Seed
    keep: Fraction
    budget: str
    options: str = ""
    accuracy: float = math.nan
    loss: float = math.nan
    ece: float = math.nan
    validation: float = math.nan
    samples: Count = 0
    params: Count = 0
    nonzero: Count = 0
    macs: Count = 0
    params_kept: float = math.nan
    macs_kept: float = math.nan
    shift: Mapping[str, float] = field(default_factory=dict, hash=False)
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)
    loss_curve: tuple[float, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    error: str = ""

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Outcome":
        """Read plain data, in which null stands for NaN; raises :class:`FileError` where it is not an outcome."""
        return convert(_with_nan(data), Outcome, "this outcome of a trial")


def _with_nan(data: Any) -> Any:
    """JSON has no word for NaN, and nothing else of an outcome is null."""
    if isinstance(data, Mapping):
        return {key: _with_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_nan(value) for value in data]
    return math.nan if data is None else data


class Mean(NamedTuple):
    """A mean over ``n`` values, their standard deviation, and the standard error of the mean (NaN for one value)."""

    value: float
    deviation: float
    error: float
    n: int

    @staticmethod
    def of(given: Iterable[float]) -> "Mean":
        """The mean of the values that are numbers; of none: NaN."""
        values = [value for value in given if not math.isnan(value)]
        if not values:
            return Mean(math.nan, math.nan, math.nan, 0)
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return Mean(statistics.fmean(values), deviation, deviation / math.sqrt(len(values)), len(values))


def paired_differences(
    outcomes: Iterable[Outcome], method: str, baseline: str, *, metric: str = "accuracy"
) -> dict[tuple[str, int, float], float]:
    """Differences of a metric between two methods, by (network, seed, keep) that both have; in the metric's unit."""
    found = {(o.method, o.network, o.seed, o.keep): float(getattr(o, metric)) for o in outcomes}
    return {
        (network, seed, keep): value - found[baseline, network, seed, keep]
        for (name, network, seed, keep), value in found.items()
        if name == method and (baseline, network, seed, keep) in found
    }


def network_table(outcomes: Sequence[Outcome], network: str, baseline: str, *, metric: str = "accuracy") -> Table:
    """One line per method and budget: means over seeds, and the paired difference to ``baseline`` in points."""
    mine = [o for o in outcomes if o.network == network]
    columns = ("method", "keep", f"{metric} (%)", f"minus {baseline} (points)", "ECE (%)")
    head = (*columns, "MACs", "parameters", "plan (s)", "seeds")
    keys = dict.fromkeys((o.keep, o.method) for o in mine)
    rows = [_line(mine, method, keep, baseline, metric) for keep, method in sorted(keys, key=lambda k: -k[0])]
    return Table(head, tuple(rows))


def _line(mine: Sequence[Outcome], method: str, keep: float, baseline: str, metric: str) -> tuple[str, ...]:
    these = [o for o in mine if o.method == method and o.keep == keep]
    differences = [d for (_, _, k), d in paired_differences(mine, method, baseline, metric=metric).items() if k == keep]
    plan = Mean.of([o.seconds["plan"] for o in these if "plan" in o.seconds])
    return (
        method,
        f"{keep:g}",
        _spread(Mean.of([getattr(o, metric) for o in these])),
        _difference(Mean.of(differences)) if method != baseline else MISSING,
        f"{100 * Mean.of([o.ece for o in these]).value:.1f}",
        _cost([o.macs for o in these], [o.macs_kept for o in these]),
        _cost([o.nonzero for o in these], [o.params_kept for o in these]),
        f"{plan.value:.1f}" if plan.n else MISSING,
        str(len(these)),
    )


def _cost(counts: Sequence[int], shares: Sequence[float]) -> str:
    return f"{quantity(Mean.of(counts).value)} ({100 * Mean.of(shares).value:.0f} %)"


def summary_table(outcomes: Sequence[Outcome], baseline: str, *, metric: str = "accuracy") -> Table:
    """For each method the paired difference to ``baseline``, over all networks and seeds, budget by budget."""
    keeps = sorted({o.keep for o in outcomes if o.method not in (DENSE, baseline) and o.keep < 1}, reverse=True)
    methods = [m for m in dict.fromkeys(o.method for o in outcomes) if m != baseline]
    rows = []
    for method in methods:
        differences = paired_differences(outcomes, method, baseline, metric=metric)
        if differences:
            cells = (Mean.of([d for (_, _, k), d in differences.items() if k == keep]) for keep in keeps)
            rows.append((method, *(f"{_difference(c)} (n={c.n})" if c.n else MISSING for c in cells)))
    return Table(("method", *(f"keep {keep:g}" for keep in keeps)), tuple(rows))


def _spread(mean: Mean) -> str:
    return f"{100 * mean.value:.2f}" + ("" if math.isnan(mean.deviation) else f" ± {100 * mean.deviation:.2f}")


def _difference(mean: Mean) -> str:
    if not mean.n:
        return MISSING
    return f"{100 * mean.value:+.2f}" + ("" if math.isnan(mean.error) else f" ± {100 * mean.error:.2f}")


def comparison_text(outcomes: Sequence[Outcome], *, title: str, baseline: str, metric: str = "accuracy") -> str:
    """The comparison as Markdown: all networks together, then each by itself, then what failed."""
    rows = [o for o in outcomes if not o.error]
    if not rows:
        return f"# {escape_markdown(title)}\n\nNo trial is done yet.\n"
    parts = [
        f"# {escape_markdown(title)}",
        f"Accuracy is that of the {'test' if metric == 'accuracy' else metric} split, as mean ± standard deviation "
        "over seeds. Differences are paired: the same trained network, seed and budget, the same recovery; in points, "
        f"as mean ± standard error. *{DENSE}* is the network as trained, *dense+* the same after the recovery that the "
        "others get.",
        f"## All networks, minus {escape_markdown(baseline)}\n\n"
        + table_text(summary_table(rows, baseline, metric=metric)),
    ]
    for network in dict.fromkeys(o.network for o in rows):
        parts.append(
            f"## {escape_markdown(network)}\n\n{table_text(network_table(rows, network, baseline, metric=metric))}"
        )
    parts.append("## Provenance\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in provenance_lines(rows)))
    return "\n\n".join(parts) + "\n"


def provenance_lines(rows: Sequence[Outcome]) -> list[str]:
    """Versions, machine, dates and time spent of these outcomes."""
    lines = []
    for key in ("nervure", "torch", "python", "machine", "commit", "date"):
        values = sorted({o.provenance[key] for o in rows if o.provenance.get(key)})
        lines += (
            [f"{key}: {', '.join(values) if len(values) < 4 else f'{values[0]} to {values[-1]}'}"] if values else []
        )
    spent = sum(o.seconds.get("all", 0.0) for o in rows)
    return [*lines, f"trials: {len(rows)}, {spent / 60:.0f} minutes after the training of dense networks"]


def comparison_charts(outcomes: Sequence[Outcome], *, baseline: str, metric: str = "accuracy") -> dict[str, str]:
    """For each network an SVG of paired differences to ``baseline`` in points, with twice their standard errors."""
    charts = {}
    for network in dict.fromkeys(o.network for o in outcomes):
        mine = [o for o in outcomes if o.network == network and not o.error]
        dots = []
        for keep in sorted({o.keep for o in mine if o.keep < 1}, reverse=True):
            for method in dict.fromkeys(o.method for o in mine if o.keep == keep and o.method != baseline):
                values = [
                    d for (_, _, k), d in paired_differences(mine, method, baseline, metric=metric).items() if k == keep
                ]
                if values:
                    mean = Mean.of(values)
                    error = 0.0 if math.isnan(mean.error) else 200 * mean.error
                    dots.append(Dot(method, f"keep {keep:g}", 100 * mean.value, error))
        if dots:
            charts[network] = dot_chart(dots, title=f"{network}: accuracy minus {baseline} (points)")
    return charts


def write_comparison(
    outcomes: Sequence[Outcome], folder: Path, *, title: str, baseline: str, name: str = "comparison"
) -> tuple[Path, ...]:
    """Write the tables as Markdown, with a chart for each network, to ``folder``; returns the paths.

    Raises:
        FileError: the folder cannot be written.
    """
    charts = comparison_charts(outcomes, baseline=baseline)
    files = file_names(name, charts)
    pictures = "".join(f"\n![{escape_markdown(network)}]({file})\n" for network, file in files.items())
    text = comparison_text(outcomes, title=title, baseline=baseline)
    if pictures:
        text += f"\n## Charts\n\nDots are means over seeds, bars two standard errors to each side.\n{pictures}"
    written = [write_text(folder / f"{name}.md", text)]
    written += [write_text(folder / file, charts[network]) for network, file in files.items()]
    return tuple(written)
