"""A package whose names are imported when they are first asked for: importing it costs nothing."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package in which a function keeps its name where a submodule is called the same."""

    _homes: Mapping[str, str]

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets a submodule so once it is imported.
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)


def import_lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its name; it is being imported.
        homes: public name -> the module that has it. Submodules need no entry.
    """
    module = sys.modules[package]
    module.__class__ = _Package
    module._homes = homes  # type: ignore[attr-defined]

    def find(name: str) -> Any:
        if name in homes:
            found = getattr(import_module(homes[name]), name)
        elif not name.startswith("_") and name in submodules():
            found = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, found)
        return found

    def submodules() -> set[str]:
        return {found.name for found in iter_modules(module.__path__) if not found.name.startswith("_")}

    def names() -> list[str]:
        return sorted({*vars(module), *homes, *submodules()})

    return find, names
