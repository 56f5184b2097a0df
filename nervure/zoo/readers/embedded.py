"""The part of Fashion-MNIST that is installed with nervure; ``nervure.zoo.subset`` made it."""

import hashlib
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from nervure.errors import DataError
from nervure.zoo.readers.idx import FASHION_CLASSES, read_idx_folder
from nervure.zoo.readers.raw import Raw, open_file

NAME = "fashion-mnist-subset"
SHA256: Mapping[str, str] = {
    "t10k-images-idx3-ubyte.gz": "e60ede7714c657ced2d723c33140572b5476b46df34b385a6e176b0757dc4318",
    "t10k-labels-idx1-ubyte.gz": "e6d25f5f3e85bb315a10172898c1c8f69ce52c4f9306c5821205c821bfca8847",
    "train-images-idx3-ubyte.gz": "1ecc7f90b9d150b40c359acf80cfec4990bfbcc1db9fe346f886d9e7fcae0000",
    "train-labels-idx1-ubyte.gz": "036b3a9440a684e6f8117e910b5dad249f9165250c2ae2341f2bfd8482381497",
}


def read_subset() -> Raw:
    """10,000 + 2,000 class-balanced images of 1 x 28 x 28 in 10 classes, always at hand.

    Raises:
        DataError: a file of the installation is missing or altered.
    """
    with as_file(files("nervure.zoo") / "assets" / NAME) as folder:
        raw = read_verified(folder)
    return Raw(raw.train, raw.test, raw.classes, "embedded in nervure", name=NAME)


def read_verified(folder: Path) -> Raw:
    """The subset in ``folder``, once every file is known to be the one that was made. Raises DataError."""
    for file, expected in SHA256.items():
        path = folder / file
        if not path.is_file():
            raise DataError(f"{str(path)!r} is missing from this installation of nervure. Install it again.")
        found = sha256(path)
        if found != expected:
            raise DataError(f"{str(path)!r} has sha256 {found}, expected {expected}: altered. Install nervure again.")
    return read_idx_folder(folder, NAME, FASHION_CLASSES)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file. Raises DataError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
