"""Operators that move elements without computing: the same move is made with the labels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import pairwise
from math import gcd, prod
from typing import Any

import numpy as np
import torch

from nervure.graph.labels import NONE, PENDING, Array, LabelArray, TensorLabels, align_rank, blank, compress, is_pending
from nervure.graph.ops.contractions import OPAQUE_CALLS, as_blocks
from nervure.graph.propagate import LARGEST, LabelPropagation, argument, call_argument, call_sizes, made, move, move_all
from nervure.graph.sizes import Expression
from nervure.graph.solve import follows
from nervure.graph.tape import Call, Entry, Ref


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
    layers = [z.to(reshape(z.labels, old, new)) for z in space.layers if 0 not in old]
    layers += _spread_in(flow, space, old, new)
    kept = flow.store.rectangular(layers, f"reshaped at {flow.at()}")
    _sizes_follow(flow, entry, kept, new)
    return [_taking(space.with_layers(kept), space, _unchanged_axes(old, new))]


def _spread_in(flow: LabelPropagation, space: TensorLabels, old: Sequence[int], new: Sequence[int]) -> list[LabelArray]:
    """Units for axes of one value that are merged with others, as a mask for all heads is with the samples.

    A mask [samples, 1, tokens] expanded to [samples, 4 heads, tokens], seen as [samples * 4, tokens]: the heads get
    units now (0 1 2 3 0 1 2 3 along the merged axis), since later nothing tells them from the samples.
    """
    found = []
    wishes = dict(space.wishes)
    for before, after in segments(old, new):
        merged = [i for i in before if old[i] != 1]
        places = [j for j in after if new[j] != 1]
        is_labelled = any(z.labels.shape[i] > 1 for z in space.layers for i in before)
        if len(merged) < 2 or len(places) != 1 or is_labelled:
            continue
        for axis in space.spread.intersection(merged):
            fresh = LabelArray(flow.store.unions.fresh(old[axis]))
            wish = wishes.get(axis)
            if wish is None:
                flow.suspect([fresh], "expanded")
            else:
                flow.store.size(wish, old[axis], [fresh.labels], "an expansion")
            along = move(fresh, axis, len(old))
            found.append(LabelArray(reshape(along.labels, old, new)))
    return found


def _unchanged_axes(old: Sequence[int], new: Sequence[int]) -> dict[int, int]:
    """Axes that a reshape leaves as they are (but for axes of size 1 around them), by where they go.

    From [2, 1, 6, 5] to [2, 3, 2, 5]: axis 0 to 0 and axis 3 to 3.
    """
    unchanged = {}
    for before, after in segments(old, new):
        sources = [i for i in before if old[i] != 1]
        targets = [j for j in after if new[j] != 1]
        if len(sources) == len(targets) == 1:
            unchanged[sources[0]] = targets[0]
    return unchanged


def _taking(moved: TensorLabels, source: TensorLabels, places: Mapping[int, int]) -> TensorLabels:
    """``moved`` takes labels along its axes as ``source`` does along its own, which went to ``places``."""
    wishes = tuple((places[axis], wish) for axis, wish in source.wishes if axis in places)
    spread = frozenset(places[axis] for axis in source.spread if axis in places)
    return replace(moved, wishes=wishes, spread=spread)


def _sizes_follow(flow: LabelPropagation, entry: Entry, layers: Sequence[LabelArray], shape: Sequence[int]) -> None:
    """Sizes that the user's code gives for labelled axes must change with a cut."""
    call = entry.call
    if call is None:
        return
    if call.name in OPAQUE_CALLS:
        flow.suspect(layers, f"sizes inside {call.name}")
    sizes = _lengths(flow, call, len(shape))
    if len(sizes) != len(shape):
        return
    _together_as_long_as(flow, sizes, layers, shape)
    for axis, size in enumerate(sizes):
        along = [z for z in layers if z.labels.shape[axis] > 1]
        vectors = [z.labels for z in along]
        _is_as_long_as(flow, size, vectors)
        if _number(size) == -1 or (isinstance(size, int) and not along):
            continue
        if any(v.size != v.shape[axis] for v in vectors):
            flow.suspect(along, f"{call.name} to {size}")
        elif isinstance(size, int):
            flow.pin(along, f"{call.name} to {size}, a number in the code,")
        else:
            flow.store.size(size, shape[axis], [z.vector for z in along], call.name)


def _lengths(flow: LabelPropagation, call: Call, rank: int) -> list[int | Expression]:
    """The sizes that a call gives for the axes of its result, -1 where it leaves one open; none if it gives no such."""
    if call.name not in flow.row.lengths.split():
        return []
    sizes = [s for s in call_sizes(call) if isinstance(s, int | Expression)]
    if call.name != "unflatten" or not sizes:
        return sizes
    # x.unflatten(1, (2, 3)) of [5, 6, 7]: -1, 2, 3, -1
    axis, *parts = sizes
    before = _number(axis) % (rank - len(parts) + 1)
    after = rank - before - len(parts)
    return [*[-1] * before, *parts, *[-1] * after]


