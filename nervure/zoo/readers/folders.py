"""Image folders: one folder per class, and the layout of Tiny ImageNet. Needs Pillow (extra ``data``)."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nervure.core.extras import require_extra
from nervure.errors import DataError
from nervure.zoo.readers.raw import (
    Raw,
    Request,
    entries,
    lines_of,
    missing,
    printable,
    reading,
    require_room,
    require_root,
)

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
# Pillow looks at the content, not at the name: other formats, some of which start other programs, are not opened.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
FOLDER_LAYOUT = (
    "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/ for test/), or CLASS/IMAGE alone, from which a test split is drawn"
)
TINY_LAYOUT = (
    "the unpacked tiny-imagenet-200: train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt "
    "(wnids.txt and words.txt are read where present)"
)
MOST_CLASSES = 100_000
LONGEST_WORD = 1000
Listing = list[tuple[Path, int]]


def read_folder(request: Request) -> Raw:
    """Any folder of classes, as RGB. Without ``size`` all images must be of one size.

    Raises:
        DataError: no class folder, an empty class, a file that is no image, or images of several sizes.
        MissingExtraError: Pillow is not installed.
    """
    root = require_root(request, "folder", FOLDER_LAYOUT)
    held = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    is_split = held is not None and (root / "train").is_dir()
    base = root / "train" if is_split else root
    classes = subfolders(base)
    if not classes:
        raise missing(root, "folder", FOLDER_LAYOUT)
    test = read_images(classes_in(held, classes), request.size) if is_split and held is not None else None
    return Raw(read_images(classes_in(base, classes), request.size), test, classes, str(root))


def read_tiny_imagenet(request: Request) -> Raw:
    """Tiny ImageNet: 100,000 images of 3 x 64 x 64 in 200 classes; its public validation images are the test split.

    Raises:
        DataError: the layout is incomplete, or a file is no image.
        MissingExtraError: Pillow is not installed.
    """
    root = require_root(request, "tiny-imagenet", TINY_LAYOUT)
    root = tiny_root(root)
    annotations = root / "val" / "val_annotations.txt"
    if not (root / "train").is_dir() or not annotations.is_file():
        raise missing(root, "tiny-imagenet", TINY_LAYOUT)
    wnids = wnids_of(root)
    train = [(image, i) for i, wnid in enumerate(wnids) for image in _images_in(root / "train" / wnid / "images")]
    test = _read_annotations(annotations, wnids)
    side = request.size or 64
    return Raw(read_images(train, side), read_images(test, side), _words(root, wnids), str(root))


def tiny_root(root: Path) -> Path:
    """Where Tiny ImageNet is: in the folder itself, or in the one that its archive unpacks to."""
    unpacked = root / "tiny-imagenet-200"
    return unpacked if unpacked.is_dir() else root


def read_images(listing: Listing, size: int | None) -> tuple[Tensor, Tensor]:
    """Open the files of (path, label) pairs as RGB, uint8 [samples, 3, height, width].

    Args:
        listing: what to open, in order.
        size: cut to the middle square and resize to this side; None requires images of one size.

    Raises:
        DataError: a file is no image, or of another size than the first.
        MissingExtraError: Pillow is not installed.
    """
    if not listing:
        raise DataError("The folder holds class folders but no image in them.")
    first = _pixels(listing[0][0], size)
    if size is None:
        stored = sum(_read_stored(path) for path, _ in listing)
        require_room(len(listing) * first.nbytes, stored, f"Images of the size of {str(listing[0][0])!r}")
    pixels = _room(len(listing), first.shape[:2])
    for row, (path, _) in enumerate(listing):
        pixels[row] = _pixels(path, size, first.shape).transpose(2, 0, 1)
    labels = torch.tensor([label for _, label in listing], dtype=torch.int64)
    return torch.from_numpy(pixels), labels


def _room(count: int, sides: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((count, 3, *sides), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(f"{count} images of {sides[1]} x {sides[0]} pixels do not fit into memory.") from error


def _read_stored(path: Path) -> int:
    with reading(path):
        return path.stat().st_size


def _pixels(path: Path, size: int | None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The image in a file as RGB, uint8 [height, width, 3]; of this ``shape``, where no ``size`` makes it so."""
    image = require_extra("PIL.Image", "Reading image files", "data")
    fit = require_extra("PIL.ImageOps", "Reading image files", "data").fit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(path, formats=FORMATS) as opened:
                if size is None and shape is not None:
                    _require_sides(path, opened.size, shape)
                picture = opened.convert("RGB")
    except DataError:
        raise
    # Pillow's decoders meet damage in many ways, each with an error of another kind.
    except Exception as error:
        raise DataError(f"{str(path)!r} cannot be read as an image: {printable(str(error))[:200]}.") from error
    if size is not None and picture.size != (size, size):
        picture = fit(picture, (size, size), method=image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8)


