"""What the readers of a unit are given, and how much the loss listens to that.

A cut takes a unit away from everything that reads it. So this is heard where the units are read, after norms and
activation functions, and summed over all readers: a unit of a shortcut has several.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.errors import DataError
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.stats.unit_probe import KERNEL_NDIM, UnitProbe, UnreadableError


def reader_probes(model: nn.Module, graph: Graph) -> tuple[dict[str, tuple[UnitProbe, ...]], dict[str, str]]:
    """For each group a probe of the input of every reader, or the reason why there is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, tuple[UnitProbe, ...]] = {}
    skipped: dict[str, str] = {}
    for group in graph.groups:
        try:
            found[group.name] = _probes(group, modules)
        except UnreadableError as reason:
            skipped[group.name] = str(reason)
    return found, skipped


def _probes(group: Group, modules: Mapping[str, nn.Module]) -> tuple[UnitProbe, ...]:
    if not group.readers:
        raise UnreadableError("no tensor reads its units")
    return tuple(_slot_probe(group, slot, modules) for slot in group.readers)


def _slot_probe(group: Group, slot: TensorAxis, modules: Mapping[str, nn.Module]) -> UnitProbe:
    owner, _, last = slot.tensor.rpartition(".")
    module = modules.get(owner)
    weight = getattr(module, last, None)
    if module is None or not isinstance(weight, Tensor):
        raise UnreadableError(f"its reader {slot.tensor!r} belongs to no module")
    # What a module with parts, or with several kernels, is given need not be what this one tensor reads.
    if last != "weight" or any(True for _ in module.children()):
        raise UnreadableError(f"its reader {slot.tensor!r} is not the only kernel of {type(module).__name__} {owner!r}")
    units = torch.tensor(slot.units.array)
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and len(units) < module.in_channels:
        units = units.repeat(module.groups)
    return UnitProbe(group.name, owner, group.size, units, weight.ndim >= KERNEL_NDIM)


@dataclass(slots=True)
class _Sums:
    """Over samples and positions: |x|, x^2 and zeros of each unit [moments, units]; how many values each unit had."""

    values: Tensor
    counts: Tensor


@final
class ReaderRecorder:
    """Collects, per group, the moments of what readers are given and, where wanted, its effects on the loss.

    Attributes:
        effects: per group a list of [samples, units], one entry per batch: input times gradient, summed over readers
            and positions.
        failed: groups that could not be read, and why.
    """

    def __init__(self, probes: Mapping[str, tuple[UnitProbe, ...]], *, with_effects: bool) -> None:
        self.effects: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.failed: dict[str, str] = {}
        self._samples = 0
        self._with_effects = with_effects
        self._by_module: defaultdict[str, list[UnitProbe]] = defaultdict(list)
        for group in probes.values():
            for probe in group:
                self._by_module[probe.module].append(probe)
        self._sums: dict[str, _Sums] = {}
        self._inputs: list[tuple[list[UnitProbe], Tensor]] = []

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Hooks are on the model inside the block, and gone after it."""
        modules = dict(model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            for name, probes in self._by_module.items():
                stack.callback(modules[name].register_forward_pre_hook(self._hook(probes)).remove)
            stack.callback(self._inputs.clear)
            yield

    def start(self, samples: int) -> None:
        """A batch of so many samples comes."""
        self._samples = samples
        self._inputs.clear()

    def finish(self, loss: Tensor | None) -> None:
        """The batch went through; ``loss`` is the sum over its samples where effects are wanted. Its graph stays."""
        if loss is None or not loss.requires_grad or not self._inputs:
            return
        slopes = torch.autograd.grad(loss, [x for _, x in self._inputs], allow_unused=True, retain_graph=True)
        sums: dict[str, Tensor] = {}
        for (probes, given), slope in zip(self._inputs, slopes, strict=True):
            product = torch.zeros_like(given) if slope is None else given.detach() * slope
            for probe in probes:
                folded = probe.fold(probe.channels(product, self._samples).float().sum(2)).cpu()
                sums[probe.group] = sums[probe.group] + folded if probe.group in sums else folded
        for name, value in sums.items():
            self.effects[name].append(value)

    def readings(self) -> dict[str, Tensor]:
        """Per group the moments of what its readers were given. Shape [units, moments]."""
        found = {name: (s.values / s.counts).T.float() for name, s in self._sums.items() if name not in self.failed}
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise DataError(
                    f"what reads group {name!r} is given NaN or infinity. The model or the data are broken."
                )
        return found

    def _hook(self, probes: list[UnitProbe]) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            if not args or not isinstance(args[0], Tensor):
                self.failed |= dict.fromkeys((p.group for p in probes), "a reader is not given a tensor")
                return None
            heard = [probe for probe in probes if self._hear(probe, args[0].detach())]
            if not (self._with_effects and heard):
                return None
            # A copy of its own: the slope of what is read here only, not of the other ways that start from the tensor.
            given = args[0].clone() if args[0].requires_grad else args[0].detach().clone().requires_grad_()
            self._inputs.append((heard, given))
            return (given, *args[1:])

        return hook

    def _hear(self, probe: UnitProbe, given: Tensor) -> bool:
        try:
            values = probe.channels(given, self._samples).float()
        except UnreadableError as reason:
            self.failed.setdefault(probe.group, f"at a reader, {reason}".replace("output", "input"))
            return False
        found = torch.stack([values.abs().sum((0, 2)), values.square().sum((0, 2)), (values == 0).float().sum((0, 2))])
        counts = probe.widths() * (values.shape[0] * values.shape[2])
        sums = self._sums.setdefault(probe.group, _Sums(torch.zeros(()), torch.zeros(())))
        sums.values = sums.values + probe.fold(found).cpu().double()
        sums.counts = sums.counts + counts
        return True