def _is_as_long_as(flow: LabelPropagation, size: Any, vectors: Sequence[Array]) -> None:
    """A size read from an axis of another tensor can follow a cut of that axis only: both are cut alike."""
    size = _without_division(size)
    if not isinstance(size, Expression) or size.dimension is None:
        return
    number, place = size.dimension
    theirs = [LabelArray(z.vector) for z in flow.space(Ref(number)).layers if z.support == (place,)]
    mine = [LabelArray(v.reshape(-1)) for v in vectors if v.size == size.value]
    is_whole = theirs and mine and len(mine) == len(vectors)
    if is_whole and not follows(flow, size, [z.labels for z in mine]):
        flow.store.match(theirs, mine, flow.at())


def _together_as_long_as(
    flow: LabelPropagation, sizes: Sequence[Any], layers: Sequence[LabelArray], shape: Sequence[int]
) -> None:
    """Sizes ``h`` and ``c // h`` in one call, ``c`` read from an axis: both axes together are cut with that one.

    ``x.view(b, h, c // h)`` of 6 channels in 2 heads: channels 0 to 5 meet heads 0 0 0 1 1 1 and widths 0 1 2 0 1 2.
    """
    for inner, size in enumerate(sizes):
        if not (isinstance(size, Expression) and size.operation == "floordiv" and size.operands[1] in sizes):
            continue
        whole, outer = size.operands[0], sizes.index(size.operands[1])
        if outer != inner - 1:  # the other way round, each unit of the widths has its heads: nothing is shared
            continue
        heads = [z.vector for z in layers if z.support == (outer,)]
        widths = [z.vector for z in layers if z.support == (inner,)]
        if not isinstance(whole, Expression) or whole.dimension is None or not heads or not widths:
            continue
        if whole.value != shape[outer] * shape[inner] or follows(flow, size, widths):
            continue
        number, axis = whole.dimension
        theirs = [LabelArray(z.labels) for z in flow.layers(Ref(number), axis)]
        by_head = [LabelArray(np.repeat(z, shape[inner])) for z in heads]
        by_width = [LabelArray(np.tile(z, shape[outer])) for z in widths]
        if theirs:
            flow.store.match(theirs, by_head + by_width, flow.at())


def _number(size: Any) -> int:
    return size.value if isinstance(size, Expression) else int(size)


