"""Corrupted test sets as they are published, read piece by piece: nothing is in memory but the batch at hand.

Two forms, told apart by what is in the folder:

* of CIFAR-10-C: a file ``CORRUPTION.npy`` for each corruption, uint8 [5 x images, height, width, channels] with the
  five severities one after the other, and ``labels.npy`` for all five or for one of them (Hendrycks and Dietterich,
  2019);
* of Tiny-ImageNet-C and ImageNet-C: folders ``CORRUPTION/SEVERITY/CLASS/*.JPEG``.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from nervure.core.annotations import FilePath
from nervure.core.check import checked, nearest, require_choice
from nervure.core.schema import Count, Length, Seed
from nervure.errors import ArgumentError, DataError
from nervure.zoo.dataset import Split
from nervure.zoo.draw import draw_fraction
from nervure.zoo.readers.folders import classes_in, read_images, subfolders, wnids_of
from nervure.zoo.readers.raw import entries, home_of, open_file, printable, reading

LABELS = "labels.npy"
SEVERITIES = (1, 2, 3, 4, 5)
LONGEST_HEADER = 4096
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # by version of the format
LAYOUT = f"CORRUPTION.npy beside {LABELS} (as CIFAR-10-C), or folders CORRUPTION/SEVERITY/CLASS (as Tiny-ImageNet-C)"

Key: TypeAlias = tuple[str, int]
Read: TypeAlias = Callable[[Tensor], Tensor]
"""From indices, int64 [images], to pictures, uint8 [images, channels, height, width]."""


class CorruptedSource(Protocol):
    """Where the pictures of one corruption at one severity are."""

    def open_source(self) -> tuple[Tensor, Read]:
        """Labels of all of them, int64 [images], and how to read some of them."""


@final
@dataclass(frozen=True, eq=False)
class CorruptedBatches:
    """Batches of one corruption at one severity, normalised as the clean split; they can be iterated again and again.

    Attributes:
        source: where the pictures are.
        like: the clean split: pictures have its size, its classes and its normalisation.
        batch_size: pictures per batch.
        samples: how many pictures, every class in proportion and the same ones for every corruption; 0: all.
        seed: which ones.
    """

    source: CorruptedSource
    like: Split
    batch_size: int = 500
    samples: int = 0
    seed: int = 0

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, what was taken from the pictures in [0, 1]."""
        return self.like.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, what the pictures were divided by."""
        return self.like.std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels, read = self.source.open_source()
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.like.classes:
            raise DataError(
                f"labels of {self.source} run from {int(labels.min())} to {int(labels.max())}; "
                f"the clean data have {self.like.classes} classes."
            )
        chosen = torch.arange(len(labels))
        if 0 < self.samples < len(labels):
            chosen = draw_fraction(labels, self.samples / len(labels), self.seed)[1].sort().values
        for indices in chosen.split(self.batch_size):
            yield self.like.normalise(self._fitting(read(indices))), labels[indices]

    def _fitting(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.like.images.shape[1:]:
            raise DataError(
                f"pictures of {self.source} are {' x '.join(map(str, images.shape[1:]))}, "
                f"the clean ones {' x '.join(map(str, self.like.images.shape[1:]))}."
            )
        return images


@checked
def load_corrupted(
    root: FilePath,
    like: Split,
    *,
    names: Iterable[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
    batch_size: Length = 500,
    samples: Count = 0,
    order: Sequence[str] | None = None,
    seed: Seed = 0,
) -> dict[Key, CorruptedBatches]:
    """A corrupted test set by (corruption, severity), for ``nervure.evaluate(..., shift=...)``.

    ``load_corrupted("CIFAR-10-C", zoo.load("cifar10", root).test)`` reads nothing but the names; pictures are read
    when a batch is asked for. Any folder of one of the two forms (see the module) is taken.

    Args:
        root: the folder.
        like: the clean test split, whose normalisation and labels the networks know.
        names: which corruptions; None: all in the folder. Names in it that are not published ones are fine.
        severities: which of 1 to 5.
        batch_size: pictures per batch.
        samples: so many pictures of each, the same ones for every corruption; 0: all.
        order: folders of classes in the order of their labels. None: as ``wnids.txt`` in the folder says, else sorted.
            Label numbers of a network trained on Tiny ImageNet follow the ``wnids.txt`` of its clean data.
        seed: which pictures.

    Raises:
        DataError: the folder has neither form, or lacks a corruption, a severity or a class; when iterated, where files
            are damaged or pictures do not fit the clean ones.
        ArgumentError: a severity or number out of range.
        MissingExtraError: when iterated, where pictures are files and Pillow is not installed.
    """
    folder, levels = home_of(root), [require_choice(s, SEVERITIES, "severity") for s in severities]
    if samples < 0:
        raise ArgumentError(f"samples={samples} must be 0 (all) or more.")
    if not folder.is_dir():
        raise DataError(f"{str(root)!r} is not a folder. It must hold {LAYOUT}.")
    sources = _arrays(folder, names, levels) if (folder / LABELS).is_file() else _folders(folder, names, levels, order)
    return {key: CorruptedBatches(source, like, batch_size, samples, seed) for key, source in sources.items()}


@final
@dataclass(frozen=True)
class _Rows:
    """Rows of an array that holds five severities one after the other."""

    path: Path
    severity: int

    def __str__(self) -> str:
        return f"{str(self.path)!r} at severity {self.severity}"

    def open_source(self) -> tuple[Tensor, Read]:
        pictures, numbers = _array(self.path), _array(self.path.with_name(LABELS))
        if pictures.ndim != 4 or pictures.dtype != np.uint8:
            raise DataError(
                f"{str(self.path)!r} holds {pictures.dtype} {pictures.shape}; expected uint8 [pictures, height, width, "
                "channels]."
            )
        each, rest = divmod(len(pictures), len(SEVERITIES))
        if rest or numbers.shape not in ((len(pictures),), (each,)) or numbers.dtype.kind not in "iu" or not each:
            raise DataError(
                f"{str(self.path)!r} holds {len(pictures)} pictures and {LABELS} {numbers.dtype} {numbers.shape}: "
                "expected five severities of as many pictures each, and whole numbers for all of them or for one."
            )
        first = (self.severity - 1) * each
        own = numbers[first : first + each] if len(numbers) > each else numbers

        def read(indices: Tensor) -> Tensor:
            return torch.from_numpy(pictures[first + indices.numpy()]).permute(0, 3, 1, 2).contiguous()

        return torch.from_numpy(own.astype(np.int64)), read


def _array(path: Path) -> np.ndarray:
    """An array of numbers in a file, of which only what is looked at is read.

    Its header is read and compared with the size of the file before anything is mapped.
    """
    with open_file(path) as file:
        head, size = io.BytesIO(file.read(LONGEST_HEADER)), os.fstat(file.fileno()).st_size
    try:
        shape, is_fortran, dtype = HEADERS[npy.read_magic(head)](head)
    # numpy reads a header as Python literals, which fail in many ways.
    except Exception as error:
        raise DataError(
            f"{str(path)!r} cannot be read: {printable(str(error))[:200]}. It is truncated, or no array."
        ) from error
    if dtype.kind not in "biuf" or dtype.shape:
        raise DataError(f"{str(path)!r} cannot be read: it holds {dtype}, no numbers.")
    if not shape or min(shape) < 1 or math.prod(shape) * dtype.itemsize != size - head.tell():
        raise DataError(f"{str(path)!r} cannot be read: it announces {dtype} {shape} but has {size} bytes.")
    with reading(path):
        return np.memmap(path, dtype, "r", head.tell(), shape, "F" if is_fortran else "C")


def _arrays(folder: Path, names: Iterable[str] | None, levels: list[int]) -> dict[Key, CorruptedSource]:
    there = [path.stem for path in entries(folder) if path.suffix == ".npy" and path.name != LABELS and path.is_file()]
    found = _check_names(names, there, folder)
    return {(name, level): _Rows(folder / f"{name}.npy", level) for name in found for level in levels}


@final
@dataclass(frozen=True)
class _Files:
    """Image files in a folder for each class."""

    folder: Path
    classes: tuple[str, ...]

    def __str__(self) -> str:
        return repr(str(self.folder))

    def open_source(self) -> tuple[Tensor, Read]:
        listing = classes_in(self.folder, self.classes)

        def read(indices: Tensor) -> Tensor:
            return read_images([listing[index] for index in indices.tolist()], None)[0]

        return torch.tensor([label for _, label in listing]), read


def _folders(
    folder: Path, names: Iterable[str] | None, levels: list[int], order: Sequence[str] | None
) -> dict[Key, CorruptedSource]:
    found = _check_names(names, subfolders(folder), folder)
    sources: dict[Key, CorruptedSource] = {}
    for name in found:
        for level in levels:
            place = folder / name / str(level)
            if not place.is_dir():
                raise DataError(f"{str(place)!r} is missing: {name!r} has no severity {level}.")
            sources[name, level] = _Files(place, _classes(folder, place, order))
    return sources


def _classes(folder: Path, place: Path, order: Sequence[str] | None) -> tuple[str, ...]:
    if order is None and (folder / "wnids.txt").is_file():
        order = wnids_of(folder)
    there = subfolders(place)
    classes = tuple(there if order is None else order)
    if set(classes) != set(there):
        odd = sorted(set(classes) ^ set(there))
        raise DataError(f"{str(place)!r} has other classes than expected: {', '.join(odd[:5])} ({len(odd)} differ).")
    return classes


def _check_names(names: Iterable[str] | None, there: Sequence[str], folder: Path) -> list[str]:
    """The corruptions that are asked for, all of them known to be there."""
    if not there:
        raise DataError(f"{str(folder)!r} holds no corruption. Put there {LAYOUT}.")
    asked = list(there if names is None else names)
    for name in asked:
        if not name.isprintable():
            raise DataError(f"{str(folder)!r} has a corruption {name!r}, which cannot be printed. Rename it.")
        if name not in there:
            raise DataError(f"{str(folder)!r} has no corruption {name!r}.{nearest(name, there, listed=True)}")
    return asked
