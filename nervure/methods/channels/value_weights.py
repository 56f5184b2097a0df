"""How much each output of a reader counts: values count alike, as far as they make the network's answer.

What is lost is summed over outputs. Not each of them is a value of its own: a recurrent cell makes one of four gates,
attention of a query, a key and a value. And what is inside a block goes no further than the block: of one that adds a
tenth to its stream, inner layers may lose all, and the stream loses a tenth. That is the most that they count less;
errors add up over many layers, and by half of it (in powers) no budget loses.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nervure.graph.types import Graph, Group
from nervure.refit.consumers import Consumer

POWER = 0.5
"""Of what a block makes of its stream, by which outputs inside of it count. 0: they count whole, 1: as the block does.

Chosen on ResNet-20 and small ViTs, see the decision on what a unit costs.
"""


def value_weights(graph: Graph, consumers: Sequence[Consumer], joined: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The weight of each output of each consumer.

    Args:
        graph: of the model.
        consumers: its products with parameters.
        joined: by the place of a consumer that is added to a stream, what it makes of the stream's variance then.
            Shape [stack, outputs], or any of as many numbers.

    Returns:
        By the place of a consumer [stack, outputs], 0 to 1.
    """
    flows, parts = _flows(graph, consumers, joined), _parts_of_values(graph, consumers)
    found = dict[int, Tensor]()
    for place, consumer in enumerate(consumers):
        part = parts.get(place, torch.ones(consumer.shape[:2]))
        share = joined.get(place)
        is_told = share is not None and share.numel() == part.numel()
        found[place] = part * (
            share.reshape(part.shape).to(part) if is_told and share is not None else flows[place] ** POWER
        )
    return found


def _flows(graph: Graph, consumers: Sequence[Consumer], joined: Mapping[int, Tensor]) -> dict[int, float]:
    """How much of the network's answer goes through each consumer, 0 to 1; what nobody reads is the answer itself.

    As much as through all that later reads what it writes, and of a stream the part that it makes.
    """
    order = {place: consumer.readings[0].order for place, consumer in enumerate(consumers)}
    writers, readers = _places(graph, consumers, "writer"), _places(graph, consumers, "reader")
    found = dict[int, float]()
    for place in sorted(order, key=order.__getitem__, reverse=True):
        written = [name for name, places in writers.items() if place in places]
        behind = {other for name in written for other in readers.get(name, ()) if order[other] > order[place]}
        through = min(1.0, sum(found[other] for other in behind)) if behind else 1.0
        found[place] = through * (float(joined[place].mean()) if place in joined else 1.0)
    return found


def _places(graph: Graph, consumers: Sequence[Consumer], role: str) -> dict[str, set[int]]:
    """For each group the consumers whose parameters write its units, or read them."""
    by_tensor = dict[str, set[int]]()
    for place, consumer in enumerate(consumers):
        by_tensor.setdefault(consumer.tensor, set()).add(place)
    return {
        group.name: {p for slot in group.slots if slot.role == role for p in by_tensor.get(slot.tensor, ())}
        for group in graph.groups
    }


def _parts_of_values(graph: Graph, consumers: Sequence[Consumer]) -> dict[int, Tensor]:
    """The part of each output in the values that are made of it, [stack, outputs].

    Of the outputs of a unit at one level (as many as a unit has places in the parameters there) the values are made
    that whoever reads the unit sees.
    """
    found = dict[int, Tensor]()
    for group in graph.groups:
        counts = [_count(torch.tensor(slot.units.array), group).max() for slot in group.slots if slot.role == "reader"]
        writers = {place: rows for place, c in enumerate(consumers) if (rows := _units_made(group, c)) is not None}
        for place, rows in writers.items() if counts else ():
            level = consumers[place].level
            made = sum(_count(r, group) for other, r in writers.items() if consumers[other].level == level)
            part = (max(counts) / torch.as_tensor(made).clamp(min=1)).clamp(max=1)
            found[place] = torch.where(rows >= 0, part[rows], found.get(place, torch.ones(rows.shape)))
    return found


def _units_made(group: Group, consumer: Consumer) -> Tensor | None:
    """The unit that each output of a consumer writes, -1: none of this group. Shape [stack, outputs]."""
    for slot in group.slots:
        if slot.tensor == consumer.tensor and slot.role == "writer":
            rows = np.unravel_index(consumer.firsts.numpy(), consumer.origin.shape)[slot.axis]
            return torch.tensor(slot.units.array)[torch.from_numpy(rows)]
    return None


def _count(units: Tensor, group: Group) -> Tensor:
    """How often each unit is there."""
    return torch.bincount(units[units >= 0].flatten(), minlength=group.size)
