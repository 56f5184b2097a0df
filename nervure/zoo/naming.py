"""Names that were not found, and what was probably meant."""

from collections.abc import Iterable

from nervure.check import nearest, shown
from nervure.errors import ArgumentError


def unknown(kind: str, given: str, known: Iterable[str]) -> ArgumentError:
    """The error for a ``given`` name that is none of ``known``, with the nearest one first."""
    return ArgumentError(f"{shown(given)} is not a known {kind}.{nearest(given, sorted(known), listed=True)}")
