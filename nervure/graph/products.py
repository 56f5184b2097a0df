"""Which parameters multiply what flows through a model, and what each of their axes is for.

A parameter reaches the operator that multiplies with it as a view of itself, or computed from itself (the norm of a
weight, a mask). What moves it is followed step by step, and at the operator done once more to the coordinates of its
entries: the axes along which a coordinate then varies tell whether an axis of the parameter holds outputs, inputs,
positions of a kernel or members of a stack.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.graph.labels import shape_along
from nervure.graph.ops.facets import Operator
from nervure.graph.ops.table import find_operator
from nervure.graph.tape import Entry, Ref, Tape, WriteBack, is_view, refs_in
from nervure.graph.types import Product

ROW, COLUMN, KERNEL, STACK = "rcks"
"""What an axis of an operand is for: outputs, what is summed over, positions of a kernel, products side by side."""
MOST_NAMED = 5
LARGE = 0.01
"""The share of the parameters from which a table is worth a note."""
PROBED = 4
"""Side of the tensor that an operator is tried on."""
MATRIX = 2
"""Axes of a parameter that is worth a word where it does not multiply."""


@final
@dataclass(frozen=True, slots=True)
class TrailStep:
    """An operator that moved a parameter's entries: ``at`` is the place of the tensor among the arguments."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    at: tuple[int, ...]
    out: int

    def __call__(self, moved: Tensor) -> Tensor:
        """Do it to another tensor of that shape; what else it was given counts as -1."""
        args = tuple(self._map_argument(place, value, moved) for place, value in enumerate(self.args))
        if self.op.overloadpacket in (torch.ops.aten.view, torch.ops.aten._unsafe_view):
            return moved.reshape(args[1])
        found = self.op(*args, **self.kwargs)
        result: Tensor = found[self.out] if isinstance(found, list | tuple) else found
        return result

    def _map_argument(self, place: int, value: Any, moved: Tensor) -> Any:
        if place != self.at[0]:
            return value
        if len(self.at) == 1:
            return moved
        return [moved if i == self.at[1] else moved.new_full(v.shape, -1) for i, v in enumerate(value)]


@final
@dataclass(frozen=True, slots=True)
class Trail:
    """How a value came from a parameter.

    Attributes:
        parameter: its name; ``shape``: its shape.
        steps: what moved its entries, in order.
        is_computed: whether its values are no longer the parameter's.
        keeps_zero: whether they are zero where the parameter is.
        is_divided: whether they are a quotient, which parts that are zero throughout may not be.
    """

    parameter: str
    shape: tuple[int, ...]
    steps: tuple[TrailStep, ...] = ()
    is_computed: bool = False
    keeps_zero: bool = True
    is_divided: bool = False

    def moved(self, values: Tensor) -> Tensor:
        """Values of the shape of the parameter, each where its entry came to; -1 where there is none of it."""
        for step in self.steps:
            values = step(values)
        return values

    def places(self) -> Tensor:
        """For each entry of the operand the place of the parameter's entry, -1 where there is none."""
        return self.moved(torch.arange(math.prod(self.shape)).reshape(self.shape))

    def key(self) -> Hashable:
        """The same for every trail that moves the entries alike."""
        steps = ((str(s.op), repr(s.args), repr(s.kwargs), s.out) for s in self.steps)
        return (self.parameter, *steps)


@final
@dataclass(frozen=True, slots=True)
class Operand:
    """A parameter at an operator that multiplies with it.

    Attributes:
        trail: how it came there.
        kinds: what each axis of the operand is for (of the operand divided, where the operator divides its first).
        parts: into how many parts the first axis of the operand is divided.
        operand: its place among the operator's arguments; ``other``: that of what it multiplies.
        mirrored: what the axes of the other are for where it may be a parameter as well, empty where it may not.
        is_live: whether what it multiplies depends on what the model is given.
    """

    trail: Trail
    kinds: str
    parts: int
    operand: int
    other: int
    mirrored: str
    is_live: bool

    def divide(self, values: Tensor) -> Tensor:
        """The operand with its first axis divided as the operator does."""
        return values if self.parts == 1 else values.unflatten(0, (self.parts, -1))


