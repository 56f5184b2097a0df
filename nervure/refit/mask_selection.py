"""Masks that are chosen while what stays makes up for what left: SparseGPT, in running order.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023, algorithm 1.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from nervure.budget.radix_select import add_highest, highest_of_rows
from nervure.core.progress import track
from nervure.errors import DataError
from nervure.graph.tape import named_tensors
from nervure.refit.consumers import Consumer
from nervure.refit.input_moments import find_consumers, read_inputs
from nervure.refit.moments import InputSums
from nervure.refit.replay import replay_of
from nervure.refit.surgeon import COLUMNS, obs_select
from nervure.stats.loaders import Batch

RIDGE = 0.01
"""What is added to each input's sum of squares, as a share of their mean: as published."""


@final
@dataclass(frozen=True, slots=True)
class MatrixShare:
    """How much of a parameter stays.

    Attributes:
        keep: how many of its weights; of a parameter that is used in parts, of each in proportion.
        most: n and m where n of every m inputs in a row stay; None: weights of all rows compete.
        kernel: positions of its kernel, which lie side by side among the inputs.
        guarded: whether every output keeps its best weight.
    """

    keep: int
    most: tuple[int, int] | None = None
    kernel: int = 1
    guarded: bool = True


def select_masks(
    model: nn.Module,
    batches: Sequence[Batch],
    shares: Mapping[str, MatrixShare],
    *,
    positions: int = 8,
    seed: int = 0,
    shown: bool = False,
) -> dict[str, Tensor]:
    """Choose what stays of each parameter on what the network says that was made sparse up to there.

    Args:
        model: a network to work in: its weights are changed as those that stay make up for the others.
        batches: samples.
        shares: the parameters, and how much of each stays.
        positions: at how many places of each sample a convolution is looked at, at most.
        seed: for choosing these.
        shown: show progress of what takes longer than two seconds.

    Returns:
        For each parameter whose inputs can be read a boolean of its shape, True stays. The others stay as they are.

    Raises:
        DataError: what enters a layer is not finite.
    """
    every = find_consumers(model, batches[0])
    uses = Counter(reading.key[0] for consumer in every for reading in consumer.readings)
    several = [name for name, number in uses.items() if number > 1]
    found = _readable(every, shares)
    replay = replay_of(model, batches[0])
    tensors = named_tensors(model)
    choosers = {c.tensor: _MaskChoice(tensors[c.tensor], shares[c.tensor]) for c in found}
    levels = sorted({consumer.level for consumer in found})
    for level in track(levels, "choosing weights", enabled=shown):
        pending = [c.tensor for c in found if c.level >= level]
        moment = min(replay.moment(name) for name in (*pending, *several))
        wanted = {place: c for place, c in enumerate(found) if c.level == level}
        seen = read_inputs(replay, batches, wanted, moment=moment, positions=positions, seed=seed)
        for place, consumer in wanted.items():
            if place in seen.reasons:
                choosers.pop(consumer.tensor, None)
            elif consumer.tensor in choosers:
                choosers[consumer.tensor].select(consumer, seen.led[seen.leaders[place]])
    return {name: chooser.mask for name, chooser in choosers.items()}


def _readable(found: Sequence[Consumer], shares: Mapping[str, MatrixShare]) -> list[Consumer]:
    """The uses of parameters that are read whole, each weight in one place; in running order."""
    parts: dict[str, list[Consumer]] = {}
    for consumer in found:
        parts.setdefault(consumer.tensor, []).append(consumer)
    whole = list[Consumer]()
    for name, consumers in parts.items():
        if name in shares and not any(c.reason for c in consumers):
            places = torch.cat([c.places.reshape(-1) for c in consumers])
            is_whole = len(places) == math.prod(consumers[0].origin.shape) and bool((places.sort().values >= 0).all())
            whole += consumers if is_whole else ()
    return sorted(whole, key=lambda consumer: consumer.readings[0].order)