def transpose(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Swap two axes."""
    rank = flow.rank(entry.args[0])
    order = list(range(rank))
    if entry.name.rstrip("_") == "t":
        order.reverse()
    else:
        a, b = entry.args[1] % rank, entry.args[2] % rank
        order[a], order[b] = order[b], order[a]
    return [_permute(flow.space(entry.args[0]), order)]


def permute(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Reorder axes."""
    x, order = entry.args[:2]
    rank = flow.rank(x)
    return [_permute(flow.space(x), [axis % rank for axis in order])]


def _permute(space: TensorLabels, order: list[int]) -> TensorLabels:
    moved = space.with_layers(z.to(z.labels.transpose(order)) for z in space.layers)
    return _taking(moved, space, {axis: place for place, axis in enumerate(order)})


def expand(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Broadcast: the labels are already broadcast, and along axes of one value any others will do."""
    x, shape = entry.args[0], flow.shape(entry.outs[0])
    layers = align_rank(flow.space(x), len(shape))
    _sizes_follow(flow, entry, layers, shape)
    return [_grow(flow, entry, layers)]


def _grow(flow: LabelPropagation, entry: Entry, layers: Sequence[LabelArray]) -> TensorLabels:
    """Labels of an expansion; along the axes that were as one and are no longer it takes what it meets."""
    x, shape = entry.args[0], flow.shape(entry.outs[0])
    before = _with_rank(flow.shape(x), len(shape))
    wishes = _expanded_sizes(flow, entry, shape) or [None] * len(shape)
    grown = {axis: wishes[axis] for axis, n in enumerate(shape) if before[axis] == 1 < n}
    space = flow.space(x).with_layers((*layers, *_widen_layers(flow, entry, layers)))
    return replace(space, wishes=tuple(grown.items()), spread=frozenset(grown))


def _with_rank(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape


def _widen_layers(flow: LabelPropagation, entry: Entry, layers: Sequence[LabelArray]) -> list[LabelArray]:
    """Axes that were as one and get their size from an axis of another tensor: they are cut with that one."""
    shape = flow.shape(entry.outs[0])
    old = _with_rank(flow.shape(entry.args[0]), len(shape))
    found: list[LabelArray] = []
    for axis, size in enumerate(_expanded_sizes(flow, entry, shape)):
        is_labelled = any(z.labels.shape[axis] > 1 for z in layers)
        is_single = old[axis] == 1 < shape[axis] and not is_labelled
        if is_single and isinstance(size, Expression) and size.dimension is not None:
            number, place = size.dimension
            found += [made(z, axis, len(shape)) for z in flow.layers(Ref(number), place)]
    return found


def _expanded_sizes(flow: LabelPropagation, entry: Entry, shape: Sequence[int]) -> list[Any]:
    """The sizes that the user's code gives for an expansion to ``shape`` (None where it gives none)."""
    call, rank = entry.call, len(shape)
    if call is not None and call.name in flow.row.lengths.split():
        sizes = [n if isinstance(n, int | Expression) else None for n in call_sizes(call)]
        return sizes if len(sizes) == rank else []
    if call is not None and call.name == "repeat_interleave":
        # It expands a new axis behind the one that is repeated.
        repeats, axis = call_argument(call, 1, "repeats"), call_argument(call, 2, "dim")
        size = _without_division(call.kwargs.get("output_size", repeats))
        if isinstance(size, int | Expression) and isinstance(axis, int):
            place = axis % (rank - 1) + 1
            return [size if a == place and _number(size) == n else None for a, n in enumerate(shape)]
    return []


def _without_division(size: Any) -> Any:
    """A size without a division by one (as by the number of groups where there is one)."""
    while isinstance(size, Expression) and size.operation == "floordiv" and _number(size.operands[1]) == 1:
        size = size.operands[0]
    return size


def repeat(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Tile; what has one place along an axis is expanded."""
    times = entry.args[1]
    layers = []
    for z in align_rank(flow.space(entry.args[0]), len(times)):
        tiles = [t if n > 1 else 1 for t, n in zip(times, z.labels.shape, strict=True)]
        layers.append(z.to(np.tile(z.labels, tiles)))
    return [_grow(flow, entry, layers)]


def as_strided(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Windows into memory: each place in them has the labels of the element that lies there."""
    x, size, stride = entry.args[:3]
    known, labels = flow.tape.values[x.id], [z.labels for z in flow.space(x).layers]
    start = argument(entry, 3, "storage_offset")
    there = known.shape, known.strides, known.offset
    seen = size, stride, known.offset if start is None else start
    end = max(map(_end, (there, seen)))
    if max(end, prod(size)) > LARGEST:
        flow.store.pin(labels, f"raw strides at {flow.at()}")
        return [TensorLabels()]
    memory = torch.arange(end)
    element = blank(end)
    numbers = np.arange(prod(known.shape)).reshape(known.shape)
    element[memory.as_strided(*there).numpy()] = numbers
    at = element[memory.as_strided(*seen).numpy()]
    if (at < 0).any():
        flow.store.pin(labels, f"raw strides at {flow.at()}")
        return [TensorLabels()]
    flow.store.suspect(labels, f"raw strides at {flow.at()}")
    whole = (np.broadcast_to(z, known.shape).reshape(-1) for z in labels)
    layers = [LabelArray(compress(z[at])) for z in whole]
    return [TensorLabels(flow.store.rectangular(layers, f"raw strides at {flow.at()}"))]


def _end(seen: tuple[Sequence[int], Sequence[int], int]) -> int:
    """How much of the memory a tensor of a shape, with strides and an offset, reaches into."""
    shape, strides, offset = seen
    reaches = ((n - 1) * step for n, step in zip(shape, strides, strict=True) if n)
    return offset + 1 + sum(reaches)


# -- parts -------------------------------------------------------------------------------------------------------


def _cut_piece(space: TensorLabels, axis: int, piece: slice) -> TensorLabels:
    layers = []
    for z in space.layers:
        where = tuple(piece if i == axis else slice(None) for i in range(z.labels.ndim))
        layers.append(z.to(compress(z.labels[where])) if z.labels.shape[axis] > 1 else z)
    return space.with_layers(z for z in layers if z.support)


def _even_blocks(flow: LabelPropagation, x: Ref, axis: int, edges: Sequence[int], *, follows: bool) -> TensorLabels:
    """Parts at fixed places: units leave evenly from equal blocks that the edges respect. The labels that may go on.

    Edges 0, 4, 6 of an axis of 6: blocks of 2, and units leave from all three at the same places within.

    ``follows``: the code tells the edges in a way that can follow a cut; otherwise it must be tried.
    """
    size, space = flow.shape(x)[axis], flow.space(x)
    block = reduce(gcd, edges, size)
    kept = space.beside([axis])
    for layer in flow.layers(x, axis):
        outer, inner = as_blocks(flow, [layer], size // block, size)
        flow.pin(outer, "taken apart by position")
        if not follows:
            flow.suspect(inner, "taken apart by position")
        # What is pending has to become a product before it may meet others.
        is_waiting = any(is_pending(z) for z in (*outer, *inner))
        along = LabelArray(np.full(size, PENDING, dtype=np.int64)) if is_waiting else layer
        kept += [move(along, axis, flow.rank(x))] if outer or inner else []
    return space.with_layers(kept)


def slice_(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[a:b:step]`` along one axis."""
    x = entry.args[0]
    axis = argument(entry, 1, "dim", 0) % flow.rank(x)
    size = flow.shape(x)[axis]
    given = slice(argument(entry, 2, "start"), argument(entry, 3, "end"), argument(entry, 4, "step", 1))
    start, stop, step = given.indices(size)
    piece = slice(start, stop, step)
    layers = flow.layers(x, axis)
    if layers and entry.call is not None and entry.call.name == "narrow":
        length = call_argument(entry.call, 3, "length")
        length = length if isinstance(length, int | Expression) else stop - start
        flow.store.size(length, stop - start, [z.labels[start:stop] for z in layers], "narrow")
    is_to_the_end = start + size - step < stop
    if layers and size % step == 0 and start < step < size and is_to_the_end:
        return [_every(flow, x, axis, step)]
    space = flow.space(x)
    if layers and step != 1:
        flow.pin(layers, f"picked by position (one in {step})")
    elif layers and (start, stop) != (0, size):
        space = _between(flow, entry, axis, (start, stop))
    return [_cut_piece(space, axis, piece)]


def _between(flow: LabelPropagation, entry: Entry, axis: int, edges: tuple[int, int]) -> TensorLabels:
    """The labels of what ``x[a:b]`` is taken from, where ends that the code tells are made to follow a cut."""
    x = entry.args[0]
    space, size = flow.space(x), flow.shape(x)[axis]
    told = _slice_sizes(entry.call, axis, flow.rank(x))
    ends = [(wish, end) for wish, end in zip(told, edges, strict=True) if end not in (0, size)]
    before = {end: [z.labels[:end] for z in flow.layers(x, axis)] for _, end in ends}
    if not all(_follows(flow, wish, before[end]) for wish, end in ends):
        are_told = all(isinstance(wish, Expression) for wish, _ in ends)
        space = _even_blocks(flow, x, axis, edges, follows=are_told)
    for wish, end in ends:
        if isinstance(wish, Expression):
            flow.store.size(wish, end, [z.labels[:end] for z in flow.layers(x, axis)], "a slice")
    return space


def _every(flow: LabelPropagation, x: Ref, axis: int, step: int) -> TensorLabels:
    """Every so many positions of an axis: blocks of that many go whole."""
    size = flow.shape(x)[axis]
    outer, inner = as_blocks(flow, flow.layers(x, axis), size // step, size)
    flow.pin(inner, f"picked by position (one in {step})")
    space = flow.space(x)
    picked = move_all(outer, axis, flow.rank(x))
    return space.with_layers([*space.beside([axis]), *picked])


def _follows(flow: LabelPropagation, wish: Any, vectors: Sequence[Array]) -> bool:
    """Whether a size follows a cut wherever it falls: it comes from attributes alone, or is read off such an axis."""
    if not isinstance(wish, Expression):
        return False
    return not wish.dimensions() or follows(flow, wish, vectors)


def _slice_sizes(call: Call | None, axis: int, rank: int) -> tuple[Any, Any]:
    """What the code gives as the ends of a slice along ``axis``: in ``x[..., :n]`` None and ``n`` for the last."""
    if call is None or call.name not in ("__getitem__", "__setitem__") or len(call.args) < 2:
        return (None, None)
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    dots = next((n for n, i in enumerate(index) if i is Ellipsis), None)
    if dots is not None:
        named = sum(1 for i in index if i is not Ellipsis and i is not None)
        index = (*index[:dots], *[slice(None)] * (rank - named), *index[dots + 1 :])
    index = tuple(i for i in index if i is not None)
    found = index[axis] if axis < len(index) else None
    return (found.start, found.stop) if isinstance(found, slice) else (None, None)


def split(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Split and chunk along one axis."""
    x = entry.args[0]
    axis = argument(entry, 2, "dim", 0) % flow.rank(x)
    sizes = [flow.shape(out)[axis] for out in entry.outs]
    edges = np.cumsum([0, *sizes]).tolist()
    name = "" if entry.call is None else entry.call.name
    told = call_argument(entry.call, 1, "") if name in ("split", "split_with_sizes") else None
    space = flow.space(x)
    layers = flow.layers(x, axis)
    if layers and (len(sizes) > 1 or isinstance(told, tuple)):
        is_even = len(set(sizes)) == 1 and (isinstance(told, Expression) or name == "chunk")
        pieces = _pieces(layers, edges)
        if not isinstance(told, tuple) or not all(map(partial(_follows, flow), told, pieces)):
            space = _even_blocks(flow, x, axis, edges, follows=is_even)
            layers = flow.layers(x, axis)
        wishes = told if isinstance(told, tuple) else [told]
        for wish, n, piece in zip(wishes, sizes, _pieces(layers, edges), strict=False):
            if isinstance(wish, Expression) or (isinstance(wish, int) and isinstance(told, tuple)):
                flow.store.size(wish, n, piece, "a split")
    return [_cut_piece(space, axis, slice(a, b)) for a, b in pairwise(edges)]


def _pieces(layers: Sequence[LabelArray], edges: Sequence[int]) -> list[list[Array]]:
    return [[z.labels[a:b] for z in layers] for a, b in pairwise(edges)]


def select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[i]`` along one axis: units along that axis are named by their place, so they stay."""
    x = entry.args[0]
    axis = argument(entry, 1, "dim", 0) % flow.rank(x)
    flow.pin(flow.layers(x, axis), "picked by index")
    return [_without(flow.space(x), axis) for _ in entry.outs]


def unbind(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[0]``, ``x[1]``, ... along one axis."""
    axis = argument(entry, 1, "dim", 0)
    return select(flow, replace(entry, args=(entry.args[0], axis), kwargs={}))


def _without(space: TensorLabels, axis: int) -> TensorLabels:
    kept = [z for z in space.layers if z.labels.shape[axis] == 1]
    return space.with_layers(z.to(z.labels.squeeze(axis)) for z in kept)


def as_complex(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Pairs along the last axis become complex numbers: real and imaginary parts stay."""
    x = entry.args[0]
    last = flow.rank(x) - 1
    flow.pin(flow.layers(x, last), "real and imaginary parts")
    return [_without(flow.space(x), last)]


def as_real(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Complex numbers become pairs along a new last axis."""
    space = flow.space(entry.args[0])
    layers = tuple(z.to(z.labels[..., None]) for z in space.layers)
    return [replace(space, layers=layers, wishes=())]


def cat(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Concatenate along one axis: labels follow each other there and are united along the others."""
    shape = flow.shape(entry.outs[0])
    axis = argument(entry, 1, "dim", 0) % len(shape)
    refs = [r for r in entry.args[0] if flow.shape(r) != (0,)]
    parts = [(_label_constant(flow, r, axis), flow.shape(r)) for r in refs]
    flow.join_places(refs, entry.outs[0])
    return [_join(flow, parts, axis, shape)]


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
    whole = flow.shape(entry.outs[0])
    axis = argument(entry, 1, "dim", 0) % len(whole)
    parts = []
    for r in entry.args[0]:
        space, shape = flow.space(r), flow.shape(r)
        layers = [z.to(np.expand_dims(z.labels, axis)) for z in space.layers]
        parts.append((space.with_layers(layers), (*shape[:axis], 1, *shape[axis:])))
    return [_join(flow, parts, axis, whole)]


def _join(
    flow: LabelPropagation, parts: Sequence[tuple[TensorLabels, tuple[int, ...]]], axis: int, shape: tuple[int, ...]
) -> TensorLabels:
    """Parts beside each other along ``axis``; a part with fewer layers there has -1 in the others.

    Parts of 2 and 3 with labels 0 1 and 7 8 9 (and 5 5 6): 0 1 7 8 9 and -1 -1 5 5 6.
    """
    beside, stacks = [], []
    for space, own in parts:
        layers = flow.store.rectangular(space.layers, flow.at(), parts=True)
        stacks.append([z for z in layers if z.support == (axis,)])
        others = space.with_layers(z for z in layers if z.support != (axis,))
        beside.append((others, _flat(own, [axis])))
    rest = flow.join(beside, _flat(shape, [axis]))
    sizes = [own[axis] for _, own in parts]
    along = []
    for i in range(max((len(s) for s in stacks), default=0)):
        pieces = [s[i].vector if i < len(s) else blank(n) for s, n in zip(stacks, sizes, strict=True)]
        joined = LabelArray(np.concatenate(pieces))
        along.append(move(joined, axis, len(shape)))
    return TensorLabels((*rest.layers, *(z for z in along if z.support)), free=rest.free and not along)


def _flat(shape: Sequence[int], axes: Collection[int]) -> tuple[int, ...]:
    """A shape with size 1 along ``axes``."""
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


def pad(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Constant padding: the new positions belong to no unit."""
    x, amounts = entry.args[0], entry.args[1]
    space, old, new = flow.space(x), flow.shape(x), flow.shape(entry.outs[0])
    # Amounts are told from the last axis on, before and after.
    ends_of = zip(amounts[::2], amounts[1::2], strict=True)
    around = {len(old) - 1 - place: ends for place, ends in enumerate(ends_of)}
    layers = []
    for z in space.layers:
        widths = [(0, 0)] * len(old)
        for axis, ends in around.items():
            if z.labels.shape[axis] > 1 and ends != (0, 0):
                if min(ends) < 0:
                    flow.pin([z], "cropped by padding")
                widths[axis] = (max(0, ends[0]), max(0, ends[1]))
        layers.append(z.to(np.pad(z.labels, widths, constant_values=NONE)))
    fits = [z for z in layers if all(n in (1, m) for n, m in zip(z.labels.shape, new, strict=True))]
    unpadded = {axis: axis for axis, n in enumerate(old) if n == new[axis]}
    return [_taking(space.with_layers(fits), space, unpadded)]


def flip(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Reverse axes."""
    space = flow.space(entry.args[0])
    axes = tuple(a % flow.rank(entry.args[0]) for a in entry.args[1])
    return [space.with_layers(z.to(np.flip(z.labels, axes)) for z in space.layers)]


def roll(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rotate along axes; rotating units by a fixed number of places does not survive a cut."""
    x = entry.args[0]
    axes = argument(entry, 2, "dims", ()) or range(flow.rank(x))
    for axis in axes:
        flow.pin(flow.layers(x, axis), "rotated by a fixed number")
    return [flow.space(x)]


def pixel_shuffle(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """[..., c r r, h, w] -> [..., c, h r, w r]."""
    x, r = entry.args[0], entry.args[1]
    axis = flow.rank(x) - 3
    channels = flow.shape(x)[axis]
    outer, inner = as_blocks(flow, flow.layers(x, axis), channels // (r * r), channels)
    flow.pin(inner, "moved into space")
    moved = move_all(outer, axis, flow.rank(x))
    return [TensorLabels((*_before_space(flow, x), *moved))]


def pixel_unshuffle(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """[..., c, h r, w r] -> [..., c r r, h, w]."""
    x, r = entry.args[0], entry.args[1]
    axis = flow.rank(x) - 3
    layers = [z.to(np.repeat(z.labels, r * r)) for z in flow.layers(x, axis)]
    moved = move_all(layers, axis, flow.rank(x))
    return [TensorLabels((*_before_space(flow, x), *moved))]


def _before_space(flow: LabelPropagation, x: Ref) -> list[LabelArray]:
    """Layers along the axes before channels and space; those along space stay as they are, its sizes change."""
    channels, *space = range(flow.rank(x) - 3, flow.rank(x))
    for axis in space:
        flow.pin(flow.layers(x, axis), "moved between space and channels")
    return flow.space(x).beside([channels, *space])


def unfold(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sliding windows: [n, c, h, w] -> [n, c k k, windows]."""
    x, kernel = entry.args[0], entry.args[1]
    for axis in (2, 3):
        flow.pin(flow.layers(x, axis), "windows over space")
    layers = [z.to(np.repeat(z.labels, prod(kernel))) for z in flow.layers(x, 1)]
    return [TensorLabels(move_all(layers, 1, 3))]


def fold(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sum of sliding windows: [n, c k k, windows] -> [n, c, h, w]."""
    x, kernel = entry.args[0], entry.args[2]
    size = flow.shape(x)[1]
    outer, inner = as_blocks(flow, flow.layers(x, 1), size // prod(kernel), size)
    flow.pin(inner, "moved into space")
    return [TensorLabels(move_all(outer, 1, 4))]


def pack(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sequences of several lengths: [n, t, ...] to the rows of all steps [rows, ...]."""
    x = entry.args[0]
    for axis in (0, 1):
        flow.pin(flow.layers(x, axis), "packed by length")
    kept = flow.space(x).beside({0, 1})
    return [TensorLabels(tuple(z.to(z.labels.squeeze(0)) for z in kept)), TensorLabels()]


# -- by index ----------------------------------------------------------------------------------------------------


def _pick(flow: LabelPropagation, layer: LabelArray, index: Ref) -> Array | None:
    """The labels at places that are known (whole numbers, or a mask); None where they are not."""
    places = flow.tape.values[index.id].const
    if places is None or places.dtype.is_floating_point:
        return None
    ids = places.reshape(-1).cpu().numpy()
    picked: Array = layer.vector[ids]
    return picked


def _pin_index(flow: LabelPropagation, ref: Ref) -> None:
    """A table of indices is as long as what it picks."""
    flow.pin(flow.space(ref).layers, "indices")


def index_select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows picked by an index tensor along one axis."""
    x, index = entry.args[0], entry.args[2]
    axis = entry.args[1] % flow.rank(x)
    _pin_index(flow, index)
    kept = flow.space(x).beside([axis])
    along = flow.layers(x, axis)
    for z in [] if flow.picks(index, along) else along:
        picked = _pick(flow, z, index)
        flow.suspect([z], "picked by an index tensor")
        if picked is None:
            flow.pin([z], "picked by index")
        else:
            kept.append(move(LabelArray(picked), axis, flow.rank(x)))
    return [TensorLabels(tuple(z for z in kept if z.support))]


def index(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x[i, :, j]`` with index tensors."""
    x, indices = entry.args[0], entry.args[1]
    used = [a for a, i in enumerate(indices) if i is not None]
    if any(_is_mask(flow, indices[a]) for a in used):
        return _masked_index(flow, entry, flow.rank(entry.outs[0]))
    for a in used:
        _pin_index(flow, indices[a])
    rank, first, places = _index_places(flow, entry, used)
    layers = []
    for z in flow.rectangular(x):
        line, axis = z.to(z.vector), z.support[0]
        if axis in places:
            layers.append(move(line, places[axis], rank))
        elif not flow.picks(indices[axis], [line]):
            layers += _pick_many(flow, line, indices[axis], first, rank - len(places))
    fitting = [z.to(np.expand_dims(z.labels, tuple(range(z.labels.ndim, rank)))) for z in layers]
    return [TensorLabels(tuple(z for z in fitting if z.support))]


def _index_places(flow: LabelPropagation, entry: Entry, used: Sequence[int]) -> tuple[int, int, dict[int, int]]:
    """Axes of the result of ``x[i, :, j]``: how many, where those of the index begin, and where the others come to.

    Index tensors that stand together put their axes in their place, others put them first. For ``i`` and ``j`` of two
    axes: ``x[:, i, j]`` has 0 where it was and the index at 1; ``x[i, :, j]`` has the index at 0 and axis 1 at 2.
    """
    rank, whole = flow.rank(entry.args[0]), flow.rank(entry.outs[0])
    rest = [a for a in range(rank) if a not in used]
    together = used == list(range(used[0], used[-1] + 1))
    first = used[0] if together else 0
    spread = whole - len(rest)
    places = {a: i if i < first else i + spread for i, a in enumerate(rest)}
    return whole, first, places


def _pick_many(flow: LabelPropagation, line: LabelArray, ids: Ref, first: int, spread: int) -> list[LabelArray]:
    """The labels at places that an index tensor names, along ``spread`` axes of the result from ``first`` on."""
    places = flow.tape.values[ids.id].const
    flow.suspect([line], "picked by an index tensor")
    if places is None:
        flow.pin([line], "picked by index")
        return []
    picked = line.vector[places.cpu().numpy()]
    before = (1,) * (first + spread - picked.ndim)
    return [LabelArray(compress(picked.reshape(before + picked.shape)))]


def _is_mask(flow: LabelPropagation, ref: Ref) -> bool:
    return flow.tape.values[ref.id].dtype == torch.bool


def _masked_index(flow: LabelPropagation, entry: Entry, out_rank: int) -> list[TensorLabels]:
    """``x[mask]``, ``x[:, mask]``: what the mask covers becomes one axis."""
    x, indices = entry.args[0], entry.args[1]
    masks = [i for i in indices if i is not None]
    covered = _indexed_axes(flow, indices)
    first, last = covered[0], covered[-1]
    whole = covered == list(range(first, last + 1)) and len(masks) == 1
    even = _even_axes(flow, masks[0], len(covered)) if whole else []
    for mask in masks:
        _pin_mask(flow, mask, even)
    contents = flow.tape.values[masks[0].id].const
    layers = []
    for z in flow.rectangular(x):
        axis = z.support[0]
        from_end = flow.rank(x) - axis
        if axis > last and from_end <= out_rank:
            layers.append(move(z.to(z.vector), out_rank - from_end, out_rank))
        elif axis < first and whole:
            layers.append(move(z.to(z.vector), axis, out_rank))
        elif whole and axis - first in even and contents is not None:
            along = [-1 if a == axis else 1 for a in covered]
            labels = np.broadcast_to(z.vector.reshape(along), tuple(contents.shape))[contents.cpu().numpy()]
            layers.append(move(LabelArray(labels), first, out_rank))
        else:
            flow.pin([z], "picked by a mask")
    return [TensorLabels(tuple(z for z in layers if z.support))]


def _indexed_axes(flow: LabelPropagation, indices: Sequence[Ref | None]) -> list[int]:
    """The axes that index tensors pick from; a mask has as many of them as axes of its own."""
    covered: list[int] = []
    axis = 0
    for ids in indices:
        wide = flow.rank(ids) if ids is not None and _is_mask(flow, ids) else 1
        if ids is not None:
            covered += range(axis, axis + wide)
        axis += wide
    return covered


def _even_axes(flow: LabelPropagation, mask: Ref, rank: int) -> list[int]:
    """The last axes along which a mask, seen with ``rank`` axes, says the same everywhere.

    Of a mask [2, 3, 1], or one of [2, 3, 4] that repeats itself along its last axis: axis 2.
    """
    shift = rank - flow.rank(mask)
    even = []
    for axis in reversed(range(rank)):
        if axis >= shift and not _is_even(flow, mask, axis - shift):
            break
        even.append(axis)
    return even


def _is_even(flow: LabelPropagation, mask: Ref, axis: int) -> bool:
    size, contents, space = flow.shape(mask)[axis], flow.tape.values[mask.id].const, flow.space(mask)
    if size == 1 or axis in space.spread:
        return True
    if contents is None or space.along(axis):
        return False
    return bool((contents == contents.narrow(axis, 0, min(1, size))).all())


def _pin_mask(flow: LabelPropagation, mask: Ref, even: Sequence[int]) -> None:
    labels = [z.labels for z in flow.space(mask).layers if not set(z.support) <= set(even)]
    flow.store.pin(labels, f"a mask at {flow.at()}")


def masked_select(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """As ``x[mask]``, with a mask of the same shape."""
    x, mask = entry.args[:2]
    if flow.shape(x) != flow.shape(mask):
        flow.pin_all((x, mask), "picked by a mask")
        return [TensorLabels()]
    return _masked_index(flow, replace(entry, args=(x, (mask,))), 1)


def masked_scatter(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Values in the places that a mask shows, one after the other: where whole rows are shown, the rows' units meet."""
    x, mask, source = entry.args[:3]
    shape, given = flow.shape(x), flow.shape(source)
    even = min(len(_even_axes(flow, mask, len(shape))), len(given))
    tails = (k for k in range(even + 1) if shape[len(shape) - k :] == given[len(given) - k :])
    even = max(tails)
    parts = []
    for ref in (x, mask, source):
        own = flow.shape(ref)
        rows = len(own) - min(even, len(own))
        kept = [z for z in flow.rectangular(ref) if z.support[0] >= rows]
        flow.pin([z for a in range(rows) for z in flow.layers(ref, a)], "placed by a mask")
        inside = tuple(z.to(z.labels.reshape(z.labels.shape[rows:])) for z in kept)
        free = flow.space(ref).free or ref is mask
        parts.append((TensorLabels(inside, free=free), own[rows:]))
    tail = flow.join(parts, shape[len(shape) - even :])
    return [TensorLabels(tuple(LabelArray(z.labels) for z in align_rank(tail, len(shape))))]


def gather(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Elements picked along one axis by an index of the same rank: other axes keep their units."""
    x, ids = entry.args[0], entry.args[2]
    axis = entry.args[1] % flow.rank(x)
    fits = [a for a, n in enumerate(flow.shape(x)) if n == flow.shape(ids)[a] and a != axis]
    for z in flow.space(x).layers:
        if axis not in z.support and not set(z.support) <= set(fits):
            flow.pin([z], "picked by index")
    if not flow.picks(ids, flow.layers(x, axis)):
        _pin_along(flow, (x,), axis)
    return [_at_places(flow, (x,), ids, axis, fits)]


def index_add(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows added or copied to places along one axis: the other axes of both are the same units."""
    x, _, ids, source = entry.args[:4]
    axis = entry.args[1] % flow.rank(x)
    _pin_index(flow, ids)
    parts = []
    for r in (x, source):
        flow.pin(flow.layers(r, axis), "placed by index")
        space = flow.space(r)
        beside = replace(space, layers=tuple(space.beside([axis])))
        parts.append((beside, _flat(flow.shape(r), [axis])))
    return [replace(flow.join(parts, parts[0][1]), free=False)]


def scatter(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """As :func:`index_add`, with an index for every element."""
    x, _, ids, source = entry.args[:4]
    rank = flow.rank(x)
    axis = entry.args[1] % rank
    parts = (x, source) if isinstance(source, Ref) else (x,)
    if ids.id in flow.places:
        _label_constant(flow, x, axis)
    units = flow.layers(x, axis)
    picked = flow.picks(ids, units)
    _pin_along(flow, parts[1:] if picked else parts, axis)
    placed = _at_places(flow, parts, ids, axis, [a for a in range(rank) if a != axis])
    along = [made(z, axis, rank) for z in units if picked]
    return [replace(placed, layers=(*placed.layers, *along))]


def _pin_along(flow: LabelPropagation, refs: Sequence[Ref], axis: int) -> None:
    flow.pin([z for r in refs for z in flow.layers(r, axis)], "placed by index")


def _at_places(flow: LabelPropagation, refs: Sequence[Ref], ids: Ref, axis: int, axes: Sequence[int]) -> TensorLabels:
    """Units along ``axes`` of tensors of the same rank and of the index that tells places along ``axis``."""
    parts = []
    _pin_along(flow, (ids,), axis)
    for r in (*refs, ids):
        space = flow.space(r)
        layers = tuple(z for z in flow.store.rectangular(space.layers, flow.at()) if z.support[0] in axes)
        shape = tuple(n if a in axes else 1 for a, n in enumerate(flow.shape(r)))
        # An index without units of its own may still have been made as large as the others: that is tried.
        parts.append((replace(space, layers=layers, free=space.free or r is ids), shape))
        flow.suspect(layers, "placed by an index")
    return replace(flow.join(parts, parts[0][1]), free=False)


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
        flow.pin(flow.layers(x, axis), "placed by index")
    if is_one:
        return [_unindexed_space(flow, x, hit, picks[0], {place: covered[place] for place in even})]
    if covered != list(range(len(covered))):
        flow.pin_all((x, values), "placed by index")
        return [TensorLabels()]
    return [_with_rows(flow, x, values, len(covered))]


def _unindexed_space(
    flow: LabelPropagation, x: Ref, hit: Sequence[int], mask: Ref, even: Mapping[int, int]
) -> TensorLabels:
    """The units of ``x`` along axes that are not ``hit``, with those of a mask where it says the same (``even``)."""
    shape, space = flow.shape(x), flow.space(x)
    parts = [(replace(space, layers=tuple(space.beside(hit))), _flat(shape, hit))]
    for place, axis in even.items():
        layers = tuple(move(z, axis, len(shape)) for z in flow.layers(mask, place))
        others = [a for a in range(len(shape)) if a != axis]
        parts.append((TensorLabels(layers, free=True), _flat(shape, others)))
    return replace(flow.join(parts, shape), free=space.free)


def _with_rows(flow: LabelPropagation, x: Ref, values: Ref, last: int) -> TensorLabels:
    """Whole rows written into ``x``: both have the same units along the axes from ``last`` on."""
    shape, given = flow.shape(x), flow.shape(values)
    wide = min(len(shape) - last, len(given))
    rows = len(given) - wide
    layers = [z for z in flow.rectangular(values) if z.support[0] >= rows]
    inside = TensorLabels(tuple(LabelArray(z.labels.reshape(z.labels.shape[rows:])) for z in layers))
    new = flow.space(values).with_layers(align_rank(inside, len(shape)))
    kept = [z for z in flow.space(x).layers if min(z.support, default=last) >= last]
    old = replace(flow.space(x), layers=tuple(kept))
    collapsed = _flat(shape, range(last))
    return flow.join([(old, collapsed), (new, _with_rank(given[rows:], len(shape)))], collapsed)
