"""A sweep as a value: settings with their means over seeds, the Pareto front, the knee; as tables, charts and pages."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, final

from nervure.core.documents import open_document
from nervure.core.files import write_json, write_text
from nervure.core.markup import code, escape_markdown
from nervure.core.schema import convert, written_schema
from nervure.errors import FileError
from nervure.report.charts import file_names
from nervure.report.comparison import (
    ACCURACY,
    COSTS,
    MeanOutcome,
    TimedSetting,
    mean_outcomes,
    provenance_lines,
    provenance_rows,
    results_table,
    trials_table,
)
from nervure.report.dots import Dot, dot_chart
from nervure.report.front import front, knee, level_costs
from nervure.report.html import page
from nervure.report.markdown import table_text
from nervure.report.outcome import Mean, Outcome, QualityScale, scale_of
from nervure.report.paired import PairedTest, compare_settings, leaders, some, tell_leader, verdict_cells
from nervure.report.run_report import DENSE, DENSE_PLUS
from nervure.report.scatter import Mark, scatter_chart
from nervure.report.table_forms import html_table
from nervure.report.tables import Table, recipe_rows
from nervure.report.words import PageWords

FORMAT, KIND = 1, "nervure-sweep"
SAME_COST = 1.02
"""Settings that cost so many times what the suggestion costs, or less, are as small."""
Quality = Literal["accuracy", "quality", "shifted", "validation"]


@final
@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        title: one line: the network and the data.
        recipe: the recipe as plain data.
        folder: where it was written.
        means: the outcome of every setting with a finished trial, the dense network first.
        failures: what went wrong, by trial.
        provenance: versions, commit, machine and dates, one line each.
        outcomes: of the single trials; empty where only means are known.
        timed: how long their networks take, by key.
        notes: what the reader should know, one sentence each.
    """

    title: str
    recipe: Mapping[str, Any] = field(hash=False)
    folder: str
    means: tuple[MeanOutcome, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict, hash=False)
    provenance: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    timed: Mapping[str, TimedSetting] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(outcomes: Sequence[Outcome], timed: Mapping[str, TimedSetting], **rest: Any) -> "Sweep":
        """From the outcomes of all trials and their timings, by key; ``rest`` are the other fields."""
        told = {"outcomes": tuple(outcomes), "timed": timed, "provenance": tuple(provenance_lines(outcomes))}
        return Sweep(means=mean_outcomes(outcomes, timed), **(told | rest))

    @property
    def candidates(self) -> tuple[MeanOutcome, ...]:
        """Deprecated: they are called ``means`` now."""
        return self.means

    @property
    def cost(self) -> str:
        """What counts as the cost of a setting: multiply-accumulates, or parameters where only they vary."""
        asked = self.recipe.get("prune", {}).get("budget", "macs")
        varies = len({round(c.costs["macs"].value, 6) for c in self.means}) > 1
        return "params" if asked == "params" or not varies else "macs"

    @property
    def scale(self) -> QualityScale:
        """The measure that tells how good a setting is, and in which direction it is good."""
        return scale_of(self.outcomes)

    def _scale_for(self, quality: str) -> QualityScale:
        return self.scale if quality in ("quality", "validation") else ACCURACY

    def spots(self, cost: str, quality: str) -> list[tuple[float, float]]:
        """Where each setting stands: its share of a cost in [0, 1], and a quality (NaN: not measured)."""
        return [(c.costs[cost].value if cost in c.costs else math.nan, getattr(c, quality).value) for c in self.means]

    def on_front(self, cost: str | None = None, quality: Quality = "validation") -> tuple[MeanOutcome, ...]:
        """The settings that no other beats at this cost and quality, from the cheapest to the best."""
        return tuple(self.means[i] for i in self._front(self.spots(cost or self.cost, quality), quality))

    def _front(self, spots: Sequence[tuple[float, float]], quality: str) -> tuple[int, ...]:
        scale = self._scale_for(quality)
        costs = level_costs([x for x, _ in spots], SAME_COST)
        return front([(x, scale.rank(y)) for x, (_, y) in zip(costs, spots, strict=True)])

    @property
    def suggestion(self) -> MeanOutcome | None:
        """The knee of the front on the validation data; None where the front has none."""
        best = self.on_front()
        place = knee([(c.costs[self.cost].value, self.scale.rank(c.validation.value)) for c in best])
        return None if place is None else best[place]

    @property
    def headline(self) -> str:
        """The result in one sentence, with what cannot be told from it."""
        return ", ".join([self.statement, *self.undecided])

    @property
    def statement(self) -> str:
        """The result in one sentence."""
        if told := self._at_one_budget():
            return told
        found = self.suggestion
        if found is None:
            return self._without_knee()
        dense = self._dense or found
        parts = [f"Knee: {found.label} keeps {100 * found.costs['macs'].value:.0f} % of the multiply-accumulates"]
        parts.append(self._before_and_after(dense, found))
        if found.shifted.n and dense.shifted.n:
            parts.append(f"under shift {100 * dense.shifted.value:.1f} → {100 * found.shifted.value:.1f} %")
        return ", ".join(parts)

    def _before_and_after(self, dense: MeanOutcome, found: MeanOutcome) -> str:
        if self.scale.is_accuracy:
            return f"accuracy {100 * dense.accuracy.value:.1f} → {100 * found.accuracy.value:.1f} %"
        return f"{self.scale.words} {dense.quality.value:.4g} → {found.quality.value:.4g}"

    def _without_knee(self) -> str:
        if not self.means:
            return "Nothing is done yet"
        clauses = "; ".join(map(tell_leader, leaders(self.outcomes)))
        return "No knee: take the point of the front that fits your needs" + (f"; best {clauses}" if clauses else "")

    @property
    def _cut(self) -> list[MeanOutcome]:
        return [mean for mean in self.means if mean.method not in (DENSE, DENSE_PLUS)]

    def _at_one_budget(self) -> str:
        """The best of one budget and one seed, and how far the others are; empty where there is more than that."""
        dense, ranked = self._dense, sorted(self._cut, key=lambda mean: -mean.accuracy.value)
        if dense is None or len(ranked) < 2 or len({m.keep for m in ranked}) > 1 or any(not m.interval for m in ranked):
            return ""
        best, *others = ranked
        removed = f"{100 * (1 - best.costs[self.cost].value):.0f} % of the {COSTS[self.cost]} removed"
        trained = self.recipe.get("recover", {}).get("epochs", 1)
        told = [f"{removed}{'' if trained else ' without training'}: {best.method}"]
        told += [self._before_and_after(dense, best), *_faster(best)]
        level = [mean.method for mean in others if _overlap(mean, best)]
        told += [f"its interval overlaps that of {some(level)}"] if level else []
        apart = [f"{100 * mean.accuracy.value:.1f}" for mean in others if not _overlap(mean, best)]
        told += [f"the others {' to '.join(dict.fromkeys((apart[0], apart[-1])))} %"] if apart else []
        return ", ".join(told)

    def rivals(self) -> dict[str, PairedTest]:
        """Every other setting against the suggestion by the test data: paired by seed, by the setting's label."""
        chosen = self.suggestion
        if chosen is None or not self.outcomes:
            return {}
        others = [mean for mean in self.means if mean is not chosen]
        mine = self._trials(chosen)
        return {m.label: compare_settings(mine, self._trials(m), "quality") for m in others}

    @property
    def has_pairs(self) -> bool:
        """Whether several seeds can tell settings apart."""
        return any(test.mean.n > 1 for test in self.rivals().values())

    def told_apart(self) -> Table:
        """Every other setting against the suggestion: the difference, the pairs, and whether they are told apart."""
        rows = tuple((name, *verdict_cells(test, self.scale)) for name, test in self.rivals().items())
        return Table(("setting", f"suggestion minus this ({self.scale.unit})", "seeds", "told apart"), rows)

    def _trials(self, mean: MeanOutcome) -> list[Outcome]:
        return [o for o in self.outcomes if (o.method, o.keep) == (mean.method, mean.keep)]

    @property
    def undecided(self) -> list[str]:
        """What the headline owes to the reader: which settings as small as the suggestion are as good for all we know.

        Of one seed nothing can be told.
        """
        tests, chosen = self.rivals(), self.suggestion
        if chosen is None or not tests or self._at_one_budget():
            return []
        most = max(test.mean.n for test in tests.values())
        if most < 2:
            return ["one seed: whether others are as good cannot be told"]
        allowed = SAME_COST * chosen.costs[self.cost].value
        small = {m.label for m in self.means if m.costs[self.cost].value <= allowed}
        level = [name for name, test in tests.items() if name in small and not test.differs]
        return [f"not told apart from {some(level)} ({most} seeds)"] if level else []

    @property
    def _dense(self) -> MeanOutcome | None:
        return next((c for c in self.means if c.method == DENSE), None)

    def table(self) -> Table:
        """One line per setting; the second column says which are on the front, and which is suggested."""
        chosen, best = self.suggestion, self.on_front()
        choices = {c.key: "suggested" if c is chosen else "front" for c in best}
        return results_table(self.means, "choice", lambda mean: choices.get(mean.key, ""), self.scale)

    def charts(self) -> dict[str, str]:
        """An SVG for each cost and quality, by a name for a file."""
        chosen = self.suggestion
        names = list(dict.fromkeys(c.method for c in self.means))
        costs = dict.fromkeys(cost for c in self.means for cost in c.costs)
        found: dict[str, str] = {}
        for cost in costs:
            for quality, (words, title) in self._qualities().items():
                if quality != "shifted" and self._costs_the_same(cost):
                    found |= {"by-setting": self._dots(quality, title)}
                    continue
                factor = self._scale_for(quality).factor
                spots = [(100 * x, factor * y) for x, y in self.spots(cost, quality)]
                chart = scatter_chart(
                    [_mark(c, spot, quality, self._scale_for(quality)) for c, spot in self._by_budget(spots)],
                    title=title,
                    x_label=f"{COSTS.get(cost, cost)}, % of the dense network",
                    front=[spots[i] for i in self._front(spots, quality)],
                    ring=None if chosen is None else spots[self.means.index(chosen)],
                    looks=names,
                )
                found |= {f"{cost.replace(',', '')} {words}".replace(" ", "-"): chart} if chart else {}
        return found

    def _costs_the_same(self, cost: str) -> bool:
        """Whether settings differ in quality alone, so that there is nothing to see across."""
        shares = [mean.costs[cost].value for mean in self._cut if cost in mean.costs]
        return len(shares) > 1 and max(shares) <= SAME_COST * min(shares) and len({m.keep for m in self._cut}) == 1

    def _dots(self, quality: str, title: str) -> str:
        scale = self._scale_for(quality)
        dense = [] if self._dense is None else [Dot(DENSE, "before", *_bar(self._dense, quality, scale))]
        cut = [Dot(m.method, f"at {m.keep:g}", *_bar(m, quality, scale)) for m in self._cut]
        return dot_chart([*dense, *cut], title=title)

    def _qualities(self) -> dict[str, tuple[str, str]]:
        """What charts show: by the name of a mean, words for a file, and a title."""
        shifted = {"shifted": ("under shift", "Accuracy under shift (%)")}
        if self.scale.is_accuracy:
            return {"accuracy": ("clean", "Accuracy clean (%)")} | shifted
        title = self.scale.axis
        return {"quality": ("clean", f"{title[:1].upper()}{title[1:]}")} | shifted

    def _by_budget(self, spots: Sequence[tuple[float, float]]) -> list[tuple[MeanOutcome, tuple[float, float]]]:
        """MeanOutcomes and where they stand, so that the line of a method goes from budget to budget."""
        return sorted(zip(self.means, spots, strict=True), key=lambda pair: pair[0].keep)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN is null."""
        data = {
            "kind": KIND,
            "format": FORMAT,
            "headline": self.headline,
            "cost": self.cost,
            "quality": {"name": self.scale.name, "higher_is_better": self.scale.higher_is_better},
            "front": [c.label for c in self.on_front()],
            "knee": None if self.suggestion is None else self.suggestion.label,
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("means", "outcomes", "timed")},
            "outcomes": [asdict(o) for o in self.outcomes],
            "timed": {key: asdict(one) for key, one in self.timed.items()},
            "candidates": [{"label": c.label, **asdict(c)} for c in self.means],
        }
        return {key: _null(value) for key, value in data.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> "Sweep":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        what = "this sweep"
        plain = open_document(data, what)
        if plain.get("kind") != KIND:
            raise FileError("this is not a sweep of nervure. Give the sweep.json that sweep wrote.")
        if "outcomes" not in plain:
            raise FileError("this sweep was written before trials were kept in it: sweep again, which computes none.")
        found = convert(plain, _SWEEP, what)
        outcomes = tuple(map(Outcome.from_json, found.outcomes))
        rest = {"title": found.title, "recipe": found.recipe, "folder": found.folder, "failures": found.failures}
        rest |= {"provenance": found.provenance} if found.provenance else {}
        return Sweep.of(outcomes, found.timed, notes=found.notes, **rest)

    def tables(self) -> dict[str, Table]:
        """All tables by name; ``trials`` has the numbers of every trial as they are."""
        return {"settings": self.table(), "told apart": self.told_apart(), "trials": trials_table(self.outcomes)}


_SWEEP = written_schema(
    Sweep, {"outcomes": tuple[dict[str, Any], ...], "means": Any, "recipe": dict[str, dict[str, Any]]}
)


HOW = (
    "Points are means over seeds, bars one standard deviation to each side; of one seed, the 95 % interval (Wilson) "
    "that so many test images leave open. Nothing on the front is beaten: no other setting costs as little and is as "
    "good; costs within 2 % are the same. The suggestion is the knee of the front on the validation images, against "
    "{cost}: with both axes stretched to [0, 1], the point farthest above the chord between the ends of the front "
    "(Satopaa et al., 2011). In a chart of the test images it need not lie on their front."
)


SPREAD = (
    "Means over seeds, ± one standard deviation; of one seed, the 95 % interval (Wilson) that so many test samples "
    "leave open. In brackets the share of the dense network's, and of milliseconds how many times faster it is."
)
TOLD = (
    "Every other setting against the suggestion, by the test images: pairs have the same seed, and so the same trained "
    "network; p is of Student's paired t test. Told apart: p below 0.05, each asked by itself: of twenty settings that "
    "are alike chance tells one apart. What is not told apart may differ all the same; more seeds would tell."
)


def how(found: Sweep) -> str:
    """How to read the charts, and how the suggestion was found."""
    return _of_data(found, HOW.format(cost=COSTS[found.cost]))


def how_told(found: Sweep) -> str:
    """How to read what is told apart."""
    return _of_data(found, TOLD)


def _of_data(found: Sweep, words: str) -> str:
    """Data of a task need not be images."""
    return words if found.scale.is_accuracy else words.replace(" images", " data")


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
    parts += [escape_markdown(note) for note in found.notes]
    if found.has_pairs:
        parts += ["## Told apart", how_told(found), table_text(found.told_apart())]
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
    words = PageWords()
    return page(
        "sweep.html.j2",
        words=words,
        found=found,
        undecided=tuple(f"{clause[:1].upper()}{clause[1:]}." for clause in found.undecided),
        table=html_table(found.table(), _suggested(found), words.link) if found.means else "",
        told=html_table(found.told_apart(), words=words.link) if found.has_pairs else "",
        spread_note=SPREAD,
        provenance=provenance_rows(found.provenance),
        told_note=how_told(found),
        charts=found.charts(),
        how=how(found),
        commands=commands(found),
        recipe=recipe_rows(found.recipe),
    )


def _suggested(found: Sweep) -> dict[int, str]:
    """The row of the suggestion is marked as the pruned network of a report is."""
    return {} if found.suggestion is None else {found.means.index(found.suggestion): "pruned"}


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


def _mark(candidate: MeanOutcome, spot: tuple[float, float], quality: str, scale: QualityScale) -> Mark:
    _, error = _bar(candidate, quality, scale)
    return Mark(
        candidate.method, *spot, error, f"{candidate.label}: {scale.show(spot[1] / scale.factor)} at {spot[0]:.1f} %"
    )


def _bar(mean: MeanOutcome, quality: str, scale: QualityScale) -> tuple[float, float]:
    """A quality as it is shown, and how far its bar goes to each side."""
    found: Mean = getattr(mean, quality)
    error = 0.0 if math.isnan(found.deviation) else found.deviation
    if mean.interval is not None and quality in ("accuracy", "quality") and scale.is_accuracy:
        error = (mean.interval[1] - mean.interval[0]) / 2
    return scale.factor * found.value, scale.factor * error


def _overlap(one: MeanOutcome, other: MeanOutcome) -> bool:
    """Whether the intervals of two settings have something in common."""
    if one.interval is None or other.interval is None:
        return True
    return one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]


def _faster(mean: MeanOutcome) -> list[str]:
    """How many times as fast as the dense network, at the batch and in the engine that was timed first."""
    times = {name: cost.value for name, cost in mean.costs.items() if name.startswith("latency")}
    place, share = next(iter(times.items()), ("", 1.0))
    return [f"{1 / share:.1f}x faster ({place.removeprefix('latency, ')})"] if share < 1 / SAME_COST else []


def _null(value: Any) -> Any:
    """With null for NaN, which is no JSON, and means by the names of their parts."""
    if isinstance(value, Mean):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
