"""Methods by name: what a recipe or the command line says, made into a method."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, final

from nervure.core.check import nearest, show_value
from nervure.core.importing import import_named, is_import_path
from nervure.errors import ArgumentError, NervureError
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


def find_method(methods: Methods, name: str) -> Callable[..., Any]:
    """What makes the method ``name``: one of ``methods``, or what ``"package.module:name"`` names.

    Raises:
        ArgumentError: there is none of that name (the nearest is named), or its module cannot be imported.
    """
    if is_import_path(name):
        found: Callable[..., Any] = import_named(name, "method")
        return found
    if not isinstance(name, str) or name not in methods:
        raise ArgumentError(
            f"method {show_value(name)} is unknown.{nearest(name, methods, listed=True)} "
            'One of your own is named "package.module:name".'
        )
    return methods[name]


def options_of(maker: Callable[..., Any]) -> list[str]:
    """The hyper-parameters that ``maker`` takes; ArgumentError where it does not say."""
    if inspect.isclass(maker) and is_dataclass(maker):
        return [field.name for field in fields(maker) if field.init]
    try:
        return list(inspect.signature(maker).parameters)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"method {show_value(maker)} does not say what it takes: {error}.") from error


def make_method(methods: Methods, name: str, options: Mapping[str, Any]) -> Method:
    """The method ``name`` with these hyper-parameters.

    Raises:
        ArgumentError: the name or an option is unknown (the nearest is named), or what is made is no method.
    """
    maker = find_method(methods, name)
    called, known = getattr(maker, "__name__", name), options_of(maker)
    for option in options:
        if option not in known:
            raise ArgumentError(f"{called} has no option {show_value(option)}.{nearest(option, known, listed=True)}")
    if not is_import_path(name):
        method: Method = maker(**options)
        return method
    try:
        return _require_method(maker(**options), name)
    except NervureError:
        raise
    except Exception as error:  # whatever the user's own class raises
        raise ArgumentError(f"method {show_value(name)} cannot be made: {type(error).__name__}: {error}.") from error


def _require_method(made: Any, name: str) -> Method:
    missing = [part for part in ("wants", "plan") if not hasattr(made, part)]
    if missing or not callable(made.plan):
        raise ArgumentError(
            f"{show_value(name)} made a {type(made).__name__}, which is no method: it lacks "
            f"{' and '.join(missing) or 'a plan that can be called'}. A method is a frozen dataclass with wants and "
            "plan(view), see nervure.methods.Method."
        )
    if repr(made) == object.__repr__(made):
        raise ArgumentError(
            f"{show_value(name)} does not show its hyper-parameters, by which results are known again. Make it a "
            "frozen dataclass, or give it a __repr__."
        )
    method: Method = made
    return method
