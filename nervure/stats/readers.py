"""What the readers of a unit are given, and how much the loss listens to that.

A cut takes a unit away from everything that reads it. So this is heard where the units are read, after norms and
activation functions, and summed over all readers: a unit of a shortcut has several.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nervure.core.collectives import add_up
from nervure.core.tensors import tensors_in
from nervure.errors import DataError
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.stats.recurrent import KernelProbe, RecurrentCall
from nervure.stats.unit_probe import KERNEL_NDIM, UnitProbe, UnreadableError

Probe: TypeAlias = UnitProbe | KernelProbe


def reader_probes(
    model: nn.Module, graph: Graph, *, inside: bool = False
) -> tuple[dict[str, tuple[Probe, ...]], dict[str, str]]:
    """For each group a probe of every reader, or the reason why there is none.

    Args:
        model: the model.
        graph: its graph.
        inside: whether kernels inside recurrent layers count too, which show effects and no readings.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, tuple[Probe, ...]] = {}
    skipped: dict[str, str] = {}
    for group in graph.groups:
        try:
            found[group.name] = _probes(group, modules, inside)
        except UnreadableError as reason:
            skipped[group.name] = str(reason)
    return found, skipped


def _probes(group: Group, modules: Mapping[str, nn.Module], inside: bool) -> tuple[Probe, ...]:
    if not group.readers:
        raise UnreadableError("no tensor reads its units")
    return tuple(_slot_probe(group, slot, modules, inside) for slot in group.readers)


def _slot_probe(group: Group, slot: TensorAxis, modules: Mapping[str, nn.Module], inside: bool) -> Probe:
    owner, _, last = slot.tensor.rpartition(".")
    module = modules.get(owner)
    weight = getattr(module, last, None)
    if module is None or not isinstance(weight, Tensor):
        raise UnreadableError(f"its reader {slot.tensor!r} belongs to no module")
    units = torch.tensor(slot.units.array)
    if inside and isinstance(module, nn.RNNBase | nn.RNNCellBase) and last in module._parameters and slot.axis == 1:
        return KernelProbe(UnitProbe(group.name, owner, group.size, units, is_kernel=False), last)
    # What a module with parts, or with several kernels, is given need not be what this one tensor reads.
    if last != "weight" or any(True for _ in module.children()):
        raise UnreadableError(f"its reader {slot.tensor!r} is not the only kernel of {type(module).__name__} {owner!r}")
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

    def __init__(self, probes: Mapping[str, tuple[Probe, ...]], *, with_effects: bool) -> None:
        self.effects: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.failed: dict[str, str] = {}
        self._samples = 0
        self._with_effects = with_effects
        self._by_module: defaultdict[str, list[UnitProbe]] = defaultdict(list)
        self._inside: defaultdict[str, list[KernelProbe]] = defaultdict(list)
        for probe in chain.from_iterable(probes.values()):
            if isinstance(probe, KernelProbe):
                self._inside[probe.columns.module].append(probe)
            else:
                self._by_module[probe.module].append(probe)
        self._sums: dict[str, _Sums] = {}
        self._inputs: list[tuple[list[UnitProbe], Tensor]] = []
        self._calls: list[tuple[list[KernelProbe], RecurrentCall]] = []

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Hooks are on the model inside the block, and gone after it."""
        modules = dict(model.named_modules(remove_duplicate=False))
        with ExitStack() as stack:
            for name, probes in self._by_module.items():
                stack.callback(modules[name].register_forward_pre_hook(self._hook(probes)).remove)
            for name, kernels in self._inside.items():
                hook = self._inside_hook(kernels)
                stack.callback(modules[name].register_forward_hook(hook, with_kwargs=True).remove)
            stack.callback(self._inputs.clear)
            stack.callback(self._calls.clear)
            yield

    def start(self, samples: int) -> None:
        """A batch of so many samples comes."""
        self._samples = samples
        self._inputs.clear()
        self._calls.clear()

    def finish(self, loss: Tensor | None) -> None:
        """The batch went through; ``loss`` is the sum over its samples where effects are wanted. Its graph stays."""
        if loss is None or not loss.requires_grad:
            return
        sums: dict[str, Tensor] = {}
        for name, value in chain(self._effects_of_inputs(loss), self._effects_inside(loss)):
            sums[name] = sums[name] + value if name in sums else value
        for name, value in sums.items():
            self.effects[name].append(value)

    def _effects_of_inputs(self, loss: Tensor) -> Iterator[tuple[str, Tensor]]:
        if not self._inputs:
            return
        slopes = torch.autograd.grad(loss, [x for _, x in self._inputs], allow_unused=True, retain_graph=True)
        for (probes, given), slope in zip(self._inputs, slopes, strict=True):
            product = torch.zeros_like(given) if slope is None else given.detach() * slope
            for probe in probes:
                yield probe.group, probe.fold(probe.channels(product, self._samples).float().sum(2)).cpu()

    def _effects_inside(self, loss: Tensor) -> Iterator[tuple[str, Tensor]]:
        for probes, call in self._calls:
            for probe, effects in zip(probes, call.effects(probes, loss, self._samples), strict=True):
                yield probe.columns.group, effects

    def readings(self) -> dict[str, Tensor]:
        """Per group the moments of what its readers were given. Shape [units, moments]."""
        parts = {name: torch.cat([sums.values, sums.counts[None].double()]) for name, sums in self._sums.items()}
        partly = {probe.columns.group for probes in self._inside.values() for probe in probes}
        left_out = self.failed.keys() | partly
        sums = add_up({name: part for name, part in parts.items() if name not in left_out})
        found = {name: (whole[:-1] / whole[-1]).T.float() for name, whole in sums.items()}
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

    def _inside_hook(self, probes: list[KernelProbe]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            # Copies of their own, also where nothing before the layer has a gradient.
            made = tree_map_only(Tensor, lambda x: x.clone() if x.requires_grad else x.clone().requires_grad_(), output)
            call = RecurrentCall(module, args, kwargs, tensors_in(made))
            try:
                call.require_samples(self._samples)
            except UnreadableError as reason:
                self.failed |= dict.fromkeys((probe.columns.group for probe in probes), str(reason))
                return None
            self._calls.append((probes, call))
            return made

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
