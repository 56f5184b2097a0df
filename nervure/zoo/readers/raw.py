"""What a reader hands over, and what all readers share."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from nervure.errors import DataError

ROOM = 1 << 28
EXPANSION = 64  # photographs are packed to a tenth or so; files that promise far more than that are bombs
LINES = 1 << 20


@final
@dataclass(frozen=True, eq=False)
class Raw:
    """Images as published: uint8 [samples, channels, height, width], int64 labels [samples].

    ``test`` is None where the publisher drew none; ``name`` is set where the data are not what was asked for.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None
    classes: tuple[str, ...]
    source: str
    flips: bool = True
    name: str | None = None


@final
@dataclass(frozen=True)
class Request:
    """Where to read, at which image side (None: as published), and whether to compare published checksums."""

    root: Path | None
    size: int | None = None
    checksum: bool = True


def require_root(request: Request, name: str, layout: str) -> Path:
    """The folder to read, else :class:`DataError` saying which files (``layout``) to put where."""
    if request.root is None:
        raise DataError(f"{name!r} is not installed with nervure. Pass root=FOLDER, a folder that holds {layout}.")
    if not request.root.is_dir():
        raise DataError(f"root={str(request.root)!r} is not a folder. For {name!r} it must hold {layout}.")
    return request.root


def missing(root: Path, name: str, layout: str) -> DataError:
    """The error for a folder that lacks what ``name`` needs."""
    return DataError(f"{name!r} is not in {str(root)!r}. Put there {layout}.")


def home_of(root: str | os.PathLike[str]) -> Path:
    """``root`` as a path, its ``~`` resolved. Raises DataError where there is no such user."""
    try:
        return Path(root).expanduser()
    except RuntimeError as error:
        raise DataError(f"root={str(root)!r} cannot be resolved: {error}.") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the disk refuses while ``path`` is read becomes a :class:`DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


@contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """The file at ``path``, open for reading bytes. Raises DataError where the disk refuses, then or later."""
    with reading(path), path.open("rb") as file:
        yield file


def entries(folder: Path) -> list[Path]:
    """What is in ``folder``, sorted. Raises DataError."""
    with reading(folder):
        return sorted(folder.iterdir())


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers, from 1 on, and texts of the lines of a file in UTF-8, one in memory at a time.

    Raises:
        DataError: the file cannot be read, is no UTF-8, or has a line of more than a million bytes.
    """
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINES), b""), start=1):
            if len(line) == LINES:
                raise DataError(f"{str(path)!r}, line {number}: longer than {LINES} bytes. It is no list of names.")
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{str(path)!r}, line {number}: no text in UTF-8 ({error.reason}).") from error


def require_room(promised: int, stored: int, what: str) -> None:
    """Raise :class:`DataError` if ``promised`` bytes of memory are out of proportion to the ``stored`` bytes of files.

    256 MiB are always fine, and so is what takes up to 64 times its files.
    """
    if promised > max(ROOM, EXPANSION * stored):
        raise DataError(f"{what} would take {promised:,} bytes of memory, from {stored:,} bytes of files. Refused.")


def require_md5(path: Path, expected: str) -> None:
    """Raise :class:`DataError` if the file at ``path`` is not the published one."""
    with open_file(path) as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{str(path)!r} has md5 {found}, the published file {expected}: it is truncated or not the original. "
            "Fetch it again, or pass checksum=False to read it as it is."
        )


def printable(name: str) -> str:
    """``name``, its line breaks and bytes outside UTF-8 escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def stack(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One set of images and labels from several."""
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
