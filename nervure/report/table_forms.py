"""A table in each of its forms: CSV, Markdown, LaTeX, HTML; what is foreign in its cells is shown and does nothing."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from nervure.core import markup
from nervure.core.check import require_choice
from nervure.report.tables import MISSING, Table

if TYPE_CHECKING:
    from markupsafe import Markup

FORMS: Mapping[str, str] = {"csv": "csv", "markdown": "md", "latex": "tex", "html": "html"}
"""The forms of a table, and what the name of a file ends with."""


def format_table(table: Table, form: str) -> str:
    r"""A table as text that ends with a newline; empty where it has no rows.

    Args:
        table: its cells are text; every form shows the same.
        form: ``"csv"`` (a dash that stands for nothing is empty), ``"markdown"``, ``"latex"`` (needs the package
            booktabs) or ``"html"``.

    Raises:
        ArgumentError: there is no such form.

    >>> print(format_table(Table(("method", "points"), (("A_1", "+1.0 ± 0.5"),)), "latex"), end="")
    % \usepackage{booktabs}
    \begin{tabular}{lr}
    \toprule
    method & points \\
    \midrule
    A\_1 & +1.0 $\pm$ 0.5 \\
    \bottomrule
    \end{tabular}
    """
    write = _WRITERS[require_choice(form, _WRITERS, "form")]
    return write(table) if table.rows else ""


def table_text(cells: Table) -> str:
    """A table as Markdown, numbers to the right; empty where it has no rows."""
    return markup.table(cells.head, cells.rows, ["---", *["---:"] * (len(cells.head) - 1)])


def html_table(
    table: Table, kinds: Mapping[int, str] = MappingProxyType({}), words: Callable[[str], str] = markup.html
) -> "Markup":
    """A table as HTML for a page; ``kinds`` are classes of rows, by their number, ``words`` makes HTML of heads."""
    from markupsafe import Markup

    head = "".join(f'<th scope="col">{words(cell)}</th>' for cell in table.head)
    rows = "\n".join(_html_row(row, kinds.get(number, "")) for number, row in enumerate(table.rows))
    return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n")


def _html_row(row: Sequence[str], kind: str) -> str:
    opening = f'<tr class="{markup.html(kind)}">' if kind else "<tr>"
    return opening + "".join(f"<td>{markup.html(cell)}</td>" for cell in row) + "</tr>"


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (table.head, *table.rows):
        writer.writerow(["" if cell == MISSING else markup.sheet_cell(cell) for cell in row])
    return text.getvalue()


def _markdown(table: Table) -> str:
    return table_text(table) + "\n"


def _latex(table: Table) -> str:
    head, *rows = (" & ".join(map(markup.latex, row)) + r" \\" for row in (table.head, *table.rows))
    columns = "l" + "r" * (len(table.head) - 1)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _html(table: Table) -> str:
    return str(html_table(table))


_WRITERS = {"csv": _csv, "markdown": _markdown, "latex": _latex, "html": _html}
