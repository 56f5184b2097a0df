"""Labels: integers that say which unit each element of a tensor belongs to, and the algebra that unites them.

A :class:`LabelArray` is an integer array that broadcasts to a tensor's shape, with size 1 along axes where it is
constant. A tensor carries several of them where its units form a product: a weight has one per axis, an attention
projection one for its heads and one for the width inside the heads. An element leaves when any of its units leaves.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Owner: TypeAlias = tuple[str, int]
FACTORS = 4
"""Products of more numbers than this are not taken apart."""
NONE = -1
PENDING = -2
"""In the place of labels that wait for a split: nothing may be concluded from them in this pass."""


class LabelArray(NamedTuple):
    """Labels of one family of units over a tensor; ``owner`` is the parameter axis they came from, if any."""

    labels: Array
    owner: Owner | None = None

    @property
    def support(self) -> tuple[int, ...]:
        """The axes along which the labels vary."""
        return tuple(i for i, n in enumerate(self.labels.shape) if n > 1)

    @property
    def vector(self) -> Array:
        """The labels one after the other."""
        return self.labels.reshape(-1)

    def to(self, labels: Array) -> "LabelArray":
        """Other labels, of the same owner."""
        return LabelArray(labels, self.owner)


@dataclass(frozen=True, slots=True)
class TensorLabels:
    """The labels of one tensor.

    ``free``: a constant made on the fly, without units of its own: it takes the labels that it meets.
    ``spread``: axes along which it repeats one value (after an expansion): there it takes what it meets too.
    ``wishes``: along axes where it takes labels, the sizes it was given in the code (None: not known).
    """

    layers: tuple[LabelArray, ...] = ()
    free: bool = False
    wishes: tuple[tuple[int, Any], ...] = ()
    spread: frozenset[int] = frozenset()

    def with_layers(self, layers: Iterable[LabelArray]) -> "TensorLabels":
        """Other layers, of a tensor that is as free as this one and takes no sizes."""
        return TensorLabels(tuple(layers), free=self.free)

    def along(self, axis: int) -> list[LabelArray]:
        """The layers that vary along ``axis``."""
        return [layer for layer in self.layers if layer.labels.shape[axis] > 1]

    def beside(self, axes: Collection[int]) -> list[LabelArray]:
        """The layers that vary along none of ``axes``."""
        return [layer for layer in self.layers if not set(axes).intersection(layer.support)]


def blank(*shape: int) -> Array:
    """Labels of no unit, everywhere."""
    return np.full(shape, NONE, dtype=np.int64)


def compress(labels: Array) -> Array:
    """Shrink every axis along which the labels are constant to size 1 (labels that wait keep their axes)."""
    if labels.size and labels.flat[0] == PENDING:
        return labels
    for axis, n in enumerate(labels.shape):
        if n > 1:
            first = labels.take([0], axis)
            if bool((labels == first).all()):
                labels = first
    return labels


def pattern(labels: Array) -> bytes:
    """Which positions are equal, whatever the names: labels renumbered by first occurrence.

    7 7 3 and 1 1 4 have one pattern, 0 0 1; 7 3 7 has another.
    """
    flat = labels.reshape(-1)
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    if flat.size and flat.min() == NONE:
        rank[0] = NONE
    renamed: Array = rank[inverse.reshape(-1)]
    return renamed.tobytes() + str(labels.shape).encode()


class Unions:
    """Disjoint sets of labels, united and looked up as whole arrays."""

    def __init__(self) -> None:
        self._parent: Array = np.arange(1024, dtype=np.int64)
        self._family: Array = np.zeros(1024, dtype=np.int64)
        self._families = 0
        self.count = 0

    def fresh(self, n: int) -> Array:
        """``n`` new labels."""
        start, self.count = self.count, self.count + n
        more = 2 * self.count - len(self._parent)
        if self.count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), 2 * self.count)])
            self._family = np.concatenate([self._family, np.zeros(more, dtype=np.int64)])
        self._families += 1
        self._family[start : self.count] = self._families
        return np.arange(start, self.count, dtype=np.int64)

    def families(self, roots: Array) -> Array:
        """For each root the number of the axis its labels were first made for."""
        found: Array = self._family[roots]
        return found

    def find(self, labels: Array) -> Array:
        """The root of each label (the smallest label of its set); what is negative becomes -1."""
        roots: Array = self._parent[labels]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                break
            roots = above
        negative = labels < 0
        if negative.any():
            roots[negative] = NONE
        return roots

    def root(self, label: int) -> int:
        """The root of one label; -1 of a negative one."""
        while label >= 0 and (above := int(self._parent[label])) != label:
            label = above
        return max(label, NONE)

    def unite(self, a: Array, b: Array) -> None:
        """Unite pairwise two arrays of equal shape without -1."""
        ra, rb = self.find(a.reshape(-1)), self.find(b.reshape(-1))
        while True:
            low, high = np.minimum(ra, rb), np.maximum(ra, rb)
            apart = low != high
            if not apart.any():
                return
            # A root may be asked to join several others at once: keep the smallest, then look again.
            np.minimum.at(self._parent, high[apart], low[apart])
            ra, rb = self.find(ra), self.find(rb)


@dataclass(frozen=True, slots=True)
class AxisSplit:
    """A wish to see labels as a product: ``coordinates[i]`` are the places of ``labels[i]``. Shape [n, factors]."""

    labels: Array
    coordinates: Array


@dataclass(slots=True)
class Pin:
    """Labels that must stay, and why."""

    labels: Array
    reason: str


@dataclass(frozen=True, slots=True)
class SizeConstraint:
    """A size given in the code: after any cut ``wish`` must be the number of survivors of an axis.

    The axis has ``size`` positions, with the labels of these ``vectors`` along it (none: it stays as it is).
    """

    wish: Any
    size: int
    vectors: tuple[Array, ...]
    what: str


@dataclass(slots=True)
class LabelState:
    """The working state of a pass of labels over a tape: unions, pins and splits asked for."""

    unions: Unions = field(default_factory=Unions)
    pins: list[Pin] = field(default_factory=list)
    stays: set[int] = field(default_factory=set)
    """All pinned labels."""
    splits: list[AxisSplit] = field(default_factory=list)
    suspects: list[Pin] = field(default_factory=list)
    sizes: list[tuple[Any, tuple[Array, ...]]] = field(default_factory=list)
    """Attributes that must become the number of survivors of an axis with these layers."""
    claims: list[SizeConstraint] = field(default_factory=list)
    where: str = ""
    last: bool = False
    """In the last pass a split that is still wished for pins instead."""

    def pin(self, labels: Iterable[Array], reason: str) -> None:
        """Pin all labels in these arrays."""
        for array in labels:
            flat = array[array >= 0].reshape(-1)
            if flat.size:
                self.pins.append(Pin(flat, reason))
                self.stays.update(flat.tolist())

    def suspect(self, labels: Iterable[Array], reason: str) -> None:
        """Mark labels whose cut must be tried before it is offered."""
        for array in labels:
            flat = array[array >= 0]
            if flat.size:
                self.suspects.append(Pin(np.unique(flat), reason))

    def unite(self, a: Array, b: Array, reason: str) -> None:
        """Unite two label arrays by position (broadcasting); where only one has a unit, that unit is pinned."""
        a, b = np.broadcast_arrays(a, b)
        both = (a >= 0) & (b >= 0)
        self.unions.unite(a[both], b[both])
        alone = (a >= 0) ^ (b >= 0)
        if alone.any():
            self.pin([np.where(alone, np.maximum(a, b), NONE)], f"meets a fixed position at {reason}")

    def split(self, labels: Array, parts: Sequence[Array], reason: str) -> bool:
        """Wish for ``labels`` to become a product with factors numbered by ``parts`` (arrays of the same shape)."""
        flat = self.unions.find(labels.reshape(-1))
        columns = np.stack([p.reshape(-1) for p in parts], axis=1)
        alive = flat >= 0
        roots, first = np.unique(flat[alive], return_index=True)
        coordinates = columns[alive][first]
        # Where one label sits at two places of the product, it cannot be split.
        consistent = np.array_equal(coordinates[np.searchsorted(roots, flat[alive])], columns[alive])
        if self.last or not consistent:
            self.pin([labels], f"divided in a way that cannot be cut at {reason}")
            return False
        self.splits.append(AxisSplit(roots, coordinates))
        return True

    def rectangular(self, layers: Sequence[LabelArray], reason: str, *, parts: bool = False) -> tuple[LabelArray, ...]:
        """Keep layers that vary along one axis; those that vary along several must become a product of one each.

        An axis that is one unit altogether stays, unless it is about to be one of several ``parts`` of an axis; there,
        layers that cannot go are left out, so that the parts agree in what can.
        """
        kept = []
        for layer in layers:
            joined = layer
            if len(layer.support) > 1:
                joined = layer.to(self._assemble(layer.labels, layer.support, reason))
            support = joined.support
            if parts and joined.owner is None and self._all_stay(joined.labels):
                continue
            if len(support) == 1 and not parts and self._is_one_unit(joined.labels):
                self.pin([joined.labels], f"all of its axis is one unit at {reason}")
            elif len(support) == 1:
                kept.append(joined)
            elif len(support) > 1 and (is_pending(joined) or self._factor(joined.labels, support, reason)):
                kept += [_waiting(joined.labels.shape, axis) for axis in support]
        return tuple(kept)

    def _all_stay(self, labels: Array) -> bool:
        """Whether no unit of a layer can go, as with the halves of a gate: it tells nothing then."""
        alive = labels[labels != NONE].reshape(-1)
        # The first is looked at by itself: most layers have many units, and none that stays.
        first = alive[:1].tolist()
        return bool(first) and first[0] in self.stays and self.stays.issuperset(alive.tolist())

    def _is_one_unit(self, labels: Array) -> bool:
        first = self.unions.root(int(labels.flat[0]))
        if first < 0 or first != self.unions.root(int(labels.flat[-1])):
            return False
        return bool((self.unions.find(labels) == first).all())

    def _assemble(self, labels: Array, support: tuple[int, ...], reason: str) -> Array:
        """Where an axis only tells apart what was put together from different places, its slices are cut alike.

        Rows 0 1 2 and 7 8 9 of two parameters' labels, stacked: 0 meets 7, 1 meets 8, 2 meets 9, and one row is left.
        Rows 0 1 2 and 1 2 0 share units: they stay as they are.
        """
        for axis in support:
            roots = self.unions.find(labels)
            first = labels.take([0], axis)
            if (roots == roots.take([0], axis)).all():
                labels = first
                continue
            if (roots < 0).any():
                return labels
            found = self.unions.families(roots)
            slices = np.moveaxis(found, axis, 0).reshape(labels.shape[axis], -1)
            families = [frozenset(row.tolist()) for row in slices]
            are_apart = sum(map(len, families)) == len(frozenset().union(*families))
            if are_apart:
                self.unite(np.broadcast_to(first, labels.shape), labels, reason)
                labels = first
        return labels

    def _factor(self, labels: Array, support: tuple[int, ...], reason: str) -> bool:
        """Wish for a product with one factor per axis; whether that was possible (otherwise the labels are pinned).

        Labels 0 1 2 in the first row and 3 4 5 in the second are a product of 2 and 3: unit 4 has places 1 and 1.
        Rows 0 1 2 and 2 3 4 are none, since they share some of their units.
        """
        places = self._factor_places(labels, support)
        if places is None:
            self.pin([labels], f"divided in a way that cannot be cut at {reason}")
            return False
        return self.split(labels, places, reason)

    def _factor_places(self, labels: Array, support: tuple[int, ...]) -> list[Array] | None:
        """For each axis the place of every unit along it, laid out as the labels are; None where it is no product."""
        roots = self.unions.find(labels)
        if not all(_could_be_factor(roots, axis) for axis in support):
            return None
        units, inverse = np.unique(roots, return_inverse=True)
        inverse = inverse.reshape(roots.shape)
        places = []
        combined = np.zeros_like(inverse)
        for axis in support:
            ids = _places_along(inverse, axis, len(units))
            if ids is None:
                return None
            places.append(ids[inverse])
            combined = combined * roots.shape[axis] + ids[inverse]
        is_product = len(np.unique(combined)) == len(units) and not (roots < 0).any()
        return places if is_product else None

    def match(self, left: Sequence[LabelArray], right: Sequence[LabelArray], reason: str) -> None:
        """Unite two stacks of layers over the same positions: equal patterns pair up, the rest must agree or split.

        Heads 0 0 1 1 and widths 5 6 5 6 on the left, 8 9 8 9 and 3 3 4 4 on the right: 0 meets 3, 1 meets 4, 5 meets 8
        and 6 meets 9. Four units 0 1 2 3 alone on the left have to become a product of 2 and 2 first.
        """
        rest_left, rest_right = list(left), list(right)
        if any(is_pending(x) for x in (*left, *right)):
            return
        if len(rest_left) == len(rest_right) == 1:
            self.unite(rest_left[0].labels, rest_right[0].labels, reason)
            return
        by_pattern = {pattern(self.unions.find(b.labels)): b for b in rest_right}
        for a in list(rest_left):
            b = by_pattern.pop(pattern(self.unions.find(a.labels)), None)
            if b is not None:
                self.unite(a.labels, b.labels, reason)
                rest_left, rest_right = _without(rest_left, [a]), _without(rest_right, [b])
        self._match_rest(rest_left, rest_right, reason)

    def _match_rest(self, left: list[LabelArray], right: list[LabelArray], reason: str) -> None:
        both = [x.labels for x in (*left, *right)]
        if not both:
            return
        if len(left) == len(right) == 1:
            self.unite(left[0].labels, right[0].labels, reason)
        elif not left or not right:
            self.pin(both, f"meets a fixed position at {reason}")
        elif self._match_regions(left, right, reason):
            return
        elif len(left) == 1:
            self._split_like(left[0], right, reason)
        elif len(right) == 1:
            self._split_like(right[0], left, reason)
        elif self._match_parts(left, right, reason) or self._match_parts(right, left, reason):
            return
        elif pairs := self._refinements(left, right):
            for a, b in pairs:
                self.unite(a.labels, b.labels, reason)
            lefts, rights = ([pair[side] for pair in pairs] for side in (0, 1))
            self._match_rest(_without(left, lefts), _without(right, rights), reason)
        else:
            self.pin(both, f"meets another division of its axis at {reason}")

    def _match_regions(self, left: list[LabelArray], right: list[LabelArray], reason: str) -> bool:
        """Where layers end along the axis (parts of a concatenation), match stretch by stretch; whether any does.

        Left 0 1 2 3 4; right 7 8 - - - and - - 5 5 6: the first two are matched with 7 8, the others with 5 5 6.
        """
        broadcast = np.broadcast_arrays(*[x.labels for x in (*left, *right)])
        arrays = [a.reshape(-1) for a in broadcast]
        present = np.stack([a >= 0 for a in arrays])
        regions, region = np.unique(present, axis=1, return_inverse=True)
        if regions.shape[1] == 1:
            return False
        for number, column in enumerate(regions.T):
            here = region.reshape(-1) == number
            parts = [LabelArray(a[here]) for a, is_present in zip(arrays, column, strict=True) if is_present]
            lefts = int(column[: len(left)].sum())
            self.match(parts[:lefts], parts[lefts:], reason)
        return True

    def _refinements(self, left: list[LabelArray], right: list[LabelArray]) -> list[tuple[LabelArray, LabelArray]]:
        """Pairs of which one tells more apart than the other, where no other layer on either side would do.

        Left 0 0 1 1 2 2 3 3 and 5 6 5 6 5 6 5 6, right 7 7 7 7 8 8 8 8 and 9 4 2 1 9 4 2 1: the first of each side are
        a pair (0 and 1 meet 7, 2 and 3 meet 8), and so are the second.
        """
        fits = [(a, b) for a in left for b in right if self._tells(a, b) or self._tells(b, a)]
        lefts, rights = (Counter(id(pair[side]) for pair in fits) for side in (0, 1))
        return [(a, b) for a, b in fits if lefts[id(a)] == rights[id(b)] == 1]

    def _match_parts(self, parts: list[LabelArray], whole: list[LabelArray], reason: str) -> bool:
        """Layers put together from parts meet layers that also tell the parts apart: those stay, the others pair up.

        Heads 0 0 1 1 2 2 3 3 and widths 4 5 4 5 6 7 6 7 of two parts meet h h i i h h i i, w x w x w x w x and
        p p p p q q q q: 0 and 2 meet h, 4 and 6 meet w; the last, which both tell, says which part it is and stays.
        """
        tellers = [[a for a in parts if self._tells(a, b)] for b in whole]
        paired = {id(found[0]) for found in tellers if len(found) == 1}
        if not all(tellers) or len(paired) < len(parts):
            return False
        for found, b in zip(tellers, whole, strict=True):
            if len(found) == 1:
                self.unite(found[0].labels, b.labels, reason)
            else:
                self.pin([b.labels], f"parts told apart by their place at {reason}")
        return True

    def _tells(self, a: LabelArray, b: LabelArray) -> bool:
        """Whether who knows the unit in ``a`` knows the unit in ``b``: 0 1 2 3 tells 7 7 8 8, not the other way."""
        both = np.broadcast_arrays(a.labels, b.labels)
        pairs = np.stack([self.unions.find(x.reshape(-1)) for x in both], 1)
        return len(np.unique(pairs, axis=0)) == len(np.unique(pairs[:, 0]))

    def _split_like(self, single: LabelArray, many: list[LabelArray], reason: str) -> None:
        """One layer meets several, as 0 1 2 3 meets 5 5 6 6 and 8 9 8 9: it must become a product of them."""
        labels, *factors = np.broadcast_arrays(single.labels, *[m.labels for m in many])
        numbers = [np.unique(self.unions.find(f), return_inverse=True)[1] for f in factors]
        self.split(labels, numbers, reason)

    def join(
        self, spaces: Sequence[tuple[TensorLabels, tuple[int, ...]]], shape: tuple[int, ...], reason: str
    ) -> TensorLabels:
        """The labels of a pointwise operation on tensors that broadcast to ``shape``."""
        rank = len(shape)
        result: list[LabelArray] = []
        result_shape = (1,) * rank
        for space, given in spaces:
            layers, own = align_rank(space, rank), _own_shape(space, given, rank)
            result = self._join_two(result, result_shape, list(self.rectangular(layers, reason)), own, reason)
            result_shape = tuple(max(a, b) for a, b in zip(result_shape, own, strict=True))
        spread: dict[int, Any] = {}
        for space, own in spaces:
            shift = rank - len(own)
            for axis, wish in space.wishes if space.spread else ():
                is_single = result_shape[axis + shift] == 1 or _is_spread(spaces, axis + shift - rank)
                if axis in space.spread and is_single:
                    spread[axis + shift] = wish
        all_free = all(space.free for space, _ in spaces)
        joined = TensorLabels(tuple(result), all_free, tuple(spread.items()), frozenset(spread))
        for space, own in spaces:
            self._grant(space, own, rank - len(own), joined)
        return joined

    def _grant(self, space: TensorLabels, own: tuple[int, ...], shift: int, joined: TensorLabels) -> None:
        """A constant adopts labels: the sizes it was made with must follow them."""
        for axis, wish in space.wishes if space.free or space.spread else ():
            vectors = [x.vector for x in joined.along(axis + shift)]
            if vectors and wish is None:
                self.suspect(vectors, f"expanded at {self.where}")
            elif vectors:
                self.size(wish, own[axis], vectors, "a constant")

    def size(self, wish: Any, size: int, vectors: Sequence[Array], what: str) -> None:
        """A size given as ``wish`` (an expression, or a number) must follow an axis with these layers."""
        if vectors:
            self.sizes += [(own, part) for own, part in _single_sizes(wish, vectors) if own.attribute is not None]
        told = f"the size {wish} in the code does not follow a cut ({what}, {self.where})"
        self.claims.append(SizeConstraint(wish, size, tuple(vectors), told))

    def _join_two(
        self,
        left: list[LabelArray],
        left_shape: tuple[int, ...],
        right: list[LabelArray],
        right_shape: tuple[int, ...],
        reason: str,
    ) -> list[LabelArray]:
        out: list[LabelArray] = []
        axes = {x.support[0] for x in (*left, *right) if x.support}
        for axis in sorted(axes):
            a = [x for x in left if x.support == (axis,)]
            b = [x for x in right if x.support == (axis,)]
            waiting = [x for x in (*a, *b) if is_pending(x)]
            if waiting:
                out += waiting[:1]
            elif a and b:
                self.match(a, b, reason)
                out += b if _outlives(b, right_shape, a, left_shape) else a
            elif a and right_shape[axis] > 1:
                self.pin([x.labels for x in a], f"meets an axis of fixed size at {reason}")
            elif b and left_shape[axis] > 1:
                self.pin([x.labels for x in b], f"meets an axis of fixed size at {reason}")
            else:
                out += a or b
        return out


def _outlives(mine: list[LabelArray], shape: tuple[int, ...], theirs: list[LabelArray], other: tuple[int, ...]) -> bool:
    """Whose owners go on: they tell where a weight is read or written.

    An activation's labels outlive a parameter's, and a matrix's those of a scale for its rows.
    """
    if not all(x.owner is not None for x in theirs):
        return False
    is_parameter = all(x.owner is not None for x in mine)
    return not is_parameter or sum(n > 1 for n in shape) >= sum(n > 1 for n in other)


def _is_spread(spaces: Sequence[tuple[TensorLabels, tuple[int, ...]]], axis: int) -> bool:
    """Whether all operands repeat one value along an axis of the result, which is counted from the last: -1, -2."""

    def repeats(space: TensorLabels, own: tuple[int, ...]) -> bool:
        return -axis > len(own) or own[axis] == 1 or axis + len(own) in space.spread

    return all(repeats(space, own) for space, own in spaces)


Size: TypeAlias = tuple[Any, tuple[Array, ...]]


def _single_sizes(wish: Any, vectors: Sequence[Array]) -> list[Size]:
    """A size computed from others, and the sizes it was computed from, each with the part of the axis that it gives."""
    if isinstance(wish, int | float):
        return []
    found: list[Size] = [(wish, tuple(vectors))]
    values = [int(getattr(o, "value", o)) for o in wish.operands]
    if wish.operation == "add" and min(values) > 0 and sum(values) == len(vectors[0]):
        first, second = wish.operands
        found += _single_sizes(first, [v[: values[0]] for v in vectors])
        found += _single_sizes(second, [v[values[0] :] for v in vectors])
    elif wish.operation == "mul" and len(factors := _factors(wish)) <= FACTORS:
        found += _best_layout(factors, vectors)
    elif wish.operation == "floordiv" and values[1:] == [1]:
        # Experts of one group.
        found += _single_sizes(wish.operands[0], vectors)
    elif wish.attribute is None and len(leaves := wish.leaves()) == 1 and leaves[0].value == len(vectors[0]):
        # Whether what is computed of it follows too is for the claim to say.
        found += [(leaves[0], tuple(vectors))]
    return found


def _best_layout(factors: Sequence[Any], vectors: Sequence[Array]) -> list[Size]:
    """The sizes of factors in the order that tells most units apart; plain numbers are outermost where it is open."""
    best: list[Size] = []
    most = 0
    for order in permutations(sorted(factors, key=lambda f: not isinstance(f, int))):
        shape = [int(getattr(f, "value", f)) for f in order]
        if prod(shape) != len(vectors[0]):
            return []
        parts = _along_factors(order, [v.reshape(shape) for v in vectors]) or []
        apart = sum(len(np.unique(v)) for _, own in parts for v in own)
        if apart > most:
            best, most = parts, apart
    return best


def _factors(wish: Any) -> list[Any]:
    if getattr(wish, "operation", "") != "mul":
        return [wish]
    return [f for operand in wish.operands for f in _factors(operand)]


def _along_factors(order: Sequence[Any], tables: Sequence[Array]) -> list[Size] | None:
    """The sizes of factors laid out in this order, or None where labels vary along two of them at once.

    Along a factor that is a plain number there may be several parts, which all have the size of the rest.
    """
    found: list[Size] = []
    plain = [a for a, factor in enumerate(order) if isinstance(factor, int | float)]
    for place in product(*[range(tables[0].shape[a]) for a in plain]):
        at = tuple(place[plain.index(a)] if a in plain else slice(None) for a in range(len(order)))
        rest = [f for a, f in enumerate(order) if a not in plain]
        parts = [compress(t[at]) for t in tables]
        if any(sum(n > 1 for n in p.shape) > 1 for p in parts):
            return None
        for axis, factor in enumerate(rest):
            own = [p.reshape(-1) for p in parts if p.shape[axis] > 1]
            found += _single_sizes(factor, own) if own else []
    return found


def _without(layers: list[LabelArray], gone: list[LabelArray]) -> list[LabelArray]:
    return [x for x in layers if not any(x is g for g in gone)]


def is_pending(layer: LabelArray) -> bool:
    """Whether some of a layer's labels wait for a split."""
    return bool((layer.labels == PENDING).any())


