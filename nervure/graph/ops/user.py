"""Rules that users give for operations of their own: what they may say, and what that does to labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeAlias, assert_never, final

import numpy as np
import torch
from torch import Tensor

from nervure.core.check import nearest
from nervure.errors import ArgumentError, TraceError
from nervure.graph.labels import NONE, LabelArray, TensorLabels, compress
from nervure.graph.ops.contractions import meet
from nervure.graph.ops.facets import Operator, Zero
from nervure.graph.ops.pointwise import pointwise as united
from nervure.graph.ops.pointwise import unknown
from nervure.graph.ops.table import GIVEN, KNOWN
from nervure.graph.propagate import LabelPropagation, made, move
from nervure.graph.tape import Entry, Ref, Tape

Shape: TypeAlias = tuple[int, ...]
STACKS: dict[str, list[Any]] = {}
"""For each operation its rules (``nervure.rules.UserRule``) that were not taken back; the last one counts."""


class Operation(NamedTuple):
    """One call of an operation, for rules that depend on it.

    Attributes:
        name: as registered, e.g. ``"mylib::shift"``.
        args: its arguments, with the shape in the place of every tensor.
        kwargs: the same by keyword.
        shapes: the shapes of its tensor arguments, in order.
        outputs: the shapes of its results.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


@final
@dataclass(frozen=True, slots=True)
class Pointwise:
    """See :func:`pointwise`."""

    keeps_zero: bool = False


@final
@dataclass(frozen=True, slots=True)
class Contraction:
    """See :func:`contraction`."""

    equation: str

    def __post_init__(self) -> None:
        ins, arrow, outs = self.equation.replace(" ", "").replace("...", ".").partition("->")
        if not arrow:
            raise ArgumentError(f"equation {self.equation!r} has no '->': write it as for torch.einsum, 'ni,oi->no'.")
        for term in (*ins.split(","), *outs.split(",")):
            if not all(letter == "." or letter.isalpha() for letter in term):
                raise ArgumentError(f"equation {self.equation!r}: {term!r} is not made of letters, one per axis.")
            if len(set(term)) < len(term):
                raise ArgumentError(f"equation {self.equation!r}: {term!r} has a letter twice.")
        for letter in outs.replace(",", ""):
            if letter not in ins:
                raise ArgumentError(f"equation {self.equation!r}: {letter!r} of the result is on no argument.")

    def terms(self) -> tuple[list[str], list[str]]:
        """The letters of the arguments and of the results; a dot stands for any number of leading axes."""
        ins, _, outs = self.equation.replace(" ", "").replace("...", ".").partition("->")
        return ins.split(","), outs.split(",")

    def multiplies_all(self, count: int) -> bool:
        """Whether each of the first ``count`` arguments is summed over: what is only added, a bias, is not."""
        ins, outs = self.terms()
        return all(set(term) - set("".join(outs)) for term in ins[:count])


@final
@dataclass(frozen=True, slots=True)
class Like:
    """See :func:`like`."""

    name: str

    def __post_init__(self) -> None:
        ruled = [name for name, row in KNOWN.items() if row.labels is not unknown]
        if self.name not in ruled:
            raise ArgumentError(f"like {self.name!r}, which has no rule.{nearest(self.name, ruled)}")


@final
@dataclass(frozen=True, slots=True)
class Moves:
    """See :func:`moves`."""

    function: Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, slots=True)
class Pinned:
    """See :func:`pinned`."""

    reason: str


How: TypeAlias = Pointwise | Contraction | Like | Moves | Pinned
Chooser: TypeAlias = Callable[[Operation], How]


def pointwise(*, keeps_zero: bool = False) -> How:
    """Every element of the result depends on the elements at its own place alone; arguments broadcast.

    ``keeps_zero``: it is zero where that of the first argument is, so that it may end a block that can be dropped.
    """
    return Pointwise(keeps_zero)


