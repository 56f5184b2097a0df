"""What a method that rewires hears at an event: the layers as they are, gradients, activations, strengths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nervure.graph.models import evaluating
from nervure.graph.operands import Entering, listen
from nervure.graph.types import Graph, Product
from nervure.scores.bundles import axis_along
from nervure.training.dynamic.sites import Site


class SignalSource(NamedTuple):
    """A layer that writes units which another one reads."""

    writer: str
    written: Tensor
    read: Tensor
    units: int


def sources(graph: Graph, sheets: Sequence[Product]) -> dict[str, tuple[SignalSource, ...]]:
    """For each tensor the layers behind its inputs, as far as the graph knows."""
    sides = {sheet.tensor: _sides(graph, sheet) for sheet in sheets}
    found = {}
    for name, (_, columns) in sides.items():
        found[name] = tuple(
            SignalSource(writer, torch.tensor(rows[group].array), torch.tensor(units.array), graph[group].size)
            for group, units in columns.items()
            for writer, (rows, _) in sides.items()
            if group in rows and writer != name
        )
    return found


def incoming(site: Site, behind: Sequence[SignalSource], strengths: Mapping[str, Tensor]) -> Tensor:
    """How strongly the unit behind each input is written by other layers. Shape [inputs]."""
    total = torch.zeros(site.weight.shape[1], dtype=torch.float64)
    for source in behind:
        written = strengths[source.writer]
        if len(source.read) != len(total) or len(source.written) != len(written):
            continue
        sums = torch.zeros(source.units + 1, dtype=torch.float64)
        # Positions of no unit (-1) end up in the last place, which is zero again.
        sums.index_add_(0, source.written, written)
        sums[-1] = 0.0
        total += sums[source.read]
    return total


def activations(model: nn.Module, run: Callable[[], Any], sheets: Mapping[str, Product]) -> dict[str, Tensor]:
    """Mean absolute value of the inputs of each layer, [outputs, inputs], from one pass in evaluation mode.

    ``run`` is that pass.
    """
    entering = Entering(torch.abs)
    with evaluating(model):
        listen(model, run, entering.hear)
    return {name: sums / counts.clamp(min=1) for name, sums, counts in entering.totals(sheets)}


def _sides(graph: Graph, sheet: Product) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups along the outputs and along the inputs of a tensor, with the unit of each position."""
    rows, columns = (axis_along(graph, sheet, axes) for axes in (sheet.rows, sheet.columns))
    return dict(() if rows is None else rows.parts), dict(() if columns is None else columns.parts)
