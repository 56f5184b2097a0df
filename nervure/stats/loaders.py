"""Batches of data, checked: what people feed to networks, in one shape."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.documents import is_shallow
from nervure.core.inputs import Inputs, plain_tensor
from nervure.core.progress import ending
from nervure.core.tensors import are_whole, tensors_in
from nervure.errors import DataError
from nervure.tasks.batch_forms import describe_batch, map_tensors, move_batch, naming
from nervure.tasks.task import Task

UNTOLD = Task(name="untold")
"""Reads batches of the forms that are known, and has no loss."""

SAMPLES = 2048
"""How many are measured, unless something else is asked."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of ``size`` samples as it came, and the task that reads it."""

    raw: Any
    size: int
    task: Task = UNTOLD

    @property
    def inputs(self) -> Any:
        """What goes into the model."""
        return _inputs_of(self.raw, self.task)

    @property
    def labels(self) -> Any:
        """Its labels; None where it has none."""
        return self.task.labels(self.raw)

    def head(self, n: int) -> "Batch":
        """The first ``n`` samples."""
        return self if n >= self.size else self._take(slice(n), n)

    def rows(self, index: Tensor) -> "Batch":
        """The samples at these places."""
        return self._take(index, len(index))

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(move_batch(self.raw, device), self.size, self.task)

    def feed(self, model: nn.Module) -> Any:
        """What ``model`` makes of the inputs, or of copies, for it may write into what it is given."""
        return self.task.forward(model, self.raw)

    def _take(self, which: slice | Tensor, size: int) -> "Batch":
        return Batch(self.task.take(self.raw, which, self.size), size, self.task)


def batches(
    data: Batches, samples: int, *, labelled: bool, per_class: int = 0, task: Task | None = None
) -> Iterator[Batch]:
    """The first ``samples`` samples of ``data``, batch by batch.

    Args:
        data: batches of any form, see :class:`nervure.tasks.Layout`. They stay where they are, see
            :func:`keep_position`.
        samples: how many at most; the last batch is cut to fit.
        labelled: whether there must be a class number for each sample.
        per_class: where above 0, only the first so many samples of each class are taken.
        task: what reads them.

    Raises:
        DataError: ``data`` are empty, a batch is malformed, values are not finite, or labels are missing or not whole.
    """
    seen = 0
    taken: Counter[int] = Counter()
    for number, raw in enumerate(_iterate(data)):
        batch = _batch(raw, f"batch {number}", labelled, task)
        batch = (_take_balanced(batch, taken, per_class) if per_class else batch).head(samples - seen)
        seen += batch.size
        if batch.size:
            yield batch
        if seen >= samples:
            return
    if seen == 0:
        raise DataError(
            "the data are empty: there was no sample to measure. Give a re-iterable of (inputs, labels) batches."
        )


def first_of(data: Batches, samples: int, task: Task | None = None) -> list[Any]:
    """The batches, as they come, that hold the first ``samples`` samples; raises DataError as :func:`batches`."""
    found, seen = list[Any](), 0
    for number, raw in enumerate(_iterate(data)):
        found.append(raw)
        seen += _batch(raw, f"batch {number}", labelled=False, task=task).size
        if seen >= samples:
            break
    return found


def read_batch(raw: Any, what: str, task: Task) -> Batch:
    """A batch as it came, checked; ``what`` names it in errors. Raises DataError as :func:`batches`."""
    return _batch(raw, what, labelled=False, task=task)


def draw_first(data: Batches, task: Task | None = None, seed: int = 0) -> tuple[Any, Batches]:
    """The first batch, None where there is none, and the data; what can be drawn once keeps its first batch."""
    with fixed_seed(seed):
        first = first_of(data, 1, task)
    return next(iter(first), None), itertools.chain(first, data) if isinstance(data, Iterator) else data


def leaves_of(data: Batches) -> Iterator[Any]:
    """Each batch, whatever it holds; raises DataError where it holds itself."""
    for number, raw in enumerate(_iterate(data)):
        yield _require_shallow(raw, f"batch {number}")


