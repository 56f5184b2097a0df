"""Pictures of rewiring: how many connections there are, how many went and came, and how alike several runs are."""

from collections.abc import Mapping, Sequence
from typing import Any

from nervure.core.markup import html
from nervure.report.charts import Line, line_chart
from nervure.report.run_report import Report

CELL, LEFT, TOP, FOOTNOTE = 46, 150, 24, 270


def events_chart(events: Sequence[Mapping[str, Any]]) -> str:
    """Density, and what an event exchanges, by step: an SVG element, or an empty text where there are no events.

    Args:
        events: as in ``History.to_json()["events"]``, or the lines of a log.
    """
    return line_chart(
        event_lines(events), title="Connections by step of training", x_label="steps of training", unit=" %"
    )


def event_lines(events: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """Percent of the places that are taken, that went and that came, by step; data for any plot."""
    if not any(event["kind"] != "start" for event in events):
        return {}
    changes = [event for event in events if event["kind"] == "rewire"]
    lines: dict[str, Line] = {"density": [(event["step"], 100 * event["density"]) for event in events]}
    for name in ("dropped", "grown"):
        line = [(event["step"], 100 * event[name] / event["weights"]) for event in changes]
        lines |= {name: line} if any(share for _, share in line) else {}
    return lines


def rewiring_chart(report: Report) -> str:
    """The chart of a report's run."""
    return events_chart(report.evidence.get("events", []))


def similarity_chart(names: Sequence[str], overlaps: Sequence[Sequence[float]], chance: float) -> str:
    """How alike runs are, each with each: an SVG of squares, darker where two share more than chance gives.

    Args:
        names: of the runs.
        overlaps: [runs][runs], each in [0, 1]; as of :func:`nervure.similarity`.
        chance: the overlap that is white.
    """
    width, height = LEFT + max(CELL * len(names) + 8, FOOTNOTE), TOP + CELL * len(names) + 24
    cells = []
    for y, row in enumerate(overlaps):
        cells.append(
            f'<text class="tick" x="{LEFT - 8}" y="{TOP + CELL * (y + 0.5) + 4:.0f}" text-anchor="end">'
            f"{html(names[y])}</text>"
        )
        for x, overlap in enumerate(row):
            shade = min(1.0, max(0.0, (overlap - chance) / (1 - chance))) if chance < 1 else 0.0
            place = f'x="{LEFT + CELL * x}" y="{TOP + CELL * y}"'
            middle = f'x="{LEFT + CELL * (x + 0.5):.0f}" y="{TOP + CELL * (y + 0.5) + 4:.0f}"'
            kind = "tick on" if shade > 0.6 else "tick"
            cells.append(
                f'<rect class="cell" {place} width="{CELL - 2}" height="{CELL - 2}" fill-opacity="{shade:.2f}"/>'
                f'<text class="{kind}" {middle} text-anchor="middle">{100 * overlap:.0f}</text>'
            )
    note = f'<text class="tick" x="{LEFT}" y="{height - 6}">shared connections in %; chance {100 * chance:.0f} %</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="similarity of runs" class="similarity"><title>similarity of runs</title>'
        f"{''.join(cells)}{note}</svg>"
    )
