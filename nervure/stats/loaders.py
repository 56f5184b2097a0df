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
from torch.utils._pytree import tree_leaves

from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.inputs import Inputs, plain_tensors
from nervure.core.progress import ending
from nervure.errors import DataError

SAMPLES = 2048
"""How many are measured, unless something else is asked."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Inputs and labels of ``size`` samples."""

    inputs: Inputs
    labels: Tensor | None
    size: int

    def head(self, n: int) -> "Batch":
        """The first ``n`` samples."""
        return self if n >= self.size else self.rows(torch.arange(n))

    def rows(self, index: Tensor) -> "Batch":
        """The samples at these places."""

        def pick(value: Tensor) -> Tensor:
            return value[index] if value.ndim and len(value) == self.size else value

        return Batch(self.inputs.map(pick), self.labels if self.labels is None else pick(self.labels), len(index))

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(self.inputs.to(device), self.labels if self.labels is None else self.labels.to(device), self.size)

    def feed(self, model: nn.Module) -> Any:
        """What ``model`` makes of the inputs, or of copies, for it may write into what it is given."""
        return self.inputs.map(torch.clone).run(model)


def batches(data: Batches, samples: int, *, labelled: bool, per_class: int = 0) -> Iterator[Batch]:
    """The first ``samples`` samples of ``data``, batch by batch.

    Args:
        data: (inputs, labels) pairs, or inputs alone; inputs are a tensor, a tuple of positional arguments or a dict.
            They stay where they are, see :func:`keep_position`.
        samples: how many at most; the last batch is cut to fit.
        labelled: whether labels must be there.
        per_class: where above 0, only the first so many samples of each class are taken.

    Raises:
        DataError: ``data`` are empty, a batch is malformed, values are not finite, or labels are missing or not whole.
    """
    seen = 0
    taken: Counter[int] = Counter()
    for number, raw in enumerate(_iterate(data)):
        batch = _batch(raw, f"batch {number}", labelled)
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


def first_of(data: Batches, samples: int) -> list[Any]:
    """The batches, as they come, that hold the first ``samples`` samples; raises DataError as :func:`batches`."""
    found, seen = list[Any](), 0
    for number, raw in enumerate(_iterate(data)):
        found.append(raw)
        seen += _batch(raw, f"batch {number}", labelled=False).size
        if seen >= samples:
            break
    return found


def parts_of(data: Batches) -> Iterator[Any]:
    """Of each batch the arguments of the model, and the labels, of whatever kind; raises DataError."""
    for number, raw in enumerate(_iterate(data)):
        inputs, labels = _split(raw, f"batch {number}")
        yield Inputs.of_batch(inputs), labels


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
def are_labelled(data: Batches) -> bool:
    """Whether the first batch has labels; it is drawn for this."""
    raw = next(_iterate(data), None)
    return raw is None or _split(raw, "batch 0")[1] is not None


def count_batches(data: Iterable[Batch], samples: int, length: int | None) -> tuple[Iterator[Batch], int]:
    """The same batches, and how many will come if all are like the first; ``length``: how many there are at most."""
    iterator = iter(data)
    first = next(iterator)
    number = -(-samples // max(1, first.size))
    return itertools.chain([first], iterator), number if length is None else min(number, length)


def _take_balanced(batch: Batch, taken: Counter[int], per_class: int) -> Batch:
    """The samples whose class is still wanted; ``taken`` counts on."""
    rows = []
    for row, label in enumerate(batch.labels.tolist() if batch.labels is not None else ()):
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


def _batch(raw: Any, what: str, labelled: bool) -> Batch:
    given, labels = _split(raw, what)
    inputs = plain_tensors(Inputs.of_batch(given))
    tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor) and value.ndim > 0]
    if not tensors:
        raise DataError(f"{what} has no tensor among its inputs ({type(given).__name__}).")
    size = len(tensors[0])
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise DataError(f"{what}: inputs are of layout {tensor.layout}. Give dense tensors.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{what}: inputs are NaN or infinite. Clean the data first.")
    if labelled:
        _require_labels(labels, size, what)
    return Batch(inputs, labels if labelled else None, size)


def _split(raw: Any, what: str) -> tuple[Any, Any]:
    if isinstance(raw, Tensor | Mapping | Inputs):
        return raw, None
    match raw:
        case (inputs,):
            return inputs, None
        case (inputs, labels):
            return inputs, labels
    raise DataError(
        f"{what} is a {type(raw).__name__}, not a pair (inputs, labels). Put several inputs into one tuple."
    )


def _require_labels(labels: Any, size: int, what: str) -> None:
    if not isinstance(labels, Tensor):
        raise DataError(f"{what} has no labels, and they are needed for what is wanted. Give (inputs, labels) batches.")
    if labels.shape != (size,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"{what}: labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for {size} samples; "
            "they must be one class number (an integer) per sample."
        )