def contraction(equation: str) -> How:
    """What :func:`torch.einsum` would mean by ``equation``: one letter per axis, ``...`` for any leading axes.

    A letter on several arguments that is not on the result is summed over: what leaves there is left out of the sum.
    A letter on one argument only that is not on the result is mixed: its units stay. Letters of the result pass their
    units on. Several results are separated by commas. A trailing argument may be missing (a bias that is None).

    Raises:
        ArgumentError: the equation has no arrow, a sign that is no letter, a letter twice in a term, or a letter on the
            result that is on no argument.
    """
    return Contraction(equation)


def like(operation: str) -> How:
    """As an operation of PyTorch with the same arguments in the same order, e.g. ``"linear"`` or ``"aten::relu"``.

    Raises:
        ArgumentError: that operation has no rule either (the message names the nearest that has).
    """
    return Like(operation.removeprefix("aten::").partition(".")[0])


def moves(function: Callable[[Tensor], Tensor]) -> How:
    """Elements of the first argument only change places; ``function`` does the same to a tensor of whole numbers."""
    return Moves(function)


def pinned(reason: str) -> How:
    """All units that enter must stay; ``reason`` is what ``Group.pinned`` will say."""
    return Pinned(reason)


def require_how(how: Any) -> How:
    """Return ``how`` if it is a rule, else raise :class:`ArgumentError`."""
    if not isinstance(how, How):
        raise ArgumentError(
            f"{how!r} is not a rule. Give one made by pointwise, contraction, like, moves or pinned of nervure.rules, "
            "or a function that returns one."
        )
    return how


def give_rule(name: str, how: How | Chooser | None) -> None:
    """Put what a user says of an operation into the table, or (None) take it out."""
    name = name.removeprefix("aten::")
    if how is None:
        del GIVEN[name]
    else:
        GIVEN[name] = partial(_row, name, how)


def _row(name: str, how: How | Chooser, tape: Tape, entry: Entry) -> Operator:
    """The row of a user's operation, which may depend on the call."""
    with _telling(name, f"{entry.name} in {entry.module or 'the model'}"):
        chosen = how if isinstance(how, How) else require_how(how(_operation(tape, entry)))
    labels = partial(_apply_rule, name, chosen)
    match chosen:
        case Pointwise(keeps_zero):
            return Operator(name, labels, "as shaped", zero="first" if keeps_zero else "")
        case Like(other):
            return replace(KNOWN[other], names=name, labels=labels)
        case Moves():
            return Operator(name, labels, chosen, moves="first", zero="first")
        case Contraction():
            given = entry.given
            zero: Zero = "any" if chosen.multiplies_all(len(given)) else ""
            return Operator(name, labels, chosen, zero=zero, reads="sum", macs=True)
        case Pinned():
            return Operator(name, labels, "hub")
        case _:
            assert_never(chosen)


@contextmanager
def _telling(name: str, where: str) -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        raise TraceError(f"the rule given for {name!r} does not fit at {where}: {error}") from error


def _operation(tape: Tape, entry: Entry) -> Operation:
    def show(value: Any) -> Any:
        if isinstance(value, Ref):
            return tape.shape(value)
        return tuple(show(v) for v in value) if isinstance(value, tuple) else value

    args = tuple(show(a) for a in entry.args)
    kwargs = {k: show(v) for k, v in entry.kwargs.items()}
    refs = entry.given
    shapes, outputs = (tuple(tape.shape(r) for r in some) for some in (refs, entry.outs))
    return Operation(entry.name, args, kwargs, shapes, outputs)


def _apply_rule(name: str, how: How, flow: LabelPropagation, entry: Entry) -> Sequence[TensorLabels]:
    refs = entry.given
    labels = [z.labels for r in refs for z in flow.space(r).layers]
    if isinstance(how, Pinned):
        flow.store.pin(labels, f"{how.reason} ({flow.at()})")
        return []
    # A rule is somebody's word: what it lets go is tried before it is offered.
    flow.store.suspect(labels, f"the rule given for {entry.name!r}")
    with _telling(name, flow.at()):
        return _pass_labels(how, flow, entry, refs)


