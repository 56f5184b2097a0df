"""Writing so that a file is either the old one or the new one, and reading with errors that say what is wrong.

Drafts are written in a hidden folder beside their place, whose name says who writes: what a killed process left there
is removed when the place is next used.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

from nervure.core.documents import open_document, seal_document
from nervure.core.processes import is_alive, process_mark
from nervure.core.schema import convert
from nervure.errors import ArgumentError, FileError, NervureError

T = TypeVar("T")
PathLike: TypeAlias = str | os.PathLike[str]
DRAFTS = re.compile(r"\..*\.(?P<writer>[0-9a-f]{8}-\d+-\d+)-\d+\.part", re.DOTALL)
LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found"})
"""What desktops and file systems leave in folders without being asked, in lower case."""
DAY = 24 * 3600.0
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NUMBERS = itertools.count()


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield the path of a draft, to be written, that takes the place of ``path`` when the block ends well.

    On any failure the draft goes and what was at ``path`` stays; whatever the disk refuses (it is full, there is no
    permission) becomes a :class:`FileError`. A symbolic link stays, and its target is replaced. A new file has the
    rights that the umask gives, one that was there keeps its own.
    """
    with drafts(path) as folder:
        draft = folder / real_path(path).name
        yield draft
        settle(draft, path)


@contextlib.contextmanager
def drafts(path: PathLike) -> Iterator[Path]:
    """Yield an empty folder for drafts of ``path`` and of files beside it; what is left in it goes afterwards.

    Drafts of processes that were killed, of whatever file in the same folder, are removed first.

    Raises:
        FileError: the disk refuses what is written in the block, in whatever words a library says so.
    """
    target = writable_path(path)
    remove_litter(target.parent)
    folder = target.parent / f".{_short(target.name)}.{process_mark()}-{next(_NUMBERS)}.part"
    try:
        folder.mkdir()
        yield folder
    except NervureError:
        raise
    except Exception as error:
        refusal = disk_refusal(error, folder)
        if refusal is None:
            raise
        reason = _reason(refusal, target.parent)
        raise FileError(f"cannot write {str(path)!r}: {reason}. What was there is untouched.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(draft: Path, path: PathLike) -> Path:
    """Move a whole draft to its place, and return that; it is on the disk before this returns.

    Raises:
        OSError: it could not be moved.
        FileError: it was moved, but the disk does not say that it is safe there.
    """
    target = writable_path(path)
    _flush(draft, _rights(target, draft))
    os.replace(draft, target)
    try:
        _flush_folder(target.parent)
    except OSError as error:
        reason = _reason(error, target.parent)
        raise FileError(f"{str(path)!r} was written, but might not survive a loss of power: {reason}.") from error
    return Path(path)


def write_bytes(path: PathLike, data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically and return the path; raises :class:`FileError` where that fails."""
    with replacing(path) as draft:
        draft.write_bytes(data)
    return Path(path)


def write_text(path: PathLike, text: str) -> Path:
    """Write ``text`` as UTF-8 to ``path`` atomically and return the path; raises :class:`FileError`."""
    # Half a character (a name that is not UTF-8) has no bytes; as an escape JSON reads it back.
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: PathLike, data: Mapping[str, Any]) -> Path:
    """Write plain ``data`` as a sealed document to ``path`` atomically and return the path.

    Raises:
        FileError: it cannot be written, or is not plain data. See :mod:`nervure.core.documents`.
    """
    return write_bytes(path, seal_document(data, repr(str(path))) + b"\n")


def append_line(path: PathLike, line: str) -> Path:
    """Add a line to a file of lines, on the disk before this returns; a last line that was cut short goes first.

    Raises:
        FileError: that fails; the whole lines that were there are untouched.
    """
    target = writable_path(path)
    with file_errors(path, "write"):
        with target.open("a+b", buffering=0) as file:
            size = _whole_lines(file)
            _append(file, line.encode("utf-8") + b"\n", size)
        if not size:
            _flush_folder(target.parent)
    return Path(path)


def read_bytes(path: PathLike, what: str = "a file") -> bytes:
    """The bytes of the file at ``path``; raises :class:`FileError` (naming ``what`` was expected) otherwise."""
    source = require_file(path, what)
    with file_errors(path, "read"):
        return source.read_bytes()


def read_text(path: PathLike, what: str = "a text") -> str:
    """The text, in UTF-8, of the file at ``path``; raises :class:`FileError` (naming ``what``) otherwise."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{str(path)!r} is not {what}: {error}.") from error


def read_lines(path: PathLike, what: str = "a file of lines") -> list[bytes]:
    """The lines of a file, none where no file is; a last line that was cut short, without its end, is left out."""
    return read_bytes(path, what).split(b"\n")[:-1] if is_there(path) else []


def read_json(path: PathLike, what: str = "a JSON file") -> dict[str, Any]:
    """The data in the document at ``path``, checked against its checksum where it has one.

    Raises:
        FileError: it is missing, no JSON object or damaged (``what`` says what was expected).
    """
    return open_document(read_bytes(path, what), f"{str(path)!r} ({what})")


def read_document(path: PathLike, schema: type[T], what: str) -> T:
    """The value of type ``schema`` in the document at ``path``, see :func:`read_json`.

    Raises:
        FileError: also where the document holds no such value; it says where.
    """
    return convert(read_json(path, what), schema, f"{str(path)!r} ({what})")


def is_there(path: PathLike) -> bool:
    """Whether anything is at ``path``; raises :class:`FileError` where that cannot be found out."""
    return _mode(path) is not None


def require_file(path: PathLike, what: str = "a file") -> Path:
    """Return ``path`` if a file is there, else raise :class:`FileError` naming ``what`` was expected."""
    mode = _mode(path)
    if mode is None or not stat.S_ISREG(mode):
        found = "nothing" if mode is None else KINDS[stat.S_IFMT(mode)]
        raise FileError(f"{str(path)!r} should be {what}, but {found} is there.")
    return Path(path)


def require_writable(path: PathLike) -> Path:
    """Return ``path`` if a file can be written there, else raise :class:`FileError`; ask before long work."""
    with drafts(path) as folder:
        # A folder can be made where there is no room for anything in it.
        (folder / "probe").write_bytes(bytes(1 << 16))
    return Path(path)


def require_folder(path: PathLike) -> Path:
    """Return folder ``path``, made if need be, in which files can be written; else raise :class:`FileError`.

    What killed processes left half written in it is removed.
    """
    folder = _path(path)
    with file_errors(path, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder / "probe")
    return folder


def remove(path: PathLike) -> None:
    """Remove the file, link or folder at ``path``, if there is one; raises :class:`FileError` where that fails."""
    place = _path(path)
    with file_errors(path, "remove"):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def remove_litter(folder: Path) -> None:
    """Remove drafts in a folder whose writers are dead; those of other machines once they are a day old."""
    with file_errors(folder, "read"):
        names = os.listdir(folder)
    for found in filter(None, map(DRAFTS.fullmatch, names)):
        if _is_left(folder / found[0], is_alive(found["writer"])):
            shutil.rmtree(folder / found[0], ignore_errors=True)


def contents(folder: Path) -> list[str]:
    """The names of what is in a folder, sorted, without hidden files and what desktops leave there."""
    with file_errors(folder, "read"):
        names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not name.startswith(".") and name.lower() not in LITTER]


