"""How much of a value each output of a reader is: gates, queries and keys are no values of their own.

What is lost is summed over outputs. A convolution makes each value that is read later by one output; a recurrent cell
makes it of four gates, attention of a query, a key and a value. Counted alike, these would weigh several times as much
as the values that they are for.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nervure.graph.types import Graph, Group
from nervure.refit.consumers import Consumer


def output_shares(graph: Graph, consumers: Sequence[Consumer]) -> dict[int, Tensor]:
    """The part of each output of each consumer in the values that are made of it.

    Of the outputs of a unit at one level (as many as a unit has places in the parameters there) the values are made
    that whoever reads the unit sees.

    Args:
        graph: of the model.
        consumers: its products with parameters.

    Returns:
        By the place of a consumer [stack, outputs], above 0 to 1. Those whose units nobody reads are left out.
    """
    found = dict[int, Tensor]()
    for group in graph.groups:
        seen = max(
            (int(_count(torch.tensor(slot.units.array), group).max()) for slot in group.slots if slot.role == "reader"),
            default=0,
        )
        writers = {place: rows for place, c in enumerate(consumers) if (rows := _units_made(group, c)) is not None}
        for place, rows in writers.items() if seen else ():
            level = consumers[place].level
            made = sum(_count(r, group) for other, r in writers.items() if consumers[other].level == level)
            share = (seen / torch.as_tensor(made).clamp(min=1)).clamp(max=1)
            found[place] = torch.where(rows >= 0, share[rows], found.get(place, torch.ones(rows.shape)))
    return found


def _units_made(group: Group, consumer: Consumer) -> Tensor | None:
    """The unit that each output of a consumer writes, -1: none of this group. Shape [stack, outputs]."""
    for slot in group.slots:
        if slot.tensor == consumer.tensor and slot.role == "writer":
            # What is looked up of a consumer is as large as its parameter: a copy lets it go.
            here = replace(consumer)
            first = here.places[:, :, 0].numpy()
            rows = np.unravel_index(first, here.origin.shape)[slot.axis]
            return torch.tensor(slot.units.array)[torch.from_numpy(rows)]
    return None


def _count(units: Tensor, group: Group) -> Tensor:
    """How often each unit is there."""
    return torch.bincount(units[units >= 0].flatten(), minlength=group.size)
