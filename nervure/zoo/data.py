"""Data sets by name: from files on this machine or from what is installed; nothing is ever fetched."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nervure.core.annotations import FilePath
from nervure.core.check import checked
from nervure.core.schema import Between, Length, Seed
from nervure.errors import ArgumentError
from nervure.zoo.dataset import Batches, Dataset, Split, assemble, require_side
from nervure.zoo.draw import draw_fraction
from nervure.zoo.models.widths import Channels, Side
from nervure.zoo.naming import unknown_name
from nervure.zoo.readers.cifar import read_cifar10, read_cifar100
from nervure.zoo.readers.digits import read_digits
from nervure.zoo.readers.embedded import NAME as SUBSET
from nervure.zoo.readers.embedded import read_subset
from nervure.zoo.readers.folders import read_folder, read_tiny_imagenet
from nervure.zoo.readers.idx import FASHION_CLASSES, LAYOUT, has_idx_files, read_idx_folder
from nervure.zoo.readers.raw import Raw, Request, home_of, printable, require_root

__all__ = ["DATASETS", "Batches", "Dataset", "Split", "assemble", "fake", "load"]

FASHION = "fashion-mnist"
FASHION_PLACE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs it
DRAWN_TEST = 0.2
RESIZED_AT_ONCE = 4096
MOST_NUMBERS = 1 << 26
"""Of the images that are made up: more is no tiny data set."""

logger = logging.getLogger(__name__)


def _read_fashion(request: Request) -> Raw:
    if request.root is None and not has_idx_files(FASHION_PLACE):
        logger.warning("The full Fashion-MNIST is not in %s; the embedded subset takes its place.", FASHION_PLACE)
        return read_subset()
    root = FASHION_PLACE if request.root is None else require_root(request, FASHION, LAYOUT)
    return read_idx_folder(root, FASHION, FASHION_CLASSES)


DATASETS: Mapping[str, Callable[[Request], Raw]] = {
    FASHION: _read_fashion,
    SUBSET: lambda request: read_subset(),
    "digits": read_digits,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "tiny-imagenet": read_tiny_imagenet,
    "folder": read_folder,
}
"""Name of a data set -> its reader."""


@checked
def load(
    name: str,
    root: FilePath | None = None,
    *,
    validation: Between = 0.1,
    seed: Seed = 0,
    size: Length | None = None,
    checksum: bool = True,
) -> Dataset:
    """A data set with three disjoint splits; ``print(load(...).describe())`` says what is in it.

    * ``"fashion-mnist"``: 60,000 + 10,000 grey 28 x 28 from ``root`` or where Debian installs it, else the subset
    * ``"fashion-mnist-subset"``: 10,000 + 2,000 of them, always at hand
    * ``"digits"``: 1,797 grey 8 x 8 of scikit-learn
    * ``"cifar10"``, ``"cifar100"``: 50,000 + 10,000 colour 32 x 32, binary or Python version (the latter read
      opcode by opcode: nothing in it is unpickled)
    * ``"tiny-imagenet"``: 100,000 + 10,000 colour 64 x 64
    * ``"folder"``: any folder of one folder per class

    Where no test split is published (digits, a folder without test/), a fifth of every class is set aside as test, by
    a draw that does not depend on ``seed``: results of several seeds are comparable.

    Args:
        name: a key of ``DATASETS``.
        root: folder of the files, where they are not installed.
        validation: share of every class of the training images that is held out, in (0, 1).
        seed: fixes which images are held out.
        size: side in pixels, from 4 to 4096, to which images are resized; None leaves them as published.
        checksum: compare files that carry an official name with their published md5 (CIFAR, Python version).

    Raises:
        ArgumentError: unknown name, or validation, seed or size out of range.
        DataError: files are missing (the message says which to put where), damaged or mislabelled.
        MissingExtraError: scikit-learn ("digits") or Pillow ("folder", "tiny-imagenet") is not installed.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    place = None if root is None else home_of(root)
    raw = DATASETS[name](Request(place, require_side(size), checksum))
    train, test = (raw.train, raw.test) if raw.test is not None else _draw_test(*raw.train)
    return assemble(
        raw.name or name,
        (_resize(train[0], size), train[1]),
        (_resize(test[0], size), test[1]),
        tuple(map(printable, raw.classes)),
        validation=validation,
        seed=seed,
        flips=raw.flips,
        source=raw.source,
    )


@checked
def fake(
    samples: Length = 64,
    classes: Length = 4,
    channels: Channels = 3,
    side: Side = 8,
    *,
    validation: Between = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """A tiny made-up data set for tests: every class is a fixed random picture under noise, so it can be learnt.

    Args:
        samples: training images before the validation split is drawn, and test images; at least 2 per class.
        classes: number of classes.
        channels: channels of an image.
        side: height and width in pixels.
        validation: share of the training images held out, in (0, 1).
        seed: fixes pictures, noise and split.

    Raises:
        ArgumentError: an argument out of range, or images of more than 2**26 numbers.
        DataError: too few samples for the classes.
    """
    numbers = samples * channels * side**2
    if numbers > MOST_NUMBERS:
        raise ArgumentError(
            f"samples={samples} of {channels} x {side} x {side} are {numbers:,} numbers; fake makes "
            f"{MOST_NUMBERS:,} at most. Ask for fewer samples, or a smaller side."
        )
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(32, 224, (classes, channels, side, side), generator=generator)
    labels = torch.arange(samples) % classes

    def noisy() -> Tensor:
        noise = torch.randint(-32, 32, (samples, channels, side, side), generator=generator)
        return (pictures[labels] + noise).to(torch.uint8)

    names = tuple(f"class {number}" for number in range(classes))
    train, test = noisy(), noisy()
    return assemble("fake", (train, labels), (test, labels.clone()), names, validation=validation, seed=seed)


def _draw_test(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    kept, drawn = draw_fraction(labels, DRAWN_TEST, seed=0)
    return (images[kept], labels[kept]), (images[drawn], labels[drawn])


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    # In parts: the float copy of a whole training set would be four times its size.
    parts = [
        torch.nn.functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        for part in images.split(RESIZED_AT_ONCE)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
