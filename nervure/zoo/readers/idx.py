"""The IDX format of the MNIST family: a magic number, big-endian sizes, then bytes; gzipped or not."""

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nervure.core.files import write_bytes
from nervure.errors import DataError
from nervure.zoo.readers.raw import Raw, missing, open_file, require_room

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
LAYOUT = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
    "(or the same unpacked, without .gz)"
)
UNSIGNED_BYTE = 0x08
DIMENSIONS = 4
PIECE = 1 << 20
DEFLATION = 1032  # the most that deflate packs into one byte


def read_idx_folder(root: Path, name: str, classes: tuple[str, ...]) -> Raw:
    """The four files of an MNIST-like set.

    Raises:
        DataError: a file is missing, truncated or not in the format.
    """
    if not has_idx_files(root):
        raise missing(root, name, LAYOUT)
    return Raw(_read_pair(root, "train"), _read_pair(root, "t10k"), classes, str(root))


def has_idx_files(root: Path) -> bool:
    """Whether all four files are in ``root``."""
    names = [pattern.format(part) for part in ("train", "t10k") for pattern in (IMAGES, LABELS)]
    return all(find_idx(root, name).is_file() for name in names)


def find_idx(root: Path, name: str) -> Path:
    """Where ``name`` is in ``root``: gzipped if that file exists, else unpacked (which need not exist)."""
    packed = root / f"{name}.gz"
    return packed if packed.is_file() else root / name


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, unpacked if its name ends with .gz.

    No more is unpacked than the header announces.

    Raises:
        DataError: not an IDX file of bytes, of another length than its header says, or one that says too much.
    """
    is_packed = path.suffix == ".gz"
    with open_file(path) as stored:
        size = os.fstat(stored.fileno()).st_size
        try:
            with gzip.GzipFile(fileobj=stored) if is_packed else stored as file:
                shape, start = _header(file, path)
                _require_possible(math.prod(shape), size, start, is_packed, f"{str(path)!r} announces shape {shape}")
                values = np.empty(shape, dtype=np.uint8)
                # Asking for more than is announced also lets gzip compare its checksum.
                if _fill(values.reshape(-1).data, file) != values.size or file.read(1):
                    raise DataError(f"{str(path)!r} announces shape {shape} but holds another number of bytes.")
        except (EOFError, zlib.error) as error:
            raise DataError(f"{str(path)!r} cannot be read: {error}. Fetch it again.") from error
    return values


def _fill(view: memoryview, file: io.BufferedIOBase) -> int:
    """Read into ``view`` what there is, in pieces, since gzip holds each piece twice; how many bytes that were."""
    done = 0
    while piece := file.readinto(view[done : done + PIECE]):
        done += piece
    return done


def _header(file: io.BufferedIOBase, path: Path) -> tuple[tuple[int, ...], int]:
    """The shape that an IDX file announces, and how many bytes say so."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"{str(path)!r} does not start like an IDX file of bytes: {magic.hex()!r}.")
    sizes = file.read(4 * magic[3])
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist()) if len(sizes) == 4 * magic[3] else ()
    if not 1 <= len(shape) <= DIMENSIONS or 0 in shape:
        raise DataError(f"{str(path)!r} announces shape {shape} but should hold something. Fetch it again.")
    return shape, 4 + len(sizes)


def _require_possible(count: int, size: int, start: int, is_packed: bool, what: str) -> None:
    """Raise :class:`DataError`, before memory is taken, if a file of ``size`` bytes cannot hold ``count`` bytes."""
    if count > DEFLATION * size if is_packed else count != size - start:
        raise DataError(f"{what} but has {size} bytes. Fetch it again.")
    require_room(count, size, f"{what}, which")


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write a uint8 array as IDX, gzipped without a time or a name so that equal arrays give equal files."""
    header = bytes((0, 0, UNSIGNED_BYTE, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes()
    content = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=content, mtime=0) as packed:
        packed.write(header + values.astype(np.uint8).tobytes())
    write_bytes(path, content.getvalue())


def _read_pair(root: Path, part: str) -> tuple[Tensor, Tensor]:
    images, labels = (find_idx(root, pattern.format(part)) for pattern in (IMAGES, LABELS))
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or numbers.shape != pixels.shape[:1]:
        raise DataError(f"{str(images)!r} holds {pixels.shape} and {str(labels)!r} {numbers.shape}; they do not fit.")
    return torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(numbers.astype(np.int64))
