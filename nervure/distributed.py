"""Several processes on the same model, each with its share of the data.

In a process group of torch.distributed :func:`nervure.measure`, :func:`nervure.refit`, :func:`nervure.train` and
:func:`nervure.evaluate` give all processes the same, to rounding what one process would give that has all of the data.
All processes must call them, in the same order, as they call the operations of torch.distributed.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

from nervure.core.check import show_value
from nervure.core.collectives import group_used
from nervure.errors import ArgumentError
from nervure.stats.shares import Share, share
from nervure.training.masks import same_everywhere

__all__ = ["Share", "reduce_over", "same_everywhere", "share"]


def reduce_over(group: Any) -> AbstractContextManager[None]:
    """Within the block, nervure's functions work together over the processes of this group only.

    Args:
        group: a process group that this process is in, such as ``mesh["data"].get_group()`` where others split the
            model; None: this process works alone, and no other need call what it calls.

    Raises:
        ArgumentError: it is no process group.

    >>> with reduce_over(None):
    ...     pass  # if rank == 0: print(nervure.evaluate(model, data))
    """
    if group is not None and not isinstance(group, torch.distributed.ProcessGroup):
        raise ArgumentError(
            f"group={show_value(group)} is no process group. Give one of torch.distributed.new_group(...) that this "
            "process is in, or None to work alone."
        )
    return group_used(group)
