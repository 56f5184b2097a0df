"""From one run of a model to the frozen picture of what is coupled to what.

``draw`` is what ``nervure.trace`` starts from; the latter also tries the groups that ``draw`` is not sure of.
"""

import fnmatch
import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import gcd, lcm
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core.check import show_value
from nervure.errors import ArgumentError, TraceError
from nervure.graph.declared import families, find_declared, find_unexplained, full_name, in_multiples
from nervure.graph.labels import NONE, Array, AxisSplit, LabelArray, LabelState, Owner, TensorLabels, blank
from nervure.graph.lifetimes import lifetimes_of
from nervure.graph.lost import loses
from nervure.graph.ops.table import SIZED_CALLS, find_operator
from nervure.graph.products import products_of, told_of_masks
from nervure.graph.propagate import HIDDEN, LabelPropagation, Specs, move
from nervure.graph.sizes import Attribute, Expression
from nervure.graph.solve import TRIES, Solver
from nervure.graph.tape import Entry, Ref, Tape, named_tensors, names_of_tensors, record, require_seen
from nervure.graph.types import Axis, Edge, Graph, Group, OpCost, Part, SizeAttribute, TensorAxis, Units

Outputs: TypeAlias = bool | str | Iterable[str]
"""Whether the units that a model returns stay; or the names of the outputs whose units do."""
ROUNDS = 16
FACTORS = 6
"""An axis that wishes for more factors than this is not converging to a product."""


def flow_over(tape: Tape, *, free_inputs: bool = False) -> LabelPropagation:
    """Carry labels over the tape until no axis wishes to be split any more; the last pass is the answer."""
    specs: Specs = {}
    for round_ in range(ROUNDS):
        flow = LabelPropagation(tape, specs, LabelState(last=round_ == ROUNDS - 1))
        _start(flow, free_inputs)
        flow.run(find_operator)
        if not flow.store.splits:
            return flow
        if not _apply_splits(flow, specs) or max(map(len, specs.values()), default=0) > FACTORS:
            flow = LabelPropagation(tape, specs, LabelState(last=True))
            _start(flow, free_inputs)
            flow.run(find_operator)
            return flow
    return flow


def _start(flow: LabelPropagation, free_inputs: bool) -> None:
    for number in flow.tape.inputs:
        flow.spaces[number] = TensorLabels()
    for run in flow.tape.runs if free_inputs else ():
        for i, number in enumerate(run.inputs):
            shape = flow.tape.values[number].shape
            if len(shape) > 1 and shape[1] > 1:
                # The inputs of several examples have the same units.
                owner = (f"input{i}", 1)
                mine = flow.owned.setdefault(owner, [flow.store.unions.fresh(shape[1])])
                if len(mine[0]) == shape[1]:
                    along = move(LabelArray(mine[0], owner), 1, len(shape))
                    flow.spaces[number] = TensorLabels((along,))


def _apply_splits(flow: LabelPropagation, specs: Specs) -> bool:
    """Replace labels that wish to be products by their factors, wherever they are owned; whether any was."""
    find, count = flow.store.unions.find, flow.store.unions.count
    split_of, place_of = blank(count), blank(count)
    for number, split in enumerate(flow.store.splits):
        # Unions made after the wish may have merged some of its labels: such a product is asked for again if still due.
        roots = find(split.labels)
        if (split_of[roots] < 0).all() and len(np.unique(roots)) == len(roots):
            split_of[roots], place_of[roots] = number, np.arange(len(roots))
    changed = False
    for owner, layers in flow.owned.items():
        if owner in specs:
            new: list[Array] = []
            for ids, labels in zip(specs[owner], layers, strict=True):
                roots = np.maximum(find(labels), 0)
                numbers = np.where(labels >= 0, split_of[roots], NONE)
                is_split = (numbers >= 0).any()
                new += _split_layer(ids, numbers, place_of[roots], flow.store.splits) if is_split else [ids]
            changed = changed or len(new) != len(specs[owner])
            specs[owner] = new
    return changed


