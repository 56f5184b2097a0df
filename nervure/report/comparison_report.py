"""A comparison of methods as a value: who leads at which budget, and whether that can be told; as tables and pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from nervure.core.documents import open_document
from nervure.core.files import write_json, write_text
from nervure.core.markup import escape_markdown
from nervure.core.schema import convert, written_schema
from nervure.errors import ArgumentError, FileError
from nervure.report.charts import file_names
from nervure.report.comparison import (
    COSTS,
    mean_difference,
    mean_outcomes,
    network_table,
    provenance_lines,
    provenance_rows,
    summary_table,
    trials_table,
)
from nervure.report.dots import Dot, dot_chart
from nervure.report.front import front
from nervure.report.html import page
from nervure.report.outcome import Mean, Outcome, QualityScale, scale_of
from nervure.report.paired import leaders, tell_leader, verdict_cells
from nervure.report.run_report import DENSE, DENSE_PLUS
from nervure.report.scatter import Mark, scatter_chart
from nervure.report.table_forms import html_table, table_text
from nervure.report.tables import Table
from nervure.report.words import PageWords

KIND = "nervure-comparison"
TOLD = (
    "At each budget the method with the best mean, and every other against it: pairs have the same network and seed; p "
    "is of Student's paired t test. Told apart: p below 0.05, each asked by itself: of twenty methods that are alike "
    "chance tells one apart. What is not told apart may differ all the same; more seeds would tell."
)
POINTS = "Quality against what stays: large marks are means over seeds, small ones single seeds."
FRONT = "On the broad line, the Pareto front, no setting is beaten: no other costs as little and is as good."
SPREAD = "Means over seeds, ± one standard deviation. In brackets the share of the dense network's."
BARS = "Dots are means over seeds, bars two standard errors to each side."


@final
@dataclass(frozen=True, slots=True)
class MethodComparison:
    """What a comparison found.

    Attributes:
        title: one line.
        baseline: the method that differences are taken from.
        outcomes: of every trial, those that failed too.
        metric: what is compared: ``"quality"`` on the test split, in the measure that the trials name, the accuracy
            where they name none; ``"validation"``: the same on the validation split; or a measure by its name.
    """

    title: str
    baseline: str
    outcomes: tuple[Outcome, ...] = ()
    metric: str = "quality"

    @property
    def rows(self) -> tuple[Outcome, ...]:
        """The outcomes of the trials that did not fail."""
        return tuple(o for o in self.outcomes if not o.error)

    @property
    def scale(self) -> QualityScale:
        """The measure that is compared, and in which direction it is good; raises ArgumentError: not measured."""
        return scale_of(self.rows, self.metric)

    @property
    def networks(self) -> tuple[str, ...]:
        """The labels of the networks."""
        return tuple(dict.fromkeys(o.network for o in self.rows))

    @property
    def headline(self) -> str:
        """Who leads, budget by budget, and who cannot be told apart from the leader, in one sentence."""
        if not self.rows:
            return "No trial is done yet"
        found = leaders(self.rows, self.metric)
        return (
            f"Best {'; '.join(map(tell_leader, found))}" if found else "One method at each budget: nothing to compare"
        )

    @property
    def failures(self) -> dict[str, str]:
        """What went wrong, by trial."""
        return {f"{o.network}, seed {o.seed}, {o.method} at {o.keep:g}": o.error for o in self.outcomes if o.error}

    def told_apart(self) -> Table:
        """Each method against the best of its budget: the difference, the pairs, and whether they are told apart."""
        rows = [
            (f"{name} at {leader.keep:g}", leader.method, *verdict_cells(test, self.scale))
            for leader in leaders(self.rows, self.metric)
            for name, test in leader.tests.items()
        ]
        return Table(("method", "best", f"best minus this ({self.scale.unit})", "pairs", "told apart"), tuple(rows))

    def tables(self) -> dict[str, Table]:
        """All tables by name; ``trials`` has the numbers of every trial as they are."""
        found = {"all networks": summary_table(self.rows, self.baseline, metric=self.metric)}
        found |= {"told apart": self.told_apart()}
        for network in self.networks:
            found[f"network {network}"] = network_table(self.rows, network, self.baseline, metric=self.metric)
        return found | {"trials": trials_table(self.rows)}

    def charts(self) -> dict[str, str]:
        """For each network quality against what stays, and paired differences; SVG by a name for a file."""
        found: dict[str, str] = {}
        drawn = comparison_charts(self.rows, baseline=self.baseline, metric=self.metric)
        for network in self.networks:
            quality = self._quality_chart(network)
            found |= {f"{network} quality": quality} if quality else {}
            found |= {network: drawn[network]} if network in drawn else {}
        return found

    def _quality_chart(self, network: str) -> str:
        mine = [o for o in self.rows if o.network == network]
        cost = "macs" if len({round(o.macs_kept, 6) for o in mine if o.keep < 1}) > 1 else "params"
        means = sorted(mean_outcomes(mine), key=lambda mean: mean.keep)
        marks, scale = [], self.scale
        for mean in means:
            quality = Mean.of(scale.of(o) for o in mine if (o.method, o.keep) == (mean.method, mean.keep))
            spot = 100 * mean.costs[cost].value, scale.factor * quality.value
            marks.append(Mark(mean.method, *spot, told=f"{mean.label}: {scale.show(quality.value)} at {spot[0]:.1f} %"))
        single = [
            Mark(o.method, 100 * getattr(o, f"{cost}_kept"), scale.factor * scale.of(o), told=f"seed {o.seed}")
            for o in mine
        ]
        return scatter_chart(
            marks,
            title=f"{network}: {scale.axis}",
            x_label=f"{COSTS[cost]}, % of the dense network",
            # By what was asked: what methods reach of a budget differs by a unit or two, which is no saving.
            front=[
                (marks[i].x, marks[i].y)
                for i in front([(mean.keep, scale.rank(mark.y)) for mean, mark in zip(means, marks, strict=True)])
            ],
            looks=list(dict.fromkeys(o.method for o in self.rows)),
            single=single if len({o.seed for o in mine}) > 1 else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        told = {"kind": KIND, "headline": self.headline, "title": self.title, "baseline": self.baseline}
        return {**told, "metric": self.metric, "outcomes": [asdict(o) for o in self.outcomes]}

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> "MethodComparison":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        what = "this comparison"
        plain = open_document(data, what)
        if plain.get("kind") != KIND:
            raise FileError("this is not a comparison of nervure. Give the comparison.json that compare wrote.")
        found = convert(plain, _COMPARISON, what)
        outcomes = tuple(map(Outcome.from_json, found.outcomes))
        read = MethodComparison(found.title, found.baseline, outcomes, found.metric)
        try:
            scale_of(outcomes, found.metric)
        except ArgumentError as error:
            raise FileError(f"this comparison is damaged: {error}") from error
        return read


_COMPARISON = written_schema(MethodComparison, {"outcomes": tuple[dict[str, Any], ...]})


def _explain(scale: QualityScale) -> str:
    measure = "Accuracy" if scale.is_accuracy else f"{scale.unit[:1].upper()}{scale.unit[1:]} ({scale.direction})"
    return (
        f"{measure} is that of the {scale.split} split, as mean ± standard deviation "
        "over seeds. Differences are paired: the same trained network, seed and budget, the same recovery; "
        f"{'in points, ' if scale.is_accuracy else ''}as mean ± standard error. The network {DENSE!r} is the one as "
        f"trained, {DENSE_PLUS!r} the same after the recovery that the others get."
    )


def comparison_text(outcomes: Sequence[Outcome], *, title: str, baseline: str, metric: str = "quality") -> str:
    """The comparison as Markdown: all networks together, who is told apart, each network by itself, what failed."""
    found = MethodComparison(title, baseline, tuple(outcomes), metric)
    if not found.rows:
        return f"# {escape_markdown(title)}\n\nNo trial is done yet.\n"
    tables = found.tables()
    parts = [
        f"# {escape_markdown(title)}",
        f"**{escape_markdown(found.headline)}**",
        escape_markdown(_explain(found.scale)),
        f"## All networks, minus {escape_markdown(baseline)}\n\n{table_text(tables['all networks'])}",
    ]
    if tables["told apart"].rows:
        parts.append(f"## Told apart\n\n{escape_markdown(TOLD)}\n\n{table_text(tables['told apart'])}")
    for network in found.networks:
        parts.append(f"## {escape_markdown(network)}\n\n{table_text(tables[f'network {network}'])}")
    if found.failures:
        failures = (f"- {escape_markdown(trial)}: {escape_markdown(why)}" for trial, why in found.failures.items())
        parts.append("## What failed\n\n" + "\n".join(failures))
    parts.append("## Provenance\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in provenance_lines(found.rows)))
    return "\n\n".join(parts) + "\n"


def comparison_page(found: MethodComparison) -> str:
    """A comparison as one self-contained HTML page."""
    words = PageWords()
    shown = {f"network {name}" for name in found.networks} | {"told apart"}
    # One network has all of it in its own table.
    shown |= {"all networks"} if len(found.networks) > 1 else set()
    tables = {n: html_table(t, words=words.link) for n, t in found.tables().items() if n in shown and t.rows}
    return page(
        "comparison.html.j2",
        words=words,
        found=found,
        networks={n: tables[f"network {n}"] for n in found.networks if f"network {n}" in tables},
        all_networks=tables.get("all networks"),
        told=tables.get("told apart"),
        charts=list(found.charts().values()),
        explained=_explain(found.scale),
        told_note=TOLD,
        charts_note=f"{POINTS} {FRONT} {BARS}",
        spread_note=SPREAD,
        commands={},
        provenance=provenance_rows(provenance_lines(found.rows)),
    )


def comparison_charts(outcomes: Sequence[Outcome], *, baseline: str, metric: str = "quality") -> dict[str, str]:
    """For each network an SVG of paired differences to ``baseline`` in points, with twice their standard errors."""
    charts, scale = {}, scale_of(outcomes, metric)
    for network in dict.fromkeys(o.network for o in outcomes):
        mine = [o for o in outcomes if o.network == network and not o.error]
        dots = []
        for keep in sorted({o.keep for o in mine if o.keep < 1}, reverse=True):
            for method in dict.fromkeys(o.method for o in mine if o.keep == keep and o.method != baseline):
                mean = mean_difference(mine, method, baseline, keep, metric)
                error = 0.0 if math.isnan(mean.error) else 2 * scale.factor * mean.error
                # A file may say anything: what is no number has no place on a chart.
                if math.isfinite(scale.factor * mean.value) and math.isfinite(error):
                    dots.append(Dot(method, f"keep {keep:g}", scale.factor * mean.value, error))
        if dots:
            charts[network] = dot_chart(dots, title=f"{network}: {_minus(scale, baseline)}")
    return charts


def _minus(scale: QualityScale, baseline: str) -> str:
    return f"{scale.name} minus {baseline} (points)" if scale.is_accuracy else f"{scale.axis} minus {baseline}"


def write_comparison(
    outcomes: Sequence[Outcome],
    folder: Path,
    *,
    title: str,
    baseline: str,
    name: str = "comparison",
    metric: str = "quality",
) -> tuple[Path, ...]:
    """Write the tables as Markdown, with the charts of each network, to ``folder``; returns the paths.

    Raises:
        FileError: the folder cannot be written.
    """
    charts = MethodComparison(title, baseline, tuple(outcomes), metric).charts()
    files = file_names(name, charts)
    pictures = "".join(f"\n![{escape_markdown(chart)}]({file})\n" for chart, file in files.items())
    text = comparison_text(outcomes, title=title, baseline=baseline, metric=metric)
    if pictures:
        text += f"\n## Charts\n\n{POINTS} {BARS}\n{pictures}"
    written = [write_text(folder / f"{name}.md", text)]
    written += [write_text(folder / file, charts[chart]) for chart, file in files.items()]
    return tuple(written)


def write_comparison_pages(found: MethodComparison, folder: Path) -> tuple[Path, ...]:
    """Write ``comparison.html``, ``comparison.md``, the charts, and all as JSON to ``folder``; returns the paths.

    Raises:
        FileError: the folder cannot be written.
    """
    return (
        write_text(folder / "comparison.html", comparison_page(found)),
        write_json(folder / "comparison.json", found.to_json()),
        *write_comparison(found.outcomes, folder, title=found.title, baseline=found.baseline, metric=found.metric),
    )
