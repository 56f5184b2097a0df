"""Weather between the lens and the scene: all of it is made by formula, no photographs are needed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.evaluation.corruptions import colours, resample
from nervure.evaluation.corruptions.chance import between, normal, uniform
from nervure.evaluation.corruptions.strengths import Strength

WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
ICE = (0.85, 0.93, 1.0)


def snow(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Flakes: thresholded noise, magnified and smeared downwards, over a whitened picture."""
    mean, spread, zoom, threshold, radius, sigma, rest = by.numbers
    height, width = images.shape[-2:]
    noise = mean + spread * normal(keys, 1, height, width)
    flakes = resample.zoom(noise, [zoom])
    flakes = torch.where(flakes < threshold, torch.zeros_like(flakes), flakes).clamp(0, 1)
    angle = between(keys, -135, -45, stream=1)
    flakes = resample.motion_blur(flakes, radius * by.scale, sigma * by.scale, angle)
    white = torch.maximum(images, colours.luminance(images) * 1.5 + 0.5)
    return rest * images + (1 - rest) * white + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Ice crystals over a dimmed picture: ridges where smooth noise changes its sign, at several sizes.

    The published script blends photographs of frost, which cannot travel with a library.
    """
    rest, amount = by.numbers
    height, width = images.shape[-2:]
    crystals = torch.zeros(len(images), 1, height, width, device=images.device)
    for octave in range(3):
        cells = 3 * 2**octave
        field = _smooth(2 * uniform(keys, 1, cells, cells, stream=octave) - 1, height, width)
        crystals += 0.5**octave * (1 - field.abs() * 2).clamp(0, 1) ** 2
    frosted = (0.05 + 0.9 * crystals).clamp(0, 1) * colours.paint_channels(ICE, images)
    return rest * images + amount * frosted


def fog(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Add a cloud of all sizes, then bring the brightest point back to where it was."""
    thickness, decay = by.numbers
    brightest = images.amax((1, 2, 3), keepdim=True)
    cloud = _plasma(keys, images.shape[-2], images.shape[-1], decay)
    return (images + thickness * cloud) * brightest / (brightest + thickness).clamp(min=1e-12)


def spatter(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Drops of water (severities 1 to 3) or mud (4 and 5) on the lens: smoothed noise above a threshold."""
    mean, spread, sigma, threshold, strength, muddy = by.numbers
    height, width = images.shape[-2:]
    liquid = resample.gaussian_blur(mean + spread * normal(keys, 1, height, width), sigma * max(by.scale, 0.5))
    if muddy:
        cover = (liquid > threshold).to(images.dtype)
        cover = resample.gaussian_blur(cover, strength * max(by.scale, 0.5)).clamp(max=1)
        cover = torch.where(cover < 0.8, cover * cover, cover)
        return images * (1 - cover) + colours.paint_channels(MUD, images) * cover
    drops = torch.where(liquid < threshold, torch.zeros_like(liquid), liquid)
    rim = (drops - resample.gaussian_blur(drops, 1.0)).clamp(min=0)
    cover = (strength * (drops + rim)).clamp(0, 1)
    return images * (1 - 0.3 * cover) + colours.paint_channels(WATER, images) * cover * 0.7


def _plasma(keys: Tensor, height: int, width: int, decay: float) -> Tensor:
    """Noise of all sizes in [0, 1], each octave ``decay`` times weaker than the one before: [images, 1, h, w]."""
    cloud = torch.zeros(len(keys), 1, height, width, device=keys.device)
    cells, weight, octave = 2, 1.0, 0
    while cells <= max(height, width):
        cloud += weight * _smooth(2 * uniform(keys, 1, cells, cells, stream=octave) - 1, height, width)
        cells, weight, octave = cells * 2, weight / decay, octave + 1
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    return (cloud - low) / (high - low).clamp(min=1e-12)


def _smooth(cells: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(cells, (height, width), mode="bicubic", align_corners=True)
