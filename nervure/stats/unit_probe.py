"""Where to listen: the module whose output is the units of a group, and how to read units from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from nervure.graph.types import Graph, Group, TensorAxis

KERNEL_NDIM = 3


class UnreadableError(Exception):
    """A module's output does not show the units of a group. Caught by the recorder, never seen by users."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class UnitProbe:
    """How to read the units of one group from the output of one module.

    Attributes:
        group: name of the group.
        module: name of the module that writes it.
        size: number of units.
        units: for each channel of the output its unit, or -1. Shape [channels].
        is_kernel: whether the module is like a convolution: channels are then axis 1 of the output, else the last axis.
    """

    group: str
    module: str
    size: int
    units: Tensor
    is_kernel: bool

    def channels(self, output: Tensor, samples: int) -> Tensor:
        """The output as [samples, channels, positions]; raises :class:`UnreadableError` where it has no such shape."""
        axis = self._axis(output)
        if len(output) != samples:
            raise UnreadableError(f"its output has {len(output)} rows for {samples} samples")
        return output.movedim(axis, 1).reshape(samples, len(self.units), -1)

    def fold(self, values: Tensor) -> Tensor:
        """Sum channels into units: [samples, channels] to [samples, units]."""
        units = self.units.to(values.device)
        held = units >= 0
        folded = torch.zeros(len(values), self.size, dtype=values.dtype, device=values.device)
        return folded.index_add_(1, units[held], values[:, held])

    def widths(self) -> Tensor:
        """Channels per unit. Shape [units]."""
        return torch.bincount(self.units[self.units >= 0], minlength=self.size)

    def _axis(self, output: Tensor) -> int:
        if not output.is_floating_point():
            raise UnreadableError(f"its output has dtype {output.dtype}")
        candidates = [1] if self.is_kernel else [output.ndim - 1, 1]
        for axis in candidates:
            if 0 < axis < output.ndim and output.shape[axis] == len(self.units):
                return axis
        raise UnreadableError(f"its output of shape {tuple(output.shape)} has no axis of {len(self.units)} channels")


def probes(model: nn.Module, graph: Graph) -> tuple[dict[str, UnitProbe], dict[str, str]]:
    """For each group a probe, or the reason why there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, UnitProbe] = {}
    skipped: dict[str, str] = {}
    for group in graph.groups:
        try:
            found[group.name] = _probe(group, modules)
        except UnreadableError as reason:
            skipped[group.name] = str(reason)
    return found, skipped


def _probe(group: Group, modules: Mapping[str, nn.Module]) -> UnitProbe:
    if not group.writers:
        raise UnreadableError("no tensor writes its units; they arrive from outside")
    reasons = []
    for slot in group.writers:
        try:
            return _slot_probe(group, slot, modules)
        except UnreadableError as reason:
            reasons.append(str(reason))
    raise UnreadableError(reasons[0])


def _slot_probe(group: Group, slot: TensorAxis, modules: Mapping[str, nn.Module]) -> UnitProbe:
    owner, _, last = slot.tensor.rpartition(".")
    module = modules.get(owner)
    weight = getattr(module, last, None)
    if module is None or not isinstance(weight, Tensor):
        raise UnreadableError(f"its writer {slot.tensor!r} belongs to no module")
    # The output of a module with parts, or with several kernels, need not be what this one tensor writes.
    if last != "weight" or any(True for _ in module.children()):
        raise UnreadableError(f"its writer {slot.tensor!r} is not the only kernel of {type(module).__name__} {owner!r}")
    units = torch.tensor(slot.units.array)
    probe = UnitProbe(group.name, owner, group.size, units, weight.ndim >= KERNEL_NDIM)
    if bool((probe.widths() == 0).any()):
        raise UnreadableError(f"its writer {slot.tensor!r} writes only some of its units")
    return probe
