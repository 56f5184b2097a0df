"""How much the loss listens to the units that a recurrent layer reads, its own among them.

Such a layer reads its own units while it runs, where no hook comes. But it reads them through kernels: where
``y = W x``, the sum over steps of ``x * dL/dx`` is that over rows of ``W * dL/dW``. So the layer runs again on each
sample alone, and its kernels say what the loss would lose with each unit, to first order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nervure.core.tensors import tensors_in
from nervure.stats.unit_probe import UnitProbe, UnreadableError


@final
@dataclass(frozen=True, slots=True, eq=False)
class KernelProbe:
    """The kernel of a recurrent layer that reads units of a group; the probe says which column is which unit."""

    columns: UnitProbe
    kernel: str


@final
@dataclass(frozen=True, slots=True, eq=False)
class RecurrentCall:
    """One call of a recurrent layer: what it was given, by position and by name, and what it made of it."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: Sequence[Tensor]

    def require_samples(self, samples: int) -> None:
        """Raise :class:`UnreadableError` unless the layer was given so many samples, each of the same length."""
        given = self.args[0] if self.args else None
        if not isinstance(given, Tensor):
            raise UnreadableError("a recurrent reader is not given a tensor")
        axis = self._axis(first=True)
        if given.ndim <= axis + 1 or given.shape[axis] != samples:
            raise UnreadableError(f"a recurrent reader is given {list(given.shape)} for {samples} samples")

    def effects(self, probes: Sequence[KernelProbe], loss: Tensor, samples: int) -> list[Tensor]:
        """For each probe the effects [samples, units] of its units where this kernel reads them."""
        slopes = torch.autograd.grad(loss, self.made, allow_unused=True, retain_graph=True, materialize_grads=True)
        kernels = [getattr(self.layer, probe.kernel) for probe in probes]
        asked = [kernel.requires_grad for kernel in kernels]
        try:
            _ask(kernels, [True] * len(kernels))
            rows = [self._columns(kernels, slopes, sample) for sample in range(samples)]
        finally:
            _ask(kernels, asked)
        every = zip(probes, zip(*rows, strict=True), strict=True)
        return [probe.columns.fold(torch.stack(columns)).cpu() for probe, columns in every]

    def _columns(self, kernels: Sequence[Tensor], slopes: Sequence[Tensor], sample: int) -> list[Tensor]:
        """For each kernel what the loss of one sample would lose with each column."""
        first, *others = [self._one(value, sample, first=i == 0) for i, value in enumerate(self.args)]
        named = {name: self._one(value, sample, first=False) for name, value in self.kwargs.items()}
        # The backward pass of cuDNN is for training only, where layers drop units.
        with torch.backends.cudnn.flags(enabled=False):
            made = tensors_in(self.layer.forward(first, *others, **named))
            mine = [self._one(slope, sample, first=i == 0) for i, slope in enumerate(slopes)]
            found = torch.autograd.grad(made, kernels, mine, materialize_grads=True)
        return [(kernel.detach() * slope).float().sum(0) for kernel, slope in zip(kernels, found, strict=True)]

    def _one(self, value: Any, sample: int, *, first: bool) -> Any:
        """One sample of what the layer is given or makes; the first is the sequence, the others are states."""
        axis = self._axis(first=first)
        return tree_map_only(Tensor, lambda x: x.detach().narrow(axis, sample, 1), value)

    def _axis(self, *, first: bool) -> int:
        """The axis of the samples."""
        if not isinstance(self.layer, nn.RNNBase):
            return 0
        return 0 if first and self.layer.batch_first else 1


def _ask(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> None:
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(want)
