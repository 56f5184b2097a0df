"""One process at a time: a lock that says who holds it, and that ends with its holder, however that ends."""

import contextlib
import datetime
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from nervure.core.files import PathLike, file_errors, writable_path
from nervure.errors import FileError

UNKNOWN = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})
"""What file systems say that have no locks."""


@contextlib.contextmanager
def exclusive_folder(folder: PathLike) -> Iterator[None]:
    """Hold a folder, which must be there, against other processes and threads that want to hold it.

    Raises:
        FileError: another holds it; the message says who, where and since when.
    """
    with _held(Path(folder) / ".nervure.lock", f"the folder {str(folder)!r}"):
        yield


@contextlib.contextmanager
def exclusive_file(path: PathLike) -> Iterator[None]:
    """Hold a file, which need not be there yet, against other processes and threads that want to hold it.

    Raises:
        FileError: another holds it; the message says who, where and since when.
    """
    target = writable_path(path)
    with _held(target.with_name(f".{target.name}.lock"), f"the file {str(path)!r}"):
        yield


@contextlib.contextmanager
def _held(lock: Path, what: str) -> Iterator[None]:
    with file_errors(lock, "lock"):
        handle = _take(lock, what)
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that, and makes another.
        try:
            _remove(lock)
        finally:
            with contextlib.suppress(OSError):
                unlock_descriptor(handle)
            os.close(handle)


def _remove(lock: Path) -> None:
    """Remove it; again, where the disk refuses or the process is asked to end just then."""
    try:
        lock.unlink()
    except BaseException as error:
        with contextlib.suppress(OSError):
            lock.unlink()
        if not isinstance(error, OSError):
            raise


def _take(lock: Path, what: str) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _is_free(handle):
                raise FileError(f"{what} is in use: {_holder(handle)} works there. Wait for it, or give another place.")
            if _is_at(handle, lock):
                os.ftruncate(handle, 0)
                os.write(handle, _introduction().encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_free(handle: int) -> bool:
    """Lock an open file, if nobody has; where there are no locks, everything is free."""
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in UNKNOWN:
            return True
        raise


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still at its place: its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _introduction() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    return f"process {os.getpid()} on {platform.node()}, since {now}"


def _holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    # Nothing is there in the moment between the lock and its inscription.
    return os.read(handle, 1000).decode(errors="replace") or "another process"
