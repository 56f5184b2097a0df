"""What a reader hands over, and what all readers share."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from nervure.errors import DataError


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


def require_md5(content: bytes, expected: str, path: Path) -> None:
    """Raise :class:`DataError` if ``content`` of ``path`` is not the published file."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{str(path)!r} has md5 {found}, the published file {expected}: it is truncated or not the original. "
            "Fetch it again, or pass checksum=False to read it as it is."
        )


def stack(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One set of images and labels from several."""
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
