"""What layers are given and say while a model runs."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.core.tensors import outputs_in
from nervure.graph.preserve import restore_after

LAYERS = (nn.Linear, nn.Conv2d)
"""Layers that are looked at: these classes themselves, since a subclass may compute something else."""


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a model, by name."""
    return {name: module for name, module in model.named_modules() if type(module) in LAYERS}


@final
@dataclass(slots=True)
class Heard:
    """What a layer was given at its first call, and how often it was called."""

    first: Tensor
    calls: int = 1


def inputs_of(model: nn.Module, inputs: Inputs) -> dict[str, Heard]:
    """What the layers of a model are given, in running order; layers that are not called are left out."""
    heard: dict[str, Heard] = {}
    with ExitStack() as stack:
        for name, module in layers_of(model).items():

            def hear(module: nn.Module, args: tuple[Any, ...], kwargs: Any, name: str = name) -> None:
                if name in heard:
                    heard[name].calls += 1
                else:
                    # A copy, as it lies in memory: what comes after may work in place.
                    given = args[0] if args else next(iter(kwargs.values()))
                    heard[name] = Heard(given.detach().clone())

            stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
        outputs_of(model, inputs)
    return heard


def outputs_by_layer(model: nn.Module, names: Iterable[str], inputs: Inputs) -> dict[str, Tensor]:
    """What each of the named modules says at its first call, in running order."""
    said: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def hear(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                if name not in said:
                    said[name] = output.detach().clone()

            stack.callback(model.get_submodule(name).register_forward_hook(hear).remove)
        outputs_of(model, inputs)
    return said


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Copies of all tensors that a model returns; what it writes while it runs is put back."""
    with restore_after(model, inputs), torch.no_grad():
        return [t.clone() for t in outputs_in(inputs.run(model))]


def noisy(inputs: Inputs) -> Inputs:
    """The inputs with all floating-point numbers replaced by others of their scale, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def other(value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        noise = torch.randn(value.shape, dtype=torch.float32, generator=generator).to(value)
        return noise * value.std(correction=0).clamp(min=1e-3) + value.mean()

    return inputs.map(other)
