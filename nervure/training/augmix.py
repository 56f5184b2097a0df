"""AugMix (Hendrycks et al., ICLR 2020, arXiv:1912.02781): a picture mixed with chains of mild operations on itself.

Nine operations, none of which is a corruption of the benchmarks, and which share no code with them. Each picture draws
its numbers by a hash of its content and the seed, so that it comes out the same in a batch of any size. Differs from
the paper: moved pictures show their border, and not black, where nothing was; they are read bilinearly.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.core.check import checked, require_choice
from nervure.core.schema import Seed
from nervure.errors import ArgumentError
from nervure.evaluation.corruptions import require_pictures
from nervure.evaluation.corruptions.chance import image_keys, uniform

Operation: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From pictures [pictures, channels, height, width] in [0, 1] and strengths [pictures] in [-1, 1] to other pictures."""

WIDTH, DEPTH = 3, 3
"""Chains that are mixed, and the most operations of one."""
LEAST, MOST = 0.01, 0.3
"""Strengths are drawn from here, of 1: the paper's severity is 3 of 10, drawn from 0.1 on."""
DEGREES, SHEAR, STEP = 30.0, 0.3, 1 / 3
"""How far pictures move at strength 1: degrees, slope, share of the side."""
BITS, LEVELS = 4, 256


def autocontrast(pictures: Tensor, strength: Tensor) -> Tensor:
    """Stretch every channel to [0, 1]; a flat one stays."""
    low, high = pictures.amin((2, 3), keepdim=True), pictures.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pictures - low) / (high - low).clamp(min=1e-12), pictures)


def equalize(pictures: Tensor, strength: Tensor) -> Tensor:
    """Make all of the 256 levels of a channel about equally frequent."""
    levels = (pictures * (LEVELS - 1)).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], LEVELS, device=pictures.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=counts.dtype))
    below = counts.cumsum(2) - counts
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = ((levels.shape[2] - last) / (LEVELS - 1)).floor()
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(max=LEVELS - 1) / (LEVELS - 1)
    found = table.gather(2, levels).view_as(pictures)
    return torch.where(step[..., None] > 0, found, pictures)


def posterize(pictures: Tensor, strength: Tensor) -> Tensor:
    """Leave 4 bits of each value, and one fewer from strength 1/4 on."""
    bits = BITS - (strength.abs() * BITS).floor()
    cell = 2 ** (8 - bits).view(-1, 1, 1, 1)
    return ((pictures * (LEVELS - 1)).round() / cell).floor() * cell / (LEVELS - 1)


def solarize(pictures: Tensor, strength: Tensor) -> Tensor:
    """Invert what is brighter than 1 - strength."""
    return torch.where(pictures >= 1 - strength.abs().view(-1, 1, 1, 1), 1 - pictures, pictures)


def rotate(pictures: Tensor, strength: Tensor) -> Tensor:
    """Turn by up to 30 degrees."""
    angle = torch.deg2rad(strength * DEGREES)
    height, width = pictures.shape[-2:]
    sine, cosine, side = torch.sin(angle), torch.cos(angle), height / width
    return _move(pictures, cosine, -sine * side, 0, sine / side, cosine, 0)


def shear_x(pictures: Tensor, strength: Tensor) -> Tensor:
    """Slant along the rows, by up to 0.3 of the side."""
    return _move(pictures, 1, strength * SHEAR, 0, 0, 1, 0)


def shear_y(pictures: Tensor, strength: Tensor) -> Tensor:
    """Slant along the columns, by up to 0.3 of the side."""
    return _move(pictures, 1, 0, 0, strength * SHEAR, 1, 0)


def translate_x(pictures: Tensor, strength: Tensor) -> Tensor:
    """Move along the rows, by up to a third."""
    return _move(pictures, 1, 0, strength * 2 * STEP, 0, 1, 0)


def translate_y(pictures: Tensor, strength: Tensor) -> Tensor:
    """Move along the columns, by up to a third."""
    return _move(pictures, 1, 0, 0, 0, 1, strength * 2 * STEP)


def _move(pictures: Tensor, *affine: Tensor | float) -> Tensor:
    """Read pictures where two rows of three numbers, each one for all or one a picture, send their coordinates."""
    count = len(pictures)
    rows = [torch.as_tensor(number, dtype=pictures.dtype, device=pictures.device).expand(count) for number in affine]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {one.__name__: one for one in (autocontrast, equalize, posterize, solarize)}
    | {one.__name__: one for one in (rotate, shear_x, shear_y, translate_x, translate_y)}
)
MOVING_OPERATIONS: frozenset[str] = frozenset({"rotate", "shear_x", "shear_y", "translate_x", "translate_y"})
"""Operations after which things are elsewhere in the picture."""


@checked
def augmix(pictures: Tensor, *, seed: Seed = 0, operations: Sequence[str] = tuple(OPERATIONS)) -> Tensor:
    """Each picture mixed with three chains of one to three operations on it, in shares by lot.

    Args:
        pictures: float in [0, 1], [pictures, 1 or 3 channels, height, width], sides of 8 pixels or more.
        seed: another seed draws other chance.
        operations: names among ``OPERATIONS``.

    Returns:
        Float in [0, 1] of the shape, dtype and device of ``pictures``.

    Raises:
        ArgumentError: there is no operation, or one is unknown.
        DataError: pictures are not floats in [0, 1], of another layout, or too small.
    """
    require_pictures(pictures)
    if not operations:
        raise ArgumentError(f"operations={operations!r} names none; give some of {', '.join(OPERATIONS)}.")
    for name in operations:
        require_choice(name, tuple(OPERATIONS), "operations")
    whole = pictures.detach().to(torch.float32)
    keys = image_keys(whole, "augmix", seed)
    chains = _chains(whole, keys, operations)
    # Exponential numbers over their sum are Dirichlet(1, 1, 1); Beta(1, 1) is uniform.
    shares = -torch.log1p(-uniform(keys, WIDTH, stream=0))
    shares = (shares / shares.sum(1, keepdim=True)).view(-1, WIDTH, 1, 1, 1)
    weight = uniform(keys, 1, stream=1).view(-1, 1, 1, 1)
    mixed = torch.lerp(whole, (shares * chains).sum(1), weight)
    return mixed.clamp(0, 1).to(pictures.dtype)


def _chains(pictures: Tensor, keys: Tensor, operations: Sequence[str]) -> Tensor:
    """One to three operations, one after the other: [pictures, WIDTH, channels, height, width]."""
    length = 1 + (uniform(keys, WIDTH, stream=2).flatten() * DEPTH).long()
    choices = (uniform(keys, WIDTH, DEPTH, stream=3).flatten(0, 1) * len(operations)).long()
    strengths = LEAST + (MOST - LEAST) * uniform(keys, WIDTH, DEPTH, stream=4).flatten(0, 1)
    strengths = torch.where(uniform(keys, WIDTH, DEPTH, stream=5).flatten(0, 1) < 0.5, -strengths, strengths)
    result = pictures.repeat_interleave(WIDTH, 0)
    for step in range(DEPTH):
        drawn = torch.where(step < length, choices[:, step], -1)
        for place, name in enumerate(operations):
            (chosen,) = (drawn == place).nonzero(as_tuple=True)
            if len(chosen):
                result[chosen] = OPERATIONS[name](result[chosen], strengths[chosen, step]).clamp(0, 1)
    return result.view(-1, WIDTH, *pictures.shape[1:])
