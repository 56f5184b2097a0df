"""Writing so that a file is either the old one or the new one, and reading with errors that say what is wrong."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nervure.documents import opened, sealed
from nervure.errors import FileError
from nervure.schema import convert

T = TypeVar("T")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that takes its place when the block ends well.

    On any failure the temporary file goes and what was at ``path`` stays; an ``OSError`` (full disk, no permission)
    becomes a :class:`FileError`.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(f"cannot write {str(target)!r}: {_reason(error)}. What was there is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically and return the path; raises :class:`FileError` where that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8 to ``path`` atomically and return the path; raises :class:`FileError`."""
    # Half a character (a name that is not UTF-8) has no bytes; as an escape JSON reads it back.
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> Path:
    """Write plain ``data`` as a sealed document to ``path`` atomically and return the path.

    Raises:
        FileError: it cannot be written, or is not plain data. See :mod:`nervure.documents`.
    """
    return write_bytes(path, sealed(data, repr(str(path))) + b"\n")


def read_json(path: str | os.PathLike[str], what: str = "a JSON file") -> dict[str, Any]:
    """The data in the document at ``path``, checked against its checksum where it has one.

    Raises:
        FileError: it is missing, no JSON object or damaged (``what`` says what was expected).
    """
    source = require_file(path, what)
    try:
        text = source.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {str(source)!r}: {_reason(error)}.") from error
    return opened(text, f"{str(source)!r} ({what})")


def read_document(path: str | os.PathLike[str], schema: type[T], what: str) -> T:
    """The value of type ``schema`` in the document at ``path``, see :func:`read_json`.

    Raises:
        FileError: also where the document holds no such value; it says where.
    """
    return convert(read_json(path, what), schema, f"{str(path)!r} ({what})")


def require_file(path: str | os.PathLike[str], what: str = "a file") -> Path:
    """Return ``path`` if a file is there, else raise :class:`FileError` naming ``what`` was expected."""
    source = Path(path)
    if source.is_file():
        return source
    found = "a folder is there" if source.is_dir() else "nothing is there"
    raise FileError(f"{str(source)!r} should be {what}, but {found}.")


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if a file can be written there, else raise :class:`FileError`; ask before long work."""
    target = Path(path)
    if target.is_dir():
        raise FileError(f"cannot write {str(target)!r}: a folder is there. Give the name of a file.")
    _temporary_beside(target).unlink(missing_ok=True)
    return target


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Return folder ``path``, made if need be, in which files can be written; else raise :class:`FileError`."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {str(folder)!r}: {_reason(error)}.") from error
    require_writable(folder / "probe")
    return folder


def _temporary_beside(target: Path) -> Path:
    # The same folder, because os.replace is atomic only within one file system.
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {str(target)!r}: {_reason(error)}. Choose another folder.") from error
    # mkstemp makes private files; the result should have the rights any new file gets here.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    return Path(name)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
