"""Node numbers over tensors: which unit each element belongs to, and the operations on them that make new units.

The numbers of a tensor are an integer tensor that broadcasts to its shape, of size 1 along axes where they are
constant; -1 stands where an element does not depend on the model's inputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nervure.analysis.neuron_graph import Ints

NONE = -1


def shrink_constant(nodes: Tensor) -> Tensor:
    """Shrink axes along which numbers are constant to size 1.

    Constants beside units along one axis (a class token beside patches) count as those units, as long as the units vary
    along another axis: what is put beside them there is no unit of its own.
    """
    for axis, n in enumerate(nodes.shape):
        if n < 2:
            continue
        top = nodes.amax(axis, keepdim=True)
        is_one = bool((nodes == top).all())
        if is_one or (_varies(top) and bool(((nodes == top) | (nodes == NONE)).all())):
            nodes = top
    return nodes


def _varies(nodes: Tensor) -> bool:
    there = nodes[nodes != NONE]
    return there.numel() > 1 and bool((there != there[0]).any())


def align_rank(nodes: Tensor, rank: int) -> Tensor:
    """With axes of size 1 in front, up to ``rank``."""
    return nodes.reshape((1,) * (rank - nodes.dim()) + tuple(nodes.shape))


def fits(nodes: Tensor, shape: Sequence[int]) -> bool:
    """Whether the numbers broadcast to ``shape``."""
    return nodes.dim() <= len(shape) and all(
        n in (1, m) for n, m in zip(reversed(nodes.shape), reversed(shape), strict=False)
    )


def rows_of(nodes: Tensor, axes: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Numbers as [places, along ``axes``] and the shape of the places."""
    kept = [a for a in range(nodes.dim()) if a not in axes]
    moved = nodes.permute(*kept, *axes)
    shape = tuple(moved.shape[: len(kept)])
    return moved.reshape(int(np.prod(shape, dtype=np.int64)), -1), shape


def distinct(rows: Ints) -> tuple[Ints, Ints]:
    """The distinct rows, and for each row the number of its own."""
    if len(rows) == 1:
        return rows, np.zeros(1, dtype=np.int64)
    found, inverse = np.unique(rows, axis=0, return_inverse=True)
    return found, inverse.reshape(-1)


def as_one(rows: Ints) -> Ints | None:
    """The row that all rows are where they are not constant, or None where they differ. ``rows``: [rows, places]."""
    top = rows.max(axis=0, keepdims=True)
    return top[0] if bool(((rows == top) | (rows == NONE)).all()) else None


def tensor(values: Ints) -> Tensor:
    """Numbers as a tensor that owns its memory."""
    return torch.from_numpy(np.array(values, dtype=np.int64))