def shape_along(axis: int, rank: int, size: int = -1) -> list[int]:
    """The shape of a vector that lies along one of ``rank`` axes.

    >>> shape_along(1, 3)
    [1, -1, 1]
    """
    return [size if a == axis else 1 for a in range(rank)]


def _waiting(shape: tuple[int, ...], axis: int) -> LabelArray:
    own = shape_along(axis, len(shape), shape[axis])
    return LabelArray(np.full(own, PENDING, dtype=np.int64))


def _places_along(units: Array, axis: int, count: int) -> Array | None:
    """For each of ``count`` units its place along an axis, or None where two overlap there without being alike.

    A unit's place is the set of indices at which it occurs, named by the first of them.
    """
    size = units.shape[axis]
    present = np.zeros((count, size), dtype=bool)
    for index, row in enumerate(np.moveaxis(units, axis, 0).reshape(size, -1)):
        present[row, index] = True
    first: Array = present.argmax(axis=1)
    alike = np.zeros((size, size), dtype=bool)
    alike[first] = present
    return first if (alike[first] == present).all() else None


def _could_be_factor(roots: Array, axis: int) -> bool:
    """A quick look: in a product two slices along an axis hold the same units or none in common."""
    slices = (roots.take(i, axis) for i in (0, 1, -1))
    first, *others = (set(units.reshape(-1).tolist()) for units in slices)
    return all(first == other or not first & other for other in others)


def _own_shape(space: TensorLabels, given: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of an operand in a join: 1 along axes where a constant has no units of its own and takes others'."""
    shift = rank - len(given)
    taking = range(len(given)) if space.free else space.spread
    bare = {axis + shift for axis in taking if not space.along(axis)}
    return tuple(1 if a in bare or a < shift else given[a - shift] for a in range(rank))


def align_rank(space: TensorLabels, rank: int) -> tuple[LabelArray, ...]:
    """The layers of a tensor that is broadcast to more axes, which come first."""

    def align(labels: Array) -> Array:
        return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)

    return tuple(x.to(align(x.labels)) for x in space.layers)
