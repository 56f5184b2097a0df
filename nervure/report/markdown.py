"""A report as Markdown, for a pull request or a notebook."""

from collections.abc import Iterator

from nervure.core.markup import code, code_block, escape_markdown
from nervure.report import amount_search, tables
from nervure.report import connectivity_charts as connectivity
from nervure.report import shift_section as shift
from nervure.report.run_report import Report
from nervure.report.table_forms import table_text
from nervure.report.tables import Table, recipe_rows

__all__ = ["table_text", "to_markdown"]


def to_markdown(report: Report) -> str:
    """The whole report as Markdown text, tables included, ending with a newline."""
    return "\n\n".join(part for part in _parts(report) if part) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {escape_markdown(report.title)}"
    yield f"**{escape_markdown(report.headline)}**"
    yield from map(escape_markdown, report.notes)
    shares = (f"{name} {100 * share:.0f} %" for name, share in tables.stays(report).items())
    yield f"What stays: {escape_markdown(', '.join(shares))}"
    yield f"## Comparison\n\n{table_text(tables.comparison(report))}"
    yield _explain(report)
    yield _speed(report)
    yield _under_shift(report)
    yield f"## Plan\n\n{code(report.method)}\n\n{table_text(tables.budget(report))}"
    yield table_text(tables.widths(report))
    yield _list_notes(report)
    yield table_text(tables.edits(report))
    yield _list_pinned(report)
    yield _search(report)
    yield _refit(report)
    yield _connectivity(report)
    yield f"## Verification\n\n{table_text(tables.verification(report))}"
    if report.provenance.get("again"):
        yield f"## Again\n\n{code_block(str(report.provenance['again']), 'sh')}"
    yield f"## Provenance\n\n{table_text(tables.provenance(report))}"
    yield _recipe(report)


def _speed(report: Report) -> str:
    speed = table_text(tables.speed(report))
    timed = any(row.latency for row in report.rows.values())
    return "\n\n".join(
        filter(None, (speed and f"## Speed by engine\n\n{speed}", tables.speed_note(report) if timed else ""))
    )


def _under_shift(report: Report) -> str:
    shifted = table_text(shift.table(report))
    return f"## Under shift\n\n{shifted}\n\n{escape_markdown(shift.caption(report))}" if shifted else ""


def _explain(report: Report) -> str:
    known = [name for name in report.rows if name in tables.EXPLAINED]
    return "\n".join(f"- *{name}*: {tables.EXPLAINED[name]}" for name in known)


def _list_notes(report: Report) -> str:
    lines = [
        f"- {escape_markdown(group)}: {escape_markdown('; '.join(notes))}"
        for group, notes in tables.noted_groups(report).items()
    ]
    return "What cuts change beside removing units:\n\n" + "\n".join(lines) if lines else ""


def _list_pinned(report: Report) -> str:
    lines = [
        f"- {escape_markdown(reason)}: {escape_markdown(', '.join(groups))}"
        for reason, groups in tables.pinned_groups(report).items()
    ]
    return "Left as they were:\n\n" + "\n".join(lines) if lines else ""


def _search(report: Report) -> str:
    found = amount_search.read_search(report)
    if found is None:
        return ""
    told = escape_markdown(amount_search.verdict(found))
    return f"## How small\n\n{told}\n\n{table_text(amount_search.search_table(found))}"


def _refit(report: Report) -> str:
    fits = table_text(tables.refit(report))
    return f"## Refit\n\n{tables.refit_note(report)}\n\n{fits}" if fits else ""


def _connectivity(report: Report) -> str:
    limits = table_text(connectivity.limit_table(report))
    units = table_text(Table(("protected in", "units"), tuple(connectivity.protected_units(report).items())))
    return "\n\n".join(["## Connectivity", *filter(None, (limits, units))]) if limits or units else ""


def _recipe(report: Report) -> str:
    """The recipe, folded where the reader of Markdown can fold."""
    parts = [
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in rows)])
        for name, rows in recipe_rows(report.recipe)
    ]
    whole = code_block("\n\n".join(parts))
    return f"<details><summary>The whole recipe</summary>\n\n{whole}\n\n</details>" if parts else ""
