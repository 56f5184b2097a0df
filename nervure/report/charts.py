"""Charts as small SVG texts: no plotting library, colours from the page's style, so they follow dark mode and print."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nervure.core.markup import html
from nervure.report.run_report import DENSE, DENSE_PLUS, Point

Line = Sequence[tuple[float, float]]

# As wide as a column of the page: on a telephone, where it shrinks by a third, its words can still be read.
WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 60, 68, 14, 38
LABEL_GAP = 15.0
# Marks within a circle of radius 5.6 about the middle, one for each line or series.
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4.2 -4.2h8.4v8.4h-8.4z",
    "M0 -5.2L5 4H-5z",
    "M0 -5.6L5.2 0L0 5.6L-5.2 0z",
    "M0 5.2L5 -4H-5z",
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
    "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
    "M-2.4 -5h4.8L5 -1.6L3.6 4.6H-3.6L-5 -1.6z",
)


class Frame(NamedTuple):
    """The rectangle of data that a chart shows."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Where ``value`` stands across the chart, in SVG units."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Where ``value`` stands down the chart, in SVG units."""
        return TOP + (self.y1 - value) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def line_chart(lines: Mapping[str, Line], *, title: str, x_label: str, unit: str = "") -> str:
    """An SVG line chart; each line has its own colour, dash and marker and its name at its end.

    Args:
        lines: points (x, y) by name; lines without points are left out.
        title: read out by screen readers.
        x_label: below the x axis.
        unit: after the numbers of the y axis.

    Returns:
        The ``<svg>`` element, or an empty text where there is nothing to draw.
    """
    drawn = {name: points for name, points in lines.items() if points}
    if not drawn:
        return ""
    frame = _frame([point for points in drawn.values() for point in points])
    parts = [*_grid(frame, unit), *_x_axis(frame, x_label)]
    late = {name: points[-1][1] for name, points in drawn.items() if points[-1][0] >= frame.x1}
    labels = _spread({name: frame.y(height) for name, height in late.items()})
    for number, (name, points) in enumerate(drawn.items()):
        parts += _line(frame, name, points, labels.get(name, 0.0), SHAPES[number % len(SHAPES)])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html(title)}" class="chart">'
        f"<title>{html(title)}</title>{''.join(parts)}</svg>"
    )


def accuracy_chart(curves: Mapping[str, Sequence[Point]]) -> str:
    """Validation accuracy of every network by epoch; an SVG element, empty where nothing was noted."""
    title, below = "Validation accuracy by epoch", "epochs of training, all together"
    return line_chart(accuracy_lines(curves), title=title, x_label=below, unit=" %")


def loss_chart(curves: Mapping[str, Sequence[Point]]) -> str:
    """Training loss of every network by epoch; an SVG element, empty where nothing was noted."""
    title, below = "Training loss by epoch", "epochs of training, all together"
    return line_chart(loss_lines(curves), title=title, x_label=below)


def validation_loss_chart(curves: Mapping[str, Sequence[Point]]) -> str:
    """Validation loss of every network by epoch; an SVG element, empty where labels are classes."""
    title, below = "Validation loss by epoch", "epochs of training, all together"
    return line_chart(validation_loss_lines(curves), title=title, x_label=below)


def accuracy_lines(curves: Mapping[str, Sequence[Point]]) -> dict[str, Line]:
    """Validation accuracy in percent over all epochs; the other curves go on where that of the dense network ends."""
    return _lines({n: [(p.epoch, p.accuracy) for p in c] for n, c in curves.items()}, 100.0)


def loss_lines(curves: Mapping[str, Sequence[Point]]) -> dict[str, Line]:
    """Training loss over all epochs; the other curves go on where that of the dense network ends."""
    return _lines({n: [(p.epoch, p.loss) for p in c] for n, c in curves.items()}, 1.0)


def validation_loss_lines(curves: Mapping[str, Sequence[Point]]) -> dict[str, Line]:
    """Validation loss over all epochs; the other curves go on where that of the dense network ends."""
    return _lines({n: [(p.epoch, p.validation_loss) for p in c] for n, c in curves.items()}, 1.0)


def _lines(curves: Mapping[str, Sequence[tuple[int, float | None]]], scale: float) -> dict[str, Line]:
    first = max((epoch for epoch, _ in curves.get(DENSE, ())), default=0)
    lines: dict[str, Line] = {
        name: [
            (epoch + (0 if name == DENSE else first), scale * y)
            for epoch, y in points
            if y is not None and math.isfinite(y)
        ]
        for name, points in curves.items()
    }
    if lines.get(DENSE) and lines.get(DENSE_PLUS):
        # The same network, trained on: one line. The cut ones begin anew.
        lines[DENSE_PLUS] = [lines[DENSE][-1], *lines[DENSE_PLUS]]
    return lines


def slug(name: str) -> str:
    """A row's name as a CSS class: ``dense+`` is ``dense-plus``."""
    return "".join(c if c.isalnum() else "-" for c in name.lower().replace("+", "-plus")).strip("-")


