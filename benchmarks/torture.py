"""Mutated files, hard stops and bad values, thousands of each: nothing runs, nothing is lost, nothing is guessed.

Run ``python benchmarks/torture.py``, or ``make torture`` (about an hour on two cores). It has three parts, which may be
named: ``files`` reads mutated files of every format, ``stops`` kills runs and fills disks, ``values`` gives bad values
to methods, recipes and functions. Attempts are drawn from a seed and made in forked workers, in batches; results go to
``docs/results/torture.jsonl``, and a campaign that was stopped goes on where it was. ``--fresh`` makes anew what was
made of another tree, ``--again`` those batches that had faults; ``--table`` only writes ``docs/results/torture.md``;
``--show files:0:123`` makes one attempt and says what it is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.torture_files import Files  # noqa: E402
from benchmarks.torture_runner import FAULTS, Found, Part, row_of, run_batches  # noqa: E402
from benchmarks.torture_stops import Stops  # noqa: E402
from benchmarks.torture_values import Values  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "torture.jsonl"
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


def run(part: Part, seed: int, batches: Mapping[int, range], jobs: int, about: Mapping[str, Any], path: Path) -> None:
    """Make these batches, and write each down when it is done."""
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        part.prepare(Path(place))
        begun = time.perf_counter()
        for number, found in run_batches(part, seed, batches, Path(place), jobs):
            row = {"part": part.name, "seed": seed, "attempts": len(batches[number]), **row_of(number, found), **about}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            counts = Counter(one.outcome for one in found.values())
            told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
            print(f"{part.name} {number:4d}  {time.perf_counter() - begun:6.0f} s  {told}", flush=True)


# -- results ---------------------------------------------------------------------------------------------------------

Key = tuple[str, int, int]


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Batches so far, the last line of each."""
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(row["part"], row["seed"], row["batch"]): row for row in rows}


def provenance() -> dict[str, Any]:
    """The tree that is running."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = "+" if git("status", "--porcelain", "nervure") else ""
    return {"commit": git("rev-parse", "--short=9", "HEAD:nervure") + changed, "torch": torch.__version__}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    trees = Counter(row["commit"] for row in rows)
    total, faults = sum(row["attempts"] for row in rows), sum(len(row["faults"]) for row in rows)
    lines = [
        "# Hostile files, hard stops, bad values",
        "",
        "`make torture`: files of every format made wrong and read, runs killed and disks filled, bad values given to",
        "methods, recipes and functions. Each attempt is drawn from a seed and made in a process of bounded memory and",
        f"time, which notes any code that is run. {total:,} attempts, {faults:,} faults.",
        "",
        f"Batches by the sources that were run: {', '.join(f'`{tree}` {n}' for tree, n in trees.most_common())}.",
    ]
    for name, make in PARTS.items():
        mine = [row for row in rows if row["part"] == name]
        if mine:
            lines += ["", f"## {name.capitalize()}", "", *_legend(make()), "", *_counts(mine), "", *_faults(mine)]
    return "\n".join(lines) + "\n"


def _legend(part: Part) -> Iterator[str]:
    yield from (f"* **{outcome}**: {meaning}" for outcome, meaning in part.meanings.items())


def _counts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
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


def _faults(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
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


def main() -> None:
    """Run what is asked and not done yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; none named: all")
    parser.add_argument("--number", type=int, help="attempts of each part, instead of the whole campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="make batches that had faults anew")
    parser.add_argument("--fresh", action="store_true", help="make batches of another commit anew")
    parser.add_argument("--table", action="store_true", help="only write the table from the results so far")
    parser.add_argument("--show", help="make one attempt, PART:SEED:NUMBER, and say what it is")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.show:
        show(options.show)
        return
    about = provenance()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in [] if options.table else options.parts or PARTS:
        part, done = PARTS[name](), read(options.results)
        batches = attempts_of(part, options.number or part.number)
        for number, attempts in list(batches.items()):
            row = done.get((name, options.seed, number))
            stale = row and (row["attempts"] < len(attempts) or (options.fresh and row["commit"] != about["commit"]))
            if row and not stale and not (options.again and row["faults"]):
                del batches[number]
        if batches:
            run(part, options.seed, batches, options.jobs, about, options.results)
    options.results.with_suffix(".md").write_text(table(list(read(options.results).values())))


if __name__ == "__main__":
    main()
