"""The picture of the house shows what is so."""

import re
from xml.etree import ElementTree

from docs.house import HOUSE
from docs.picture import BOX, HEIGHT, PICTURE, draw, keep_direct, stack_rows


def test_the_picture_is_what_the_imports_say() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "draw it again: python -m docs.picture"


def test_another_import_makes_another_picture() -> None:
    assert "dependence" not in HOUSE.arrows["graph"]
    more = {**HOUSE.arrows, "graph": HOUSE.arrows["graph"] | {"dependence"}}
    assert draw(more) != draw()


def test_every_room_is_in_the_picture_with_all_its_arrows() -> None:
    drawing = ElementTree.fromstring(draw())
    titles = [title.text or "" for title in drawing.iter("{http://www.w3.org/2000/svg}title")][1:]
    told = {title.split(" import")[0]: title for title in titles}
    assert told.keys() == {room or "nervure" for room in HOUSE.arrows}
    for room, targets in HOUSE.arrows.items():
        assert all((target or "nervure") in told[room or "nervure"] for target in targets)


def test_arrows_point_down() -> None:
    heights = {room: row.y for row in stack_rows(HOUSE.arrows) for room in row.rooms}
    pairs = [(a, b) for a, targets in keep_direct(HOUSE.arrows).items() for b in targets if "zoo" not in (a, b)]
    assert pairs
    assert all(heights[a] < heights[b] for a, b in pairs)


def test_no_arrow_runs_behind_a_box() -> None:
    passed = 0
    rows = {row.y - HEIGHT // 2: row for row in stack_rows(HOUSE.arrows)}
    for path in re.findall(r'class="arrow" d="([^"]+)"', draw()):
        # Where it meets the top of a row, it goes straight down to the bottom.
        for x, top, bottom in re.findall(r" (\d+) (\d+)V(\d+)", path):
            row = rows[int(top)]
            assert int(bottom) == row.y + HEIGHT // 2 and all(abs(int(x) - box) > BOX / 2 for box in row.rooms.values())
            passed += 1
    assert passed > 10


def test_arrows_that_others_imply_are_left_out() -> None:
    assert keep_direct({"a": "bc", "b": "c", "c": ""}) == {"a": ["b"], "b": ["c"], "c": []}
