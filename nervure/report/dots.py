"""A chart of dots with error bars, one line each: an SVG that stands alone, in light and dark."""

from collections.abc import Sequence
from typing import NamedTuple

from nervure.core.markup import html
from nervure.report.charts import nice_ticks, words_within

# As wide as the other charts of a page, so that its words are as large on a telephone.
WIDTH, LABEL, RIGHT, ROW, TOP, BOTTOM = 460, 150, 18, 22, 34, 30
LETTERS, ACROSS = 21, 58
STYLE = (
    ".do text{font:12.5px system-ui,sans-serif;fill:#333}.do .t{font-weight:600}.do .g{stroke:#ddd}.do .z{stroke:#888}"
    ".do .e{stroke:#2a6f97;stroke-width:2}.do .d{fill:#2a6f97}.do .h{fill:#777;font-style:italic}"
    "@media screen and (prefers-color-scheme:dark){.do text{fill:#ddd}.do .g{stroke:#444}.do .e{stroke:#7cc4ef}"
    ".do .d{fill:#7cc4ef}.do .h{fill:#999}}"
)


class Dot(NamedTuple):
    """One line of the chart: its name, the part it belongs to, its value, and the half-width of its bar."""

    name: str
    part: str
    value: float
    error: float


def dot_chart(dots: Sequence[Dot], *, title: str) -> str:
    """An SVG with one line per dot, grouped by part in the order given; zero is marked.

    Args:
        dots: what to draw, one at least.
        title: above the chart, and read out by screen readers.
    """
    low = min(0.0, *(dot.value - dot.error for dot in dots))
    high = max(0.0, *(dot.value + dot.error for dot in dots))
    ticks = nice_ticks(low, high)
    parts = list(dict.fromkeys(dot.part for dot in dots))
    height = TOP + ROW * (len(dots) + len(parts)) + BOTTOM

    def x(value: float) -> float:
        return LABEL + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - LABEL - RIGHT)

    lines = [f'<text class="t" x="8" y="18">{words_within(title, ACROSS)}</text>']
    for tick in ticks:
        kind = "z" if tick == 0 else "g"
        lines.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>')
    y = TOP + ROW / 2
    for part in parts:
        lines.append(f'<text class="h" x="8" y="{y + 4:.0f}">{html(part)}</text>')
        y += ROW
        for dot in (d for d in dots if d.part == part):
            lines.append(
                f'<text x="{LABEL - 10}" y="{y + 4:.0f}" text-anchor="end">{words_within(dot.name, LETTERS)}</text>'
            )
            left, right = x(dot.value - dot.error), x(dot.value + dot.error)
            lines.append(f'<line class="e" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.0f}" y2="{y:.0f}"/>')
            lines.append(f'<circle class="d" cx="{x(dot.value):.1f}" cy="{y:.0f}" r="4"/>')
            y += ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" class="do chart" '
        f'aria-label="{html(title)}"><title>{html(title)}</title><style>{STYLE}</style>{"".join(lines)}</svg>\n'
    )
