"""A sweep as a value: settings with their means over seeds, the Pareto front, the knee; as tables, charts and pages."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from nervure.core.files import write_json, write_text
from nervure.core.markup import code, escape_markdown
from nervure.report.charts import file_names
from nervure.report.comparison import DENSE, Mean, Outcome, provenance_lines
from nervure.report.front import front, knee
from nervure.report.html import page
from nervure.report.markdown import table_text
from nervure.report.run_report import milliseconds
from nervure.report.scatter import Mark, scatter_chart
from nervure.report.tables import MISSING, Table, quantity, recipe_rows

FORMAT = 1
Quality = Literal["accuracy", "shifted", "validation"]
QUALITIES: Mapping[str, str] = {"accuracy": "clean", "shifted": "under shift"}


@final
@dataclass(frozen=True, slots=True)
class TimedSetting:
    """How long one trial's network takes: milliseconds, and times faster than its dense one, by batch size."""

    latency: Mapping[str, float] = field(default_factory=dict, hash=False)
    speedup: Mapping[str, float] = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """One setting: a method at one budget, with means over its seeds.

    Attributes:
        method: its label; ``"dense"`` for the network as trained, ``"dense+"`` with the recovery of the others.
        keep: the fraction that was to stay.
        accuracy: on the clean test images, in [0, 1].
        shifted: mean over the corruptions, in [0, 1]; of nothing where it was not measured.
        validation: on the validation images: what front and knee are chosen by.
        costs: shares of the dense network's, in [0, 1]: ``"macs"``, ``"params"`` (those that are not zero), and
            ``"latency, batch N"``.
        macs: multiply-accumulates.
        params: parameters that are not zero.
        latency: milliseconds, by batch size.
        key: of the trial with the first seed.
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

    @staticmethod
    def of(outcomes: Sequence[Outcome], timed: Mapping[str, TimedSetting]) -> "Candidate":
        """From the outcomes of one setting, one for each seed, and how long their networks take, by key."""
        first = outcomes[0]
        times = [timed[o.key] for o in outcomes if o.key in timed]
        batches = dict.fromkeys(batch for one in times for batch in one.speedup)
        costs = {"macs": Mean.of(o.macs_kept for o in outcomes), "params": Mean.of(o.params_kept for o in outcomes)}
        spent = {f"latency, batch {b}": Mean.of(1 / t.speedup[b] for t in times if b in t.speedup) for b in batches}
        return Candidate(
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
        )

    @property
    def label(self) -> str:
        """What to call it, e.g. ``"Taylor at 0.4"``."""
        return self.method if self.method.startswith(DENSE) else f"{self.method} at {self.keep:g}"


@final
@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        title: one line: the network and the data.
        recipe: the recipe as plain data.
        folder: where it was written.
        candidates: every setting with a finished trial, the dense network first.
        failures: what went wrong, by trial.
        provenance: versions, commit, machine and dates, one line each.
    """

    title: str
    recipe: Mapping[str, Any] = field(hash=False)
    folder: str
    candidates: tuple[Candidate, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict, hash=False)
    provenance: tuple[str, ...] = ()

    @staticmethod
    def of(outcomes: Sequence[Outcome], timed: Mapping[str, TimedSetting], **rest: Any) -> "Sweep":
        """From the outcomes of all trials and their timings, by key; ``rest`` are the other fields."""
        settings: dict[tuple[str, float], list[Outcome]] = {}
        for outcome in outcomes:
            settings.setdefault((outcome.method, outcome.keep), []).append(outcome)
        candidates = tuple(Candidate.of(these, timed) for these in settings.values())
        return Sweep(candidates=candidates, provenance=tuple(provenance_lines(outcomes)), **rest)

    @property
    def cost(self) -> str:
        """What counts as the cost of a setting: multiply-accumulates, or parameters where only they vary."""
        asked = self.recipe.get("prune", {}).get("budget", "macs")
        varies = len({round(c.costs["macs"].value, 6) for c in self.candidates}) > 1
        return "params" if asked == "params" or not varies else "macs"

    def spots(self, cost: str, quality: str) -> list[tuple[float, float]]:
        """Where each candidate stands: its share of a cost, and a quality, both in [0, 1] (NaN: not measured)."""
        return [
            (c.costs[cost].value if cost in c.costs else math.nan, getattr(c, quality).value) for c in self.candidates
        ]

    def on_front(self, cost: str | None = None, quality: Quality = "validation") -> tuple[Candidate, ...]:
        """The candidates that no other beats at this cost and quality, from the cheapest to the best."""
        return tuple(self.candidates[i] for i in front(self.spots(cost or self.cost, quality)))

    @property
    def suggestion(self) -> Candidate | None:
        """The knee of the front on the validation images; None where the front has none."""
        best = self.on_front()
        place = knee([(c.costs[self.cost].value, c.validation.value) for c in best])
        return None if place is None else best[place]

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        found = self.suggestion
        if found is None:
            return (
                "No knee: take the point of the front that fits your needs"
                if self.candidates
                else "Nothing is done yet"
            )
        dense = self._dense or found
        parts = [f"Knee: {found.label} keeps {100 * found.costs['macs'].value:.0f} % of the multiply-accumulates"]
        parts.append(f"accuracy {100 * dense.accuracy.value:.1f} → {100 * found.accuracy.value:.1f} %")
        if found.shifted.n and dense.shifted.n:
            parts.append(f"under shift {100 * dense.shifted.value:.1f} → {100 * found.shifted.value:.1f} %")
        return ", ".join(parts)

    @property
    def _dense(self) -> Candidate | None:
        return next((c for c in self.candidates if c.method == DENSE), None)

    def table(self) -> Table:
        """One line per candidate; the second column says which are on the front, and which is suggested."""
        batches = list(dict.fromkeys(b for c in self.candidates for b in c.latency))
        chosen, best, dense = self.suggestion, self.on_front(), self._dense
        columns = ("setting", "choice", "validation (%)", "accuracy (%)", "under shift (%)", "MACs", "parameters")
        rows = [
            (
                c.label,
                "suggested" if c is chosen else "front" if c in best else "",
                *(spread(mean) for mean in (c.validation, c.accuracy, c.shifted)),
                _cost(c.macs, c.costs["macs"]),
                _cost(c.params, c.costs["params"]),
                *(_milliseconds(c, dense, batch) for batch in batches),
                str(c.accuracy.n),
            )
            for c in self.candidates
        ]
        return Table((*columns, *(f"ms, batch {b}" for b in batches), "seeds"), tuple(rows))

    def charts(self) -> dict[str, str]:
        """An SVG for each cost and quality, by a name for a file."""
        chosen = self.suggestion
        names = list(dict.fromkeys(c.method for c in self.candidates))
        costs = dict.fromkeys(cost for c in self.candidates for cost in c.costs)
        found: dict[str, str] = {}
        for cost in costs:
            for quality, words in QUALITIES.items():
                spots = [(100 * x, 100 * y) for x, y in self.spots(cost, quality)]
                chart = scatter_chart(
                    [_mark(c, spot, quality) for c, spot in self._by_budget(spots)],
                    title=f"Accuracy {words} (%)",
                    x_label=f"{COSTS.get(cost, cost)}, % of the dense network",
                    front=[spots[i] for i in front(spots)],
                    ring=None if chosen is None else spots[self.candidates.index(chosen)],
                    looks=names,
                )
                found |= {f"{cost.replace(',', '')} {words}".replace(" ", "-"): chart} if chart else {}
        return found

    def _by_budget(self, spots: Sequence[tuple[float, float]]) -> list[tuple[Candidate, tuple[float, float]]]:
        """Candidates and where they stand, so that the line of a method goes from budget to budget."""
        return sorted(zip(self.candidates, spots, strict=True), key=lambda pair: pair[0].keep)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN is null."""
        data = {
            "kind": "nervure-sweep",
            "format": FORMAT,
            "headline": self.headline,
            "cost": self.cost,
            "front": [c.label for c in self.on_front()],
            "knee": None if self.suggestion is None else self.suggestion.label,
            **asdict(self),
            "candidates": [{"label": c.label, **_plain(c)} for c in self.candidates],
        }
        return {key: _null(value) for key, value in data.items()}


COSTS: Mapping[str, str] = {"macs": "multiply-accumulates", "params": "parameters that are not zero"}
HOW = (
    "Points are means over seeds, bars one standard deviation to each side. Nothing on the front is beaten: no other "
    "setting costs as little and is as good. The suggestion is the knee of the front on the validation images, against "
    "{cost}: with both axes stretched to [0, 1], the point farthest above the chord between the ends of the front "
    "(Satopaa et al., 2011). In a chart of the test images it need not lie on their front."
)


def how(found: Sweep) -> str:
    """How to read the charts, and how the suggestion was found."""
    return HOW.format(cost=COSTS[found.cost])


def commands(found: Sweep) -> dict[str, str]:
    """What to type: to do it all again, and to make a full report of the suggestion."""
    recipe, other = shlex.quote(f"{found.folder}/recipe.toml"), shlex.quote(f"{found.folder}-again")
    again = {"The same again": f"nervure sweep {recipe} --folder {other}"}
    chosen = found.suggestion
    if chosen is None or chosen.method == DENSE:
        return again
    place = f"{found.folder}/trials/{chosen.key}"
    recipe, other = shlex.quote(f"{place}/recipe.toml"), shlex.quote(f"{place}-run")
    return again | {"The suggestion as a run, with a full report": f"nervure run {recipe} --folder {other}"}


def sweep_text(found: Sweep, pictures: Mapping[str, str] | None = None) -> str:
    """A sweep as Markdown, for a pull request; ``pictures`` are addresses of charts, by name."""
    parts = [f"# {escape_markdown(found.title)}", f"**{escape_markdown(found.headline)}**"]
    if found.candidates:
        parts += ["## Settings", table_text(found.table())]
    if pictures:
        parts += [
            "## Charts",
            how(found),
            *(f"![{escape_markdown(name)}]({address})" for name, address in pictures.items()),
        ]
    if found.failures:
        failures = (
            f"- {escape_markdown(trial)}: {escape_markdown(reason)}" for trial, reason in found.failures.items()
        )
        parts += ["## What failed", "\n".join(failures)]
    parts += ["## Again"] + [f"{what}: {code(command)}" for what, command in commands(found).items()]
    if found.provenance:
        parts += ["## Provenance", "\n".join(f"- {escape_markdown(line)}" for line in found.provenance)]
    return "\n\n".join(parts) + "\n"


def sweep_page(found: Sweep) -> str:
    """A sweep as one self-contained HTML page."""
    return page(
        "sweep.html.j2",
        found=found,
        table=found.table(),
        charts=found.charts(),
        how=how(found),
        commands=commands(found),
        recipe=recipe_rows(found.recipe),
    )


def write_sweep(found: Sweep, folder: Path) -> tuple[Path, ...]:
    """Write ``sweep.json``, ``sweep.html``, ``sweep.md`` and its charts to ``folder``; returns the paths.

    Raises:
        FileError: the folder cannot be written.
    """
    drawn = found.charts()
    charts = file_names("sweep", drawn)
    written = [write_text(folder / charts[name], chart) for name, chart in drawn.items()]
    written += [write_text(folder / "sweep.md", sweep_text(found, charts))]
    written += [
        write_text(folder / "sweep.html", sweep_page(found)),
        write_json(folder / "sweep.json", found.to_json()),
    ]
    return tuple(reversed(written))


def spread(mean: Mean) -> str:
    """A share in percent with its standard deviation over seeds, e.g. ``89.60 ± 0.70``."""
    if not mean.n:
        return MISSING
    return f"{100 * mean.value:.2f}" + ("" if math.isnan(mean.deviation) else f" ± {100 * mean.deviation:.2f}")


def _cost(count: float, share: Mean) -> str:
    return f"{quantity(count)} ({100 * share.value:.0f} %)"


def _milliseconds(candidate: Candidate, dense: Candidate | None, batch: str) -> str:
    """Milliseconds, and what share of the dense network's they are: as both are shown, divided."""
    if batch not in candidate.latency:
        return MISSING
    shown = milliseconds(candidate.latency[batch].value)
    if dense is None or batch not in dense.latency:
        return f"{shown:g}"
    return f"{shown:g} ({100 * shown / milliseconds(dense.latency[batch].value):.0f} %)"


def _mark(candidate: Candidate, spot: tuple[float, float], quality: str) -> Mark:
    deviation = getattr(candidate, quality).deviation
    error = 0.0 if math.isnan(deviation) else 100 * deviation
    return Mark(candidate.method, *spot, error, f"{candidate.label}: {spot[1]:.2f} % at {spot[0]:.1f} %")


def _plain(candidate: Candidate) -> dict[str, Any]:
    means = {
        name: value._asdict() for name in ("accuracy", "shifted", "validation") for value in [getattr(candidate, name)]
    }
    tables = {
        name: {key: mean._asdict() for key, mean in getattr(candidate, name).items()} for name in ("costs", "latency")
    }
    return asdict(candidate) | means | tables


def _null(value: Any) -> Any:
    """With null for NaN, which is no JSON."""
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
