"""The page of ``refit.py``: accuracies clean and shifted, paired differences, where a refit is worth nothing, costs."""

from itertools import product
from statistics import fmean
from typing import Any, TypeAlias

from benchmarks.runner import Rows

Cell: TypeAlias = tuple[str, str, float]

ARMS, EPOCHS = {"plain": "plain", "refit": "refitted"}, (0, 1, 3)
NOTHING = 0.3
"""Points, below which a refit is said to be worth nothing."""
NONE = "–"


def page(records: Rows) -> str:
    """The results as Markdown."""
    records, old = ([r for r in records if len(r["key"]) == length] for length in (6, 5))
    cells = list(dict.fromkeys((r["key"][0], r["key"][1], r["key"][2]) for r in records))
    text = [
        "# Refit: plain beside refitted",
        "",
        "`python benchmarks/refit.py`; one thread. Accuracy on test data in percent, *clean / shifted* (the mean over",
        "Gaussian noise, defocus, fog and contrast at severity 3, on 500 pictures), means over seeds. Refitted on",
        "1,024 training pictures without labels, a quarter of them to choose by. Networks saw 9,000 at 16 x 16",
        'for four epochs (the ViT eight); those "to its end" saw all of Fashion-MNIST at 28 x 28, one seed',
        "(`benchmarks/trained.py`).",
        "",
        "## The best criterion, chosen by pictures held out",
        "",
        "Clean accuracy of each arm under the criterion that does best for it, of those that were run.",
        "",
        *summary(records, cells),
        "",
        "## Where a refit is worth nothing",
        "",
        f"Refitted less plain below {NOTHING} points on average over seeds, or better in no more than half of them.",
        "",
        *nothing(records, cells, "clean"),
        *nothing(records, cells, "shifted"),
        "",
        "## What it takes",
        "",
        "Processor seconds and the most memory beyond what was held before, on a machine that did other things. A",
        "pass is one of the dense and one of the smaller network over the 1,024 pictures; an epoch is of the smaller",
        "network.",
        "",
        *costs(records, cells),
    ]
    for cell in cells:
        of = [r["dense"] for r in records if is_of(r, cell) and "dense" in r]
        seeds = len({r["key"][4] for r in records if is_of(r, cell)})
        text += ["", f"## {called(cell)}", ""]
        if of:
            text += [f"Dense {entry(of)}; seeds: {seeds}.", ""]
        text += [*table(records, cell), "", *differences(records, cell)]
    known = {tuple(r["key"][:4]) for r in records}
    if old := [r for r in old if tuple(r["key"][:4]) not in known]:
        text += ["", "## Not measured so yet: one seed, clean, one rate for both arms", "", *earlier(old)]
    return "\n".join(text) + "\n"


# -- rows ------------------------------------------------------------------------------------------------------------


def is_of(row: dict[str, Any], cell: Cell) -> bool:
    """Whether a row is of a cell."""
    return tuple(row["key"][:3]) == cell


def select(records: Rows, cell: Cell, name: str, epochs: int) -> Rows:
    """The rows of one method in one cell, seed by seed."""
    return [r for r in records if is_of(r, cell) and r["key"][3] == name and r["key"][5] == epochs]


def names_in(records: Rows, cell: Cell) -> list[str]:
    """Methods that were run, in order."""
    return list(dict.fromkeys(r["key"][3] for r in records if is_of(r, cell)))


def epochs_in(records: Rows, cell: Cell) -> list[int]:
    """For how long networks were trained after pruning."""
    return sorted({r["key"][5] for r in records if is_of(r, cell)})


def gains(rows: Rows, kind: str) -> list[float]:
    """Refitted less plain, seed by seed."""
    return [r["refit"][kind] - r["plain"][kind] for r in rows]


# -- words -----------------------------------------------------------------------------------------------------------


def called(cell: Cell) -> str:
    """The cell in words."""
    what = {"filters": "of the multiply-accumulates stay", "masks": "of the weights stay"}.get(cell[1])
    return f"{cell[0]}, " + (f"{cell[2]:.0%} {what}" if what else f"{int(cell[2])} blocks dropped")


def counted(epochs: int) -> str:
    """Epochs in words."""
    return {0: "untrained", 1: "1 epoch"}.get(epochs, f"{epochs} epochs")


def entry(found: Rows) -> str:
    """Clean and shifted accuracy, means."""
    return " / ".join(f"{fmean(f[kind] for f in found):.1f}" for kind in ("clean", "shifted")) if found else NONE


def paired(rows: Rows, kind: str) -> str:
    """The mean difference, and in how many seeds the refitted one is better."""
    found = gains(rows, kind)
    return f"{fmean(found):+.1f} ({sum(value > 0 for value in found)} of {len(found)})"


