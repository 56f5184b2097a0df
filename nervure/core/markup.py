"""Names as text: one function for each form of output, so that a name shows as it is written and does nothing.

Names of modules, files and networks come from whoever made a model or a file. They may hold markup, line breaks,
commands of a terminal, or characters that turn the reading direction round.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,8})(?![^.])")
"""A part of a dotted name that is a number."""
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


def fold_numbered(rows: Iterable[tuple[str, ...]], fewest: int = 3) -> list[tuple[str, ...]]:
    """Rows with a name first, of which those that differ in the first number of their names alone are told once.

    >>> fold_numbered([("layers.0.fc", "8 -> 4"), ("layers.1.fc", "8 -> 4"), ("layers.2.fc", "8 -> 4"), ("head", "")])
    [('layers.{0..2}.fc', '8 -> 4'), ('head', '')]

    Args:
        rows: each stands where the first of its kind did.
        fewest: how many rows alike are told once; fewer stand as they are.
    """
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        before, _, after = _around_number(row[0])
        alike.setdefault((before, after, *row[1:]), []).append(row)
    found: list[tuple[str, ...]] = []
    for (before, after, *rest), same in alike.items():
        numbers = {number for _, number, _ in (_around_number(row[0]) for row in same)}
        is_told_once = fewest <= len(same) == len(numbers)
        found += [(f"{before}{{{_as_ranges(sorted(map(int, numbers)))}}}{after}", *rest)] if is_told_once else same
    return found


def _around_number(name: str) -> tuple[str, str, str]:
    """What is before the first number between dots, the number, and what is behind it; a name without one is whole."""
    match = NUMBER.search(name)
    return (name[: match.start()], match[0], name[match.end() :]) if match else (name, "", "")


def _as_ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, runs of them as ``0..3``."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(f"{a}" if a == b else f"{a}..{b}" for a, b in ends)


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
