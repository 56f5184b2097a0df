"""Mutated files: each format that nervure reads, made wrong and read by the call that users make."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, final

from benchmarks import torture_mutants as mutants
from benchmarks.torture_formats import FORMATS, TOLD, Format, lacks_only, mutators_of, seeds_of, told
from benchmarks.torture_runner import Found, bound, place_of, said
from benchmarks.torture_watch import Meter, Watch

SLACK = 64 << 20
"""Bytes that reading may take beside twice the file."""


class Mutant(NamedTuple):
    """A format, one of its good folders, the file in it that is wrong, how it was made, and what it holds."""

    format: Format
    seed: int
    file: str
    mutator: str
    content: bytes


@final
class Files:
    """The part of the campaign that reads mutated files."""

    name, number, size, seconds = "files", 100_000, 500, 10.0
    meanings: Mapping[str, str] = {
        "told": "an error of nervure's own",
        "equal": "what the good file holds, for all that",
        "other value": "another value, of a file without a checksum, with one made anew, or that is another good file",
    }

    def __init__(self, formats: tuple[str, ...] = tuple(FORMATS)) -> None:
        self.formats = formats
        self.seeds: dict[str, list[dict[str, bytes]]] = {}
        self.values: dict[str, list[Any]] = {}
        self.watch: Watch | None = None
        self.meter = Meter()

    def prepare(self, folder: Path) -> None:
        """Make good files of each format and read them once: what they hold, and all modules that reading needs."""
        for name in self.formats:
            with warnings.catch_warnings(action="ignore"):
                self.seeds[name] = seeds_of(name, folder / "seeds")
            self.values[name] = [_good(FORMATS[name], _written(files, folder / "good")) for files in self.seeds[name]]

    def kind(self, seed: int, number: int) -> str:
        """The format."""
        return self._drawn(seed, number)[1]

    def _drawn(self, seed: int, number: int) -> tuple[Random, str]:
        draw = Random(f"files {seed} {number}")
        return draw, draw.choices(self.formats, [FORMATS[name].share for name in self.formats])[0]

    def mutant(self, seed: int, number: int) -> Mutant:
        """The file of an attempt."""
        draw, name = self._drawn(seed, number)
        seeds = self.seeds[name]
        at = draw.randrange(len(seeds))
        file = draw.choice(list(seeds[at]))
        mutator = draw.choice([*mutators_of(name), None])
        if mutator is None:
            other = draw.choice([one[f] for one in seeds for f in one])
            return Mutant(FORMATS[name], at, file, "splice", mutants.splice(draw, seeds[at][file], other))
        try:
            content = mutator(draw, seeds[at][file])
        except (ValueError, LookupError, TypeError, AttributeError):
            # Of another kind than this mutator is for.
            content = draw.choice(list(mutators_of("idx")))(draw, seeds[at][file])
        return Mutant(FORMATS[name], at, file, getattr(mutator, "__name__", ""), content)

    def attempt(self, seed: int, number: int, folder: Path) -> Found:
        """Read one mutant."""
        if self.watch is None:
            self.watch = Watch()
            bound()
        found = self.mutant(seed, number)
        kind = found.format.name
        place = _written(self.seeds[kind][found.seed] | {found.file: found.content}, folder / "mutant")
        self.meter.start()
        with self.watch.watching(folder) as seen:
            outcome = self._read(found, kind, place)
        taken, allowed = self.meter.taken(), 2 * len(found.content) + SLACK
        if seen:
            outcome = Found(kind, "code run", "", "; ".join(seen[:3]))
        elif taken > allowed and not outcome.is_fault:
            outcome = Found(kind, "memory", "", f"{taken >> 20} MiB for a file of {len(found.content)} bytes")
        return replace(outcome, why=f"{found.mutator} of {found.file}: {outcome.why}") if outcome.is_fault else outcome

    def _read(self, found: Mutant, kind: str, place: Path) -> Found:
        try:
            with warnings.catch_warnings(action="ignore"):
                read = found.format.read(place)
        except TOLD:
            return Found(kind, "told")
        except MemoryError as error:
            return Found(kind, "memory", place_of(error), said(error))
        except Exception as error:
            return Found(kind, "foreign exception", place_of(error), said(error))
        try:
            value, good = told(read), self.values[kind][found.seed]
            if value == good or (found.format.parts and lacks_only(value, good)):
                return Found(kind, "equal")
            change = difference_of(value, good)
        except RecursionError:
            # Deeper than anything that the library wrote.
            change = "nested deeply"
        # The beginning of one good file and the end of another can be the whole of the other.
        is_another = any(found.content in seed.values() for seed in self.seeds[kind])
        is_sealed = found.format.is_sealed and found.mutator not in mutants.RESEALING and not is_another
        return Found(kind, "silent change", "", change) if is_sealed else Found(kind, "other value")

    def show(self, seed: int, number: int) -> str:
        """How the mutant was made."""
        found = self.mutant(seed, number)
        return f"{found.mutator} of {found.file}, good file {found.seed} of {found.format.name}"

    def write(self, seed: int, number: int, folder: Path) -> Path:
        """Write the mutant there, and return its path."""
        found = self.mutant(seed, number)
        path = folder / f"files-{seed}-{number}-{Path(found.file).name}"
        path.write_bytes(found.content)
        return path


def _good(format: Format, folder: Path) -> Any:
    """What a good folder holds; some must not be read."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return told(format.read(folder))
    except TOLD as error:
        if not format.may_be_refused:
            raise
        return f"refused: {error}"


def _written(files: Mapping[str, bytes], folder: Path) -> Path:
    """A folder with these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def difference_of(value: Any, good: Any, where: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(value, dict) and isinstance(good, dict):
        for key in [*good, *value]:
            if value.get(key) != good.get(key):
                return difference_of(value.get(key), good.get(key), f"{where}.{key}")
    if isinstance(value, list) and isinstance(good, list) and len(value) == len(good):
        for number, pair in enumerate(zip(value, good, strict=True)):
            if pair[0] != pair[1]:
                return difference_of(*pair, f"{where}[{number}]")
    return f"{where}: {value!s:.60} instead of {good!s:.60}"
