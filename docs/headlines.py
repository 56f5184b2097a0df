"""``python -m docs.headlines`` writes the tables of the README anew from the pages in ``docs/results``."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SOURCES: Mapping[str, tuple[str, ...]] = {
    "transformers": ("transformers",),
    "timm": ("timm",),
    "torchvision": ("torchvision",),
    "ultralytics": ("ultralytics",),
    "segmentation, detection, diffusion, speech, vision-language, experts": (
        "segmentation",
        "detectors",
        "diffusion",
        "speech",
        "vision-language",
        "experts",
    ),
    "written for this, each awkward in its own way": ("hand", "family"),
}
HELD_OUT = ("Random", "Magnitude", "Taylor", "Taylor, isomorphic", "Magnitude, sizes of SNACS", "SNACS")
TEXTS = {"faq": "a FAQ", "manual": "a manual", "bible": "the Bible"}

Row = Mapping[str, str]


def rows_of(page: str, heading: str) -> list[Row]:
    """The first table below a heading, as a mapping a row; a column without a name is called by its number.

    Raises:
        LookupError: no such heading, or no table below it.
    """
    text = "\n" + (RESULTS / page).read_text(encoding="utf-8")
    _, found, below = text.partition(f"\n{heading}\n")
    lines = [line for line in re.split(r"\n#+ ", below)[0].splitlines() if line.startswith("|")]
    if not found or len(lines) < 3:
        raise LookupError(f"docs/results/{page} has no table below {heading!r}.")
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    named = [name or f"column {number}" for number, name in enumerate(names, 1)]
    return [dict(zip(named, row, strict=True)) for row in rows]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, whose first column is text."""
    # Figures that belong together stay on a line, however narrow their column is.
    whole = [[name, *(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells)] for name, *cells in rows]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *whole]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def any_model() -> str:
    """How many models of each library are cut right."""
    rows = {row["source"]: row for row in rows_of("zoo.md", "# The wide zoo")}
    if {*rows} != {name for names in SOURCES.values() for name in names}:
        raise LookupError(f"docs/results/zoo.md has other sources now: {', '.join(rows)}.")
    found = [[told, *_sums([rows[name] for name in names])] for told, names in SOURCES.items()]
    return table(["models of", "right", "groups that can be cut"], [*found, ["**all**", *_sums([*rows.values()])]])


def without_training() -> str:
    """Accuracy of networks that took no part in choosing, clean and shifted."""
    clean, shifted = (rows_of("held_out.md", f"## {name}, without training") for name in ("Clean", "Shifted"))
    pairs = [(c, s) for c, s in zip(clean, shifted, strict=True) if c["network"].startswith("*mean")]
    cells = [[f"{float(c['MACs']):.0%}", *(f"{c[name]} / {s[name]}" for name in HELD_OUT)] for c, s in pairs]
    return table(["multiply-accumulates that stay", *HELD_OUT], cells)


def with_refit() -> str:
    """What a refit gives back of what a cut takes, on networks that were trained to their end."""
    rows = rows_of("refit.md", "## The best criterion, chosen by pictures held out")
    found = [row for row in rows if "to its end" in row["column 1"]]
    named = [
        row["column 1"].replace(" to its end", "").replace(" of the multiply-accumulates stay", "") for row in found
    ]
    cells = [[row["dense"], row["plain, untrained"], row["refitted, untrained"]] for row in found]
    return table(
        ["multiply-accumulates that stay", "dense", "as cut", "refitted"],
        [[name, *row] for name, row in zip(named, cells, strict=True)],
    )


def language() -> str:
    """Perplexity of a language model in multiples of the dense one."""
    rows = rows_of("real_models.md", "### Language")
    found = [
        [row["column 1"], row["calibrated on"], row["parameters"], *(_fell(row, text) for text in TEXTS)]
        for row in rows
    ]
    return table(["what left", "windows it was fitted on", "parameters that stay", *TEXTS.values()], found)


TABLES: Mapping[str, Callable[[], str]] = {
    "any_model": any_model,
    "without_training": without_training,
    "with_refit": with_refit,
    "language": language,
}


def with_tables(text: str) -> str:
    """The README with its tables as the results are now.

    Raises:
        LookupError: a table is marked that is not known, or a known one is not there.
    """
    if sorted(found[1] for found in MARKED.findall(text)) != sorted(TABLES):
        raise LookupError(f"the README marks each of these tables once: {', '.join(TABLES)}.")
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


def _sums(rows: list[Row]) -> list[str]:
    """How many cases are right, and how many groups can be cut, of how many."""
    groups = [row["groups prunable"].split(" of ") for row in rows]
    return [
        f"{sum(int(row['right']) for row in rows)} of {sum(int(row['of']) for row in rows)}",
        f"{sum(int(some) for some, _ in groups):,} of {sum(int(all_) for _, all_ in groups):,}",
    ]


def _fell(row: Row, text: str) -> str:
    return f"{row[f'{text}: plain']} → {row[f'{text}: refit']}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
