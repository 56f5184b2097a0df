"""The costs of a graph as arrays: a candidate is priced in microseconds, however many candidates a search tries."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from nervure.graph.types import Axis, Graph


@final
@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of products: ``factor`` [terms] times the survivors along ``axes`` [terms, rank]."""

    factor: np.ndarray
    axes: np.ndarray

    def __call__(self, alive: np.ndarray) -> int:
        """The sum with ``alive`` survivors along each axis."""
        return int(self.products(alive).sum())

    def products(self, alive: np.ndarray) -> np.ndarray:
        """What is summed. Shape [terms]."""
        return np.asarray(self.factor * alive[self.axes].prod(axis=1))


class Gain(NamedTuple):
    """What the return of some units brings back: ``counts`` times ``positions``, and ``axes`` [axes] survivors more."""

    positions: np.ndarray
    counts: np.ndarray
    axes: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class CostModel:
    """Where every prunable unit sits along every axis, and what the axes cost.

    Units of all prunable groups are numbered in one row (flat units), in the order of ``graph.prunable``.

    Attributes:
        sizes: positions of each axis; one more entry of 1 pads short products. Shape [axes + 1].
        axis_of: the axis of each position. Shape [positions].
        pair_unit: flat units, ascending, one entry for each position that they hold. Shape [pairs].
        pair_position: the position of each entry of ``pair_unit``. Shape [pairs].
        params: the parameter count.
        macs: the multiply-accumulates.
        graph: what was read.
    """

    sizes: np.ndarray
    axis_of: np.ndarray
    pair_unit: np.ndarray
    pair_position: np.ndarray
    params: Terms
    macs: Terms
    graph: Graph

    @staticmethod
    def of(graph: Graph) -> "CostModel":
        """Read ``graph``."""
        starts = _starts(graph)
        sizes = np.array([axis.size for axis in graph.axes] + [1], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)])
        pairs = [_pairs(axis, int(first[index]), starts) for index, axis in enumerate(graph.axes)]
        units, positions = np.concatenate([np.empty((2, 0), np.int64), *pairs], axis=1)
        order = np.argsort(units, kind="stable")
        pad = len(graph.axes)
        return CostModel(
            sizes=sizes,
            axis_of=np.repeat(np.arange(len(sizes)), sizes),
            pair_unit=units[order],
            pair_position=positions[order],
            params=as_terms(((1, graph.tensors[name]) for name in graph.parameters), pad),
            macs=as_terms(((work.fixed, work.axes) for work in graph.work), pad),
            graph=graph,
        )

    @cached_property
    def is_shared(self) -> np.ndarray:
        """Per position: whether it needs more than one unit to live. Shape [positions]."""
        return np.bincount(self.pair_position, minlength=len(self.axis_of)) > 1

    def deaths(self, kept: np.ndarray) -> np.ndarray:
        """Per position, how many of its units are gone. ``kept`` is boolean [flat units]."""
        gone = self.pair_position[~kept[self.pair_unit]]
        return np.bincount(gone, minlength=len(self.axis_of))

    def alive(self, deaths: np.ndarray) -> np.ndarray:
        """Surviving positions of each axis. Shape [axes + 1]."""
        return self.sizes - np.bincount(self.axis_of[deaths > 0], minlength=len(self.sizes))

    def price(self, cost: Callable[[np.ndarray], float], kept: np.ndarray) -> float:
        """What survivors cost when these flat units are kept."""
        return cost(self.alive(self.deaths(kept)))

    def places(self, unit: int) -> np.ndarray:
        """The positions of one flat unit."""
        first, last = np.searchsorted(self.pair_unit, [unit, unit + 1])
        return self.pair_position[first:last]

    def gain(self, deaths: np.ndarray, units: Sequence[int]) -> Gain:
        """What the return of these flat units to a network with ``deaths`` would bring back."""
        positions, counts = np.unique(np.concatenate([self.places(u) for u in units]), return_counts=True)
        revived = positions[deaths[positions] == counts]
        return Gain(positions, counts, np.bincount(self.axis_of[revived], minlength=len(self.sizes)))

    def kind(self, unit: int) -> bytes:
        """A key that is equal for units with the same price at every moment; units that share positions are unique."""
        places = self.places(unit)
        if self.is_shared[places].any():
            return b"unit %d" % unit
        return np.sort(self.axis_of[places]).tobytes()


def _starts(graph: Graph) -> dict[str, int]:
    sizes = [group.size for group in graph.prunable]
    firsts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return {group.name: int(first) for group, first in zip(graph.prunable, firsts, strict=False)}


def _pairs(axis: Axis, first: int, starts: dict[str, int]) -> np.ndarray:
    columns = [np.empty((2, 0), np.int64)]
    for name, units in axis.parts:
        if name in starts:
            (at,) = np.nonzero(units.array >= 0)
            columns.append(np.stack([units.array[at] + starts[name], at + first]))
    units, positions = np.concatenate(columns, axis=1)
    order = np.lexsort((positions, units))
    units, positions = units[order], positions[order]
    # A group can meet itself along one axis; a position still dies once for each of its units.
    is_new = np.ones(len(units), dtype=bool)
    is_new[1:] = (units[1:] != units[:-1]) | (positions[1:] != positions[:-1])
    return np.stack([units[is_new], positions[is_new]])


def as_terms(products: Iterable[tuple[int, Sequence[int]]], pad: int) -> Terms:
    """Factors and axes as arrays; ``pad`` is the number of an axis of one position, which fills short products."""
    rows = list(products)
    rank = max((len(axes) for _, axes in rows), default=1) or 1
    factor = np.array([factor for factor, _ in rows], dtype=np.int64)
    axes = [[*axes, *[pad] * (rank - len(axes))] for _, axes in rows]
    return Terms(factor, np.array(axes, dtype=np.int64).reshape(len(rows), rank))
