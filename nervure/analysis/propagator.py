"""One pass over a tape that numbers units and notes what joins them; the rules in ``rules.py`` do the operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nervure.analysis.constant_folding import Statics
from nervure.analysis.edge_strength import Strength, finish, fold_columns, terms
from nervure.analysis.neuron_graph import EdgeSet, Floats, Ints, Kind, NeuronGraph, NodeSet, WeightUse
from nervure.analysis.node_numbers import NONE, align_rank, as_one, distinct, rows_of, shrink_constant, tensor
from nervure.core.extras import require_extra
from nervure.graph.labels import shape_along
from nervure.graph.tape import Entry, Ref, Tape, WriteBack

ROWS = 64
"""More different places than this that a weight reads one by one are taken together."""
SPARSE = 0.25
"""Below this share of edges a matrix is kept as a sparse one."""
Rule: TypeAlias = Callable[["Propagator", Entry], Sequence[Tensor | None]]


class Weight:
    """A weight as a contraction reads it: [outputs, inputs of one output, kernel positions], with its name."""

    __slots__ = ("groups", "name", "values")

    def __init__(self, name: str, values: Tensor, groups: int = 1) -> None:
        self.name, self.values, self.groups = name, values, groups

    @property
    def inputs(self) -> int:
        """Inputs of all groups."""
        return int(self.values.shape[1]) * self.groups


@dataclass(slots=True)
class BoundArguments:
    """An input of the model: its nodes, its shape, and how they were laid over it."""

    start: int
    size: int
    shape: tuple[int, ...]
    way: str
    better: str | None = None
    judged: bool = False


@dataclass(slots=True)
class Propagator:
    """State of a pass: the numbers over every value so far, and the circuit as far as it is known."""

    tape: Tape
    statics: Statics
    strength: Strength
    nodes: dict[int, Tensor] = field(default_factory=dict)
    stages: list[NodeSet] = field(default_factory=list)
    bundles: list[EdgeSet] = field(default_factory=list)
    uses: list[WeightUse] = field(default_factory=list)
    given: list[BoundArguments] = field(default_factory=list)
    members: dict[int, Ints] = field(default_factory=dict)
    """For nodes that are statistics over units (a mean over channels) those units."""
    notes: dict[str, None] = field(default_factory=dict)
    index: int = 0
    _count: int = 0
    _names: dict[str, int] = field(default_factory=dict)
    _matrices: dict[Any, Any] = field(default_factory=dict)

    # -- the pass -----------------------------------------------------------------------------------------------

    def run(self, find: Callable[["Propagator", Entry], Rule]) -> None:
        """Carry numbers over the whole tape, by the rules that ``find`` knows of its operators."""
        for index, entry in enumerate(self.tape.entries):
            self.index = index
            if isinstance(entry, WriteBack):
                if entry.base.id in self.nodes or entry.value.id in self.nodes:
                    self._keep(entry.out, self._write_nodes(entry))
                continue
            if not self.active(entry):
                continue
            for ref, nodes in zip(entry.outs, find(self, entry)(self, entry), strict=False):
                self._keep(ref, nodes)

    def _keep(self, ref: Ref, nodes: Tensor | None) -> None:
        # A comparison passes no change on, however small: what only depends on it is constant here.
        if nodes is None or self.tape.values[ref.id].dtype == torch.bool or not bool((nodes >= 0).any()):
            return
        self.nodes[ref.id] = shrink_constant(nodes)

    def active(self, entry: Entry) -> list[Ref]:
        """The arguments that depend on the model's inputs."""
        return [r for r in entry.given if r.id in self.nodes]

    def of(self, ref: Ref) -> Tensor:
        """The numbers over a value, all -1 where it is constant."""
        found = self.nodes.get(ref.id)
        return torch.full((1,) * len(self.shape(ref)), NONE) if found is None else found

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a value."""
        return self.tape.values[ref.id].shape

    def full(self, ref: Ref) -> Tensor:
        """The numbers over a value, one for each element."""
        return self.of(ref).expand(self.shape(ref))

    # -- making nodes -------------------------------------------------------------------------------------------

    def stage(self, size: int, kind: Any, name: str = "") -> int:
        """Make ``size`` nodes, named by the running module; returns the first."""
        entry = self.tape.entries[self.index] if self.tape.entries else None
        base = name or (entry.module if entry is not None else "") or "model"
        if kind in ("sum", "mix") and isinstance(entry, Entry):
            base = f"{base}.{entry.name.strip('_')}"
        number = self._names[base] = self._names.get(base, 0) + 1
        start, self._count = self._count, self._count + size
        self.stages.append(NodeSet(base if number == 1 else f"{base}#{number}", start, size, kind))
        return start

    def give(self, number: int, way: str) -> None:
        """Make the nodes of an input of the model.

        ``way``: ``"channels"`` (along axis 1), ``"features"`` (along the last axis), ``"elements"`` (each by itself) or
        ``"whole"`` (one for all).
        """
        shape = self.tape.values[number].shape
        axis = {"channels": min(1, len(shape) - 1), "features": len(shape) - 1}.get(way, 0)
        size = {"whole": 1, "elements": int(np.prod(shape[1:], dtype=np.int64))}.get(way) or shape[axis]
        start = self.stage(size, "input", "input" if not self.given else f"input{len(self.given)}")
        numbers = torch.arange(start, start + size)
        if way == "elements":
            numbers = numbers.reshape(1, *shape[1:])
        else:
            numbers = numbers.reshape(shape_along(axis, len(shape)))
        self.given.append(BoundArguments(start, size, shape, way))
        self.nodes[number] = shrink_constant(numbers)

    def meet(self, left: Tensor, right: Tensor, kind: Kind) -> Tensor:
        """Numbers of what two activations of the same rank become together, element by element."""
        if left.shape == right.shape and torch.equal(left, right):
            return left
        a, b = torch.broadcast_tensors(left, right)
        pairs, inverse = distinct(torch.stack([a.reshape(-1), b.reshape(-1)], 1).numpy())
        one, two = self._without_statistics(pairs[:, 0].copy(), pairs[:, 1].copy())
        joined = (one >= 0) & (two >= 0) & (one != two)
        out = np.maximum(one, two)
        if joined.any():
            start = self.stage(int(joined.sum()), kind)
            out[joined] = np.arange(start, self._count)
            self._edges(np.concatenate([one[joined], two[joined]]), np.concatenate([out[joined]] * 2), kind)
        return tensor(out[inverse]).reshape(a.shape)

    def _without_statistics(self, one: Ints, two: Ints) -> tuple[Ints, Ints]:
        """A statistic over units that meets one of them (a norm) is no connection between these units."""
        for mine, other in ((one, two), (two, one)):
            for node in set(mine.tolist()) & self.members.keys():
                known = np.isin(other, self.members[node])
                known |= np.isin(other, [n for n, m in self.members.items() if np.array_equal(m, self.members[node])])
                mine[(mine == node) & known] = NONE
        return one, two

    def mix(self, nodes: Tensor, axes: Sequence[int], *, statistic: bool = False) -> Tensor:
        """Numbers of what is made of all elements along ``axes`` at once, which then have size 1."""
        axes = [a % nodes.dim() for a in axes]
        if all(nodes.shape[a] == 1 for a in axes):
            return nodes
        rows, _ = rows_of(nodes, axes)
        sets, inverse = distinct(np.sort(rows.numpy(), axis=1))
        out = np.full(len(sets), NONE, dtype=np.int64)
        parts = [np.unique(row[row >= 0]) for row in sets]
        for number, part in enumerate(parts):
            if len(part) == 1:
                out[number] = part[0]
        many = [number for number, part in enumerate(parts) if len(part) > 1]
        if many:
            start = self.stage(len(many), "mix")
            out[many] = np.arange(start, self._count)
            for number in many:
                if statistic:
                    self.members[int(out[number])] = parts[number]
            self._edges(
                np.concatenate([parts[n] for n in many]),
                np.concatenate([[out[n]] * len(parts[n]) for n in many]),
                "mix",
            )
        shape = [1 if a in axes else n for a, n in enumerate(nodes.shape)]
        return tensor(out[inverse]).reshape(shape)

    def hub(self, entry: Entry) -> list[Tensor | None]:
        """One node that hears everything an operator is given and that all its results hear."""
        given = np.unique(torch.cat([self.of(r).reshape(-1) for r in self.active(entry)]).numpy())
        node = self.mix(tensor(given[given >= 0]), [0])
        return [node.reshape((1,) * len(self.shape(ref))) for ref in entry.outs]

    def _edges(self, sources: Ints, targets: Ints, kind: Kind, values: Floats | None = None) -> None:
        sparse = require_extra("scipy.sparse", "The connectivity of a network", "connectivity")
        columns, column = np.unique(sources, return_inverse=True)
        rows, row = np.unique(targets, return_inverse=True)
        data = np.ones(len(sources)) if values is None else values
        matrix = sparse.csr_matrix((data, (row, column)), shape=(len(rows), len(columns)))
        self.bundles.append(EdgeSet(columns, rows, matrix, kind))

    # -- weights ------------------------------------------------------------------------------------------------

    def contract(self, rows: Tensor, weight: Weight) -> Tensor:
        """Numbers after a weight has read the last axis of ``rows`` [places, inputs or 1]: [places, outputs or 1]."""
        self._judge(rows, weight.inputs)
        patterns, inverse = distinct(rows.numpy())
        if rows.shape[1] == 1 and weight.inputs > 1 and len(patterns) > 1:
            return tensor(self._spread(patterns[:, 0], weight)[inverse])[:, None]
        patterns = np.broadcast_to(patterns, (len(patterns), weight.inputs))
        if len(patterns) > 1 and (one := as_one(patterns)) is not None:
            made = self._read(one, weight)
            there = np.atleast_1d((patterns >= 0).any(axis=1))
            out = np.where(there[:, None], made[None], NONE)
        elif len(patterns) > ROWS:
            together = self.mix(tensor(patterns), [0]).numpy()[0]
            out = np.broadcast_to(self._read(together, weight), (len(patterns), len(weight.values)))
        else:
            out = np.stack([self._read(p, weight) if (p >= 0).any() else _nothing(weight) for p in patterns])
        return tensor(out[inverse])

    def _judge(self, rows: Tensor, inputs: int) -> None:
        """Whether the first weight that reads an input of the model reads along the axis of its nodes."""
        for given in self.given:
            here = (rows >= given.start) & (rows < given.start + given.size)
            if given.judged or not bool(here.any()):
                continue
            given.judged = True
            whole = int(np.prod(given.shape[1:], dtype=np.int64))
            seen = len(torch.unique(rows[here])) if rows.shape[1] > 1 else 1
            if inputs == whole and given.size < whole:
                given.better = "elements"
            elif rows.shape[1] == 1 and inputs > 1 and given.size > 1 and seen == 1:
                given.better = "features"

    def _read(self, inputs: Ints, weight: Weight) -> Ints:
        """The units that a weight makes of the nodes at its inputs."""
        size = len(weight.values)
        start = self.stage(size, "weight")
        outputs = np.arange(start, start + size)
        columns, column = np.unique(inputs[inputs >= 0], return_inverse=True)
        place = np.full(len(inputs), NONE, dtype=np.int64)
        place[inputs >= 0] = column
        key = (weight.name, weight.groups, tuple(weight.values.shape), place.tobytes())
        matrix = self._matrices.get(key) if weight.name else None
        if matrix is None:
            matrix = self._matrices[key] = _matrix(weight, place, len(columns), self.strength)
        self.bundles.append(EdgeSet(columns, outputs, matrix, "weight"))
        self.uses.append(WeightUse(weight.name, weight.values, weight.groups, inputs, outputs, len(self.stages) - 1))
        return outputs

    def _spread(self, nodes: Ints, weight: Weight) -> Ints:
        """A weight that reads along an axis of places, for each unit by itself, as a kernel does."""
        there = nodes >= 0
        start = self.stage(int(there.sum()), "weight")
        out = np.full(len(nodes), NONE, dtype=np.int64)
        out[there] = np.arange(start, self._count)
        whole = terms(weight.values.reshape(1, 1, -1), self.strength)
        value = finish(whole, np.full_like(whole, weight.values.numel()), self.strength)
        self._edges(nodes[there], out[there], "weight", np.full(int(there.sum()), value[0, 0]))
        self.uses += [
            WeightUse(
                weight.name,
                weight.values,
                1,
                np.full(weight.inputs, a),
                np.full(len(weight.values), b),
                len(self.stages) - 1,
            )
            for a, b in zip(nodes[there].tolist(), out[there].tolist(), strict=True)
        ]
        return out

    def look_up(self, entry: Entry, table: Ref, index: Ref) -> Tensor:
        """Rows of a table chosen by an input: each of its columns hears what chooses."""
        chooser = self.mix(self.of(index).reshape(-1), [0])
        values = self.statics.value(table)
        values = values.reshape(len(values), -1).T[:, None, :]
        total = terms(values, self.strength)
        # One row at a time is read: its mean strength, not that of all rows together.
        count = values.shape[2] if self.strength in ("l2", "l1") else 1
        data = finish(total / count, np.full_like(total, values.shape[2]), self.strength)
        start = self.stage(len(data), "weight")
        outputs = np.arange(start, self._count)
        self._edges(np.full(len(data), int(chooser[0])), outputs, "weight", data[:, 0])
        trailing = self.shape(table)[1:]
        rank = len(self.shape(entry.outs[0]))
        return tensor(outputs).reshape((1,) * (rank - len(trailing)) + trailing)

    # -- writes -------------------------------------------------------------------------------------------------

    def _write_nodes(self, entry: WriteBack) -> Tensor:
        whole = self.full(entry.base).clone()
        part: Any = whole
        for op, args, kwargs, which in entry.views:
            part = op(part, *[self.statics.value(a) if isinstance(a, Ref) else a for a in args[1:]], **kwargs)
            part = part[which] if isinstance(part, list | tuple) else part
        part.copy_(align_rank(self.of(entry.value), part.dim()).expand(part.shape))
        return whole

    def circuit(self, links: frozenset[str]) -> NeuronGraph:
        """What was found."""
        out = [self.nodes[n].reshape(-1) for n in self.tape.outputs if n in self.nodes]
        outputs = np.unique(torch.cat(out).numpy()) if out else np.zeros(0, dtype=np.int64)
        inputs = np.concatenate([np.arange(g.start, g.start + g.size) for g in self.given] or [np.zeros(0, np.int64)])
        return NeuronGraph(
            tuple(self.stages),
            tuple(self.bundles),
            tuple(self.uses),
            inputs,
            outputs[outputs >= 0],
            links,
            tuple(self.notes),
        )


def _nothing(weight: Weight) -> Ints:
    return np.full(len(weight.values), NONE, dtype=np.int64)


def _matrix(weight: Weight, place: Ints, size: int, strength: Strength) -> Any:
    """Strengths [outputs, nodes] of a weight whose inputs stand at ``place`` among the nodes."""
    sparse = require_extra("scipy.sparse", "The connectivity of a network", "connectivity")
    total = terms(weight.values, strength)
    kernel = float(weight.values.shape[2])
    if weight.groups == 1:
        count = fold_columns(np.full((1, len(place)), kernel), place, size)
        dense = finish(fold_columns(total, place, size), count, strength)
        return dense if np.count_nonzero(dense) > SPARSE * dense.size else sparse.csr_matrix(dense)
    rows, inner = total.shape
    block = np.arange(rows) // (rows // weight.groups)
    column = place[(block[:, None] * inner + np.arange(inner)).reshape(-1)]
    row, here = np.repeat(np.arange(rows), inner), column >= 0
    at = (row[here], column[here])
    summed = sparse.csr_matrix((total.reshape(-1)[here], at), shape=(rows, size))
    count = sparse.csr_matrix((np.full(int(here.sum()), kernel), at), shape=(rows, size))
    summed.data = finish(summed.data, count.data, strength)
    return summed
