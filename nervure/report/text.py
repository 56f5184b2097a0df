"""Tables for a terminal: a graph and a plan as aligned text."""

from collections.abc import Iterable, Sequence

from nervure.graph.types import Graph, keeps_of
from nervure.plan import Plan
from nervure.report.tables import quantity, text


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    table = [tuple(head), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in table]  # fmt: skip
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def graph_table(graph: Graph) -> str:
    """Each group with its size, how many tensors know it, and why it is pinned, then the totals."""
    rows = [(g.name, str(g.size), g.kind, str(len(g.slots)), g.pinned or "can be cut") for g in graph.groups]
    table = aligned(("group", "units", "kind", "slots", "cut"), rows)
    blocks = sum(not block.pinned for block in graph.blocks)
    totals = (
        f"{len(graph.groups)} groups, {len(graph.prunable)} of them can be cut; {blocks} blocks can be dropped; "
        f"{quantity(graph.params())} parameters, {quantity(graph.macs())} multiply-accumulates"
    )
    return "\n".join([table, "", totals, *(f"note: {note}" for note in graph.notes)])


def plan_table(graph: Graph, plan: Plan) -> str:
    """What a plan does to each group, and what is left in total; nothing is applied."""
    rows = []
    for cut in plan.cuts:
        alone = {cut.group: cut.keep.tensor()}
        spared = graph.macs() - graph.macs(alone)
        rows.append((cut.group, f"{cut.keep.size} -> {cut.keep.count}", f"-{quantity(spared, 'MACs')}"))
    other = [
        *((mask.tensor, f"{mask.keep.size} -> {mask.keep.count}", "masked") for mask in plan.masks),
        *((drop.block, "", "dropped") for drop in plan.drops),
        *((f"{link.source} -> {link.target}", str(link.keep.count), "linked") for link in plan.links),
    ]
    body = aligned(("edit", "stays", "alone spares"), [*rows, *other]) if rows or other else "the plan is empty"
    keeps = keeps_of(plan.cuts)
    after = (
        f"parameters {quantity(graph.params())} -> {quantity(graph.params(keeps))}",
        f"multiply-accumulates {quantity(graph.macs())} -> {quantity(graph.macs(keeps))}",
    )
    asked = ", ".join(f"{key} {text(value)}" for key, value in plan.asked.items())
    reached = ", ".join(f"{key} {text(value)}" for key, value in plan.reached.items())
    lines = [body, "", "; ".join(after), f"asked: {asked}" * bool(asked), f"reached: {reached}" * bool(reached)]
    return "\n".join(line for i, line in enumerate(lines) if line or i == 1)
