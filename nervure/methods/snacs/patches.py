"""Connectivity on what really enters: the share of a child's variance that is lost without one parent.

All other parents may take over, kernel by kernel. On means over positions a kernel that sums to zero says nothing, and
a parent given all others only measures its weight again; on the patches that a layer is given neither is so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.core.container import Kind
from nervure.methods.base import Folder, View, data_of, draw_samples, model_to_run
from nervure.methods.channels.compensation import add_ridge_to, columns_of, places_in, read_in_passes, second_moments
from nervure.methods.evidence_folder import answer_folder, remember
from nervure.refit.consumers import Consumer
from nervure.refit.input_moments import find_consumers
from nervure.refit.moments import InputSums
from nervure.scores.bundles import Layer, layers
from nervure.scores.elimination import ReaderProblem, entry_prices

SHARES = Kind("nervure-patch-connectivity", "connectivity on patches saved by nervure", version=1)


@final
@dataclass(frozen=True, slots=True)
class PatchSurvey:
    """How it is measured; see :class:`nervure.methods.channels.compensation.CompensationSurvey`."""

    samples: int = 2048
    positions: int = 0
    ridge: float = 1e-3

    def of(self, view: View, folder: Folder = None) -> dict[str, Tensor]:
        """For each weight tensor [children, parents], 0 or more; tensors that cannot be read are left out.

        Raises:
            DataError: the view has no model or no data, or what enters a layer is not finite.
        """
        model = model_to_run(view)
        data_of(view)  # Where there are none, that is said before a folder is made.
        place = answer_folder(folder, view, self)

        def make() -> Mapping[str, Tensor]:
            parts = draw_samples(view, self.samples)
            consumers = find_consumers(model, parts[0])
            names = dict.fromkeys(consumer.tensor for consumer in consumers)
            listed = {layer.tensor: layer for layer in layers(view.graph, view.weights, names)}
            found = dict[str, Tensor]()
            entering = dict(_units(listed, consumers))
            positions = self.positions or places_in(parts)
            passes = read_in_passes(
                model, parts, consumers, entering, positions=positions, seed=view.seed, shown=view.shows_progress
            )
            for name, entered in passes:
                (at,) = entering[name]
                if at not in entered.reasons:
                    sums = entered.led[entered.leaders[at]]
                    found[name] = self._shares(listed[name], consumers[at], sums, entering[name][at])
            return found

        return remember(None if place is None else place / "patches.safetensors", make, SHARES)

    def _shares(self, layer: Layer, consumer: Consumer, sums: InputSums, units: Tensor) -> Tensor:
        variance, moments = second_moments(consumer, sums)
        weight = layer.weight.to(moments).reshape(len(moments), -1, moments.shape[1])
        power = ((weight @ variance) * weight).sum(2)
        parts = []
        for part, matrix in enumerate(moments):
            columns = columns_of(units[part], layer.parents)
            parts.append(entry_prices(ReaderProblem(weight[part], add_ridge_to(matrix, self.ridge), columns)))
        lost = torch.cat(parts)
        return (lost / power.reshape(-1, 1).clamp(min=torch.finfo(power.dtype).tiny)).float().cpu()


def _units(listed: Mapping[str, Layer], consumers: Sequence[Consumer]) -> Iterator[tuple[str, dict[int, Tensor]]]:
    """For each layer that is one consumer, this and the parent of each of its inputs, [stack, inputs]."""
    for place, consumer in enumerate(consumers):
        layer = listed.get(consumer.tensor)
        if layer is None or any(reading.reason for reading in consumer.readings) or not consumer.is_matched:
            continue
        stack, outputs, inputs = consumer.shape
        kernel = layer.weight[0, 0].numel()
        if stack * outputs == layer.children and inputs == layer.weight.shape[1] * kernel:
            yield layer.tensor, {place: layer.blocks.repeat_interleave(kernel).expand(stack, inputs)}
