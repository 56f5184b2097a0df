"""The page of what went wrong knows every reason for which something stays, and every error."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nervure import errors

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "what_went_wrong.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "nervure" / "graph").rglob("*.py"), ROOT / "nervure" / "tracing.py", ROOT / "nervure" / "prune.py"]
CALLS = {"pin", "suspect", "_pin_places"}
WORDS = {"pinned", "reason", "pin", "why", "few", "HIDDEN"}
"""Arguments by name, and variables, that hold a reason."""


def given_reasons(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that a node gives as a reason."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yield from node.args[1:] if name in CALLS else ()
        yield from (word.value for word in node.keywords if word.arg in WORDS)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in WORDS:
        yield node.value


def fixed_part(expression: ast.expr) -> Iterator[str]:
    """Of each text in an expression the longest part that is always the same, without the word before a place."""
    if isinstance(expression, ast.JoinedStr):
        parts = [str(part.value) for part in expression.values if isinstance(part, ast.Constant)]
        yield max(parts, key=len, default="").removesuffix(" at ").strip(" (")
    elif isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    else:
        for child in ast.iter_child_nodes(expression):
            yield from fixed_part(child) if isinstance(child, ast.expr) else ()


def reasons(path: Path) -> set[str]:
    """The reasons in a file, as far as they are words."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = {text for node in nodes for given in given_reasons(node) for text in fixed_part(given)}
    return {text for text in found if len(text) > 3}


def test_reasons_are_found() -> None:
    assert {"halves of a gate", "meets a fixed position"} <= set().union(*map(reasons, SOURCES))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_reason_is_on_the_page(path: Path) -> None:
    missing = sorted(text for text in reasons(path) if text not in PAGE)
    assert not missing, f"docs/what_went_wrong.md does not explain {missing}"


def test_every_error_is_on_the_page() -> None:
    names = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert [name for name in [*names, "NervureWarning"] if f"`{name}`" not in PAGE and f".{name}`" not in PAGE] == []
