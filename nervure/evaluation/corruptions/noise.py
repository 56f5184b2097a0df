"""Noise: each pixel errs on its own."""

import torch
from torch import Tensor

from nervure.evaluation.corruptions.chance import normal, uniform
from nervure.evaluation.corruptions.strengths import Strength

LEVELS = 1020  # brightness of shot noise is rounded to such steps: exact for 8-bit pictures


def gaussian_noise(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Add normal noise."""
    return images + by.number * normal(keys, *images.shape[1:])


def shot_noise(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Count photons: a Poisson number with the brightness as its mean."""
    photons = float(by.number)
    levels = (images * LEVELS).round().clamp(0, LEVELS).to(torch.int64)
    counts = _poisson(levels, uniform(keys, *images.shape[1:]), photons / LEVELS)
    return counts / photons


def impulse_noise(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Turn a fraction of the values white or black."""
    lot = uniform(keys, *images.shape[1:])
    salted = torch.where(lot < by.number / 2, torch.ones_like(images), images)
    return torch.where(lot >= 1 - by.number / 2, torch.zeros_like(images), salted)


def speckle_noise(images: Tensor, keys: Tensor, by: Strength) -> Tensor:
    """Multiply with normal noise: bright pixels err more."""
    return images + images * by.number * normal(keys, *images.shape[1:])


def _poisson(levels: Tensor, lots: Tensor, unit: float) -> Tensor:
    """Poisson numbers of mean ``levels * unit`` by inversion: the first count whose cumulated chance passes the lot."""
    means = torch.arange(LEVELS + 1, dtype=torch.float64) * unit
    top = float(means[-1])
    counts = torch.arange(int(top + 8 * top**0.5 + 16), dtype=torch.float64)
    chances = torch.exp(torch.xlogy(counts, means[:, None]) - means[:, None] - torch.lgamma(counts + 1))
    cumulated = chances.cumsum(1).clamp(max=1)
    # All tables in one sorted line, each in its own interval: one search serves every pixel.
    line = (cumulated + 2 * torch.arange(LEVELS + 1)[:, None]).flatten().to(levels.device)
    found = torch.searchsorted(line, lots.double() + 2 * levels, right=True)
    return (found - levels * len(counts)).to(lots.dtype)