def _split_layer(ids: Array, number: Array, place: Array, splits: Sequence[AxisSplit]) -> list[Array]:
    """The layers that take the place of one: its first column also keeps what no split touches.

    Units 0 1 2 3 4 5, of which the first four become a product of 2 and 2: 0 0 1 1 2 3 and 0 1 0 1 - -.
    """
    asked = np.unique(number[number >= 0]).tolist()
    columns = max(splits[k].coordinates.shape[1] for k in asked)
    untouched = np.where(number < 0, ids, NONE)
    out = [untouched, *(blank(len(ids)) for _ in range(columns - 1))]
    base = int(ids.max()) + 1
    for k in asked:
        hit = number == k
        coordinates = splits[k].coordinates[place[hit]]
        for column, values in enumerate(coordinates.T):
            out[column][hit] = np.where(values < 0, NONE, values + base)
        base += int(coordinates.max()) + 1
    for values in out:
        alive = values >= 0
        values[alive] = np.unique(values[alive], return_inverse=True)[1]
    return out


# -- from labels to groups ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Census:
    """For every label root: its group and its number in it."""

    flow: LabelPropagation
    reasons: dict[int, str]
    group_of: Array
    unit_of: Array
    members: list[Array] = field(default_factory=list)
    firsts: list[tuple[Owner, int]] = field(default_factory=list)

    def add(self, members: Array, first: tuple[Owner, int]) -> None:
        """A new group of these labels, which were ``first`` met on that layer."""
        self.group_of[members] = len(self.members)
        self.unit_of[members] = np.arange(len(members))
        self.members.append(members)
        self.firsts.append(first)

    def groups_at(self, labels: Array) -> list[int]:
        """The numbers of the groups that these labels are of; -1 where some are of none."""
        roots = self.flow.store.unions.find(labels.reshape(-1))
        return list(np.unique(self.group_of[roots[roots >= 0]]).tolist())


def _reasons(flow: LabelPropagation, outputs: Outputs) -> tuple[Array, list[str]]:
    """For every label the number of the reason why its set must stay (0: none), and the reasons."""
    find, texts = flow.store.unions.find, ["", HIDDEN]
    number = np.zeros(flow.store.unions.count, dtype=np.int64)
    pins = [(p.labels, p.reason) for p in flow.store.pins]
    for value in _own_outputs(flow, outputs) if outputs else ():
        pins += [(z.vector, "model output") for z in _layers_of(flow, value)]
    for labels, reason in pins:
        if reason not in texts:
            texts.append(reason)
        roots = find(labels[labels >= 0])
        fresh = roots[number[roots] <= 1]
        number[fresh] = np.maximum(number[fresh], texts.index(reason))
    return number, texts


def _layers_of(flow: LabelPropagation, value: int) -> tuple[LabelArray, ...]:
    return flow.spaces.get(value, TensorLabels()).layers


def _own_outputs(flow: LabelPropagation, outputs: Outputs) -> Iterator[int]:
    """Values that the model returns (under these names, where some are given).

    Keys and values of attention are left out, which come back to the model on its next call. They have heads along one
    axis and head widths along another, and attention itself goes on with them.
    """
    heads, widths = _flag_units(flow, flow.heads), _flag_units(flow, flow.attention)
    used = {ref.id for e in flow.tape.entries if isinstance(e, Entry) for ref in e.given}
    named = (number for run in flow.tape.runs for name in _names_of(outputs) for number in run.named.get(name, ()))
    for number in flow.tape.outputs if outputs is True else dict.fromkeys(named):
        roots = [flow.store.unions.find(z.labels[z.labels >= 0]) for z in _layers_of(flow, number)]
        are_heads = [bool(heads[r].all()) for r in roots]
        are_widths = [bool(widths[r].all()) for r in roots]
        has_widths = any(is_width and not is_head for is_width, is_head in zip(are_widths, are_heads, strict=True))
        if not (number in used and any(are_heads) and has_widths):
            yield number


def _names_of(outputs: Outputs) -> list[str]:
    """The names of outputs that were asked to stay."""
    if isinstance(outputs, bool):
        return []
    return [outputs] if isinstance(outputs, str) else list(outputs)


def _require_outputs(tape: Tape, outputs: Outputs) -> None:
    known = [name for run in tape.runs for name in run.named]
    for name in _names_of(outputs):
        if name not in known:
            raise ArgumentError(
                f"outputs={show_value(outputs)}: the model returns nothing under {show_value(name)}. It returns "
                f"{', '.join(dict.fromkeys(known)) or 'one tensor without a name'}."
            )


