"""Operators that move elements without computing: the same move is made with the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from math import gcd, prod
from typing import Any

import numpy as np
import torch

from nervure.graph.labels import NONE, PENDING, Array, LabelArray, TensorLabels, compress, is_pending
from nervure.graph.ops.contractions import OPAQUE_CALLS, as_blocks
from nervure.graph.propagate import LabelPropagation, argument, call_sizes, move
from nervure.graph.sizes import Expression
from nervure.graph.solve import follows
from nervure.graph.tape import Call, Entry, Ref

LARGEST = 20_000_000
"""Labels are laid out in full for tensors of up to this many elements."""


def same(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Copies and casts: the labels of the first argument."""
    return [flow.space(entry.args[0]) for _ in entry.outs]


# -- reshaping ---------------------------------------------------------------------------------------------------


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Split a reshape into independent pieces: ranges of old axes that become ranges of new axes."""
    pieces, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left, right = 1, 1
        first = True
        while first or left != right:
            first = False
            if (left <= right and i < len(old)) or j >= len(new):
                left *= old[i]
                i += 1
            else:
                right *= new[j]
                j += 1
        pieces.append((range(start_i, i), range(start_j, j)))
    return pieces


def reshape(labels: Array, old: Sequence[int], new: Sequence[int]) -> Array:
    """Labels after a reshape; only the pieces along which they vary are laid out in full."""
    full, target = [], []
    for before, after in segments(old, new):
        varies = any(labels.shape[i] > 1 for i in before)
        full += [old[i] if varies else 1 for i in before]
        target += [new[j] if varies else 1 for j in after]
    return compress(np.broadcast_to(labels, full).reshape(target))


def view(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """View, reshape, flatten, squeeze, unsqueeze: any change of shape in the same order."""
    x, out = entry.args[0], entry.outs[0]
    space, old, new = flow.space(x), flow.shape(x), flow.shape(out)
    layers = [LabelArray(reshape(z.labels, old, new), z.owner) for z in space.layers if 0 not in old]
    layers += _spread_in(flow, space, old, new)
    kept = flow.store.rectangular(layers, f"reshaped at {flow.at()}")
    _sizes_follow(flow, entry, kept, new)
    return [_taking(TensorLabels(kept, free=space.free), space, _unchanged_axes(old, new))]


def _spread_in(flow: LabelPropagation, space: TensorLabels, old: Sequence[int], new: Sequence[int]) -> list[LabelArray]:
    """Units for axes of one value that are merged with others, as a mask for all heads is with the samples."""
    found = []
    for before, after in segments(old, new):
        merged, places = [i for i in before if old[i] != 1], [j for j in after if new[j] != 1]
        if len(merged) < 2 or len(places) != 1 or any(z.labels.shape[i] > 1 for z in space.layers for i in before):
            continue
        for axis in space.spread.intersection(merged):
            fresh, wish = flow.store.unions.fresh(old[axis]), dict(space.wishes).get(axis)
            if wish is None:
                flow.store.suspect([fresh], f"expanded at {flow.at()}")
            else:
                flow.store.size(wish, old[axis], [fresh], "an expansion")
            found.append(LabelArray(reshape(move(LabelArray(fresh), axis, len(old)).labels, old, new)))
    return found


def _unchanged_axes(old: Sequence[int], new: Sequence[int]) -> dict[int, int]:
    """Axes that a reshape leaves as they are (but for axes of size 1 around them), by where they go."""
    pieces = [([i for i in a if old[i] != 1], [j for j in b if new[j] != 1]) for a, b in segments(old, new)]
    return {a[0]: b[0] for a, b in pieces if len(a) == len(b) == 1}


def _taking(moved: TensorLabels, source: TensorLabels, places: Mapping[int, int]) -> TensorLabels:
    """``moved`` takes labels along its axes as ``source`` does along its own, which went to ``places``."""
    wishes = tuple((places[axis], wish) for axis, wish in source.wishes if axis in places)
    return replace(moved, wishes=wishes, spread=frozenset(places[axis] for axis in source.spread if axis in places))


def _sizes_follow(flow: LabelPropagation, entry: Entry, layers: Sequence[LabelArray], shape: Sequence[int]) -> None:
    """Sizes that the user's code gives for labelled axes must change with a cut."""
    call = entry.call
    if call is None:
        return
    if call.name in OPAQUE_CALLS:
        flow.store.suspect([z.labels for z in layers], f"sizes inside {call.name} at {flow.at()}")
    if call.name not in flow.row.lengths.split():
        return
    sizes = [s for s in call_sizes(call) if isinstance(s, int | Expression)]
    if call.name == "unflatten" and sizes:
        axis = _number(sizes[0]) % (len(shape) - len(sizes) + 2)
        sizes = [-1] * axis + sizes[1:] + [-1] * (len(shape) - axis - len(sizes) + 1)
    if len(sizes) != len(shape):
        return
    _together_as_long_as(flow, sizes, layers, shape)
    for axis, size in enumerate(sizes):
        vectors = [z.labels for z in layers if z.labels.shape[axis] > 1]
        _is_as_long_as(flow, size, vectors)
        if _number(size) == -1 or (isinstance(size, int) and not vectors):
            continue
        if any(v.size != v.shape[axis] for v in vectors):
            flow.store.suspect(vectors, f"{call.name} to {size} at {flow.at()}")
        elif isinstance(size, int):
            flow.store.pin(vectors, f"{call.name} to {size}, a number in the code, at {flow.at()}")
        else:
            flow.store.size(size, shape[axis], [v.reshape(-1) for v in vectors], call.name)


