"""How strong a connection is: one number for all weights that join two units."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nervure.analysis.neuron_graph import Floats, Ints

Strength: TypeAlias = Literal["l2", "l1", "mean", "binary"]
CHUNK = 4_000_000


class _Measure(NamedTuple):
    """Weights become ``term``, terms of one connection are summed, and ``finish`` sees the sum and their number."""

    term: Callable[[Tensor], Tensor]
    finish: Callable[[Floats, Floats], Floats]


MEASURES: Mapping[Strength, _Measure] = {
    "l2": _Measure(torch.square, lambda total, _: np.sqrt(total)),
    "l1": _Measure(torch.abs, lambda total, _: total),
    "mean": _Measure(torch.abs, lambda total, count: total / np.maximum(count, 1)),
    "binary": _Measure(lambda w: (w != 0).to(w.dtype), lambda total, _: (total > 0).astype(np.float64)),
}


def terms(weight: Tensor, strength: Strength) -> Floats:
    """Sums of the terms over kernel positions of a weight [outputs, inputs, kernel positions]: [outputs, inputs]."""
    rows, columns, kernel = weight.shape
    found = np.empty((rows, columns))
    step = max(1, CHUNK // max(1, columns * kernel))
    for first in range(0, rows, step):
        part = weight[first : first + step].detach().cpu().to(torch.float64)
        found[first : first + step] = MEASURES[strength].term(part).sum(-1).numpy()
    return found


def fold_columns(values: Floats, place: Ints, size: int) -> Floats:
    """Sums of the columns of ``values`` [rows, columns] that have the same ``place`` (-1: none): [rows, size]."""
    if len(place) == size and (place == np.arange(size)).all():
        return values
    out = np.zeros((size, len(values)))
    here = place >= 0
    np.add.at(out, place[here], values.T[here])
    return np.ascontiguousarray(out.T)


def finish(total: Floats, count: Floats, strength: Strength) -> Floats:
    """The strengths of connections from the sums of their terms and the number of weights in each."""
    return MEASURES[strength].finish(total, count)
