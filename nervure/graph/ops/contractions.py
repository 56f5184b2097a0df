"""Operators that multiply and sum: the input's units meet a weight's reading axis, its writing axis makes new ones."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from nervure.graph.labels import LabelArray, TensorLabels, compress, is_pending
from nervure.graph.propagate import HIDDEN, LabelPropagation, argument, call_argument, made
from nervure.graph.sizes import Expression
from nervure.graph.tape import Call, Entry, Ref

BILINEAR = ((1, 3), (0,), (1, 2), (2, 3))
"""How ``nn.Bilinear`` lays its operands out; others of that operator mix axes."""
OPAQUE_CALLS = frozenset({"multi_head_attention_forward"})
"""Calls of which the sizes inside cannot be seen."""


def meet(
    flow: LabelPropagation, left: Sequence[LabelArray], right: Sequence[LabelArray], size: int, *, free: bool = False
) -> None:
    """Unite the layers of two axes that are summed over together; units on one side only are pinned.

    Not so where one side is ``free``, a constant made on the fly: it takes what it meets.
    """
    if any(is_pending(x) for x in (*left, *right)):
        return
    if left and right:
        flow.store.match(list(left), list(right), flow.at())
    elif size > 1 and not free:
        flow.pin((*left, *right), "meets an axis without units (the model's input, or a fixed one)")


def contract(
    flow: LabelPropagation, a: tuple[int, int], b: tuple[int, int]
) -> tuple[list[LabelArray], list[LabelArray]]:
    """Sum over axis ``a[1]`` of argument number ``a[0]`` and ``b[1]`` of ``b[0]``; returns the layers of both."""
    x, y = flow.entry.args[a[0]], flow.entry.args[b[0]]
    size = flow.shape(x)[a[1]]
    left, right = flow.layers(x, a[1]), flow.layers(y, b[1])
    free = flow.space(x).free or flow.space(y).free
    meet(flow, left, right, size, free=free)
    flow.role(left, "reader")
    flow.role(right, "reader")
    flow.read(a[0], a[1], left or right)
    if _is_activation(left) and _is_activation(right) and not free:
        flow.attention.extend(x.labels for x in (*left, *right))
    return left, right


def _is_activation(layers: Sequence[LabelArray]) -> bool:
    return bool(layers) and all(x.owner is None for x in layers)


def _matrix_product(flow: LabelPropagation, a: int, b: int) -> TensorLabels:
    """Batched or plain ``a @ b`` for arguments number ``a`` and ``b``."""
    x, y = flow.entry.args[a], flow.entry.args[b]
    *stack, rows, inner = flow.shape(x)
    columns, rank = flow.shape(y)[-1], flow.rank(x)
    left, right = contract(flow, (a, rank - 1), (b, rank - 2))
    above, beside = flow.layers(x, rank - 2), flow.layers(y, rank - 1)
    flow.role(above, "writer")
    flow.role(beside, "writer")
    if not stack and _is_fused(flow, flow.entry):
        _square(flow, flow.entry, left or right, beside, inner)
    batch = _batch(flow, x, y, left, beside) if stack else []
    by_axis = {0: batch} if stack else {}
    stored = flow.tape.values[x.id].stored
    if stored is not None:
        flow.work(stored, (columns, beside))
    else:
        sizes = [(n, batch) for n in stack]
        flow.work(1, *sizes, (rows, above), (inner, left or right), (columns, beside))
    return _along(rank, {rank - 2: above, rank - 1: beside, **by_axis})


def _along(rank: int, layers: Mapping[int, Sequence[LabelArray]]) -> TensorLabels:
    """The labels of a result that was computed, by axis."""
    return TensorLabels(tuple(made(z, axis, rank) for axis, own in layers.items() for z in own))


def _batch(
    flow: LabelPropagation, x: Ref, y: Ref, inner: Sequence[LabelArray], columns: Sequence[LabelArray]
) -> list[LabelArray]:
    """What tells apart the matrices of a batch; of activations that may be the heads of attention."""
    mine, other = flow.layers(x, 0), flow.layers(y, 0)
    free = flow.space(x).free or flow.space(y).free
    meet(flow, mine, other, flow.shape(x)[0], free=free)
    batch = mine or other
    if _is_activation(batch) and (_is_activation(columns) or _is_activation(inner)):
        flow.attention.extend(z.labels for z in columns)
        flow.heads.extend(z.labels for z in batch)
        _heads_follow(flow, flow.entry, batch)
    return batch


def _is_fused(flow: LabelPropagation, entry: Entry) -> bool:
    """Whether an operator runs inside attention that the user's code calls as one function, with weights of its own."""
    return entry.call is not None and entry.call.name in OPAQUE_CALLS and entry.module not in flow.tape.attentions


