"""Memory of a forward pass on the example: weights, inputs and the most activations that are there at once."""

from collections.abc import Mapping
from typing import final

import numpy as np

from nervure.budget.budget import Budget
from nervure.budget.cost_model import CostModel, as_terms
from nervure.errors import ArgumentError
from nervure.graph.lifetimes import highest

BYTES: Mapping[str, float] = {
    "MB": 1e6,
    "KB": 1e3,
    "GB": 1e9,
    "B": 1.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}


@final
class PeakMemory:
    """Bytes for any survivors of a graph.

    Args:
        costs: of the graph.
        gone: beginnings of names of tensors that are not there; what ran with them is counted as if it still did.

    Raises:
        ArgumentError: the graph was traced by a version of nervure that noted no memory.
    """

    def __init__(self, costs: CostModel, gone: tuple[str, ...] = ()) -> None:
        graph, pad = costs.graph, len(costs.graph.axes)
        if not graph.memory:
            raise ArgumentError(
                "budget='memory' needs to know when tensors are in memory, which this graph does not say: an earlier "
                "version of nervure traced it. Trace the model again."
            )
        held = [(size, graph.tensors[n]) for n, size in graph.element_bytes.items() if not n.startswith(gone)]
        self._held = as_terms(held, pad)
        self._passing = as_terms(((life.fixed, life.axes) for life in graph.memory), pad)
        self._first = np.array([life.first for life in graph.memory])
        self._last = np.array([life.last for life in graph.memory])

    def __call__(self, alive: np.ndarray) -> int:
        """Bytes at the moment that needs most."""
        return self._held(alive) + highest(self._first, self._last, self._passing.products(alive))


MEMORY = Budget("memory", "bytes of weights, inputs and activations", PeakMemory, units=BYTES, noun="size")