def _require_sides(path: Path, sides: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Raise :class:`DataError`, before an image is decoded, if it has another size than the first."""
    if sides != (shape[1], shape[0]):
        raise DataError(
            f"{str(path)!r} is {sides[0]} x {sides[1]} pixels, the first image {shape[1]} x {shape[0]}. "
            "Pass size=SIDE to resize all images to one square."
        )


def subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder`` that are not hidden, sorted. Raises DataError."""
    return tuple(path.name for path in entries(folder) if not path.name.startswith(".") and path.is_dir())


def _images_in(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is missing; every class needs its folder.")
    found = [path for path in entries(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise DataError(f"{str(folder)!r} holds no image ({', '.join(sorted(SUFFIXES))}). Remove it or fill it.")
    return found


def classes_in(base: Path, classes: Sequence[str]) -> Listing:
    """The images in the folders of some classes, labelled by the order in which these are given."""
    return [(image, label) for label, name in enumerate(classes) for image in _images_in(base / name)]


def wnids_of(root: Path) -> tuple[str, ...]:
    """Names of the classes' folders in the order of their labels: as ``wnids.txt`` has them, else sorted.

    Raises:
        DataError: the file cannot be read, names a class twice, or names too many.
    """
    listed = root / "wnids.txt"
    if not listed.is_file():
        return subfolders(root / "train")
    names: dict[str, None] = {}
    for number, line in lines_of(listed):
        for name in line.split():
            _require_new(name, names, f"{str(listed)!r}, line {number}: {name[:100]!r}")
            names[name] = None
    return tuple(names)


def _require_new(name: str, names: Collection[str], what: str) -> None:
    if name in names:
        raise DataError(f"{what} stands there twice.")
    if len(names) == MOST_CLASSES:
        raise DataError(f"{what} is one more than {MOST_CLASSES} classes.")
    if Path(name).name != name:
        raise DataError(f"{what} is no name of a folder.")


def _read_annotations(annotations: Path, wnids: Sequence[str]) -> Listing:
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    folder = annotations.parent / "images"
    left = {path.name for path in entries(folder)}
    listing = []
    for number, line in lines_of(annotations):
        file, wnid, *_ = (*line.split("\t", 2), "")
        place = f"{str(annotations)!r}, line {number}"
        if wnid not in labels:
            raise DataError(f"{place}: {wnid[:100]!r} is not one of the {len(labels)} classes.")
        if file not in left:
            raise DataError(f"{place}: {file[:100]!r} is not in {str(folder)!r}, or is named twice.")
        left.remove(file)
        listing.append((folder / file, labels[wnid]))
    return listing


def _words(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    path, words = root / "words.txt", {wnid: wnid for wnid in wnids}
    for _, line in lines_of(path) if path.is_file() else ():
        wnid, is_named, word = line.partition("\t")
        if is_named and wnid in words:
            words[wnid] = word[:LONGEST_WORD]
    return tuple(words.values())
