"""One pass over the data: what enters all consumers of a network as it is, as sums that a fit would need."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.graph.products import Operand
from nervure.graph.tape import Entry, WriteBack
from nervure.refit.activations import Enough, Watcher, watchable
from nervure.refit.consumers import Consumer, consumers
from nervure.refit.moments import InputSums
from nervure.refit.operators import choose_positions, entering, leaving
from nervure.refit.origins import origins
from nervure.refit.replay import Replay
from nervure.refit.streams import Follower, Join
from nervure.refit.survey import survey
from nervure.stats.loaders import Batch

RECENT = 3
"""Inputs that are remembered: layers that read the same one come one after the other."""


@final
@dataclass(slots=True, eq=False)
class InputMoments:
    """What one pass gave.

    Attributes:
        led: sums by the place of a consumer.
        leaders: for each consumer, by its place, the first one that reads the same, perhaps itself.
        reasons: consumers that could not be read, and why.
        joined: for each consumer that is added to a stream, what it adds and what the stream is then; where that was
            asked for, and not what enters (:func:`read_joins`).
    """

    led: dict[int, InputSums] = field(default_factory=dict)
    leaders: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    joined: dict[int, "Joined"] = field(default_factory=dict)


@final
@dataclass(slots=True, eq=False)
class Joined:
    """Sums over positions of what is added to a stream, and of the stream then.

    Attributes:
        count: how many positions.
        sums, squares: [2, stack, outputs], of what is added first.
    """

    count: int = 0
    sums: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, added: Tensor, stream: Tensor) -> None:
        """Add positions, both [stack, positions, outputs]."""
        both = torch.stack([added, stream]).double()
        self.count += added.shape[1]
        self.sums = self.sums + both.sum(2)
        self.squares = self.squares + both.square().sum(2)

    @property
    def share(self) -> Tensor:
        """The variance of what is added, as a share of that of the stream then. Shape [stack, outputs]."""
        mean = torch.as_tensor(self.sums) / self.count
        variance = (torch.as_tensor(self.squares) / self.count - mean.square()).clamp(min=0)
        return torch.where(variance[1] > 0, variance[0] / variance[1], 0)


def find_consumers(model: nn.Module, batch: Batch) -> list[Consumer]:
    """All uses of parameters that multiply what flows through a model, in running order; frozen ones too."""
    seen = survey(model, batch)
    return consumers(model, seen, seen, origins(model, ()), dict.fromkeys(dict(model.named_parameters()), True))


def read_inputs(
    replay: Replay,
    parts: Iterable[Batch],
    wanted: Mapping[int, Consumer],
    *,
    positions: int,
    seed: int,
    moment: int = 0,
) -> InputMoments:
    """Run a model on all batches, and add up what enters the wanted consumers.

    Args:
        replay: a model, perhaps with its beginning done; it runs in evaluation mode as far as it takes, and is left as
            it was.
        parts: the samples.
        wanted: consumers by their place; memory is that of their sums and of what a few of them are given at once.
        positions: how many places of a convolution are looked at in each sample, at most.
        seed: for choosing these.
        moment: from where on the model runs, see :meth:`Replay.advance`; not 0 with a list of parts.
    """
    found = InputMoments()
    with watchable(replay.model) as watch:
        if moment:
            replay.advance(watch, moment, list(parts))
        for number, part in enumerate(parts):
            reader = _InputReader(found, wanted, positions, (seed, number))
            replay.watch(watch, number, part, reader.see)
            reader.finish()
    return found


def read_joins(
    model: nn.Module, parts: Iterable[Batch], wanted: Mapping[int, Consumer], *, positions: int, seed: int
) -> dict[int, Tensor]:
    """The variance of what each of these consumers adds to a stream, as a share of that of the stream then.

    Arguments as those of :func:`read_inputs`, for a model; what enters is not kept.
    """
    found = InputMoments()
    with watchable(model) as watch:
        for number, part in enumerate(parts if wanted else ()):
            watch(part, _InputReader(found, wanted, positions, (seed, number), joins=True).see)
            watch.put_back()
    return {place: joined.share for place, joined in found.joined.items()}


@final
class _InputReader:
    """Adds in one run what enters, or, for ``joins``, what is added to streams."""

    def __init__(
        self,
        found: InputMoments,
        wanted: Mapping[int, Consumer],
        positions: int,
        seed: tuple[int, int],
        *,
        joins: bool = False,
    ) -> None:
        self._found, self._wanted, self._positions, self._seed = found, wanted, positions, seed
        self._joins = joins
        self._at = {r.key: place for place, c in wanted.items() for r in c.readings if not r.reason}
        self._recent: list[tuple[Tensor, int]] = []
        self._laid: dict[int, Callable[[Tensor], Tensor]] = {}
        self._follower: Follower | None = None
        self._counts: Counter[int] = Counter()

    def see(
        self, watcher: Watcher, entry: Entry | WriteBack, uses: Sequence[Operand], args: tuple[Any, ...], out: Any
    ) -> None:
        """One operator."""
        if isinstance(entry, WriteBack):
            return
        self._follower = self._follower or Follower(watcher.tape.shape)
        for key, use in self._follower.products(entry, uses):
            if (place := self._at.get(key)) is not None and place not in self._found.reasons:
                index = self._choose(entry, out)
                if self._joins:
                    self._laid[place] = partial(_lay, use, entry, out.shape, index)
                else:
                    self._read(place, entering(use, entry, args, index))
        for join in self._follower.step(entry):
            if (place := self._at.get(join.key)) in self._laid:
                self._join(place, join, args, out)
        if not self._joins and all(self._counts[place] == len(c.readings) for place, c in self._wanted.items()):
            raise Enough

    def finish(self) -> None:
        """The run is over."""
        for place, consumer in self._wanted.items():
            if self._counts[place] < len(consumer.readings):
                self._found.reasons.setdefault(place, "not every run comes to it")

    def _choose(self, entry: Entry, out: Tensor) -> Tensor | None:
        # The same for all layers of that size: those that read the same can share their sums then.
        dice = torch.Generator().manual_seed(hash((*self._seed, math.prod(out.shape[2:]))) % 2**63)
        return choose_positions(entry, out, self._positions, dice)

    def _read(self, place: int, x: Tensor) -> None:
        consumer = self._wanted[place]
        self._counts[place] += 1
        if consumer.shape[0] < len(x):
            x = x.reshape(1, -1, x.shape[-1])
        same = self._same(x, place) if len(consumer.readings) == 1 else place
        leader = self._found.leaders.setdefault(place, same)
        if leader == place:
            if place not in self._found.led:
                self._found.led[place] = InputSums(x.shape[0], x.shape[2], x.device)
            self._found.led[place].add(x)
            self._recent = [*self._recent[1 - RECENT :], (x.clone(), place)]
        elif leader != same:
            self._found.reasons[place] = f"it reads what {self._wanted[leader].tensor!r} reads, but not always"

    def _join(self, place: int, join: Join, args: tuple[Any, ...], out: Tensor) -> None:
        lay = self._laid.pop(place)
        if len(self._wanted[place].readings) == 1:
            added = out - join.value_before(args, out)
            self._found.joined.setdefault(place, Joined()).add(lay(added), lay(out))

    def _same(self, x: Tensor, place: int) -> int:
        """The consumer that was given the same just now; itself where there is none."""
        return next((p for given, p in self._recent if given.shape == x.shape and torch.equal(given, x)), place)


def _lay(use: Operand, entry: Entry, shape: torch.Size, index: Tensor | None, value: Tensor) -> Tensor:
    return leaving(use, entry, value.reshape(shape), index)
