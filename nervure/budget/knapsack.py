"""Which things to give up for a saving, at the least loss: a knapsack, for every saving at once.

Dynamic programming over the undominated selections (Nemhauser and Ullmann, "Discrete dynamic programming and capital
allocation", 1969).
"""

from collections.abc import Sequence
from typing import NamedTuple

from nervure.core.check import require_positive
from nervure.errors import ArgumentError

RESOLUTION = 2000
WORTHLESS = 1e-9
"""Of the largest loss, the least that anything counts: what is worth nothing is still not given up without need."""


class _Selection(NamedTuple):
    saving: float
    loss: float
    members: int  # bit i stands for thing i: Python's numbers have as many bits as it takes


def frontier(
    losses: Sequence[float], savings: Sequence[float], *, resolution: int = RESOLUTION
) -> list[tuple[int, ...]]:
    """The selections that no other beats: none saves as much at a lower loss. Losses and savings add up.

    Exact while there are no more than ``resolution`` of them; beyond that, of selections whose savings differ by less
    than 1 / ``resolution`` of all, the one with the least loss is followed.

    >>> frontier([1.0, 2.0, 5.0], [3, 4, 5])
    [(), (0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]

    Args:
        losses: what giving up each thing costs; 0 and below count as next to nothing.
        savings: what it saves, 0 or more.
        resolution: selections that are followed at most.

    Returns:
        Places in ``losses``, ascending, of each selection; the selections from the least saving (nothing) to the
        largest (everything).

    Raises:
        ArgumentError: lengths differ, a number is not finite, a saving is negative, or ``resolution`` below 1.
    """
    require_positive(resolution, "resolution")
    if len(losses) != len(savings) or not all(abs(v) < float("inf") for v in (*losses, *savings)):
        raise ArgumentError(f"{len(losses)} losses and {len(savings)} savings: one finite number for each thing.")
    if min(savings, default=0) < 0:
        raise ArgumentError(f"a saving of {min(savings)} is negative: that thing is worth keeping, leave it out.")
    width, least = sum(savings) / resolution, WORTHLESS * max((*losses, 0.0)) or 1.0
    found = [_Selection(0.0, 0.0, 0)]
    for place, (loss, saving) in enumerate(zip(losses, savings, strict=True)):
        more = [_Selection(s.saving + saving, s.loss + max(loss, least), s.members | 1 << place) for s in found]
        found = _drop_dominated(found + more)
        if len(found) > resolution:
            found = _thin_out(found, width)
    everything = (1 << len(losses)) - 1
    chosen = [s.members for s in found if s.members != everything]
    return [_places(members) for members in (*chosen, everything)]


def _drop_dominated(selections: list[_Selection]) -> list[_Selection]:
    """From the least saving to the largest; each with less loss than all that save more."""
    kept: list[_Selection] = []
    least = float("inf")
    # Of equal selections the one without the first things: these stay.
    for s in sorted(selections, key=lambda s: (-s.saving, s.loss, -s.members)):
        if s.loss < least:
            kept.append(s)
            least = s.loss
    return kept[::-1]


def _thin_out(selections: list[_Selection], width: float) -> list[_Selection]:
    """Losses rise with savings, so the first of each range of savings has the least loss of it."""
    first: dict[int, _Selection] = {}
    for s in selections:
        first.setdefault(int(s.saving / width), s)
    return list(first.values())


def _places(members: int) -> tuple[int, ...]:
    return tuple(place for place in range(members.bit_length()) if members >> place & 1)
