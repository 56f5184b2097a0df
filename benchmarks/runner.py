"""Runs benchmarks: cases by key, a line of results when one is done, a page of all lines.

A benchmark says which cases there are, what a case comes to, and how its page looks; what is here is the same for all.
A run that was stopped goes on where it was. Each line says which sources were run, with what, and on which processor:
sources that are in no commit are refused, or marked with a + (``--dirty``).
"""

import argparse
import fcntl
import json
import lzma
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.workers import run_forked
from nervure.errors import NervureWarning
from nervure.evaluation.timing import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS, RUNS = ROOT / "docs" / "results", ROOT / "runs"
SOURCES = ("nervure", "benchmarks")
LARGE = 64 << 10
"""Bytes from which lines of results are kept compressed."""
PATIENCE = 20
"""How many times its processor time a case may take by the clock: the machine may be busy."""

Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = Sequence[Row]
Key: TypeAlias = tuple[Any, ...]
Case: TypeAlias = tuple[Key, Callable[[], Row | list[Row]]]
Run: TypeAlias = Callable[[list[Case], argparse.Namespace], Iterable[list[Row] | None]]


def fields(*names: str) -> Callable[[Row], Key]:
    """The key of a row: its entries of these names, a list in one of them item by item."""

    def key(row: Row) -> Key:
        found: list[Any] = []
        for name in names:
            value = row.get(name)
            found += value if isinstance(value, list) else [value]
        return tuple(found)

    return key


_KEY = fields("key")


@dataclass(frozen=True)
class Benchmark:
    """What is particular to a benchmark.

    Attributes:
        name: of its files in ``docs/results``.
        page: all rows as Markdown.
        key: of a row. That of a case is the same, or the beginning that its rows share.
        cases: all cases, by key; words of the command line then choose among them.
        study: for what is no list of cases: measures what is not in the results, and adds it.
        run: rows of cases as they are done, where that is not one after the other.
        apart: a process for each case, whose time and memory are then its own.
        seconds: of processor time that a case apart may take.
        failed: the row of a case that was killed; without it the case is only told, and is due again.
        goes_wrong: whether ``--again`` runs the case of a row anew.
        tell: a row in a line, when it is done; empty: nothing.
        arguments: more of the command line; a name without dashes takes the place of the words.
        quick: there is ``--quick``, whose results go to a temporary folder.
        show: what ``--show CASE`` does.
        packages: whose versions matter beside torch's.
    """

    name: str
    page: Callable[[Rows], str]
    key: Callable[[Row], Key] = _KEY
    cases: Callable[[argparse.Namespace], Iterable[Case]] = lambda options: ()
    study: Callable[["Results", argparse.Namespace], None] | None = None
    run: Run | None = None
    apart: bool = False
    seconds: int | None = None
    failed: Callable[[Key, str], Row] | None = None
    goes_wrong: Callable[[Row], bool] = lambda row: False
    tell: Callable[[Row], str] = lambda row: json.dumps(row)[:240]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick: bool = False
    show: Callable[[str], None] | None = None
    packages: tuple[str, ...] = ()


def main(benchmark: Benchmark, words: Sequence[str] | None = None) -> None:
    """Run what is asked and not done yet, then write the page."""
    options = _parser(benchmark).parse_args(words)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NervureWarning)
    if benchmark.show and options.show:
        benchmark.show(options.show)
        return
    if benchmark.quick and options.quick:
        options.results = Path(tempfile.mkdtemp()) / options.results.name
    results, failed = Results(options.results, benchmark.key), 0
    if not options.table:
        failed = _measure(benchmark, results, options)
    results.publish(benchmark.page)
    if failed:
        sys.exit(f"{failed} cases failed; the same command tries them again.")


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    about = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", action="store_true", help="only write the page, from the results so far")
    add("--results", type=Path, default=RESULTS / f"{benchmark.name}.jsonl", help="lines; the page is beside them")
    add("--fresh", action="store_true", help="run anew what was run of other sources")
    add("--dirty", action="store_true", help="run sources that are in no commit, and mark the rows")
    if not benchmark.study:
        add("--again", action="store_true", help="run anew what went wrong")
        add("--limit", type=int, help="run so many cases at most")
        add("--jobs", type=int, default=1, help="cases at a time, each in a process of its own")
    if benchmark.seconds:
        add("--seconds", type=int, default=benchmark.seconds, help="of processor time that a case may take")
    if benchmark.quick:
        add("--quick", action="store_true", help="try it with little of everything, in a temporary folder")
    if benchmark.show:
        add("--show", metavar="CASE", help="run one case and show it")
    if all(name.startswith("-") for name in benchmark.arguments):
        add("names", nargs="*", help="run only what is called so, or begins so: networks, methods, seeds, ...")
    for name, how in benchmark.arguments.items():
        add(name, **how)
    return parser