def _pass_labels(
    how: Pointwise | Contraction | Like | Moves, flow: LabelPropagation, entry: Entry, refs: Sequence[Ref]
) -> Sequence[TensorLabels]:
    match how:
        case Pointwise():
            _require_broadcast(flow, entry, refs)
            return united(flow, entry)
        case Like(name):
            return KNOWN[name].labels(flow, entry)
        case Moves(function):
            return [_move(flow, refs[0], out, function) for out in entry.outs]
        case Contraction():
            return _contract(how, flow, entry, refs)
        case _:
            assert_never(how)


def _require_broadcast(flow: LabelPropagation, entry: Entry, refs: Sequence[Ref]) -> None:
    for out in entry.outs:
        full = flow.shape(out)
        for ref in refs:
            shape = flow.shape(ref)
            aligned = (1,) * (len(full) - len(shape)) + shape
            if len(aligned) != len(full) or not all(n in (1, m) for n, m in zip(aligned, full, strict=True)):
                raise ArgumentError(f"it is not pointwise: shape {shape} does not broadcast to {full}.")


def _move(flow: LabelPropagation, ref: Ref, out: Ref, function: Callable[[Tensor], Tensor]) -> TensorLabels:
    shape, space = flow.shape(ref), flow.space(ref)
    numbers = torch.arange(prod(shape))
    at = function(numbers.reshape(shape))
    if at.is_floating_point() or bool((at >= len(numbers)).any()):
        raise ArgumentError("what is given to moves must only move numbers (or leave them out), not compute.")
    if tuple(at.shape) != flow.shape(out):
        raise ArgumentError(f"moves makes a result of shape {tuple(at.shape)}, the operation's is {flow.shape(out)}.")
    index = at.numpy()
    layers = []
    for layer in space.layers:
        dense = np.broadcast_to(layer.labels, shape).reshape(-1)
        moved = np.where(index >= 0, dense[np.maximum(index, 0)], NONE)
        layers.append(layer.to(compress(moved)))
    return space.with_layers(flow.store.rectangular(layers, flow.at()))


# -- contractions --------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """An axis of an argument."""

    argument: int
    axis: int


@dataclass(frozen=True, slots=True)
class Letters:
    """An equation spelled out for the shapes at hand: the letters of every axis and their sizes."""

    ins: list[list[str]]
    outs: list[list[str]]
    sizes: dict[str, int]

    def places(self, letter: str) -> list[_Place]:
        """The axes of arguments that a letter stands for."""
        return [_Place(k, term.index(letter)) for k, term in enumerate(self.ins) if letter in term]


def spell(how: Contraction, shapes: Sequence[Shape], results: Sequence[Shape]) -> Letters:
    """Spell an equation out for tensors of these shapes; raises ArgumentError where it does not fit them."""
    ins, outs = how.terms()
    if not len(shapes) <= len(ins) <= len(shapes) + 1:
        raise ArgumentError(f"{how.equation!r} gives {len(ins)} tensors, there are {len(shapes)}.")
    if len(outs) != len(results):
        raise ArgumentError(f"{how.equation!r} gives {len(outs)} results, there is {len(results)}.")
    pairs = list(zip(ins, shapes, strict=False))
    widest = max(len(shape) - (len(term) - 1) for term, shape in pairs)
    spelled = [_without_dots(term, len(shape), widest) for term, shape in pairs]
    sizes = _letter_sizes(how, spelled, shapes)
    written = [_without_dots(term, len(shape), widest) for term, shape in zip(outs, results, strict=True)]
    for letters, shape in zip(written, results, strict=True):
        found = tuple(sizes[letter] for letter in letters)
        if found != shape:
            raise ArgumentError(f"{how.equation!r} makes a result of shape {found}, the operation's is {shape}.")
    return Letters(spelled, written, sizes)


