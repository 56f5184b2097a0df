"""Which process wrote something, told so that another can find out whether it still lives."""

import functools
import hashlib
import os
import platform
from pathlib import Path


def process_mark() -> str:
    """This process, among all of all machines: ``machine-number-start``, of hexadecimal and decimal digits."""
    return f"{_machine()}-{os.getpid()}-{_start(os.getpid())}"


def is_alive(mark: str) -> bool | None:
    """Whether the process with this mark lives; None: it is another machine's (or another container's)."""
    machine, number, start = mark.split("-")
    # Elsewhere signal 0 is no question.
    if machine != _machine() or os.name != "posix":
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    # Numbers are used again.
    return _start(int(number)) == int(start)


@functools.cache
def _machine() -> str:
    """This machine since it was last started, and the space of numbers of processes that a container has to itself."""
    told = [platform.node(), _read("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(told).encode(errors="surrogateescape")).hexdigest()[:8]


def _start(number: int) -> int:
    """When a process began, in ticks since the machine did; 0 where that is not told, or where it has ended."""
    # The name of the program, in parentheses, may have spaces of its own.
    fields = _read(f"/proc/{number}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
