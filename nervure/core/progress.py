"""Progress for people: a bar on a terminal, and only where there is something to wait for."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

from nervure.errors import DataError

T = TypeVar("T")
PATIENCE = 2.0
ENDLESS = 1 << 16
"""Batches after which data that do not say how many they are count as endless."""


class _Bar:
    """A bar that is drawn only once the work has lasted :data:`PATIENCE` seconds."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.start = time.monotonic()
        self.shown: Progress | None = None

    def advance(self) -> None:
        self.done += 1
        if self.shown is None and time.monotonic() - self.start >= PATIENCE:
            self.shown = _bar_on_stderr()
            self.shown.add_task(self.what, total=self.total)
            self.shown.start()
        if self.shown is not None:
            self.shown.update(self.shown.task_ids[0], completed=self.done)

    def close(self) -> None:
        if self.shown is not None:
            self.shown.stop()


def _bar_on_stderr() -> "Progress":
    # rich takes a while to import: only those who see a bar pay for it.
    from rich.console import Console
    from rich.progress import Progress

    # A console of its own lets a bar appear while the caller's own live display is on.
    return Progress(console=Console(stderr=True), transient=True)


@contextmanager
def progress(what: str, total: int | None = None, *, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Give a function that moves a bar one on; for work that is not one plain loop.

    Args:
        what: the words beside the bar.
        total: how many calls to expect; None draws a bar without an end.
        enabled: False never shows a bar. Nor is one shown where stderr is no terminal, or in the first 2 seconds.
    """
    if not (enabled and sys.stderr is not None and sys.stderr.isatty()):
        yield _nothing
        return
    bar = _Bar(what, total)
    try:
        yield bar.advance
    finally:
        bar.close()


def track(iterable: Iterable[T], what: str, total: int | None = None, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items of ``iterable`` unchanged, with a bar under the rules of :func:`progress`.

    >>> list(track([1, 2, 3], "counting"))
    [1, 2, 3]
    """
    with progress(what, length(iterable) if total is None else total, enabled=enabled) as advance:
        yield from step_by_step(iterable, advance)


def step_by_step(iterable: Iterable[T], advance: Callable[[], object]) -> Iterator[T]:
    """Yield the items of ``iterable`` unchanged, and call ``advance`` when each is done with."""
    for item in iterable:
        yield item
        advance()


def length(iterable: Iterable[object]) -> int | None:
    """How many items an iterable says it has; None where it does not say (a stream, a generator)."""
    try:
        return len(iterable)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def ending(batches: Iterable[T], what: str = "data") -> Iterator[T]:
    """The same batches: as many as they say, or :data:`ENDLESS` of them where they say nothing or less.

    Raises:
        DataError: there are more, so that they may have no end.
    """
    most = max(ENDLESS, length(batches) or 0)
    for number, batch in enumerate(batches):
        if number == most:
            raise DataError(
                f"{what} gave {most} batches and did not end. Give a list, or a loader whose len() says how many there "
                "are."
            )
        yield batch


def _nothing() -> None:
    """Stand in for a bar nobody would see."""