def _is_as_long_as(flow: LabelPropagation, size: Any, vectors: Sequence[Array]) -> None:
    """A size read from an axis of another tensor can follow a cut of that axis only: both are cut alike."""
    size = _without_division(size)
    if isinstance(size, Expression) and size.dimension is not None:
        number, place = size.dimension
        theirs = [LabelArray(z.labels.reshape(-1)) for z in flow.space(Ref(number)).layers if z.support == (place,)]
        mine = [LabelArray(v.reshape(-1)) for v in vectors if v.size == size.value]
        whole = theirs and mine and len(mine) == len(vectors)
        if whole and not follows(flow, size, [z.labels for z in mine]):
            flow.store.match(theirs, mine, flow.at())


def _together_as_long_as(
    flow: LabelPropagation, sizes: Sequence[Any], layers: Sequence[LabelArray], shape: Sequence[int]
) -> None:
    """Sizes ``h`` and ``c // h`` in one call, ``c`` read from an axis: both axes together are cut with that one."""
    for inner, size in enumerate(sizes):
        if not (isinstance(size, Expression) and size.operation == "floordiv" and size.operands[1] in sizes):
            continue
        whole, outer = size.operands[0], sizes.index(size.operands[1])
        if outer != inner - 1:  # the other way round, each unit of the widths has its heads: nothing is shared
            continue
        heads, widths = ([z.labels.reshape(-1) for z in layers if z.support == (a,)] for a in (outer, inner))
        if not isinstance(whole, Expression) or whole.dimension is None or not heads or not widths:
            continue
        if whole.value == shape[outer] * shape[inner] and not follows(flow, size, widths):
            mine = [np.repeat(z, shape[inner]) for z in heads] + [np.tile(z, shape[outer]) for z in widths]
            theirs = [LabelArray(z.labels) for z in flow.layers(Ref(whole.dimension[0]), whole.dimension[1])]
            if theirs:
                flow.store.match(theirs, [LabelArray(z) for z in mine], flow.at())


def _number(size: Any) -> int:
    return size.value if isinstance(size, Expression) else int(size)


