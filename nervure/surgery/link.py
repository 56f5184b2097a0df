"""Links: a sparse skip connection from what one layer writes to what another writes.

The two layers keep their class name, parameters and places: each becomes a subclass of itself that, after its own
forward, hands its output to a shared signal or adds the linked signal to it. Copies of a model keep pairs together.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure.errors import PlanError
from nervure.graph.types import Graph
from nervure.plan import Link


class Signal:
    """What a source hands to a target during one forward pass; it holds nothing between passes."""

    def __init__(self) -> None:
        self.value: Tensor | None = None


class Wire(nn.Module):
    """A masked linear map from the units of a source to the units of a target, resampled in space where they differ.

    Attributes:
        weight: [target units, source units], zero where ``mask`` is False.
        mask: boolean buffer of the same shape.
    """

    mask: Tensor

    def __init__(self, keep: Tensor, last: bool, like: Tensor) -> None:
        super().__init__()
        # Zero start: a fresh link leaves the function as it was, so that training decides what it carries.
        self.weight = nn.Parameter(torch.zeros(keep.shape, dtype=like.dtype, device=like.device))
        self.register_buffer("mask", keep.to(like.device))
        self.last = last

    def forward(self, signal: Tensor, target: Tensor) -> Tensor:
        """What arrives at ``target`` [batch, units, ...] from ``signal``."""
        weight = self.weight * self.mask
        if self.last:
            return F.linear(signal, weight)
        signal = F.conv2d(signal, weight[:, :, None, None]) if signal.dim() == 4 else F.linear(signal, weight)
        if signal.dim() == 4 and signal.shape[2:] != target.shape[2:]:
            signal = F.adaptive_avg_pool2d(signal, list(target.shape[2:]))  # type: ignore[arg-type]
        return signal


@cache
def _source_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.forward(self, *args, **kwargs)
        for signal in self.__dict__["_signals"]:
            signal.value = out
        return out

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "_links_out": True})


@cache
def _target_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.forward(self, *args, **kwargs)
        for name, signal in self.__dict__["_wired"]:
            value, signal.value = signal.value, None
            if value is not None:
                out = out + getattr(self, name)(value, out)
        return out

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "_links_in": True})


def link(model: nn.Module, graph: Graph, edit: Link, keeps: Mapping[str, np.ndarray]) -> None:
    """Insert the connection of ``edit`` into ``model`` in place; raises PlanError where its ends do not fit."""
    source, target = _writer(graph, edit.source), _writer(graph, edit.target)
    keep = edit.keep.tensor()
    wanted = (graph[edit.target].size, graph[edit.source].size)
    if tuple(keep.shape) != wanted:
        raise PlanError(
            f"link {edit.source!r} -> {edit.target!r}: keep has shape {tuple(keep.shape)}, the groups {wanted}."
        )
    for axis, group in enumerate((edit.target, edit.source)):
        if group in keeps:
            keep = keep.index_select(axis, torch.from_numpy(np.flatnonzero(keeps[group])))
    first, second = model.get_submodule(source), model.get_submodule(target)
    signal = Signal()
    _become(first, _source_class, "_links_out", "_signals").append(signal)
    wired = _become(second, _target_class, "_links_in", "_wired")
    name = f"link_{len(wired)}"
    like = next(second.parameters())
    setattr(second, name, Wire(keep, isinstance(second, nn.Linear), like))
    wired.append((name, signal))


def _writer(graph: Graph, name: str) -> str:
    writers = graph[name].writers
    if not writers:
        raise PlanError(f"group {name!r} is written by no layer, so no link can start or end there.")
    return writers[0].tensor.rpartition(".")[0]


def _become(module: nn.Module, make: Callable[..., type[nn.Module]], flag: str, key: str) -> list[Any]:
    if not getattr(type(module), flag, False):
        module.__class__ = make(type(module))
        module.__dict__[key] = []
    held: list[Any] = module.__dict__[key]
    return held
