"""How an amount was looked for, as a table and a verdict."""

import math

from nervure.evaluation.tolerance import AmountSearch, Attempt, Tolerance
from nervure.report.front import front
from nervure.report.outcome import QualityScale
from nervure.report.quality_chart import COSTS
from nervure.report.run_report import DENSE, Report, in_words
from nervure.report.scatter import Mark, scatter_chart
from nervure.report.tables import MISSING, Table, quantity


def read_search(report: Report) -> AmountSearch | None:
    """How the amount of a run was looked for; None where its recipe told it."""
    return AmountSearch.from_json(report.search) if report.search else None


def quality(told: Tolerance, value: float | None) -> str:
    """A value of the metric, as reports show it."""
    return MISSING if value is None else QualityScale(told.metric, told.higher_is_better).show(value)


def search_table(search: AmountSearch) -> Table:
    """Each amount that was tried: what came of it, what it lost and the interval of that, and what it costs."""
    told = search.tolerance
    head = (
        "keep",
        in_words(told.metric),
        "lost",
        f"{100 * told.confidence:.0f} % interval",
        "non-zero",
        "MACs",
        "within",
    )
    return Table(head, tuple(_cells(told, one) for one in search.path))


def search_chart(report: Report) -> str:
    """What was tried, as quality against cost with the front; an SVG element, empty where nothing was looked for."""
    search = read_search(report)
    if search is None:
        return ""
    told, dense = search.tolerance, report.rows[DENSE]
    scale = QualityScale(told.metric, told.higher_is_better)
    cost = "macs" if len({one.macs for one in search.path if one.params}) > 1 else "nonzero"
    tried = sorted((one for one in search.path if one.quality is not None), key=lambda one: getattr(one, cost))
    marks = [Mark(DENSE, 100.0, scale.factor * told.dense, told=f"dense: {quality(told, told.dense)}")]
    marks += [_mark(told, scale, one, 100 * getattr(one, cost) / max(getattr(dense, cost), 1)) for one in tried]
    chosen = next((mark for mark, one in zip(marks[1:], tried, strict=True) if one is search.found), None)
    return scatter_chart(
        marks,
        title=f"{scale.axis[:1].upper()}{scale.axis[1:]}, held out, not trained again",
        x_label=f"{COSTS[cost]}, % of the dense network",
        front=[(marks[i].x, marks[i].y) for i in front([(mark.x, scale.rank(mark.y)) for mark in marks])],
        ring=None if chosen is None else (chosen.x, chosen.y),
        ringed="chosen",
    )


def _mark(told: Tolerance, scale: QualityScale, one: Attempt, x: float) -> Mark:
    y = math.nan if one.quality is None else scale.factor * one.quality
    return Mark("tried", x, y, told=f"keep {one.keep:.4g}: {quality(told, one.quality)}")


def _cells(told: Tolerance, one: Attempt) -> tuple[str, ...]:
    lost = one.lost
    loss = (
        (MISSING, MISSING)
        if lost is None
        else (told.tell(lost.value), f"{100 * lost.low:.2f} to {100 * lost.high:.2f}")
    )
    costs = (quantity(one.nonzero), quantity(one.macs)) if one.params else (MISSING, MISSING)
    within = one.reason or ("yes" if one.is_inside else "no")
    return (f"{one.keep:.4g}", quality(told, one.quality), *loss, *costs, within)


def verdict(search: AmountSearch) -> str:
    """What was found, in a sentence."""
    told, found = search.tolerance, search.found
    dense = (
        f"{in_words(told.metric)} {quality(told, told.dense)} of the dense network on {told.samples:,} samples held out"
    )
    if found is None or found.lost is None:
        how = "surely within" if told.is_strict else "within"
        return f"Nothing smaller is {how} {told.tell(told.value)} ({dense})."
    interval = f"{100 * told.confidence:.0f} % interval {100 * found.lost.low:.2f} to {100 * found.lost.high:.2f}"
    sure = "and so is the interval" if search.is_sure else "but the interval reaches beyond"
    return (
        f"keep={found.keep:.4g} is the smallest found within {told.tell(told.value)}: it loses "
        f"{told.tell(found.lost.value)} ({interval}; {dense}), {sure}."
    )
