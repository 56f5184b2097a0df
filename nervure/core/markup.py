"""Names as text: one function for each form of output, so that a name shows as it is written and does nothing.

Names of modules, files and networks come from whoever made a model or a file. They may hold markup, line breaks,
commands of a terminal, or characters that turn the reading direction round.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

INLINE = re.compile(r"[\\`*\[\]<|~$@]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What begins something inside a line of Markdown: code, emphasis, a link, HTML, a cell, a formula, an address."""
LEADING = re.compile(r"^(?:\d{1,9}(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|#{1,6}(?:\s|$)|>|[-=]+\s*$))")
"""Where a line of Markdown begins that would be an item of a list, a heading, a quote or a rule."""


def printable(text: str) -> str:
    r"""``text`` in one line of characters that print; others are shown by their number.

    >>> print(printable("conv\x1b[31m\n1"))
    conv\x1b[31m\n1
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def listing(lines: Iterable[str]) -> str:
    """Lines of text for a terminal or a log, each as :func:`printable`."""
    return "\n".join(map(printable, lines))


def escape_markdown(text: str) -> str:
    r"""Markdown that shows ``text``, anywhere: in a paragraph, a heading, an item of a list, a cell of a table.

    >>> print(*map(escape_markdown, ("layer1.0.conv_1", "<b>", "a|b", "- x")))
    layer1.0.conv_1 \<b> a\|b \- x
    """
    line = INLINE.sub(r"\\\g<0>", printable(text).strip())
    return LEADING.sub(r"\g<0>\\", line, count=1)


def code(text: str) -> str:
    """A span of code in Markdown that shows ``text``; empty for none."""
    line = printable(text)
    fence = "`" * (1 + _longest_run(line))
    # Markdown takes one space off each side where both have one.
    pad = " " if line[:1] in "` " or line[-1:] in "` " else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def code_block(text: str, language: str = "") -> str:
    """A block of code in Markdown that shows ``text``, whose line breaks are meant."""
    lines = listing(text.split("\n"))
    # A fence longer than any in the text: nothing in it can end it.
    fence = "`" * max(3, 1 + _longest_run(lines))
    return f"{fence}{language}\n{lines}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A table in Markdown that shows these cells; empty without rows. ``rule`` aligns columns (``"---:"``: right)."""
    lines = [[escape_markdown(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, list(rule) or ["---"] * len(head))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if len(lines) > 2 else ""


LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "'": "{'}",
    "`": r"\textasciigrave{}",
    # After the end of a row they would be a command's.
    "[": "{[}",
    "*": "{*}",
    "\u2013": "--{}",
    "\u2014": "---{}",
    "\u2026": r"\dots{}",
    "\0": "{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
}
"""What LaTeX takes for something else, or has no letter for, and how it is written."""
HARMLESS = re.compile(r"[-+]?[\d.,±()%\sx–-]*(\(n=\d+\))?")
"""What may begin with a sign in a sheet: numbers and what is told of them."""


def latex(text: str) -> str:
    r"""LaTeX that shows ``text`` anywhere in running text; letters beyond Latin need LuaLaTeX or XeLaTeX.

    >>> print(latex("conv_1 & 50 % ± 3"))
    conv\_1 \& 50 \% $\pm$ 3
    """
    # Two hyphens would be a dash, and the sign of a number is none.
    line = re.sub("-(?=-)", "-\0", printable(text).strip())
    signed = f"−{line[1:]}" if re.match(r"-\d", line) else line
    return "".join(LATEX.get(c, c) for c in signed)


def sheet_cell(text: str) -> str:
    """``text`` as a cell of a sheet: one that would be a formula has an apostrophe before it.

    >>> sheet_cell("=1+1"), sheet_cell("-0.5 ± 0.1")
    ("'=1+1", '-0.5 ± 0.1')
    """
    line = printable(text)
    return f"'{line}" if line.lstrip()[:1] in tuple("=+-@") and not HARMLESS.fullmatch(line) else line


def html(text: str) -> str:
    """HTML or SVG that shows ``text``, in an element or in a quoted attribute; line breaks stay."""
    return escape(listing(text.split("\n")))


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)
