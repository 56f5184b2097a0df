"""One pass of labels over a tape. The table in ``ops/`` says what each operator does to them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from nervure.graph.labels import Array, LabelArray, LabelState, Owner, TensorLabels, blank, compress, shape_along
from nervure.graph.sizes import Expression
from nervure.graph.tape import Call, Entry, Ref, Tape, WriteBack

if TYPE_CHECKING:
    from nervure.graph.ops.facets import Operator

HIDDEN = "not an axis of units"
LARGEST = 20_000_000
"""Labels are laid out in full for tensors of up to this many elements."""
Specs: TypeAlias = dict[Owner, list[Array]]
Vectors: TypeAlias = tuple[Array, ...]


class WorkRecord(NamedTuple):
    """Multiply-accumulates: a fixed factor times axes (size, layers as vectors)."""

    module: str
    op: str
    fixed: int
    axes: tuple[tuple[int, Vectors], ...]


class Read(NamedTuple):
    """Entry ``entry`` reads argument ``argument`` along ``axis``: only surviving positions may count there."""

    entry: int
    argument: int
    axis: int
    vectors: Vectors
    kind: str


@dataclass(slots=True)
class LabelPropagation:
    """State of a pass: the labels of every value so far, and everything noted on the way."""

    tape: Tape
    specs: Specs
    store: LabelState
    spaces: dict[int, TensorLabels] = field(default_factory=dict)
    owned: dict[Owner, list[Array]] = field(default_factory=dict)
    roles: dict[Owner, str] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    works: list[WorkRecord] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    notes: list[tuple[Vectors, str]] = field(default_factory=list)
    multiples: list[tuple[Vectors, int]] = field(default_factory=list)
    """Axes, each by its layers, whose size has to be a multiple of a number."""
    buffers: dict[tuple[int, int], tuple[Any, int, Vectors, str]] = field(default_factory=dict)
    """For buffers that are filled part by part the size they were made with along an axis, its number, what lies along
    it so far, and where that was written."""
    origins: dict[int, int] = field(default_factory=dict)
    attention: list[Array] = field(default_factory=list)
    heads: list[Array] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)
    """For operators without a rule, by name: what was done with them."""
    places: dict[int, Vectors] = field(default_factory=dict)
    """For values that say where along an axis of units something is: the labels of that axis."""
    picked: set[int] = field(default_factory=set)
    """Such values that the running operator only picks from the same units with."""
    choices: list[tuple[Vectors, str]] = field(default_factory=list)
    """Axes along which the k largest are chosen, each by its layers, and why its units stay if nothing is picked so."""
    chosen: list[Array] = field(default_factory=list)
    """Labels of what is picked by such a choice: experts."""
    limits: list[tuple[Expression, Vectors]] = field(default_factory=list)
    """Attributes that say how many are chosen along an axis: no more than there are."""
    ranked: dict[int, frozenset[int]] = field(default_factory=dict)
    """For values that are made of what such attributes let choose: the numbers of these limits."""
    varying: set[int] = field(default_factory=set)
    """Values that depend on what the model is given."""
    constants: set[int] = field(default_factory=set)
    """Values made from sizes and numbers alone."""
    index: int = 0
    row: "Operator" = field(init=False)
    """What is known of the running operator."""

    # -- what the rules ask -------------------------------------------------------------------------------------

    def space(self, ref: Ref) -> TensorLabels:
        """Labels of a value; parameters and buffers own one layer per axis from the moment they are first used."""
        if ref.id not in self.spaces:
            name = self.tape.named.get(ref.id)
            self.spaces[ref.id] = TensorLabels() if name is None else self._own(name, ref)
        return self.spaces[ref.id]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a value."""
        return self.tape.values[ref.id].shape

    def owners(self) -> list[Owner]:
        """The axes of parameters and buffers that have units, in running order."""
        return sorted(self.owned, key=lambda owner: (self.order.get(owner[0], -1), owner))

    def rank(self, ref: Ref) -> int:
        """How many axes a value has."""
        return len(self.shape(ref))

    def rectangular(self, ref: Ref, why: str = "") -> tuple[LabelArray, ...]:
        """Layers of a value along one axis each; layers over several axes are asked to split, and left out."""
        return self.store.rectangular(self.space(ref).layers, why or self.at())

    def layers(self, ref: Ref, axis: int, why: str = "") -> list[LabelArray]:
        """Those along one axis of a value, as vectors."""
        axis = axis % max(1, len(self.shape(ref)))
        return [x.to(x.vector) for x in self.rectangular(ref, why) if x.support == (axis,)]

    @property
    def entry(self) -> Entry:
        """The running operator's call."""
        entry = self.tape.entries[self.index]
        assert isinstance(entry, Entry)
        return entry

    def at(self) -> str:
        """Where the pass is, for reasons."""
        return self.store.where

    def operand(self, ref: Ref) -> tuple[TensorLabels, tuple[int, ...]]:
        """A value for :meth:`join`."""
        return self.space(ref), self.shape(ref)

    def vector(self, ref: Ref, axis: int, shape: Sequence[int]) -> tuple[TensorLabels, tuple[int, ...]]:
        """A vector for :meth:`join`, along one axis of a tensor of that shape."""
        layers = tuple(move(z, axis, len(shape)) for z in self.layers(ref, 0))
        sizes = tuple(n if a == axis else 1 for a, n in enumerate(shape))
        return TensorLabels(layers, free=self.space(ref).free), sizes

    def join(self, operands: Sequence[tuple[TensorLabels, tuple[int, ...]]], shape: tuple[int, ...]) -> TensorLabels:
        """The labels of a pointwise operation on tensors that broadcast to ``shape``."""
        return self.store.join(operands, shape, self.at())

    def note_statistic(self, layers: Sequence[LabelArray], what: str) -> None:
        """Note that the running operator takes a statistic over units: after a cut it is another."""
        if layers:
            text = f"{what} at {self.at()} is taken over the survivors"
            self.notes.append((tuple(z.labels for z in layers), text))

    def pin(self, layers: Iterable[LabelArray], why: str) -> None:
        """Let the units of layers stay, because of what the running operator does."""
        self.store.pin([z.labels for z in layers], f"{why} at {self.at()}")

    def pin_all(self, refs: Iterable[Ref], why: str) -> None:
        """Let all units of values stay."""
        self.pin([z for ref in refs for z in self.space(ref).layers], why)

    def suspect(self, layers: Iterable[LabelArray], why: str) -> None:
        """Have the units of layers tried before they are offered."""
        self.store.suspect([z.labels for z in layers], f"{why} at {self.at()}")

    def role(self, layers: Sequence[LabelArray], role: str) -> None:
        """Note that the parameter axes these layers came from write or read units (writing wins)."""
        for layer in layers:
            if layer.owner is not None and self.roles.get(layer.owner) != "writer":
                self.roles[layer.owner] = role

    def work(self, fixed: int, *axes: tuple[int, Sequence[LabelArray]]) -> None:
        """Note multiply-accumulates: ``fixed`` times the sizes of ``axes``."""
        assert self.row.macs
        if self.index not in self.tape.entries_of(0):
            return
        vectors = tuple((n, tuple(x.labels for x in layers)) for n, layers in axes)
        self.works.append(WorkRecord(self.entry.module, self.entry.name, fixed, vectors))

    def read(self, argument: int, axis: int, layers: Sequence[LabelArray], kind: str = "") -> None:
        """Note that the running operator reads along an axis.

        ``kind`` is what its row in the table says, if it is not given; for a norm over n equal blocks ``"blocks:n"``.
        """
        if layers:
            kind = kind or self.row.reads
            self.reads.append(Read(self.index, argument, axis, tuple(x.labels for x in layers), kind))

    def picks(self, ids: Ref, layers: Sequence[LabelArray]) -> bool:
        """Whether ``ids`` are places along an axis of units; picked from these, both axes are cut alike."""
        found = self.places.get(ids.id, ())
        if not found or not layers or found[0].shape != layers[0].labels.shape:
            return False
        self.picked.add(ids.id)
        if any(found is vectors for vectors, _ in self.choices) or any(z.owner is not None for z in layers):
            self.choose(found)
        self.store.match([LabelArray(labels) for labels in found], layers, self.at())
        return True

    def join_places(self, refs: Sequence[Ref], out: Ref) -> None:
        """Places beside places of the same axis are places: the first and the second choice, one after the other."""
        found = [self.places.get(ref.id, ()) for ref in refs]
        roots = [[self.store.unions.find(labels).tolist() for labels in vectors] for vectors in found]
        if refs and all(found) and all(one == roots[0] for one in roots):
            self.picked.update(ref.id for ref in refs)
            self.places[out.id] = found[0]

    def choose(self, vectors: Iterable[Array]) -> None:
        """Note that units along an axis are what a choice picks."""
        vectors = list(vectors)
        self.chosen += vectors
        self.store.suspect(vectors, f"chosen by a gate at {self.at()}")

    def meet_by_rank(self, entry: Entry) -> None:
        """Where the chosen, best first, meet numbers of the model, one for each, no fewer can be chosen.

        Of one that is left all these numbers would be taken: it is spread over them.
        """
        fixed = [ref for ref in entry.given if ref.id not in self.varying]
        for ref in entry.given if fixed else ():
            for limit, vectors in [self.limits[number] for number in self.ranked.get(ref.id, ())]:
                if any(self._lie_by_rank(ref, other, limit.value) for other in fixed):
                    self.multiples.append((vectors, limit.value))

    def _lie_by_rank(self, chosen: Ref, fixed: Ref, count: int) -> bool:
        """Whether both have so many places along an axis without units."""
        axes = range(-min(self.rank(chosen), self.rank(fixed)), 0)
        both = [a for a in axes if self.shape(chosen)[a] == self.shape(fixed)[a] == count > 1]
        return any(not self.layers(chosen, a) for a in both)

    # -- the pass -----------------------------------------------------------------------------------------------

    def _own(self, name: str, ref: Ref) -> TensorLabels:
        shape, layers = self.shape(ref), []
        self.order.setdefault(name, self.index)
        for axis, n in enumerate(shape):
            # What a sparse tensor connects (the nodes of a graph) are no units.
            if n < 2 or self.tape.values[ref.id].stored is not None:
                continue
            owner = (name, axis)
            local = self.specs.setdefault(owner, [np.arange(n, dtype=np.int64)])
            self.owned[owner] = [self._name_units(ids) for ids in local]
            layers += [move(LabelArray(labels, owner), axis, len(shape)) for labels in self.owned[owner]]
        return TensorLabels(tuple(layers))

    def _name_units(self, ids: Array) -> Array:
        """Fresh labels for units that are numbered along an axis, -1 for none: - 0 0 1 may become - 7 7 8."""
        labels, there = blank(len(ids)), ids >= 0
        fresh = self.store.unions.fresh(int(ids.max()) + 1)
        labels[there] = fresh[ids[there]]
        return labels

    def run(self, find: Callable[[Tape, Entry], "Operator"]) -> None:
        """Carry labels over the whole tape, by what ``find`` knows of its operators."""
        self.varying.update(self.tape.inputs)
        for index, entry in enumerate(self.tape.entries):
            self.index = index
            if isinstance(entry, WriteBack):
                self._follow_choices((entry.base, entry.value), (entry.out,))
                self._pin_places({entry.base.id, entry.value.id} & set(self.places), f"a write in {entry.module}")
                self.spaces[entry.out.id] = self._written_back(entry)
                self._fill(entry)
                continue
            self.store.where = f"{entry.name} in {entry.module or 'the model'}"
            self.row = find(self.tape, entry)
            for ref, space in zip(entry.outs, self.row.labels(self, entry), strict=False):
                self.spaces[ref.id] = space
            self._follow_places(entry)
            self._follow_choices(entry.given, entry.outs)
            if self.constants.issuperset(r.id for r in entry.given):
                self.constants.update(ref.id for ref in entry.outs)
        self._pin_places([number for number in self.tape.outputs if number in self.places], "the model's output")
        for wish, size, vectors, where in self.buffers.values():
            self.store.where = where
            self.store.size(wish, size, vectors, "a buffer")
        self._pin_ranks()
        self._keep_alike()
        self._couple_sizes()
        for number, name in self.tape.escapes:
            labels = [z.labels for z in self.spaces.get(number, TensorLabels()).layers]
            self.store.pin([*labels, *self.places.get(number, ())], f"its values leave PyTorch by {name}()")

    def _pin_ranks(self) -> None:
        """Where the largest of an axis are taken, but nothing is picked with their places, ranks are all they have."""
        find = self.store.unions.find
        chosen = {root for labels in self.chosen for root in find(labels[labels >= 0]).tolist()}
        for vectors, why in self.choices:
            if not all(chosen.issuperset(find(labels[labels >= 0]).tolist()) for labels in vectors):
                self.store.pin(vectors, why)

    def _follow_choices(self, given: Iterable[Ref], outs: Iterable[Ref]) -> None:
        """What is made of values that vary varies, what is made of the chosen is by their number."""
        numbers = [ref.id for ref in given]
        limits = frozenset[int]().union(*(self.ranked.get(number, ()) for number in numbers))
        for ref in outs:
            if limits:
                self.ranked[ref.id] = self.ranked.get(ref.id, frozenset()) | limits
            if not self.varying.isdisjoint(numbers):
                self.varying.add(ref.id)

    def _follow_places(self, entry: Entry) -> None:
        """Places that are moved stay places; what else is done with them makes numbers, which a cut would change."""
        given = [ref.id for ref in entry.given if ref.id in self.places and ref.id not in self.picked]
        self.picked.clear()
        if given and self.row.moves == "first" and entry.args[0].id == given[0]:
            self.places.update((out.id, self.places[given[0]]) for out in entry.outs)
            given.pop(0)
        # One-hot vectors are made of places that were looked at first, only to refuse those out of range.
        if not (entry.call and entry.call.name == "one_hot" and entry.name in ("aminmax", "_local_scalar_dense")):
            self._pin_places(given, self.at())

    def _pin_places(self, numbers: Iterable[int], where: str) -> None:
        for number in numbers:
            self.store.pin(self.places[number], f"their places are used as numbers at {where}")

    def _fill(self, entry: WriteBack) -> None:
        origin = self.origins.setdefault(entry.out.id, self.origins.get(entry.base.id, entry.base.id))
        for axis, wish in self.spaces.get(origin, TensorLabels()).wishes:
            layers = [z for z in self.spaces[entry.out.id].layers if z.support == (axis,)]
            if layers:
                vectors = tuple(z.labels.reshape(-1) for z in layers)
                where = f"written in {entry.module or 'the model'}"
                self.buffers[origin, axis] = (wish, self.shape(entry.out)[axis], vectors, where)

    def numbers(self, sized: Collection[str]) -> list[Expression]:
        """Attributes and axes whose size is used for more than sizes: as a number, or in calls not ``sized``."""
        found = dict.fromkeys(self.tape.numbers)
        calls = [e.call for e in self.tape.entries if isinstance(e, Entry) and e.call and e.call.tagged]
        for call in {id(c): c for c in calls}.values():
            used = _contents(call) if call.name in sized else (call.args, *call.kwargs.values())
            found |= dict.fromkeys(leaf for size in sizes_in(used) for leaf in size.leaves())
        return list(found)

    def _keep_alike(self) -> None:
        """Sizes that the code compared and found equal have to stay so."""
        self.store.where = "a comparison in the code"
        for one, other in dict.fromkeys(self.tape.alike):
            mine, theirs = self._layers_of(one), self._layers_of(other)
            if mine and theirs:
                self.store.match(mine, theirs, self.at())
            elif mine or theirs:
                wish = other if mine else one
                self.store.size(wish, wish.value, [z.labels for z in mine or theirs], "a comparison")

    def _layers_of(self, size: Expression) -> list[LabelArray]:
        """The layers along the axis that a size was read from; none where it was not."""
        if size.dimension is None:
            return []
        number, axis = size.dimension
        return self.layers(Ref(number), axis)

    def _couple_sizes(self) -> None:
        """One attribute that gives the size of two axes can follow only one number: their units are cut alike."""
        first: dict[Any, Array] = {}
        for wish, vectors in self.store.sizes:
            if len(vectors) != 1:
                continue
            known = first.setdefault(wish.attribute, vectors[0])
            if known.shape == vectors[0].shape:
                self.store.unite(known, vectors[0], f"{wish.attribute.path} of {wish.attribute.module or 'the model'}")

    def _written_back(self, entry: WriteBack) -> TensorLabels:
        base, value = self.space(entry.base), self.space(entry.value)
        shape = self.shape(entry.base)
        size = prod(shape)
        if not value.layers and not base.layers:
            return TensorLabels(free=base.free and value.free)
        if size > LARGEST:
            labels = [x.labels for x in (*base.layers, *value.layers)]
            self.store.pin(labels, f"a large write into a view in {entry.module}")
            return TensorLabels()
        places = self._places(entry, shape, size)
        whole = [z for z in value.layers if _spans(places, shape, z)]
        parts = [z for z in value.layers if not any(z is w for w in whole)]
        beside = [z for z in base.layers if any(z.support == p.support for p in parts)]
        is_plain = len(beside) <= 1 and len(parts) <= 1 and all(_covers_other_axes(places, shape, z) for z in parts)
        if (is_plain or (whole and not beside)) and all(len(z.support) == 1 for z in base.layers):
            # What is written spans its units' axes: they are the base's units along these axes.
            target = TensorLabels(self._fill_parts(base, parts, places, shape), free=base.free or not base.layers)
            written = TensorLabels(tuple(LabelArray(z.labels) for z in whole))
            ones = tuple(n if written.along(a) else 1 for a, n in enumerate(shape))
            return replace(self.join([(target, shape), (written, ones)], shape), free=base.free)
        if self._are_units_of(base, shape, value, places):
            return base
        return TensorLabels(tuple(z for z in _write_labels(base, value, places, shape) if z.support))

    def _fill_parts(
        self, base: TensorLabels, parts: list[LabelArray], places: Array, shape: tuple[int, ...]
    ) -> tuple[LabelArray, ...]:
        """The base's layers after a write to a part of some axes; units along these stay where other axes are not.

        Labels 7 8 written to the last two of four positions: - - 7 8, or 0 1 7 8 where the base has 0 1 2 3.
        """
        layers = [LabelArray(z.labels) for z in base.layers]
        for part in parts:
            if not _covers_other_axes(places, shape, part):
                self.store.pin([part.labels], f"written to a part of an axis at {self.at()}")
                continue
            (axis,) = part.support
            old = [z for z in layers if z.support == (axis,)]
            new = old[0].vector.copy() if old else blank(shape[axis])
            new[_line(places, shape, axis)] = part.vector
            layers = [z for z in layers if z.support != (axis,)]
            layers.append(move(LabelArray(new), axis, len(shape)))
        return tuple(layers)

    def _are_units_of(self, base: TensorLabels, shape: tuple[int, ...], value: TensorLabels, places: Array) -> bool:
        """Whether what is written at ``places`` has the units that lie there already, as after ``x[2:4].zero_()``."""
        find = self.store.unions.find
        there = [np.broadcast_to(find(z.labels), shape).reshape(-1)[places] for z in base.layers]
        there = [t for t in there if t.size and (t != t.flat[0]).any()]
        written = [np.broadcast_to(find(z.labels), places.shape) for z in value.layers]
        return len(there) == len(written) and all(any(np.array_equal(t, w) for w in written) for t in there)

    def _places(self, entry: WriteBack, shape: tuple[int, ...], size: int) -> Array:
        import torch

        at: Any = torch.arange(size).reshape(shape)
        for op, args, kwargs, which in entry.views:
            at = op(at, *[_value(self.tape, a) for a in args[1:]], **kwargs)
            at = at[which] if isinstance(at, list | tuple) else at
        places: Array = at.numpy()
        return places


