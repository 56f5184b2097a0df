"""What a graph says layer by layer and group by group, with what a plan would leave, for a page to show."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np

from nervure.errors import PlanError
from nervure.graph.types import Block, Graph, Group, count_products, keeps_of
from nervure.plan import Plan


class Amount(NamedTuple):
    """How much there is of something, and how much of it a plan leaves."""

    before: int = 0
    after: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """The sum of both."""
        return Amount(self.before + other.before, self.after + other.after)


@final
@dataclass(frozen=True, slots=True)
class LayerLine:
    """One module that has tensors or multiplies itself, without its submodules.

    Attributes:
        name: its qualified name.
        params: its parameter entries.
        macs: its multiply-accumulates on the example.
        reads: numbers of the groups that it consumes.
        writes: of those that it makes.
        carries: of those that pass through it, as through a norm.
        masked: the share of the entries of its masked tensors that a plan lets stay; 1 without masks.
        is_dropped: whether it leaves with a block of the plan.
    """

    name: str
    params: Amount
    macs: Amount
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    carries: tuple[int, ...] = ()
    masked: float = 1.0
    is_dropped: bool = False


@final
@dataclass(slots=True)
class LayerNode:
    """A module and what is below it: filled while the tree is made, and read afterwards."""

    path: str
    label: str
    line: LayerLine | None = None
    block: Block | None = None
    children: "dict[str, LayerNode]" = field(default_factory=dict)

    @property
    def lines(self) -> Iterator[LayerLine]:
        """All lines from here on."""
        if self.line is not None:
            yield self.line
        for child in self.children.values():
            yield from child.lines


@final
@dataclass(frozen=True, slots=True)
class GroupLine:
    """One group, and what hangs on it.

    Attributes:
        number: by which the page calls it, from 1 on.
        group: the group.
        colour: 0 to 7 where several layers make its units together, else -1.
        kept: how many of its units a plan leaves.
        params: parameter entries that would leave with all of its units.
        macs: multiply-accumulates that would leave with them.
        layers: names of layers by what they have to do with it: ``"writer"``, ``"reader"``, ``"rider"``.
    """

    number: int
    group: Group
    colour: int
    kept: int
    params: int
    macs: int
    layers: Mapping[str, tuple[str, ...]]


COLOURS = 8
"""How many colours there are for groups that several layers make together; then they come again."""


def group_lines(graph: Graph, plan: Plan) -> list[GroupLine]:
    """A line for each group of a graph, in its order."""
    held = [_layers_of(group) for group in graph.groups]
    coupled = [number for number, layers in enumerate(held) if len(layers.get("writer", ())) > 1]
    colours = {number: place % COLOURS for place, number in enumerate(coupled)}
    params, macs = _reach(graph)
    kept = {cut.group: cut.keep.count for cut in plan.cuts}
    gone = {graph.block(drop.block).group for drop in plan.drops}
    return [
        GroupLine(
            number + 1,
            group,
            colours.get(number, -1),
            0 if group.name in gone else kept.get(group.name, group.size),
            params[group.name],
            macs[group.name],
            held[number],
        )
        for number, group in enumerate(graph.groups)
    ]


def layer_lines(graph: Graph, plan: Plan) -> list[LayerLine]:
    """A line for each module that has tensors or multiplies, in the order of the model's tensors."""
    alive, left = graph.survivors({}), graph.survivors(_keeps(graph, plan))
    gone = _Leaving(name for drop in plan.drops for name in graph.block(drop.block).modules)
    params: dict[str, Amount] = {layer_of(name): Amount() for name in graph.tensors}
    for name in graph.parameters:
        layer, axes = layer_of(name), graph.tensors[name]
        after = 0 if layer in gone else count_products(left, axes)
        params[layer] = params[layer].plus(Amount(count_products(alive, axes), after))
    macs: dict[str, Amount] = defaultdict(Amount)
    for work in graph.work:
        after = 0 if work.layer in gone else work.fixed * count_products(left, work.axes)
        macs[work.layer] = macs[work.layer].plus(Amount(work.fixed * count_products(alive, work.axes), after))
    held, masked = _groups_of_layers(graph), _masked(plan)
    return [
        LayerLine(
            name,
            params.get(name, Amount()),
            macs.get(name, Amount()),
            held["reader"].get(name, ()),
            held["writer"].get(name, ()),
            held["rider"].get(name, ()),
            masked.get(name, 1.0),
            name in gone,
        )
        for name in dict.fromkeys((*params, *macs))
    ]


def layer_tree(lines: Iterable[LayerLine], blocks: Iterable[Block]) -> LayerNode:
    """The modules as they lie in one another; a module that holds nothing but one other is told with it."""
    root = LayerNode("", "")
    for line in lines:
        _place(root, line.name).line = line
    for block in blocks:
        node = _find(root, block.name)
        if node is not None:
            node.block = block
    return _without_empty(root)


