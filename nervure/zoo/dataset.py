"""A data set in memory: three splits of raw images, and batches of normalised ones."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from nervure.core.annotations import Device
from nervure.core.check import checked
from nervure.core.late import send
from nervure.core.markup import listing
from nervure.core.renamed import old_method
from nervure.core.schema import Length, Seed, Size
from nervure.errors import ArgumentError, DataError
from nervure.zoo.draw import draw_fraction

PADDING = 8  # an augmented image is shifted by up to one part in this many of its side
# Constant pixels would divide by zero; half a grey level is below anything the images can express.
LEAST_STD = 0.5 / 255


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Raw labelled images.

    Attributes:
        images: uint8 in 0..255, or float in its own unit, [samples, channels, height, width].
        labels: int64 [samples], 0 <= label < classes.
        classes: number of classes.
        mean: per channel, in the unit of the images after uint8 is divided by 255.
        std: per channel, same unit, above 0.
        flips: whether a mirrored image keeps its label (not so for digits); the default of ``batches(flip=None)``.

    Raises:
        DataError: empty, of mismatched lengths, not finite, or labels out of range.
    """

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = True

    def __post_init__(self) -> None:
        check_images(self.images, self.labels, self.classes)
        if not len(self.mean) == len(self.std) == self.images.shape[1] or min(self.std) <= 0:
            raise DataError(
                f"mean={self.mean} and std={self.std} need one number for each of {self.images.shape[1]} channels, "
                "and every std above 0."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))}, {self.classes} classes)"

    @checked
    def batches(
        self,
        batch_size: Length = 128,
        shuffle_seed: Seed | None = None,
        augment: bool = False,
        device: Device | None = None,
        *,
        flip: bool | None = None,
    ) -> "Batches":
        """Batches that can be iterated again and again; see :class:`Batches`.

        Args:
            batch_size: images per batch, 1 or more; the last batch may be smaller.
            shuffle_seed: fixes the orders and augmentations of all epochs; None keeps the order of the split.
            augment: shift by up to an eighth of the side (black where nothing was) and mirror half the images.
            device: where the batches live; None leaves them on the CPU.
            flip: mirror while augmenting; None asks the data set (digits are never mirrored).

        Raises:
            ArgumentError: batch_size below 1, or a negative shuffle_seed.
        """
        mirrored = self.flips if flip is None else flip
        return Batches(
            self, batch_size, shuffle_seed, augment, None if device is None else torch.device(device), mirrored
        )

    def normalise(self, images: Tensor) -> Tensor:
        """``images`` [batch, channels, height, width] in the unit of this split, as float32 of mean 0 and std 1."""
        shape = (1, -1, 1, 1)
        mean = send(torch.tensor(self.mean), images.device).view(shape)
        std = send(torch.tensor(self.std), images.device).view(shape)
        scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
        return (images.to(torch.float32) * scale - mean) / std

    normalised = old_method("normalised", "normalise")

    def select(self, indices: Tensor) -> "Split":
        """The samples at ``indices`` (int64 [n]), normalised as this split is."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    @checked
    def sample(self, size: Size, seed: Seed = 0) -> "Split":
        """About ``size`` samples, every class in the proportion it has here (at least one each).

        Raises:
            ArgumentError: size below 1.
        """
        return self if size >= len(self) else self.select(draw_fraction(self.labels, size / len(self), seed)[1])


@final
@dataclass(eq=False)
class Batches:
    """A re-iterable of (x, y): x float32 [batch, channels, height, width] normalised, y int64 [batch].

    ``len()`` is the number of batches. Every ``iter()`` starts the next epoch, whose order and augmentations follow
    from (shuffle_seed, epoch) alone; set ``epoch`` to repeat or resume one. The iterator of a run under way keeps its
    own epoch when another is started.
    """

    split: Split
    batch_size: int = 128
    shuffle_seed: int | None = None
    augment: bool = False
    device: torch.device | None = None
    flip: bool = True
    epoch: int = field(default=0)

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, what was taken from the pictures in [0, 1]."""
        return self.split.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, what the pictures were divided by."""
        return self.split.std

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._run(epoch)

    def _run(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = epoch_generator(self.shuffle_seed or 0, epoch)
        count = len(self.split)
        order = torch.arange(count) if self.shuffle_seed is None else torch.randperm(count, generator=generator)
        for indices in order.split(self.batch_size):
            x, y = self.split.images[indices], self.split.labels[indices]
            if self.augment:
                x = random_crop(x, generator, flip=self.flip)
            yield self.split.normalise(send(x, self.device)), send(y, self.device)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The randomness of one epoch."""
    # A plain sum would make epoch 1 of seed 0 the same as epoch 0 of seed 1: runs meant to be independent would not be.
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def random_crop(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Images [batch, channels, height, width], each cut at a random place from its black-padded self, half mirrored."""
    count, _, height, width = images.shape
    padding = max(1, min(height, width) // PADDING)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = (torch.rand(count, 1, dtype=torch.float32, generator=generator) < 0.5) & flip
    across = torch.arange(width).expand(count, width)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.where(mirrored, width - 1 - across, across)
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def check_images(images: Tensor, labels: Tensor, classes: int) -> None:
    """Raise :class:`DataError` unless the two are non-empty, of one length, finite, and labelled 0..classes - 1."""
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise DataError(
            f"Images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)} do not fit: "
            "expected [samples, channels, height, width] and [samples]."
        )
    if images.numel() == 0:
        raise DataError(f"Images of shape {tuple(images.shape)} hold nothing; at least one image is needed.")
    if labels.dtype != torch.int64:
        raise DataError(f"Labels are {labels.dtype}; they must be torch.int64 class numbers. Call labels.long().")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"Images are {images.dtype}; they must be torch.uint8 in 0..255 or a floating-point type.")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        raise DataError(f"{bad} of {len(images)} images hold NaN or infinite values.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"Labels run from {low} to {high}, outside 0..{classes - 1} for {classes} classes.")


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits of one data set, all normalised by the statistics of the training split.

    Attributes:
        name: what the data are; "fashion-mnist-subset" where the full set was asked for but is not installed.
        train: what a network learns from.
        validation: held out of the training images, class-balanced: for every choice made on the way.
        test: for the last number only.
        classes: class names, by label.
        source: where the images were read.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    source: str = ""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, over the training split, in 0..1 for uint8 images."""
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, over the training split, in 0..1 for uint8 images."""
        return self.train.std

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @checked
    def example(self, count: Size = 2) -> Tensor:
        """The first ``count`` training images, normalised, float32 [count, channels, height, width]: to trace with."""
        return self.train.normalise(self.train.images[:count])

    def describe(self) -> str:
        """Name, image shape, sizes of the splits, classes, normalisation and source, one fact a line."""
        names = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        per_channel = [f"{mean:.4f} +- {std:.4f}" for mean, std in zip(self.mean, self.std, strict=True)]
        sizes = f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test"
        lines = [
            self.name,
            f"  images   {' x '.join(map(str, self.shape))}",
            f"  splits   {sizes}",
            f"  classes  {len(self.classes)}: {names}",
            f"  pixels   {', '.join(per_channel)} per channel",
            f"  source   {self.source or 'in memory'}",
        ]
        return listing(lines)


def assemble(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    *,
    validation: float = 0.1,
    seed: int = 0,
    flips: bool = True,
    source: str = "",
) -> Dataset:
    """A data set from tensors: the validation split is drawn from ``train``, then the statistics are taken.

    Args:
        name: what to call it.
        train: images (uint8 or float) [samples, channels, height, width] and labels int64 [samples].
        test: the same, never drawn from.
        classes: class names, by label.
        validation: share of every class of ``train`` that is held out, in (0, 1).
        seed: fixes which images are held out.
        flips: whether a mirrored image keeps its label.
        source: where the images come from, for ``describe()``.

    Raises:
        ArgumentError: validation outside (0, 1).
        DataError: images or labels are empty, not finite, out of range, or of two shapes or types.
    """
    images, labels = train
    check_images(images, labels, len(classes))
    if test[0].shape[1:] != images.shape[1:] or test[0].dtype != images.dtype:
        raise DataError(
            f"Test images are {test[0].dtype} {tuple(test[0].shape[1:])}, train images {images.dtype} "
            f"{tuple(images.shape[1:])}; both must be alike."
        )
    kept, held = draw_fraction(labels, validation, seed)
    mean, std = statistics(images[kept])
    splits = [(images[kept], labels[kept]), (images[held], labels[held]), test]
    trained, validated, tested = (Split(x, y, len(classes), mean, std, flips) for x, y in splits)
    return Dataset(name, trained, validated, tested, classes, source)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, uint8 counted in units of 255."""
    moments = [_moments(images[:, channel]) for channel in range(images.shape[1])]
    return tuple(mean for mean, _ in moments), tuple(std for _, std in moments)


def _moments(values: Tensor) -> tuple[float, float]:
    if values.dtype != torch.uint8:
        return float(values.double().mean()), max(float(values.double().std(correction=0)), LEAST_STD)
    # A histogram is exact, and needs no float copy of a gigabyte of pixels.
    counts = torch.bincount(values.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
    return float(mean), max(float(variance.sqrt()), LEAST_STD)


LARGEST_SIDE = 4096
"""In pixels, of images that are resized: a single one then has 50 million numbers."""


def require_side(size: int | None) -> int | None:
    """Return ``size`` if it is None or a side in pixels, from 4 to 4096; else raise :class:`ArgumentError`."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= LARGEST_SIDE):
        raise ArgumentError(f"size={size!r} must be None or a side in pixels, 4 or more, {LARGEST_SIDE} at most.")
    return size
