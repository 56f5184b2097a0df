"""Every optional library is brought by an extra, and every error that misses one says commands that work."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from nervure import connectivity, zoo
from nervure.core.extras import EXTRAS, missing_extra, require_extra
from nervure.errors import MissingExtraError
from nervure.methods.snacs.published import support_vectors
from nervure.recipe.workers import Cluster

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"test", "dev", "docs"}
"""Extras for those who work on nervure."""
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL", "mlflow-skinny": "mlflow"}
OTHER_NAMES = {"pytorch_lightning": "lightning"}
"""What a package is called where it may have another name, too."""


def names_of(requirements: list[str] | tuple[str, ...]) -> set[str]:
    """The modules that these requirements bring, by their own names."""
    packages = [re.split(r"[\[<>=]", line)[0] for line in requirements]
    return {IMPORTED_AS.get(package, package) for package in packages}


@cache
def sources() -> list[tuple[Path, ast.Module]]:
    files = sorted((ROOT / "nervure").rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def imported(tree: ast.Module) -> Iterator[str]:
    """The first parts of all modules that a file imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def test_the_errors_know_what_the_extras_bring() -> None:
    said = {name: tuple(lines) for name, lines in PROJECT["optional-dependencies"].items() if name not in OURS}
    assert said == EXTRAS


def test_what_is_imported_is_a_dependency_or_brought_by_an_extra() -> None:
    known = names_of(PROJECT["dependencies"]) | {"nervure", *sys.stdlib_module_names}
    known |= {name for lines in EXTRAS.values() for name in names_of(lines)}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in sources()
        for name in imported(tree)
        if OTHER_NAMES.get(name, name) not in known
    }
    assert not wrong


def test_optional_libraries_are_not_imported_with_the_file_that_uses_them() -> None:
    optional = {name for lines in EXTRAS.values() for name in names_of(lines)}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in sources()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(ast.Module([node], []))
        if name in optional
    }
    assert not wrong


def test_every_extra_is_named_by_the_code_that_needs_it() -> None:
    words = {
        node.value
        for path, tree in sources()
        if path.name != "extras.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(EXTRAS) <= words


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_error_says_packages_and_not_an_index_without_nervure(extra: str) -> None:
    with pytest.raises(MissingExtraError) as caught:
        require_extra("never_written", "The thing", extra)
    told = str(caught.value)
    assert told.startswith("The thing needs never_written, which is not installed. Run: pip install '")
    assert all(f"'{name}'" in told for name in EXTRAS[extra])
    assert told.endswith(f"; in a clone of nervure: pip install '.[{extra}]'")
    assert "nervure[" not in told


def test_no_other_message_names_an_index_without_nervure() -> None:
    wrong = [str(path) for path, _ in sources() if re.search(r"pip install '?nervure", path.read_text("utf-8"))]
    assert not wrong


DOORS: dict[str, tuple[str, Callable[[], object]]] = {
    "data": ("sklearn.datasets", lambda: zoo.load("digits")),
    "data, published": ("sklearn.svm", lambda: support_vectors(torch.zeros(2, 2), torch.zeros(2))),
    "connectivity": ("scipy.sparse", lambda: connectivity(nn.Linear(4, 1), torch.zeros(1, 4))),
    "ray": ("ray", lambda: Cluster(lambda job: job, 1, "local")),
}
"""Doors without a test of their own elsewhere: the module that is hidden, and what needs it."""


@pytest.mark.parametrize("name", DOORS)
def test_a_door_says_what_it_misses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = DOORS[name]
    monkeypatch.setitem(sys.modules, module, None)
    extra = name.partition(",")[0]
    with pytest.raises(MissingExtraError, match=rf"needs {module.partition('.')[0]}.*pip install '\.\[{extra}\]'"):
        call()


def test_a_fact_is_told_as_it_is() -> None:
    assert str(missing_extra("Boxes need more", "gguf")).startswith("Boxes need more. Run: pip install 'gguf>=0.10'; ")