def _take_census(flow: LabelPropagation, reason_of: Array) -> _Census:
    """Labels that lie on the same layers and stay for the same reason are one group.

    Each layer adds a random number of its own to the signatures of its labels: equal sums mean equal sets of layers.
    """
    find, rng = flow.store.unions.find, np.random.default_rng(0)
    count = flow.store.unions.count
    signature = reason_of.astype(np.uint64)
    layers: list[tuple[Owner, int, Array]] = []
    for owner in flow.owners():
        for i, labels in enumerate(flow.owned[owner]):
            roots = find(labels)
            layers.append((owner, i, roots))
            odd = rng.integers(1 << 62, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            # Labels that stand several times are added to once: what is read is written where it was read.
            mine = roots[roots >= 0]
            signature[mine] = signature[mine] + odd
    census = _Census(flow, {}, blank(count), np.zeros(count, np.int64))
    # Writers first: a group is named by the first layer that makes its units.
    layers.sort(key=lambda item: flow.roles.get(item[0], "rider") != "writer")
    for owner, i, roots in layers:
        new = roots[roots >= 0]
        new = new[census.group_of[new] < 0]
        distinct, first = np.unique(new, return_index=True)
        new = distinct[np.argsort(first, kind="stable")]
        for value in dict.fromkeys(signature[new].tolist()):
            members = new[signature[new] == np.uint64(value)]
            census.add(members, (owner, i))
    return census


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _kinds(census: _Census) -> list[str]:
    """Experts, heads and head widths in attention, blocks and widths in other products, channels otherwise."""
    flow = census.flow
    experts = _flag_units(flow, flow.chosen)
    heads, widths = _flag_units(flow, flow.heads), _flag_units(flow, flow.attention)
    kinds = []
    for members, (owner, i) in zip(census.members, census.firsts, strict=True):
        if len(flow.owned[owner]) == 1 and experts[members].all():
            kinds.append("experts")
        elif len(flow.owned[owner]) == 1 or (i == 0 and _is_plain_part(census, owner, members)):
            kinds.append("channels")
        elif heads[members].any():
            kinds.append("heads")
        elif widths[members].any():
            kinds.append("head widths")
        else:
            kinds.append("widths" if i else "blocks")
    return kinds


def _flag_units(flow: LabelPropagation, arrays: Iterable[Array]) -> np.ndarray:
    flagged = np.zeros(flow.store.unions.count, dtype=bool)
    for labels in arrays:
        flagged[flow.store.unions.find(labels[labels >= 0])] = True
    return flagged


def _is_plain_part(census: _Census, owner: Owner, members: Array) -> bool:
    """Whether these units have no second factor (a part of an axis that no product was made of)."""
    find = census.flow.store.unions.find
    first, *others = [find(labels) for labels in census.flow.owned[owner]]
    mine = np.isin(first, members)
    return not any((other[mine] >= 0).any() for other in others)


def _names(census: _Census, kinds: Sequence[str]) -> list[str]:
    names: list[str] = []
    for (owner, _), kind in zip(census.firsts, kinds, strict=True):
        base = _module_of(owner[0]) or owner[0]
        if census.flow.roles.get(owner) == "reader":
            name = f"{base}.inputs"
        else:
            name = base if kind in ("channels", "heads", "experts") else f"{base}.{kind.replace(' ', '_')}"
        number = 1
        unique = name
        while unique in names:
            number += 1
            unique = f"{name}#{number}"
        names.append(unique)
    return names


@dataclass(slots=True)
class _Builder:
    """Turns the census into the values of a :class:`Graph`."""

    census: _Census
    names: list[str]
    shown: list[bool]
    axes: dict[Any, int] = field(default_factory=dict)
    table: list[Axis] = field(default_factory=list)

    def parts(self, vectors: Iterable[Array]) -> tuple[Part, ...]:
        """The groups along an axis whose layers are ``vectors``."""
        found: list[Part] = []
        find = self.census.flow.store.unions.find
        for labels in vectors:
            roots = find(labels.reshape(-1))
            groups = np.where(roots >= 0, self.census.group_of[np.maximum(roots, 0)], NONE)
            units = np.where(roots >= 0, self.census.unit_of[np.maximum(roots, 0)], NONE)
            for number in np.unique(groups[groups >= 0]).tolist():
                if self.shown[number]:
                    found.append((self.names[number], Units(np.where(groups == number, units, NONE))))
        return tuple(found)

    def axis(self, size: int, vectors: Iterable[Array]) -> int:
        """Number of the axis with this size and these layers, a new one where there is none."""
        return self._number(size, self.parts(vectors))

    def cut_axis(self, size: int, vectors: Iterable[Array]) -> int | None:
        """Number of the axis with this size and these layers; None where no cut changes it."""
        parts = self.parts(vectors)
        return self._number(size, parts) if parts else None

    def _number(self, size: int, parts: tuple[Part, ...]) -> int:
        key = (size, parts)
        if key not in self.axes:
            self.axes[key] = len(self.table)
            self.table.append(Axis(size, parts))
        return self.axes[key]


def _changes_weights(tape: Tape, model: nn.Module) -> bool:
    names = {name for name, _ in model.named_parameters()}
    weights = {number for number, name in tape.named.items() if name in names}
    writing = (e for e in tape.entries if isinstance(e, Entry) and e.name.endswith("_"))
    first = (ref for entry in writing for ref in entry.args[:1])
    return any(isinstance(ref, Ref) and ref.id in weights for ref in first)


_QUANTISED = frozenset([torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4])


def _check_values(tape: Tape) -> None:
    """Raise :class:`TraceError` where the model computes with quantised tensors, as a converted one does."""
    if any(value.dtype in _QUANTISED for value in tape.values):
        raise TraceError(
            "the model is quantised: it computes with packed whole numbers, whose scales were found for the units it "
            "has. Prune the model that it was made from first, then quantise the result."
        )


def draw(
    model: nn.Module,
    example: Any,
    *,
    outputs: Outputs = True,
    inputs: bool = False,
    inside_heads: bool = False,
    auxiliary: bool = True,
) -> "TraceResult":
    """Run ``model`` once on ``example`` and draw its graph, without trying anything.

    Args:
        model: any module.
        example: see :func:`nervure.trace`.
        outputs: pin units that are the model's outputs; or names of those that are to stay.
        inputs: let the channels of the inputs (axis 1) be units.
        inside_heads: let the width inside attention heads be cut (evenly in all heads).
        auxiliary: read what runs in training mode only as well.
    """
    tape, answers = record(model, example, auxiliary=auxiliary)
    _check_values(tape)
    if _changes_weights(tape, model):
        # A model that prepares its weights on its first run is as it will be from the second on.
        tape, answers = record(model, example, auxiliary=auxiliary, warm=True)
    _require_outputs(tape, outputs)
    flow = flow_over(tape, free_inputs=inputs)
    chosen = outputs if isinstance(outputs, bool) else _names_of(outputs)
    settings: dict[str, Any] = {"outputs": chosen, "inputs": inputs, "inside_heads": inside_heads}
    drawing = _drawing(model, flow, settings)
    drawing.outputs = answers
    drawing.graph = _with_declared(model, drawing, partial(loses, model, example, tape, answers, auxiliary=auxiliary))
    return drawing


def _with_declared(model: nn.Module, drawing: "TraceResult", lost: Callable[[frozenset[Expression]], bool]) -> Graph:
    """The graph with what is known of integers that are not seen to be read; those of ``lost`` origin are noted."""
    graph, tape, sizes = drawing.graph, drawing.flow.tape, drawing.free_sizes()
    kept = [(d, full_name(d.module, d.attribute)) for d in graph.declared]
    said = frozenset(Expression(d.size, attribute=Attribute(d.module, d.attribute)) for d, _ in kept)
    notes = []
    if lost(sizes | said):
        unseen = lost(said)
        tape.lost += sizes if not unseen or lost(sizes) else ()
        if unseen:
            names = families([name for _, name in kept])
            notes.append(f"{names}: may be read while the model runs, though it is not seen; stay as they are")
            graph = replace(graph, declared=())
    if graph.declared:
        names = families([name for _, name in kept])
        notes.append(f"{names}: these say sizes, and follow a cut that is alike in all layers")
    if others := find_unexplained(model, graph, tape.read):
        notes.append(f"{families(others)}: as large as units that a cut can take, and not read by the forward pass")
    graph = replace(graph, notes=(*graph.notes, *notes))
    multiples = in_multiples(model, graph)

    def with_multiple(group: Group) -> Group:
        return replace(group, multiple=lcm(group.multiple, multiples.get(group.name, 1)))

    return replace(graph, groups=tuple(map(with_multiple, graph.groups)))


@dataclass(slots=True)
class TraceResult:
    """A graph with the flow it was made from; ``names`` are the groups by number, shown in the graph or not.

    ``outputs`` are the tensors that the model returned on each example.
    """

    flow: LabelPropagation
    graph: Graph
    names: list[str]
    group_of: Array
    unit_of: Array
    builder: "_Builder"
    outputs: list[list[Tensor]] = field(default_factory=list)
    _idle: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def idle(self, run: int) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the model's tensors that a run did not come to."""
        if run not in self._idle:
            tape = self.flow.tape
            self._idle[run] = tape.idle(tape.entries_of(run))
        return self._idle[run]

    def survives(self, labels: Array, keeps: Mapping[str, np.ndarray]) -> np.ndarray:
        """Boolean per label: False where its unit leaves when groups keep these units."""
        roots = self.flow.store.unions.find(labels)
        alive = np.ones(labels.shape, dtype=bool)
        known = np.maximum(roots, 0)
        groups, units = self.group_of[known], self.unit_of[known]
        for number in np.unique(groups[roots >= 0]).tolist():
            keep = keeps.get(self.names[number]) if number >= 0 else None
            if keep is not None:
                mine = (groups == number) & (roots >= 0)
                alive[mine] = keep[units[mine]]
        return alive

    def suspects(self) -> dict[str, str]:
        """Groups that are not pinned but must be tried before they are offered, with the reason."""
        found: dict[str, str] = {}
        free = {g.name for g in self.graph.groups if not g.is_pinned}
        for labels, reason in self._doubts(free):
            for number in self.builder.census.groups_at(labels):
                if number >= 0 and self.names[number] in free:
                    found.setdefault(self.names[number], reason)
        return found

    def free_sizes(self) -> frozenset[Expression]:
        """The attributes and axes that a cut changes, of those that the code may have read."""
        flow, free = self.flow, {g.name for g in self.graph.groups if not g.is_pinned}
        change = np.array([name in free for name in self.names] + [False])
        solver = Solver(flow, self._random_cuts(free))
        read = [Expression(r.size, attribute=Attribute(r.module, r.attribute)) for r in self.graph.resizes]
        for number in flow.tape.measured:
            read += [Expression(n, dimension=(number, i)) for i, n in enumerate(flow.tape.values[number].shape)]

        def changes(leaf: Expression) -> bool:
            roots = [flow.store.unions.find(labels.reshape(-1)) for labels in solver.labels_of_leaf(leaf)]
            return any(change[self.group_of[r[r >= 0]]].any() for r in roots)

        return frozenset(filter(changes, read))

    def _doubts(self, free: set[str]) -> Iterator[tuple[Array, str]]:
        """Labels that must be tried: sizes that cannot be seen to follow, or that are used as more than sizes."""
        store, solver = self.flow.store, Solver(self.flow, self._random_cuts(free))
        for claim in store.claims:
            if not solver.holds(claim):
                yield from ((labels, claim.what) for labels in solver.labels_of(claim))
        for pair in dict.fromkeys(self.flow.tape.alike):
            if not solver.are_alike(*pair):
                leaves = [*pair[0].leaves(), *pair[1].leaves()]
                why = f"{pair[0]} and {pair[1]} are compared"
                yield from ((labels, why) for leaf in leaves for labels in solver.labels_of_leaf(leaf))
        for leaf in self.flow.numbers(SIZED_CALLS):
            why = f"{leaf} is used as a number"
            yield from ((labels, why) for labels in solver.labels_of_leaf(leaf))
        for leaf in self.flow.tape.lost:
            why = f"{leaf} may be used as a number out of sight"
            yield from ((labels, why) for labels in solver.labels_of_leaf(leaf))
        yield from ((pin.labels, pin.reason) for pin in store.suspects)

    def _random_cuts(self, free: set[str]) -> Callable[[Array], np.ndarray]:
        """Cuts of all free groups at once."""
        rng, find = np.random.default_rng(0), self.flow.store.unions.find
        number = np.array([i if name in free else NONE for i, name in enumerate(self.names)], dtype=np.int64)
        # The first unit of each group stays, so that no size is zero.
        may_leave = np.flatnonzero((self.group_of >= 0) & (self.unit_of > 0))
        may_leave = may_leave[number[self.group_of[may_leave]] >= 0]
        table = np.ones((TRIES, len(self.group_of)), dtype=bool)
        table[:, may_leave] = rng.random((TRIES, len(may_leave))) < rng.uniform(0.3, 0.9, (TRIES, 1))

        def alive(labels: Array) -> np.ndarray:
            roots = find(labels.reshape(-1))
            return table[:, roots] | (roots < 0)

        return alive


def _drawing(model: nn.Module, flow: LabelPropagation, settings: Mapping[str, Any]) -> TraceResult:
    outputs, inside_heads = settings["outputs"], settings["inside_heads"]
    reason_of, texts = _reasons(flow, outputs)
    census = _take_census(flow, reason_of)
    kinds = _kinds(census)
    names = _names(census, kinds)
    pins = [texts[int(reason_of[members[0]])] for members in census.members]
    roles = _group_roles(census)
    shown = [_is_shown(pin, kinds[i], len(census.members[i]), roles[i]) for i, pin in enumerate(pins)]
    builder = _Builder(census, names, shown)
    tensors = _tensor_axes(model, flow, builder)
    slots = _slots(flow, builder)
    notes = _group_notes(flow, builder)
    works, resizes = tuple(_works(flow, builder)), tuple(_resizes(flow, builder))
    memory, element_bytes = lifetimes_of(flow, builder.cut_axis, tensors)
    groups = []
    for i, members in enumerate(census.members):
        if not shown[i]:
            continue
        pin = pins[i]
        if not pin and "writer" not in roles[i] and not settings["inputs"]:
            pin = "no layer of the model makes these units"
        if not pin and kinds[i] == "head widths" and not inside_heads:
            pin = "width inside attention heads (trace with inside_heads=True to cut it)"
        name = names[i]
        own, said = tuple(slots.get(name, ())), tuple(notes.get(name, ()))
        groups.append(Group(name, len(members), kinds[i], own, pin, said))
    groups = _align_groups(groups, flow, builder)
    graph = Graph(
        groups=tuple(groups),
        edges=_edges(groups),
        axes=tuple(builder.table),
        tensors=tensors,
        parameters=tuple(name for name, _ in model.named_parameters()),
        work=works,
        resizes=resizes,
        notes=tuple(flow.told.values()),
        settings=settings,
        products=products_of(model, flow.tape, flow.roles),
        memory=memory,
        element_bytes=element_bytes,
    )
    graph = replace(graph, notes=(*graph.notes, *told_of_masks(model, graph.products)))
    graph = replace(graph, declared=find_declared(model, graph, flow.tape.read))
    return TraceResult(flow, graph, names, census.group_of, census.unit_of, builder)


def _is_shown(pin: str, kind: str, size: int, roles: set[str]) -> bool:
    """Axes of one unit, parts told apart by place, and axes that nothing multiplies with are not worth a line."""
    if size == 1 or pin == HIDDEN or roles <= {"rider"}:
        return False
    return not pin or kind != "blocks"


def _group_roles(census: _Census) -> list[set[str]]:
    roles: list[set[str]] = [set() for _ in census.members]
    for owner, layers in census.flow.owned.items():
        role = census.flow.roles.get(owner, "rider")
        for labels in layers:
            for number in census.groups_at(labels):
                roles[number].add(role)
    return roles


def _tensor_axes(model: nn.Module, flow: LabelPropagation, builder: _Builder) -> dict[str, tuple[int, ...]]:
    tensors = {}
    kept = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    for name, tensor in named_tensors(model).items():
        layers = [flow.owned.get((name, axis), []) for axis in range(tensor.ndim)]
        axes = tuple(builder.axis(n, own) for n, own in zip(tensor.shape, layers, strict=True))
        # Of plain attributes (grids, anchors, what training left) only those with units are part of the graph.
        if name in kept or any(builder.table[axis].parts for axis in axes):
            tensors[name] = axes
    return tensors


def _slots(flow: LabelPropagation, builder: _Builder) -> dict[str, list[TensorAxis]]:
    slots: dict[str, list[TensorAxis]] = {}
    for owner in flow.owners():
        role: Any = flow.roles.get(owner, "rider")
        for group, units in builder.parts(flow.owned[owner]):
            slots.setdefault(group, []).append(TensorAxis(owner[0], owner[1], role, units))
    return slots


def _group_notes(flow: LabelPropagation, builder: _Builder) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for vectors, text in flow.notes:
        for group, _ in builder.parts(vectors):
            if text not in notes.setdefault(group, []):
                notes[group].append(text)
    return notes


def _align_groups(groups: Sequence[Group], flow: LabelPropagation, builder: _Builder) -> list[Group]:
    """The groups with the multiples that axes ask for: a unit that has several places along one needs fewer of it."""
    free, multiples = {g.name for g in groups if not g.is_pinned}, dict[str, int]()
    for vectors, multiple in flow.multiples:
        parts = [(name, units.array) for name, units in builder.parts(vectors) if name in free]
        for name, units in parts:
            # Of a product of two groups each must do alone, whatever the other loses.
            shared = any(((units >= 0) & (other >= 0)).any() for n, other in parts if n != name)
            places = 1 if shared else int(np.gcd.reduce(np.bincount(units[units >= 0])))
            multiples[name] = lcm(multiples.get(name, 1), multiple // gcd(multiple, places))
    return [_in_multiples(g, multiples[g.name]) if g.name in multiples else g for g in groups]


def _in_multiples(group: Group, multiple: int) -> Group:
    few = f"a kernel takes these units in multiples of {multiple} only" if group.size <= multiple else ""
    return replace(group, multiple=multiple, pinned=group.pinned or few)


def _edges(groups: Sequence[Group]) -> tuple[Edge, ...]:
    writes: dict[str, list[str]] = {}
    for group in groups:
        for slot in group.writers:
            writes.setdefault(slot.tensor, []).append(group.name)
    found = {
        (group.name, target, slot.tensor): None
        for group in groups
        for slot in group.readers
        for target in writes.get(slot.tensor, ())
        if target != group.name
    }
    return tuple(Edge(*key) for key in found)


def _works(flow: LabelPropagation, builder: _Builder) -> list[OpCost]:
    works = []
    for record_ in flow.works:
        fixed, axes = record_.fixed, []
        for size, vectors in record_.axes:
            number = builder.axis(size, vectors)
            if builder.table[number].parts:
                axes.append(number)
            else:
                fixed *= size
        works.append(OpCost(record_.module, record_.op, fixed, tuple(axes)))
    return works


def _resizes(flow: LabelPropagation, builder: _Builder) -> list[SizeAttribute]:
    found: dict[Any, SizeAttribute] = {}
    for wish, vectors in flow.store.sizes:
        axis = builder.axis(len(vectors[0]), vectors)
        if builder.table[axis].parts:
            resize = SizeAttribute(wish.attribute.module, wish.attribute.path, wish.value, axis)
            found[resize] = resize
    for limit, vectors in flow.limits:
        axis = builder.axis(len(vectors[0]), vectors)
        if builder.table[axis].parts and limit.attribute is not None:
            resize = SizeAttribute(limit.attribute.module, limit.attribute.path, limit.value, axis, is_limit=True)
            found[resize] = resize
    return list(found)


# -- the user's say ----------------------------------------------------------------------------------------------


Choice = str | nn.Module
Choices = Choice | Iterable[Choice]


def chosen_patterns(model: nn.Module, ignore: Choices, only: Choices | None) -> tuple[list[str], list[str] | None]:
    """The patterns of names that ``ignore`` and ``only`` stand for; raises ArgumentError where one fits nothing."""
    return _patterns(model, ignore, "ignore"), None if only is None else _patterns(model, only, "only")


def left_alone(model: nn.Module, ignore: Choices = (), only: Choices | None = None) -> frozenset[str]:
    """The tensors that belong to ``ignore``, or to nothing in ``only``; raises ArgumentError as tracing does."""
    ignored, wanted = chosen_patterns(model, ignore, only)
    tensors = named_tensors(model)
    unwanted = [] if wanted is None else [name for name in tensors if not matches_any(name, wanted)]
    return frozenset([*unwanted, *(name for name in tensors if matches_any(name, ignored))])


def pinned_by_choice(graph: Graph, ignored: list[str], wanted: list[str] | None) -> Graph:
    """Pin every group that touches a module in ``ignored``, or that a module makes units of which ``wanted`` lacks."""
    groups = []
    for group in graph.groups:
        reason = group.pinned
        is_named = any(_fits(group.name, p) for p in ignored)
        if is_named or any(matches_any(s.tensor, ignored) for s in group.slots):
            reason = reason or "ignored by the user"
        elif wanted is not None:
            reason = reason or _not_wanted(group, wanted)
        groups.append(replace(group, pinned=reason))
    return replace(graph, groups=tuple(groups))


def _not_wanted(group: Group, wanted: list[str]) -> str:
    """Why the user's choice keeps a group: a module that would lose units with it, where that was not chosen."""
    outside = [s.tensor for s in group.writers if not matches_any(s.tensor, wanted)]
    if group.writers and not outside:
        return ""
    reason = "not among what the user chose (only)"
    if len(outside) == len(group.writers):
        return reason
    return f"{reason}: {_module_of(outside[0]) or outside[0]} would lose units too"


def kept_by_choice(graph: Graph, ignored: list[str], wanted: list[str] | None) -> Graph:
    """Pin every block with a tensor in ``ignored``, or with one that ``wanted`` does not name."""
    blocks = []
    for block in graph.blocks:
        below = tuple(f"{module}." for module in block.modules)
        tensors, reason = [t for t in graph.tensors if t.startswith(below)], block.pinned
        if any(matches_any(t, ignored) for t in tensors):
            reason = reason or "ignored by the user"
        elif wanted is not None and not all(matches_any(t, wanted) for t in tensors):
            reason = reason or "not among what the user chose (only)"
        blocks.append(replace(block, pinned=reason))
    return replace(graph, blocks=tuple(blocks))


def _patterns(model: nn.Module, choices: Choices, name: str) -> list[str]:
    if isinstance(choices, str | nn.Module):
        choices = [choices]
    names = {id(module): key for key, module in model.named_modules()}
    tensors = names_of_tensors(model)
    patterns = []
    for choice in choices:
        if isinstance(choice, nn.Module) and id(choice) not in names:
            raise ArgumentError(f"{name} has a {type(choice).__name__} that is not a module of the model.")
        pattern = choice if isinstance(choice, str) else names[id(choice)]
        fitting = [first for first, names in tensors.items() if any(matches(name, pattern) for name in names)]
        if not fitting:
            raise ArgumentError(
                f"{name}={show_value(pattern)} matches no module of the model. Use names as in model.named_modules()."
            )
        # A tensor that several modules share is known by its first name only.
        patterns += [pattern, *(glob.escape(first) for first in fitting if not matches(first, pattern))]
    return patterns


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def matches(tensor: str, pattern: str) -> bool:
    """Whether a pattern names this tensor, or a module that it is part of."""
    parts = tensor.split(".")
    return any(_fits(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def matches_any(tensor: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns names this tensor, or a module that it is part of."""
    return any(matches(tensor, pattern) for pattern in patterns)


_QUANTISERS = frozenset(["torchao", "bitsandbytes", "gptqmodel", "auto_gptq", "awq", "hqq", "optimum", "quark"])
"""Packages whose layers and tensors hold weights as packed whole numbers."""


def _is_quantised(module: nn.Module) -> bool:
    """Whether weights of a module are packed as whole numbers (fake quantisation, for training, packs nothing)."""
    held: list[Any] = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
    packages = {type(value).__module__.partition(".")[0] for value in (module, *held)}
    scripted = any(isinstance(value, torch.ScriptObject) for value in held)
    packed = any(isinstance(value, torch.Tensor) and value.is_quantized for value in held)
    return bool(packages & _QUANTISERS) or scripted or packed


def _check_cuttable(name: str, module: nn.Module) -> None:
    if _is_quantised(module):
        raise TraceError(
            f"{name or 'the model'} ({type(module).__name__}) is quantised: its weights are packed as whole numbers, "
            "which cannot be cut. Prune the model that it was made from first, then quantise the result."
        )
    if type(module).__name__ == "FullyShardedDataParallel" or any(
        type(p).__name__ == "DTensor" for p in module._parameters.values()
    ):
        raise TraceError(
            f"{name or 'the model'} ({type(module).__name__}) is sharded: every process holds a part of its weights. "
            "Prune the whole model first, then shard the result."
        )


def check_modules(model: nn.Module) -> None:
    """Raise :class:`TraceError` where a module is TorchScript, quantised or sharded, or has no weights yet."""
    for name, module in model.named_modules():
        _check_cuttable(name, module)
    require_seen(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise TraceError(f"{name} has no shape yet (a lazy module). Run the model once on an example first.")


def check_weights(model: nn.Module) -> None:
    """Raise :class:`TraceError` where a parameter or buffer is NaN, or infinite (which a mask may be)."""
    learnt = {name for name, _ in model.named_parameters()}
    for name, tensor in named_tensors(model).items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        # A sum is finite only where every entry is (or where a finite sum overflows, which the second look settles).
        if bool(torch.isfinite(tensor.sum())):
            continue
        is_sound = torch.isfinite(tensor) if name in learnt else ~torch.isnan(tensor)
        if not bool(is_sound.all()):
            raise TraceError(
                f"{name} has NaN or infinite values; a network with broken weights cannot be measured or cut."
            )