def _square(
    flow: LabelPropagation, entry: Entry, read: Sequence[LabelArray], written: Sequence[LabelArray], size: int
) -> None:
    """That function refuses projections of another width than they read: both are cut alike, and it is told so."""
    given = _given_to(entry.call, 3, "embed_dim_to_check")
    if read and given is not None:
        flow.store.size(given, size, [z.labels for z in read], "the width of attention")
    columns = len(written[0].labels) if written else 0
    for start in range(0, columns if columns % size == 0 else 0, size):
        meet(flow, read, [LabelArray(z.labels[start : start + size]) for z in written], size)


def _heads_follow(flow: LabelPropagation, entry: Entry, heads: Sequence[LabelArray]) -> None:
    """Its number of heads is the user's."""
    given = _given_to(entry.call, 4, "num_heads") if heads and _is_fused(flow, entry) else None
    number = given.value if isinstance(given, Expression) else given or 1
    if given is not None and len(heads[0].labels) % number == 0:
        flow.store.size(given, number, [z.labels[:number] for z in heads], "the number of heads")


def _given_to(call: Call | None, place: int, name: str) -> int | Expression | None:
    """A number that was given to a call."""
    given = call_argument(call, place, name)
    return given if isinstance(given, int | Expression) else None


def mm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``a @ b`` of matrices or batches of matrices."""
    return [_matrix_product(flow, 0, 1)]


def addmm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``c + a @ b``."""
    shape = flow.shape(entry.outs[0])
    product = _matrix_product(flow, 1, 2)
    return [flow.join([(product, shape), flow.operand(entry.args[0])], shape)]


ALIGNED = 16
"""The kernel of grouped products takes rows of a multiple of so many bytes."""