# -- running ---------------------------------------------------------------------------------------------------------


def _measure(benchmark: Benchmark, results: "Results", options: argparse.Namespace) -> int:
    """Run what is due; how many cases failed."""
    results.about = provenance(benchmark.packages)
    if results.about["commit"].endswith("+") and not (options.dirty or getattr(options, "quick", False)):
        sys.exit(f"{' or '.join(SOURCES)} has changes that are in no commit: commit them, or say --dirty.")
    if benchmark.study:
        results.distrust(lambda row: options.fresh and is_stale(row, results.about))
        benchmark.study(results, options)
        return 0
    due = choose(list(dict(benchmark.cases(options)).items()), getattr(options, "names", []))
    due = _due(due, benchmark, results, options)[: options.limit]
    if benchmark.run:
        rows: Iterable[list[Row] | None] = benchmark.run(due, options)
    elif benchmark.apart or options.jobs > 1:
        rows = run_apart(due, options.jobs, getattr(options, "seconds", None), benchmark.failed)
    else:
        rows = (_listed(work()) for _, work in due)
    failed = 0
    for found in rows:
        failed += found is None
        for row in results.add(*(found or ())):
            if told := benchmark.tell(row):
                print(told, flush=True)
    return failed


def choose(cases: list[Case], words: Sequence[str]) -> list[Case]:
    """The cases that words name: each is, or begins, an entry of keys; of words for one entry any may hold."""
    entries = {(at, entry) for key, _ in cases for at, entry in enumerate(key)}
    called: dict[int, set[Any]] = defaultdict(set)
    for word in words:
        begun = {(at, entry) for at, entry in entries if isinstance(entry, str) and entry.startswith(word)}
        mine = {(at, entry) for at, entry in entries if str(entry) == word} or begun
        if not mine:
            sys.exit(f"No case is called {word!r}.")
        for at, entry in mine:
            called[at].add(entry)

    def is_called(key: Key) -> bool:
        return all(key[at] in named for at, named in called.items() if at < len(key))

    return [case for case in cases if is_called(case[0])]


def _due(cases: list[Case], benchmark: Benchmark, results: "Results", options: argparse.Namespace) -> list[Case]:
    done: dict[Key, list[Row]] = defaultdict(list)
    for key, row in results.by_key.items():
        for length in {len(case[0]) for case in cases}:
            done[key[:length]].append(row)

    def is_due(key: Key) -> bool:
        mine = done.get(key, [])
        is_old = options.fresh and all(is_stale(row, results.about) for row in mine)
        return not mine or is_old or (options.again and any(map(benchmark.goes_wrong, mine)))

    return [case for case in cases if is_due(case[0])]


def _listed(rows: Row | list[Row]) -> list[Row]:
    return rows if isinstance(rows, list) else [rows]


def run_apart(
    cases: Sequence[Case], jobs: int, seconds: int | None, failed: Callable[[Key, str], Row] | None = None
) -> Iterator[list[Row] | None]:
    """Rows as they come, None where a case failed: each in a forked process, which need not import the libraries."""
    works = dict(cases)

    def work(key: Key, _: int) -> list[Row] | str:
        if seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        try:
            return _listed(works[key]())
        except Exception:
            return traceback.format_exc()

    def lost(_: Key, __: int, code: int | None) -> str:
        late = f"over {PATIENCE * (seconds or 0)} s on the clock"
        return late if code is None else f"over {seconds} s" if code == -signal.SIGXCPU else f"ended with {code}"

    clock = PATIENCE * seconds if seconds else None
    for key, found in run_forked({key: [0] for key in works}, work, lost, jobs=jobs, seconds=clock):
        rows = found[0]
        if isinstance(rows, str) and not failed:
            print(f"{key}: {rows}", file=sys.stderr, flush=True)
            yield None
        else:
            yield [failed(key, rows)] if failed and isinstance(rows, str) else rows


# -- results ---------------------------------------------------------------------------------------------------------


