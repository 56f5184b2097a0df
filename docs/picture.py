"""The picture of the house, drawn from its imports: ``python -m docs.picture`` writes docs/house.svg.

A floor is a band, a room a box. An arrow goes from a room down to one that it imports. Those that others imply (a
imports b, b imports c, so that a may import c) are left out; a box names all of its own when the pointer rests on it.
"""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

from docs.house import FLOORS, HOUSE

PICTURE = Path(__file__).parent / "house.svg"
LEFT, RIGHT, BESIDE = 150, 880, 950
BOX, HEIGHT, GAP, BAND = 92, 28, 26, 26
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24313a}.floor{font-size:12px;fill:#5d6b75}.band{fill:#eef3ef}"
    ".room{fill:#fff;stroke:#4d7c5e;stroke-width:1.3}.arrow{fill:none;stroke:#86a592;stroke-width:1}"
    "g:hover>.room{fill:#dcebe0}"
)
BANDS: Mapping[int, tuple[str, str]] = {
    6: ("the roof", "doors, pipelines, files"),
    5: ("methods", "a paper is a file"),
    4: ("what runs networks", ""),
    3: ("what edits and looks", ""),
    2: ("what decides", "evidence, scores, budgets"),
    1: ("what is said", "graphs and plans"),
    0: ("the ground", "knows no network"),
}
Arrows: TypeAlias = Mapping[str, Iterable[str]]


class Row(NamedTuple):
    """Rooms side by side: their floor, the middle of their height, and the middle of each."""

    floor: int
    y: int
    rooms: Mapping[str, int]


def keep_direct(arrows: Arrows) -> dict[str, list[str]]:
    """The arrows that no others imply; there must be no circle."""
    below: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = set().union(*({target} | reach(target) for target in arrows[room]))
        return below[room]

    return {
        room: sorted(t for t in targets if not any(t in reach(other) for other in targets))
        for room, targets in sorted(arrows.items())
    }


def stack_rows(arrows: Arrows) -> list[Row]:
    """The rows from the roof down; a room stands above those of its own floor that it imports."""

    def depth(room: str) -> int:
        return max((1 + depth(t) for t in arrows[room] if FLOORS.get(t) == FLOORS[room]), default=0)

    levels: dict[tuple[int, int], list[str]] = {}
    for room in sorted(arrows.keys() & FLOORS.keys()):
        levels.setdefault((FLOORS[room], depth(room)), []).append(room)
    rows: list[Row] = []
    for floor, level in sorted(levels, reverse=True):
        y = rows[-1].y + HEIGHT + GAP + BAND * (rows[-1].floor != floor) if rows else HEIGHT + 8
        rows.append(Row(floor, y, _spread(levels[floor, level], arrows, rows)))
    return rows


def _spread(rooms: list[str], arrows: Arrows, above: list[Row]) -> dict[str, int]:
    """Places side by side, in the order of the middles of what imports each."""
    xs = {room: x for row in above for room, x in row.rooms.items()}

    def middle(room: str) -> float:
        over = [x for name, x in xs.items() if room in arrows[name]]
        return sum(over) / len(over) if over else (LEFT + RIGHT) / 2

    # Rows are shifted against one another, so that an arrow from far above does not run behind a box.
    step, shift = (RIGHT - LEFT) / len(rooms), (len(above) % 3 - 1) * BOX * 1.4 / len(rooms)
    return {
        room: round(LEFT + step * (n + 0.5) + shift)
        for n, room in enumerate(sorted(rooms, key=lambda r: (middle(r), r)))
    }


def draw(arrows: Arrows = HOUSE.arrows) -> str:
    """The picture as SVG."""
    rows = stack_rows(arrows)
    spots = {room: (x, row.y) for row in rows for room, x in row.rooms.items()}
    bottom = rows[-1].y + HEIGHT
    spots |= {"zoo": (BESIDE, bottom // 2)} if "zoo" in arrows else {}
    parts = [_band(floor, [row.y for row in rows if row.floor == floor]) for floor in sorted({r.floor for r in rows})]
    parts += [_arrow(spots[a], spots[b]) for a, targets in keep_direct(arrows).items() for b in targets]
    parts += [_box(room, spots[room], sorted(arrows[room])) for room in sorted(spots)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1010 {bottom}" role="img">'
    return "\n".join(
        [head, "<title>The house: who imports whom</title>", f"<style>{STYLE}</style>", *parts, "</svg>\n"]
    )


def _band(floor: int, ys: list[int]) -> str:
    top, bottom = min(ys) - HEIGHT // 2 - 12, max(ys) + HEIGHT // 2 + 12
    lines = [(f"{floor}  {BANDS[floor][0]}", 0), (BANDS[floor][1], 16)]
    texts = [
        f'<text class="floor" x="10" y="{min(ys) + 4 + down}">{escape(text)}</text>' for text, down in lines if text
    ]
    return f'<rect class="band" x="0" y="{top}" width="{RIGHT + 10}" height="{bottom - top}" rx="6"/>' + "".join(texts)


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = (start[0], start[1] + HEIGHT // 2), (end[0], end[1] - HEIGHT // 2)
    middle = (y1 + y2) // 2
    tip = f"M{x2 - 3} {y2 - 6}L{x2} {y2}L{x2 + 3} {y2 - 6}"
    return f'<path class="arrow" d="M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}{tip}"/>'


def _box(room: str, at: tuple[int, int], targets: list[str]) -> str:
    name, (x, y) = room or "nervure", at
    told = (
        f"{name} imports {', '.join(t or 'nervure' for t in targets)}" if targets else f"{name} imports no other room"
    )
    return (
        f'<g><title>{escape(told)}</title><rect class="room" x="{x - BOX // 2}" y="{y - HEIGHT // 2}" width="{BOX}" '
        f'height="{HEIGHT}" rx="5"/><text x="{x}" y="{y + 4}" text-anchor="middle">{escape(name)}</text></g>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)
