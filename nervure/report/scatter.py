"""A chart of settings by cost and quality: an SVG that stands alone, told apart by shapes and dashes, not by colour."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nervure.core.markup import html
from nervure.report.charts import SHAPES, nice_ticks, words_within

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, ROW = 460, 300, 50, 14, 30, 42, 20
LETTERS, ACROSS = 24, 58
COLOURS = ("#0072b2", "#b84a00", "#00795a", "#a0527f", "#7a6100", "#3f51a3", "#8a3324", "#4a6670")
DARK = ("#63b8ec", "#f2955a", "#4fd0a8", "#e0a0c6", "#d9bf4f", "#a9b6f0", "#e59a8a", "#a8c2cc")
DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 3", "12 4", "1 3", "6 2 1 2 1 2")
STYLE = (
    ".sc text{font:12.5px system-ui,sans-serif;fill:#333}.sc .t{font-weight:600}.sc .g{stroke:#ddd}.sc .r{fill:none;"
    "stroke:#222;stroke-width:1.8}.sc .f{fill:none;stroke:#8a8a8a;stroke-width:7;stroke-opacity:.3;"
    "stroke-linejoin:round}.sc .l{fill:none;stroke-width:1.6}.sc .s{fill-opacity:.35;stroke-opacity:.6}"
    + "".join(f".sc .c{i}{{fill:{c};stroke:{c}}}" for i, c in enumerate(COLOURS))
    + "@media screen and (prefers-color-scheme:dark){.sc text{fill:#ddd}.sc .g{stroke:#444}.sc .r{stroke:#eee}"
    + "".join(f".sc .c{i}{{fill:{c};stroke:{c}}}" for i, c in enumerate(DARK))
    + "}"
)


class Mark(NamedTuple):
    """One point: the series it belongs to, where it stands, how far its bar goes to each side, and what to say."""

    series: str
    x: float
    y: float
    error: float = 0.0
    told: str = ""


class _Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scatter_chart(
    marks: Iterable[Mark],
    *,
    title: str,
    x_label: str,
    front: Sequence[tuple[float, float]] = (),
    ring: tuple[float, float] | None = None,
    looks: Sequence[str] = (),
    single: Sequence[Mark] = (),
    ringed: str = "suggestion (knee)",
) -> str:
    """An SVG with one series of marks for each name, joined in the order given, and a legend below.

    Args:
        marks: the points; those that are no numbers are left out.
        title: above the chart, and read out by screen readers.
        x_label: below the x axis.
        front: points joined by a broad pale line behind the others.
        ring: a point that is ringed as the suggestion.
        single: small marks beside those of the same series, such as the single values behind a mean.
        ringed: what the legend calls the point that is ringed.
        looks: names of the series in the order of their looks, so that several charts agree; empty: as they come.

    Returns:
        The ``<svg>`` element, or an empty text where there is nothing to draw.
    """
    shown = [mark for mark in marks if math.isfinite(mark.x) and math.isfinite(mark.y)]
    if not shown:
        return ""
    names = [name for name in (looks or dict.fromkeys(m.series for m in shown)) if any(m.series == name for m in shown)]
    order = list(looks or names)
    small = [m for m in single if math.isfinite(m.x) and math.isfinite(m.y) and m.series in order]
    xs = nice_ticks(min(m.x for m in (*shown, *small)), max(m.x for m in (*shown, *small)))
    ys = nice_ticks(min(m.y - m.error for m in (*shown, *small)), max(m.y + m.error for m in (*shown, *small)))
    across, down = _Axis(xs[0], xs[-1], LEFT, WIDTH - RIGHT), _Axis(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<text class="t" x="6" y="16">{words_within(title, ACROSS)}</text>',
        *_grid(across, down, xs, ys, x_label),
    ]
    if front:
        parts.append(f'<polyline class="f" points="{_path(across, down, front)}"/>')
    for name in names:
        parts += _series(across, down, [m for m in shown if m.series == name], order.index(name))
    parts += [_small(across.at(m.x), down.at(m.y), order.index(m.series), m.told) for m in small]
    if ring is not None:
        parts.append(f'<circle class="r" cx="{across.at(ring[0]):.1f}" cy="{down.at(ring[1]):.1f}" r="9.5"/>')
    legend, height = _legend([(name, order.index(name)) for name in names], bool(front), "" if ring is None else ringed)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + height}" role="img" class="sc chart" '
        f'aria-label="{html(title)}"><title>{html(title)}</title><style>{STYLE}</style>'
        f"{''.join(parts)}{legend}</svg>\n"
    )


def _grid(across: _Axis, down: _Axis, xs: Sequence[float], ys: Sequence[float], label: str) -> list[str]:
    lines = [
        f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down.at(y):.1f}" y2="{down.at(y):.1f}"/>'
        f'<text x="{LEFT - 7}" y="{down.at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ys
    ]
    lines += [
        f'<line class="g" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}" x1="{across.at(x):.1f}" '
        f'x2="{across.at(x):.1f}"/>'
        f'<text x="{across.at(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>'
        for x in xs
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*lines, f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{html(label)}</text>']


def _series(across: _Axis, down: _Axis, marks: Sequence[Mark], look: int) -> list[str]:
    line = [(mark.x, mark.y) for mark in marks]
    parts = [_line(_path(across, down, line), look)] if len(line) > 1 else []
    for mark in marks:
        x, y = across.at(mark.x), down.at(mark.y)
        low, high = down.at(mark.y - mark.error), down.at(mark.y + mark.error)
        bar = f"M{x:.1f} {high:.1f}V{low:.1f}M{x - 3:.1f} {high:.1f}h6M{x - 3:.1f} {low:.1f}h6" if mark.error else ""
        parts.append(f'<path class="l c{look % len(COLOURS)}" d="{bar}"/>' if bar else "")
        parts.append(_mark(x, y, look, mark.told))
    return parts


def _path(across: _Axis, down: _Axis, points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across.at(x):.1f},{down.at(y):.1f}" for x, y in points)


def _line(points: str, look: int) -> str:
    # Beyond eight series the dashes move on against the shapes, so that no two look alike.
    dash = DASHES[(look + look // len(DASHES)) % len(DASHES)]
    return f'<polyline class="l c{look % len(COLOURS)}" style="fill:none" stroke-dasharray="{dash}" points="{points}"/>'


def _mark(x: float, y: float, look: int, told: str = "") -> str:
    title = f"<title>{html(told)}</title>" if told else ""
    shape = SHAPES[look % len(SHAPES)]
    return f'<path class="c{look % len(COLOURS)}" transform="translate({x:.1f} {y:.1f})" d="{shape}">{title}</path>'


def _small(x: float, y: float, look: int, told: str) -> str:
    title = f"<title>{html(told)}</title>" if told else ""
    return f'<circle class="s c{look % len(COLOURS)}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{title}</circle>'


def _legend(names: Sequence[tuple[str, int]], front: bool, ringed: str) -> tuple[str, int]:
    """The legend's elements, two to a row, and how high it is."""
    told = [(_line("0,0 26,0", look) + _mark(13, 0, look), name) for name, look in names]
    told += [('<polyline class="f" points="0,0 26,0"/>', "Pareto front")] if front else []
    told += [('<circle class="r" cx="13" cy="0" r="8"/>', ringed)] if ringed else []
    parts = []
    for number, (picture, name) in enumerate(told):
        x, y = LEFT - 40 + (WIDTH - LEFT) / 2 * (number % 2), HEIGHT + ROW * (number // 2) + 10
        words = f'<text x="34" y="4">{words_within(name, LETTERS)}</text>'
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">{picture}{words}</g>')
    return "".join(parts), ROW * math.ceil(len(told) / 2) + 6