def real_path(path: PathLike) -> Path:
    """Where ``path`` leads, through all symbolic links; raises :class:`FileError` where they lead in a circle."""
    _mode(path)
    return Path(os.path.realpath(_path(path)))


def writable_path(path: PathLike) -> Path:
    """Where what is written to ``path`` goes; raises FileError where that is nothing that can be replaced."""
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise FileError(f"cannot write {str(path)!r}: {KINDS[stat.S_IFMT(mode)]} is there. Give the name of a file.")
    target = real_path(path)
    if not is_there(target.parent):
        raise FileError(
            f"cannot write {str(path)!r}: there is no folder {str(target.parent)!r}. Make it, or choose another folder."
        )
    return target


@contextlib.contextmanager
def file_errors(path: PathLike, doing: str) -> Iterator[None]:
    """Turn each ``OSError`` in the block into a :class:`FileError`: what we were ``doing`` (a verb) with ``path``."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot {doing} {str(path)!r}: {_reason(error, Path(path).parent)}.") from error


def disk_refusal(error: Exception, folder: Path) -> OSError | None:
    """What the disk refused, where that is what an error in writing to a folder comes from; None: it is not."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    if told:
        return OSError(int(told[1]), os.strerror(int(told[1])))
    try:
        # Libraries tell of a full disk in words of their own, or not at all: ask it.
        (folder / "probe").write_bytes(bytes(1 << 20))
    except OSError as refusal:
        return refusal
    return None


def _path(path: PathLike) -> Path:
    """The path, if a file can have it."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentError(f"{path!r} should be the path of a file: a text, or a pathlib.Path.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise FileError(f"{str(path)!r} cannot be the path of a file: {error}.") from error
    if "\0" in os.fspath(path):
        raise FileError(f"{str(path)!r} cannot be the path of a file: it has a NUL in it.")
    return Path(path)


def _mode(path: PathLike) -> int | None:
    """What is at a path, in the system's numbers; None: nothing."""
    place = _path(path)
    with file_errors(path, "reach"):
        try:
            return place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None


def _short(name: str) -> str:
    """So much of a name that more can be added: a name has 255 bytes at most."""
    return os.fsdecode(os.fsencode(name)[:180])


def _is_left(path: Path, alive: bool | None) -> bool:
    """Whether drafts are nobody's any more; None: their writer is out of sight, and age decides."""
    if alive is not None:
        return not alive
    try:
        return time.time() - max(p.stat().st_mtime for p in (path, *path.iterdir())) > DAY
    except OSError:
        return False


def _rights(target: Path, draft: Path) -> int:
    """The rights of a file that is there, or those that the umask gives: a new file tells them."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = draft.with_name("rights")
    probe.touch()
    return stat.S_IMODE(probe.stat().st_mode)


def _flush(path: Path, rights: int) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        # Some libraries make files for their owner only, whatever the umask says.
        path.chmod(rights)
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def _whole_lines(file: BinaryIO) -> int:
    """The size of a file up to its last whole line; what follows is cut off: a process was killed in writing it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if size and file.read(1) != b"\n":
        file.seek(0)
        size = file.truncate(file.read().rfind(b"\n") + 1)
    return size


def _append(file: BinaryIO, data: bytes, size: int) -> None:
    try:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def _reason(error: OSError, folder: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return reason
    if isinstance(error.filename, str) and folder not in Path(error.filename).parents:
        # Libraries have files of their own, elsewhere.
        folder = Path(error.filename).parent
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB"
    except OSError:
        free = "an unknown number of bytes"
    return f"{reason}: {free} free at {str(folder)!r}; make room and do it again"
