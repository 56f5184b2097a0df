"""The networks of a run as points of cost and quality, with the front: those that no other beats in both."""

import math
from collections.abc import Mapping

from nervure.evaluation.metrics import wilson_interval
from nervure.report.front import front
from nervure.report.outcome import QualityScale
from nervure.report.run_report import DENSE, DENSE_PLUS, PRUNED, RANDOM, Report, Row
from nervure.report.scatter import Mark, scatter_chart

COSTS: Mapping[str, str] = {"macs": "multiply-accumulates", "nonzero": "parameters that are not zero"}
NOTE = "On the broad line, the Pareto front, no network is beaten: none of the others costs as little and is as good."
BARS = "Bars are 95 % intervals (Wilson) that so many test samples leave open; another seed moves points too."


def quality_chart(report: Report) -> str:
    """Quality against cost of all networks of a run; an SVG element, empty where quality was not measured."""
    scale, cost = _scale(report), _cost(report)
    whole = getattr(report.rows[DENSE], cost)
    found = {name: (100 * getattr(row, cost) / max(whole, 1), _value(scale, row)) for name, row in report.rows.items()}
    spots = [(x, scale.rank(y)) for x, y in found.values()]
    if sum(math.isfinite(y) for _, y in spots) < 2:
        return ""
    marks = [
        Mark(name, x, scale.factor * y, _reach(scale, report.rows[name]), f"{name}: {scale.show(y)} at {x:.1f} %")
        for name, (x, y) in found.items()
    ]
    return scatter_chart(
        marks,
        title=f"{scale.axis[:1].upper()}{scale.axis[1:]}",
        x_label=f"{COSTS[cost]}, % of the dense network",
        front=[(marks[i].x, marks[i].y) for i in front(spots)],
        # In the colours that these networks have on the whole page.
        looks=[*dict.fromkeys((DENSE, PRUNED, DENSE_PLUS, RANDOM, *found))],
    )


def quality_note(report: Report) -> str:
    """How to read the chart."""
    return f"{NOTE} {BARS}" if _scale(report).is_accuracy else NOTE


def _scale(report: Report) -> QualityScale:
    if report.rows[DENSE].accuracy is not None or not report.task:
        return QualityScale()
    name, better = next(iter(report.metrics.items()), ("loss", False))
    return QualityScale(name, better)


def _value(scale: QualityScale, row: Row) -> float:
    if scale.name == "accuracy" and row.accuracy is not None:
        return row.accuracy
    value = row.metrics.get(scale.name, row.loss if scale.name == "loss" else None)
    return math.nan if value is None else value


def _reach(scale: QualityScale, row: Row) -> float:
    """How far the bar goes to each side, as it is shown."""
    if not scale.is_accuracy or row.accuracy is None or not row.samples:
        return 0.0
    low, high = wilson_interval(round(row.accuracy * row.samples), row.samples)
    return scale.factor * (high - low) / 2


def _cost(report: Report) -> str:
    """What tells the networks apart: masks leave every multiply-accumulate."""
    return "macs" if len({row.macs for row in report.rows.values()}) > 1 else "nonzero"