def _write_labels(
    base: TensorLabels, value: TensorLabels, places: Array, shape: tuple[int, ...]
) -> Iterator[LabelArray]:
    """The layers of ``value`` laid out in full, each at ``places`` of one of the base."""
    olds, news = ([z.labels for z in space.layers] for space in (base, value))
    for old, new in zip_longest(olds, news, fillvalue=blank()):
        dense = np.broadcast_to(old, shape).reshape(-1).copy()
        dense[places.reshape(-1)] = np.broadcast_to(new, places.shape).reshape(-1)
        yield LabelArray(compress(dense.reshape(shape)))


def _spans(places: Array, shape: tuple[int, ...], layer: LabelArray) -> bool:
    """Whether a write covers, in order, all of the base's axis along which ``layer`` varies."""
    if places.ndim != len(shape) or len(layer.support) != 1:
        return False
    axis = layer.support[0]
    if places.shape[axis] != shape[axis]:
        return False
    return bool((_line(places, shape, axis) == np.arange(shape[axis])).all())


def _covers_other_axes(places: Array, shape: tuple[int, ...], layer: LabelArray) -> bool:
    """Whether a write covers all but the axis along which ``layer`` varies."""
    if places.ndim != len(shape) or len(layer.support) != 1:
        return False
    return all(a in layer.support or n == shape[a] for a, n in enumerate(places.shape))


