"""Shifts of place and sign: the picture turned, moved, shrunk, or made a negative. What comes into view is black."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.evaluation.corruptions.chance import uniform
from nervure.evaluation.corruptions.strengths import Strength


def rotate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Turn about the middle, left or right by lot."""
    angle = torch.deg2rad(by.number * _sign(uniform(keys)))
    return _warp(images, torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.zeros_like(angle))


def translate(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Move by a share of the side, along one of the two axes and in one of the two directions, by lot."""
    far = 2 * by.number * _sign(uniform(keys))
    across = uniform(keys, stream=1) < 0.5
    none = torch.zeros_like(far)
    return _warp(images, none + 1, none, torch.where(across, far, none), torch.where(across, none, far))


def scale(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Shrink towards the middle."""
    one = torch.ones(len(images), device=images.device)
    return _warp(images, one / by.number, 0 * one, 0 * one, 0 * one)


def invert(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Blend with the negative; at severity 5 it is the negative."""
    return images * (1 - by.number) + (1 - images) * by.number


def _sign(lots: Tensor) -> Tensor:
    return torch.where(lots < 0.5, -1.0, 1.0)


def _warp(images: Tensor, cosine: Tensor, sine: Tensor, across: Tensor, down: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    # Coordinates run from -1 to 1 on both axes: the ratio of the sides keeps a turn a turn.
    first = torch.stack((cosine, -sine * (height / width), across), -1)
    second = torch.stack((sine * (width / height), cosine, down), -1)
    grid = F.affine_grid(torch.stack((first, second), 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
