"""The IDX format of the MNIST family: a magic number, big-endian sizes, then bytes; gzipped or not."""

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nervure.errors import DataError
from nervure.files import write_bytes
from nervure.zoo.readers.raw import Raw, missing

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
LAYOUT = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
    "(or the same unpacked, without .gz)"
)
UNSIGNED_BYTE = 0x08


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

    Raises:
        DataError: not an IDX file of bytes, or of another length than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. Fetch it again.") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"{str(path)!r} does not start like an IDX file of bytes: {content[:4].hex()!r}.")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int).tolist()) if len(content) >= start else ()
    if not shape or len(content) - start != int(np.prod(shape)):
        raise DataError(f"{str(path)!r} announces shape {shape} but holds {len(content)} bytes. Fetch it again.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


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
    return torch.from_numpy(pixels.copy()).unsqueeze(1), torch.from_numpy(numbers.astype(np.int64))
