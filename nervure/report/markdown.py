"""A report as Markdown, for a pull request or a notebook."""

from collections.abc import Iterable, Iterator

from nervure.report import shift, tables
from nervure.report.tables import Table
from nervure.report.values import Report


def to_markdown(report: Report) -> str:
    """The whole report as Markdown text, tables included, ending with a newline."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {report.title}"
    yield f"**{report.headline}**"
    yield from report.notes
    yield f"## Comparison\n\n{table_text(tables.comparison(report))}"
    yield _explained(report)
    yield _speed(report)
    yield _under_shift(report)
    yield f"## Plan\n\n`{report.method}`\n\n{table_text(tables.budget(report))}"
    yield table_text(_widths(report))
    yield _pinned(report)
    yield f"## Verification\n\n{table_text(tables.verification(report))}"
    yield f"## Provenance\n\n{table_text(tables.provenance(report))}"


def _speed(report: Report) -> str:
    table = table_text(tables.speed(report))
    return f"## Speed by engine\n\n{table}\n\n{tables.SPEED}" if table else ""


def _under_shift(report: Report) -> str:
    table = table_text(shift.table(report))
    return f"## Under shift\n\n{table}\n\n{shift.caption(report)}" if table else ""


def _explained(report: Report) -> str:
    known = [name for name in report.rows if name in tables.EXPLAINED]
    return "\n".join(f"- *{name}*: {tables.EXPLAINED[name]}" for name in known)


def _widths(report: Report) -> Table:
    rows = tuple((w.group, str(w.before), str(w.after)) for w in tables.changed(report))
    return Table(("group", "before", "after"), rows)


def _pinned(report: Report) -> str:
    lines = [f"- {reason}: {', '.join(groups)}" for reason, groups in tables.pinned(report).items()]
    return "Left as they were:\n\n" + "\n".join(lines) if lines else ""


def table_text(table: Table) -> str:
    """A table as Markdown; empty where it has no rows."""
    if not table.rows:
        return ""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    return "\n".join(_row(cells) for cells in (table.head, rule, *table.rows))


def _row(cells: Iterable[str]) -> str:
    # A bar inside a cell would end it.
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").strip() for cell in cells) + " |"
