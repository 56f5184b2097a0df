"""What processing does to a picture: exposure, contrast, compression, coarse pixels, colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.evaluation.corruptions import colours, resample
from nervure.evaluation.corruptions.chance import between
from nervure.evaluation.corruptions.motion import Motion
from nervure.evaluation.corruptions.strengths import GREY_GAIN, Strength

BLOCK = 8
# Annex K of the JPEG standard (ITU-T T.81, 1992): the tables that quality 50 uses.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)


def brightness(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Raise the value (of hue, saturation, value) of every pixel."""
    return colours.with_value(images, colours.value(images) + by.number)


def contrast(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Bring every channel closer to its mean over the picture."""
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * by.number + means


def saturate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Weaken (severities 1 and 2) or strengthen the colours.

    A grey picture has none; there the sensor saturates: values are multiplied by 1.2 to 2.5 and clipped.
    """
    if images.shape[1] == 1:
        return images * GREY_GAIN[by.severity - 1]
    factor, offset = by.numbers
    return colours.saturate(images, factor, offset)


def pixelate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Shrink to a share of the side by box means, and show the coarse pixels at full size."""
    result = images
    for axis in (2, 3):
        side = images.shape[axis]
        small = max(1, int(side * by.number))
        coarse = (resample.stretch(small, side) @ resample.box(side, small)).to(images)
        result = torch.einsum("ps,...s->...p", coarse, result.movedim(axis, -1)).movedim(-1, axis)
    return result


def elastic_transform(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Jitter three corners of a triangle (an affine map), then move pixels by a smooth random field."""
    return resample.sample(images, *_stretch(images, keys, by))


def elastic_motion(images: Tensor, keys: Tensor, by: Strength) -> Motion:
    """Where :func:`elastic_transform` reads."""
    return Motion.of_pixels(*_stretch(images, keys, by))


def jpeg_compression(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Do what baseline JPEG loses: colours at half resolution, coefficients of 8 x 8 blocks rounded by quality.

    The entropy coding that follows loses nothing, so it is left out.
    """
    if images.shape[1] == 1:
        return _quantise_blocks(images * 255, LUMINANCE, by.number) / 255
    height, width = images.shape[-2:]
    bright, colour = colours.to_luma(images * 255)
    halved = F.avg_pool2d(F.pad(colour, (0, width % 2, 0, height % 2), mode="replicate"), 2)
    halved = _quantise_blocks(halved, CHROMINANCE, by.number)
    colour = halved.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    return colours.from_luma(_quantise_blocks(bright, LUMINANCE, by.number), colour) / 255


def _stretch(images: Tensor, keys: Tensor, by: Strength) -> tuple[Tensor, Tensor]:
    """Where each pixel of an elastic picture is read: rows and columns."""
    strength, smoothness, jitter = by.numbers
    side = min(images.shape[-2:])
    rows, columns = _jitter(images, keys, jitter * side)
    if strength > 0:
        field = between(keys, -1, 1, 2, *images.shape[-2:], stream=1)
        field = strength * side * resample.gaussian_blur(field, min(smoothness * side, side / 4))
        rows, columns = rows + field[:, 0], columns + field[:, 1]
    return rows, columns


def _jitter(images: Tensor, keys: Tensor, far: float) -> tuple[Tensor, Tensor]:
    """Where each pixel is read after three anchors moved by up to ``far`` pixels: rows and columns."""
    rows, columns = resample.places(images)
    height, width = images.shape[-2:]
    third = min(height, width) / 3
    middle = torch.tensor([height / 2, width / 2], device=images.device)
    offsets = torch.tensor([[third, third], [third, -third], [-third, -third]], device=images.device)
    anchors = middle + offsets
    moved = anchors + between(keys, -far, far, 3, 2)
    # The affine map that takes the moved anchors back to where they were.
    ones = torch.ones_like(moved[..., :1])
    back = torch.linalg.solve(torch.cat((moved, ones), -1), anchors.expand_as(moved))
    places = torch.stack((rows[0], columns[0], torch.ones_like(rows[0])), -1)
    read = torch.einsum("hwk,nkd->dnhw", places, back)
    return read[0], read[1]


def _quantise_blocks(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    """Round the cosine coefficients of every 8 x 8 block of planes in 0..255 to multiples of the scaled table."""
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate").round() - 128
    cosines = _cosines().to(planes)
    steps = _steps(table, quality).to(planes)
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-3, -2)
    coefficients = (cosines @ blocks @ cosines.T / steps).round() * steps
    decoded = (cosines.T @ coefficients @ cosines).transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
    whole: Tensor = decoded + 128
    return whole[..., :height, :width].round().clamp(0, 255)


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of eight values, [8, 8]."""
    numbers = torch.arange(BLOCK, dtype=torch.float32)
    matrix = torch.cos(math.pi / BLOCK * numbers[:, None] * (numbers[None, :] + 0.5)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def _steps(table: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    """The table at ``quality`` 1..100, scaled as the Independent JPEG Group does."""
    factor = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table, dtype=torch.float32) * factor + 50) / 100).floor().clamp(1, 255)
