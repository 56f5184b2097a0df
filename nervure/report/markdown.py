"""A report as Markdown, for a pull request or a notebook."""

import re
from collections.abc import Iterable, Iterator

from nervure.report import connectivity, shift, tables
from nervure.report.tables import Table, recipe_rows
from nervure.report.values import Report


def to_markdown(report: Report) -> str:
    """The whole report as Markdown text, tables included, ending with a newline."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {report.title}"
    yield f"**{report.headline}**"
    yield from report.notes
    yield "What stays: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in tables.stays(report).items())
    yield f"## Comparison\n\n{table_text(tables.comparison(report))}"
    yield _explained(report)
    yield _speed(report)
    yield _under_shift(report)
    yield f"## Plan\n\n`{report.method}`\n\n{table_text(tables.budget(report))}"
    yield table_text(_widths(report))
    yield _noted(report)
    yield table_text(tables.edits(report))
    yield _pinned(report)
    yield _connectivity(report)
    yield f"## Verification\n\n{table_text(tables.verification(report))}"
    if report.provenance.get("again"):
        yield f"## Again\n\n```sh\n{report.provenance['again']}\n```"
    yield f"## Provenance\n\n{table_text(tables.provenance(report))}"
    yield _recipe(report)


def _speed(report: Report) -> str:
    table = table_text(tables.speed(report))
    timed = any(row.latency for row in report.rows.values())
    return "\n\n".join(
        filter(None, (table and f"## Speed by engine\n\n{table}", tables.speed_note(report) if timed else ""))
    )


def _under_shift(report: Report) -> str:
    table = table_text(shift.table(report))
    return f"## Under shift\n\n{table}\n\n{shift.caption(report)}" if table else ""


def _explained(report: Report) -> str:
    known = [name for name in report.rows if name in tables.EXPLAINED]
    return "\n".join(f"- *{name}*: {tables.EXPLAINED[name]}" for name in known)


def _widths(report: Report) -> Table:
    rows = tuple((w.group, str(w.before), str(w.after)) for w in tables.changed(report))
    return Table(("group", "before", "after"), rows)


def _noted(report: Report) -> str:
    lines = [f"- {group}: {'; '.join(notes)}" for group, notes in tables.noted(report).items()]
    return "What cuts change beside removing units:\n\n" + "\n".join(lines) if lines else ""


def _pinned(report: Report) -> str:
    lines = [f"- {reason}: {', '.join(groups)}" for reason, groups in tables.pinned(report).items()]
    return "Left as they were:\n\n" + "\n".join(lines) if lines else ""


def _connectivity(report: Report) -> str:
    limits = table_text(connectivity.limit_table(report))
    units = table_text(Table(("protected in", "units"), tuple(connectivity.protected(report).items())))
    return "\n\n".join(["## Connectivity", *filter(None, (limits, units))]) if limits or units else ""


def _recipe(report: Report) -> str:
    """The recipe, folded where the reader of Markdown can fold."""
    parts = [
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in rows)])
        for name, rows in recipe_rows(report.recipe)
    ]
    # A fence longer than any in the text: nothing in a recipe can end it.
    text = "\n\n".join(parts)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"<details><summary>The whole recipe</summary>\n\n{fence}\n{text}\n{fence}\n\n</details>" if parts else ""


def table_text(table: Table) -> str:
    """A table as Markdown; empty where it has no rows."""
    if not table.rows:
        return ""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    return "\n".join(_row(cells) for cells in (table.head, rule, *table.rows))


def _row(cells: Iterable[str]) -> str:
    # A bar inside a cell would end it.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").strip() for cell in cells) + " |"
