"""Attempts by number in forked workers: bounded memory, bounded time, and a record of what only foreign code would do.

A part of the campaign draws each attempt from a seed and a number, so that any of them can be made again. A worker
makes many; one that crashes, hangs or is killed costs one attempt, and another worker goes on behind it.
"""

import contextlib
import faulthandler
import os
import resource
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.workers import run_forked

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nervure"
SPACE = 2 << 30
"""Bytes of address space that a worker may take beside what it begins with."""
PATIENCE = 12
"""How many times its limit of processor time an attempt may take by the clock: the machine may be busy."""
FAULTS = frozenset(
    {
        "silent change", "silent acceptance", "foreign exception", "hang", "killed", "memory", "code run",
        "not resumed", "other result", "litter",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one attempt.

    Attributes:
        kind: what was tried: a format, a command, a method, a function.
        outcome: in a word or two.
        place: where in the package an exception came from, as ``file:line``; empty where none did.
        why: what was said, or seen.
    """

    kind: str
    outcome: str
    place: str = ""
    why: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether it must not happen."""
        return self.outcome in FAULTS


class Part(Protocol):
    """A part of the campaign.

    Attributes:
        name: as on the command line.
        number: of attempts in the whole campaign.
        size: of a batch.
        seconds: of processor time that one attempt may take.
        meanings: what each outcome says, for the table.
    """

    name: str
    number: int
    size: int
    seconds: float
    meanings: Mapping[str, str]

    def prepare(self, folder: Path) -> None:
        """Make what all attempts share, and import all they need, before workers are forked."""

    def kind(self, seed: int, number: int) -> str:
        """What this attempt tries."""

    def attempt(self, seed: int, number: int, folder: Path) -> Found:
        """Make one attempt; files go to ``folder``."""

    def show(self, seed: int, number: int) -> str:
        """What this attempt does, in words."""


class HangError(BaseException):
    """An attempt took its whole time; the traceback says where."""


# -- in the worker ---------------------------------------------------------------------------------------------------


def place_of(error: BaseException) -> str:
    """The last place in the package that an exception came through, as ``file:line``."""
    inside = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    return f"{Path(inside[-1].filename).relative_to(ROOT)}:{inside[-1].lineno}" if inside else ""


def said(error: BaseException) -> str:
    """The type and the first words of an exception."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].encode(errors="replace").decode()
    except Exception:
        return type(error).__name__


def bound(space: int = SPACE) -> None:
    """Let this process take so much more address space, and write no core."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + space, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`HangError` in the block once it has taken so much processor time."""
    before = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _hang(*_: object) -> None:
    raise HangError


def attempted(part: Part, seed: int, number: int, folder: Path) -> Found:
    """One attempt within its time; whatever escapes the part itself is told as well."""
    kind = part.kind(seed, number)
    try:
        with limited(part.seconds):
            return part.attempt(seed, number, folder)
    except HangError as error:
        return Found(kind, "hang", place_of(error), f"{part.show(seed, number)}: more than {part.seconds:g} s")
    except MemoryError as error:
        return Found(kind, "memory", place_of(error), f"{part.show(seed, number)}: {said(error)}")
    except Exception as error:
        return Found(kind, "foreign exception", place_of(error), f"{part.show(seed, number)}: {said(error)}")


@cache
def _silence() -> None:
    """Whatever an attempt prints is for nobody; once in a worker."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    faulthandler.disable()
    torch.set_num_threads(1)


# -- outside ---------------------------------------------------------------------------------------------------------


def run_batches(
    part: Part, seed: int, batches: Mapping[int, Sequence[int]], folder: Path, jobs: int
) -> Iterator[tuple[int, dict[int, Found]]]:
    """Make all attempts of these batches, several batches at once; each is yielded when it is done."""

    def work(batch: int, number: int) -> Found:
        _silence()
        place = folder / f"worker{batch}"
        place.mkdir(exist_ok=True)
        os.chdir(place)
        return attempted(part, seed, number, place)

    def lost(_: int, number: int, code: int | None) -> Found:
        why = f"no answer in {part.seconds * PATIENCE:g} s" if code is None else f"exit code {code}"
        outcome = "hang" if code is None else "killed"
        return Found(part.kind(seed, number), outcome, "", f"{part.show(seed, number)}: {why}")

    return run_forked(batches, work, lost, jobs=jobs, seconds=part.seconds * PATIENCE)


def row_of(batch: int, found: Mapping[int, Found]) -> dict[str, Any]:
    """A batch as a line of results: counts by kind and outcome, and the faults."""
    counts: dict[str, dict[str, int]] = {}
    for one in found.values():
        of_kind = counts.setdefault(one.kind, {})
        of_kind[one.outcome] = of_kind.get(one.outcome, 0) + 1
    faults = [{"number": number, **asdict(one)} for number, one in sorted(found.items()) if one.is_fault]
    return {"batch": batch, "counts": counts, "faults": faults}
