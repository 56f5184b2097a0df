"""What a user names as ``package.module:name``: a network, data, a task, a method, a criterion of one's own."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from nervure.core.check import nearest, show_value
from nervure.errors import ArgumentError, NervureError

_BESIDE: dict[str, None] = {}


def look_beside(path: str | os.PathLike[str]) -> None:
    """Let what is named later be found beside this file too; nothing is imported, and no installed module hidden."""
    _BESIDE[os.path.dirname(os.path.abspath(path))] = None


def is_import_path(name: object) -> bool:
    """Whether ``name`` has the form ``package.module:name``."""
    return isinstance(name, str) and ":" in name


def import_named(
    path: str,
    what: str,
    error: type[NervureError] = ArgumentError,
    *,
    expected: str = "function",
    fits: Callable[[Any], bool] = callable,
) -> Any:
    """What ``package.module:name`` names; modules in the working folder, and beside a recipe, are found too.

    Importing a module runs it: never call this with a path that a file from elsewhere says.

    Args:
        path: the module, a colon, and a name in it.
        what: what is looked for, for the message: ``"method"``.
        error: what is raised.
        expected: what it should be, for the message.
        fits: whether something is that.

    Raises:
        NervureError: ``error``, where the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.path.extend(folder for folder in _BESIDE if folder not in sys.path)
    try:
        module = importlib.import_module(module_name)
    except Exception as failure:  # whatever a module of the user's raises
        kind = "" if isinstance(failure, ImportError) else f"{type(failure).__name__}: "
        raise error(
            f"{what} {show_value(path)}: module {show_value(module_name)} cannot be imported: {kind}{failure}."
        ) from failure
    found = getattr(module, name, None)
    if not fits(found):
        known = [n for n, value in vars(module).items() if fits(value) and not n.startswith("_")]
        raise error(
            f"{what} {show_value(path)}: {module_name} has no {expected} {show_value(name)}."
            f"{nearest(name, known, listed=len(known) < 20)}"
        )
    return found


def import_path_of(thing: Any, what: str) -> str:
    """The ``package.module:name`` by which a function or class is found again.

    Raises:
        ArgumentError: it has no name at the top of a module, like a lambda or what another function made.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not module or getattr(sys.modules.get(module), name, None) is not thing:
        raise ArgumentError(
            f"{what} {show_value(thing)} cannot be found again by its name. Define it with def at the top of a module; "
            "settings of its own are its options."
        )
    return f"{module}:{name}"