def _operands(row: Operator, entry: Entry) -> Iterator[tuple[int, int, str, int]]:
    """The operands of an operator that multiplies: place, place of the other, kinds of its axes, parts of its first."""
    if row.family == "convolution":
        transposed, groups = entry.args[6], entry.args[8]
        kinds = ("sr" if groups > 1 else "r") + "c" if not transposed else ("s" if groups > 1 else "") + "cr"
        yield 1, 0, kinds, groups
    for place, other, kinds in row.operands:
        yield place, other, kinds, 1


@final
@dataclass(slots=True)
class Provenance:
    """Follows parameters through a run, operator by operator."""

    tape: Tape
    parameters: frozenset[str]
    trails: dict[int, tuple[Trail, ...]] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    """Values that do not depend on what the model is given."""
    foreign: dict[str, tuple[Trail, str]] = field(default_factory=dict)
    """Parameters that went into an operator that is none of these, by name: how, and into which."""

    def __post_init__(self) -> None:
        for number, name in self.tape.named.items():
            self.begin(number, name)

    def begin(self, number: int, name: str) -> None:
        """A value that is a tensor of the model."""
        self.fixed.add(number)
        shape = self.tape.values[number].shape
        if name in self.parameters and len(shape) >= MATRIX:
            self.trails[number] = (Trail(name, shape),)

    def step(self, entry: Entry | WriteBack) -> list[Operand]:
        """Read one entry of the tape, and tell which parameters it multiplies with."""
        if isinstance(entry, WriteBack):
            if {entry.base.id, entry.value.id} <= self.fixed:
                self.fixed.add(entry.out.id)
            return []
        given = entry.given
        if all(ref.id in self.fixed for ref in given):
            self.fixed |= {ref.id for ref in entry.outs}
        row = find_operator(self.tape, entry)
        uses = list(self._uses(row, entry))
        if not uses and any(ref.id in self.trails for ref in given):
            self._follow(row, entry, given)
        return uses

    def _uses(self, row: Operator, entry: Entry) -> Iterator[Operand]:
        operands = list(_operands(row, entry))
        for place, other, kinds, parts in operands:
            ref, beside = entry.args[place], entry.args[other]
            live = beside.id not in self.fixed
            # Of two that are both the model's own, the weight is the one that stands where weights stand.
            if ref.id in self.trails and (live or place == operands[0][0]):
                rank = len(self.tape.shape(ref)) + (parts > 1)
                is_kernel = row.family == "convolution"
                whole = kinds + KERNEL * (rank - len(kinds)) if is_kernel else _fit_rank(kinds, rank)
                mirrored = next((k for p, _, k, _ in operands if p == other), "")
                for trail in self.trails[ref.id]:
                    yield Operand(trail, whole, parts, place, other, mirrored, live)

    def _follow(self, row: Operator, entry: Entry, given: list[Ref]) -> None:
        followed = [ref for ref in given if ref.id in self.trails]
        if not all(ref.id in self.fixed for ref in given):
            self._note(row, entry, followed)
        elif row.family != "copy" and (row.moves or is_view(entry.op)):
            for out, ref in enumerate(entry.outs):
                moves = (move for r in followed for move in self._moves(entry, r, out))
                self.trails[ref.id] = tuple(replace(trail, steps=(*trail.steps, step)) for trail, step in moves)
        else:
            self._compute(row, entry, followed, given)

    def _moves(self, entry: Entry, ref: Ref, out: int) -> Iterator[tuple[Trail, TrailStep]]:
        """The step of an entry that moves ``ref``."""
        for where in _places_of(ref, entry.args):
            step = TrailStep(entry.op, self._constants(entry.args, where), entry.kwargs, where, out)
            yield from ((trail, step) for trail in self.trails[ref.id])

    def _constants(self, args: tuple[Any, ...], where: tuple[int, ...]) -> tuple[Any, ...]:
        """The arguments, with indices as tensors; of what is concatenated the shapes count."""
        values = self.tape.values

        def real(value: Any) -> Any:
            if not isinstance(value, Ref):
                return tuple(real(v) for v in value) if isinstance(value, tuple) else value
            known = values[value.id]
            return torch.empty(known.shape, device="meta") if known.const is None else known.const

        return tuple(arg if i == where[0] and len(where) == 1 else real(arg) for i, arg in enumerate(args))

    def _compute(self, row: Operator, entry: Entry, followed: list[Ref], given: list[Ref]) -> None:
        out = entry.outs[0]
        same = [ref for ref in followed if self.tape.shape(ref) == self.tape.shape(out)]
        if not same:
            return
        mine = self.trails[same[0].id]
        zero = self._is_zero_kept(row, entry, given)
        self.trails[out.id] = tuple(
            replace(
                trail,
                is_computed=trail.is_computed or row.family != "copy",
                keeps_zero=trail.keeps_zero and zero,
                is_divided=trail.is_divided or row.family == "quotient",
            )
            for trail in mine
        )

    def _is_zero_kept(self, row: Operator, entry: Entry, given: list[Ref]) -> bool:
        """Whether a result is zero wherever the parameter is."""
        if len(given) == 1:
            value = self.tape.values[given[0].id]
            return _keeps_zero(entry, len(value.shape), value.dtype)
        if row.zero == "all":
            # What a function of the weight adds to it, as estimators do that round in one direction only.
            trails = [self.trails.get(ref.id, ()) for ref in given]
            keys = {tuple(t.key() for t in of) for of in trails}
            return len(keys) == 1 and all(of and all(t.keeps_zero for t in of) for of in trails)
        return row.zero == "any" or (row.zero == "first" and given[0].id in self.trails)

    def _note(self, row: Operator, entry: Entry, followed: list[Ref]) -> None:
        shapes = [self.tape.shape(ref) for ref in refs_in(entry.args)]
        if row.family == "look-up" or row.moves or is_view(entry.op) or not entry.outs:
            return
        try:
            pointwise = tuple(torch.broadcast_shapes(*shapes)) == self.tape.shape(entry.outs[0])
        except RuntimeError:
            pointwise = False
        if not pointwise:
            for trail in (t for ref in followed for t in self.trails[ref.id]):
                self.foreign.setdefault(trail.parameter, (trail, entry.name))


