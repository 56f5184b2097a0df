"""The tables of a report as plain rows of text, so that every form of it says the same."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from nervure.plan import Plan
from nervure.report.run_report import (
    DENSE,
    DENSE_PLUS,
    EAGER,
    PRUNED,
    RANDOM,
    Report,
    Row,
    Width,
    in_words,
    milliseconds,
    share_removed,
)

EXPLAINED: Mapping[str, str] = {
    "dense": "as trained",
    "pruned": "cut, then recovered",
    "dense+": "not cut, same extra training",
    "random": "as many units and weights, chosen by lot, same recovery",
}
MISSING = "–"
SPEED = (
    "Milliseconds of a forward pass: the dense network's median, and for the others that median over their speed-up "
    "(the median over rounds in which all take turns); in brackets, how many times faster than the dense network in "
    "the same engine. What an engine does once is not timed."
)


NOISE = " Pruned and random have the same shapes: what their times differ by is noise."


@final
@dataclass(frozen=True, slots=True)
class Table:
    """A heading for each column and the cells row by row; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison(report: Report) -> Table:
    """Quality and cost of each network; one column per batch size for latency, in the first engine."""
    batches = [batch for batch in _places(report) if _engine(batch) == _engine(_places(report)[0])]
    head = ("network", *_quality_head(report), "parameters", "MACs", "file", *(f"ms, batch {b}" for b in batches))
    rows = (
        (name, *_quality_cells(report, row), *_cost_cells(row, report.rows[DENSE], batches))
        for name, row in report.rows.items()
    )
    return Table(head, tuple(rows))


def _quality_head(report: Report) -> tuple[str, ...]:
    if report.rows[DENSE].accuracy is not None or not report.task:
        return ("accuracy", "loss", "ECE")
    return (*(f"{in_words(name)} {'↑' if better else '↓'}" for name, better in report.metrics.items()), "loss ↓")


def _quality_cells(report: Report, row: Row) -> tuple[str, ...]:
    if report.rows[DENSE].accuracy is not None or not report.task:
        return percent(row.accuracy, row.standard_error), number(row.loss, ".3f"), number(row.ece, ".3f")
    return (*(number(row.metrics.get(name), ".4g") for name in report.metrics), number(row.loss, ".4g"))


def numbers(report: Report) -> Table:
    """One line for each network, with its numbers as they are, for other programs to read."""
    names = ("accuracy", "loss", "ece", "samples", "params", "nonzero", "macs", "bytes")
    places = _places(report)
    rows = (
        (
            network,
            *("" if (value := getattr(row, name)) is None else str(value) for name in names),
            *(str(row.latency.get(one, "")) for one in places),
        )
        for network, row in report.rows.items()
    )
    return Table(("network", *names, *(f"ms, batch {one}" for one in places)), tuple(rows))


def speed(report: Report) -> Table:
    """Milliseconds by engine and batch size, networks beside each other; empty where one engine was timed."""
    places, networks = _places(report), [name for name, row in report.rows.items() if row.latency]
    if len(set(map(_engine, places))) < 2:
        return Table((), ())
    rows = (
        (
            _engine(one),
            one.partition(" ")[0],
            *(_latency(report.rows[name], report.rows[DENSE], one) for name in networks),
        )
        for one in places
    )
    return Table(("engine", "batch", *networks), tuple(rows))


def speed_note(report: Report) -> str:
    """What the milliseconds are, in sentences."""
    pruned, lot = report.rows[PRUNED], report.rows.get(RANDOM, Row())
    same = lot.latency and (lot.params, lot.macs) == (pruned.params, pruned.macs)
    return SPEED + (NOISE if same else "")


def comparison_note(report: Report) -> str:
    """What the numbers of the comparison are, beside what its words mean."""
    pruned, lot = report.rows[PRUNED], report.rows.get(RANDOM, Row())
    told = "± is one standard error from the number of test samples alone; another seed moves it too."
    told = "Another seed moves quality too." if report.rows[DENSE].accuracy is None else told
    if lot.latency and (lot.params, lot.macs) == (pruned.params, pruned.macs):
        told += NOISE
    if DENSE_PLUS in report.rows and pruned.latency:
        told += " The dense twin has the shapes of the dense network, and is not timed."
    return told


def _places(report: Report) -> list[str]:
    return list(dict.fromkeys(batch for row in report.rows.values() for batch in row.latency))


def _engine(place: str) -> str:
    return place.partition(" in ")[2] or EAGER


def _cost_cells(row: Row, dense: Row, batches: Iterable[str]) -> tuple[str, ...]:
    return (
        quantity(row.params),
        quantity(row.macs),
        quantity(row.bytes, "B") if row.bytes else MISSING,
        *(_latency(row, dense, batch) for batch in batches),
    )


def _latency(row: Row, dense: Row, batch: str) -> str:
    if batch not in row.latency:
        return MISSING
    factor = row.speedups(dense).get(batch)
    return f"{milliseconds(row.latency[batch]):g}" + ("" if factor is None else f" ({factor:.2f}x)")


def stays(report: Report) -> dict[str, float]:
    """What the pruned network keeps of the dense one, as fractions by name; latency only where it was measured."""
    dense, pruned = report.rows[DENSE], report.rows[PRUNED]
    kept = {
        "multiply-accumulates": 1 - share_removed(dense.macs, pruned.macs),
        "parameters": 1 - share_removed(dense.params, pruned.params),
        "non-zero parameters": 1 - share_removed(dense.nonzero, pruned.nonzero),
        "file size": 1 - share_removed(dense.bytes, pruned.bytes),
    }
    if kept["parameters"] == kept["non-zero parameters"]:
        del kept["non-zero parameters"]
    return kept | {f"latency, batch {batch}": 1 / ratio for batch, ratio in pruned.speedups(dense).items()}


