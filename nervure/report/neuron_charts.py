"""A picture of a network's units, layer by layer: which are alive, and how much comes through each."""

import math
from collections.abc import Sequence

import numpy as np

from nervure.analysis.connectivity import Connectivity, LayerPaths, LayerUnits
from nervure.core.markup import html
from nervure.report.html import page
from nervure.report.tables import percent, quantity

LEVELS = 6
WIDTH, LABEL, FIGURES, ROW, TOP, FOOT = 900, 210, 150, 20, 44, 30
CELLS = 180
STYLE = (
    ".u text{font:12px system-ui,sans-serif;fill:#333}.u .t{font-weight:600}.u .s{fill:#666}.u .b{fill:#eceae4}"
    ".u .c{fill:#1f4e79}.u .x{stroke:#b84a00;stroke-width:1.4;fill:none}"
    "@media screen and (prefers-color-scheme:dark){.u text{fill:#ddd}.u .s{fill:#aaa}.u .b{fill:#2b3031}"
    ".u .c{fill:#8ecbf5}.u .x{stroke:#f2955a}}"
)


def circuit_picture(found: Connectivity, *, title: str) -> str:
    """An SVG with one strip per layer; it stands alone, and needs no colour to be read.

    A cell is a unit, or some of them side by side in wide layers: the darker, the more of the directed heat of its
    layer comes through; a slash says that all its units are dead.

    Args:
        found: what :func:`nervure.connectivity` made.
        title: above the picture, and read out by screen readers.
    """
    layers, height = found.units, TOP + ROW * len(found.units) + FOOT
    parts = [f'<text class="t" x="8" y="18">{html(title)}</text>', _heads()]
    for number, (row, units) in enumerate(zip(found.layers, layers, strict=True)):
        parts.append(_strip(row, units, TOP + ROW * number))
    legend = "stronger: more heat comes through; /: dead; a line: nothing comes through"
    parts.append(f'<text class="s" x="{LABEL}" y="{height - 10}">{legend}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" class="u" '
        f'aria-label="{html(title)}"><title>{html(title)}</title><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def connectivity_page(found: Connectivity, name: str) -> str:
    """The analysis as one self-contained HTML page: numbers, the picture, distances, dead units."""
    return page(
        "circuit.html.j2",
        found=found,
        name=name,
        picture=circuit_picture(found, title=f"{name}: units by layer"),
        figures=_figures(found),
        distances=_distances(found),
        percent=percent,
    )


def _heads() -> str:
    right = WIDTH - 8
    return (
        f'<text class="s" x="8" y="{TOP - 8}">layer</text><text class="s" x="{LABEL}" y="{TOP - 8}">units</text>'
        f'<text class="s" x="{right}" y="{TOP - 8}" text-anchor="end">dead | live connections</text>'
    )


def _strip(row: LayerPaths, units: LayerUnits, top: float) -> str:
    """One layer: its name, its cells, how many units are dead and how many connections live."""
    alive, heat = _bin_means(units.alive), _bin_means(units.heat)
    wide = (WIDTH - LABEL - FIGURES) / CELLS
    cell = min(ROW - 6.0, wide * CELLS / len(alive))
    most = float(heat.max(initial=0.0))
    levels: dict[int, list[str]] = {}
    for number, warmth in enumerate(heat.tolist()):
        # The root, since a few units that get much would leave all others blank.
        level = math.ceil(LEVELS * math.sqrt(warmth / most) - 0.5) if most > 0 else 0
        if level > 0 and alive[number] > 0:
            levels.setdefault(level, []).append(
                f"M{LABEL + number * cell:.1f} {top:.0f}h{cell * 0.92:.2f}v14h-{cell * 0.92:.2f}z"
            )
    paint = "".join(
        f'<path class="c" fill-opacity="{k / LEVELS:.2f}" d="{"".join(d)}"/>' for k, d in sorted(levels.items())
    )
    slashes = "".join(
        f"M{LABEL + number * cell:.1f} {top + 13:.0f}l{cell * 0.92:.2f} -12"
        for number in np.flatnonzero(alive == 0).tolist()
    )
    line = f'<path class="x" d="M{LABEL} {top + 7:.0f}h{cell * len(alive):.1f}"/>' if most == 0 else ""
    dead = int((~units.alive).sum())
    live = f"{row.live / row.places:.2%}" if row.places else ""
    told = f"{html(row.name)}: {dead} of {row.units} units dead, {row.live} of {row.places} connections live"
    return (
        f'<g><title>{told}</title><text x="8" y="{top + 12:.0f}">{html(_short(row.name))}</text>'
        f'<rect class="b" x="{LABEL}" y="{top:.0f}" width="{cell * len(alive):.1f}" height="14"/>{paint}'
        f'<path class="x" d="{slashes}"/>{line}'
        f'<text x="{WIDTH - 8}" y="{top + 12:.0f}" text-anchor="end">{dead or ""} | {live}</text></g>'
    )


def _bin_means(values: np.ndarray) -> np.ndarray:
    """Means of neighbours, so that there are ``CELLS`` at most."""
    return np.array([part.mean() for part in np.array_split(values.astype(float), min(CELLS, max(1, len(values))))])


def _short(name: str) -> str:
    most = 28
    return name if len(name) <= most else "…" + name[1 - most :]


def _figures(found: Connectivity) -> list[tuple[str, str]]:
    dead = sum(map(len, found.dead.values()))
    mass = f"10^{found.path_mass:.1f}" if math.isfinite(found.path_mass) else "no path"
    return [
        ("prunable connections", quantity(found.places)),
        ("density", percent(found.density)),
        ("effective density", f"{percent(found.effective_density)} (on a path from an input to an output)"),
        ("dead units", f"{dead} of {sum(row.units for row in found.layers)}"),
        ("outputs that hear no input", ", ".join(map(str, found.dead_classes)) or "none"),
        ("components", f"{found.components}, {found.isolated} of them single units"),
        ("spectral gap", f"{found.spectral_gap:.4g}"),
        ("mass of all paths", mass),
    ]


def _distances(found: Connectivity) -> Sequence[tuple[str, str, str]]:
    if found.reference is None:
        return []
    near, far = found.distances(found.times), found.distances(found.times, relative=True)
    return [(f"{t:.4g}", f"{a:.4g}", f"{b:.4g}") for t, a, b in zip(found.times, near, far, strict=True)]
