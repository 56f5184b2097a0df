"""Moving and smoothing pixels: warps, zooms, blurs, each for whole batches [images, channels, height, width]."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

REACH = 4.0  # a Gaussian is cut off at so many standard deviations


def filter_by(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel with ``kernel`` [height, width] (odd sides); the border repeats outwards."""
    down, across = (side // 2 for side in kernel.shape)
    channels = images.shape[1]
    padded = F.pad(images, (across, across, down, down), mode="replicate")
    return F.conv2d(padded, kernel.to(images).expand(channels, 1, *kernel.shape), groups=channels)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Smooth with a Gaussian of standard deviation ``sigma`` pixels; 0 leaves the images as they are."""
    if sigma <= 0:
        return images
    weights = gaussian(sigma, max(1, math.ceil(REACH * sigma)))
    return filter_by(filter_by(images, weights[None, :]), weights[:, None])


def gaussian(sigma: float, radius: int) -> Tensor:
    """Weights of a Gaussian at -radius .. radius, summing to 1."""
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return weights / weights.sum()


def disk(radius: float, sigma: float) -> Tensor:
    """A disk of ``radius`` pixels with its edge smoothed by ``sigma``, summing to 1: the blur of a lens out of focus.

    Pixels on the edge count by the share of them that is covered, so that a radius below one pixel still blurs.
    """
    side, fine = max(1, math.ceil(radius)), 8
    steps = (torch.arange((2 * side + 1) * fine, dtype=torch.float32) + 0.5) / fine - side - 0.5
    inside = (steps[:, None] ** 2 + steps[None, :] ** 2 <= max(radius, 0.5) ** 2).float()
    covered = F.avg_pool2d(inside[None, None], fine)
    smooth = gaussian_blur(F.pad(covered, (1, 1, 1, 1)), sigma)[0, 0]
    return smooth / smooth.sum()


def sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read images at fractional places, bilinearly; beyond the border the nearest pixel is read.

    Args:
        images: [images, channels, height, width].
        rows: where to read, in pixels from the top, [images or 1, height, width].
        columns: the same from the left.
    """
    height, width = images.shape[-2:]
    grid = torch.stack(((columns + 0.5) * (2 / width) - 1, (rows + 0.5) * (2 / height) - 1), -1)
    grid = grid.expand(len(images), *grid.shape[1:])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, float32 [1, height, width] each."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32, device=images.device)
    columns = torch.arange(width, dtype=torch.float32, device=images.device)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return down[None], across[None]


def motion_blur(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Smear each image along its own direction: weights fall off as a Gaussian of ``sigma`` up to ``radius`` pixels.

    Args:
        images: [images, channels, height, width].
        radius: length of the trail, pixels.
        sigma: standard deviation of the weights along it, pixels.
        degrees: direction of each image, [images].
    """
    steps = max(1, round(radius))
    weights = torch.exp(-0.5 * (torch.arange(steps + 1, dtype=torch.float32) * (radius / steps) / sigma) ** 2)
    weights = weights / weights.sum()
    angle = torch.deg2rad(degrees).view(-1, 1, 1)
    rows, columns = places(images)
    result = weights[0] * images
    for step in range(1, steps + 1):
        far = step * radius / steps
        result = result + weights[step] * sample(
            images, rows + far * torch.sin(angle), columns + far * torch.cos(angle)
        )
    return result


def zoom(images: Tensor, factors: list[float]) -> Tensor:
    """Mean over ``factors`` of the centre of the images, magnified so many times (bilinear, same size)."""
    height, width = images.shape[-2:]
    result = torch.zeros_like(images)
    for factor in factors:
        tall, wide = magnifier(height, factor).to(images), magnifier(width, factor).to(images)
        result += tall @ images @ wide.T
    return result / len(factors)


def magnifier(side: int, factor: float) -> Tensor:
    """Matrix [side, side] that magnifies the middle of a line of pixels, bilinearly."""
    middle = (side - 1) / 2
    wanted = ((torch.arange(side, dtype=torch.float32) - middle) / factor + middle).clamp(0, side - 1)
    return 1 - (wanted[:, None] - torch.arange(side, dtype=torch.float32)[None, :]).abs().clamp(max=1)


def box(side: int, small: int) -> Tensor:
    """Matrix [small, side]: each new pixel is the mean of the part of the line that it covers."""
    edges = torch.arange(small + 1, dtype=torch.float32) * (side / small)
    cells = torch.arange(side, dtype=torch.float32)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    overlap = overlap.clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def stretch(small: int, side: int) -> Tensor:
    """Matrix [side, small]: each pixel repeats the small one in which its centre lies."""
    source = ((torch.arange(side, dtype=torch.float32) + 0.5) * (small / side)).floor().long().clamp(max=small - 1)
    return F.one_hot(source, small).float()