@final
class _MaskChoice:
    """Chooses what stays of a parameter, matrix by matrix; the parameter is changed in place."""

    def __init__(self, parameter: Tensor, share: MatrixShare) -> None:
        self.mask = torch.ones(parameter.shape, dtype=torch.bool)
        self._parameter, self._share, self._seen = parameter, share, 0

    def select(self, consumer: Consumer, sums: InputSums) -> None:
        """Choose for one use of the parameter."""
        parameter, found = self._parameter.detach(), list[tuple[Tensor, Tensor]]()
        for weight, gram in zip(consumer.matrix_of(parameter), _grams(sums), strict=True):
            if not bool(torch.isfinite(gram).all()):
                raise DataError(
                    f"what enters {consumer.tensor!r} is NaN or infinite. The model or the data are broken."
                )
            found.append(self._choose(weight.double(), _damp(gram)))
        chosen, kept = map(torch.stack, zip(*found, strict=True))
        consumer.put(parameter, chosen)
        consumer.put(self.mask, kept)

    def _choose(self, weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        share, columns = self._share, weight.shape[1]
        # All inputs at one position of the kernel, then all at the next: n of m of them stay.
        order = torch.arange(columns).reshape(-1, share.kernel if share.most else 1).t().reshape(-1)
        weight, gram = weight[:, order], gram[order][:, order]
        if share.most is not None:
            chooser: _Chooser = _OfEvery(weight, share.most)
        else:
            before, self._seen = self._seen, self._seen + weight.numel()
            whole = self.mask.numel()
            keep = share.keep * self._seen // whole - share.keep * before // whole
            chooser = _OfBlocks(weight, keep, _best_of_rows(weight, gram) if share.guarded else None)
        found, _ = obs_select(weight, gram, chooser.choose, together=chooser.together)
        back = order.argsort()
        return found[:, back], chooser.mask[:, back]


class _Chooser(ABC):
    """Chooses some columns of a matrix at a time.

    Attributes:
        mask: what was chosen, on the CPU. What is zero to begin with may be among it, and stays zero.
        together: how many columns at a time.
    """

    def __init__(self, weight: Tensor, together: int) -> None:
        self.mask, self.together = torch.zeros(weight.shape, dtype=torch.bool), together
        self._is_zero = (weight == 0).cpu()

    def choose(self, start: int, costs: Tensor) -> Tensor:
        """What survives of these columns; see ``obs_select``."""
        ahead = slice(start, start + costs.shape[1])
        self.mask[:, ahead] = self._mark(ahead, costs.cpu().masked_fill(self._is_zero[:, ahead], -1.0))
        return (self.mask[:, ahead] & ~self._is_zero[:, ahead]).to(costs.device)

    @abstractmethod
    def _mark(self, ahead: slice, costs: Tensor) -> Tensor: ...


@final
class _OfEvery(_Chooser):
    """The ``n`` dearest of every ``m`` in a row."""

    def __init__(self, weight: Tensor, most: tuple[int, int]) -> None:
        super().__init__(weight, most[1])
        self._n = most[0]

    def _mark(self, ahead: slice, costs: Tensor) -> Tensor:
        return highest_of_rows(costs, self._n)


@final
class _OfBlocks(_Chooser):
    """The dearest of all rows, block by block in proportion, and what is fixed; ``keep`` weights altogether."""

    def __init__(self, weight: Tensor, keep: int, fixed: Tensor | None) -> None:
        super().__init__(weight, COLUMNS)
        self._keep, self._kept = keep, 0
        self._fixed = torch.zeros(weight.shape, dtype=torch.bool) if fixed is None else fixed

    def _mark(self, ahead: slice, costs: Tensor) -> Tensor:
        held, behind = (int(self._fixed[:, part].sum()) for part in (ahead, slice(ahead.stop, None)))
        due = self._keep * ahead.stop // self.mask.shape[1] - self._kept
        count = min(max(due, held), self._keep - self._kept - behind)
        marked = self._fixed[:, ahead].clone(memory_format=torch.contiguous_format)
        add_highest({"": costs}, {"": marked.view(-1)}, count - held)
        self._kept += int(marked.sum())
        return marked


def _best_of_rows(weight: Tensor, gram: Tensor) -> Tensor:
    """The weight of each row that it would cost most to remove first."""
    costs = weight.square() / torch.cholesky_inverse(torch.linalg.cholesky(gram)).diagonal()
    return torch.zeros(weight.shape, dtype=torch.bool).scatter_(1, costs.argmax(1, keepdim=True).cpu(), True)


def _grams(sums: InputSums) -> Tensor:
    """Sums of products of what enters with itself, [stack, inputs, inputs]."""
    across = sums.x0[:, :, None] * sums.x[:, None]
    return sums.xx + across + across.transpose(1, 2) + sums.count * sums.x0[:, :, None] * sums.x0[:, None]


def _damp(gram: Tensor) -> Tensor:
    unit = gram.diagonal().mean()
    unit = unit if unit > 0 else torch.ones_like(unit)
    return gram + RIDGE * unit * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
