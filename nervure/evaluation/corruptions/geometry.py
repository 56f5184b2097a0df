"""Shifts of place and sign: the picture turned, moved, shrunk, or made a negative. What comes into view is black."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.evaluation.corruptions.chance import uniform
from nervure.evaluation.corruptions.motion import Motion
from nervure.evaluation.corruptions.strengths import Strength


def rotate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Turn about the middle, left or right by lot."""
    return _read(images, rotation(images, keys, by))


def rotation(images: Tensor, keys: Tensor, by: Strength) -> Motion:
    """Where :func:`rotate` reads."""
    angle = torch.deg2rad(by.number * _sign(uniform(keys)))
    return _motion(images, torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.zeros_like(angle))


def translate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Move by a share of the side, along one of the two axes and in one of the two directions, by lot."""
    return _read(images, translation(images, keys, by))


def translation(images: Tensor, keys: Tensor, by: Strength) -> Motion:
    """Where :func:`translate` reads."""
    far = 2 * by.number * _sign(uniform(keys))
    across = uniform(keys, stream=1) < 0.5
    none = torch.zeros_like(far)
    return _motion(images, none + 1, none, torch.where(across, far, none), torch.where(across, none, far))


def scale(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Shrink towards the middle."""
    return _read(images, magnification(images, by.number))


def magnification(images: Tensor, factor: float) -> Motion:
    """Where a picture is read that is magnified so many times about its middle."""
    one = torch.ones(len(images), device=images.device)
    return _motion(images, one / factor, 0 * one, 0 * one, 0 * one)


def invert(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Blend with the negative; at severity 5 it is the negative."""
    return images * (1 - by.number) + (1 - images) * by.number


def _sign(lots: Tensor) -> Tensor:
    return torch.where(lots < 0.5, -1.0, 1.0)


def _motion(images: Tensor, cosine: Tensor, sine: Tensor, across: Tensor, down: Tensor) -> Motion:
    height, width = images.shape[-2:]
    # Coordinates run from -1 to 1 on both axes: the ratio of the sides keeps a turn a turn.
    first = torch.stack((cosine, -sine * (height / width), across), -1)
    second = torch.stack((sine * (width / height), cosine, down), -1)
    return Motion.affine(torch.stack((first, second), 1), height, width)


def _read(images: Tensor, motion: Motion) -> Tensor:
    return F.grid_sample(images, motion.grid, mode="bilinear", padding_mode="zeros", align_corners=False)
