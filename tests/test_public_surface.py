"""The door is small and guarded."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import nervure

PUBLIC: list[str] = list(getattr(nervure, "__all__", []))
OPTIONAL = ("matplotlib", "scipy", "sklearn", "PIL", "onnx", "onnxscript", "onnxruntime", "jaxtyping", "beartype")


def visible() -> set[str]:
    """Names without an underscore; submodules count only where they are meant to be seen."""
    names = {name for name in dir(nervure) if not name.startswith("_")}
    return {n for n in names if n in PUBLIC or not isinstance(getattr(nervure, n), ModuleType)}


def undocumented(name: str, value: Any) -> Iterator[str]:
    """Names of what ``value`` shows to the world without a docstring."""
    if isinstance(value, ModuleType):
        members = {n: v for n, v in vars(value).items() if getattr(v, "__module__", None) == value.__name__}
        for member, inner in members.items():
            if not member.startswith("_"):
                yield from undocumented(f"{name}.{member}", inner)
    if not (callable(value) or isinstance(value, ModuleType | property)):
        return
    if not inspect.getdoc(value):
        yield name
    if inspect.isclass(value):
        for member, inner in vars(value).items():
            plain = inner.__func__ if isinstance(inner, staticmethod | classmethod) else inner
            if not member.startswith("_") and (inspect.isfunction(plain) or isinstance(plain, property)):
                yield from undocumented(f"{name}.{member}", plain)


def test_the_public_names_are_sorted() -> None:
    assert sorted(PUBLIC) == PUBLIC


def test_the_public_names_are_all_that_is_visible() -> None:
    assert visible() == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    assert list(undocumented(name, getattr(nervure, name))) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_typed(name: str) -> None:
    value = getattr(nervure, name)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        bare = [n for n, p in signature.parameters.items() if p.annotation is inspect.Parameter.empty]
        assert not bare
        assert signature.return_annotation is not inspect.Signature.empty


def test_importing_nervure_imports_no_optional_dependency() -> None:
    code = f"import sys; from nervure import *; print(sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