def words_within(name: str, letters: int) -> str:
    """SVG of a name where there is room for so many letters: the whole of a longer one is shown by a pointer on it."""
    shown = name if len(name) <= letters else f"{name[: letters - 1]}…"
    return f"{html(shown)}<title>{html(name)}</title>"


def file_names(stem: str, names: Iterable[str]) -> dict[str, str]:
    """For each name that of its chart's file: within the folder, whatever the name, and of its own."""
    found: dict[str, str] = {}
    for name in names:
        wanted = file = f"{stem}-{slug(name)[:60]}"
        while f"{file}.svg" in found.values():
            file = f"{wanted}-{len(found)}"
        found[name] = f"{file}.svg"
    return found


def _frame(points: Iterable[tuple[float, float]]) -> Frame:
    listed = list(points)
    xs, ys = [x for x, _ in listed], [y for _, y in listed]
    ticks = nice_ticks(min(ys), max(ys))
    return Frame(min(xs), max(*xs, min(xs) + 1), ticks[0], ticks[-1])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover ``low .. high``.

    >>> nice_ticks(71.2, 89.9)
    [70.0, 75.0, 80.0, 85.0, 90.0]
    """
    size = max(abs(low), abs(high))
    # Below rounding a difference is none, and a step of it would not move the numbers.
    span = high - low if high - low > 1e-9 * size else size
    span = max(span, 1e-12)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def _grid(frame: Frame, unit: str) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(v):.1f}" y2="{frame.y(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{frame.y(v) + 4:.1f}" text-anchor="end">{v:g}{html(unit)}</text>'
        for v in nice_ticks(frame.y0, frame.y1)
        if frame.y0 <= v <= frame.y1
    ]


def _x_axis(frame: Frame, label: str) -> list[str]:
    whole = [v for v in nice_ticks(frame.x0, frame.x1) if v == round(v) and frame.x0 <= v <= frame.x1]
    ticks = [
        f'<text class="tick" x="{frame.x(v):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{v:g}</text>'
        for v in whole
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *ticks,
        f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{html(label)}</text>',
    ]


def _line(frame: Frame, name: str, points: Line, label_y: float, shape: str) -> list[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    kind = slug(name)
    end_x, end_y = places[-1]
    # A line that ends early has its name at its end: at the margin it would seem to go on.
    early = end_x < frame.x(frame.x1) - 1
    falls = len(places) > 1 and places[-2][1] < end_y
    beside = 17 if falls else -9
    # At the left its name would run into the numbers of the axis.
    side = "start" if end_x < LEFT + LABEL_GAP * 4 else "end"
    x, y, anchor = (end_x, end_y + beside, side) if early else (end_x + 8, label_y + 4, "start")
    dots = "".join(
        f'<path class="dot {kind}" transform="translate({a:.1f} {b:.1f}) scale(.7)" d="{shape}"/>' for a, b in places
    )
    return [
        f'<polyline class="line {kind}" points="{path}"/>{dots}',
        f'<text class="name {kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html(name)}</text>',
    ]


def _spread(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights near those wanted, far enough apart that names at line ends do not overlap."""
    placed: dict[str, float] = {}
    floor = -math.inf
    for name in sorted(wanted, key=lambda n: wanted[n]):
        placed[name] = floor = max(wanted[name], floor + LABEL_GAP)
    over = max(0.0, floor - (HEIGHT - BOTTOM))
    return {name: y - over for name, y in placed.items()}
