"""Names that were not found, and what was probably meant."""

from collections.abc import Iterable

from nervure.core.check import nearest, show_value
from nervure.errors import ArgumentError


def unknown_name(kind: str, given: str, known: Iterable[str]) -> ArgumentError:
    """The error for a ``given`` name that is none of ``known``, with the nearest one first."""
    return ArgumentError(f"{show_value(given)} is not a known {kind}.{nearest(given, sorted(known), listed=True)}")
