"""Randomness that belongs to a picture: the same picture draws the same numbers, wherever and whenever it comes.

A stateful generator gives a picture other numbers when the pictures before it change. Here each number is a hash of
(picture, corruption, severity, seed, place), by the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators"): any subset, in any order, in batches of any size, on any device.
"""

import math
import zlib

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685  # 0x94D049BB133111EB
HALF = 32


def image_keys(images: Tensor, *salt: int | str) -> Tensor:
    """One 64-bit number for each picture, from its content rounded to 1/255 and from ``salt``: int64 [images]."""
    levels = (images.detach().float() * 255).round().to(torch.int64).flatten(1)
    places = torch.arange(1, levels.shape[1] + 1, device=images.device, dtype=torch.int64)
    keys = (levels * (mix_bits(places * GOLDEN) | 1)).sum(1)
    for part in salt:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        keys = mix_bits(keys ^ mix_bits(torch.tensor(number + 1, device=images.device) * GOLDEN))
    return mix_bits(keys)


def uniform(keys: Tensor, *shape: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1), float32 [keys, *shape]; another ``stream`` gives others."""
    return _fraction(_bits(keys, shape, stream))


def normal(keys: Tensor, *shape: int, stream: int = 0) -> Tensor:
    """Standard normal numbers, float32 [keys, *shape], by Box and Muller (1958)."""
    bits = _bits(keys, shape, stream)
    # 1 - u lies in (0, 1]: its logarithm is finite.
    radius = (-2 * torch.log(1 - _fraction(bits))).sqrt_()
    return radius.mul_(torch.cos(_fraction(bits << HALF).mul_(2 * math.pi)))


def between(keys: Tensor, low: float, high: float, *shape: int, stream: int = 0) -> Tensor:
    """Numbers in [low, high), float32 [keys, *shape]."""
    return uniform(keys, *shape, stream=stream) * (high - low) + low


def mix_bits(numbers: Tensor) -> Tensor:
    """Finaliser of SplitMix64: a bijection of 64 bits that leaves no pattern."""
    numbers = (numbers ^ _shift(numbers, 30)) * FIRST
    numbers = (numbers ^ _shift(numbers, 27)) * SECOND
    return numbers ^ _shift(numbers, 31)


def _bits(keys: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    own = mix_bits(keys ^ mix_bits(torch.tensor(stream + 1, device=keys.device) * SECOND))
    places = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64) * GOLDEN
    return mix_bits(own[:, None] + places).view(len(keys), *shape)


def _fraction(bits: Tensor) -> Tensor:
    return _shift(bits, 40).to(torch.float32).mul_(2.0**-24)


def _shift(numbers: Tensor, by: int) -> Tensor:
    # ``>>`` copies the sign of an int64 into the upper bits; the mask takes it away.
    return (numbers >> by) & ((1 << (64 - by)) - 1)
