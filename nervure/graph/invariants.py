"""What every graph keeps, rule by rule: :func:`check_graph` says which one a graph breaks, and where."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from nervure.errors import PlanError

if TYPE_CHECKING:
    from nervure.graph.types import Axis, Graph, Units

Rule: TypeAlias = Callable[["Graph"], Iterator[str]]
LARGEST = 1 << 62
"""Entries of a tensor and multiply-accumulates of an operation are fewer, so that 64 bits count them."""
SETTINGS = ("outputs", "inputs", "inside_heads")
MOST_POSITIONS = 1 << 30
"""Positions along all slots and axes of a graph are no more: ten times those of the largest networks there are."""


def check_graph(graph: "Graph") -> "Graph":
    """Return ``graph`` if it keeps all :data:`RULES`, else raise :class:`PlanError` naming the place and the rule."""
    for rule in RULES:
        for place in rule(graph):
            raise PlanError(f"this graph contradicts itself at {place}. {rule.__doc__}")
    return graph


def _group_names(graph: "Graph") -> Iterator[str]:
    """Each group has a name of its own."""
    yield from _find_repeated("group", [group.name for group in graph.groups])


def _block_names(graph: "Graph") -> Iterator[str]:
    """Each block has a name of its own."""
    yield from _find_repeated("block", [block.name for block in graph.blocks])


def _group_sizes(graph: "Graph") -> Iterator[str]:
    """A group has as many units as its slots say, 1 or more, and is cut to multiples of at least 1."""
    for group in graph.groups:
        most = max((1 + slot.units.ends[1] for slot in group.slots), default=0)
        if not 1 <= group.size == most or group.multiple < 1:
            yield f"group {group.name!r} of {group.size} units"


def _axes_of_tensors(graph: "Graph") -> Iterator[str]:
    """A dimension of a tensor has the number of an axis of the graph."""
    yield from (f"tensor {name!r}" for name, axes in graph.tensors.items() if not _are_axes(graph, axes))


def _axes_of_work(graph: "Graph") -> Iterator[str]:
    """An operation runs along axes of the graph."""
    yield from (f"work of {work.layer!r}" for work in graph.work if not _are_axes(graph, work.axes))


def _axes_of_memory(graph: "Graph") -> Iterator[str]:
    """Memory is that of tensors of the graph, or lies along its axes from a moment to a later one."""
    for number, life in enumerate(graph.memory):
        # There are no more moments than things that are there.
        if not (_are_axes(graph, life.axes) and life.first <= life.last < len(graph.memory)):
            yield f"memory {number}"
    yield from (f"memory of {name!r}" for name in graph.element_bytes if name not in graph.tensors)


def _axes_of_resizes(graph: "Graph") -> Iterator[str]:
    """An integer of a module follows an axis of the graph."""
    yield from (f"resize of {size.attribute!r}" for size in graph.resizes if not _are_axes(graph, [size.axis]))


def _axes_of_silences(graph: "Graph") -> Iterator[str]:
    """Zeros have the shape that was traced, and each own axis an axis of the graph, or a fixed size."""
    for block in graph.blocks:
        for silence in block.silences:
            rank, cut = len(silence.left), [axis for axis in silence.axes if axis != -1]
            inside = all(0 <= axis < rank for axis in (*silence.live, *silence.own))
            if not inside or len(silence.own) != len(silence.axes) or not _are_axes(graph, cut):
                yield f"silence of {silence.module!r}"


def _silent_modules(graph: "Graph") -> Iterator[str]:
    """A module that puts out zeros is one of its block."""
    for block in graph.blocks:
        yield from (f"block {block.name!r}" for silence in block.silences if silence.module not in block.modules)


def _parts_of_axes(graph: "Graph") -> Iterator[str]:
    """Each position of an axis has a unit of each group along it, or none."""
    sizes = {group.name: group.size for group in graph.groups}
    for number, axis in enumerate(graph.axes):
        if not all(name in sizes and _fits(units, axis, sizes[name]) for name, units in axis.parts):
            yield f"axis {number}"


def _places_of_slots(graph: "Graph") -> Iterator[str]:
    """A slot lies along an axis of a tensor, and each position there has a unit of its group, or none."""
    for group in graph.groups:
        for slot in group.slots:
            axes = graph.tensors.get(slot.tensor, ())
            is_there = 0 <= slot.axis < len(axes)
            if not is_there or not _fits(slot.units, graph.axes[axes[slot.axis]], group.size):
                yield f"slot {slot.tensor!r}[{slot.axis}] of group {group.name!r}"


def _parameters(graph: "Graph") -> Iterator[str]:
    """A parameter is a tensor of the graph, once."""
    yield from _find_repeated("parameter", graph.parameters)
    yield from (f"parameter {name!r}" for name in graph.parameters if name not in graph.tensors)


def _ends_of_edges(graph: "Graph") -> Iterator[str]:
    """An edge leads from a group to a group through a tensor."""
    for edge in graph.edges:
        if not (edge.source in graph and edge.target in graph and edge.tensor in graph.tensors):
            yield f"edge {edge.source!r} -> {edge.target!r}"


def _groups_of_blocks(graph: "Graph") -> Iterator[str]:
    """The group of a block is one of the graph."""
    yield from (f"block {block.name!r}" for block in graph.blocks if block.group and block.group not in graph)


def _groups_of_declared(graph: "Graph") -> Iterator[str]:
    """A declared size is that of groups, one at least."""
    for said in graph.declared:
        if not said.groups or not all(name in graph for name in said.groups):
            yield f"declared {said.attribute!r} of {said.module!r}"


def _axes_of_products(graph: "Graph") -> Iterator[str]:
    """Rows and columns of a product are different axes of its shape, its stack are rows, its parts divide them."""
    for product in graph.products:
        axes, rows = (*product.rows, *product.columns), math.prod(_take(product.shape, product.rows))
        are_there = all(0 <= axis < len(product.shape) for axis in axes)
        ok = are_there and len(set(axes)) == len(axes)
        if not ok or not set(product.stack) <= set(product.rows) or product.parts < 1 or rows % product.parts:
            yield f"product {product.tensor!r}"


def _shapes_of_products(graph: "Graph") -> Iterator[str]:
    """A product has as many entries as its tensor."""
    for product in graph.products:
        axes = graph.tensors.get(product.tensor)
        if axes is None or product.size != _entries(graph, axes):
            yield f"product {product.tensor!r}"


def _counts(graph: "Graph") -> Iterator[str]:
    """No tensor has, no operation does and no memory takes more than 64 bits can count."""
    yield from (f"tensor {name!r}" for name, axes in graph.tensors.items() if _entries(graph, axes) >= LARGEST)
    yield from (f"work of {w.layer!r}" for w in graph.work if w.fixed * _entries(graph, w.axes) >= LARGEST)
    tensors = sum(size * _entries(graph, graph.tensors[name]) for name, size in graph.element_bytes.items())
    if tensors + sum(life.fixed * _entries(graph, life.axes) for life in graph.memory) >= LARGEST:
        yield "memory"


def _positions(graph: "Graph") -> Iterator[str]:
    """There are fewer positions than 2^30 along all slots and axes."""
    slots = sum(len(slot.units) for group in graph.groups for slot in group.slots)
    if slots + sum(len(units) for axis in graph.axes for _, units in axis.parts) > MOST_POSITIONS:
        yield "its slots and axes"


def _settings(graph: "Graph") -> Iterator[str]:
    """Settings say which outputs stay (all, none, or names), and whether inputs and widths inside heads are units."""
    for name, value in graph.settings.items():
        named = name == "outputs" and isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        if not named and (name not in SETTINGS or not isinstance(value, bool)):
            yield f"setting {name!r}"


RULES: tuple[Rule, ...] = (
    _positions,
    _group_names,
    _block_names,
    _group_sizes,
    _axes_of_tensors,
    _axes_of_work,
    _axes_of_memory,
    _axes_of_resizes,
    _axes_of_silences,
    _silent_modules,
    _parts_of_axes,
    _places_of_slots,
    _parameters,
    _ends_of_edges,
    _groups_of_blocks,
    _groups_of_declared,
    _axes_of_products,
    _shapes_of_products,
    _counts,
    _settings,
)
"""Each yields the places where a graph breaks what its docstring says; later ones rely on those before them."""


def _find_repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} {name!r}"
        seen.add(name)


def _are_axes(graph: "Graph", numbers: Iterable[int]) -> bool:
    return all(0 <= number < len(graph.axes) for number in numbers)


def _fits(units: "Units", axis: "Axis", size: int) -> bool:
    low, high = units.ends
    return len(units) == axis.size and low >= -1 and high < size


def _entries(graph: "Graph", axes: Iterable[int]) -> int:
    return math.prod(graph.axes[axis].size for axis in axes)


def _take(sizes: tuple[int, ...], axes: Iterable[int]) -> Iterator[int]:
    return (sizes[axis] for axis in axes if 0 <= axis < len(sizes))
