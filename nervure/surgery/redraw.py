"""A model's structure with other numbers: parameters and inputs drawn at random, in double precision.

What training made of the numbers can hide a wrong cut: a head of zeros, a saturated softmax, outputs of 1e-6. Structure
is checked on numbers that hide nothing.
"""

import math
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
WIDE |= {torch.complex64: torch.complex128}


def widen(model: nn.Module) -> None:
    """Turn every number of ``model`` to double precision, in place; plain tensor attributes too."""
    model._apply(widened)
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[key] = widened(value)


def widened(value: Any) -> Any:
    """A tensor in double precision; anything else as it is."""
    return value.to(WIDE.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value


def redraw(model: nn.Module, seed: int) -> None:
    """Draw every parameter of ``model`` anew, and the buffers around what they are, in place.

    Matrices get values that keep the size of what they multiply behind a rectifier (half of it is zero), vectors
    (biases, scales) values around their mean.
    Buffers may be tables with a meaning: they keep it, but no two entries are alike.
    """
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if _is_number(parameter):
                _redraw_parameter(parameter, torch.Generator(parameter.device).manual_seed(1000 * seed + i))
        for i, buffer in enumerate(model.buffers()):
            if _is_number(buffer):
                noise = torch.Generator(buffer.device).manual_seed(1_000_000 + 1000 * seed + i)
                around = 0.3 * _uniform(buffer, noise)
                buffer.add_(around if not bool(buffer.any()) else around * buffer.nan_to_num(0, 0, 0))


def _is_number(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def _redraw_parameter(parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.dim() > 1:
        fan = parameter.numel() / parameter.shape[0]
        parameter.copy_(_uniform(parameter, generator).mul_(max(math.sqrt(6 / max(fan, 1)), 0.02)))
    elif parameter.numel():
        parameter.copy_(_uniform(parameter, generator).mul_(0.3).add_(parameter.mean()))


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Values in [-1, 1] of the shape of ``like``."""
    drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
    parts = torch.view_as_real(drawn) if drawn.is_complex() else drawn
    parts.uniform_(-1, 1, generator=generator)
    return drawn


def redrawn_inputs(example: Any, seed: int) -> Any:
    """``example`` with its fractional numbers drawn from a normal distribution of their mean and spread (or 1)."""
    drawn = count(1000 * seed)
    return tree_map(lambda x: _redrawn_input(x, next(drawn)) if isinstance(x, Tensor) and _is_number(x) else x, example)


def _redrawn_input(x: Tensor, seed: int) -> Tensor:
    known = x[torch.isfinite(x)]
    spread = known.std(correction=0) if known.numel() else torch.zeros(())
    middle = known.mean() if known.numel() else torch.zeros(())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    return middle.to(x) + noise * (spread.to(x) if spread.abs() > 0 else 1)


def round_once(model: nn.Module) -> None:
    """Move every parameter by one rounding, up or down by chance, in place."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.is_floating_point():
                step = torch.finfo(parameter.dtype).eps
                sign = _uniform(parameter, torch.Generator(parameter.device).manual_seed(i)).sign_()
                parameter.mul_(sign.mul_(step).add_(1))
