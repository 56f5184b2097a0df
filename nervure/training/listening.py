"""What a method that rewires hears at an event: the layers as they are, gradients, activations, strengths."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nervure.budget.sheets import Sheet
from nervure.evaluation.batches import Inputs, call_only
from nervure.graph.example import evaluating
from nervure.graph.types import Graph
from nervure.scores.sites import Site


class Source(NamedTuple):
    """A layer that writes units which another one reads."""

    writer: str
    written: Tensor
    read: Tensor
    units: int


def sources(graph: Graph, sheets: Sequence[Sheet]) -> dict[str, tuple[Source, ...]]:
    """For each tensor the layers behind its inputs, as far as the graph knows."""
    sides = {sheet.tensor: _sides(graph, sheet) for sheet in sheets}
    found = {}
    for name, (_, columns) in sides.items():
        found[name] = tuple(
            Source(writer, torch.tensor(rows[group].array), torch.tensor(units.array), graph[group].size)
            for group, units in columns.items()
            for writer, (rows, _) in sides.items()
            if group in rows and writer != name
        )
    return found


def incoming(site: Site, behind: Sequence[Source], strengths: Mapping[str, Tensor]) -> Tensor:
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


def activations(model: nn.Module, inputs: Inputs, sheets: Mapping[str, Sheet]) -> dict[str, Tensor]:
    """Mean absolute value of the inputs of each layer, [1 or outputs, inputs], from one pass in evaluation mode.

    Layers that are not called as modules (the output projection inside attention) are missing.
    """
    found: dict[str, Tensor] = {}
    with evaluating(model), _ears(sheets, found):
        call_only(model, inputs)
    return found


@contextmanager
def _ears(sheets: Mapping[str, Sheet], found: dict[str, Tensor]) -> Iterator[None]:
    hooks = [
        sheet.module.register_forward_pre_hook(_ear(name, sheet, found), with_kwargs=True)
        for name, sheet in sheets.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ear(name: str, sheet: Sheet, found: dict[str, Tensor]) -> Any:
    def hear(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if heard is not None:
            mean = _mean_input(sheet, heard.detach())
            found[name] = mean if name not in found else (found[name] + mean) / 2

    return hear


def _mean_input(sheet: Sheet, heard: Tensor) -> Tensor:
    is_kernel = isinstance(sheet.module, nn.modules.conv._ConvNd)
    channels = heard.abs().double().movedim(1 if is_kernel else -1, 0).flatten(1).mean(1).cpu()
    if not isinstance(sheet.module, nn.modules.conv._ConvNd) or sheet.module.groups == 1:
        return channels[None]
    groups = sheet.module.groups
    return channels.reshape(groups, -1).repeat_interleave(sheet.module.out_channels // groups, 0)


def _sides(graph: Graph, sheet: Sheet) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups along the outputs and along the inputs of a tensor, with the unit of each position."""
    axes = [graph.axes[index] for index in graph.tensors[sheet.tensor][:2]]
    rows, columns = reversed(axes) if sheet.transposed else axes
    return dict(rows.parts), dict(columns.parts)
