"""The consumers of a smaller network, each with its partner in the dense one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from nervure.graph.tape import named_tensors
from nervure.refit.operators import places, to_matrix
from nervure.refit.origins import Origin
from nervure.refit.streams import Key
from nervure.refit.survey import Bias, LayerReading, Survey

ROWS = 256
"""Outputs that are looked through at once."""


@final
@dataclass(frozen=True, eq=False)
class Consumer:
    """A parameter, or the part of one that is used at once, and how it is used in both networks.

    Attributes:
        tensor: its name in the smaller network.
        readings: its uses in the smaller network.
        partners: those in the dense one, in the same order.
        origin: where it comes from.
        reason: why it stays as it is; empty where it is fitted.
    """

    tensor: str
    readings: tuple[LayerReading, ...]
    partners: tuple[LayerReading, ...]
    origin: Origin
    reason: str = ""

    @property
    def level(self) -> int:
        """How many consumers are before it."""
        return self.readings[0].level

    @property
    def bias(self) -> Bias | None:
        """The bias that goes with each of its uses."""
        first, *others = (reading.bias for reading in self.readings)
        return first if all(other == first for other in others) else None

    @property
    def norm(self) -> str:
        """The running mean of the batch norm behind it; empty where there is none, or several."""
        return self.readings[0].norm if len(self.readings) == 1 else ""

    @property
    def is_before_norm(self) -> bool:
        """Whether a batch norm takes the mean off all that it says."""
        return bool(self.norm) and self.readings[0].is_alone

    @property
    def joins(self) -> bool:
        """Whether it is one use in both networks that is added to a stream."""
        return len(self.readings) == 1 and self.readings[0].joins and self.partners[0].joins

    @property
    def places(self) -> Tensor:
        """The entry of the parameter at each place of its matrix, [stack, outputs, inputs]; -1: none.

        As large as the parameter, and made anew each time.
        """
        return places(self.readings[0].use)

    @cached_property
    def _summary(self) -> tuple[torch.Size, Tensor, bool]:
        """Of its places their shape, the first of each output, and whether an entry is at each."""
        found = self.places
        return found.shape, found[:, :, 0].clone(), bool((found >= 0).all())

    @property
    def shape(self) -> torch.Size:
        """That of its matrix: stack, outputs, inputs."""
        return self._summary[0]

    @property
    def firsts(self) -> Tensor:
        """The entry of the parameter at the first input of each output, [stack, outputs]; -1: none."""
        return self._summary[1]

    @cached_property
    def rows(self) -> Tensor:
        """For each output that of the partner, [stack, outputs]; -1: it has none."""
        theirs, wanted = places(self.partners[0].use).flatten(0, 1), self.origin.entries(self.firsts.clamp(min=0))
        # Which of the wanted each entry is; most are none.
        number = torch.full((int(max(theirs.max(), wanted.max())) + 1,), -1, dtype=torch.int32)
        number[wanted.reshape(-1)] = torch.arange(wanted.numel(), dtype=torch.int32)
        found = torch.full((wanted.numel(),), -1)
        for first in range(0, len(theirs), ROWS):
            some = theirs[first : first + ROWS]
            at = torch.where(some >= 0, number[some.clamp(min=0)], -1)
            row, column = (at >= 0).nonzero(as_tuple=True)
            found[at[row, column].long()] = row + first
        return found.reshape(wanted.shape)

    def weight(self, model: nn.Module) -> Tensor:
        """Its matrix, [stack, outputs, inputs]; not to be written to, since it may be a view of the parameter."""
        return self.matrix_of(named_tensors(model)[self.tensor].detach())

    def matrix_of(self, values: Tensor) -> Tensor:
        """Values of the parameter's shape in the places of its matrix, [stack, outputs, inputs].

        A view of them, where places are not needed to tell.
        """
        view = self._view_of(values)
        return values.reshape(-1)[self.places.to(values.device)] if view is None else view

    def put(self, values: Tensor, matrix: Tensor) -> None:
        """Write a matrix to where it stands in values of the parameter's shape."""
        view = self._view_of(values)
        if view is not None:
            view.copy_(matrix)
            return
        flat = values.reshape(-1).clone()
        flat[self.places.to(flat.device)] = matrix.to(flat)
        values.copy_(flat.reshape(values.shape))

    def _view_of(self, values: Tensor) -> Tensor | None:
        """The matrix as a view; None where it is none, or stands in several places."""
        use = self.readings[0].use
        found = to_matrix(use, use.trail.moved(values))
        is_view = found.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
        return found if is_view and found.shape == self.shape and 0 not in found.stride() else None

    @property
    def is_matched(self) -> bool:
        """Whether each of its weights is one entry of the parameter, and each output has a partner."""
        return self._summary[2] and bool((self.rows >= 0).all())


def consumers(
    model: nn.Module, mine: Survey, theirs: Survey, came: Mapping[str, Origin], trained: Mapping[str, bool]
) -> list[Consumer]:
    """All consumers of ``model``, in running order, those that stay as they are included.

    Args:
        model: the smaller network.
        mine: what was seen in it.
        theirs: what was seen in the dense one.
        came: where its tensors come from.
        trained: for each parameter whether it may change.
    """
    groups: dict[object, list[LayerReading]] = {}
    for reading in mine.readings:
        key = (reading.key[0], reading.use.trail.key(), reading.use.kinds, reading.use.operand)
        groups.setdefault(key, []).append(reading)
    known = {reading.key: reading for reading in theirs.readings}
    found = [_consumer(list_, known, mine, theirs, came, trained) for list_ in groups.values()]
    return [replace(c, reason=c.reason or _overlap(c, found)) for c in found]


def _consumer(
    readings: list[LayerReading],
    known: Mapping[Key, LayerReading],
    mine: Survey,
    theirs: Survey,
    came: Mapping[str, Origin],
    trained: Mapping[str, bool],
) -> Consumer:
    name = readings[0].key[0]
    origin = came.get(name)
    if origin is None:
        return Consumer(name, tuple(readings), (), Origin("", (), ()), "the dense network has none of that name")
    partners = tuple(p for r in readings if (p := known.get((origin.tensor, r.key[1]))) is not None)
    reasons = ["" if trained[name] else "it is frozen", *(r.reason for r in (*readings, *partners))]
    if name in mine.looked_up:
        reasons.append("it is a table that inputs are looked up in as well")
    if mine.uses[name] != theirs.uses[origin.tensor] or len(partners) < len(readings):
        reasons.append("the dense network uses it more often, or not at all")
    return Consumer(name, tuple(readings), partners, origin, next(filter(None, reasons), ""))


def _overlap(consumer: Consumer, others: list[Consumer]) -> str:
    """Why a parameter of which several parts are used cannot be fitted part by part."""
    parts = [other for other in others if other.tensor == consumer.tensor]
    if len(parts) == 1:
        return ""
    entries = torch.cat([part.places.reshape(-1) for part in parts])
    return "" if len(entries.unique()) == len(entries) else "it is used in several ways at once"
