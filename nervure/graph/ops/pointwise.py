"""Operators that keep positions: pointwise ones, reductions, norms, pooling, constants."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nervure.graph.labels import NONE, Array, LabelArray, TensorLabels, blank
from nervure.graph.ops.contractions import as_blocks
from nervure.graph.ops.facets import Rule
from nervure.graph.ops.probed import probe_operator
from nervure.graph.propagate import LabelPropagation, argument, call_argument, made, move, move_all
from nervure.graph.sizes import Expression
from nervure.graph.tape import Call, Entry, Ref, refs_in


def pointwise(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Every element depends on the elements at its own place: labels of the operands are united."""
    flow.meet_by_rank(entry)
    operands = [flow.operand(r) for r in entry.given]
    return [flow.join(operands, flow.shape(out)) for out in entry.outs]


def multiply(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """A product; ``einsum`` takes it for a contraction over a single unit, which costs what a contraction does."""
    (space,) = spaces = pointwise(flow, entry)
    if _contracts(entry.call):
        sizes = flow.shape(entry.outs[0])
        along = (move_all(space.along(axis), 0, 1) for axis in range(len(sizes)))
        flow.work(1, *zip(sizes, along, strict=True))
    return spaces


def _contracts(call: Call | None) -> bool:
    """Whether a call is an ``einsum`` of two operands that sums over an index of both."""
    if call is None or call.name != "einsum" or not isinstance(call.args[0], str):
        return False
    operands, arrow, result = call.args[0].replace(" ", "").partition("->")
    left, _, right = operands.partition(",")
    shared = {letter for letter in left if letter in right and letter.isalpha()}
    return "," not in right and bool(shared - set(result) if arrow else shared)


def copy(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``dst.copy_(src)``: the contents of ``src`` in the place of ``dst``."""
    return pointwise(flow, replace(entry, args=entry.args[:2], kwargs={}))


ONE_VALUE = ("zeros", "ones", "full", "empty", "scalar_tensor", "lift")
"""How the names of operators begin that make one value everywhere."""


def constant(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Made from sizes alone. One value everywhere takes the labels that it meets, and its sizes must follow."""
    flow.constants.update(out.id for out in entry.outs)
    if not entry.name.removeprefix("new_").startswith(ONE_VALUE):
        return []
    shape = flow.shape(entry.outs[0])
    sizes = _constant_sizes(entry, len(shape)) or list(shape)
    layers: list[LabelArray] = []
    wishes: list[tuple[int, int | Expression]] = []
    for axis, size in enumerate(sizes):
        own, wish = size_of_constant(flow, size)
        layers += [made(z, axis, len(shape)) for z in own]
        if wish is not None:
            wishes.append((axis, wish))
    return [TensorLabels(tuple(layers), free=True, wishes=tuple(wishes)) for _ in entry.outs]


def identity(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``torch.eye(n)``: what stays of rows and columns that are cut alike is the smaller identity."""
    shape = flow.shape(entry.outs[0])
    sizes = _constant_sizes(entry, 1)
    if len(set(shape)) > 1 or len(sizes) != 1 or not isinstance(sizes[0], Expression):
        return [TensorLabels()]
    layers, wish = size_of_constant(flow, sizes[0])
    if wish is not None:
        layers = [LabelArray(flow.store.unions.fresh(shape[0]))]
        flow.store.size(wish, shape[0], [layers[0].labels], "an identity matrix")
    return [TensorLabels(tuple(made(z, axis, 2) for axis in (0, 1) for z in layers))]


def fourier(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Fourier transforms mix all positions of some axes; units along the others go through."""
    x = entry.args[0]
    for axis in (mixed := _axes(flow, x, entry.args[1])):
        flow.pin(flow.layers(x, axis), "mixed by a Fourier transform")
    return [TensorLabels(tuple(flow.space(x).beside(mixed)))]


def like(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """A new tensor as large as another: its units are cut with the other's."""
    flow.constants.update(out.id for out in entry.outs)
    source = flow.space(entry.args[0])
    return [replace(source, layers=tuple(LabelArray(z.labels) for z in source.layers)) for _ in entry.outs]


def size_of_constant(
    flow: LabelPropagation, size: int | Expression
) -> tuple[list[LabelArray], int | Expression | None]:
    """A size read from an axis of a tensor brings that axis's units along; others are wishes."""
    if isinstance(size, int):
        return [], size
    if together := _side_by_side(flow, size):
        return together, None
    if size.dimension is None:
        if size.dimensions():
            flow.store.size(size, size.value, (), "a constant")
        return [], size
    number, axis = size.dimension
    source = flow.space(Ref(number))
    if source.free and not source.layers:
        return [], dict(source.wishes).get(axis)
    return flow.layers(Ref(number), axis), None


def _side_by_side(flow: LabelPropagation, size: Expression) -> list[LabelArray]:
    """Room for the units of all axes whose sizes are added up, in that order; none where it is no such sum.

    ``zeros(x.shape[1] + 2)``, where ``x`` has units 7 8 9 there: 7 8 9 -1 -1.
    """
    if size.operation != "add" or size.attributes():
        return []
    pieces = []
    for part in size.operands:
        layers = size_of_constant(flow, part)[0] if isinstance(part, Expression) else []
        length = part.value if isinstance(part, Expression) else int(part)
        if len(layers) > 1:
            return []
        pieces.append(layers[0] if layers else LabelArray(blank(length)))
    labels = np.concatenate([piece.labels for piece in pieces])
    return [LabelArray(labels)] if (labels != NONE).any() else []


def _constant_sizes(entry: Entry, rank: int) -> list[int | Expression]:
    call = entry.call
    # What a call of another name makes on its way has sizes of its own.
    if call is None or call.name != entry.name:
        return []
    if call.name == "one_hot":
        classes = call.kwargs.get("num_classes", call.args[-1])
        if isinstance(classes, Expression):
            return [*[-1] * (rank - 1), classes]
    given = call.kwargs.get("size")
    flat: list[int | Expression] = []
    for value in (*call.args, given if isinstance(given, tuple) else ()):
        inner = value if isinstance(value, tuple) else (value,)
        flat += [v for v in inner if isinstance(v, int | Expression)]
    return flat[:rank] if len(flat) >= rank else []


def fill(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x.fill_(v)``, ``x.zero_()``, ``x.normal_()``: the labels of ``x`` stay."""
    return [flow.space(entry.args[0]) for _ in entry.outs]


def resize(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x.resize_(...)``: what gets another shape has no units of the old one."""
    x, out = entry.args[0], entry.outs[0]
    if flow.shape(x) == flow.shape(out):
        return [flow.space(x)]
    flow.pin(flow.space(x).layers, "resized")
    return [TensorLabels()]


# -- reductions --------------------------------------------------------------------------------------------------


def _axes(flow: LabelPropagation, x: Ref, given: object) -> list[int]:
    rank = flow.rank(x)
    if given is None or given == ():
        return list(range(rank))
    axes = given if isinstance(given, tuple) else (given,)
    return [a % max(rank, 1) for a in axes if isinstance(a, int)]


def _note_statistic(flow: LabelPropagation, x: Ref, axes: Sequence[int], what: str, kind: str = "") -> None:
    for axis in axes:
        layers = flow.layers(x, axis)
        flow.read(0, axis, layers, kind)
        flow.note_statistic(layers, what)


def reduction(flow: LabelPropagation, entry: Entry, kind: str = "") -> list[TensorLabels]:
    """Sums, means, norms, maxima over axes: a statistic over the survivors where the axis has units."""
    x = entry.args[0]
    position = 2 if entry.name.startswith(("norm", "linalg_vector_norm")) else 1
    axes = _axes(flow, x, argument(entry, position, "dim"))
    _note_statistic(flow, x, axes, entry.name, kind)
    return [_reduce(flow, x, axes, flow.rank(out)) for out in entry.outs]


def extreme(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Maximum, minimum and median, which also say where along the axis they are."""
    x = entry.args[0]
    is_placed = entry.name.startswith("arg") or len(entry.outs) == 2
    if not is_placed:
        return reduction(flow, entry, "reduction")
    axes = _axes(flow, x, argument(entry, 1, "dim"))
    if len(axes) > 1:
        flow.pin([z for a in axes for z in flow.layers(x, a)], "counted through all axes")
    elif found := flow.layers(x, axes[0]):
        flow.places[entry.outs[-1].id] = tuple(z.labels for z in found)
        _note_statistic(flow, x, axes, entry.name)
    return [_reduce(flow, x, axes, flow.rank(out)) for out in entry.outs]


def _reduce(flow: LabelPropagation, x: Ref, axes: Sequence[int], out_rank: int) -> TensorLabels:
    """The labels along the axes that are left, whether the others went or have size 1 now."""
    rank, kept = flow.rank(x), flow.space(x).beside(axes)
    if out_rank == rank:
        return TensorLabels(tuple(kept))
    gone = tuple(sorted({*axes}))
    if out_rank != rank - len(gone):
        return TensorLabels()
    return TensorLabels(tuple(z.to(z.labels.squeeze(gone)) for z in kept))


def along_axis(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Softmax, running sums: a statistic along an axis, every element keeps its place."""
    x = entry.args[0]
    axes = _axes(flow, x, argument(entry, 1, "dim"))
    if x.id in flow.constants:
        flow.store.pin([z.labels for a in axes for z in flow.layers(x, a)], f"counted by {flow.at()}")
    _note_statistic(flow, x, axes, entry.name)
    return [flow.space(x) for _ in entry.outs]


def top(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """The k largest and their places: a choice among survivors, where what is chosen is picked by these places."""
    x = entry.args[0]
    axis = argument(entry, 2, "dim", -1) % max(1, flow.rank(x))
    if found := flow.layers(x, axis):
        vectors = flow.places[entry.outs[-1].id] = tuple(z.labels for z in found)
        flow.choices.append((vectors, f"ordered by place at {flow.at()}"))
        _note_statistic(flow, x, [axis], entry.name)
        _limit_choice(flow, entry, vectors)
    return [_reduce(flow, x, [axis], flow.rank(out)) for out in entry.outs]


def _limit_choice(flow: LabelPropagation, entry: Entry, vectors: tuple[Array, ...]) -> None:
    """Of fewer than k no k can be chosen: an attribute becomes less with them, a number in the code is a limit."""
    given = call_argument(entry.call, 1, "k")
    if isinstance(given, Expression) and given.attribute is not None:
        flow.ranked |= {out.id: frozenset([len(flow.limits)]) for out in entry.outs}
        flow.limits.append((given, vectors))
    elif given is None or isinstance(given, int):
        flow.multiples.append((vectors, int(entry.args[1])))
    else:
        flow.store.pin(vectors, f"as many are chosen as {given} at {flow.at()}")


def count_places(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``histc`` of places along an axis of units, with a bin for each: how often each unit was chosen."""
    x = entry.args[0]
    found, bins = flow.places.get(x.id, ()), flow.shape(entry.outs[0])[0]
    ends = argument(entry, 2, "min", 0), argument(entry, 3, "max", 0)
    if not found or len(found[0]) != bins or ends != (0, bins - 1):
        return unknown(flow, entry)
    flow.picked.add(x.id)
    flow.choose(found)
    given = call_argument(entry.call, 1, "bins")
    flow.store.size(bins if given is None else given, bins, found, "a count of places")
    return [TensorLabels(tuple(LabelArray(labels) for labels in found))]


def pin_order(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sorting, ranking: units along the axis are told apart by their place, so they stay."""
    x = entry.args[0]
    position = 2 if entry.name == "kthvalue" else 1
    axes = _axes(flow, x, argument(entry, position, "dim", -1))
    if x.id in flow.places and entry.name in ("sort", "argsort"):
        # Units that leave do not change the order of the others: sorted places are places.
        flow.picked.add(x.id)
        if entry.name == "sort":
            flow.places[entry.outs[0].id] = flow.places[x.id]
    for axis in axes:
        flow.pin(flow.layers(x, axis), "ordered by place")
    return [_reduce(flow, x, axes, flow.rank(out)) for out in entry.outs]


def segment_reduce(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sums, means or maxima of stretches of an axis."""
    x = entry.args[0]
    axis = argument(entry, 5, "axis", 0) % flow.rank(x)
    flow.pin(flow.layers(x, axis), "stretches of an axis")
    return [TensorLabels(tuple(flow.space(x).beside([axis])))]


# -- norms -------------------------------------------------------------------------------------------------------


def batch_norm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Per-channel affine with statistics per channel: weight, bias and running statistics ride along."""
    x, shape = entry.args[0], flow.shape(entry.args[0])
    if entry.name.endswith("with_update") or any(a is True for a in entry.args[3:6]):
        _note_statistic(flow, x, [a for a in range(len(shape)) if a != 1], "the norm")
    riders = [flow.vector(r, 1, shape) for r in refs_in(entry.args[1:5])]
    joined = flow.join([flow.operand(x), *riders], shape)
    return [joined, *(_vector_space(joined, flow.shape(o)) for o in entry.outs[1:])]


def _vector_space(space: TensorLabels, shape: tuple[int, ...]) -> TensorLabels:
    if len(shape) != 1:
        return TensorLabels()
    return TensorLabels(tuple(z.to(z.vector) for z in space.along(1)))


def layer_norm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Normalise over trailing axes: the statistics are taken over the survivors."""
    x, sizes = entry.args[0], entry.args[1]
    rank = flow.rank(x)
    axes = list(range(rank - len(sizes), rank))
    _note_statistic(flow, x, axes, "the norm")
    riders = refs_in((argument(entry, 2, "weight"), argument(entry, 3, "bias")))
    joined = flow.join([flow.operand(r) for r in (x, *riders)], flow.shape(x))
    _norm_sizes(flow, entry.call, joined, axes)
    return [joined]


def _norm_sizes(flow: LabelPropagation, call: Call | None, space: TensorLabels, axes: Sequence[int]) -> None:
    given = call_argument(call, 1, "normalized_shape")
    wishes = given if isinstance(given, tuple) else (given,)
    if len(wishes) != len(axes):
        return
    for axis, wish in zip(axes, wishes, strict=True):
        layers = space.along(axis)
        if not layers or wish is None:
            continue
        if isinstance(wish, Expression):
            flow.store.size(wish, layers[0].labels.size, [z.vector for z in layers], "a norm")
        else:
            flow.suspect(layers, "a norm over a fixed size")


def group_norm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Normalise over equal blocks of channels: blocks leave whole, or channels evenly from each."""
    x, groups, shape = entry.args[0], entry.args[6], flow.shape(entry.args[0])
    channels = shape[1]
    outer, inner = as_blocks(flow, flow.layers(x, 1), groups, channels)
    if channels // groups > 1:
        flow.note_statistic(inner, "the norm")
    _group_count(flow, entry.call, outer, groups)
    flow.read(0, 1, flow.layers(x, 1), f"blocks:{groups}")
    riders = [flow.vector(r, 1, shape) for r in refs_in(entry.args[1:3])]
    return [flow.join([flow.operand(x), *riders], shape)]


def _group_count(flow: LabelPropagation, call: Call | None, outer: Sequence[LabelArray], groups: int) -> None:
    given = call_argument(call, 1, "num_groups")
    if isinstance(given, Expression) and not given.dimensions() and outer:
        flow.store.size(given, groups, [z.labels for z in outer], "the number of norm groups")
    elif groups > 1:
        flow.pin(outer, "the number of norm groups is fixed in the code")


def rms_norm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Root-mean-square norm over trailing axes."""
    return layer_norm(flow, replace(entry, args=(*entry.args[:3], None), kwargs={}))


def fake_quantised(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Values rounded in their places, by one scale or by one of each place along an axis, which rides along."""
    axis = entry.args[3] if "per_channel" in entry.name else None
    return _round(flow, entry, entry.args[1:3], axis)


def observe(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """As :func:`fake_quantised`, with a scale that follows the smallest and the largest value observed."""
    x, is_observed = entry.args[0], flow.tape.values[entry.args[1].id].const
    axis = argument(entry, 10, "ch_axis") if argument(entry, 11, "per_row_fake_quant", False) else None
    if is_observed is None or bool(is_observed):
        others = [a for a in range(flow.rank(x)) if a != axis]
        _note_statistic(flow, x, others, "the range of values")
    return _round(flow, entry, entry.args[3:7], axis)


def _round(flow: LabelPropagation, entry: Entry, scales: Sequence[object], axis: int | None) -> list[TensorLabels]:
    x, shape = entry.args[0], flow.shape(entry.args[0])
    riders = [] if axis is None else [flow.vector(r, axis, shape) for r in refs_in(tuple(scales))]
    flow.join([flow.operand(x), *riders], shape)
    return [flow.space(x) for _ in entry.outs]


def weight_norm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``g v / |v|``: magnitudes ride along; a cut of what the norm runs over rescales them (see ``surgery``)."""
    v, g = entry.args[:2]
    flow.join([flow.operand(v), flow.operand(g)], flow.shape(v))
    return [flow.space(v)]


# -- space -------------------------------------------------------------------------------------------------------


def spatial(dimensions: int) -> Rule:
    """Pooling, resampling and padding over the last ``dimensions`` axes: units before them go through."""

    def rule(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
        x = entry.args[0]
        rank = flow.rank(x)
        space = range(rank - dimensions, rank)
        for axis in space:
            flow.pin(flow.layers(x, axis), "mixed over space")
        return [TensorLabels(tuple(flow.space(x).beside(space))) for _ in entry.outs]

    return rule


def unpool(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Values put back to where a pooling found its largest: each channel's places are those of the same channel."""
    shape, dimensions = flow.shape(entry.args[0]), int(entry.name[-2])
    spatial(dimensions)(flow, entry)
    both = flow.join([flow.operand(r) for r in entry.args[:2]], shape)
    return [TensorLabels(tuple(both.beside(range(len(shape) - dimensions, len(shape)))))]


def grid_sample(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Sampling at given places: channels go through, the places must have no units."""
    for r in refs_in(entry.args[1:2]):
        flow.pin(flow.space(r).layers, "coordinates")
    return list(spatial(flow.rank(entry.args[0]) - 2)(flow, entry))


def affine_grid(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Places in an image from a matrix of fixed shape: its entries are told apart by place."""
    for r in refs_in(entry.args[:1]):
        flow.pin(flow.space(r).layers, "a matrix of coordinates")
    return []


def unknown(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """No rule: pointwise where the operator says so, otherwise what a probe is not sure of is pinned and said so."""
    if torch.Tag.pointwise in getattr(entry.op, "tags", ()):
        return pointwise(flow, entry)
    refs = entry.given
    if not refs:
        return constant(flow, entry)
    if any(flow.space(r).layers for r in refs):
        return probe_operator(flow, entry)
    return []


def nothing(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Reads a number out of a tensor; no tensor comes out."""
    return []


def glu(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``a * sigmoid(b)`` for the two halves of an axis."""
    x = entry.args[0]
    rank = flow.rank(x)
    axis = argument(entry, 1, "dim", -1) % rank
    outer, inner = as_blocks(flow, flow.layers(x, axis), 2, flow.shape(x)[axis])
    flow.pin(outer, "halves of a gate")
    kept = flow.space(x).beside([axis])
    return [TensorLabels((*kept, *[move(z, axis, rank) for z in inner]))]