def total(lines: Iterable[LayerLine]) -> tuple[Amount, Amount]:
    """Parameters and multiply-accumulates of several layers."""
    params = macs = Amount()
    for line in lines:
        params, macs = params.plus(line.params), macs.plus(line.macs)
    return params, macs


def require_same_graph(graph: Graph, plan: Plan) -> None:
    """Raise :class:`PlanError` where a plan was made for another graph, or edits what this one does not have."""
    if plan.fingerprint and plan.fingerprint != graph.fingerprint:
        raise PlanError(
            f"this plan was made for a graph with fingerprint {plan.fingerprint}, this one has {graph.fingerprint}. "
            "Give the plan of this network, or trace the network it was made for."
        )
    for cut in plan.cuts:
        if graph[cut.group].size != cut.keep.size:
            raise PlanError(f"the plan cuts {cut.keep.size} units of {cut.group!r}, which has {graph[cut.group].size}.")
    for drop in plan.drops:
        graph.block(drop.block)


def layer_of(tensor: str) -> str:
    """The module that holds a tensor."""
    return tensor.rpartition(".")[0]


def _layers_of(group: Group) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for slot in group.slots:
        found.setdefault(slot.role, {})[layer_of(slot.tensor) or slot.tensor] = None
    return {role: tuple(names) for role, names in found.items()}


def _groups_of_layers(graph: Graph) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """The numbers of groups by role and layer; what a layer makes or reads is not told again as what it carries."""
    found: dict[str, dict[str, dict[int, None]]] = {"reader": {}, "writer": {}, "rider": {}}
    for number, group in enumerate(graph.groups, start=1):
        for slot in group.slots:
            found[slot.role].setdefault(layer_of(slot.tensor), {})[number] = None
    for layer, numbers in found["rider"].items():
        for number in (*found["writer"].get(layer, ()), *found["reader"].get(layer, ())):
            numbers.pop(number, None)
    return {role: {layer: tuple(numbers) for layer, numbers in of.items()} for role, of in found.items()}


def _reach(graph: Graph) -> tuple[dict[str, int], dict[str, int]]:
    """For each group what would leave with all of its units: parameters, and multiply-accumulates."""
    lost = [{name: int((units.array >= 0).sum()) for name, units in axis.parts} for axis in graph.axes]
    sizes = np.array([axis.size for axis in graph.axes], dtype=np.int64)
    params, macs = (dict.fromkeys((group.name for group in graph.groups), 0) for _ in range(2))
    products = [(params, 1, graph.tensors[name]) for name in graph.parameters]
    products += [(macs, work.fixed, work.axes) for work in graph.work]
    for sums, fixed, axes in products:
        for name in {name for axis in axes for name in lost[axis]}:
            stays = 1
            for axis in axes:
                stays *= int(sizes[axis]) - lost[axis].get(name, 0)
            sums[name] += fixed * (count_products(sizes, axes) - stays)
    return params, macs


def _keeps(graph: Graph, plan: Plan) -> dict[str, np.ndarray]:
    keeps = {name: np.asarray(keep) for name, keep in keeps_of(plan.cuts).items()}
    groups = (graph.block(drop.block).group for drop in plan.drops)
    return keeps | {name: np.zeros(graph[name].size, dtype=bool) for name in groups if name}


def _masked(plan: Plan) -> dict[str, float]:
    kept: dict[str, Amount] = defaultdict(Amount)
    for mask in plan.masks:
        layer = layer_of(mask.tensor)
        kept[layer] = kept[layer].plus(Amount(mask.keep.size, mask.keep.count))
    return {layer: amount.after / max(amount.before, 1) for layer, amount in kept.items()}


class _Leaving:
    """Modules that leave, with all below them."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = frozenset(modules)

    def __contains__(self, name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:length]) in self._modules for length in range(1, len(parts) + 1))


def _place(root: LayerNode, path: str) -> LayerNode:
    node, walked = root, ""
    for part in path.split(".") if path else ():
        walked = f"{walked}.{part}" if walked else part
        node = node.children.setdefault(part, LayerNode(walked, part))
    return node


def _find(root: LayerNode, path: str) -> LayerNode | None:
    node: LayerNode | None = root
    for part in path.split("."):
        node = node.children.get(part) if node is not None else None
    return node


def _without_empty(node: LayerNode) -> LayerNode:
    """The tree in which a module that only holds one other is one with it."""
    node.children = {name: _without_empty(child) for name, child in node.children.items()}
    if node.path and len(node.children) == 1 and node.line is None and node.block is None:
        (child,) = node.children.values()
        child.label = f"{node.label}.{child.label}"
        return child
    return node
