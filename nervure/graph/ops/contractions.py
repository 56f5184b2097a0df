"""Operators that multiply and sum: the input's units meet a weight's reading axis, its writing axis makes new ones."""

from collections.abc import Sequence

import numpy as np

from nervure.graph.labels import LabelArray, TensorLabels, compress, is_pending
from nervure.graph.propagate import HIDDEN, LabelPropagation, argument, made, move
from nervure.graph.sizes import Expression
from nervure.graph.tape import Call, Entry, Ref

OPAQUE_CALLS = frozenset({"multi_head_attention_forward"})
"""Calls of which the sizes inside cannot be seen."""


def meet(
    flow: LabelPropagation, left: Sequence[LabelArray], right: Sequence[LabelArray], size: int, *, free: bool = False
) -> None:
    """Unite the layers of two axes that are summed over together; units on one side only are pinned."""
    if any(is_pending(x) for x in (*left, *right)):
        return
    if left and right:
        flow.store.match(list(left), list(right), flow.at())
    elif size > 1 and not free:
        flow.store.pin(
            [x.labels for x in (*left, *right)],
            f"meets an axis without units (the model's input, or a fixed one) at {flow.at()}",
        )


def contract(
    flow: LabelPropagation, a: tuple[int, int], b: tuple[int, int]
) -> tuple[list[LabelArray], list[LabelArray]]:
    """Sum over axis ``a[1]`` of argument number ``a[0]`` and ``b[1]`` of ``b[0]``; returns the layers of both."""
    entry = flow.tape.entries[flow.index]
    assert isinstance(entry, Entry)
    x, y = entry.args[a[0]], entry.args[b[0]]
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


def _matrix_product(flow: LabelPropagation, a: int, b: int, out: Ref) -> TensorLabels:
    """Batched or plain ``a @ b`` for arguments number ``a`` and ``b``."""
    entry = flow.tape.entries[flow.index]
    assert isinstance(entry, Entry)
    x, y = entry.args[a], entry.args[b]
    rank = len(flow.shape(x))
    rows, inner = flow.shape(x)[-2], flow.shape(x)[-1]
    left, right = contract(flow, (a, rank - 1), (b, rank - 2))
    above, beside = flow.layers(x, rank - 2), flow.layers(y, rank - 1)
    flow.role(above, "writer")
    flow.role(beside, "writer")
    if rank == 2 and _is_fused(flow, entry):
        _square(flow, entry, left or right, beside, inner)
    layers = [made(z, rank - 2, rank) for z in above] + [made(z, rank - 1, rank) for z in beside]
    batch: list[LabelArray] = []
    if rank == 3:
        batch, other = flow.layers(x, 0), flow.layers(y, 0)
        meet(flow, batch, other, flow.shape(x)[0], free=flow.space(x).free or flow.space(y).free)
        batch = batch or other
        layers += [made(z, 0, rank) for z in batch]
        if _is_activation(batch) and (_is_activation(beside) or _is_activation(left)):
            flow.attention.extend(z.labels for z in beside)
            flow.heads.extend(z.labels for z in batch)
            _heads_follow(flow, entry, batch)
    columns, stored = flow.shape(y)[-1], flow.tape.values[x.id].stored
    if stored is not None:
        flow.work(stored, (columns, beside))
        return TensorLabels(tuple(layers))
    sizes = [(flow.shape(x)[0], batch)] if rank == 3 else []
    flow.work(1, *sizes, (rows, above), (inner, left or right), (columns, beside))
    return TensorLabels(tuple(layers))


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
    if call is None:
        return None
    given = call.kwargs.get(name, call.args[place] if len(call.args) > place else None)
    return given if isinstance(given, int | Expression) else None


def mm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``a @ b`` of matrices or batches of matrices."""
    return [_matrix_product(flow, 0, 1, entry.outs[0])]


def addmm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``c + a @ b``."""
    product = _matrix_product(flow, 1, 2, entry.outs[0])
    shape = flow.shape(entry.outs[0])
    c = entry.args[0]
    return [flow.store.join([(product, shape), (flow.space(c), flow.shape(c))], shape, flow.at())]


ALIGNED = 16
"""The kernel of grouped products takes rows of a multiple of so many bytes."""


