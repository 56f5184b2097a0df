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
WIDTH, LEFT, RIGHT, BESIDE = 1010, 150, 880, 960
BOX, HEIGHT, GAP, BAND = 92, 28, 34, 22
CLEAR, APART = 9, 7
"""How far an arrow keeps from a box that it passes, and from another arrow there."""
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24313a}.floor{font-size:12px;fill:#5d6b75}.band{fill:#eef3ef}"
    ".room{fill:#fff;stroke:#4d7c5e;stroke-width:1.3}.arrow{fill:none;stroke:#64907a;stroke-width:1}"
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

    def find_place(self, aim: float, lines: Iterable[int]) -> int:
        """The place nearest to ``aim`` where an arrow passes no box, and none of the other ``lines``."""
        away = BOX // 2 + CLEAR
        free = [p for p in (round(aim), *range(WIDTH)) if all(abs(p - x) >= away for x in self.rooms.values())]
        alone = [p for p in free if all(abs(p - line) >= APART for line in lines)]
        return min(alone, key=lambda p: abs(p - aim))


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
    lines: dict[int, list[int]] = {row.y: [] for row in rows}
    for room, targets in keep_direct(arrows).items():
        parts += [_arrow(spots[room], spots[target], rows, lines) for target in targets]
    parts += [_box(room, spots[room], sorted(arrows[room])) for room in sorted(spots)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img">'
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


def _arrow(start: tuple[int, int], end: tuple[int, int], rows: list[Row], lines: dict[int, list[int]]) -> str:
    """Down from box to box, between the boxes of the rows that it passes."""
    x, y = start[0], start[1] + HEIGHT // 2
    below = end[1] - HEIGHT // 2
    path = f"M{x} {y}"
    for row in rows:
        top, bottom = row.y - HEIGHT // 2, row.y + HEIGHT // 2
        if y < top and bottom < below:
            aim = x + (end[0] - x) * (row.y - y) / (below - y)
            at = row.find_place(aim, lines[row.y])
            lines[row.y].append(at)
            path += f"{_bend(x, y, at, top)}V{bottom}"
            x, y = at, bottom
    tip = f"M{end[0] - 3} {below - 6}L{end[0]} {below}L{end[0] + 3} {below - 6}"
    return f'<path class="arrow" d="{path}{_bend(x, y, end[0], below)}{tip}"/>'


def _bend(x1: int, y1: int, x2: int, y2: int) -> str:
    middle = (y1 + y2) // 2
    return f"C{x1} {middle} {x2} {middle} {x2} {y2}"


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
