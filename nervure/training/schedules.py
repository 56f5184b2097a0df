"""Learning-rate schedules: functions from the fraction of training done, in [0, 1), to a factor on the peak rate."""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from nervure.core.check import checked
from nervure.core.schema import Share

Schedule: TypeAlias = Callable[[float], float]
WARM = 0.3


@checked
def onecycle(done: Share) -> float:
    """Rise from 1/25 to the peak over the first 30 %, then fall to about zero; both half cosines (Smith 2018).

    >>> [round(onecycle(x), 2) for x in (0.0, 0.3, 0.65, 1.0)]
    [0.04, 1.0, 0.5, 0.0]
    """
    if done < WARM:
        return _between(1 / 25, 1.0, done / WARM)
    return _between(1.0, 1e-4, (done - WARM) / (1 - WARM))


@checked
def cosine(done: Share) -> float:
    """Fall from the peak to zero along half a cosine.

    >>> [round(cosine(x), 2) for x in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return _between(1.0, 0.0, done)


@checked
def constant(done: Share) -> float:
    """Stay at the peak."""
    return 1.0


SCHEDULES: Mapping[str, Schedule] = {"onecycle": onecycle, "cosine": cosine, "constant": constant}


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
