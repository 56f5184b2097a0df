"""What the probes hear during one pass."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.errors import DataError
from nervure.stats.unit_probe import UnitProbe, UnreadableError


@final
@dataclass(slots=True)
class SampleTally:
    """Sums over the positions of one batch; a module that runs several times per pass has as many positions more."""

    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    positions: int = 0


@final
class EvidenceRecorder:
    """Collects, per group and batch, activations and (where wanted) activation times gradient.

    Attributes:
        activations: per group a list of [samples, units], one entry for each batch in which it was heard.
        gradients: the same for activation times gradient.
        squares: per group the sum over samples of the mean square over positions. Shape [units], float64.
        failed: groups that could not be read, and why.
    """

    def __init__(self, probes: Mapping[str, UnitProbe], *, with_gradients: bool) -> None:
        self.activations: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.squares: dict[str, Tensor] = {}
        self.failed: dict[str, str] = {}
        self.samples = 0
        self._with_gradients = with_gradients
        self._probes = probes
        self._by_module: defaultdict[str, list[UnitProbe]] = defaultdict(list)
        for probe in probes.values():
            self._by_module[probe.module].append(probe)
        self._tallies: defaultdict[str, SampleTally] = defaultdict(SampleTally)
        self._outputs: list[tuple[UnitProbe, Tensor]] = []

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Hooks are on the model inside the block, and gone after it."""
        modules = dict(model.named_modules(remove_duplicate=False))
        handles = []
        try:
            for name, probes in self._by_module.items():
                handles.append(modules[name].register_forward_hook(self._hook(probes)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._outputs.clear()

    def start(self, samples: int) -> None:
        """A batch of so many samples comes."""
        self.samples = samples
        self._tallies.clear()
        self._outputs.clear()

    def finish(self, loss: Tensor | None) -> None:
        """The batch went through; ``loss`` is the sum over its samples where gradients are wanted.

        Raises:
            DataError: an activation is NaN or infinite.
        """
        for name, tally in self._tallies.items():
            self._note(name, tally)
        if loss is not None and loss.requires_grad and self._outputs:
            self._note_gradients(loss)

    def _hook(self, probes: list[UnitProbe]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                self.failed |= dict.fromkeys((p.group for p in probes), f"its module gives a {type(output).__name__}")
                return None
            heard = [probe for probe in probes if self._hear(probe, output.detach())]
            if not (self._with_gradients and heard):
                return None
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            self._outputs += [(probe, leaf) for probe in heard]
            # The next layer may work in place: it gets a copy, so that this one can be differentiated afterwards.
            return leaf.clone()

        return hook

    def _hear(self, probe: UnitProbe, output: Tensor) -> bool:
        try:
            values = probe.channels(output, self.samples).float()
        except UnreadableError as reason:
            self.failed.setdefault(probe.group, str(reason))
            return False
        tally = self._tallies[probe.group]
        tally.total = tally.total + probe.fold(values.sum(2))
        tally.squares = tally.squares + probe.fold(values.square().sum(2)).double().sum(0)
        tally.positions += values.shape[2]
        return True

    def _note(self, name: str, tally: SampleTally) -> None:
        positions = self._probes[name].widths() * tally.positions
        means = torch.as_tensor(tally.total).cpu() / positions
        if not bool(torch.isfinite(means).all()):
            raise DataError(f"activations of group {name!r} are NaN or infinite. The model or the data are broken.")
        self.activations[name].append(means)
        self.squares[name] = self.squares.get(name, torch.zeros(())) + torch.as_tensor(tally.squares).cpu() / positions

    def _note_gradients(self, loss: Tensor) -> None:
        slopes = torch.autograd.grad(loss, [output for _, output in self._outputs], allow_unused=True)
        sums: dict[str, Tensor] = {}
        for (probe, output), slope in zip(self._outputs, slopes, strict=True):
            if slope is not None:
                product = probe.channels((output * slope).detach(), self.samples).float().sum(2)
                folded = probe.fold(product).cpu()
                sums[probe.group] = sums[probe.group] + folded if probe.group in sums else folded
        for name, value in sums.items():
            self.gradients[name].append(value)
