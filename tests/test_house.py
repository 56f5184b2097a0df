"""The house keeps its rules, and each rule can be broken."""

from pathlib import Path

import pytest

from docs import house
from docs.house import HOUSE, RULES, House, circles, is_past, longest_functions

SOUND = {
    "__init__.py": "from small.plan import Plan",
    "plan.py": "class Plan:\n    def save(self): ...",
    "errors.py": "",
}


def build(folder: Path, files: dict[str, str]) -> House:
    for name, text in (SOUND | files).items():
        path = folder / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return House(folder / "small")


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: str) -> None:
    found = RULES[rule](HOUSE)
    assert not found, "\n".join([f"{rule}:", *found])


@pytest.mark.parametrize("rule", [rule for rule in RULES])
def test_a_small_sound_house_keeps_it_too(rule: str, tmp_path: Path) -> None:
    assert RULES[rule](build(tmp_path, {})) == []


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "rooms without a floor": ({"attic/a.py": ""}, "attic"),
    "imports that go up": ({"errors.py": "def f():\n    from small.plan import Plan"}, "small/errors.py:2"),
    "circles of rooms": (
        {"stats/a.py": "import small.scores.b", "scores/b.py": "import small.stats.a"},
        "scores <-> stats",
    ),
    "circles of files": (
        {
            "stats/a.py": "from small.stats.b import B",
            "stats/b.py": "from .c import C",
            "stats/c.py": "from . import a",
        },
        "small.stats.a <-> small.stats.b <-> small.stats.c",
    ),
    "class names that stand twice": (
        {"stats/a.py": "def f():\n    class Plan: ..."},
        "small/plan.py:1, small/stats/a.py:2",
    ),
    "file names that stand twice": ({"stats/plan.py": ""}, "plan.py: small, small/stats"),
    "reasons that no name needs": ({"stats/survey.py": ""}, "survey.py stands once"),
    next(rule for rule in RULES if "participle" in rule): ({"stats/a.py": "def _left_alone(): ..."}, "_left_alone"),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_can_be_broken(rule: str, tmp_path: Path) -> None:
    files, said = BROKEN[rule]
    found = RULES[rule](build(tmp_path, files))
    assert len(found) == 1
    assert said in found[0]


def test_a_name_may_stand_as_often_as_its_reason_says(tmp_path: Path) -> None:
    rule = RULES["file names that stand twice"]
    twice = {"stats/survey.py": "", "scores/survey.py": ""}
    assert rule(build(tmp_path, twice)) == []
    assert len(rule(build(tmp_path, {**twice, "graph/survey.py": ""}))) == 1


def test_imports_for_types_only_make_no_circle_of_files_but_may_not_go_up(tmp_path: Path) -> None:
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from small.plan import Plan"
    made = build(tmp_path, {"errors.py": late, "plan.py": "import small.errors\nclass Plan: ..."})
    assert RULES["circles of files"](made) == []
    assert len(RULES["imports that go up"](made)) == 1


@pytest.mark.parametrize(
    ("name", "past"),
    [
        ("kept", True),
        ("_checked", True),
        ("told_apart", True),
        ("made_of", True),
        ("drawn", True),
        ("seed", False),
        ("feed", False),
        ("keep", False),
        ("measured_share", False),
        ("between", False),
        ("draw", False),
    ],
)
def test_a_past_participle_is_told_from_a_verb_and_from_a_noun(name: str, past: bool) -> None:
    assert is_past(name) is past


def test_circles_are_told_apart() -> None:
    assert circles({"a": "b", "b": "a", "c": "da", "d": "ce", "e": ""}) == [["a", "b"], ["c", "d"]]


def test_what_is_broken_makes_the_command_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = build(tmp_path, {"attic/a.py": ""})
    monkeypatch.setattr(house, "HOUSE", made)
    assert house.main() == 1
    assert "rooms without a floor:\n  attic" in capsys.readouterr().out


def test_the_longest_functions_come_first(tmp_path: Path) -> None:
    made = build(tmp_path, {"stats/a.py": "def f():\n    a = 1\n    return a\n"})
    assert longest_functions(made, 1) == ["   3 lines  small/stats/a.py:1 f"]