def changed_groups(report: Report) -> tuple[Width, ...]:
    """The groups that could be cut, whether or not they were."""
    return tuple(width for width in report.widths if not width.pinned)


def widths(report: Report) -> Table:
    """The units of each group that could be cut, before and after."""
    rows = tuple((w.group, str(w.before), str(w.after)) for w in changed_groups(report))
    return Table(("group", "before", "after"), rows)


def pinned_groups(report: Report) -> dict[str, tuple[str, ...]]:
    """The groups that could not be cut, by the reason."""
    reasons: dict[str, tuple[str, ...]] = {}
    for width in report.widths:
        if width.pinned:
            reasons[width.pinned] = (*reasons.get(width.pinned, ()), width.group)
    return reasons


def noted_groups(report: Report) -> dict[str, tuple[str, ...]]:
    """The groups that were cut and say what that changes beside removing units, with what they say."""
    return {width.group: width.notes for width in report.widths if width.after < width.before and width.notes}


def budget(report: Report) -> Table:
    """What was asked of each plan and what it reaches, key by key; of what stood before it, for later ones."""
    rows = [_budget_rows("then " if number else "", plan) for number, plan in enumerate((report.plan, *report.later))]
    return Table(("", "asked", "reached"), tuple(itertools.chain.from_iterable(rows)))


def _budget_rows(prefix: str, plan: Plan) -> Iterator[tuple[str, ...]]:
    for key in dict.fromkeys([*plan.asked, *plan.reached]):
        yield prefix + key, text(plan.asked.get(key)), text(plan.reached.get(key))


def edits(report: Report) -> Table:
    """What the plans do beside cutting units: each masked tensor, dropped block and new link."""
    plans = (report.plan, *report.later)
    return Table(("edit", "where", "what"), tuple(itertools.chain.from_iterable(map(_edit_rows, plans))))


def _edit_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("drop", drop.block, "the block becomes its shortcut") for drop in plan.drops]
    for mask in plan.masks:
        share = percent(mask.keep.count / max(mask.keep.size, 1))
        rows.append(("mask", mask.tensor, f"{mask.keep.count:,} of {mask.keep.size:,} entries stay ({share})"))
    for link in plan.links:
        ends = f"{link.source or link.route.reads} → {link.target or link.route.joins}"
        rows.append(("link", ends, f"{link.keep.count:,} of {link.keep.size:,} connections"))
    return rows


def refit(report: Report) -> Table:
    """What a refit did to each layer; no rows where there was none."""
    rows = [(fit["tensor"], *_fit_cells(fit)) for fit in report.refit.get("fits", ())]
    return Table(("layer", "fitted", "error on samples", "error on those left out"), tuple(rows))


def _fit_cells(fit: Mapping[str, Any]) -> tuple[str, str, str]:
    if fit["reason"]:
        return f"left as it is: {fit['reason']}", MISSING, MISSING
    how = f"ridge {fit['ridge']:g}" if fit["freedom"] == "ridge" else fit["freedom"]
    seen, held = (f"{fit[f'{part}before']:.2g} → {fit[f'{part}after']:.2g}" for part in ("", "held_"))
    return how, seen, held


def refit_note(report: Report) -> str:
    """What a refit took, and what its errors are, in a sentence."""
    told = report.refit
    return (
        f"After the cut, before training: fitted on {told['samples']:,} training images in {told['seconds']:.1f} s, "
        f"without labels; {told['left_out']:,} more chose. Errors are squared, as shares of the variance of what the "
        "dense layer says."
    )


def verification(report: Report) -> Table:
    """Largest differences between outputs that should agree."""
    rows = tuple((name, _difference(error)) for name, error in report.verification.items())
    return Table(("check", "largest difference"), rows)


def _difference(error: float | None) -> str:
    return "none" if error == 0 else number(error, ".1e", "not made")


def provenance(report: Report) -> Table:
    """Where the result comes from, key by key; the command that makes it again is not told among them."""
    told = ((key, text(value)) for key, value in report.provenance.items() if key != "again")
    return Table(("", ""), tuple(told))


def recipe_rows(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recipe's sections without what was left empty."""
    told = {name: table for name, table in recipe.items() if isinstance(table, dict)}
    rows = {
        name: [(key, text(value)) for key, value in table.items() if value not in ("", {}, [], (), None)]
        for name, table in told.items()
    }
    return [(name, found) for name, found in rows.items() if found]


def percent(share: float | None, error: float | None = None) -> str:
    """A share as percent, with its standard error: ``89.6 ± 0.7 %``."""
    if share is None:
        return MISSING
    return f"{100 * share:.1f} %" if error is None else f"{100 * share:.1f} ± {100 * error:.1f} %"


def number(value: float | None, form: str, missing: str = MISSING) -> str:
    """A number in this form, or ``missing`` where there is none."""
    return missing if value is None else format(value, form)


def quantity(value: float, unit: str = "") -> str:
    """A count in three digits with a unit.

    >>> quantity(40_551_680), quantity(9_970, "B"), quantity(80)
    ('40.6 M', '9.97 kB', '80')
    """
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def text(value: Any) -> str:
    """A value of the provenance or the budget as people write it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return f"{value:,}" if isinstance(value, int) and abs(value) > 9999 else str(value)