def grid(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A table."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (heads, rule, *lines)]


# -- tables ----------------------------------------------------------------------------------------------------------


def table(records: Rows, cell: Cell) -> list[str]:
    """Accuracies, method by method."""
    later = [epochs for epochs in epochs_in(records, cell) if epochs]
    columns = [(arm, 0) for arm in ("plain", "norms", "refit")] + list(product(ARMS, later))
    columns = columns[:3] + [(arm, epochs) for epochs in later for arm in ARMS]
    words = {**ARMS, "norms": "norms remeasured"}
    heads = ["", *(f"{words[arm]}, {counted(e)}" if e else words[arm] for arm, e in columns)]
    return grid(
        heads,
        [
            [name, *(entry([r[arm] for r in select(records, cell, name, e)]) for arm, e in columns)]
            for name in names_in(records, cell)
        ],
    )


def differences(records: Rows, cell: Cell) -> list[str]:
    """Refitted less plain, method by method."""
    epochs, lines = epochs_in(records, cell), []
    for name in names_in(records, cell):
        rows = [select(records, cell, name, e) for e in epochs]
        lines.append([name, *(f"{paired(r, 'clean')} / {paired(r, 'shifted')}" if r else NONE for r in rows)])
    return grid(["refitted less plain", *map(counted, epochs)], lines)


def summary(records: Rows, cells: list[Cell]) -> list[str]:
    """A line for each cell: the best method of each arm after each training."""
    lines = []
    for cell in cells:
        of = [r["dense"]["clean"] for r in records if is_of(r, cell) and "dense" in r]
        found = [best(records, cell, arm, epochs) for epochs in EPOCHS for arm in ARMS]
        lines.append([called(cell), f"{fmean(of):.1f}" if of else NONE, *found])
    return grid(["", "dense", *(f"{word}, {counted(e)}" for e in EPOCHS for word in ARMS.values())], lines)


def best(records: Rows, cell: Cell, arm: str, epochs: int) -> str:
    """The method that does best on pictures held out, and its accuracy on test data."""
    found = {name: select(records, cell, name, epochs) for name in names_in(records, cell)}
    held = {name: fmean(r[arm]["held"] for r in rows) for name, rows in found.items() if rows}
    if not held:
        return NONE
    name = max(held, key=lambda one: held[one])
    return f"{fmean(r[arm]['clean'] for r in found[name]):.1f} ({name})"


def is_little(found: list[float]) -> bool:
    """Whether differences are small on average, or none in half of the seeds."""
    return fmean(found) < NOTHING or sum(value > 0 for value in found) * 2 <= len(found)


def nothing(records: Rows, cells: list[Cell], kind: str) -> list[str]:
    """What is won by less than a little, as a list."""
    lines = []
    for cell, epochs in product(cells, EPOCHS):
        tried = {name: select(records, cell, name, epochs) for name in names_in(records, cell)}
        tried = {name: rows for name, rows in tried.items() if rows}
        lost = [f"{name} {paired(r, kind)}" for name, r in tried.items() if is_little(gains(r, kind))]
        if lost:
            lines.append(f"* {kind}, {called(cell)}, {counted(epochs)}: {', '.join(lost)}")
    return lines or [f"* {kind}: nowhere among the cells here"]


def earlier(records: Rows) -> list[str]:
    """Rows from before there were seeds, shifts and rates."""
    columns = ("dense", "plain", "norms", "refit", "plain, trained", "refit, trained")
    lines = []
    for r in records:
        network, edit, keep, name, _ = r["key"]
        lines.append([f"{called((network, edit, keep))}: {name}", *(f"{r[column]:.1f}" for column in columns)])
    return grid(["", "dense", "plain", "norms remeasured", "refitted", "plain, 1 epoch", "refitted, 1 epoch"], lines)


def costs(records: Rows, cells: list[Cell]) -> list[str]:
    """What a refit takes, beside forward passes and epochs."""
    lines = []
    for cell in cells:
        mine = [r for r in records if is_of(r, cell)]
        first, later = [r for r in mine if "cost" in r], [r["epoch"] for r in mine if "epoch" in r]
        if not first or not later:
            continue
        took, epoch = fmean(r["cost"]["seconds"] for r in first), fmean(e["seconds"] for e in later)
        both = fmean(sum(f["seconds"] for f in r["forward"].values()) for r in first)
        held, most = max(r["cost"]["MiB"] for r in first), max(e["MiB"] for e in later)
        numbers = [f"{took:.1f}", f"{both:.2f}", f"{took / both:.0f}", f"{epoch:.1f}", f"{took / epoch:.1f}"]
        lines.append([called(cell), *numbers, f"{held:,.0f}", f"{most:,.0f}"])
    heads = ["refit, s", "a pass, s", "refit in passes", "an epoch, s", "refit in epochs", "refit, MiB", "epoch, MiB"]
    return grid(["", *heads], lines)
