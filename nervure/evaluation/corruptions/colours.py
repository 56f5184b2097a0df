"""Colour spaces, for batches [images, 1 or 3, height, width]."""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BLUE, RED = 1.772, 1.402


def luminance(images: Tensor) -> Tensor:
    """Grey version, [images, 1, height, width]."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def paint_channels(colour: tuple[float, float, float], images: Tensor) -> Tensor:
    """A colour in the channels of ``images``: itself, or its luminance; [1, channels, 1, 1]."""
    paint = torch.tensor(colour, device=images.device).view(1, 3, 1, 1)
    return luminance(paint) if images.shape[1] == 1 else paint


def value(images: Tensor) -> Tensor:
    """V of HSV: the largest channel, [images, 1, height, width]."""
    return images.amax(1, keepdim=True)


def with_value(images: Tensor, wanted: Tensor) -> Tensor:
    """The same hue and saturation at another value, which is clipped to [0, 1]; black becomes grey."""
    now, wanted = value(images), wanted.clamp(0, 1)
    return torch.where(now > 0, images * (wanted / now.clamp(min=1e-12)), wanted)


def saturate(images: Tensor, factor: float, offset: float) -> Tensor:
    """The same hue and value at ``saturation * factor + offset``, clipped to [0, 1]; greys turn to red."""
    top, low = value(images), images.amin(1, keepdim=True)
    spread = top - low
    saturation = spread / top.clamp(min=1e-12)
    wanted = (saturation * factor + offset).clamp(0, 1)
    hue = torch.zeros_like(images)
    hue[:, 1:] = 1.0  # what grey has for a hue: red, whose other channels are low
    depth = torch.where(spread > 0, (top - images) / spread.clamp(min=1e-12), hue)
    return top * (1 - wanted * depth)


def to_luma(images: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance [images, 1, ...] and two colour differences around 128 [images, 2, ...], of values in 0..255."""
    bright = luminance(images)
    colour = torch.cat(((images[:, 2:] - bright) / BLUE, (images[:, :1] - bright) / RED), 1)
    return bright, colour + 128


def from_luma(bright: Tensor, colour: Tensor) -> Tensor:
    """Inverse of :func:`to_luma`."""
    blue, red = colour[:, :1] - 128, colour[:, 1:] - 128
    b, r = bright + BLUE * blue, bright + RED * red
    green = (bright - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
    return torch.cat((r, green, b), 1)
