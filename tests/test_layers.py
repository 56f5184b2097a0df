"""The house has floors, and imports go down the stairs only."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nervure"

# The first part of a module's name below `nervure` -> its floor. The package itself ("") is the roof.
FLOORS: Mapping[str, int] = {
    "dependence": 0,
    "errors": 0,
    "core": 0,
    "plan": 1,
    "graph": 1,
    "rules": 2,
    "stats": 2,
    "scores": 2,
    "budget": 2,
    "surgery": 3,
    "analysis": 3,
    "tracing": 4,
    "refit": 4,
    "training": 4,
    "engines": 4,
    "evaluation": 4,
    "methods": 5,
    "sparse": 5,
    "integrations": 5,
    "prune": 6,
    "export": 6,
    "recipe": 6,
    "report": 6,
    "cli": 6,
    "__main__": 6,
    "": 6,
}
# Reference models and data stand beside the house: they lean on the ground floor, and only the roof looks at them.
ZOO_MAY_IMPORT = {"zoo", "errors", "core"}
ROOF = 6


class Import(NamedTuple):
    """One import of one nervure module by another."""

    path: Path
    line: int
    source: str
    target: str

    def __str__(self) -> str:
        return (
            f"{self.path.relative_to(ROOT)}:{self.line}: {self.source or 'nervure'} imports {self.target or 'nervure'}"
        )


def dotted(path: Path) -> tuple[str, ...]:
    """Module name of a file, as its parts: nervure/graph/__init__.py is (nervure, graph)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def part(module: tuple[str, ...]) -> str:
    """The part of the house a module belongs to: its name's first component below nervure."""
    return module[1] if len(module) > 1 else ""


@cache
def is_module(module: tuple[str, ...]) -> bool:
    """Whether nervure has a module of that name."""
    path = ROOT.joinpath(*module)
    return path.is_dir() or path.with_suffix(".py").is_file()


def targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Names of the modules an import statement in ``package`` reaches."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
        return
    above = package[: len(package) - node.level + 1] if node.level else ()
    base = above + tuple(node.module.split(".") if node.module else ())
    for alias in node.names:
        yield (*base, alias.name) if is_module((*base, alias.name)) else base


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of nervure in a file, those inside functions too."""
    module = dotted(path)
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node, package):
                if target[:1] == ("nervure",):
                    yield Import(path, node.lineno, part(module), part(target))


def is_allowed(source: str, target: str) -> bool:
    """Whether part ``source`` may import part ``target``."""
    if source == target:
        return True
    if source == "zoo":
        return target in ZOO_MAY_IMPORT
    if target == "zoo":
        return FLOORS[source] == ROOF
    return FLOORS[target] <= FLOORS[source]


FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def imports() -> tuple[Import, ...]:
    """Every import of nervure in nervure."""
    return tuple(found for path in FILES for found in imports_of(path))


def test_every_part_of_the_house_has_a_floor() -> None:
    unknown = {part(dotted(path)) for path in FILES} - FLOORS.keys() - {"zoo"}
    assert not unknown, f"give {sorted(unknown)} a floor in {Path(__file__).name}"


def test_imports_go_down_only() -> None:
    wrong = [str(found) for found in imports() if not is_allowed(found.source, found.target)]
    assert not wrong, "\n".join(["imports that go up:", *wrong])


def test_parts_do_not_import_each_other_in_a_circle() -> None:
    reached = {source: {i.target for i in imports() if i.source == source} - {source, ""} for source in FLOORS}
    for _ in FLOORS:
        reached = {s: direct.union(*(reached.get(t, set()) for t in direct)) for s, direct in reached.items()}
    circular = sorted(source for source, below in reached.items() if source in below)
    assert not circular, f"these import each other in a circle: {circular}"


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
    seen = {target for node in nodes for target in targets(node, ("nervure", "graph"))}
    assert seen == {("nervure", "graph", "types"), ("nervure", "errors"), ("nervure", "plan"), ("nervure", "cli")}


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Length in lines and place of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield length, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_the_tail_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = sorted((found for path in FILES for found in functions(path)), reverse=True)
    with capsys.disabled():
        print(f"\nlongest of {len(lengths)} functions (to judge by eye, not a limit):")
        for length, place in lengths[:5]:
            print(f"  {length:4d} lines  {place}")
