"""Mutated files, hard stops and bad values, thousands of each: nothing runs, nothing is lost, nothing is guessed.

Run ``python benchmarks/torture.py``, or ``make torture`` (about an hour on two cores). It has three parts, which may be
named: ``files`` reads mutated files of every format, ``stops`` kills runs and fills disks, ``values`` gives bad values
to methods, recipes and functions. Attempts are drawn from a seed and made in forked workers, in batches; a line of
``docs/results/torture.jsonl`` is a batch. ``--show files:0:123`` makes one attempt and says what it is.
"""

import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from benchmarks.torture_files import Files
from benchmarks.torture_runner import FAULTS, Found, Part, row_of, run_batches
from benchmarks.torture_stops import Stops
from benchmarks.torture_values import Values

PARTS: Mapping[str, Callable[[], Part]] = {"files": Files, "stops": Stops, "values": Values}
SHOWN = 60
"""Faults of a part that the page lists; all are in the results."""


def attempts_of(part: Part, number: int) -> dict[int, range]:
    """The attempts of each batch."""
    return {at // part.size: range(at, min(at + part.size, number)) for at in range(0, number, part.size)}


def found_in(part: Part, seed: int, number: int, jobs: int = 1) -> dict[int, Found]:
    """What so many attempts come to."""
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        part.prepare(Path(place))
        batches = run_batches(part, seed, attempts_of(part, number), Path(place), jobs)
        return {at: found for _, batch in batches for at, found in batch.items()}


def cases(options: Namespace) -> Iterator[Case]:
    """Whole batches of each part."""
    for name, make in PARTS.items():
        number = options.number or make().number
        for batch in range(-(-number // make().size)):
            yield (name, options.seed, batch), Row


def run(due: list[Case], options: Namespace) -> Iterator[list[Row]]:
    """Make these batches, part by part, several at once."""
    for name, make in PARTS.items():
        part = make()
        batches = {key[2]: range(key[2] * part.size, (key[2] + 1) * part.size) for key, _ in due if key[0] == name}
        with tempfile.TemporaryDirectory(prefix="torture-") as place:
            if batches:
                part.prepare(Path(place))
            for number, found in run_batches(part, options.seed, batches, Path(place), options.jobs):
                row = {"part": name, "seed": options.seed, "attempts": len(batches[number])}
                yield [row | row_of(number, found)]


def tell(row: Row) -> str:
    """How often each outcome was met."""
    counts: Counter[str] = sum((Counter(outcomes) for outcomes in row["counts"].values()), Counter())
    return f"{row['part']} {row['batch']:4d}  {', '.join(f'{count} {name}' for name, count in counts.most_common())}"


# -- results ---------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """The results as Markdown."""
    total, faults = sum(row["attempts"] for row in rows), sum(len(row["faults"]) for row in rows)
    lines = [
        "# Hostile files, hard stops, bad values",
        "",
        "`make torture`: files of every format made wrong and read, runs killed and disks filled, bad values given to",
        "methods, recipes and functions. Each attempt is drawn from a seed and made in a process of bounded memory and",
        f"time, which notes any code that is run. {total:,} attempts, {faults:,} faults.",
    ]
    for name, make in PARTS.items():
        mine = [row for row in rows if row["part"] == name]
        if mine:
            lines += ["", f"## {name.capitalize()}", "", *_legend(make()), "", *_counts(mine), "", *_faults(mine)]
    return "\n".join(lines) + "\n"


def _legend(part: Part) -> Iterator[str]:
    yield from (f"* **{outcome}**: {meaning}" for outcome, meaning in part.meanings.items())


def _counts(rows: Rows) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for kind, outcomes in row["counts"].items():
            counts.setdefault(kind, Counter()).update(outcomes)
    whole: Counter[str] = sum(counts.values(), Counter())
    names = sorted(whole, key=lambda name: (name in FAULTS, -whole[name]))
    yield f"| | attempts | {' | '.join(names)} |"
    yield f"|---|{'---|' * (len(names) + 1)}"
    for kind, found in [*sorted(counts.items()), ("all", whole)]:
        cells = (f"{found[name]:,}" if found[name] else "" for name in names)
        yield f"| {kind} | {found.total():,} | {' | '.join(cells)} |"


def _faults(rows: Rows) -> Iterator[str]:
    """One fault of each kind, with how often it was met."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        for one in row["faults"]:
            told = f"`{row['part']}:{row['seed']}:{one['number']}` {one['why'][:160]}"
            alike.setdefault((one["kind"], one["outcome"], one["place"]), []).append(told)
    for (kind, outcome, place), found in sorted(alike.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        where = f", {place}" if place else ""
        yield f"* {len(found)} x {outcome}, {kind}{where}: {found[0]}"
    if len(alike) > SHOWN:
        yield f"* and {len(alike) - SHOWN} kinds more"


def show(address: str) -> None:
    """Make one attempt, in a process of its own, and say what it is."""
    name, seed, number = address.split(":")
    part = PARTS[name]()
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        part.prepare(Path(place))
        print(part.show(int(seed), int(number)))
        if isinstance(part, Files):
            print(f"written to {part.write(int(seed), int(number), Path())}")
        batch = dict(run_batches(part, int(seed), {0: range(int(number), int(number) + 1)}, Path(place), 1))
    print(batch[0][int(number)])


BENCHMARK = Benchmark(
    "torture",
    page,
    fields("part", "seed", "batch"),
    cases,
    run=run,
    goes_wrong=lambda row: bool(row["faults"]),
    tell=tell,
    show=show,
    arguments={
        "--number": {"type": int, "help": "attempts of each part, in whole batches, instead of the whole campaign"},
        "--seed": {"type": int, "default": 0},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
