"""Faults by number: the n-th event that writes below a folder fails, or is the last thing its process does.

Events are told by Python itself (audit hooks: files opened for writing, renamed, removed, folders made and removed)
and by stand-ins for the calls that it does not tell of (write, fsync, safetensors' own writer). A write that fails, or
that a process dies in, has written half of its bytes.

::

    events = record(lambda: work(folder), folder)               # what can fail, in order
    with fault(folder, at=7, action=Action.FULL): work(folder)  # from the 7th event on the disk is full
    with fault(folder, at=7, action=Action.BROKEN): ...         # the 7th event alone gives EIO
    ended = in_child(lambda: work(folder), folder, at=7)        # killed by SIGKILL in the 7th event
"""

import builtins
import contextlib
import enum
import errno
import functools
import io
import os
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "os.link": "link"}
TAKES_ROOM = frozenset({"open", "write", "mkdir", "fsync", "rename", "link"})


class Action(enum.Enum):
    """What becomes of an event."""

    FULL = "from here on the disk is full"
    BROKEN = "the disk gives an error here"
    KILL = "the process is killed here"
    TERM = "the process is asked to end here"


class Event(NamedTuple):
    """One thing that writes: what is done, and where."""

    kind: str
    path: str


@dataclass
class _Watch:
    """The folder that is watched, what happened there, and what is to happen."""

    folder: str
    at: int | None = None
    action: Action = Action.KILL
    reads: bool = False
    process: int = field(default_factory=os.getpid)
    events: list[Event] = field(default_factory=list)

    def meet(self, kind: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        """Note an event; raise or die where that is its lot, with half of a write done."""
        try:
            place = os.path.abspath(os.fsdecode(path))
        except (TypeError, ValueError):
            return
        if os.getpid() != self.process or not (place == self.folder or place.startswith(self.folder + os.sep)):
            return
        self.events.append(Event(kind, place))
        number = len(self.events) - 1
        if self.at is None or number < self.at:
            return
        if number == self.at:
            half()
            if self.action is Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.action is Action.TERM:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.action is Action.BROKEN:
                raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        if self.action is Action.FULL and kind in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


_watches: list[_Watch] = []


def _watch() -> _Watch | None:
    return _watches[-1] if _watches else None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    watch = _watch()
    if watch is None:
        return
    if event == "open" and not isinstance(args[0], int):
        if args[2] & WRITES:
            watch.meet("open", args[0])
        elif watch.reads:
            watch.meet("read", args[0])
    elif event in AUDITED:
        # A rename is at its target: that is the file which changes.
        watch.meet(AUDITED[event], args[1] if event == "os.rename" else args[0])


@functools.cache
def _install() -> None:
    """Listen, and put the stand-ins in place: once per process, since an audit hook cannot be taken away."""
    sys.addaudithook(_audit)
    builtins.open = io.open = _open  # type: ignore[assignment]
    os.write, os.fsync = _write, _fsync  # type: ignore[assignment]
    safetensors.serialize_file = safetensors.torch.serialize_file = _serialize_file


_real_open, _real_write, _real_fsync, _real_serialize_file = io.open, os.write, os.fsync, safetensors.serialize_file


class _Raw(io.FileIO):
    """A file whose writes are events."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if (watch := _watch()) is not None:
            watch.meet("write", self.name, lambda: super(_Raw, self).write(view[: len(view) // 2]))
        return super().write(view)


def _open(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
    if _watch() is None or isinstance(file, int) or not set(mode) & set("wax+"):
        return _real_open(file, mode, buffering, *args, **more)
    raw = _Raw(os.fspath(file), mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, *args, line_buffering=buffering == 1, **more)


def _place(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def _write(handle: int, data: Any) -> int:
    if (watch := _watch()) is not None and stat.S_ISREG(os.fstat(handle).st_mode):
        view = memoryview(data).cast("B")
        watch.meet("write", _place(handle), lambda: _real_write(handle, view[: len(view) // 2]))
    return _real_write(handle, data)


def _fsync(handle: Any) -> None:
    if (watch := _watch()) is not None:
        watch.meet("fsync", _place(handle if isinstance(handle, int) else handle.fileno()))
    _real_fsync(handle)


def _serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
    def half() -> None:
        _real_serialize_file(tensors, filename, metadata)
        os.truncate(filename, os.path.getsize(filename) // 2)

    try:
        if (watch := _watch()) is not None:
            watch.meet("write", filename, half)
    except OSError as error:
        # As the library says it.
        raise safetensors.SafetensorError(
            f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
        ) from error
    _real_serialize_file(tensors, filename, metadata)


@contextlib.contextmanager
def fault(
    folder: str | os.PathLike[str], *, at: int | None = None, action: Action = Action.FULL, reads: bool = False
) -> Iterator[list[Event]]:
    """Watch what this process writes below ``folder``, and let event number ``at`` (from 0) go wrong; None: none.

    ``reads`` counts files opened for reading as events too. Yields the events so far. The last
    folder named is the one that is watched.
    """
    _install()
    watch = _Watch(os.path.realpath(folder), at, action, reads)
    _watches.append(watch)
    try:
        yield watch.events
    finally:
        _watches.remove(watch)


def record(work: Callable[[], object], folder: str | os.PathLike[str], *, reads: bool = False) -> list[Event]:
    """Do the work and return its events below ``folder``: event ``i`` of them is what ``at=i`` lets go wrong."""
    with fault(folder, reads=reads) as events:
        work()
    return events


class Ended(NamedTuple):
    """How a child ended: killed there, or by itself with this exit code (0: well), and what it said on stderr."""

    killed: bool
    code: int
    said: str


def in_child(
    work: Callable[[], object],
    folder: str | os.PathLike[str],
    *,
    at: int | None = None,
    action: Action = Action.KILL,
    after: float | None = None,
    limit: float = 120.0,
) -> Ended:
    """Do the work in a forked child, where event ``at`` goes wrong; ``after`` so many seconds it is killed anyway.

    Raises:
        TimeoutError: the child hangs: it did not end within ``limit`` seconds.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(work, folder, at, action, writer)
    os.close(writer)
    try:
        status = _wait(child, after, limit)
        with _real_open(reader, errors="replace", closefd=False) as file:
            said = file.read()
    finally:
        os.close(reader)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Ended(killed, os.waitstatus_to_exitcode(status), said)


def _become(
    work: Callable[[], object], folder: str | os.PathLike[str], at: int | None, action: Action, said: int
) -> None:
    """Be the child: do the work, and end without what the parent would do at its end."""
    code = 1
    try:
        with fault(folder, at=at, action=action):
            work()
        code = 0
    except BaseException:
        # A pipe holds 64 KiB, and nobody reads before the end.
        _real_write(said, traceback.format_exc()[-30_000:].encode(errors="replace"))
    finally:
        os._exit(code)


def _wait(child: int, after: float | None, limit: float) -> int:
    begun = time.monotonic()
    killed = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        spent = time.monotonic() - begun
        if not killed and after is not None and spent >= after:
            os.kill(child, signal.SIGKILL)
            killed = True
        if spent >= limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a child hung: it did not end within {limit:.0f} s")
        time.sleep(0.002)


def litter(folder: str | os.PathLike[str]) -> list[str]:
    """Names below a folder that no finished work leaves: temporaries and locks."""
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.suffix in (".part", ".lock", ".tmp")
    )