def _letter_sizes(how: Contraction, spelled: Sequence[list[str]], shapes: Sequence[Shape]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for k, (letters, shape) in enumerate(zip(spelled, shapes, strict=True)):
        if len(letters) != len(shape):
            raise ArgumentError(f"{how.equation!r} has {how.terms()[0][k]!r} for argument {k}, whose shape is {shape}.")
        for letter, n in zip(letters, shape, strict=True):
            known = sizes.get(letter, 1)
            if known != 1 and n not in (1, known):
                raise ArgumentError(f"{how.equation!r}: the size of {letter!r} is both {known} and {n}.")
            sizes[letter] = max(n, known)
    return sizes


def _without_dots(term: str, rank: int, widest: int) -> list[str]:
    """Letters for the axes, with names of their own for those a dot stands for, aligned at the last of them."""
    if "." not in term:
        return list(term)
    count, at = rank - (len(term) - 1), term.index(".")
    return [*term[:at], *(f".{widest - count + i}" for i in range(count)), *term[at + 1 :]]


def _contract(how: Contraction, flow: LabelPropagation, entry: Entry, refs: Sequence[Ref]) -> list[TensorLabels]:
    letters = spell(how, [flow.shape(r) for r in refs], [flow.shape(o) for o in entry.outs])
    places = {letter: letters.places(letter) for letter in letters.sizes}
    layers = {p: flow.layers(refs[p.argument], p.axis) for own in places.values() for p in own}
    written = {letter for term in letters.outs for letter in term}
    summed = [letter for letter in letters.sizes if letter not in written]
    for letter in summed:
        _sum_letters(flow, entry, refs, letters, letter, layers)
    if any(len(places[letter]) > 1 for letter in summed):
        units = {letter: next((layers[p] for p in own if layers[p]), []) for letter, own in places.items()}
        flow.work(1, *((n, units[letter]) for letter, n in letters.sizes.items()))
        for letter in written:
            # What stands on one argument only is made by it.
            first, *others = places[letter]
            flow.role([] if others else layers[first], "writer")
    pairs = zip(letters.outs, entry.outs, strict=True)
    return [_write_space(flow, refs, letters, term, out, layers) for term, out in pairs]


def _sum_letters(
    flow: LabelPropagation,
    entry: Entry,
    refs: Sequence[Ref],
    letters: Letters,
    letter: str,
    layers: Mapping[_Place, list[LabelArray]],
) -> None:
    first, *others = letters.places(letter)
    if not others or refs[first.argument] not in entry.args:
        flow.pin([z for p in (first, *others) for z in layers[p]], "mixed")
        return
    for other in others:
        free = flow.space(refs[first.argument]).free or flow.space(refs[other.argument]).free
        meet(flow, layers[first], layers[other], letters.sizes[letter], free=free)
        flow.role(layers[other], "reader")
    flow.role(layers[first], "reader")
    units = next((layers[p] for p in (first, *others) if layers[p]), [])
    flow.read(entry.args.index(refs[first.argument]), first.axis, units)


def _write_space(
    flow: LabelPropagation,
    refs: Sequence[Ref],
    letters: Letters,
    term: list[str],
    out: Ref,
    layers: Mapping[_Place, list[LabelArray]],
) -> TensorLabels:
    operands, shape = [], flow.shape(out)
    for k, ref in enumerate(refs):
        own: list[LabelArray] = []
        sizes = [1] * len(term)
        for to, letter in enumerate(term):
            places = letters.places(letter)
            lift = move if len(places) > 1 else made
            for place in (p for p in places if p.argument == k):
                own += [lift(z, to, len(shape)) for z in layers[place]]
                sizes[to] = flow.shape(ref)[place.axis]
        operands.append((TensorLabels(tuple(own), free=flow.space(ref).free), tuple(sizes)))
    return flow.join(operands, shape)
