"""What the network's answers lose with units of a group: what makes losses of different groups comparable.

What readers lose of their own outputs says which unit of a group goes first. It says less of what that costs in the
end: the last layer's ten outputs are the answer, a thousand inner ones may hardly reach it. So each group is cut alone
to some sizes, its readers are fitted to what is left, and the network is asked. Between these sizes the answers'
losses follow those of the readers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core.tensors import outputs_in
from nervure.graph.copies import copy_model
from nervure.graph.models import device_of, evaluating
from nervure.graph.modes import disable_compile, leave_modes
from nervure.graph.preserve import restore_after
from nervure.graph.tape import named_tensors
from nervure.refit.consumers import Consumer
from nervure.stats.loaders import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARES = (0.5, 0.9)
"""How much of a group leaves when the network is asked."""
NOTHING = 1e-5
"""What answers may lose, as a share of their variance, where a group has units that say nothing of their own.

Where the last share loses no more, it says nothing of those that are left. So it is asked where readers lose half.
"""
ANSWERED = 256
"""Samples that it answers each time, at most."""
PASSES = 6
"""How often all groups together may make it answer all samples, at most."""
HELD = 1 << 25
"""Numbers of answers that are held, of all samples together; of larger answers that many are drawn once and for all."""
OF_ANSWERS, OF_READERS = 0.6, 0.2
"""Powers of both losses in the price of a unit.

What a refit of all that follows leaves of a group's loss, by the powers that fit it best: see the decision on what a
unit costs.
"""


@final
@dataclass(frozen=True, slots=True, eq=False)
class GroupReader:
    """One consumer that reads units of a group.

    Attributes:
        consumer: which.
        units: the unit of each input, -1: none. Shape [stack, inputs].
        weight: its matrix. Shape [stack, outputs, inputs].
        power: the variance of what it says. Shape [stack, outputs, 1].
        moments: second moments of what enters it, with a ridge: for each of the stack [inputs, inputs].
        mean: the mean of what enters, [stack, inputs]; None where nothing behind it can take a mean off.
    """

    consumer: Consumer
    units: Tensor
    weight: Tensor
    power: Tensor
    moments: Sequence[Tensor]
    mean: Tensor | None

    def without(self, gone: Tensor) -> tuple[Tensor, Tensor | None]:
        """Its matrix fitted to the inputs that are left, and what its outputs are missing on average.

        What is used otherwise as well, a table or the layer before, is only cut, as by a refit.

        Args:
            gone: which units left. Boolean [units].
        """
        fitted = torch.zeros_like(self.weight)
        for part, (units, moments) in enumerate(zip(self.units, self.moments, strict=True)):
            (left,) = (~((units >= 0) & gone[units.clamp(min=0)])).nonzero(as_tuple=True)
            if self.consumer.reason:
                fitted[part][:, left] = self.weight[part][:, left]
                continue
            factor = torch.linalg.cholesky(moments[left[:, None], left])
            fitted[part][:, left] = torch.cholesky_solve((self.weight[part] @ moments[:, left]).T, factor).T
        if self.mean is None or self.consumer.reason:
            return fitted, None
        return fitted, ((self.weight - fitted) @ self.mean[:, :, None].to(fitted)).squeeze(2)


def set_apart(parts: Sequence[Batch], groups: int) -> tuple[list[Batch], list[Batch]]:
    """The samples that readers are fitted on, and the last ones, on which the network is asked.

    What was fitted on a few samples loses nothing of these. At least three quarters are fitted on; of fewer than four
    samples all are, and the network is asked on the same. It is asked on one at least, however many groups there are.

    Args:
        parts: the samples there are.
        groups: how many groups are going to be asked about.
    """
    seen = sum(part.size for part in parts)
    count = min(ANSWERED, max(PASSES * seen // (len(SHARES) * max(groups, 1)), 1), seen // 4)
    rest, apart = list(parts), list[Batch]()
    while count > 0:
        last = rest.pop()
        first = max(last.size - count, 0)
        apart.append(last.rows(torch.arange(first, last.size)) if first else last)
        rest += [last.head(first)] if first else []
        count -= last.size - first
    return rest, apart or rest


@final
class AnswerMeter:
    """Asks a copy of a network what its answers lose, on a few samples.

    Args:
        model: the network. It stays as it is.
        parts: samples that no reader is fitted on, see :func:`set_apart`.

    Attributes:
        is_comparable: whether all answers so far have had the same shapes as those of the whole network.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Batch]) -> None:
        self._model = copy_model(model)
        self._tensors = named_tensors(self._model)
        self._parts = parts
        self._most = HELD // sum(part.size for part in parts)
        self._dense: list[list[Tensor]] = []
        self._ask(lambda _, answers: self._dense.append(answers))
        self.is_comparable = len({len(answers) for answers in self._dense}) == 1
        self._spread = [_spread(answers) for answers in zip(*self._dense, strict=False)]

    def costs(self, readers: Sequence[GroupReader], order: Tensor, costs: Tensor) -> Tensor:
        """What each unit costs the answers, in the order in which they leave; as given where answers never vary.

        Args:
            readers: all that read the group.
            order: its units. Shape [units].
            costs: what each adds to what readers lose. Shape [units].
        """
        units = len(order)
        counts = sorted({n for share in SHARES if 0 < (n := round(share * units)) < units})
        if not counts or not any(self._spread) or not self.is_comparable:
            return costs
        of_readers = torch.cat([costs.new_zeros(1), costs.clamp(min=0).cumsum(0)]).numpy()
        lost = {counts[-1]: self._lost(readers, order[: counts[-1]], units)}
        half = min(int(np.searchsorted(of_readers, of_readers[-1] / 2)), units - 1)
        others = [half] if lost[counts[-1]] < NOTHING and half > counts[-1] else counts[:-1]
        lost |= {count: self._lost(readers, order[:count], units) for count in others}
        counts = sorted(lost)
        return torch.from_numpy(np.diff(_price(of_readers, counts, [lost[count] for count in counts])))

    def _lost(self, readers: Sequence[GroupReader], gone: Tensor, units: int) -> float:
        """The variance of the answers' change without these units, as a share of theirs; the mean over outputs."""
        is_gone = torch.zeros(units, dtype=torch.bool)
        is_gone[gone] = True
        changes = [0.0] * len(self._spread)

        def see(number: int, now: list[Tensor]) -> None:
            if [new.shape for new in now] != [old.shape for old in self._dense[number]]:
                self.is_comparable = False
                return
            for at, (new, old) in enumerate(zip(now, self._dense[number], strict=True)):
                changes[at] += float((new - old).double().square().sum())

        with self._edited(readers, is_gone):
            self._ask(see)
        shares = [change / spread for change, spread in zip(changes, self._spread, strict=True) if spread > 0]
        return sum(shares) / len(shares)

    def _ask(self, see: Callable[[int, list[Tensor]], object]) -> None:
        """Show what the copy says to each part, by its number. What it writes, and random numbers, are put back."""
        device = device_of(self._model)
        with leave_modes(), restore_after(self._model), disable_compile(), evaluating(self._model):
            for number, part in enumerate(self._parts):
                see(number, _answers(part.to(device).feed(self._model), self._most * part.size))

    @contextmanager
    def _edited(self, readers: Sequence[GroupReader], gone: Tensor) -> "Iterator[None]":
        """The copy with these units cut and their readers fitted; afterwards it is as it was."""
        before: dict[str, Tensor] = {}
        try:
            for reader in readers:
                weight, missing = reader.without(gone)
                self._write(reader.consumer, weight, missing, before)
            yield
        finally:
            for name, value in before.items():
                _overwrite(self._tensors[name], value)

    def _write(self, consumer: Consumer, weight: Tensor, missing: Tensor | None, before: dict[str, Tensor]) -> None:
        changed = self._changed(consumer.tensor, before)
        consumer.put(changed, weight)
        _overwrite(self._tensors[consumer.tensor], changed)
        if missing is None:
            return
        name, piece, sign = (consumer.norm, slice(None), -1) if consumer.bias is None else (
            consumer.bias.tensor, consumer.bias.piece, 1,
        )  # fmt: skip
        changed = self._changed(name, before)
        changed[piece] += sign * missing.reshape(-1).to(changed)
        _overwrite(self._tensors[name], changed)

    def _changed(self, name: str, before: dict[str, Tensor]) -> Tensor:
        """A copy of a tensor to change; how it was is remembered."""
        now = self._tensors[name].detach().clone(memory_format=torch.contiguous_format)
        before.setdefault(name, now.clone())
        return now