def keep_position(data: Any) -> Any:
    """A copy to iterate over: a loader that shuffles anew in each epoch stays where it is, and gives the same again."""
    if isinstance(data, Iterator):
        return data
    try:
        return copy.copy(data)
    except Exception:
        # A loader of the user may be such that it cannot be copied, and say so in any way.
        return data


@contextmanager
def fixed_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's random numbers start from a seed inside, and go on outside as if nothing had happened."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@checked
def are_labelled(data: Batches, task: Task | None = None) -> bool:
    """Whether the first batch has labels; it is drawn for this."""
    raw = next(_iterate(data), None)
    return raw is None or _labels_of(raw, "batch 0", task or UNTOLD) is not None


@checked
def are_classes(data: Batches, task: Task | None = None) -> bool:
    """Whether the first batch has a class number for each sample; it is drawn for this."""
    raw = next(_iterate(data), None)
    if raw is None:
        return False
    batch = _batch(raw, "batch 0", labelled=False, task=task)
    labels = _labels_of(raw, "batch 0", batch.task)
    return isinstance(labels, Tensor) and are_whole(labels) and labels.shape == (batch.size,)


def count_batches(data: Iterable[Batch], samples: int, length: int | None) -> tuple[Iterator[Batch], int]:
    """The same batches, and how many will come if all are like the first; ``length``: how many there are at most."""
    iterator = iter(data)
    first = next(iterator)
    number = -(-samples // max(1, first.size))
    return itertools.chain([first], iterator), number if length is None else min(number, length)


def _take_balanced(batch: Batch, taken: Counter[int], per_class: int) -> Batch:
    """The samples whose class is still wanted; ``taken`` counts on."""
    rows = []
    for row, label in enumerate(batch.labels.tolist()):
        if taken[label] < per_class:
            taken[label] += 1
            rows.append(row)
    return batch.rows(torch.tensor(rows, dtype=torch.long))


def _iterate(data: Batches) -> Iterator[Any]:
    if not isinstance(data, Iterable) or isinstance(data, Tensor | Mapping | str):
        raise DataError(
            f"data of type {type(data).__name__} are no batches. Give a re-iterable of (inputs, labels) pairs."
        )
    return ending(keep_position(data))


def _batch(raw: Any, what: str, labelled: bool, task: Task | None) -> Batch:
    task = task or UNTOLD
    raw = map_tensors(plain_tensor, _require_shallow(raw, what))
    with naming(what):
        tensors = [value for value in tensors_in(_inputs_of(raw, task)) if value.ndim > 0]
        if not tensors:
            raise DataError(f"there is no tensor among the inputs of {describe_batch(raw)}.")
        size = task.samples(raw) if len(tensors[0]) else 0
        for tensor in tensors:
            if tensor.layout != torch.strided:
                raise DataError(f"inputs are of layout {tensor.layout}. Give dense tensors.")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError("inputs are NaN or infinite. Clean the data first.")
        if labelled:
            _require_labels(task.labels(raw), size)
    return Batch(raw, size, task)


def _inputs_of(raw: Any, task: Task) -> Any:
    """The inputs of a batch; all of it, where only an objective knows how to take it apart."""
    try:
        return task.inputs(raw)
    except DataError:
        if task.objective is None:
            raise
        return raw


def _require_shallow(raw: Any, what: str) -> Any:
    parts = raw if isinstance(raw, tuple | list) else (raw,)
    given = [(part.args, dict(part.kwargs)) for part in parts if isinstance(part, Inputs)]
    if not is_shallow([raw, given]):
        raise DataError(f"{what} is nested too deeply, or holds itself. Give tensors, a tuple or a dict of them.")
    return raw


def _labels_of(raw: Any, what: str, task: Task) -> Any:
    with naming(what):
        return task.labels(raw)


def _require_labels(labels: Any, size: int) -> None:
    if not isinstance(labels, Tensor):
        raise DataError("there are no labels, and they are needed for what is wanted. Give (inputs, labels) batches.")
    if labels.shape != (size,) or not are_whole(labels):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {size} samples; "
            "they must be one class number (an integer) per sample."
        )
