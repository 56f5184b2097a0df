"""Methods by name: what a recipe or the command line says, made into a method."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, final

from nervure.core.check import nearest, show_value
from nervure.errors import ArgumentError
from nervure.methods.base import Method


@final
class Methods(Mapping[str, type[Any]]):
    """Classes by their name, in any case of letters; iteration gives each name once, as written."""

    def __init__(self, classes: Iterable[type[Any]]) -> None:
        self._classes = {cls.__name__.lower(): cls for cls in classes}

    def __getitem__(self, name: str) -> type[Any]:
        """The class of that name; KeyError where there is none."""
        return self._classes[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(cls.__name__ for cls in self._classes.values())

    def __len__(self) -> int:
        return len(self._classes)


def make_method(methods: Methods, name: str, options: Mapping[str, Any]) -> Method:
    """The method ``name`` with these hyper-parameters; ArgumentError naming the nearest name or option otherwise."""
    if not isinstance(name, str) or name not in methods:
        raise ArgumentError(f"method {show_value(name)} is unknown.{nearest(name, methods, listed=True)}")
    cls = methods[name]
    known = [field.name for field in fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise ArgumentError(
                f"{cls.__name__} has no option {show_value(option)}.{nearest(option, known, listed=True)}"
            )
    method: Method = cls(**options)
    return method
