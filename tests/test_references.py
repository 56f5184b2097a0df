"""Every name and file of nervure that a page or a docstring gives is there."""

import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nervure.errors import MissingExtraError

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
# What was is history: it keeps the names of its day. Results are written by the benchmarks, the reference by Sphinx.
PAGES = [p for p in PAGES if p.name != "CHANGELOG.md" and not {"_build", "reference", "results"} & set(p.parts)]
SOURCES = [path for folder in ("nervure", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

DOTTED = re.compile(r"(?<![\w./@-])nervure(?:\.[A-Za-z_]\w*)+(?![\w-]|/)")
ROLE = re.compile(
    r"(?::|\{)(?:py:)?(?:func|class|meth|mod|attr|data|exc|obj)(?::|\})`(?:[^`<]*<)?[~!]?\.?([\w.]+)(?:\(\))?>?`"
)
PATH = re.compile(r"(?<![\w/.-])(?:nervure|tests|benchmarks|examples|docs)/[\w./-]*\w\.(?:py|md|toml|svg)\b")
MEMBERS = re.compile(r"automodule:: ([\w.]+)\n +:members: ([\w, ]+)")
SUFFIXES = {"sha256", "words", "pt", "onnx", "safetensors", "json", "toml", "py", "log", "lock", "html"}
"""What follows ``nervure.`` in the name of a file, in the header of one, and in the name of a logger or a key."""


class Reference(NamedTuple):
    """A name, where it was read, and the modules and classes in whose words it may be said, innermost first."""

    name: str
    place: str
    scopes: tuple[str, ...] = ()

    def resolve(self) -> bool:
        """Whether it stands for something."""
        return any(find(name) for name in (self.name, *(f"{scope}.{self.name}" for scope in self.scopes)))


@cache
def find(name: str) -> bool:
    """Whether a dotted name stands for something, by import; a name of before, which warns, is as dead as one of never.

    What needs a library that is not installed is taken to be there.
    """
    parts = name.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return _find(parts)
        except (FutureWarning, DeprecationWarning):
            return False
        except MissingExtraError:
            return True


def _find(parts: list[str]) -> bool:
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != parts[0]:
                return True
            continue
        # A module of before goes by its new name, and warns only once.
        return found.__name__ == ".".join(parts[:cut]) and _has(found, parts[cut:])
    return False


def _has(owner: Any, names: list[str]) -> bool:
    if not names:
        return True
    if hasattr(owner, names[0]):
        return _has(getattr(owner, names[0]), names[1:])
    # A field without a default, which the class only declares.
    return inspect.isclass(owner) and any(names[0] in vars(base).get("__annotations__", {}) for base in owner.__mro__)


def dotted_names(path: Path) -> Iterator[Reference]:
    """The dotted names of nervure in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for match in DOTTED.finditer(line):
            if match[0].split(".")[1] not in SUFFIXES:
                yield Reference(match[0], f"{path.relative_to(ROOT)}:{number}")


def roles_of_page(path: Path) -> Iterator[Reference]:
    """The roles on a page."""
    for match in ROLE.finditer(path.read_text(encoding="utf-8")):
        yield Reference(match[1], str(path.relative_to(ROOT)), ("nervure", "nervure.errors"))


def roles_of_source(path: Path) -> Iterator[Reference]:
    """The roles in the docstrings of a file, said in the words of the class and the module that they stand in."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    yield from _roles_below(ast.parse(path.read_text(encoding="utf-8")), path, (module, "nervure", "nervure.errors"))


def _roles_below(node: ast.AST, path: Path, scopes: tuple[str, ...]) -> Iterator[Reference]:
    if isinstance(node, ast.ClassDef):
        scopes = (f"{scopes[0]}.{node.name}", *scopes)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for match in ROLE.finditer(node.value):
            yield Reference(match[1], f"{path.relative_to(ROOT)}:{node.lineno}", scopes)
    for child in ast.iter_child_nodes(node):
        yield from _roles_below(child, path, scopes)


def members_on_page(path: Path) -> Iterator[Reference]:
    """What the reference takes from modules."""
    for module, names in MEMBERS.findall(path.read_text(encoding="utf-8")):
        yield from (Reference(f"{module}.{name.strip()}", str(path.relative_to(ROOT))) for name in names.split(","))


def files_named_in(path: Path) -> Iterator[Reference]:
    """The files of this repository that a file names."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        # What a benchmark writes is there once it ran.
        matches = (m for m in PATH.finditer(line) if not m[0].startswith("docs/results/"))
        yield from (Reference(m[0], f"{path.relative_to(ROOT)}:{number}") for m in matches)


def dead(found: Iterator[Reference]) -> list[str]:
    return [f"{reference.place}: {reference.name}" for reference in found if not reference.resolve()]


def test_dotted_names_are_there() -> None:
    wrong = dead(name for path in (*PAGES, *SOURCES) for name in dotted_names(path))
    assert not wrong, "\n".join(["these names stand for nothing:", *wrong])


def test_roles_are_there() -> None:
    pages = (role for path in PAGES for role in roles_of_page(path))
    sources = (
        role for path in SOURCES if path.relative_to(ROOT).parts[0] == "nervure" for role in roles_of_source(path)
    )
    wrong = dead(pages) + dead(sources)
    assert not wrong, "\n".join(["these roles stand for nothing:", *wrong])


def test_members_of_the_reference_are_there() -> None:
    wrong = dead(name for path in PAGES for name in members_on_page(path))
    assert not wrong, "\n".join(["the reference asks for these, and they are not there:", *wrong])


def test_files_that_are_named_are_there() -> None:
    named = [name for path in (*PAGES, *SOURCES) for name in files_named_in(path)]
    wrong = [f"{reference.place}: {reference.name}" for reference in named if not (ROOT / reference.name).exists()]
    assert not wrong, "\n".join(["these files are not there:", *wrong])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see nervure.plan.Plan and nervure.plan.Plan.cuts", []),
        ("see nervure.plan.Plan.hats, or nervure.hats", ["nervure.plan.Plan.hats", "nervure.hats"]),
        ("names of before: nervure.graph.Silence, nervure.graph.flow", ["nervure.graph.Silence", "nervure.graph.flow"]),
        ("a field: nervure.graph.Group.size", []),
        ("a file: nervure.toml, runs/nervure.hats, nervure.hats/x", []),
    ],
)
def test_a_dead_name_is_seen(text: str, wrong: list[str]) -> None:
    assert [m[0] for m in DOTTED.finditer(text) if m[0].split(".")[1] not in SUFFIXES and not find(m[0])] == wrong


def test_a_dead_role_is_seen_where_it_stands() -> None:
    tree = ast.parse(
        '"""See :func:`seal`."""\nclass Plan:\n    """:meth:`to_json`, :meth:`to_hat`, :class:`~nervure.Hat`."""\n'
    )
    wrong = dead(_roles_below(tree, ROOT / "nervure" / "plan.py", ("nervure.plan",)))
    assert [name.partition(": ")[2] for name in wrong] == ["seal", "to_hat", "nervure.Hat"]


MODULES = {"tables": "tables", "connectivity": "connectivity_charts", "shift": "shift_section"}
"""What templates call the modules of the report."""


def test_what_templates_ask_of_modules_is_there() -> None:
    templates = sorted((ROOT / "nervure" / "report" / "templates").glob("*.html.j2"))
    pattern = re.compile(rf"\b({'|'.join(MODULES)})\.(\w+)\(")
    asked = {match for path in templates for match in pattern.findall(path.read_text(encoding="utf-8"))}
    assert {module for module, _ in asked} == MODULES.keys()
    assert [f"{m}.{name}" for m, name in sorted(asked) if not find(f"nervure.report.{MODULES[m]}.{name}")] == []
