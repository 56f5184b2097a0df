"""Blur: pixels run into each other."""

from statistics import fmean

import torch
from torch import Tensor

from nervure.evaluation.corruptions import resample
from nervure.evaluation.corruptions.chance import between, uniform
from nervure.evaluation.corruptions.geometry import magnification
from nervure.evaluation.corruptions.motion import Motion
from nervure.evaluation.corruptions.strengths import Strength

ZOOM_STEP = 0.01


def defocus_blur(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Spread every point over a disk, as a lens out of focus does."""
    radius, sigma = by.numbers
    return resample.filter_by(images, resample.disk(radius * by.scale, sigma))


def gaussian_blur(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Smooth with a Gaussian."""
    return resample.gaussian_blur(images, by.number * by.scale)


def glass_blur(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Look through frosted glass: smooth, let every pixel show a neighbour, smooth again.

    The published script swaps pixels one after the other. Here each reads a neighbour, all at once: as local, and
    vectorised, at the price that a pixel may be shown twice.
    """
    sigma, reach, rounds, share = by.numbers
    height, width = images.shape[-2:]
    far = max(1, round(reach * max(by.scale, 1)))
    rows, columns = resample.places(images)
    result = resample.gaussian_blur(images, sigma * by.scale)
    for turn in range(int(rounds)):
        lots = uniform(keys, 3, height, width, stream=turn)
        moves = ((lots[:, :2] * (2 * far + 1)).floor() - far) * (lots[:, 2:] < share)
        down = (rows + moves[:, 0]).clamp(0, height - 1).long()
        across = (columns + moves[:, 1]).clamp(0, width - 1).long()
        index = (down * width + across).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        result = torch.gather(result.flatten(2), 2, index).view_as(images)
    return resample.gaussian_blur(result, sigma * by.scale)


def motion_blur(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Smear along a direction within 45 degrees of the horizontal."""
    radius, sigma = by.numbers
    angle = between(keys, -45, 45)
    return resample.motion_blur(images, radius * by.scale, sigma * by.scale, angle)


def zoom_blur(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Mean of the picture and its magnifications, as when the lens is zoomed during the exposure."""
    return resample.zoom(images, _factors(by))


def zoom_motion(images: Tensor, keys: Tensor, by: Strength) -> Motion:
    """Where :func:`zoom_blur` reads in the mean over its magnifications."""
    return magnification(images, fmean(_factors(by)))


def _factors(by: Strength) -> list[float]:
    steps = round((by.number - 1) / ZOOM_STEP)
    return [1 + step * ZOOM_STEP for step in range(steps + 1)]
