"""What is asked of any model: what is inside of it, whether it has weights, and how to run it in evaluation mode."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.tensors import has_shape_only

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "_original_module",
}
"""Wrappers that compute what the module inside computes, by the name of their class, and where they keep it."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers that compile it or spread it over devices; any other module itself."""
    for kind in type(model).__mro__:
        inner = getattr(model, _WRAPPERS.get(kind.__name__, ""), None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return model


def is_weightless(model: nn.Module) -> bool:
    """Whether some of the model's tensors have shapes only: on the ``meta`` device, or fake."""
    return any(has_shape_only(t) for t in (*model.parameters(), *model.buffers()))


@contextmanager
def without_fakes(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself; or, where its tensors are fake, a twin on ``meta``, with the modes that fake tensors off."""
    fake = [t for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor)]
    if not fake:
        yield model
        return
    with _disable_current_modes():
        memo: dict[int, Any] = {}
        for t in fake:
            bare = torch.empty(t.shape, dtype=t.dtype, device="meta")
            memo[id(t)] = nn.Parameter(bare, t.requires_grad) if isinstance(t, nn.Parameter) else bare
        yield copy.deepcopy(model, memo)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients inside; afterwards every module is in the mode it was in before.

    Module by module, since a frozen norm inside a model in training mode must come back frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter or buffer; the CPU for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def on_device(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """Move ``model`` to ``device`` inside and back afterwards; None leaves it where it is."""
    home = device_of(model)
    away = home if device is None else torch.device(device)
    if away == home:
        yield home
        return
    try:
        model.to(away)
        yield away
    finally:
        model.to(home)
