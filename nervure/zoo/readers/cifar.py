"""CIFAR-10 and CIFAR-100, in their pickled (Python) and binary versions."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from nervure.errors import DataError
from nervure.zoo.readers.pickled import read_arrays
from nervure.zoo.readers.raw import Raw, Request, lines_of, missing, open_file, require_md5, require_root, stack

PIXELS = 3 * 32 * 32
LARGEST_LABEL = 1 << 31
LONGEST_NAME = 100


@final
@dataclass(frozen=True)
class Version:
    """How one published version is laid out: file names with their md5 (None: none published) and where labels sit."""

    folder: str
    train: Mapping[str, str | None]
    test: Mapping[str, str | None]
    names: str
    label_key: bytes
    names_key: bytes
    names_md5: str | None = None
    label_bytes: int = 1


# The md5 are those of the files in cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a) and
# cifar-100-python.tar.gz (eb9058c3a382ffc7106e4002c42a8d85), whose own stand at https://www.cs.toronto.edu/~kriz/cifar.html;
# torchvision and mmpretrain compare with the same.
PICKLED_10 = Version(
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    names="batches.meta",
    label_key=b"labels",
    names_key=b"label_names",
    names_md5="5ff9c542aee3614f3951f8cda6e48888",
)
PICKLED_100 = Version(
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    names="meta",
    label_key=b"fine_labels",
    names_key=b"fine_label_names",
    names_md5="7973b15100ade9c7d40fb424638fde48",
)
BINARY_10 = Version(
    folder="cifar-10-batches-bin",
    train={f"data_batch_{number}.bin": None for number in range(1, 6)},
    test={"test_batch.bin": None},
    names="batches.meta.txt",
    label_key=b"",
    names_key=b"",
)
BINARY_100 = Version(
    folder="cifar-100-binary",
    train={"train.bin": None},
    test={"test.bin": None},
    names="fine_label_names.txt",
    label_key=b"",
    names_key=b"",
    label_bytes=2,
)
LAYOUTS = {
    "cifar10": (
        "the unpacked folder cifar-10-batches-py (data_batch_1 ... data_batch_5, test_batch, batches.meta) or "
        "cifar-10-batches-bin (data_batch_1.bin ... data_batch_5.bin, test_batch.bin, batches.meta.txt), or the files"
    ),
    "cifar100": (
        "the unpacked folder cifar-100-python (train, test, meta) or cifar-100-binary (train.bin, test.bin, "
        "fine_label_names.txt), or the files"
    ),
}


def read_cifar10(request: Request) -> Raw:
    """CIFAR-10: 50,000 + 10,000 images of 3 x 32 x 32 in 10 classes. Raises DataError."""
    return _read("cifar10", request, PICKLED_10, BINARY_10, 10)


def read_cifar100(request: Request) -> Raw:
    """CIFAR-100: 50,000 + 10,000 images of 3 x 32 x 32 in 100 (fine) classes. Raises DataError."""
    return _read("cifar100", request, PICKLED_100, BINARY_100, 100)


def _read(name: str, request: Request, pickled: Version, binary: Version, count: int) -> Raw:
    root = require_root(request, name, LAYOUTS[name])
    for version in (pickled, binary):
        for folder in (root / version.folder, root):
            if all((folder / file).is_file() for file in (*version.train, *version.test)):
                return _read_version(folder, version, request.checksum, count)
    raise missing(root, name, LAYOUTS[name])


def _read_version(folder: Path, version: Version, checksum: bool, count: int) -> Raw:
    train, test = (
        stack([_read_batch(folder / file, md5 if checksum else None, version) for file, md5 in files.items()])
        for files in (version.train, version.test)
    )
    return Raw(train, test, _class_names(folder, version, checksum, count), str(folder))


def _read_batch(path: Path, md5: str | None, version: Version) -> tuple[Tensor, Tensor]:
    if md5 is not None:
        require_md5(path, md5)
    pixels, labels = _read_pickled(path, version) if version.label_key else _binary(path, version)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or len(labels) == 0:
        raise DataError(f"{str(path)!r} holds {pixels.dtype} pixels of shape {pixels.shape} for {len(labels)} labels.")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(labels.astype(np.int64))


def _read_pickled(path: Path, version: Version) -> tuple[np.ndarray, np.ndarray]:
    batch = read_arrays(path)
    pixels, labels = batch.get(b"data"), batch.get(version.label_key)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list | np.ndarray):
        raise DataError(f"{str(path)!r} lacks {b'data'!r} or {version.label_key!r}; it holds {list(batch)[:10]}.")
    return pixels, _whole_numbers(labels, path)


def _whole_numbers(labels: list[Any] | np.ndarray, path: Path) -> np.ndarray:
    if isinstance(labels, list):
        if not all(type(label) is int and 0 <= label <= LARGEST_LABEL for label in labels):
            raise DataError(f"{str(path)!r} labels its images with other things than class numbers.")
        labels = np.asarray(labels, dtype=np.int64)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{str(path)!r} labels its images with {labels.dtype} {labels.shape}, not class numbers.")
    return labels


def _binary(path: Path, version: Version) -> tuple[np.ndarray, np.ndarray]:
    record = version.label_bytes + PIXELS
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size % record:
            raise DataError(f"{str(path)!r} has {size} bytes, no multiple of {record}: truncated. Fetch it again.")
        records = np.frombuffer(file.read(size), dtype=np.uint8).reshape(-1, record)
    # CIFAR-100 writes the coarse label first, then the fine one.
    return records[:, version.label_bytes :], records[:, version.label_bytes - 1]


def _class_names(folder: Path, version: Version, checksum: bool, count: int) -> tuple[str, ...]:
    path = folder / version.names
    if not path.is_file():
        return tuple(str(label) for label in range(count))
    if checksum and version.names_md5 is not None:
        require_md5(path, version.names_md5)
    names = _pickled_names(path, version.names_key) if version.names_key else _listed_names(path, count)
    if len(names) != count or max(map(len, names)) > LONGEST_NAME:
        raise DataError(f"{str(path)!r} names {len(names)} classes, expected {count} of up to {LONGEST_NAME} letters.")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in names)


def _pickled_names(path: Path, key: bytes) -> list[str | bytes]:
    names = read_arrays(path).get(key)
    return names if isinstance(names, list) and all(isinstance(name, str | bytes) for name in names) else []


def _listed_names(path: Path, count: int) -> list[str | bytes]:
    words = (word for _, line in lines_of(path) for word in line.split())
    return list(itertools.islice(words, count + 1))
