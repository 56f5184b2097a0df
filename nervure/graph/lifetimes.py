"""How much memory a run takes, as a function of the widths of groups, and at which moments.

Sizes come from labels, and when a tensor is made and let go from the run itself: it is there for as long as the code
holds it, which may be longer than it is read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np

from nervure.graph.labels import Array, LabelArray, TensorLabels, shape_along
from nervure.graph.propagate import LabelPropagation
from nervure.graph.sizes import Expression
from nervure.graph.solve import Solver, any_cut
from nervure.graph.storages import NOWHERE
from nervure.graph.tape import Tape
from nervure.graph.types import Lifetime

AxisOf: TypeAlias = Callable[[int, Iterable[Array]], int | None]
"""The number of the axis of a size with these labels along it; None where no cut changes it."""
Size: TypeAlias = tuple[int, tuple[int, ...]]
"""Bytes, to be multiplied by what survives along some axes."""
LARGEST_JOINT = 1 << 22
"""Positions of axes whose labels vary together, of which the survivors can still be counted one by one."""
NEAR = 32
"""Moments before and after one that are compared with it."""


class Span(NamedTuple):
    """A storage of the first run, and the first and last entry during which it is there."""

    storage: int
    first: int
    last: int


def lifetimes_of(
    flow: LabelPropagation, axis_of: AxisOf, tensors: Iterable[str]
) -> tuple[tuple[Lifetime, ...], dict[str, int]]:
    """What lies in memory in the first run, sizes and moments; what is alike is one.

    Args:
        flow: the labels of all values.
        axis_of: numbers axes.
        tensors: names of the tensors of the graph.

    Returns:
        What is there beside these tensors, and the bytes of an entry of each that has memory of its own.
    """
    log = flow.tape.storages
    known = set(tensors)
    elements = {
        name: flow.tape.values[number].dtype.itemsize
        for number, name in flow.tape.named.items()
        if name in known and _has_memory_of_its_own(flow.tape, number)
    }
    graphed = {log.of_value[number] for number, name in flow.tape.named.items() if name in elements}
    spans = [span for span in spans_of(flow.tape) if span.storage not in graphed and log.nbytes[span.storage]]
    # Most is there right after something was made.
    moments = np.unique(np.array([span.first for span in spans], dtype=np.int64))
    sizes = _Sizes(flow, axis_of)
    lives = []
    for span in spans:
        first, stop = np.searchsorted(moments, [span.first, span.last + 1]).tolist()
        lives.append(Lifetime(*sizes.of(span.storage), first, stop - 1))
    return _collapse(_leave_out_small_moments(lives, len(moments))), elements


def _has_memory_of_its_own(tape: Tape, number: int) -> bool:
    """Whether a value is all that its storage holds, and the first of those that hold the same."""
    log, value = tape.storages, tape.values[number]
    storage = log.of_value[number]
    nbytes = prod(value.shape) * value.dtype.itemsize
    return storage != NOWHERE and log.first_value[storage] == number and log.nbytes[storage] == nbytes


def spans_of(tape: Tape) -> list[Span]:
    """The storages of the first run, each with the entries during which it is there."""
    log, entries = tape.storages, tape.entries_of(0)
    given = {log.of_value[number] for number in (*tape.runs[0].inputs, *tape.named)}
    others = {log.of_value[number] for run in tape.runs[1:] for number in run.inputs} - given
    spans = []
    for number, (born, last) in enumerate(zip(log.born, log.last, strict=True)):
        if number in given:
            spans.append(Span(number, 0, len(entries)))
        elif born < len(entries) and number not in others:
            end = len(entries) if last is None else min(last, len(entries))
            spans.append(Span(number, born, max(born, end)))
    return spans


def peak_bytes(tape: Tape) -> int:
    """Bytes in use when the first run needs most, what the model holds included."""
    spans = spans_of(tape)
    sizes = np.array([tape.storages.nbytes[span.storage] for span in spans], dtype=np.int64)
    first, last = np.array([s.first for s in spans]), np.array([s.last for s in spans])
    return highest(first, last, sizes)


def highest(first: np.ndarray, last: np.ndarray, sizes: np.ndarray) -> int:
    """The largest sum at any moment of ``sizes``, each there from moment ``first`` to ``last``. Shapes [n]."""
    if not len(sizes):
        return 0
    moments = int(last.max()) + 2
    # Floats count bytes exactly up to 2^53.
    steps = np.bincount(first, sizes, moments) - np.bincount(last + 1, sizes, moments)
    return round(float(steps.cumsum().max()))


class _Sizes:
    """The sizes of storages as products."""

    def __init__(self, flow: LabelPropagation, axis_of: AxisOf) -> None:
        self._flow, self._axis_of = flow, axis_of
        self._solver = Solver(flow, any_cut(flow))
        self._axes: dict[tuple[int, tuple[bytes, ...]], int | None] = {}
        self._values: dict[int, list[int]] = {}
        for number, storage in enumerate(flow.tape.storages.of_value):
            self._values.setdefault(storage, []).append(number)

    def of(self, storage: int) -> Size:
        """The size of a storage: that of the first value that lay in it."""
        shape, layers = self._labels(storage)
        nbytes, axes, positions = self._flow.tape.storages.nbytes[storage], [], 1
        for together in _joint_axes(layers):
            size = prod(shape[a] for a in together)
            touching = [z for z in layers if set(z.support) & set(together)]
            axis = self._axis(size, [_along(z, together, shape) for z in touching])
            if axis is not None:
                axes.append(axis)
                positions *= size
        return (nbytes // positions, tuple(sorted(axes))) if nbytes % positions == 0 else (nbytes, ())

    def _labels(self, storage: int) -> tuple[tuple[int, ...], Sequence[LabelArray]]:
        """The shape of the first value in a storage, and its labels."""
        values, spaces = self._flow.tape.values, self._flow.spaces
        first, *others = self._values[storage]
        shape = values[first].shape
        # A buffer that is made empty has the labels of what is written to it.
        for number in (first, *(other for other in others if values[other].shape == shape)):
            if number in spaces and spaces[number].layers:
                return shape, spaces[number].layers
        return shape, list(self._wished(spaces.get(first, TensorLabels()), len(shape)))

    def _wished(self, constant: TensorLabels, rank: int) -> Iterator[LabelArray]:
        """The labels of the sizes that a constant was made with."""
        for axis, wish in constant.wishes:
            for labels in self._solver.labels_of_leaf(wish) if isinstance(wish, Expression) else ():
                yield LabelArray(labels.reshape(shape_along(axis, rank)))

    def _axis(self, size: int, vectors: list[Array]) -> int | None:
        if size > LARGEST_JOINT:
            return None
        key = (size, tuple(labels.tobytes() for labels in vectors))
        if key not in self._axes:
            self._axes[key] = self._axis_of(size, vectors)
        return self._axes[key]


def _joint_axes(layers: Iterable[LabelArray]) -> list[tuple[int, ...]]:
    """Axes with labels, those together along which labels vary together."""
    found: list[set[int]] = []
    for layer in layers:
        axes = set(layer.support)
        meeting = [one for one in found if one & axes]
        found = [one for one in found if not one & axes]
        if axes:
            found.append(axes.union(*meeting))
    return [tuple(sorted(axes)) for axes in found]


def _along(layer: LabelArray, axes: Sequence[int], shape: tuple[int, ...]) -> Array:
    """The labels of a layer at each position along some axes, the last one fastest."""
    own = layer.labels.reshape([layer.labels.shape[a] for a in axes])
    return np.broadcast_to(own, [shape[a] for a in axes]).reshape(-1)


def _leave_out_small_moments(lives: Sequence[Lifetime], moments: int) -> list[Lifetime]:
    """The same at those moments only that need most for some cut, numbered anew."""
    kinds = dict.fromkeys([(), *(life.axes for life in lives)])
    terms = {axes: number for number, axes in enumerate(kinds)}
    there = np.zeros((moments + 1, len(terms)))
    for life in lives:
        there[life.first, terms[life.axes]] += life.fixed
        there[life.last + 1, terms[life.axes]] -= life.fixed
    there = there.cumsum(0)[:-1]
    kept = np.array([t for t in range(moments) if not _is_below_another(there, t)], dtype=np.int64)
    found = []
    for life in lives:
        first, stop = np.searchsorted(kept, [life.first, life.last + 1]).tolist()
        if first < stop:
            found.append(Lifetime(life.fixed, life.axes, first, stop - 1))
    return found


def _is_below_another(there: np.ndarray, moment: int) -> bool:
    """Whether a moment near this one needs as much or more whatever is cut; of equal moments the first stays.

    ``there`` are the bytes for each product of axes, the first of which is that of none. Shape [moments, products].
    """
    low = max(0, moment - NEAR)
    more = there[low : moment + NEAR + 1] - there[moment]
    # A product is never less than one, so what there is more of it makes up for what no cut changes.
    above = (more[:, 1:] >= 0).all(1) & (more.sum(1) >= 0)
    equal = above & (more == 0).all(1)
    above &= ~equal
    return bool(above.any() or equal[: moment - low].any())


def _collapse(lives: Iterable[Lifetime]) -> tuple[Lifetime, ...]:
    """What has the same size and the same moments as one."""
    sums: dict[tuple[tuple[int, ...], int, int], int] = {}
    for life in lives:
        key = (life.axes, life.first, life.last)
        sums[key] = sums.get(key, 0) + life.fixed
    return tuple(Lifetime(fixed, *key) for key, fixed in sums.items())
