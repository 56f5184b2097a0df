"""Whether evidence fits into memory: said before it is gathered, not by a killed process."""

import os

from nervure.errors import DataError

SHARE = 0.8
"""How much of what is free evidence may take; the rest is for the work on it."""


def require_memory(per_sample: int, samples: int) -> None:
    """Raise :class:`DataError` if ``samples`` times ``per_sample`` bytes are more than what is free."""
    free = available_memory()
    needed = per_sample * samples
    if free is not None and needed > SHARE * free:
        fit = int(SHARE * free / per_sample)
        raise DataError(
            f"connections of {samples} samples take {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free. "
            f"Measure at most {fit} samples (samples={fit})."
        )


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
