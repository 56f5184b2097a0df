"""A model's structure with other numbers: parameters and inputs drawn at random, in double precision.

What training made of the numbers can hide a wrong cut: a head of zeros, a saturated softmax, outputs of 1e-6. Structure
is checked on numbers that hide nothing.
"""

import math
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.graph.copies import copy_model

WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
WIDE |= {torch.complex64: torch.complex128}


def with_other_numbers(model: nn.Module, *, wide: bool, seed: int | None) -> nn.Module:
    """A copy of ``model`` in double precision (``wide``), with random numbers (unless ``seed`` is None), or both.

    Matrices get values that keep the size of what they multiply behind a rectifier (half of it is zero), vectors
    (biases, scales) values around their mean.
    Buffers may be tables with a meaning: they keep it, but no two entries are alike.
    """
    made: dict[int, Any] = {}
    for i, parameter in enumerate(model.parameters()):
        # A copy that finds the new numbers in its memo never makes the old ones.
        if type(parameter) is nn.Parameter and _is_number(parameter):
            dtype = WIDE.get(parameter.dtype, parameter.dtype) if wide else parameter.dtype
            made[id(parameter)] = nn.Parameter(_new(parameter.detach(), dtype, seed, i), parameter.requires_grad)
    result = copy_model(model, made)
    if wide:
        widen(result)
    if seed is not None:
        with torch.no_grad():
            for i, buffer in enumerate(result.buffers()):
                if _is_number(buffer):
                    _redraw_buffer(buffer, _generator(buffer, 1_000_000 + 1000 * seed + i))
    return result


def widen(model: nn.Module) -> None:
    """Turn every number of ``model`` to double precision, in place; plain tensor attributes too."""
    model._apply(to_double)
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[key] = to_double(value)


def to_double(value: Any) -> Any:
    """A tensor in double precision; anything else as it is."""
    return value.to(WIDE.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value


def _new(old: Tensor, dtype: torch.dtype, seed: int | None, number: int) -> Tensor:
    """``old`` in another precision, drawn anew where there is a seed."""
    if seed is None:
        return old.to(dtype, copy=True)
    generator = _generator(old, 1000 * seed + number)
    if old.dim() > 1:
        fan = old.numel() / old.shape[0]
        return _uniform(old, generator, dtype, max(math.sqrt(6 / max(fan, 1)), 0.02))
    return _uniform(old, generator, dtype, 0.3).add_(old.mean()) if old.numel() else old.to(dtype, copy=True)


def _redraw_buffer(buffer: Tensor, generator: torch.Generator) -> None:
    around = _uniform(buffer, generator, buffer.dtype, 0.3)
    buffer.add_(around if not bool(buffer.any()) else around * buffer.nan_to_num(0, 0, 0))


def _generator(like: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(seed)


def _is_number(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def _uniform(like: Tensor, generator: torch.Generator, dtype: torch.dtype, size: float) -> Tensor:
    """Values in [-size, size] of the shape of ``like``."""
    drawn = torch.empty_like(like, dtype=dtype)
    parts = torch.view_as_real(drawn) if drawn.is_complex() else drawn
    parts.uniform_(-size, size, generator=generator)
    return drawn


def redrawn_inputs(inputs: Inputs, seed: int) -> Inputs:
    """``inputs`` with their fractional numbers drawn from a normal distribution of their mean and spread (or 1)."""
    drawn = count(1000 * seed)
    return inputs.map(lambda x: _redrawn_input(x, next(drawn)) if _is_number(x) else x)


def _redrawn_input(x: Tensor, seed: int) -> Tensor:
    known = x[torch.isfinite(x)]
    spread = known.std(correction=0) if known.numel() else torch.zeros(())
    middle = known.mean() if known.numel() else torch.zeros(())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    return middle.to(x) + noise * (spread.to(x) if spread.abs() > 0 else 1)


def rounded_copy(model: nn.Module, seed: int) -> nn.Module:
    """A copy of which every parameter is moved by one rounding, up or down by chance; zeros stay."""
    copy = copy_model(model)
    with torch.no_grad():
        for i, parameter in enumerate(copy.parameters()):
            if parameter.is_floating_point():
                step = torch.finfo(parameter.dtype).eps
                sign = _uniform(parameter, _generator(parameter, 1000 * seed + i), parameter.dtype, 1).sign_()
                parameter.mul_(sign.mul_(step).add_(1))
    return copy