class Results:
    """Lines of results, the last of each key; new ones are written at once.

    Args:
        path: of plain lines; beside it may be a compressed file of older ones.
        key: of a row.
    """

    def __init__(self, path: Path, key: Callable[[Row], Key]) -> None:
        self.path, self.key, self.about = path, key, Row()
        self.by_key = {key(row): row for row in read_rows(path)}
        self._known = dict(self.by_key)

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return list(self.by_key.values())

    def distrust(self, is_wrong: Callable[[Row], bool]) -> None:
        """Find these rows no more."""
        self._known = {key: row for key, row in self._known.items() if not is_wrong(row)}

    def find(self, **entries: Any) -> Row | None:
        """The first row with these entries."""
        return next((row for row in self._known.values() if all(row.get(k) == v for k, v in entries.items())), None)

    def add(self, *rows: Row) -> list[Row]:
        """Write rows, with where they come from."""
        found = [row | self.about for row in rows]
        if found:
            with _alone(self.path), self.path.open("ab") as file:
                file.truncate(len(_whole(self.path)))
                file.write("".join(json.dumps(row) + "\n" for row in found).encode())
        for row in found:
            self.by_key[self.key(row)] = self._known[self.key(row)] = row
        return found

    def publish(self, page: Callable[[Rows], str]) -> None:
        """Write the page, and pack lines that are many."""
        with _alone(self.path):
            self.by_key = {self.key(row): row for row in read_rows(self.path)}
            if self.path.exists():
                pack(self.path, self.rows)
        if not self.rows:
            print(f"there is nothing in {self.path} yet")
            return
        place = self.path.with_suffix(".md")
        place.write_text(f"{page(self.rows).rstrip()}\n\n{sources_of(self.rows)}\n", encoding="utf-8")
        print(f"wrote {place}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else writes results there: another part of a benchmark may run beside this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def pack(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, compressed where they are many or were so before."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    place = packed(path) if packed(path).exists() or len(text) > LARGE else path
    new = path.with_suffix(".new")
    new.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME) if place != path else text)
    new.replace(place)
    if place != path:
        path.unlink(missing_ok=True)


def packed(path: Path) -> Path:
    """Where lines are compressed."""
    return path.with_suffix(".jsonl.xz")


def read_rows(path: Path) -> list[Row]:
    """All lines, older ones first; a last one that was torn is left out."""
    old = lzma.decompress(packed(path).read_bytes()) if packed(path).exists() else b""
    return [json.loads(line) for line in (old + _whole(path)).splitlines()]


def _whole(path: Path) -> bytes:
    """The lines that end: the last one is torn where a run was stopped while it wrote."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


# -- where rows come from --------------------------------------------------------------------------------------------


def git(*words: str, given: str = "") -> str:
    """What git says; nothing where there is none."""
    with suppress(OSError):
        done = subprocess.run(["git", *words], cwd=ROOT, input=given, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""


def provenance(packages: Iterable[str] = ()) -> Row:
    """The sources that are running (the tree of the package, with + where it is changed), versions and processor."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    changed = "+" if git("status", "--porcelain", *SOURCES) else ""
    tree = git("rev-parse", "--short=9", "HEAD:nervure") or "unknown"
    return {"commit": tree + changed, "versions": versions, "processor": processor()}


def is_stale(row: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether a row is of other sources."""
    return bool(row.get("commit") != about["commit"])


@cache
def history() -> frozenset[str]:
    """Every commit, and the tree of the package in each."""
    commits = git("rev-list", "HEAD").split()
    found = git("cat-file", "--batch-check", given="".join(f"{commit}:nervure\n" for commit in commits))
    trees = [line.split()[0] for line in found.splitlines() if " tree " in line]
    return frozenset(name[:7] for name in (*commits, *trees))


def sources_of(rows: Rows) -> str:
    """Which sources the rows are of, and with what they were run: the last lines of every page."""
    counts, versions = Counter(row.get("commit") for row in rows), dict[str, dict[str, None]]()
    parts = [f"{_source(commit)} {number}" for commit, number in counts.most_common()]
    for row in rows:
        old = {"torch": row["torch"]} if isinstance(row.get("torch"), str) else {}
        for name, number in row.get("versions", old).items():
            versions.setdefault(name, {})[number] = None
    parts = [", ".join(parts), *(f"{name} {', '.join(numbers)}" for name, numbers in versions.items())]
    told = "; ".join([*parts, *dict.fromkeys(row["processor"] for row in rows if "processor" in row)])
    return f"Rows by the sources that were run (commit, or tree of `nervure`; + is changed): {told}."


def _source(commit: str | None) -> str:
    if not commit:
        return "not noted"
    is_known = not history() or commit.endswith("+") or commit[:7] in history()
    return f"`{commit}`{'' if is_known else ' (not in the history)'}"


# -- pages -----------------------------------------------------------------------------------------------------------


def spread(values: Iterable[float], scale: float = 100.0) -> str:
    """Mean and standard deviation, in percent where not said otherwise."""
    found = [scale * value for value in values]
    return f"{mean(found):.1f} ± {stdev(found):.1f}" if len(found) > 1 else f"{mean(found):.1f}"


def spearman(first: Sequence[float] | Tensor, second: Sequence[float] | Tensor) -> float:
    """The rank correlation, ties at their mean; 0 where one is the same for all."""
    both = torch.stack([_ranks(torch.as_tensor(values, dtype=torch.float64)) for values in (first, second)])
    return float(torch.corrcoef(both)[0, 1].nan_to_num())


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[place]


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
