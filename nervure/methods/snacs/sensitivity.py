"""Which units the next layers lean on: the sensitivity of SNACS, and the units that it protects."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nervure.graph.types import Graph
from nervure.scores.bundles import Layer
from nervure.scores.parent_dependence import needs, per_unit

DEVIATIONS, MOST = 2.0, 0.1
"""Protected are units so many standard deviations above the mean, at most this share of their group."""


def sensitivity(graph: Graph, layers: Iterable[Layer], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The share of each unit in the weights of each grandchild, averaged over the grandchildren.

    Args:
        graph: the model's graph.
        layers: its layers.
        factors: for each layer [children, parents], 0 or more; the absolute weights, say.

    Returns:
        For each group that a layer reads a tensor [units], 1 in the mean of a layer.
    """
    return needs(graph, layers, factors)


def propagate_importance(graph: Graph, layers: Sequence[Layer], rho: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The older form: importance flows back from equally important outputs, each child sharing by its scores.

    Where several layers read a group, what they send back adds up.
    """
    importance: dict[str, Tensor] = {}
    for layer in reversed(layers):
        scores = rho[layer.tensor]
        sent = _of_rows(graph, layer, importance) @ (scores / scores.sum(1, keepdim=True).clamp(min=1e-30))
        for part in layer.columns:
            size = graph[part[0]].size
            places = torch.bincount(torch.tensor(part[1].array).clamp(min=-1) + 1, minlength=size + 1)[1:]
            back = per_unit(sent, part, size).nan_to_num(0.0) * places
            importance[part[0]] = importance.get(part[0], torch.zeros(size)) + back
    return importance


def protected_units(sensitivities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units far above the mean of their group. Boolean [units] for each group that has any.

    >>> protected_units({"a": torch.tensor([1.0] * 29 + [9.0])})["a"].nonzero().flatten()
    tensor([29])
    """
    marked = {}
    for group, values in sensitivities.items():
        high = values > values.nanmean() + DEVIATIONS * values.nan_to_num(float(values.nanmean())).std(correction=0)
        most = int(MOST * len(values))
        best = torch.argsort(values.nan_to_num(0.0), descending=True, stable=True)[:most]
        chosen = torch.zeros_like(high)
        chosen[best] = high[best]
        if chosen.any():
            marked[group] = chosen
    return marked


def _of_rows(graph: Graph, layer: Layer, importance: Mapping[str, Tensor]) -> Tensor:
    """Importance of each row; equal where nothing reads it."""
    rows = torch.ones(layer.children) / layer.children
    for group, units in layer.rows:
        if group in importance:
            index = torch.tensor(units.array)
            rows = torch.where(index >= 0, importance[group][index.clamp(min=0)], rows)
    return rows
