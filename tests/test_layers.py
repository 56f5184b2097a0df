"""The house has floors, and imports go down the stairs only; its rules are in docs/house.py."""

import ast

import pytest

from docs.house import (
    HOUSE,
    PACKAGE,
    find_file_circles,
    find_homeless_rooms,
    find_imports_upwards,
    find_room_circles,
    is_allowed,
    longest_functions,
)


def test_every_part_of_the_house_has_a_floor() -> None:
    assert not find_homeless_rooms(HOUSE)


def test_imports_go_down_only() -> None:
    wrong = find_imports_upwards(HOUSE)
    assert not wrong, "\n".join(["imports that go up:", *wrong])


def test_parts_do_not_import_each_other_in_a_circle() -> None:
    wrong = find_room_circles(HOUSE)
    assert not wrong, "\n".join(["these parts import each other in a circle:", *wrong])


def test_files_do_not_import_each_other_in_a_circle() -> None:
    wrong = find_file_circles(HOUSE)
    assert not wrong, "\n".join(["these files import each other in a circle:", *wrong])


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("methods", "scores", True),
        ("scores", "methods", False),
        ("scores", "stats", True),
        ("dependence", "graph", False),
        ("zoo", "errors", True),
        ("zoo", "graph", False),
        ("recipe", "zoo", True),
        ("evaluation", "zoo", False),
        ("graph", "", False),
    ],
)
def test_the_rule_itself(source: str, target: str, allowed: bool) -> None:
    assert is_allowed(source, target) is allowed


def test_relative_and_hidden_imports_are_seen() -> None:
    code = (
        "from . import types\nfrom ..errors import E\ndef f():\n    from nervure import plan\n    import nervure.cli\n"
    )
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Import | ast.ImportFrom)]
    seen = {target for node in nodes for target in HOUSE.targets(node, ("nervure", "graph"))}
    assert seen == {("nervure", "graph", "types"), ("nervure", "errors"), ("nervure", "plan"), ("nervure", "cli")}


def test_the_tail_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nlongest of {len(HOUSE.functions)} functions (to judge by eye, not a limit):")
        print("\n".join(f"  {line}" for line in longest_functions(HOUSE)))


def test_all_files_are_read() -> None:
    assert set(HOUSE.trees) == set(PACKAGE.rglob("*.py"))