def transpose(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Swap two axes."""
    rank = len(flow.shape(entry.args[0]))
    order = list(range(rank))
    if entry.name.rstrip("_") == "t":
        order.reverse()
    else:
        a, b = entry.args[1] % rank, entry.args[2] % rank
        order[a], order[b] = order[b], order[a]
    return [_permute(flow.space(entry.args[0]), order)]


def permute(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Reorder axes."""
    rank = len(flow.shape(entry.args[0]))
    return [_permute(flow.space(entry.args[0]), [a % rank for a in entry.args[1]])]


def _permute(space: TensorLabels, order: list[int]) -> TensorLabels:
    moved = TensorLabels(tuple(LabelArray(z.labels.transpose(order), z.owner) for z in space.layers), free=space.free)
    return _taking(moved, space, {axis: place for place, axis in enumerate(order)})


def expand(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Broadcast: the labels are already broadcast, and along axes of one value any others will do."""
    space, shape = flow.space(entry.args[0]), flow.shape(entry.outs[0])
    rank, before = len(shape), (1,) * (len(shape) - len(flow.shape(entry.args[0]))) + flow.shape(entry.args[0])
    layers = [
        LabelArray(z.labels.reshape((1,) * (rank - z.labels.ndim) + z.labels.shape), z.owner) for z in space.layers
    ]
    _sizes_follow(flow, entry, layers, shape)
    layers += _widen_layers(flow, entry, layers)
    wishes = _expanded_sizes(flow, entry, shape) or [None] * rank
    grown = {axis: wishes[axis] for axis in range(rank) if before[axis] == 1 < shape[axis]}
    return [TensorLabels(tuple(layers), free=space.free, wishes=tuple(grown.items()), spread=frozenset(grown))]


def _widen_layers(flow: LabelPropagation, entry: Entry, layers: Sequence[LabelArray]) -> list[LabelArray]:
    """Axes that were as one and get their size from an axis of another tensor: they are cut with that one."""
    shape, before = flow.shape(entry.outs[0]), flow.shape(entry.args[0])
    old = (1,) * (len(shape) - len(before)) + before
    found: list[LabelArray] = []
    for axis, size in enumerate(_expanded_sizes(flow, entry, shape)):
        single = old[axis] == 1 < shape[axis] and not any(z.labels.shape[axis] > 1 for z in layers)
        if single and isinstance(size, Expression) and size.dimension is not None:
            theirs = flow.layers(Ref(size.dimension[0]), size.dimension[1])
            found += [move(LabelArray(z.labels), axis, len(shape)) for z in theirs]
    return found


def _expanded_sizes(flow: LabelPropagation, entry: Entry, shape: Sequence[int]) -> list[Any]:
    """The sizes that the user's code gives for an expansion to ``shape`` (None where it gives none)."""
    call, rank = entry.call, len(shape)
    if call is not None and call.name in flow.row.lengths.split():
        sizes = [n if isinstance(n, int | Expression) else None for n in call_sizes(call)]
        return sizes if len(sizes) == rank else []
    if call is not None and call.name == "repeat_interleave":
        # It expands a new axis behind the one that is repeated.
        repeats, axis = _called_with(call, 1, "repeats"), _called_with(call, 2, "dim")
        size = _without_division(call.kwargs.get("output_size", repeats))
        if isinstance(size, int | Expression) and isinstance(axis, int):
            place = axis % (rank - 1) + 1
            return [size if a == place and _number(size) == n else None for a, n in enumerate(shape)]
    return []


def _called_with(call: Call, position: int, name: str) -> Any:
    return call.args[position] if position < len(call.args) else call.kwargs.get(name)


def _without_division(size: Any) -> Any:
    """A size without a division by one (as by the number of groups where there is one)."""
    while isinstance(size, Expression) and size.operation == "floordiv" and _number(size.operands[1]) == 1:
        size = size.operands[0]
    return size


def repeat(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Tile; what has one place along an axis is expanded."""
    space, times = flow.space(entry.args[0]), entry.args[1]
    before = (1,) * (len(times) - len(flow.shape(entry.args[0]))) + flow.shape(entry.args[0])
    wishes = _expanded_sizes(flow, entry, flow.shape(entry.outs[0])) or [None] * len(times)
    grown = {axis: wishes[axis] for axis, n in enumerate(times) if before[axis] == 1 < n}
    layers = []
    for z in space.layers:
        labels = z.labels.reshape((1,) * (len(times) - z.labels.ndim) + z.labels.shape)
        tiles = [t if n > 1 else 1 for t, n in zip(times, labels.shape, strict=True)]
        layers.append(LabelArray(np.tile(labels, tiles), z.owner))
    layers += _widen_layers(flow, entry, layers)
    return [TensorLabels(tuple(layers), free=space.free, wishes=tuple(grown.items()), spread=frozenset(grown))]


def as_strided(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Windows into memory: each place in them has the labels of the element that lies there."""
    x, size, stride = entry.args[:3]
    known, labels = flow.tape.values[x.id], [z.labels for z in flow.space(x).layers]
    start = argument(entry, 3, "storage_offset")
    there, seen = (known.shape, known.strides, known.offset), (size, stride, known.offset if start is None else start)
    end = max(map(_end, (there, seen)))
    if max(end, prod(size)) > LARGEST:
        flow.store.pin(labels, f"raw strides at {flow.at()}")
        return [TensorLabels()]
    memory = torch.arange(end)
    element = np.full(end, NONE)
    element[memory.as_strided(*there).numpy()] = np.arange(prod(known.shape)).reshape(known.shape)
    at = element[memory.as_strided(*seen).numpy()]
    if (at < 0).any():
        flow.store.pin(labels, f"raw strides at {flow.at()}")
        return [TensorLabels()]
    flow.store.suspect(labels, f"raw strides at {flow.at()}")
    layers = [LabelArray(compress(np.broadcast_to(z, known.shape).reshape(-1)[at])) for z in labels]
    return [TensorLabels(flow.store.rectangular(layers, f"raw strides at {flow.at()}"))]


def _end(seen: tuple[Sequence[int], Sequence[int], int]) -> int:
    """How much of the memory a tensor of a shape, with strides and an offset, reaches into."""
    shape, strides, offset = seen
    return offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True) if n)


# -- parts -------------------------------------------------------------------------------------------------------


def _cut_piece(space: TensorLabels, axis: int, piece: slice) -> TensorLabels:
    layers = []
    for z in space.layers:
        if z.labels.shape[axis] > 1:
            where = tuple(piece if i == axis else slice(None) for i in range(z.labels.ndim))
            layers.append(LabelArray(compress(z.labels[where]), z.owner))
        else:
            layers.append(z)
    return TensorLabels(tuple(z for z in layers if z.support), free=space.free)


def _even_blocks(flow: LabelPropagation, x: Ref, axis: int, edges: Sequence[int], *, follows: bool) -> TensorLabels:
    """Parts at fixed places: units leave evenly from equal blocks that the edges respect. The labels that may go on.

    ``follows``: the code tells the edges in a way that can follow a cut; otherwise it must be tried.
    """
    size = flow.shape(x)[axis]
    block = reduce(gcd, edges, size)
    space = flow.space(x)
    kept = [z for z in space.layers if axis not in z.support]
    for layer in flow.layers(x, axis):
        outer, inner = as_blocks(flow, [layer], size // block, size)
        flow.store.pin([z.labels for z in outer], f"taken apart by position at {flow.at()}")
        if not follows:
            flow.store.suspect([z.labels for z in inner], f"taken apart by position at {flow.at()}")
        if any(is_pending(z) for z in (*outer, *inner)):
            # It has to become a product before it may meet others.
            layer = LabelArray(np.full(size, PENDING, dtype=np.int64))  # noqa: PLW2901
        kept += [move(layer, axis, len(flow.shape(x)))] if outer or inner else []
    return TensorLabels(tuple(kept), free=space.free)


def slice_(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[a:b:step]`` along one axis."""
    x = entry.args[0]
    axis = argument(entry, 1, "dim", 0) % len(flow.shape(x))
    size = flow.shape(x)[axis]
    start, stop, step = slice(
        argument(entry, 2, "start"), argument(entry, 3, "end"), argument(entry, 4, "step", 1)
    ).indices(size)
    piece = slice(start, stop, step)
    layers, space = flow.layers(x, axis), flow.space(x)
    if layers and entry.call is not None and entry.call.name == "narrow":
        length = _called_with(entry.call, 3, "length")
        length = length if isinstance(length, int | Expression) else stop - start
        flow.store.size(length, stop - start, [z.labels[start:stop] for z in layers], "narrow")
    if layers and size % step == 0 and start < step < size and start + size - step < stop:
        return [_every(flow, x, axis, step)]
    if layers and (start, stop, step) != (0, size, 1):
        given = _slice_sizes(entry.call, axis, len(flow.shape(x)))
        if step != 1:
            flow.store.pin([z.labels for z in layers], f"picked by position (one in {step}) at {flow.at()}")
        else:
            ends = [(wish, end) for wish, end in zip(given, (start, stop), strict=True) if end not in (0, size)]
            if not all(_follows(flow, wish, [z.labels[:end] for z in layers]) for wish, end in ends):
                told = all(isinstance(wish, Expression) for wish, _ in ends)
                space = _even_blocks(flow, x, axis, [start, stop], follows=told)
            for wish, end in ends:
                if isinstance(wish, Expression):
                    flow.store.size(wish, end, [z.labels[:end] for z in flow.layers(x, axis)], "a slice")
    return [_cut_piece(space, axis, piece)]


def _every(flow: LabelPropagation, x: Ref, axis: int, step: int) -> TensorLabels:
    """Every so many positions of an axis: blocks of that many go whole."""
    rank, size = len(flow.shape(x)), flow.shape(x)[axis]
    outer, inner = as_blocks(flow, flow.layers(x, axis), size // step, size)
    flow.store.pin([z.labels for z in inner], f"picked by position (one in {step}) at {flow.at()}")
    kept = [z for z in flow.space(x).layers if axis not in z.support]
    return TensorLabels((*kept, *[move(z, axis, rank) for z in outer]), free=flow.space(x).free)


def _follows(flow: LabelPropagation, wish: Any, vectors: Sequence[Array]) -> bool:
    """Whether a size follows a cut wherever it falls: it comes from attributes alone, or is read off such an axis."""
    if not isinstance(wish, Expression):
        return False
    return not wish.dimensions() or follows(flow, wish, vectors)


def _slice_sizes(call: Call | None, axis: int, rank: int) -> tuple[Any, Any]:
    if call is None or call.name not in ("__getitem__", "__setitem__") or len(call.args) < 2:
        return (None, None)
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if Ellipsis in [i for i in index if i is Ellipsis]:
        at = next(n for n, i in enumerate(index) if i is Ellipsis)
        fill = rank - sum(1 for i in index if i is not Ellipsis and i is not None)
        index = (*index[:at], *[slice(None)] * fill, *index[at + 1 :])
    index = tuple(i for i in index if i is not None)
    found = index[axis] if axis < len(index) else None
    return (found.start, found.stop) if isinstance(found, slice) else (None, None)


def split(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Split and chunk along one axis."""
    x = entry.args[0]
    axis = argument(entry, 2, "dim", 0) % len(flow.shape(x))
    sizes = [flow.shape(out)[axis] for out in entry.outs]
    edges = np.cumsum([0, *sizes]).tolist()
    layers, space = flow.layers(x, axis), flow.space(x)
    named = entry.call is not None and entry.call.name in ("split", "split_with_sizes")
    listed = entry.call.args[1] if named and entry.call is not None and len(entry.call.args) > 1 else None
    if layers and (len(sizes) > 1 or isinstance(listed, tuple)):
        pieces = [[z.labels[a:b] for z in layers] for a, b in pairwise(edges)]
        wishes = listed if isinstance(listed, tuple) else [listed]
        if not isinstance(listed, tuple) or not all(map(_follows, [flow] * len(sizes), listed, pieces)):
            told = isinstance(listed, Expression) or (entry.call is not None and entry.call.name == "chunk")
            space = _even_blocks(flow, x, axis, edges, follows=told and len(set(sizes)) == 1)
            pieces = [[z.labels[a:b] for z in flow.layers(x, axis)] for a, b in pairwise(edges)]
        for wish, n, piece in zip(wishes, sizes, pieces, strict=False):
            if isinstance(wish, Expression) or (isinstance(wish, int) and isinstance(listed, tuple)):
                flow.store.size(wish, n, piece, "a split")
    return [_cut_piece(space, axis, slice(a, b)) for a, b in pairwise(edges)]


def select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[i]`` along one axis: units along that axis are named by their place, so they stay."""
    x = entry.args[0]
    axis = argument(entry, 1, "dim", 0) % len(flow.shape(x))
    flow.store.pin([z.labels for z in flow.layers(x, axis)], f"picked by index at {flow.at()}")
    return [_without(flow.space(x), axis) for _ in entry.outs]


def unbind(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[0]``, ``x[1]``, ... along one axis."""
    return list(select(flow, replace(entry, args=(entry.args[0], argument(entry, 1, "dim", 0)), kwargs={})))


def _without(space: TensorLabels, axis: int) -> TensorLabels:
    kept = [z for z in space.layers if z.labels.shape[axis] == 1]
    return TensorLabels(tuple(LabelArray(z.labels.squeeze(axis), z.owner) for z in kept), free=space.free)


def as_complex(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Pairs along the last axis become complex numbers: real and imaginary parts stay."""
    x = entry.args[0]
    last = len(flow.shape(x)) - 1
    flow.store.pin([z.labels for z in flow.layers(x, last)], f"real and imaginary parts at {flow.at()}")
    return [_without(flow.space(x), last)]


def as_real(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Complex numbers become pairs along a new last axis."""
    space = flow.space(entry.args[0])
    return [replace(space, layers=tuple(LabelArray(z.labels[..., None], z.owner) for z in space.layers), wishes=())]


def cat(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Concatenate along one axis: labels follow each other there and are united along the others."""
    refs = [r for r in entry.args[0] if not (len(flow.shape(r)) == 1 and flow.shape(r)[0] == 0)]
    rank = len(flow.shape(entry.outs[0]))
    axis = argument(entry, 1, "dim", 0) % rank
    return [
        _join(flow, [(_label_constant(flow, r, axis), flow.shape(r)) for r in refs], axis, flow.shape(entry.outs[0]))
    ]


def _label_constant(flow: LabelPropagation, ref: Ref, axis: int) -> TensorLabels:
    """A constant that is put beside others gets units along ``axis``: there is nothing it could take them from."""
    space, shape = flow.space(ref), flow.shape(ref)
    wish = dict(space.wishes).get(axis)
    if not space.free or space.along(axis) or wish is None or shape[axis] < 2:
        return space
    layer = LabelArray(flow.store.unions.fresh(shape[axis]))
    flow.store.size(wish, shape[axis], [layer.labels], "a constant")
    flow.spaces[ref.id] = replace(space, layers=(*space.layers, move(layer, axis, len(shape))))
    return flow.spaces[ref.id]


def stack(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Concatenate along a new axis."""
    rank = len(flow.shape(entry.outs[0]))
    axis = argument(entry, 1, "dim", 0) % rank
    parts = []
    for r in entry.args[0]:
        space, shape = flow.space(r), flow.shape(r)
        layers = tuple(LabelArray(np.expand_dims(z.labels, axis), z.owner) for z in space.layers)
        parts.append((TensorLabels(layers, free=space.free), (*shape[:axis], 1, *shape[axis:])))
    return [_join(flow, parts, axis, flow.shape(entry.outs[0]))]


def _join(
    flow: LabelPropagation, parts: Sequence[tuple[TensorLabels, tuple[int, ...]]], axis: int, shape: tuple[int, ...]
) -> TensorLabels:
    beside, stacks = [], []
    for space, own in parts:
        layers = flow.store.rectangular(space.layers, flow.at(), parts=True)
        stacks.append([z for z in layers if z.support == (axis,)])
        others = TensorLabels(tuple(z for z in layers if z.support != (axis,)), free=space.free)
        beside.append((others, tuple(1 if i == axis else n for i, n in enumerate(own))))
    flat_shape = tuple(1 if i == axis else n for i, n in enumerate(shape))
    rest = flow.store.join(beside, flat_shape, flow.at())
    depth = max((len(s) for s in stacks), default=0)
    along = []
    for i in range(depth):
        pieces = [
            stack[i].labels.reshape(-1) if i < len(stack) else np.full(own[axis], NONE, dtype=np.int64)
            for stack, (_, own) in zip(stacks, parts, strict=True)
        ]
        labels = np.concatenate(pieces)
        along.append(move(LabelArray(labels), axis, len(shape)))
    return TensorLabels((*rest.layers, *[z for z in along if z.support]), free=rest.free and not along)


def pad(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Constant padding: the new positions belong to no unit."""
    x, amounts = entry.args[0], entry.args[1]
    space, rank = flow.space(x), len(flow.shape(x))
    layers = []
    for z in space.layers:
        widths = [(0, 0)] * rank
        for i in range(len(amounts) // 2):
            axis = rank - 1 - i
            before, after = amounts[2 * i], amounts[2 * i + 1]
            if z.labels.shape[axis] > 1 and (before, after) != (0, 0):
                if min(before, after) < 0:
                    flow.store.pin([z.labels], f"cropped by padding at {flow.at()}")
                widths[axis] = (max(0, before), max(0, after))
        layers.append(LabelArray(np.pad(z.labels, widths, constant_values=NONE), z.owner))
    out = flow.shape(entry.outs[0])
    fits = [z for z in layers if all(n in (1, m) for n, m in zip(z.labels.shape, out, strict=True))]
    unpadded = {a: a for a, (n, m) in enumerate(zip(flow.shape(x), out, strict=True)) if n == m}
    return [_taking(TensorLabels(tuple(fits), free=space.free), space, unpadded)]


def flip(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Reverse axes."""
    space = flow.space(entry.args[0])
    rank = len(flow.shape(entry.args[0]))
    axes = [a % rank for a in entry.args[1]]
    return [
        TensorLabels(tuple(LabelArray(np.flip(z.labels, tuple(axes)), z.owner) for z in space.layers), free=space.free)
    ]


def roll(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rotate along axes; rotating units by a fixed number of places does not survive a cut."""
    x = entry.args[0]
    axes = argument(entry, 2, "dims", ()) or range(len(flow.shape(x)))
    for axis in axes:
        flow.store.pin([z.labels for z in flow.layers(x, axis)], f"rotated by a fixed number at {flow.at()}")
    return [flow.space(x)]


def pixel_shuffle(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """[..., c r r, h, w] -> [..., c, h r, w r]."""
    x, r = entry.args[0], entry.args[1]
    *_, channels, _, _ = flow.shape(x)
    rank = len(flow.shape(x))
    outer, inner = as_blocks(flow, flow.layers(x, rank - 3), channels // (r * r), channels)
    flow.store.pin([z.labels for z in inner], f"moved into space at {flow.at()}")
    return [TensorLabels((*_before_space(flow, x), *[move(z, rank - 3, rank) for z in outer]))]


def pixel_unshuffle(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """[..., c, h r, w r] -> [..., c r r, h, w]."""
    x, r = entry.args[0], entry.args[1]
    rank = len(flow.shape(x))
    layers = [LabelArray(np.repeat(z.labels, r * r), z.owner) for z in flow.layers(x, rank - 3)]
    return [TensorLabels((*_before_space(flow, x), *[move(z, rank - 3, rank) for z in layers]))]


def _before_space(flow: LabelPropagation, x: Ref) -> list[LabelArray]:
    """Layers along the axes before channels and space; those along space stay as they are, its sizes change."""
    rank = len(flow.shape(x))
    for axis in (rank - 2, rank - 1):
        flow.store.pin([z.labels for z in flow.layers(x, axis)], f"moved between space and channels at {flow.at()}")
    return [z for z in flow.space(x).layers if not set(z.support) & {rank - 3, rank - 2, rank - 1}]


def unfold(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sliding windows: [n, c, h, w] -> [n, c k k, windows]."""
    x, kernel = entry.args[0], entry.args[1]
    times = int(np.prod(kernel))
    for axis in (2, 3):
        flow.store.pin([z.labels for z in flow.layers(x, axis)], f"windows over space at {flow.at()}")
    return [TensorLabels(tuple(move(LabelArray(np.repeat(z.labels, times), z.owner), 1, 3) for z in flow.layers(x, 1)))]


def fold(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sum of sliding windows: [n, c k k, windows] -> [n, c, h, w]."""
    x, kernel = entry.args[0], entry.args[2]
    times = int(np.prod(kernel))
    outer, inner = as_blocks(flow, flow.layers(x, 1), flow.shape(x)[1] // times, flow.shape(x)[1])
    flow.store.pin([z.labels for z in inner], f"moved into space at {flow.at()}")
    return [TensorLabels(tuple(move(z, 1, 4) for z in outer))]


def pack(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sequences of several lengths: [n, t, ...] to the rows of all steps [rows, ...]."""
    x = entry.args[0]
    for axis in (0, 1):
        flow.store.pin([z.labels for z in flow.layers(x, axis)], f"packed by length at {flow.at()}")
    kept = [z for z in flow.space(x).layers if not set(z.support) & {0, 1}]
    return [TensorLabels(tuple(LabelArray(z.labels.squeeze(0), z.owner) for z in kept)), TensorLabels()]


# -- by index ----------------------------------------------------------------------------------------------------


def _pick(flow: LabelPropagation, layer: LabelArray, index: Ref) -> Array | None:
    const = flow.tape.values[index.id].const
    if const is None or const.dtype.is_floating_point:
        return None
    ids = const.reshape(-1).cpu().numpy()
    if const.dtype == torch.bool:
        ids = np.nonzero(ids)[0]
    picked: Array = layer.labels.reshape(-1)[ids]
    return picked


def _pin_index(flow: LabelPropagation, ref: Ref) -> None:
    """A table of indices is as long as what it picks."""
    flow.store.pin([z.labels for z in flow.space(ref).layers], f"indices at {flow.at()}")


def index_select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows picked by an index tensor along one axis."""
    x, axis, index = entry.args[0], entry.args[1] % len(flow.shape(entry.args[0])), entry.args[2]
    _pin_index(flow, index)
    rank = len(flow.shape(x))
    kept = [z for z in flow.space(x).layers if axis not in z.support]
    for z in [] if flow.picks(index, flow.layers(x, axis)) else flow.layers(x, axis):
        picked = _pick(flow, z, index)
        flow.store.suspect([z.labels], f"picked by an index tensor at {flow.at()}")
        if picked is None:
            flow.store.pin([z.labels], f"picked by index at {flow.at()}")
        else:
            kept.append(move(LabelArray(picked), axis, rank))
    return [TensorLabels(tuple(z for z in kept if z.support))]


def index(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[i, :, j]`` with index tensors."""
    x, indices = entry.args[0], entry.args[1]
    rank, out_rank = len(flow.shape(x)), len(flow.shape(entry.outs[0]))
    used = [a for a, i in enumerate(indices) if i is not None]
    if any(_is_mask(flow, indices[a]) for a in used):
        return _masked_index(flow, entry, out_rank)
    for a in used:
        _pin_index(flow, indices[a])
    spread = out_rank - (rank - len(used))
    together = used == list(range(used[0], used[-1] + 1))
    first = used[0] if together else 0
    rest = [a for a in range(rank) if a not in used]
    # Index tensors that stand together put their axes in their place, others put them first.
    places = {a: i + spread for i, a in enumerate(rest)}
    if together:
        places = {a: (a if a < first else a - len(used) + spread) for a in rest}
    layers = []
    for z in flow.store.rectangular(flow.space(x).layers, flow.at()):
        axis = z.support[0]
        if axis in places:
            layers.append(move(LabelArray(z.labels.reshape(-1), z.owner), places[axis], out_rank))
            continue
        if flow.picks(indices[axis], [LabelArray(z.labels.reshape(-1), z.owner)]):
            continue
        const = flow.tape.values[indices[axis].id].const
        flow.store.suspect([z.labels], f"picked by an index tensor at {flow.at()}")
        if const is None:
            flow.store.pin([z.labels], f"picked by index at {flow.at()}")
            continue
        picked = z.labels.reshape(-1)[const.cpu().numpy()]
        shape = [1] * first + [1] * (spread - picked.ndim) + list(picked.shape)
        shape += [1] * (out_rank - len(shape))
        layers.append(LabelArray(compress(picked.reshape(shape))))
    return [TensorLabels(tuple(z for z in layers if z.support))]


def _is_mask(flow: LabelPropagation, ref: Ref) -> bool:
    return flow.tape.values[ref.id].dtype == torch.bool


def _masked_index(flow: LabelPropagation, entry: Entry, out_rank: int) -> list[TensorLabels]:
    """``x[mask]``, ``x[:, mask]``: what the mask covers becomes one axis."""
    x, indices = entry.args[0], entry.args[1]
    masks = [i for i in indices if i is not None]
    covered = _indexed_axes(flow, indices)
    whole = covered == list(range(covered[0], covered[-1] + 1)) and len(masks) == 1
    layers, even = [], _even_axes(flow, masks[0], len(covered)) if whole else []
    for mask in masks:
        _pin_mask(flow, mask, even)
    for z in flow.store.rectangular(flow.space(x).layers, flow.at()):
        axis = z.support[0]
        from_end = len(flow.shape(x)) - axis
        if axis > covered[-1] and from_end <= out_rank:
            layers.append(move(LabelArray(z.labels.reshape(-1), z.owner), out_rank - from_end, out_rank))
        elif axis < covered[0] and whole:
            layers.append(move(LabelArray(z.labels.reshape(-1), z.owner), axis, out_rank))
        elif whole and axis - covered[0] in even and (mask := flow.tape.values[masks[0].id].const) is not None:
            shown = np.moveaxis(z.labels, range(covered[0]), range(-covered[0], 0)) if covered[0] else z.labels
            shown = shown.reshape(shown.shape[: len(covered)])
            labels = np.broadcast_to(shown, tuple(mask.shape))[mask.cpu().numpy()]
            layers.append(move(LabelArray(labels), covered[0], out_rank))
        else:
            flow.store.pin([z.labels], f"picked by a mask at {flow.at()}")
    return [TensorLabels(tuple(z for z in layers if z.support))]


def _indexed_axes(flow: LabelPropagation, indices: Sequence[Ref | None]) -> list[int]:
    """The axes that index tensors pick from; a mask has as many of them as axes of its own."""
    covered, axis = [], 0
    for ids in indices:
        wide = len(flow.shape(ids)) if ids is not None and _is_mask(flow, ids) else 1
        covered += list(range(axis, axis + wide)) if ids is not None else []
        axis += wide
    return covered


def _even_axes(flow: LabelPropagation, mask: Ref, rank: int) -> list[int]:
    """The last axes along which a mask, seen with ``rank`` axes, says the same everywhere."""
    shape, contents, spread = flow.shape(mask), flow.tape.values[mask.id].const, flow.space(mask).spread
    shift, even = rank - len(shape), []
    for axis in reversed(range(rank)):
        own = axis - shift
        is_even = own < 0 or shape[own] == 1 or own in spread
        if not is_even and contents is not None and not flow.space(mask).along(own):
            is_even = bool((contents == contents.narrow(own, 0, min(1, shape[own]))).all())
        if not is_even:
            break
        even.append(axis)
    return even


def _pin_mask(flow: LabelPropagation, mask: Ref, even: Sequence[int]) -> None:
    labels = [z.labels for z in flow.space(mask).layers if not set(z.support) <= set(even)]
    flow.store.pin(labels, f"a mask at {flow.at()}")


def masked_select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """As ``x[mask]``, with a mask of the same shape."""
    x, mask = entry.args[:2]
    if flow.shape(x) != flow.shape(mask):
        flow.store.pin([z.labels for r in (x, mask) for z in flow.space(r).layers], f"picked by a mask at {flow.at()}")
        return [TensorLabels()]
    return _masked_index(flow, replace(entry, args=(x, (mask,))), 1)


def masked_scatter(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Values in the places that a mask shows, one after the other: where whole rows are shown, the rows' units meet."""
    x, mask, source = entry.args[:3]
    shape, given = flow.shape(x), flow.shape(source)
    even = len(_even_axes(flow, mask, len(shape)))
    even = max(k for k in range(min(even, len(given)) + 1) if shape[len(shape) - k :] == given[len(given) - k :])
    parts = []
    for ref in (x, mask, source):
        own = flow.shape(ref)
        rows = len(own) - min(even, len(own))
        kept = [z for z in flow.store.rectangular(flow.space(ref).layers, flow.at()) if z.support[0] >= rows]
        flow.store.pin([z.labels for a in range(rows) for z in flow.layers(ref, a)], f"placed by a mask at {flow.at()}")
        tail = TensorLabels(tuple(LabelArray(z.labels.reshape(z.labels.shape[rows:]), z.owner) for z in kept))
        free = flow.space(ref).free or ref is mask
        parts.append((replace(tail, free=free), own[rows:]))
    tail = flow.store.join(parts, shape[len(shape) - even :], flow.at())
    ones = (1,) * (len(shape) - even)
    return [TensorLabels(tuple(LabelArray(z.labels.reshape(ones + z.labels.shape)) for z in tail.layers))]


def gather(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Elements picked along one axis by an index of the same rank: other axes keep their units."""
    x, axis, ids = entry.args[0], entry.args[1] % len(flow.shape(entry.args[0])), entry.args[2]
    for z in flow.space(x).layers:
        if axis not in z.support and any(flow.shape(ids)[a] != flow.shape(x)[a] for a in z.support):
            flow.store.pin([z.labels], f"picked by index at {flow.at()}")
    fits = [a for a, n in enumerate(flow.shape(x)) if n == flow.shape(ids)[a] and a != axis]
    if not flow.picks(ids, flow.layers(x, axis)):
        _pin_along(flow, (x,), axis)
    return [_at_places(flow, (x,), ids, axis, fits)]


def index_add(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows added or copied to places along one axis: the other axes of both are the same units."""
    x, axis, ids, source = entry.args[0], entry.args[1] % len(flow.shape(entry.args[0])), entry.args[2], entry.args[3]
    _pin_index(flow, ids)
    parts = []
    for r in (x, source):
        flow.store.pin([z.labels for z in flow.layers(r, axis)], f"placed by index at {flow.at()}")
        space, shape = flow.space(r), tuple(1 if a == axis else n for a, n in enumerate(flow.shape(r)))
        parts.append((replace(space, layers=tuple(z for z in space.layers if axis not in z.support)), shape))
    return [replace(flow.store.join(parts, parts[0][1], flow.at()), free=False)]


def scatter(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """As :func:`index_add`, with an index for every element."""
    x, axis, ids, source = entry.args[0], entry.args[1] % len(flow.shape(entry.args[0])), entry.args[2], entry.args[3]
    parts = (x, source) if isinstance(source, Ref) else (x,)
    if ids.id in flow.places:
        _label_constant(flow, x, axis)
    units = flow.layers(x, axis)
    picked = flow.picks(ids, units)
    _pin_along(flow, parts[1:] if picked else parts, axis)
    placed = _at_places(flow, parts, ids, axis, [a for a in range(len(flow.shape(x))) if a != axis])
    along = [move(LabelArray(z.labels), axis, len(flow.shape(x))) for z in units if picked]
    return [replace(placed, layers=(*placed.layers, *along))]


def _pin_along(flow: LabelPropagation, refs: Sequence[Ref], axis: int) -> None:
    flow.store.pin([z.labels for r in refs for z in flow.layers(r, axis)], f"placed by index at {flow.at()}")


def _at_places(flow: LabelPropagation, refs: Sequence[Ref], ids: Ref, axis: int, axes: Sequence[int]) -> TensorLabels:
    """Units along ``axes`` of tensors of the same rank and of the index that tells places along ``axis``."""
    parts = []
    _pin_along(flow, (ids,), axis)
    for r in (*refs, ids):
        space, shape = flow.space(r), tuple(n if a in axes else 1 for a, n in enumerate(flow.shape(r)))
        layers = tuple(z for z in flow.store.rectangular(space.layers, flow.at()) if z.support[0] in axes)
        # An index without units of its own may still have been made as large as the others: that is tried.
        parts.append((replace(space, layers=layers, free=space.free or r is ids), shape))
        flow.store.suspect([z.labels for z in layers], f"placed by an index at {flow.at()}")
    return replace(flow.store.join(parts, parts[0][1], flow.at()), free=False)


def index_put(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[i, j] = values``: one value leaves the other axes alone, more have the units of the axes after the index."""
    x, indices, values = entry.args[:3]
    covered, picks = _indexed_axes(flow, indices), [i for i in indices if i is not None]
    is_one = prod(flow.shape(values)) == 1
    is_even = is_one and len(picks) == 1 and _is_mask(flow, picks[0])
    even = _even_axes(flow, picks[0], len(covered)) if is_even else []
    for ids in picks:
        _pin_mask(flow, ids, even)
    hit = [axis for place, axis in enumerate(covered) if place not in even]
    for axis in hit:
        flow.store.pin([z.labels for z in flow.layers(x, axis)], f"placed by index at {flow.at()}")
    if is_one:
        return [_unindexed_space(flow, x, hit, picks[0], {place: covered[place] for place in even})]
    if covered != list(range(len(covered))):
        flow.store.pin([z.labels for r in (x, values) for z in flow.space(r).layers], f"placed by index at {flow.at()}")
        return [TensorLabels()]
    return [_with_rows(flow, x, values, len(covered))]


def _unindexed_space(
    flow: LabelPropagation, x: Ref, hit: Sequence[int], mask: Ref, even: Mapping[int, int]
) -> TensorLabels:
    """The units of ``x`` along axes that are not ``hit``, with those of a mask where it says the same (``even``)."""
    shape, space = flow.shape(x), flow.space(x)
    kept = replace(space, layers=tuple(z for z in space.layers if not set(z.support) & set(hit)))
    parts = [(kept, tuple(1 if a in hit else n for a, n in enumerate(shape)))]
    for place, axis in even.items():
        layers = tuple(move(z, axis, len(shape)) for z in flow.layers(mask, place))
        parts.append((TensorLabels(layers, free=True), tuple(n if a == axis else 1 for a, n in enumerate(shape))))
    return replace(flow.store.join(parts, shape, flow.at()), free=space.free)


def _with_rows(flow: LabelPropagation, x: Ref, values: Ref, last: int) -> TensorLabels:
    """Whole rows written into ``x``: both have the same units along the axes from ``last`` on."""
    shape, given = flow.shape(x), flow.shape(values)
    rest = len(shape) - last
    tail = [
        z for z in flow.store.rectangular(flow.space(values).layers, flow.at()) if z.support[0] >= len(given) - rest
    ]
    ones = [1] * (len(shape) - min(rest, len(given)))
    new = TensorLabels(
        tuple(LabelArray(z.labels.reshape(ones + list(z.labels.shape[max(0, len(given) - rest) :]))) for z in tail)
    )
    own = tuple(ones) + given[max(0, len(given) - rest) :]
    kept = replace(flow.space(x), layers=tuple(z for z in flow.space(x).layers if min(z.support, default=last) >= last))
    collapsed = (1,) * last + shape[last:]
    return flow.store.join([(kept, collapsed), (replace(new, free=flow.space(values).free), own)], collapsed, flow.at())
