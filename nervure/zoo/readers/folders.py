"""Image folders: one folder per class, and the layout of Tiny ImageNet. Needs Pillow (extra ``data``)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nervure._extras import require_extra
from nervure.errors import DataError
from nervure.zoo.readers.raw import Raw, Request, missing, require_root

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
FOLDER_LAYOUT = (
    "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/ for test/), or CLASS/IMAGE alone, from which a test split is drawn"
)
TINY_LAYOUT = (
    "the unpacked tiny-imagenet-200: train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt "
    "(wnids.txt and words.txt are read where present)"
)
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
    classes = tuple(sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")))
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
    test = _annotated(annotations, wnids)
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
    pixels = np.empty((len(listing), *first.shape), dtype=np.uint8)
    for row, (path, _) in enumerate(listing):
        image = _pixels(path, size)
        if image.shape != first.shape:
            raise DataError(
                f"{str(path)!r} is {image.shape[1]} x {image.shape[0]} pixels, {str(listing[0][0])!r} "
                f"{first.shape[1]} x {first.shape[0]}. Pass size=SIDE to resize all images to one square."
            )
        pixels[row] = image
    labels = torch.tensor([label for _, label in listing], dtype=torch.int64)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _pixels(path: Path, size: int | None) -> np.ndarray:
    image = require_extra("PIL.Image", "Reading image files", "data")
    fit = require_extra("PIL.ImageOps", "Reading image files", "data").fit
    try:
        with image.open(path) as opened:
            picture = opened.convert("RGB")
    # Pillow raises its own kind of OSError, and for some damaged files SyntaxError or ValueError.
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DataError(f"{str(path)!r} cannot be read as an image: {error}.") from error
    if size is not None and picture.size != (size, size):
        picture = fit(picture, (size, size), method=image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8)


def _images_in(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is missing; every class needs its folder.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{str(folder)!r} holds no image ({', '.join(sorted(SUFFIXES))}). Remove it or fill it.")
    return found


def classes_in(base: Path, classes: Sequence[str]) -> Listing:
    """The images in the folders of some classes, labelled by the order in which these are given."""
    return [(image, label) for label, name in enumerate(classes) for image in _images_in(base / name)]


def wnids_of(root: Path) -> tuple[str, ...]:
    """Names of the classes' folders in the order of their labels: as ``wnids.txt`` has them, else sorted."""
    listed = root / "wnids.txt"
    if listed.is_file():
        return tuple(listed.read_text(encoding="utf-8").split())
    return tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))


def _annotated(annotations: Path, wnids: Sequence[str]) -> Listing:
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    listing = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{str(annotations)!r}, line {number}: {wnid!r} is not one of the {len(labels)} classes.")
        listing.append((annotations.parent / "images" / file, labels[wnid]))
    return listing


def _words(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    path = root / "words.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)
