"""Dropping blocks: the modules of a branch step aside, its output becomes zero (nothing, where it was concatenated)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from nervure.graph.example import tensors_in
from nervure.graph.types import NOT_CUT, Block, Graph, Silence


class Pass(nn.Module):
    """Returns its first argument, whatever else it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument."""
        return args[0] if args else next(iter(kwargs.values()))


class Silent(nn.Module):
    """Returns zeros of the shape that the module it stands for returned; see :class:`nervure.graph.Silence`."""

    def __init__(self, silence: Silence) -> None:
        super().__init__()
        self.entered, self.left = list(silence.entered), list(silence.left)
        self.live, self.own, self.extras = silence.live, silence.own, silence.extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros."""
        x: Tensor = tensors_in((args, kwargs))[0]
        sizes = [self._size(axis, x) for axis in range(len(self.left))]
        zeros = x.new_zeros(sizes)
        return zeros if self.extras < 0 else (zeros, *[None] * self.extras)

    def _size(self, axis: int, x: Tensor) -> int:
        if axis in self.live:
            return x.shape[axis]
        if axis in self.own or axis >= x.dim() or not self.entered[axis]:
            return self.left[axis]
        return x.shape[axis] * self.left[axis] // self.entered[axis]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        return f"{tuple(self.entered)} -> {tuple(self.left)}"


def drop(model: nn.Module, graph: Graph, block: Block, keeps: Mapping[str, np.ndarray]) -> None:
    """Take ``block`` out of ``model``, whose groups were cut to ``keeps``, in place."""
    silences = {silence.module: _after(silence, graph, keeps) for silence in block.silences}
    for name in block.modules:
        parent, _, key = name.rpartition(".")
        old = model.get_submodule(name)
        new = Silent(silences[name]) if name in silences else Pass()
        _take_settings(new, old)
        owner = model.get_submodule(parent)
        setattr(owner, key, new.train(old.training))
        _leave_fused_path(owner, old, new)
    for name in block.aliases:
        parent, _, key = name.rpartition(".")
        left, old = Settings(), model.get_submodule(name)
        _take_settings(left, old)
        setattr(model.get_submodule(parent), key, left)


class Settings(nn.Module):
    """Stands for a part of a module that left: holds what code around it may read, and runs nothing."""


def _take_settings(new: nn.Module, old: nn.Module) -> None:
    """Code around a module may read plain settings off it and its parts (the kind of its attention, say): they stay.

    So do types and devices of parameters, which are empty from now on.
    """
    for key, value in vars(old).items():
        if not key.startswith("_") and key not in vars(new) and not isinstance(value, Tensor | nn.Module):
            vars(new)[key] = value
    for key, parameter in old.named_parameters(recurse=False):
        new.register_buffer(key, parameter.detach().new_empty(0), persistent=False)
    for key, part in old.named_children():
        new.add_module(key, Settings())
        _take_settings(new.get_submodule(key), part)


def _leave_fused_path(owner: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """PyTorch's encoder layer has a fused path that reads weights off its parts; it must run them instead."""
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0
    if isinstance(old, nn.MultiheadAttention):
        # What the layer takes for "attention without biases", which has no fused path.
        new.register_buffer("in_proj_bias", None, persistent=False)


def _after(silence: Silence, graph: Graph, keeps: Mapping[str, np.ndarray]) -> Silence:
    left = list(silence.left)
    for axis, number in zip(silence.own, silence.axes, strict=True):
        if number != NOT_CUT:
            left[axis] = int(graph.axes[number].kept(keeps).sum())
    return replace(silence, left=tuple(left))
