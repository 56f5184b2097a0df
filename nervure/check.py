"""Claims about arguments that read as sentences and raise errors that say what to do."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from nervure.errors import ArgumentError, NervureError, ScoreError

T = TypeVar("T")


def require_fraction(value: float, name: str) -> float:
    """Return ``value`` as a float if it lies in (0, 1], else raise :class:`ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ArgumentError(
            f"{name}={value!r} is not in (0, 1]. {name} is the fraction that stays: 1.0 keeps everything, 0.5 half."
        )
    return float(value)


def require_positive(value: int, name: str) -> int:
    """Return ``value`` if it is a whole number above 0, else raise :class:`ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={value!r} must be a whole number, 1 or more.")
    return value


def require_choice(value: T, choices: Iterable[T], name: str) -> T:
    """Return ``value`` if it is one of ``choices``, else raise :class:`ArgumentError`."""
    options = list(choices)
    if value not in options:
        raise ArgumentError(f"{name}={value!r} is not one of {', '.join(map(repr, options))}.")
    return value


def require_format(data: Mapping[str, Any], newest: int, what: str, error: type[NervureError]) -> None:
    """Raise ``error`` where ``data`` was written in a format newer than ``newest``; none given: the first."""
    written = data.get("format", 0)
    if not isinstance(written, int) or written > newest:
        raise error(f"{what} has format {written}; this version of nervure reads up to {newest}.")


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
