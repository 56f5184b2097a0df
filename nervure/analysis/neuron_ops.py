"""What operators do to the nodes of a neuron graph: small functions, by the names that the table of operators uses."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from nervure.analysis.neuron_graph import Kind
from nervure.analysis.node_numbers import align_rank, fits, rows_of
from nervure.analysis.propagator import Propagator, Rule, Weight
from nervure.graph.ops.facets import NeuronRule
from nervure.graph.ops.table import find_operator
from nervure.graph.ops.user import Contraction, Moves, spell
from nervure.graph.propagate import argument
from nervure.graph.tape import Entry, Ref, refs_in

Nodes = list[Tensor | None]


def otherwise(carrier: Propagator, entry: Entry, kind: Kind = "mix") -> Nodes:
    """Element by element where shapes say so, place by place where ranks do; else all is taken to meet all."""
    active = carrier.active(entry)
    first = carrier.shape(entry.outs[0]) if entry.outs else ()
    if all(fits(carrier.of(ref), first) and _broadcasts(carrier.shape(ref), first) for ref in active):
        given = [align_rank(carrier.of(ref), len(first)) for ref in active]
        joined = reduce(lambda a, b: carrier.meet(a, b, kind), given)
        return [joined if fits(joined, carrier.shape(ref)) else None for ref in entry.outs]
    if len(active) == 1 and len(carrier.shape(active[0])) == len(first) and fits(carrier.of(active[0]), first):
        return [
            carrier.of(active[0]) if fits(carrier.of(active[0]), carrier.shape(ref)) else None for ref in entry.outs
        ]
    carrier.notes[f"{entry.name} in {entry.module or 'the model'}: taken to join all that it is given"] = None
    return carrier.hub(entry)


def _broadcasts(shape: Sequence[int], whole: Sequence[int]) -> bool:
    return len(shape) <= len(whole) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(whole), strict=False))


def add(carrier: Propagator, entry: Entry) -> Nodes:
    """As :func:`otherwise`; what is given is summed."""
    return otherwise(carrier, entry, "sum")


# -- movers: the same move is made with the numbers ----------------------------------------------------------------


def move(carrier: Propagator, entry: Entry) -> Nodes:
    """Run the operator on the numbers. They are shifted by one: what is filled with zeros is constant."""
    return _run(carrier, entry, carrier.full)


def _run(carrier: Propagator, entry: Entry, numbers: Callable[[Ref], Tensor]) -> Nodes:
    def bind(value: Any) -> Any:
        if isinstance(value, Ref):
            is_moved = value.id in carrier.nodes or carrier.tape.values[value.id].dtype.is_floating_point
            return (numbers(value) + 1).double().contiguous() if is_moved else carrier.statics.value(value)
        return [bind(v) for v in value] if isinstance(value, tuple) else value

    found = entry.op(*[bind(a) for a in entry.args], **{k: bind(v) for k, v in entry.kwargs.items()})
    return [t.long() - 1 for t in (found if isinstance(found, list | tuple) else [found])]


def along(position: int) -> Rule:
    """Movers along one axis, argument number ``position``: axes where all is constant are left out."""

    def rule(carrier: Propagator, entry: Entry) -> Nodes:
        refs = [r for r in refs_in(entry.args[:1])]
        rank = len(carrier.shape(refs[0]))
        axis = argument(entry, position, "dim", 0) % max(1, rank)
        thin = [a for a in range(rank) if a != axis and all(carrier.of(r).shape[a] == 1 for r in refs)]

        def numbers(ref: Ref) -> Tensor:
            return carrier.of(ref).expand([1 if a in thin else n for a, n in enumerate(carrier.shape(ref))])

        return _run(carrier, entry, numbers)

    return rule


def pick(carrier: Propagator, entry: Entry) -> Nodes:
    """``x[i]``: rows of a table where an input chooses them; elements moved where the places are known."""
    table = entry.args[0]
    chosen = [r for r in refs_in((*entry.args[1:], *entry.kwargs.values())) if r.id in carrier.nodes]
    if not chosen:
        return move(carrier, entry)
    if table.id not in carrier.nodes and len(carrier.shape(table)) > 1 and entry.name in ("index", "index_select"):
        return [carrier.look_up(entry, table, chosen[0])]
    return _route(carrier, entry) or otherwise(carrier, entry)


def _route(carrier: Propagator, entry: Entry) -> Nodes | None:
    """Rows of an activation that an input chooses, as experts do: along the other axes units stay what they are."""
    nodes, shape = carrier.of(entry.args[0]), carrier.shape(entry.outs[0])
    indices = entry.args[1] if entry.name == "index" else (None,)
    leading = len(indices) if all(isinstance(i, Ref) for i in indices) else 0
    if not leading or any(n > 1 for n in nodes.shape[:leading]):
        return None
    return [align_rank(nodes[(0,) * leading], len(shape))]


def stack(carrier: Propagator, entry: Entry) -> Nodes:
    """Concatenate along a new axis: only there do the parts differ."""
    parts = [carrier.of(r) for r in entry.args[0]]
    rank = parts[0].dim() + 1
    axis = argument(entry, 1, "dim", 0) % rank
    shapes = torch.broadcast_shapes(*[p.shape for p in parts])
    return [torch.stack([p.expand(shapes) for p in parts], axis)]


def reorder(carrier: Propagator, entry: Entry) -> Nodes:
    """Axes swapped or permuted: numbers of size 1 along some are as good."""
    return [entry.op(carrier.of(entry.args[0]), *entry.args[1:], **entry.kwargs)]


def expand(carrier: Propagator, entry: Entry) -> Nodes:
    """Broadcast: nothing changes but the shape."""
    return [align_rank(carrier.of(entry.args[0]), len(carrier.shape(entry.outs[0])))]


def reshape(carrier: Propagator, entry: Entry) -> Nodes:
    """Any change of shape in the same order."""
    nodes, shape = carrier.of(entry.args[0]), carrier.shape(entry.outs[0])
    if nodes.numel() == 1:
        return [nodes.reshape((1,) * len(shape))]
    return [carrier.full(entry.args[0]).reshape(shape)]


def pad(carrier: Propagator, entry: Entry) -> Nodes:
    """Constant padding: what is added is constant."""
    nodes = carrier.full(entry.args[0]) + 1
    return [torch.constant_pad_nd(nodes, list(entry.args[1])) - 1]


def pair_up(carrier: Propagator, entry: Entry) -> Nodes:
    """Pairs along the last axis become one number."""
    return [carrier.mix(carrier.of(entry.args[0]), [-1]).squeeze(-1)]


def unpair(carrier: Propagator, entry: Entry) -> Nodes:
    """One number becomes a pair along a new last axis."""
    return [carrier.of(entry.args[0]).unsqueeze(-1)]


def put(carrier: Propagator, entry: Entry) -> Nodes:
    """Values added or copied to places of a tensor: units of the axes that both share, taken together."""
    shape = carrier.shape(entry.outs[0])
    active = [
        align_rank(carrier.of(r), len(shape)) for r in carrier.active(entry) if len(carrier.shape(r)) <= len(shape)
    ]
    if not all(fits(nodes, shape) for nodes in active) or not active:
        return carrier.hub(entry)
    return [reduce(lambda a, b: carrier.meet(a, b, "sum"), active)]


# -- reductions and what mixes along an axis -------------------------------------------------------------------------


def _bind_arguments(entry: Entry, *names: str) -> Any:
    for position, declared in enumerate(entry.op._schema.arguments):
        if declared.name in names:
            return argument(entry, position, declared.name)
    return None


def _axes(entry: Entry, rank: int) -> list[int]:
    axes = _bind_arguments(entry, "dim", "dims")
    if axes is None or axes == ():
        return list(range(rank))
    return [a % max(1, rank) for a in (axes if isinstance(axes, tuple) else (axes,))]


def reduce_axes(carrier: Propagator, entry: Entry) -> Nodes:
    """A sum, a mean, a largest element: over axes of units a new one that hears them all."""
    nodes = carrier.of(entry.args[0])
    if not nodes.dim() or len(carrier.active(entry)) > 1:
        return otherwise(carrier, entry)
    axes = _axes(entry, nodes.dim())
    found = carrier.mix(nodes, axes, statistic=True)
    if not _bind_arguments(entry, "keepdim"):
        found = found.reshape([n for a, n in enumerate(found.shape) if a not in axes])
    return [found if fits(found, carrier.shape(ref)) else None for ref in entry.outs]


def along_axis(carrier: Propagator, entry: Entry) -> Nodes:
    """Transforms and sorting along an axis: over units, all of them meet."""
    nodes = carrier.of(entry.args[0])
    if not nodes.dim():
        return [nodes] * len(entry.outs)
    found = carrier.mix(nodes, _axes(entry, nodes.dim()))
    return [found if len(carrier.shape(ref)) == found.dim() else None for ref in entry.outs]


def normalise(carrier: Propagator, entry: Entry) -> Nodes:
    """Norms: every unit passes; that its statistics hear others connects nothing."""
    nodes = carrier.of(entry.args[0])
    return [nodes, *[None for _ in entry.outs[1:]]]


# -- contractions ----------------------------------------------------------------------------------------------------


def _weight(carrier: Propagator, ref: Ref, values: Tensor, groups: int = 1) -> Weight:
    return Weight(carrier.statics.name(ref), values, groups)


def _read_last(carrier: Propagator, nodes: Tensor, weight: Weight) -> Tensor:
    """A weight reads the last axis."""
    rows, places = rows_of(nodes, [nodes.dim() - 1])
    return carrier.contract(rows, weight).reshape(*places, -1)


def _plus(carrier: Propagator, nodes: Tensor, other: Any) -> Tensor:
    if not isinstance(other, Ref) or other.id not in carrier.nodes:
        return nodes
    return carrier.meet(nodes, align_rank(carrier.of(other), nodes.dim()), "sum")


def linear(carrier: Propagator, entry: Entry) -> Nodes:
    """``x @ weight.T + bias`` over the last axis."""
    x, w = entry.args[:2]
    if w.id in carrier.nodes:
        product = _two(carrier, carrier.of(x), carrier.of(w).transpose(0, 1))
    else:
        product = _read_last(carrier, carrier.of(x), _weight(carrier, w, carrier.statics.value(w)[:, :, None]))
    return [_plus(carrier, product, argument(entry, 2, "bias"))]


def _product(carrier: Propagator, left: Ref, right: Ref) -> Tensor:
    a, b = carrier.of(left), carrier.of(right)
    if right.id not in carrier.nodes:
        return _times(carrier, a, right, carrier.statics.value(right).transpose(-1, -2))
    if left.id not in carrier.nodes:
        turned = _times(carrier, b.transpose(-1, -2), left, carrier.statics.value(left))
        return turned.transpose(-1, -2)
    return _two(carrier, a, b)


def _times(carrier: Propagator, nodes: Tensor, ref: Ref, values: Tensor) -> Tensor:
    """A constant matrix [(batch,) outputs, inputs] reads the last axis, one for each batch where they differ."""
    if values.dim() == 3 and (values.shape[0] == 1 or values.stride(0) == 0):
        values = values[0]
    if values.dim() == 2:
        return _read_last(carrier, nodes, _weight(carrier, ref, values[:, :, None]))
    parts = nodes.expand(len(values), *nodes.shape[1:])
    name = carrier.statics.name(ref)
    read = [
        _read_last(carrier, part[None], Weight(name and f"{name}[{i}]", values[i][:, :, None]))
        for i, part in enumerate(parts)
    ]
    shape = torch.broadcast_shapes(*[r.shape for r in read])
    return torch.cat([r.expand(shape) for r in read])


def _two(carrier: Propagator, a: Tensor, b: Tensor) -> Tensor:
    """Two activations multiplied and summed: each place hears all that it is made of."""
    return carrier.meet(carrier.mix(a, [-1]), carrier.mix(b, [-2]), "mix")


def mm(carrier: Propagator, entry: Entry) -> Nodes:
    """``a @ b`` of matrices or batches of matrices."""
    return [_product(carrier, *entry.args[:2])]


def addmm(carrier: Propagator, entry: Entry) -> Nodes:
    """``c + a @ b``."""
    c, a, b = entry.args[:3]
    if a.id not in carrier.nodes and b.id not in carrier.nodes:
        return otherwise(carrier, entry)
    return [_plus(carrier, _product(carrier, a, b), c)]


def mv(carrier: Propagator, entry: Entry) -> Nodes:
    """Matrix times vector, or the inner product of two vectors."""
    a, b = entry.args[:2]
    if b.id in carrier.nodes and a.id not in carrier.nodes and len(carrier.shape(a)) == 2:
        return [_read_last(carrier, carrier.of(b)[None], _weight(carrier, a, carrier.statics.value(a)[:, :, None]))[0]]
    if a.id in carrier.nodes and b.id not in carrier.nodes:
        values = carrier.statics.value(b)[None, :, None]
        return [_read_last(carrier, carrier.of(a), _weight(carrier, b, values)).squeeze(-1)]
    return carrier.hub(entry)


def grouped_mm(carrier: Propagator, entry: Entry) -> Nodes:
    """Rows, each by its expert's matrix: the experts [experts, in, out] are as one kernel, since inputs choose them."""
    x, w = entry.args[:2]
    if x.id not in carrier.nodes or w.id in carrier.nodes or len(carrier.shape(w)) != 3:
        return carrier.hub(entry)
    return [_read_last(carrier, carrier.of(x), _weight(carrier, w, carrier.statics.value(w).permute(2, 1, 0)))]


