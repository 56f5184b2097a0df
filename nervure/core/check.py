"""Arguments and fields are what their annotations say; claims that read as sentences; errors that say what to do."""

import dataclasses
import difflib
import functools
import inspect
import os
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from nervure.core.annotations import Accepted, Mismatch, acceptor
from nervure.errors import ArgumentError, CallError, NervureError, ScoreError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 80
"""Characters of a value that an error repeats."""


def checked(function: F, error: type[NervureError] = ArgumentError) -> F:
    """Check the arguments of every call by their annotations; the function gets what they say, as they say it.

    A whole number becomes a float where one is expected, a list a tuple, a NumPy number a plain one.

    Args:
        function: what is called.
        error: what is raised where an argument is not what its annotation says.

    Raises:
        ArgumentError: an argument is not what its annotation says (or ``error``).
        CallError: an argument has no place in the signature, or one is missing.

    >>> @checked
    ... def half(x: float) -> float:
    ...     return x / 2
    >>> half(3)
    1.5
    >>> half("3")
    Traceback (most recent call last):
    nervure.errors.ArgumentError: half(x='3'): x is a finite number; got '3'.
    """
    signature = inspect.signature(function)
    owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.cache
    def kinds() -> Mapping[str, Accepted]:
        # Not before the first call: annotations may name what its module defines further down.
        hints = typing.get_type_hints(function, include_extras=True)
        return {name: acceptor(hints.get(name, Any)) for name in signature.parameters}

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as misfit:
            raise CallError(f"{owner}(): {_misfit(misfit, kwargs, signature)}") from None
        for name, value in bound.arguments.items():
            kind, given = kinds()[name], signature.parameters[name].kind
            if given is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(take_value(kind, each, name, owner, error) for each in value)
            elif given is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: take_value(kind, v, key, owner, error) for key, v in value.items()}
            else:
                bound.arguments[name] = take_value(kind, value, name, owner, error)
        return function(*bound.args, **bound.kwargs)

    return typing.cast(F, check)


class Checked:
    """A frozen dataclass whose fields are what their annotations say, as they say it: see :func:`checked`.

    Where a dataclass has a ``__post_init__`` of its own, that calls ``Checked.__post_init__(self)`` first.
    """

    __slots__ = ()

    def __new__(cls, *_args: Any, **kwargs: Any) -> Self:
        """Complain about a keyword that is no field, and name the nearest; raises CallError."""
        known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        for name in kwargs:
            if name not in known:
                raise CallError(f"{cls.__name__} has no option {name!r}.{nearest(name, known, listed=True)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        take_fields(self)


def take_fields(value: Any, error: type[NervureError] = ArgumentError) -> None:
    """Make the fields of a frozen dataclass what their annotations say; raises ``error`` where one is not."""
    for name, kind in _fields_of(type(value)).items():  # type: ignore[arg-type]
        given = getattr(value, name)
        found = take_value(kind, given, name, type(value).__name__, error)
        if found is not given:
            object.__setattr__(value, name, found)


@functools.cache
def _fields_of(cls: Any) -> Mapping[str, Accepted]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: acceptor(hints[field.name]) for field in dataclasses.fields(cls)}


def take_value(kind: Accepted, value: Any, name: str, owner: str, error: type[NervureError] = ArgumentError) -> Any:
    """What ``value`` becomes, given as ``name`` to ``owner``; raises ``error`` where it is not of that kind."""
    try:
        return kind.take(value)
    except Mismatch as found:
        given = show_value(value)
        hint = nearest(value, found.choices) if isinstance(value, str) else found.advice or _advice(kind, value)
        raise error(f"{owner}({name}={given}): {name} is {kind.words}; got {given}.{hint}") from None


def _misfit(error: TypeError, kwargs: Mapping[str, Any], signature: inspect.Signature) -> str:
    names = list(signature.parameters)
    unknown = [name for name in kwargs if name not in names]
    hint = nearest(unknown[0], names, listed=True) if unknown else f" It takes {', '.join(names)}."
    return f"{error}.{hint}"


def _advice(kind: Accepted, value: Any) -> str:
    """What to do about a value that is often given in place of another."""
    if inspect.isclass(value):
        return f" That is a class; make an instance of it: {value.__name__}()."
    if "torch.nn.Module" not in kind.words:
        return ""
    if isinstance(value, Mapping):
        return " A state dict has no forward: build the network, then load_state_dict."
    return " A file is loaded first: nervure.load(path)." if isinstance(value, os.PathLike) else ""


class _Shown(reprlib.Repr):
    """Reprs that are short and always there."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = SHOWN

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            return f"<{type(x).__name__} of shape {tuple(x.shape)}, {x.dtype}>"
        if isinstance(x, nn.Module):
            return f"<the module {type(x).__name__}>"
        return str(super().repr_instance(x, level))

    repr_Tensor = repr_Parameter = repr_instance  # reprlib looks for the names of types

    def repr_int(self, x: int, level: int) -> str:
        # Python does not write integers of thousands of digits.
        return str(super().repr_int(x, level)) if abs(x).bit_length() < SHOWN * 8 else f"<{x.bit_length()} bits>"


_SHOWN = _Shown()


def show_value(value: Any) -> str:
    """A value for an error: its repr, of 80 characters at most, whatever its class makes of that."""
    try:
        text = _SHOWN.repr(value)
    except Exception:  # A repr is anybody's code.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def require_positive(value: int, name: str) -> int:
    """Return ``value`` if it is a whole number above 0, else raise :class:`ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={show_value(value)} must be a whole number, 1 or more.")
    return value


def require_choice(value: T, choices: Iterable[T], name: str) -> T:
    """Return ``value`` if it is one of ``choices``, else raise :class:`ArgumentError`."""
    options = list(choices)
    if value not in options:
        raise ArgumentError(f"{name}={show_value(value)} is not one of {', '.join(map(repr, options))}.")
    return value


def nearest(name: object, names: Iterable[str], *, listed: bool = False) -> str:
    """The end of a message about a ``name`` that is not among ``names``: what was probably meant.

    Case is ignored. With ``listed`` all names follow, for choices that are few.

    >>> nearest("Magnitud", ["magnitude", "random"])
    " Did you mean 'magnitude'?"
    >>> nearest("zzz", ["magnitude", "random"], listed=True)
    ' Known: magnitude, random.'
    """
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    return f"{hint} Known: {', '.join(by_lower.values()) or 'none'}." if listed else hint


def require_finite(values: Tensor, what: str) -> Tensor:
    """Return ``values`` if none is NaN or infinite, else raise :class:`ScoreError` naming ``what``."""
    if values.is_meta:
        raise ScoreError(f"{what} has a shape only (it is on the meta device): give the model its weights first.")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ScoreError(f"{what}: {bad} of {values.numel()} values are NaN or infinite.")
    return values