def _overwrite(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


def _answers(output: Any, most: int) -> list[Tensor]:
    """The logits where they are named, else all numbers that are not whole; about ``most`` of them."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    found = [logits] if isinstance(logits, Tensor) else outputs_in(output)
    reals = [torch.view_as_real(value) if value.is_complex() else value for value in found if value.ndim]
    reals = [value.detach() for value in reals if value.is_floating_point()]
    # What is masked, with -inf, is masked in all networks.
    return [_some(value, most // len(reals)).nan_to_num(0, 0, 0) for value in reals]


def _some(value: Tensor, most: int) -> Tensor:
    """The same numbers of each row, [rows, numbers], where there are more than ``most`` in all; else all of them."""
    if value.numel() <= most:
        return value
    rows = value.reshape(len(value), -1)
    drawn = torch.randint(rows.shape[1], (max(most // len(rows), 1),), generator=torch.Generator().manual_seed(0))
    return rows[:, drawn.to(value.device)]


def _spread(answers: Sequence[Tensor]) -> float:
    """The variance of one output over samples, summed; about one mean for all where lengths vary, or of one sample."""
    if len({answer.shape[1:] for answer in answers}) == 1 < sum(map(len, answers)):
        whole = torch.cat(list(answers)).double()
        whole -= whole.mean(0)
        return float(whole.square_().sum())
    flat = torch.cat([answer.double().flatten() for answer in answers])
    return float((flat - flat.mean()).square().sum())


def _price(of_readers: np.ndarray, counts: Sequence[int], lost: Sequence[float]) -> np.ndarray:
    """What is lost in all without the first units, from none to all of them: powers of both losses. [units + 1]."""
    at = of_readers[[0, *counts]]
    rising = np.maximum.accumulate([0.0, *lost])
    found = np.interp(of_readers, at, rising)
    step = at[-1] - at[-2]
    slope = (rising[-1] - rising[-2]) / step if step > 0 else 0
    if not slope and at[-1] > 0:
        slope = rising[-1] / at[-1]
    beyond = of_readers > at[-1]
    found[beyond] = rising[-1] + (of_readers[beyond] - at[-1]) * slope
    return np.asarray(found**OF_ANSWERS * of_readers**OF_READERS)
