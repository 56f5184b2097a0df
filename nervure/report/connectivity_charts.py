"""Pictures of connectivity: who listens to whom, and how far each layer can be pruned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nervure.core.markup import html
from nervure.report.run_report import Report
from nervure.report.tables import Table

LEVELS = 6
SIZE = 168
WIDTH, HEIGHT, MARGIN = 200, 96, 22
STYLE = (
    "body{font:14px system-ui;margin:2em}main{display:flex;flex-wrap:wrap;gap:1.5em}figure{margin:0}"
    ".matrix rect{fill:#f3f4f6}.matrix path{fill:#1d4ed8}"
)


class Picture(NamedTuple):
    """One layer or group: its name, a line below it, and the drawing."""

    name: str
    caption: str
    svg: str


def matrices(report: Report) -> list[Picture]:
    """For each layer a map of its connections, children down and parents across; darker is stronger."""
    return pictures_of(report.evidence)


def connectivity_page(found: Mapping[str, Any]) -> str:
    """Connectivity as one HTML page that needs nothing but itself.

    Args:
        found: plain data, as of ``Companion.to_json()`` or ``Connectivity.to_json()``.
    """
    figures = "\n".join(
        f"<figure>{picture.svg}<figcaption>{html(picture.name)}<br>{html(picture.caption)}</figcaption></figure>"
        for picture in pictures_of(found)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Connectivity</title><style>{STYLE}</style>'
        f"<h1>Connectivity</h1><p>Children down, parents across, darker is stronger; white is pruned or silent. "
        f"{int(found.get('samples', 0))} samples.</p><main>{figures}</main></html>"
    )


def pictures_of(found: Mapping[str, Any]) -> list[Picture]:
    """What :func:`matrices` draws, of plain data."""
    pictures = []
    for name, rows in found.get("layers", {}).items():
        if len(rows[0]) > 1:
            shape = found.get("sizes", {}).get(name, [len(rows), len(rows[0])])
            caption = f"{shape[0]} children, {shape[1]} parents"
            pictures.append(Picture(name.removesuffix(".weight"), caption, _matrix(name, rows)))
    return pictures


def limits(report: Report) -> list[Picture]:
    """For each limit its curve, where it lies, and how much went."""
    gone = _gone(report)
    return [
        Picture(
            name.removesuffix(".weight"),
            f"limit {_share(limit['upper'])}, went {_share(gone.get(name, 0.0))}",
            _curve(name, limit, gone.get(name, 0.0)),
        )
        for name, limit in report.evidence.get("limits", {}).items()
    ]


def limit_table(report: Report) -> Table:
    """How much of each may go, and how much went."""
    gone, limits_told = _gone(report), report.evidence.get("limits", {})
    rows = ((n.removesuffix(".weight"), _share(v["upper"]), _share(gone.get(n, 0.0))) for n, v in limits_told.items())
    return Table(("", "may go", "went"), tuple(rows))


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def protected_units(report: Report) -> dict[str, str]:
    """The protected units of each group, counted from 0."""
    return {name: ", ".join(map(str, units)) for name, units in report.evidence.get("protected", {}).items() if units}


def _gone(report: Report) -> dict[str, float]:
    gone = {cut.group: 1 - cut.keep.count / cut.keep.size for cut in report.plan.cuts}
    return gone | {mask.tensor: 1 - mask.keep.count / mask.keep.size for mask in report.plan.masks}


def _matrix(name: str, rows: Sequence[Sequence[float]]) -> str:
    """Cells of one level are one path: ten thousand rectangles would be a slow page."""
    cell = SIZE / max(len(rows), len(rows[0]))
    greatest = max(max(row) for row in rows) or 1.0
    levels: dict[int, list[str]] = {}
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            # The square root: a few connections are so strong that all others would look alike.
            level = math.ceil(LEVELS * math.sqrt(max(value, 0.0) / greatest) - 0.5)
            if level:
                levels.setdefault(level, []).append(f"M{x} {y}h1v1h-1z")
    paths = "".join(
        f'<path fill-opacity="{level / LEVELS:.2f}" d="{"".join(cells)}"/>' for level, cells in sorted(levels.items())
    )
    width, height = cell * len(rows[0]), cell * len(rows)
    return (
        f'<svg viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="connectivity of {html(name)}" class="matrix"><title>{html(name)}</title>'
        f'<rect width="100%" height="100%"/><g transform="scale({cell:.4f})">{paths}</g></svg>'
    )


def _curve(name: str, limit: Mapping[str, Any], gone: float) -> str:
    right, bottom = WIDTH - 8, HEIGHT - MARGIN

    def place(share: float, quality: float) -> tuple[float, float]:
        return 8 + share * (right - 8), 6 + (1 - quality) * (bottom - 6)

    points = " ".join(
        f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in zip(limit["shares"], limit["quality"], strict=True))
    )
    upper, went = place(limit["upper"], 0)[0], place(gone, 0)[0]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="limit of {html(name)}" class="limit"><title>{html(name)}</title>'
        f'<rect class="beyond" x="{upper:.1f}" y="6" width="{right - upper:.1f}" height="{bottom - 6}"/>'
        f'<line class="grid" x1="8" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<line class="went" x1="{went:.1f}" x2="{went:.1f}" y1="6" y2="{bottom}"/>'
        f'<polyline class="line dense" points="{points}"/>'
        f'<text class="tick" x="8" y="{HEIGHT - 6}">0</text>'
        f'<text class="tick" x="{right}" y="{HEIGHT - 6}" text-anchor="end">100 %</text></svg>'
    )