def grouped_mm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows of ``a`` [rows, in], sorted by expert, each by its expert's matrix: ``b`` is [experts, in, out]."""
    x, w = entry.args[:2]
    if (flow.rank(x), flow.rank(w)) != (2, 3):
        flow.pin_all((x, w), "experts of ragged width")
        return [TensorLabels()]
    _match_ends(flow, entry, flow.layers(w, 0))
    left, right = contract(flow, (0, 1), (1, 1))
    out = flow.layers(w, 2)
    flow.role(out, "writer")
    numbers = max(1, ALIGNED // flow.tape.values[w.id].dtype.itemsize)
    flow.multiples += [(tuple(z.labels for z in axis), numbers) for axis in (left, right, out)]
    rows, inner = flow.shape(x)
    flow.work(rows, (inner, left or right), (flow.shape(w)[2], out))
    return [_along(2, {1: out})]


def _match_ends(flow: LabelPropagation, entry: Entry, experts: list[LabelArray]) -> None:
    """Where the rows of each expert end is told in the order of the experts: those that leave have none."""
    ends = flow.layers(argument(entry, 2, "offs"), 0)
    if not ends or not experts:
        flow.store.pin([z.labels for z in (*ends, *experts)], "experts are chosen by index")
        return
    flow.store.match(ends, experts, flow.at())
    flow.choose([z.labels for z in experts])


def mv(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Matrix times vector."""
    x, _ = entry.args[:2]
    left, right = contract(flow, (0, 1), (1, 0))
    rows = flow.layers(x, 0)
    flow.role(rows, "writer")
    outputs, inputs = flow.shape(x)
    flow.work(1, (outputs, rows), (inputs, left or right))
    return [TensorLabels(tuple(LabelArray(z.labels) for z in rows))]


def bilinear(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``nn.Bilinear``: rows of two inputs [rows, in], each with every row of the other by a weight [out, in, in]."""
    x, w, y = entry.args[:3]
    if entry.args[3:7] != BILINEAR:
        flow.pin_all((x, w, y), "mixed")
        return [TensorLabels()]
    left = contract(flow, (0, 1), (1, 1))
    right = contract(flow, (2, 1), (1, 2))
    out = flow.layers(w, 0)
    flow.role(out, "writer")
    rows, inner, other = *flow.shape(x), flow.shape(y)[1]
    by_x, by_y = left[0] or left[1], right[0] or right[1]
    flow.work(rows, (flow.shape(w)[0], out), (inner, by_x), (other, by_y))
    return [_along(2, {1: out})]


def dot(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Inner product of two vectors."""
    left, right = contract(flow, (0, 0), (1, 0))
    flow.work(1, (flow.shape(entry.args[0])[0], left or right))
    return [TensorLabels()]


def distances(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Distances between the rows of ``x`` [..., n, d] and of ``y`` [..., m, d]: [..., n, m]."""
    x, y = entry.args[:2]
    left, right = contract(flow, (0, flow.rank(x) - 1), (1, flow.rank(y) - 1))
    # A sum of differences: what leaves has to be zero on both sides.
    flow.read(1, flow.rank(y) - 1, left or right)
    for ref in (x, y):
        for axis in range(flow.rank(ref) - 2):
            flow.pin(flow.layers(ref, axis), "a batch of distances")
    rank = flow.rank(entry.outs[0])
    rows, columns = flow.layers(x, -2), flow.layers(y, -2)
    return [_along(rank, {rank - 2: rows, rank - 1: columns})]


def linear(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x @ weight.T + bias`` over the last axis."""
    x, w = entry.args[:2]
    last = flow.rank(x) - 1
    left, right = contract(flow, (0, last), (1, 1))
    out = flow.layers(w, 0)
    flow.role(out, "writer")
    kept = [z for z in flow.rectangular(x) if z.support != (last,)]
    product = TensorLabels((*kept, *(made(z, last, last + 1) for z in out)))
    *places, outputs = shape = flow.shape(entry.outs[0])
    flow.work(prod(places), (outputs, out), (flow.shape(x)[-1], left or right))
    bias = argument(entry, 2, "bias")
    riders = [] if bias is None else [flow.operand(bias)]
    return [flow.join([(product, shape), *riders], shape)]


def as_blocks(
    flow: LabelPropagation, layers: Sequence[LabelArray], blocks: int, size: int
) -> tuple[list[LabelArray], list[LabelArray]]:
    """Layers of an axis of ``size`` seen as equal blocks: those that tell blocks apart, and those inside them.

    Labels 4 4 7 7 in 2 blocks tell blocks apart, as 4 7; labels 4 7 4 7 are inside them, as 4 7; labels 1 2 3 4 are
    neither and have to become a product first.
    """
    outer: list[LabelArray] = []
    inner: list[LabelArray] = []
    folded = [x.to(compress(x.labels.reshape(blocks, size // blocks))) for x in layers]
    for layer in flow.store.rectangular(folded, flow.at()):
        side = outer if layer.support == (0,) else inner
        side.append(layer.to(layer.vector))
    return outer, inner


def convolution(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Convolution and transposed convolution in any number of dimensions, grouped or not."""
    x, w, bias = entry.args[:3]
    transposed, groups = entry.args[6], entry.args[8]
    rank, shape = flow.rank(x), flow.shape(entry.outs[0])
    reads, writes = (0, 1) if transposed else (1, 0)
    whole = [a for a in range(2, rank) if _is_whole(flow, entry, a) and flow.layers(x, a)]
    through = _over_space(flow, entry, whole)
    if groups == 1:
        contract(flow, (0, 1), (1, reads))
        out = flow.layers(w, writes)
        flow.role(out, "writer")
    else:
        out = _contract_groups(flow, entry, x, w, groups, transposed)
    space = flow.shape(x)[2:] if transposed else shape[2:]
    kernel = [n for a, n in enumerate(flow.shape(w)) if a > 1 and a not in whole]
    # A grouped weight has its block layers on axis 0 only, so the product of its two axes counts every block once.
    fixed = prod((shape[0], *space, *kernel))
    axes = (0, 1, *whole)
    flow.work(fixed, *((flow.shape(w)[a], flow.layers(w, a)) for a in axes))
    product = _along(rank, {1: out, 0: flow.layers(x, 0), **through})
    if bias is None:
        return [product]
    return [flow.join([(product, shape), flow.vector(bias, 1, shape)], shape)]


def _over_space(flow: LabelPropagation, entry: Entry, whole: Sequence[int]) -> dict[int, list[LabelArray]]:
    """What a kernel does along the axes of space: sums over all of some, mixes others. The layers that go through."""
    x, w = entry.args[:2]
    through = {}
    for axis in whole:
        contract(flow, (0, axis), (1, axis))
    for axis in (a for a in range(2, flow.rank(x)) if a not in whole):
        flow.store.pin([z.labels for z in flow.layers(w, axis)], HIDDEN)
        if _is_by_place(flow, entry, axis):
            through[axis] = flow.layers(x, axis)
        else:
            flow.pin(flow.layers(x, axis), "mixed over space")
    return through


def _is_whole(flow: LabelPropagation, entry: Entry, axis: int) -> bool:
    """Whether a kernel covers all of an axis once (words as wide as their embedding): a sum over it."""
    x, w, out = entry.args[0], entry.args[1], entry.outs[0]
    padding = entry.args[4]
    once = flow.shape(w)[axis] == flow.shape(x)[axis] and flow.shape(out)[axis] == 1
    return once and padding[min(axis - 2, len(padding) - 1)] == 0 and not entry.args[6]


def _is_by_place(flow: LabelPropagation, entry: Entry, axis: int) -> bool:
    """Whether a convolution takes every place along an axis by itself: a kernel of one, no stride, no padding."""
    x, w, _, stride, padding = entry.args[:5]
    at = axis - 2
    is_same_size = flow.shape(x)[axis] == flow.shape(entry.outs[0])[axis]
    step, around = stride[min(at, len(stride) - 1)], padding[min(at, len(padding) - 1)]
    return flow.shape(w)[axis] == 1 and is_same_size and step == 1 and around == 0


def _contract_groups(
    flow: LabelPropagation, entry: Entry, x: Ref, w: Ref, groups: int, transposed: bool
) -> list[LabelArray]:
    channels, wide = flow.shape(x)[1], flow.shape(w)[0]
    x_blocks, x_inner = as_blocks(flow, flow.layers(x, 1), groups, channels)
    w_blocks, w_inner = as_blocks(flow, flow.layers(w, 0), groups, wide)
    meet(flow, x_blocks, w_blocks, groups)
    beside = flow.layers(w, 1)
    if transposed:
        meet(flow, x_inner, w_inner, channels // groups)
        inside = beside
    else:
        meet(flow, x_inner, beside, channels // groups)
        inside = w_inner
    flow.role(w_blocks, "writer")
    flow.role(inside, "writer")
    flow.role(w_inner if transposed else beside, "reader")
    reading = flow.layers(x, 1)
    flow.read(0, 1, reading)
    _resize_groups(flow, entry, x_blocks or w_blocks)
    per_block = flow.shape(w)[1] if transposed else wide // groups
    out = [z.to(np.repeat(z.labels, per_block)) for z in (w_blocks or x_blocks)]
    return out + [z.to(np.tile(z.labels, groups)) for z in inside]


def _resize_groups(flow: LabelPropagation, entry: Entry, blocks: Sequence[LabelArray]) -> None:
    if not blocks:
        return
    # conv_transpose has output_padding before groups.
    given = call_argument(entry.call, 6, "groups")
    if isinstance(given, Expression):
        flow.store.size(given, len(blocks[0].labels), [z.labels for z in blocks], "the number of groups")
    else:
        flow.pin(blocks, "the number of groups is fixed in the code")


def attention(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Scaled-dot-product kernels: query, key, value of shape [batch, heads, tokens, width]."""
    q, k, v = entry.args[:3]
    last = flow.rank(q) - 1
    left, right = contract(flow, (0, last), (1, last))
    inner, width = left or right, flow.layers(v, last)
    flow.attention.extend(z.labels for z in (*inner, *width))
    # The kernel divides by the square root of the width it sees unless it is told a scale.
    if entry.kwargs.get("scale") is None:
        flow.suspect(inner, "the softmax scale is taken from the width")
    stack = {axis: _stack_axis(flow, (q, k, v), axis) for axis in range(last - 1)}
    heads = stack.get(last - 2, [])
    flow.heads.extend(z.labels for z in heads)
    _heads_follow(flow, entry, heads)
    mask = argument(entry, 3, "attn_bias" if "efficient" in entry.name else "attn_mask")
    mask = mask if isinstance(mask, Ref) else entry.kwargs.get("attn_mask")
    if isinstance(mask, Ref):
        shape = (*flow.shape(q)[:-1], flow.shape(k)[-2])
        scores = _along(last + 1, {last - 2: heads})
        flow.join([(scores, shape), flow.operand(mask)], shape)
    for t in (q, k, v):
        flow.pin(flow.layers(t, last - 1), "attention over these positions")
    _attention_work(flow, (q, k, v), heads, inner, width)
    return [_along(last + 1, {last: width, **stack})]


def _stack_axis(flow: LabelPropagation, qkv: tuple[Ref, Ref, Ref], axis: int) -> list[LabelArray]:
    """Units along an axis of heads or samples, which query, key and value share: fewer heads are repeated."""
    size = flow.shape(qkv[0])[axis]
    q, k, v = (_repeat_layers(flow.layers(t, axis), flow.shape(t)[axis], size) for t in qkv)
    meet(flow, q, k, size)
    meet(flow, q or k, v, size)
    return q or k or v


def _attention_work(
    flow: LabelPropagation,
    qkv: tuple[Ref, Ref, Ref],
    heads: list[LabelArray],
    inner: list[LabelArray],
    width: list[LabelArray],
) -> None:
    query, key, value = map(flow.shape, qkv)
    *batch, tokens, depth = query
    keys, wide = key[-2], value[-1]
    fixed = prod(batch[:-1]) * tokens * keys
    flow.work(fixed, (batch[-1], heads), (depth, inner))
    flow.work(fixed, (batch[-1], heads), (wide, width))


def _repeat_layers(layers: list[LabelArray], size: int, wanted: int) -> list[LabelArray]:
    if size in (1, wanted):
        return layers
    return [z.to(np.repeat(z.labels, wanted // size)) for z in layers]


def embedding(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows of a table, looked up."""
    table = entry.args[0]
    rank = flow.rank(entry.outs[0])
    flow.store.pin([z.labels for z in flow.layers(table, 0)], "rows are looked up by index")
    width = flow.layers(table, 1)
    flow.role(width, "writer")
    return [_along(rank, {rank - 1: width})]
