"""The frozen picture of a model: groups of units that live or die together, what they cost, which blocks can go."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast, final

import msgspec
import numpy as np
from torch import Tensor

from nervure.core.check import nearest
from nervure.core.documents import open_document
from nervure.core.markup import listing
from nervure.core.renamed import old_method
from nervure.core.schema import Count, Size, convert
from nervure.errors import PlanError
from nervure.graph.invariants import check_graph

Role: TypeAlias = Literal["writer", "reader", "rider"]
Run: TypeAlias = tuple[int, Literal[0, 1], Size]
"""So many units in a row: the first, the step from each to the next, and how many."""


@final
class Units:
    """An immutable integer vector: for each position along an axis, the unit it belongs to, or -1 for none."""

    __slots__ = ("_array", "_runs")
    _array: np.ndarray | None
    _runs: tuple[Run, ...] | None

    def __init__(self, values: Iterable[int] | np.ndarray) -> None:
        self._hold(np.array(values, dtype=np.int64), None)

    @staticmethod
    def of_runs(runs: tuple[Run, ...]) -> "Units":
        """The vector that runs stand for; it takes no memory until somebody looks at it."""
        units = Units.__new__(Units)
        units._hold(None, runs)
        return units

    def _hold(self, array: np.ndarray | None, runs: tuple[Run, ...] | None) -> None:
        if array is not None:
            array.setflags(write=False)
        object.__setattr__(self, "_array", array)
        object.__setattr__(self, "_runs", runs)

    @property
    def array(self) -> np.ndarray:
        """The vector."""
        if self._array is None:
            self._hold(_unrun(self.runs), self.runs)
        return cast(np.ndarray, self._array)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The vector as runs of units in order or all the same."""
        if self._runs is None:
            self._hold(self._array, _runs(self.array))
        return cast(tuple[Run, ...], self._runs)

    @property
    def ends(self) -> tuple[int, int]:
        """The least entry, or 0 where that is less, and the greatest, or -1."""
        lows = (first for first, _, _ in self.runs)
        highs = (first + step * (n - 1) for first, step, n in self.runs)
        return min((0, *lows)), max((-1, *highs))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("Units are immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Units):
            return False
        return (self._runs is not None and self._runs == other._runs) or np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash(self.array.tobytes())

    def __len__(self) -> int:
        return len(self._array) if self._array is not None else sum(length for *_, length in self.runs)

    def __repr__(self) -> str:
        return f"Units({len(self)} positions, {_distinct(self.runs)} units)"

    def kept(self, keep: np.ndarray) -> np.ndarray:
        """Boolean per position: True where its unit survives or where it has none. ``keep`` is [units]."""
        return np.where(self.array < 0, True, keep[self.array])

    def __reduce__(self) -> tuple[Any, ...]:
        return Units, (self.array.tolist(),)


@final
@dataclass(frozen=True, slots=True)
class TensorAxis:
    """Where the units of a group sit in one axis of one parameter or buffer.

    Attributes:
        tensor: qualified name, as in ``state_dict``.
        axis: the axis of that tensor.
        role: ``"writer"`` (this axis makes the units), ``"reader"`` (it consumes them) or ``"rider"`` (norms, biases).
        units: for each position along the axis its unit in the group, -1 for positions of other groups.
    """

    tensor: str
    axis: Count
    role: Role
    units: Units


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Units (channels, neurons, heads) that are cut one by one, each with everything coupled to it.

    Attributes:
        name: unique and stable, by the first layer that writes the units.
        size: number of units.
        kind: ``"channels"``, ``"heads"`` (whole heads or other blocks), ``"widths"`` (inside heads or blocks) or
            ``"experts"`` (what a gate chooses from).
        slots: every place of the units in parameters and buffers.
        pinned: why the group cannot be cut; empty where it can.
        notes: what a cut changes beside removing units, e.g. the statistics of a norm over them.
        multiple: a cut leaves a multiple of so many units (or all of them), since a kernel takes no others.
    """

    name: str
    size: Size
    kind: str
    slots: tuple[TensorAxis, ...]
    pinned: str = ""
    notes: tuple[str, ...] = ()
    multiple: Size = 1

    def round_up(self, count: int) -> int:
        """The smallest number of units from ``count`` on that a cut may leave; at most all of them."""
        return min(self.size, -(-count // self.multiple) * self.multiple)

    allowed = old_method("allowed", "round_up")

    @property
    def kinds_of_notes(self) -> list[str]:
        """One of the notes of each kind, with how many more there are."""
        kinds: dict[str, list[str]] = {}
        for note in self.notes:
            kinds.setdefault(note.partition(" at ")[0], []).append(note)
        return [first + (f" (and {len(more)} more)" if more else "") for first, *more in kinds.values()]

    @property
    def is_pinned(self) -> bool:
        """Whether the group must stay as it is."""
        return bool(self.pinned)

    @property
    def writers(self) -> tuple[TensorAxis, ...]:
        """The slots that make the units."""
        return tuple(s for s in self.slots if s.role == "writer")

    @property
    def readers(self) -> tuple[TensorAxis, ...]:
        """The slots that consume the units."""
        return tuple(s for s in self.slots if s.role == "reader")

    @property
    def riders(self) -> tuple[TensorAxis, ...]:
        """The slots that go along: norms, biases, scales."""
        return tuple(s for s in self.slots if s.role == "rider")


NOT_CUT = -1
"""In the place of a number of an axis: a size that no cut changes."""

Part: TypeAlias = tuple[str, Units]


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor or a computation: its size and the groups along it. A position dies with any unit."""

    size: Count
    parts: tuple[Part, ...] = ()

    def kept(self, keeps: Mapping[str, np.ndarray]) -> np.ndarray:
        """Boolean per position: which survive when each group in ``keeps`` keeps these units."""
        alive = np.ones(self.size, dtype=bool)
        for group, units in self.parts:
            if group in keeps:
                alive &= units.kept(keeps[group])
        return alive


@final
@dataclass(frozen=True, slots=True)
class OpCost:
    """Multiply-accumulates of one operation: ``fixed`` times what survives along each of ``axes``."""

    layer: str
    op: str
    fixed: Count
    axes: tuple[Count, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Lifetime:
    """Memory of one size that is there for some moments of a run: ``fixed`` bytes times what survives along ``axes``.

    Attributes:
        fixed: bytes.
        axes: numbers in ``Graph.axes``.
        first: the first moment that it is there.
        last: the last.
    """

    fixed: Count
    axes: tuple[Count, ...] = ()
    first: Count = 0
    last: Count = 0


@final
@dataclass(frozen=True, slots=True)
class Product:
    """A parameter that multiplies what flows through the model, and what its axes are for.

    Attributes:
        tensor: its name.
        shape: its shape, with an axis in two where the operator takes it so (a grouped transposed convolution).
        rows: axes of ``shape`` along which outputs lie, the members of a stack first.
        columns: axes that are summed over; what is neither are positions of a kernel.
        stack: those of ``rows`` along which matrices lie side by side, each with inputs of its own (experts).
        parts: into how many equal parts the rows are divided that read different inputs.
        is_computed: whether what multiplies is computed from the parameter (its norm, a mask of its own).
        is_divided: whether that is a quotient which rows or columns of zeros may not have.
        reason: why it cannot be masked; empty where it can.
    """

    tensor: str
    shape: tuple[Count, ...]
    rows: tuple[Count, ...] = ()
    columns: tuple[Count, ...] = ()
    stack: tuple[Count, ...] = ()
    parts: Size = 1
    is_computed: bool = False
    is_divided: bool = False
    reason: str = ""

    @property
    def kernel(self) -> tuple[Count, ...]:
        """The axes of ``shape`` that are positions of a kernel."""
        return tuple(a for a in range(len(self.shape)) if a not in (*self.rows, *self.columns))

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def to_matrix(self, values: Tensor) -> Tensor:
        """``values`` of the tensor's shape as [outputs, inputs of one output, kernel positions]."""
        parts = self.rows, self.columns, self.kernel
        sizes = [math.prod(self.shape[a] for a in axes) for axes in parts]
        return values.reshape(self.shape).permute(sum(parts, ())).reshape(sizes)

    def back(self, laid: Tensor, shape: Iterable[int]) -> Tensor:
        """What :meth:`to_matrix` made of a tensor of that shape, in that shape again."""
        order = self.rows + self.columns + self.kernel
        apart = laid.reshape([self.shape[a] for a in order])
        places = [order.index(a) for a in range(len(order))]
        return apart.permute(places).reshape(tuple(shape)).contiguous()


@final
@dataclass(frozen=True, slots=True)
class Edge:
    """Units of ``source`` reach units of ``target`` through parameter ``tensor``."""

    source: str
    target: str
    tensor: str


@final
@dataclass(frozen=True, slots=True)
class ZeroStub:
    """A module of a block that puts out zeros once the block is dropped.

    Attributes:
        module: its name.
        entered: shape of the first tensor it is given then (as traced).
        left: shape of what it returned when it was traced, and of the zeros.
        live: axes whose size is taken from the input while running; the ratio is kept on other axes but ``own``.
        own: axes whose size is the module's own (their units are not those of the input).
        axes: for each of ``own`` the number in ``Graph.axes`` of what lies along it (``NOT_CUT``: its size is fixed).
        extras: how many further results it returns in a tuple (None each); -1: a bare tensor.
    """

    module: str
    entered: tuple[Count, ...]
    left: tuple[Count, ...]
    live: tuple[Count, ...] = ()
    own: tuple[Count, ...] = ()
    axes: tuple[int, ...] = ()
    extras: int = -1


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A part of the network that can become its shortcut.

    Attributes:
        name: unique; the module's name where the block is one module.
        modules: the modules that leave, by name, in running order.
        kind: ``"residual"`` (a branch beside a shortcut), ``"module"`` (a module that is a chain of such branches) or
            ``"dense"`` (new channels concatenated to what was there).
        pinned: why it cannot be dropped; empty where it can.
        silences: which of the modules put out zeros; the others let their input pass.
        group: for a dense block, the group of its new channels, which leaves with it.
        aliases: parts of the modules that the model also holds under names outside of them; these leave too.
        element: the element of a list of layers (a ``ModuleList``, or a ``Sequential`` of one class) that is the
            identity as a whole once the block is dropped: it is taken out of its list, and those behind it are
            renumbered. Empty where it has to stay in its place.
        extras: how many further results a module that lets its input pass returns in a tuple (None each); -1: none,
            a bare tensor.
    """

    name: str
    modules: tuple[str, ...]
    kind: str
    pinned: str = ""
    silences: tuple[ZeroStub, ...] = ()
    group: str = ""
    aliases: tuple[str, ...] = ()
    element: str = ""
    extras: int = -1


@final
@dataclass(frozen=True, slots=True)
class SizeAttribute:
    """A size that a module keeps as a Python integer and that follows axis number ``axis`` of the graph.

    Attributes:
        module: qualified module name (``""`` is the model itself).
        attribute: path below the module, e.g. ``"num_heads"``, ``"config.hidden_size"``, ``"normalized_shape[0]"``.
        size: its value before any cut.
        axis: index into ``Graph.axes``: the value becomes the number of surviving positions.
        is_limit: whether it says how many of them are chosen: it becomes less where fewer survive, and stays otherwise.
    """

    module: str
    attribute: str
    size: int
    axis: Count
    is_limit: bool = False

    def after(self, left: int) -> int:
        """What it becomes where so many positions survive."""
        return min(self.size, left) if self.is_limit else left


@final
@dataclass(frozen=True, slots=True)
class ConfigSize:
    """An integer of a module or a config that says a size and that nothing reads while the model runs.

    Attributes:
        module: qualified name of the module that holds it, or its config.
        attribute: path below the module, e.g. ``"config.hidden_size"``.
        size: its value before any cut.
        groups: the groups whose size it says (or a multiple of it); it follows where all keep the same share.
        is_limit: whether it says how many of their units are chosen: it becomes less where fewer survive.
    """

    module: str
    attribute: str
    size: int
    groups: tuple[str, ...]
    is_limit: bool = False

    def after(self, graph: "Graph", keeps: Mapping[str, Tensor | np.ndarray]) -> int | None:
        """What it should be when groups keep these units; None where no single number is true."""
        counts = {name: graph[name].size for name in self.groups}
        left = {name: int(np.sum(np.asarray(keeps[name]))) if name in keeps else n for name, n in counts.items()}
        if self.is_limit:
            sizes = {float(min(self.size, n)) for n in left.values()}
        else:
            sizes = {self.size * left[name] / n for name, n in counts.items()}
        (one, *others) = sizes
        return int(one) if not others and one == int(one) else None


@final
@dataclass(frozen=True)
class Graph:
    """What is coupled to what in a model, what it costs and which blocks can go. Made by ``nervure.trace``.

    Attributes:
        groups: all groups, prunable or pinned, in running order.
        edges: which group reaches which through which weight.
        blocks: parts that can be dropped.
        axes: the distinct axes that ``tensors``, ``work``, ``resizes``, ``memory`` and the silences of ``blocks`` point
            to.
        tensors: for each parameter and buffer, one index into ``axes`` per dimension.
        parameters: the names in ``tensors`` that are parameters (each shared parameter once).
        work: multiply-accumulates, operation by operation.
        resizes: Python integers in modules that follow a cut.
        notes: anything the user should know (operations without a rule, unreached modules).
        settings: the options of ``trace`` that decide what the units are, for drawing the same graph again.
        declared: integers of modules and configs that say sizes and follow a cut that is alike in all layers.
        products: the parameters that multiply, in running order, and those of which that is not known.
        memory: what lies in memory beside the tensors in a run on the traced example, inputs included, and when. Of all
            moments only those are numbered at which most may lie there.
        element_bytes: bytes of one entry of each of the tensors that has memory of its own. Empty, as ``memory``, in
            graphs that an earlier version of nervure traced.
    """

    groups: tuple[Group, ...]
    edges: tuple[Edge, ...] = ()
    blocks: tuple[Block, ...] = ()
    axes: tuple[Axis, ...] = ()
    tensors: Mapping[str, tuple[Count, ...]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    work: tuple[OpCost, ...] = ()
    resizes: tuple[SizeAttribute, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    declared: tuple[ConfigSize, ...] = ()
    products: tuple[Product, ...] = ()
    memory: tuple[Lifetime, ...] = ()
    element_bytes: Mapping[str, Count] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.describe()

    @cached_property
    def fingerprint(self) -> str:
        """A digest of tensor names, shapes and groups: two models with the same one take the same plans."""
        shapes = {name: [self.axes[a].size for a in axes] for name, axes in sorted(self.tensors.items())}
        groups = [(g.name, g.size) for g in self.groups]
        return hashlib.sha256(json.dumps([shapes, groups]).encode()).hexdigest()[:16]

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.groups}

    def __getitem__(self, name: str) -> Group:
        """The group of that name; raises :class:`PlanError` naming the nearest where there is none."""
        if name not in self._by_name:
            raise PlanError(f"the graph has no group {name!r}.{nearest(name, self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def axis_of(self, module: str, side: int) -> Axis | None:
        """What lies along a side of a module's weight: 0 its outputs, 1 its inputs (of a norm its only axis)."""
        numbers = self.tensors.get(f"{module}.weight", ())[: side + 1]
        return self.axes[numbers[-1]] if numbers else None

    @property
    def prunable(self) -> tuple[Group, ...]:
        """Groups that can be cut (at least two units, not pinned)."""
        return tuple(g for g in self.groups if not g.is_pinned and g.size > 1)

    def block(self, name: str) -> Block:
        """The block of that name; raises :class:`PlanError` where there is none."""
        for block in self.blocks:
            if block.name == name:
                return block
        raise PlanError(f"the graph has no block {name!r}.{nearest(name, [b.name for b in self.blocks])}")

    def survivors(self, keeps: Mapping[str, Tensor | np.ndarray]) -> np.ndarray:
        """Number of surviving positions of each axis in ``axes`` when groups keep these units. Shape [len(axes)]."""
        arrays = {name: np.asarray(keep, dtype=bool) for name, keep in keeps.items()}
        counts = [int(axis.kept(arrays).sum()) if axis.parts else axis.size for axis in self.axes]
        return np.array(counts, dtype=np.int64)

    def params(self, keeps: Mapping[str, Tensor | np.ndarray] | None = None) -> int:
        """Number of parameter entries that survive when groups keep these units (buffers are not counted)."""
        alive = self.survivors(keeps or {})
        return sum(count_products(alive, self.tensors[name]) for name in self.parameters)

    def macs(self, keeps: Mapping[str, Tensor | np.ndarray] | None = None) -> int:
        """Multiply-accumulates of one forward pass on the traced example when groups keep these units."""
        alive = self.survivors(keeps or {})
        return sum(work.fixed * count_products(alive, work.axes) for work in self.work)

    def describe(self) -> str:
        """A readable table of groups, what couples them, what is pinned and why, and of blocks."""
        width = max((len(g.name) for g in self.groups), default=0)
        lines = []
        for group in self.groups:
            held = [f"{s.role} {s.tensor}[{s.axis}]" for s in (*group.writers, *group.readers, *group.riders)]
            more = f" and {len(held) - 4} more" if len(held) > 4 else ""
            state = f"pinned: {group.pinned}" if group.pinned else ", ".join(held[:4]) + more
            state += f" (in multiples of {group.multiple})" if group.multiple > 1 and not group.pinned else ""
            lines.append(f"{group.name:<{width}}  {group.size:>6} {group.kind:<12} {state}")
            lines += [f"{'':<{width}}  {'':>6} note: {note}" for note in group.kinds_of_notes]
        for block in self.blocks:
            lines.append(f"block {block.name} ({block.kind})" + (f" pinned: {block.pinned}" if block.pinned else ""))
        lines += [f"note: {note}" for note in self.notes]
        lines.append(
            f"{len(self.prunable)} of {len(self.groups)} groups can be cut, "
            f"{sum(not b.pinned for b in self.blocks)} of {len(self.blocks)} blocks can be dropped; "
            f"{self.params():,} parameters, {self.macs():,} MACs"
        )
        return listing(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back to an equal graph; what there are many of comes as rows."""
        data: dict[str, Any] = msgspec.to_builtins(self, enc_hook=lambda units: units.runs)
        groups = [group | {"slots": _rows(group["slots"])} for group in data["groups"]]
        return data | {"groups": groups} | {name: _rows(data[name]) for name in ROWS}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Graph":
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: it is anything else, or contradicts itself: see :func:`nervure.graph.invariants.check_graph`.
        """
        plain = open_document(data, "this graph", PlanError)
        named = {name: _add_prefix(kind, plain[name]) for name, kind in ROWS.items() if name in plain}
        groups = [_with_named_slots(group) for group in _as_list(plain.get("groups"))]
        return check_graph(convert(plain | named | {"groups": groups}, Graph, "this graph", PlanError, hook=_Shared()))


def count_products(alive: np.ndarray, axes: Iterable[int]) -> int:
    """The product of what survives along some axes; ``alive`` is by axis, as from :meth:`Graph.survivors`."""
    return math.prod(int(alive[axis]) for axis in axes)


ROWS: Mapping[str, type[Any]] = {
    "edges": Edge,
    "axes": Axis,
    "work": OpCost,
    "resizes": SizeAttribute,
    "declared": ConfigSize,
    "memory": Lifetime,
}
"""Fields of a graph that are written as rows of values, without names."""
MOST_POSITIONS = 1 << 26
"""Positions of all different vectors of units of a graph that is read are no more: 512 MB once all are looked at."""


def _rows(values: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [list(value.values()) for value in values]


def _add_prefix(kind: type[Any], rows: Any) -> Any:
    """Rows as values with names; what is no row stays as it is, for the schema to refuse."""
    names = [f.name for f in fields(kind)]
    return [
        dict(zip(names, row, strict=False)) if isinstance(row, list | tuple) and len(row) <= len(names) else row
        for row in _as_list(rows)
    ]


def _with_named_slots(group: Any) -> Any:
    return group | {"slots": _add_prefix(TensorAxis, group.get("slots"))} if isinstance(group, dict) else group


def _as_list(values: Any) -> Any:
    """``values``, or one wrong value that the schema refuses."""
    return values if isinstance(values, list | tuple) else [values]


def _runs(array: np.ndarray) -> tuple[Run, ...]:
    """Runs of an integer vector: channels in order take one run."""
    runs: list[Run] = []
    for value in array.tolist():
        if runs:
            first, step, length = runs[-1]
            if length == 1 and value - first in (0, 1):
                runs[-1] = (first, value - first, 2)
                continue
            if length > 1 and value == first + step * length:
                runs[-1] = (first, step, length + 1)
                continue
        runs.append((value, 0, 1))
    return tuple(runs)


def _unrun(runs: Iterable[Run]) -> np.ndarray:
    pieces = [np.arange(first, first + n) if step else np.full(n, first) for first, step, n in runs]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _distinct(runs: Iterable[Run]) -> int:
    """How many units there are in runs."""
    count, reached = 0, -1
    for low, high in sorted((first, first + step * (length - 1)) for first, step, length in runs):
        count += max(0, high - max(low - 1, reached))
        reached = max(reached, high)
    return count


class _Shared:
    """Makes units of runs, equal ones once: their memory is then bounded by how many different ones there are."""

    def __init__(self) -> None:
        self._made: dict[tuple[Run, ...], Units] = {}
        self._positions = 0

    def __call__(self, kind: type[Any], data: Any) -> Units:
        runs = convert(data, tuple[Run, ...], "units", _NoRuns)
        if runs not in self._made:
            units = self._made[runs] = Units.of_runs(runs)
            self._positions += len(units)
            if self._positions > MOST_POSITIONS or units.ends[0] < -1 or units.ends[1] >= MOST_POSITIONS:
                raise _NoRuns(f"Expected units from -1 on, and at most {MOST_POSITIONS} positions in all")
        return self._made[runs]


class _NoRuns(PlanError, ValueError):
    """What should be runs is none."""


def keeps_of(cuts: Iterable[Any]) -> dict[str, Tensor]:
    """Mapping group name -> boolean keep tensor from the ``Cut`` edits in ``cuts``."""
    return {cut.group: cut.keep.tensor() for cut in cuts}