def grouped_mm(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows of ``a`` [rows, in], sorted by expert, each by its expert's matrix: ``b`` is [experts, in, out]."""
    x, w = entry.args[:2]
    if (len(flow.shape(x)), len(flow.shape(w))) != (2, 3):
        flow.store.pin(
            [z.labels for r in (x, w) for z in flow.space(r).layers], f"experts of ragged width at {flow.at()}"
        )
        return [TensorLabels()]
    flow.store.pin([z.labels for z in flow.layers(w, 0)], "experts are chosen by index")
    left, right = contract(flow, (0, 1), (1, 1))
    out = flow.layers(w, 2)
    flow.role(out, "writer")
    numbers = max(1, ALIGNED // flow.tape.values[w.id].dtype.itemsize)
    flow.multiples += [(tuple(z.labels for z in axis), numbers) for axis in (left, right, out)]
    rows, inner = flow.shape(x)
    flow.work(rows, (inner, left or right), (flow.shape(w)[2], out))
    return [TensorLabels(tuple(made(z, 1, 2) for z in out))]


def mv(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Matrix times vector."""
    x, _ = entry.args[:2]
    left, right = contract(flow, (0, 1), (1, 0))
    rows = flow.layers(x, 0)
    flow.role(rows, "writer")
    flow.work(1, (flow.shape(x)[0], rows), (flow.shape(x)[1], left or right))
    return [TensorLabels(tuple(LabelArray(z.labels) for z in rows))]


def bilinear(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``nn.Bilinear``: rows of two inputs [rows, in], each with every row of the other by a weight [out, in, in]."""
    x, w, y = entry.args[:3]
    if entry.args[3:7] != ((1, 3), (0,), (1, 2), (2, 3)):
        flow.store.pin([z.labels for r in (x, w, y) for z in flow.space(r).layers], f"mixed at {flow.at()}")
        return [TensorLabels()]
    left, right = contract(flow, (0, 1), (1, 1)), contract(flow, (2, 1), (1, 2))
    out = flow.layers(w, 0)
    flow.role(out, "writer")
    rows, inner, other = *flow.shape(x), flow.shape(y)[1]
    flow.work(rows, (flow.shape(w)[0], out), (inner, left[0] or left[1]), (other, right[0] or right[1]))
    return [TensorLabels(tuple(made(z, 1, 2) for z in out))]


def dot(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Inner product of two vectors."""
    left, right = contract(flow, (0, 0), (1, 0))
    flow.work(1, (flow.shape(entry.args[0])[0], left or right))
    return [TensorLabels()]


def distances(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Distances between the rows of ``x`` [..., n, d] and of ``y`` [..., m, d]: [..., n, m]."""
    x, y = entry.args[:2]
    rank, other = len(flow.shape(x)), len(flow.shape(y))
    left, right = contract(flow, (0, rank - 1), (1, other - 1))
    # A sum of differences: what leaves has to be zero on both sides.
    flow.read(1, other - 1, left or right)
    for ref, last in ((x, rank - 2), (y, other - 2)):
        for axis in range(last):
            flow.store.pin([z.labels for z in flow.layers(ref, axis)], f"a batch of distances at {flow.at()}")
    n = len(flow.shape(entry.outs[0]))
    rows, columns = flow.layers(x, rank - 2), flow.layers(y, other - 2)
    return [TensorLabels((*[made(z, n - 2, n) for z in rows], *[made(z, n - 1, n) for z in columns]))]


def linear(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """``x @ weight.T + bias`` over the last axis."""
    x, w = entry.args[:2]
    rank = len(flow.shape(x))
    left, right = contract(flow, (0, rank - 1), (1, 1))
    out = flow.layers(w, 0)
    flow.role(out, "writer")
    kept = [z for z in flow.store.rectangular(flow.space(x).layers, flow.at()) if z.support != (rank - 1,)]
    product = TensorLabels((*kept, *[made(z, rank - 1, rank) for z in out]))
    shape, bias = flow.shape(entry.outs[0]), argument(entry, 2, "bias")
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    flow.work(rows, (shape[-1], out), (flow.shape(x)[-1], left or right))
    spaces = [(product, shape)] + ([(flow.space(bias), flow.shape(bias))] if bias is not None else [])
    return [flow.store.join(spaces, shape, flow.at())]


def as_blocks(
    flow: LabelPropagation, layers: Sequence[LabelArray], blocks: int, size: int
) -> tuple[list[LabelArray], list[LabelArray]]:
    """Layers of an axis of ``size`` seen as equal blocks: those that tell blocks apart, and those inside them."""
    outer: list[LabelArray] = []
    inner: list[LabelArray] = []
    folded = [LabelArray(compress(x.labels.reshape(blocks, size // blocks)), x.owner) for x in layers]
    for layer in flow.store.rectangular(folded, flow.at()):
        (outer if layer.support == (0,) else inner).append(LabelArray(layer.labels.reshape(-1), layer.owner))
    return outer, inner


def convolution(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Convolution and transposed convolution in any number of dimensions, grouped or not."""
    x, w, bias = entry.args[:3]
    transposed, groups = entry.args[6], entry.args[8]
    rank, out_shape = len(flow.shape(x)), flow.shape(entry.outs[0])
    reads, writes = (0, 1) if transposed else (1, 0)
    through: list[LabelArray] = []
    whole = [a for a in range(2, rank) if _is_whole(flow, entry, a) and flow.layers(x, a)]
    for axis in whole:
        contract(flow, (0, axis), (1, axis))
    for axis in (a for a in range(2, rank) if a not in whole):
        flow.store.pin([z.labels for z in flow.layers(w, axis)], HIDDEN)
        if _is_by_place(flow, entry, axis):
            through += [made(z, axis, rank) for z in flow.layers(x, axis)]
        else:
            flow.store.pin([z.labels for z in flow.layers(x, axis)], f"mixed over space at {flow.at()}")
    space = flow.shape(x)[2:] if transposed else out_shape[2:]
    kernel = [n for a, n in enumerate(flow.shape(w)) if a > 1 and a not in whole]
    fixed = int(np.prod((out_shape[0], *space, *kernel), dtype=np.int64))
    if groups == 1:
        contract(flow, (0, 1), (1, reads))
        out = flow.layers(w, writes)
        flow.role(out, "writer")
    else:
        out = _contract_groups(flow, entry, x, w, groups, transposed)
    # A grouped weight has its block layers on axis 0 only, so the product of its two axes counts every block once.
    flow.work(fixed, *[(flow.shape(w)[axis], flow.layers(w, axis)) for axis in (0, 1, *whole)])
    layers = [made(z, 1, rank) for z in out] + [made(z, 0, rank) for z in flow.layers(x, 0)] + through
    if bias is None:
        return [TensorLabels(tuple(layers))]
    riders = [move(z, 1, rank) for z in flow.layers(bias, 0)]
    bias_shape = tuple(out_shape[1] if i == 1 else 1 for i in range(rank))
    return [
        flow.store.join(
            [(TensorLabels(tuple(layers)), out_shape), (TensorLabels(tuple(riders)), bias_shape)], out_shape, flow.at()
        )
    ]


def _is_whole(flow: LabelPropagation, entry: Entry, axis: int) -> bool:
    """Whether a kernel covers all of an axis once (words as wide as their embedding): a sum over it."""
    kernel, padding = flow.shape(entry.args[1])[axis], entry.args[4]
    once = kernel == flow.shape(entry.args[0])[axis] and flow.shape(entry.outs[0])[axis] == 1
    return once and padding[min(axis - 2, len(padding) - 1)] == 0 and not entry.args[6]


def _is_by_place(flow: LabelPropagation, entry: Entry, axis: int) -> bool:
    """Whether a convolution takes every place along an axis by itself: a kernel of one, no stride, no padding."""
    stride, padding = entry.args[3], entry.args[4]
    at = axis - 2
    return (
        flow.shape(entry.args[1])[axis] == 1
        and flow.shape(entry.args[0])[axis] == flow.shape(entry.outs[0])[axis]
        and stride[min(at, len(stride) - 1)] == 1
        and padding[min(at, len(padding) - 1)] == 0
    )


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
    out = [LabelArray(np.repeat(z.labels, per_block), z.owner) for z in (w_blocks or x_blocks)]
    return out + [LabelArray(np.tile(z.labels, groups), z.owner) for z in inside]


def _resize_groups(flow: LabelPropagation, entry: Entry, blocks: Sequence[LabelArray]) -> None:
    call = entry.call
    if not blocks:
        return
    # conv_transpose has output_padding before groups.
    position = 6
    given = None
    if call is not None:
        given = call.kwargs.get("groups", call.args[position] if len(call.args) > position else None)
    if not isinstance(given, Expression):
        flow.store.pin([z.labels for z in blocks], f"the number of groups is fixed in the code at {flow.at()}")
    else:
        flow.store.size(given, len(blocks[0].labels), [z.labels for z in blocks], "the number of groups")


def attention(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Scaled-dot-product kernels: query, key, value of shape [batch, heads, tokens, width]."""
    q, k, v = entry.args[:3]
    rank = len(flow.shape(q))
    left, right = contract(flow, (0, rank - 1), (1, rank - 1))
    inner = left or right
    flow.attention.extend(z.labels for z in inner)
    width = flow.layers(v, rank - 1)
    flow.attention.extend(z.labels for z in width)
    # The kernel divides by the square root of the width it sees unless it is told a scale.
    if "scale" not in entry.kwargs or entry.kwargs["scale"] is None:
        flow.store.suspect([z.labels for z in inner], f"the softmax scale is taken from the width at {flow.at()}")
    layers = [made(z, rank - 1, rank) for z in width]
    heads: list[LabelArray] = []
    for axis in range(rank - 2):
        stacks = [_repeat_layers(flow.layers(t, axis), flow.shape(t)[axis], flow.shape(q)[axis]) for t in (q, k, v)]
        meet(flow, stacks[0], stacks[1], flow.shape(q)[axis])
        meet(flow, stacks[0] or stacks[1], stacks[2], flow.shape(q)[axis])
        found = stacks[0] or stacks[1] or stacks[2]
        layers += [made(z, axis, rank) for z in found]
        heads = found if axis == rank - 3 else heads
    flow.heads.extend(z.labels for z in heads)
    _heads_follow(flow, entry, heads)
    mask = argument(entry, 3, "attn_bias" if "efficient" in entry.name else "attn_mask")
    if not isinstance(mask, Ref):
        mask = entry.kwargs.get("attn_mask")
    if isinstance(mask, Ref):
        shape = (*flow.shape(q)[:-1], flow.shape(k)[-2])
        scores = TensorLabels(tuple(move(z, rank - 3, rank) for z in heads))
        flow.store.join([(scores, shape), (flow.space(mask), flow.shape(mask))], shape, flow.at())
    for t in (q, k, v):
        flow.store.pin([z.labels for z in flow.layers(t, rank - 2)], f"attention over these positions at {flow.at()}")
    _attention_work(flow, (q, k, v), heads, inner, width)
    out = TensorLabels(tuple(layers))
    return [out, *[TensorLabels() for _ in entry.outs[1:]]]


def _attention_work(
    flow: LabelPropagation,
    qkv: tuple[Ref, Ref, Ref],
    heads: list[LabelArray],
    inner: list[LabelArray],
    width: list[LabelArray],
) -> None:
    (*batch, tokens, depth), (*_, keys, _), (*_, wide) = (flow.shape(t) for t in qkv)
    fixed = int(np.prod(batch[:-1], dtype=np.int64)) * tokens * keys
    flow.work(fixed, (batch[-1], heads), (depth, inner))
    flow.work(fixed, (batch[-1], heads), (wide, width))


def _repeat_layers(layers: list[LabelArray], size: int, wanted: int) -> list[LabelArray]:
    return layers if size in (1, wanted) else [LabelArray(np.repeat(z.labels, wanted // size), z.owner) for z in layers]


def embedding(flow: LabelPropagation, entry: Entry) -> list[TensorLabels]:
    """Rows of a table, looked up."""
    table = entry.args[0]
    rank = len(flow.shape(entry.outs[0]))
    flow.store.pin([z.labels for z in flow.layers(table, 0)], "rows are looked up by index")
    width = flow.layers(table, 1)
    flow.role(width, "writer")
    return [TensorLabels(tuple(made(z, rank - 1, rank) for z in width)), *[TensorLabels() for _ in entry.outs[1:]]]
