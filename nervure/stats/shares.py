"""The part of each batch that one of several processes reads."""

from collections.abc import Iterator
from typing import Any, final

import torch
from torch.utils.data.distributed import DistributedSampler

from nervure.core import collectives
from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.progress import length
from nervure.errors import DataError
from nervure.stats.loaders import UNTOLD, keep_position, read_batch
from nervure.tasks.guessing import TaskLike, as_task
from nervure.tasks.task import Task


@checked
def share(data: Batches, *, task: TaskLike | None = None) -> "Share":
    """This process's part of each batch: samples rank, rank + processes, ... of all samples in their order.

    Every process reads all of the data and keeps its part, so all need the same data in the same order: a loader that
    shuffles needs the same seed everywhere, as ``train`` and ``measure`` see to. For data that are slow to read, give
    each process a loader with a ``DistributedSampler`` instead. Outside a process group this is all of the data.

    Args:
        data: batches of any form, the same in all processes.
        task: what takes a batch apart, where its form does not say it.

    Raises:
        DataError: by a later pass, if a batch holds fewer samples than there are processes.
    """
    return Share(data, as_task(task) or UNTOLD)


@final
class Share:
    """What :func:`share` gives: it can be iterated as often as the data can.

    Attributes:
        data: all of the data.
    """

    def __init__(self, data: Batches, task: Task) -> None:
        self.data = data
        self._task = task

    def __iter__(self) -> Iterator[Any]:
        count, seen = collectives.count(), 0
        for number, raw in enumerate(self.data):
            if count == 1:
                yield raw
                continue
            batch = read_batch(raw, f"batch {number}", self._task)
            if batch.size < count:
                raise DataError(
                    f"batch {number} has {batch.size} samples for {count} processes. Leave out the last short batch "
                    "(drop_last=True) or choose another batch size."
                )
            rows = torch.arange((collectives.rank() - seen) % count, batch.size, count)
            seen += batch.size
            yield batch.rows(rows).raw

    def __len__(self) -> int:
        number = length(self.data)
        if number is None:
            raise TypeError(f"data of type {type(self.data).__name__} do not say how many batches they have")
        return number

    def __copy__(self) -> "Share":
        return Share(keep_position(self.data), self._task)


def is_share(data: Any) -> bool:
    """Whether data say themselves that they are one process's share: of :func:`share`, or a ``DistributedSampler``."""
    return isinstance(data, Share) or distributed_sampler(data) is not None


def distributed_sampler(data: Any) -> DistributedSampler[Any] | None:
    """What deals the samples of a loader to processes; None where nothing does."""
    found = getattr(data, "sampler", None)
    return found if isinstance(found, DistributedSampler) else None
