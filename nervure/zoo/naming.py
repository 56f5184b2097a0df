"""Names that were not found, and what was probably meant."""

import difflib
from collections.abc import Iterable

from nervure.errors import ArgumentError


def unknown(kind: str, given: str, known: Iterable[str]) -> ArgumentError:
    """The error for a ``given`` name that is none of ``known``, with the nearest one first."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ArgumentError(f"{given!r} is not a known {kind}.{hint} Known: {', '.join(names) or 'none'}.")