def convolution(carrier: Propagator, entry: Entry) -> Nodes:
    """Convolution and transposed convolution in any number of dimensions, grouped or not."""
    x, w = entry.args[:2]
    if w.id in carrier.nodes:
        return carrier.hub(entry)
    transposed, groups = entry.args[6], entry.args[8]
    nodes, weight = carrier.of(x), carrier.statics.value(w)
    if transposed:
        first, second, *kernel = weight.shape
        parts = weight.reshape(groups, first // groups, second, -1)
        weight = parts.transpose(1, 2).reshape(groups * second, first // groups, *kernel)
    space = list(range(2, nodes.dim()))
    if any(n > 1 for n in weight.shape[2:]) or carrier.shape(x)[2:] != carrier.shape(entry.outs[0])[2:]:
        nodes = carrier.mix(nodes, space) if space else nodes
    read = _weight(carrier, w, weight.reshape(*weight.shape[:2], -1), groups)
    return [_read_last(carrier, nodes.movedim(1, -1), read).movedim(-1, 1)]


def attention(carrier: Propagator, entry: Entry) -> Nodes:
    """Scaled-dot-product kernels: every query and key of a head decides on all of its output, values pass by index."""
    q, k, v = (carrier.of(r) for r in entry.args[:3])
    heads = carrier.shape(entry.args[0])[-3] if q.dim() > 3 else 1
    k, v = (_repeat_heads(x, heads) for x in (k, v))
    scores = carrier.meet(carrier.mix(q, [-1]), carrier.mix(k, [-1]).transpose(-1, -2), "mix")
    mask = argument(entry, 3, "attn_bias" if "efficient" in entry.name else "attn_mask") or entry.kwargs.get(
        "attn_mask"
    )
    if isinstance(mask, Ref) and mask.id in carrier.nodes:
        scores = carrier.meet(scores, align_rank(carrier.of(mask), scores.dim()), "mix")
    return [_two(carrier, scores, v), *[None for _ in entry.outs[1:]]]


def _repeat_heads(nodes: Tensor, heads: int) -> Tensor:
    own = nodes.shape[-3] if nodes.dim() > 3 else 1
    return nodes if own in (1, heads) else nodes.repeat_interleave(heads // own, -3)


def embedding(carrier: Propagator, entry: Entry) -> Nodes:
    """Rows of a table, looked up by an input."""
    table, index = entry.args[:2]
    if table.id in carrier.nodes or index.id not in carrier.nodes:
        return carrier.hub(entry)
    return [carrier.look_up(entry, table, index), *[None for _ in entry.outs[1:]]]


def contract(how: Contraction, carrier: Propagator, entry: Entry) -> Nodes:
    """What a user says as an equation: a constant matrix is read as a weight is, whatever else is given meets."""
    refs = entry.given
    letters = spell(how, [carrier.shape(r) for r in refs], [carrier.shape(r) for r in entry.outs])
    active = [k for k, ref in enumerate(refs) if ref.id in carrier.nodes]
    if len(active) != 1 or len(letters.outs) != 1:
        return carrier.hub(entry)
    mine, (out,) = letters.ins[active[0]], letters.outs
    summed = [letter for letter in mine if letter not in out]
    matrices = [k for k, own in enumerate(letters.ins) if k not in active and len(own) == 2 and set(summed) & set(own)]
    if len(summed) != 1 or len(matrices) != 1:
        return carrier.hub(entry)
    weight, names = refs[matrices[0]], letters.ins[matrices[0]]
    made = [*(letter for letter in mine if letter not in summed), *(letter for letter in names if letter not in summed)]
    if sorted(made) != sorted(out):
        return carrier.hub(entry)
    values = carrier.statics.value(weight)
    rows = values if names[1] == summed[0] else values.T
    nodes = carrier.of(refs[active[0]]).movedim(mine.index(summed[0]), -1)
    read = _read_last(carrier, nodes, _weight(carrier, weight, rows[:, :, None]))
    return [read.permute([made.index(letter) for letter in out])]


def nothing(carrier: Propagator, entry: Entry) -> Nodes:
    """What only has the shape of what it is given, or reads a number from it."""
    return [None for _ in entry.outs]


def copy_model(carrier: Propagator, entry: Entry) -> Nodes:
    """``x.copy_(y)``: nothing of x is left."""
    return [align_rank(carrier.of(entry.args[1]), len(carrier.shape(entry.outs[0])))]


def gate(carrier: Propagator, entry: Entry) -> Nodes:
    """The first half of an axis, multiplied by what the second half says."""
    axis = argument(entry, 1, "dim", -1)
    one, two = carrier.full(entry.args[0]).chunk(2, axis)
    return [carrier.meet(one, two, "mix")]


def sample_grid(carrier: Propagator, entry: Entry) -> Nodes:
    """An image read at places of a grid: channels pass; where the grid is computed, all of it decides."""
    nodes, grid = (carrier.of(r) for r in entry.args[:2])
    everywhere = carrier.mix(grid, list(range(grid.dim())))
    space = list(range(2, nodes.dim()))
    return [carrier.meet(carrier.mix(nodes, space), everywhere, "mix")]


RULES: Mapping[NeuronRule, Rule] = {
    "as shaped": otherwise,
    "sum": add,
    "move": move,
    "move along": along(1),
    "split": along(2),
    "pick": pick,
    "stack": stack,
    "reorder": reorder,
    "expand": expand,
    "reshape": reshape,
    "pad": pad,
    "pair": pair_up,
    "unpair": unpair,
    "put": put,
    "reduce": reduce_axes,
    "mix along": along_axis,
    "normalise": normalise,
    "linear": linear,
    "product": mm,
    "product and sum": addmm,
    "vector product": mv,
    "experts": grouped_mm,
    "convolution": convolution,
    "attention": attention,
    "look up": embedding,
    "nothing": nothing,
    "copy": copy_model,
    "gate": gate,
    "sample": sample_grid,
    "hub": Propagator.hub,
}


def find_rule(carrier: Propagator, entry: Entry) -> Rule:
    """What the operator of an entry does to nodes, as the table of operators or a user says."""
    said = find_operator(carrier.tape, entry).neurons
    match said:
        case Contraction():
            return partial(contract, said)
        case Moves(function):
            return lambda carrier, entry: [function(carrier.full(entry.args[0])) for _ in entry.outs]
        case _:
            return RULES[said]