def _line(places: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Where the positions along ``axis`` of what is written come to lie."""
    line = places[tuple(slice(None) if a == axis else 0 for a in range(places.ndim))]
    there: Array = np.unravel_index(line, shape)[axis]
    return there


def _contents(call: Call) -> tuple[Any, ...]:
    """What a call writes into a tensor, of the arguments of a call whose sizes are looked at."""
    place = {"full": 1, "new_full": 2, "__setitem__": 2}.get(call.name)
    return () if place is None else (*call.args[place : place + 1], call.kwargs.get("fill_value"))


def _value(tape: Tape, argument: Any) -> Any:
    return tape.values[argument.id].const if isinstance(argument, Ref) else argument


def argument(entry: Entry, position: int, name: str, default: Any = None) -> Any:
    """An argument of an entry by position or keyword."""
    return entry.args[position] if position < len(entry.args) else entry.kwargs.get(name, default)


def call_argument(call: Call | None, position: int, name: str) -> Any:
    """An argument of a call of the user's code by position or keyword; None where it is not given."""
    if call is None:
        return None
    return call.args[position] if position < len(call.args) else call.kwargs.get(name)


def call_sizes(call: Call | None, skip: int = 1) -> list[Any]:
    """The sizes of the user's call after its first ``skip`` arguments, flat: numbers and expressions."""
    if call is None:
        return []
    flat: list[Any] = []
    for value in (*call.args[skip:], *call.kwargs.values()):
        flat += list(value) if isinstance(value, tuple) else [value]
    return flat


def sizes_in(value: Any) -> Iterator[Expression]:
    """All expressions in nested arguments of a call."""
    if isinstance(value, Expression):
        yield value
    elif isinstance(value, slice):
        yield from sizes_in((value.start, value.stop, value.step))
    elif isinstance(value, tuple):
        for inner in value:
            yield from sizes_in(inner)


def move(layer: LabelArray, axis: int, rank: int) -> LabelArray:
    """A vector of labels as a layer along ``axis`` of a tensor of ``rank``."""
    return LabelArray(layer.labels.reshape(shape_along(axis, rank)), layer.owner)


def move_all(layers: Iterable[LabelArray], axis: int, rank: int) -> tuple[LabelArray, ...]:
    """Each vector of labels as a layer along ``axis`` of a tensor of ``rank``."""
    return tuple(move(layer, axis, rank) for layer in layers)


def made(layer: LabelArray, axis: int, rank: int) -> LabelArray:
    """As :func:`move`, for the result of a computation: the labels are no longer a parameter's own."""
    return LabelArray(move(layer, axis, rank).labels)
