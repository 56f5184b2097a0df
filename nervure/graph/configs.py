"""Configs that say which numbers they take: what a cut would write is asked for first."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from math import gcd
from types import MappingProxyType
from typing import Any

from nervure.graph.sizes import put


def complaint(config: Any, changes: Mapping[str, int] = MappingProxyType({})) -> str:
    """What a config says against itself, with ``changes`` made to a copy of it; empty where nothing."""
    try:
        changed = copy.copy(config)
        for path, value in changes.items():
            put(changed, path, value)
        _question(changed)()
    except Exception as error:  # whatever a config refuses with
        return f"{type(error).__name__}: {error}"
    return ""


def refusal(config: Any, changes: Mapping[str, int]) -> str:
    """Why a config does not take these numbers, in its own words; empty where it does or says nothing.

    Args:
        config: any object; ``validate()``, the checks of a dataclass, or being made anew from ``to_dict()`` can refuse.
        changes: paths below the config, as ``"hidden_size"`` or ``"hidden_sizes[1]"``, with their new values.
    """
    return "" if complaint(config) else complaint(config, changes)


def step_of(config: Any, path: str, size: int) -> int:
    """The smallest step in which a number of a config, now ``size``, can become less; 0 where it takes no other."""
    for step in range(1, size // 2 + 1):
        tried = [size - k * step for k in (1, 2, 3) if size > k * step]
        if size % step == 0 and not any(refusal(config, {path: n}) for n in tried):
            return step
    return 0


def units_in_step(step: int, size: int, units: int) -> int:
    """Of how many units a multiple has to stay, where ``size`` numbers for ``units`` units leave in steps of ``step``.

    >>> units_in_step(4, size=32, units=32), units_in_step(4, size=32, units=16)
    (4, 2)
    """
    each = size // units
    return step // gcd(step, each) if each else step


def _question(config: Any) -> Callable[[], Any]:
    """What raises where a config holds numbers that it does not take."""
    if callable(getattr(config, "validate", None)):
        return config.validate  # type: ignore[no-any-return]
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return lambda: dataclasses.replace(config)
    if callable(getattr(config, "to_dict", None)):
        return lambda: type(config)(**config.to_dict())
    return lambda: None
