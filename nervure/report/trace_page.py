"""A graph as one HTML page: layers folded by module, groups in colours, what stays and why, what a plan takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, final

from nervure.core.markup import html
from nervure.graph.types import Block, Graph
from nervure.plan import Plan
from nervure.report.html import page
from nervure.report.layer_tree import (
    Amount,
    GroupLine,
    LayerLine,
    LayerNode,
    group_lines,
    layer_lines,
    layer_tree,
    require_same_graph,
    total,
)
from nervure.report.tables import percent, quantity, text

if TYPE_CHECKING:
    from markupsafe import Markup

UNFOLDED = 50
"""Modules are unfolded from the outside on as long as no more lines than these are seen."""
CHIPS = 4
"""So many groups of a layer are shown; of more, how many there are."""
ROLES: Mapping[str, str] = {"writer": "made by", "reader": "read by", "rider": "carried by"}


def graph_page(graph: Graph, name: str, plan: Plan | None = None) -> str:
    """A graph as one self-contained HTML page.

    Layers lie in one another as modules do and are folded; each says which groups it reads and makes, what it costs,
    and, where a plan is given, what it leaves. Groups that several layers make together have a colour. The page reads
    without a script; with one it is searched.

    Args:
        graph: what :func:`nervure.trace` gave.
        name: what to call the network.
        plan: what would be taken from it; None: nothing.

    Raises:
        PlanError: the plan was made for another graph.
    """
    edits = Plan() if plan is None else plan
    require_same_graph(graph, edits)
    lines, groups = layer_lines(graph, edits), group_lines(graph, edits)
    params, macs = total(lines)
    told = _Teller(graph, groups, lines, edits)
    return page(
        "graph.html.j2",
        graph=graph,
        name=name,
        plan=plan,
        plan_words=_plan_words(edits),
        budget=[
            (key, text(edits.asked.get(key)), text(edits.reached.get(key))) for key in {**edits.asked, **edits.reached}
        ],
        layers=told.layers(layer_tree(lines, graph.blocks)),
        groups=told.groups(),
        blocks=told.blocks(),
        pinned=_reasons(groups),
        coupled=sum(line.colour >= 0 for line in groups),
        params=params,
        macs=macs,
        count=len(lines),
        amount=_amount,
        percent=percent,
    )


class Chip(NamedTuple):
    """A group as it is shown in one place: its classes and what it says."""

    kind: str
    words: str


@final
class _Teller:
    """Makes the parts of the page, which are many short lines: a template would take seconds for a thousand layers."""

    def __init__(self, graph: Graph, groups: Sequence[GroupLine], lines: Sequence[LayerLine], plan: Plan) -> None:
        self._graph, self._groups = graph, groups
        self._dropped = {drop.block for drop in plan.drops}
        self._most = [max((amount.before for amount in of), default=0) for of in _columns(lines)]
        # Where a plan takes something, before and after say enough.
        self._all = [0 if plan else amount.before for amount in total(lines)]
        self._chips = [_chip(line) for line in groups]
        self._widest = max((line.group.size for line in groups), default=1)

    def layers(self, root: LayerNode) -> "Markup":
        """The tree of modules."""
        from markupsafe import Markup

        top = "" if root.line is None else self._line(root.line, "the model itself")
        open_to = _unfolded(root)
        return Markup(top + "".join(self._node(child, 1, open_to) for child in root.children.values()))

    def groups(self) -> "Markup":
        """A line for each group, with the layers that know it below; of many, those that one layer makes are folded."""
        from markupsafe import Markup

        if len(self._groups) <= UNFOLDED:
            return Markup("\n".join(map(self._group, self._groups)))
        first = [line for line in self._groups if line.colour >= 0 or _stays(line)]
        rest = [line for line in self._groups if line not in first]
        return Markup(
            "\n".join(map(self._group, first))
            + f"<details class=rest><summary><code>{len(rest)} more</code><span>made by one layer each</span></summary>"
            + "\n".join(map(self._group, rest))
            + "</details>"
        )

    def blocks(self) -> "Markup":
        """A line for each block."""
        from markupsafe import Markup

        rows = (f"<p><code>{html(b.name)}</code><span>{self._block(b)}</span></p>" for b in self._graph.blocks)
        return Markup("\n".join(rows))

    def _node(self, node: LayerNode, depth: int, open_to: int) -> str:
        if not node.children:
            state = "" if node.block is None else f" <em>{self._block(node.block)}</em>"
            return self._line(node.line, node.label, state) if node.line is not None else ""
        inside = "" if node.line is None else self._line(node.line, "itself")
        inside += "".join(self._node(child, depth + 1, open_to) for child in node.children.values())
        state = " open" if depth <= open_to else ""
        return f"<details{state}><summary>{self._summary(node)}</summary>{inside}</details>\n"

    def _summary(self, node: LayerNode) -> str:
        """What a module holds, all together."""
        lines = list(node.lines)
        state = "" if node.block is None else f", {self._block(node.block)}"
        shares = [_sum(amount, whole) for amount, whole in zip(total(lines), self._all, strict=True)]
        return f"<code>{html(node.label)}</code><span>{len(lines)} layers{state}</span>{''.join(shares)}"

    def _line(self, line: LayerLine, label: str, state: str = "") -> str:
        cells = [_bar(amount, most) for amount, most in zip((line.params, line.macs), self._most, strict=True)]
        gone = " class=gone" if line.is_dropped else ""
        masked = f" <em>{percent(line.masked)} of the weights stay</em>" if line.masked < 1 else ""
        left = " <em>leaves with its block</em>" if line.is_dropped else ""
        words = f"{self._flow(line)}{state}{masked}{left}"
        return f"<p{gone}><code>{html(label)}</code><span>{words}</span>{''.join(cells)}</p>\n"

    def _flow(self, line: LayerLine) -> str:
        """What a layer reads and makes, or what passes through it."""
        reads, writes, carries = map(self._chips_of, (line.reads, line.writes, line.carries))
        if reads or writes:
            return f"{reads} → {writes}" + (f" · {carries}" if carries else "")
        return f"· {carries}" if carries else ""

    def _chips_of(self, numbers: Sequence[int]) -> str:
        shown = [
            f'<a class="{chip.kind}" href="#g{n}">{chip.words}</a>'
            for n, chip in ((n, self._chips[n - 1]) for n in numbers[:CHIPS])
        ]
        more = len(numbers) - CHIPS
        return " ".join([*shown, f"and {more} more"] if more > 0 else shown)

    def _group(self, line: GroupLine) -> str:
        group, chip = line.group, self._chips[line.number - 1]
        held = "".join(
            f"<dt>{words}</dt><dd>{', '.join(f'<code>{html(n)}</code>' for n in line.layers[role])}</dd>"
            for role, words in ROLES.items()
            if role in line.layers
        )
        stays = f"<dt>stay</dt><dd>{html(group.pinned)}</dd>" if group.pinned else ""
        notes = "".join(f"<dt>note</dt><dd>{html(note)}</dd>" for note in group.kinds_of_notes)
        each = f"<dt>a unit costs</dt><dd>{_each(line)} on average</dd>" if group.size > 1 else ""
        return (
            f'<details id="g{line.number}"><summary><code><b class="{chip.kind}">{line.number}</b> {html(group.name)}'
            f"</code><span>{_units(line)}{_state(line)}</span>{self._width(line)}"
            f"<i>{quantity(line.macs)}</i></summary><dl>{stays}{held}{each}{notes}</dl></details>"
        )

    def _width(self, line: GroupLine) -> str:
        return _bar(Amount(line.group.size, line.kept), self._widest)

    def _block(self, block: Block) -> str:
        kind = "block" if block.kind == "module" else f"{block.kind} block"
        if block.name in self._dropped:
            return f"{kind}, dropped by the plan"
        return f"{kind}, " + (f"stays: {html(block.pinned)}" if block.pinned else "can be dropped")


def _columns(lines: Iterable[LayerLine]) -> tuple[list[Amount], list[Amount]]:
    listed = list(lines)
    return [line.params for line in listed], [line.macs for line in listed]


def _chip(line: GroupLine) -> Chip:
    """Coloured where several layers make its units; said to stay where it is pinned."""
    stays = _stays(line)
    kind = "g" + (f" c{line.colour}" if line.colour >= 0 else "") + (" pin" if stays else "")
    return Chip(kind, f"{line.number}{' stays' if stays else ''}")


def _stays(line: GroupLine) -> bool:
    return bool(line.group.pinned) or line.group.size == 1


def _units(line: GroupLine) -> str:
    makers = len(line.layers.get("writer", ()))
    return f"{line.group.size} {html(line.group.kind)}" + (f" of {makers} layers together" if makers > 1 else "")


def _state(line: GroupLine) -> str:
    group = line.group
    if group.pinned:
        return f", stay: {html(group.pinned.partition(' (')[0])}"
    if group.size == 1:
        return ", stays: a single unit"
    told = f", cut in multiples of {group.multiple}" if group.multiple > 1 else ""
    return told + (f", <em>{line.group.size - line.kept} leave</em>" if line.kept < group.size else "")


def _each(line: GroupLine) -> str:
    size = line.group.size
    return f"{quantity(round(line.params / size))} parameters, {quantity(round(line.macs / size))} MACs"


def _bar(amount: Amount, most: int) -> str:
    """A number with a bar behind it, as long as its share of the largest; of a plan, what stays is darker."""
    if not amount.before:
        return "<i>–</i>"
    wide, stays = (100 * value / max(most, 1) for value in amount)
    kept = f";--k:{stays:.0f}%" if amount.after != amount.before else ""
    return f'<i style="--w:{wide:.0f}%{kept}">{_amount(amount)}</i>'


def _amount(amount: Amount) -> str:
    if amount.before == amount.after:
        return quantity(amount.before)
    return f"{quantity(amount.before)} → {quantity(amount.after)}"


def _sum(amount: Amount, whole: int) -> str:
    """What a module costs, and its share of the whole, where there is one."""
    if not whole:
        return f"<i>{_amount(amount)}</i>"
    return f"<i>{_amount(amount)} <small>{100 * amount.before / whole:.0f} %</small></i>"


def _plan_words(plan: Plan) -> str:
    """How many edits of each kind there are."""
    kinds = {"groups cut": plan.cuts, "tensors masked": plan.masks, "blocks dropped": plan.drops}
    kinds |= {"links added": plan.links}
    told = "; ".join(f"{words}: {len(edits)}" for words, edits in kinds.items() if edits) or "Nothing is edited"
    masks = " Masked weights become zero, and still count as parameters and MACs." if plan.masks else ""
    return f"{told[:1].upper()}{told[1:]}.{masks}{' What links add is not counted.' if plan.links else ''}"


def _reasons(groups: Iterable[GroupLine]) -> dict[str, list[GroupLine]]:
    """The groups that stay, by the reason."""
    found: dict[str, list[GroupLine]] = {}
    for line in groups:
        if _stays(line):
            found.setdefault(line.group.pinned or "a single unit", []).append(line)
    return found


def _unfolded(root: LayerNode) -> int:
    """How deep modules are unfolded at first."""
    depth, level = 0, list(root.children.values())
    seen = len(level)
    while level:
        level = [child for node in level for child in node.children.values()]
        seen += len(level)
        if seen > UNFOLDED:
            break
        depth += 1
    return depth