def _places_of(ref: Ref, args: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """Where a tensor stands among arguments: (1,), or (0, 2) in a list that is the first of them."""
    for place, value in enumerate(args):
        if isinstance(value, tuple) and not isinstance(value, Ref):
            yield from ((place, at) for at, inner in enumerate(value) if inner == ref)
        elif value == ref:
            yield (place,)


def _keeps_zero(entry: Entry, rank: int, dtype: torch.dtype) -> bool:
    """Whether an operator of one tensor gives zero wherever that has one: it is tried."""
    generator = torch.Generator().manual_seed(0)
    tried = torch.randn([PROBED] * rank, generator=generator, dtype=torch.float64).to(dtype)
    tried *= torch.rand(tried.shape, dtype=torch.float32, generator=generator) < 0.5
    zeros = tried == 0
    args = tuple(tried if isinstance(arg, Ref) else arg for arg in entry.args)
    try:
        with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = entry.op(*args, **entry.kwargs)
    except (RuntimeError, TypeError, IndexError, NotImplementedError):
        return False
    result = found[0] if isinstance(found, list | tuple) else found
    return result.shape == tried.shape and not bool(result[zeros].any())


def _fit_rank(kinds: str, rank: int) -> str:
    """Kinds for an operand of that many axes: what is missing are outputs or members of a stack in front."""
    return kinds if len(kinds) == rank else kinds[:1] * (rank - len(kinds)) + kinds


# -- from uses to what axes are for -------------------------------------------------------------------------------


def products_of(
    model: nn.Module, tape: Tape, roles: Mapping[tuple[str, int], str] = MappingProxyType({})
) -> tuple[Product, ...]:
    """All parameters of a model that multiply in a recorded run, in running order, and those that may.

    The latter have a ``reason`` why they cannot be masked. A parameter that the run does not reach is taken for what
    the same parameter of a module of its kind is.

    Args:
        model: the model.
        tape: the run.
        roles: which axes of parameters ``"reader"`` and ``"writer"`` rules have said to be, for operators of the
            user's own.
    """
    parameters = dict(model.named_parameters())
    provenance = Provenance(tape, frozenset(parameters))
    found: dict[str, Product] = {}
    live: set[str] = set()
    with _disable_current_modes():
        for entry in tape.entries:
            for use in provenance.step(entry):
                name = use.trail.parameter
                if name not in found or (use.is_live and name not in live):
                    found[name] = _product(use)
                    live |= {name} if use.is_live else set()
    for name, (trail, operator) in provenance.foreign.items():
        found.setdefault(name, _from_rule(trail, operator, roles))
    return (*found.values(), *_find_unreached(model, tape, found))


def describe_products(products: Sequence[Product], whole: int) -> str:
    """Products by name, each with its share of ``whole`` weights and, where it cannot be masked, the reason."""
    told = [f"{p.tensor} ({p.size / whole:.1%}{': ' if p.reason else ''}{p.reason})" for p in products]
    return ", ".join(told[:MOST_NAMED]) + (f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else "")


def told_of_masks(model: nn.Module, products: Sequence[Product]) -> Iterator[str]:
    """What masks leave as it is: what cannot be masked, and all that is large and does not multiply."""
    left = [product for product in products if product.reason]
    if left:
        whole = sum(product.size for product in products)
        yield f"masks cannot be laid on all weights that multiply: not on {describe_products(left, whole)}"
    known = {product.tensor for product in products}
    parameters = dict(model.named_parameters())
    whole = sum(parameter.numel() for parameter in parameters.values())
    others = [
        Product(name, tuple(parameter.shape))
        for name, parameter in parameters.items()
        if name not in known and parameter.ndim >= MATRIX and parameter.numel() >= LARGE * whole
    ]
    if others:
        yield f"masks leave what does not multiply as it is, of all parameters {describe_products(others, whole)}"


def _find_unreached(model: nn.Module, tape: Tape, found: Mapping[str, Product]) -> Iterator[Product]:
    entries = [e for e in tape.entries if isinstance(e, Entry)]
    touched = {ref.id for e in entries for ref in e.given}
    reached = {name for number, name in tape.named.items() if number in touched}
    modules = dict(model.named_modules())
    owned = {}
    for name, _ in model.named_parameters():
        owner, _, key = name.rpartition(".")
        owned[name] = (type(modules[owner]), key)
    kin: dict[tuple[type[nn.Module], str], Product] = {}
    for name, product in found.items():
        if not product.reason:
            kin.setdefault(owned[name], product)
    for name, parameter in model.named_parameters():
        is_table = issubclass(owned[name][0], nn.Embedding | nn.EmbeddingBag)
        if name not in reached and parameter.ndim >= MATRIX and not is_table:
            yield _like(kin.get(owned[name]), name, tuple(parameter.shape))


def _like(kin: Product | None, name: str, shape: tuple[int, ...]) -> Product:
    """A parameter whose axes are for what those of its kin are."""
    if kin is None or len(kin.shape) != len(shape):
        return Product(name, shape, reason="is not reached by the example")
    parts = math.prod(shape[axis] for axis in kin.stack) if kin.stack else kin.parts
    return replace(kin, tensor=name, shape=shape, parts=parts)


def _product(use: Operand) -> Product:
    """What the axes of a parameter are for, as one use of it tells."""
    trail = use.trail
    if not trail.keeps_zero:
        return Product(trail.parameter, trail.shape, reason="is computed with, so that its zeros are no zeros there")
    if not trail.steps and use.parts == 1:
        return _laid_out(use, trail.shape, use.kinds)
    try:
        coordinates = [use.divide(trail.moved(line)) for line in _coordinates(trail.shape)]
    except (RuntimeError, TypeError, NotImplementedError, IndexError) as error:
        return Product(trail.parameter, trail.shape, reason=f"is moved in a way that is not understood ({error})")
    shape: list[int] = []
    kinds = ""
    for size, line in zip(trail.shape, coordinates, strict=True):
        divided = _kinds_along(size, line, use.kinds)
        if divided is None:
            return Product(trail.parameter, trail.shape, reason="has an axis that is both summed over and not")
        shape += [n for n, _ in divided]
        kinds += "".join(kind for _, kind in divided)
    return _laid_out(use, tuple(shape), kinds)


def _from_rule(trail: Trail, operator: str, roles: Mapping[tuple[str, int], str]) -> Product:
    """What the axes are for at an operator of the user's own, as its rule says; a rule sums over what is read."""
    name, shape = trail.parameter, trail.shape
    told = [roles.get((name, axis), "") for axis in range(len(shape))]
    rows, columns = (tuple(a for a, role in enumerate(told) if role == asked) for asked in ("writer", "reader"))
    if not columns or trail.steps or trail.is_computed:
        return Product(name, shape, reason=f"goes into {operator}, of which nothing is known")
    return Product(name, shape, rows, columns)


def _laid_out(use: Operand, shape: tuple[int, ...], kinds: str) -> Product:
    stack, rows, columns = (tuple(a for a, kind in enumerate(kinds) if kind == k) for k in (STACK, ROW, COLUMN))
    return Product(
        use.trail.parameter,
        shape,
        stack + rows,
        columns,
        stack,
        math.prod(shape[a] for a in stack) if stack else use.parts,
        use.trail.is_computed,
        use.trail.is_divided,
    )


def _coordinates(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """For each axis of a tensor the coordinate of each entry along it; takes no memory."""
    for axis, n in enumerate(shape):
        yield torch.arange(n).reshape(shape_along(axis, len(shape))).expand(shape)


def _kinds_along(size: int, line: Tensor, kinds: str) -> list[tuple[int, str]] | None:
    """Into which sizes an axis of a parameter is divided, and what each is for; None where that cannot be said.

    ``line`` has the coordinate along that axis of each entry of the operand. Where it varies along one of the operand's
    axes, the parameter's is for what that one is for. Where it varies along two, as [[0, 1, 2], [3, 4, 5]] does, 6 is
    divided into 2, for what the first is for, and 3.
    """
    # Along these axes it is the same without looking.
    line = line[tuple(slice(0, 1) if step == 0 else slice(None) for step in line.stride())]
    varying = [axis for axis, n in enumerate(line.shape) if n > 1 and _varies(line, axis)]
    told = {kinds[axis] for axis in varying}
    if not told:
        return [(size, STACK if size > 1 else ROW)]
    if told <= {ROW, STACK}:
        return [(size, STACK if told == {STACK} else ROW)]
    if told <= {COLUMN, KERNEL}:
        return [(size, COLUMN if COLUMN in told else KERNEL)]
    steps = {axis: _step_along(line, axis) for axis in varying}
    outer, *others = sorted(varying, key=lambda axis: -steps[axis])
    width = steps[outer]
    is_inside = len(others) == 1 and steps[others[0]] == 1 and line.shape[others[0]] == width
    if not is_inside or size % width:
        return None
    return [(size // width, kinds[outer]), (width, kinds[others[0]])]


def _step_along(line: Tensor, axis: int) -> int:
    """By how much the first coordinate grows along an axis."""
    first, second = line.narrow(axis, 0, 1), line.narrow(axis, 1, 1)
    return int((second - first).reshape(-1)[0])


def _varies(line: Tensor, axis: int) -> bool:
    """Whether coordinates differ along an axis, but for -1, which is no coordinate."""
    top = line.amax(axis)
    low = line.masked_fill(line < 0, torch.iinfo(line.dtype).max).amin(axis)
    return bool((low < top).any())
