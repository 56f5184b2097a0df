"""SNACS as it was before its defaults changed: what a recipe of before still means."""

from typing import Any

from nervure import SNACS
from nervure.recipe.making import as_before


def old_snacs(**options: Any) -> SNACS:
    """Kernels by one threshold over connectivity of means; filters by the same scores."""
    return SNACS(**as_before("SNACS", options))
