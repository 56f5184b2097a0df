"""Connectivity: how much a child depends on a parent given all its other parents, times the weight between them.

The score of SNACS (Ganesh, Blanchard, Corso and Yasaei Sekeh, "Slimming Neural Networks Using Adaptive Connectivity
Scores", 2020), for every layer of a traced graph. From connections to units it goes by what each child needs.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from nervure.dependence import conditional_connectivity, correlation
from nervure.dependence.estimator_options import Estimator
from nervure.errors import DataError, NervureWarning
from nervure.graph.types import Graph, Group, Part
from nervure.scores.bundles import Layer
from nervure.stats.connections import response
from nervure.stats.evidence import Stats

Dependence: TypeAlias = Literal["classwise", "correlation", "residual", "gaussian"]
"""How connectivity is measured; see :func:`of_layers`."""
UNLABELLED = (
    "connectivity class by class needs labels: give data= as batches of (inputs, labels), or choose an estimator that "
    "looks at none, estimator='correlation', 'residual' or 'gaussian'."
)

BINS = 8
TIE = 1e-6
"""Dependence that is lost in noise counts as this much, so that among those connections the weight decides."""


def connectivity(layer: Layer, heard: Tensor, *, estimator: Estimator = "residual") -> Tensor:
    """Conditional dependence of each child on each of its parents.

    Args:
        layer: the layer.
        heard: what enters it, [samples, inputs, kernel positions] as in ``Stats.connections``.
        estimator: as in :func:`nervure.dependence.conditional_connectivity`.

    Returns:
        [children, parents], 0 or more; children of a grouped convolution have the parents of their own group.
    """
    # Five samples in each cell of a joint histogram are what it takes; fewer samples get fewer bins.
    bins = min(BINS, max(2, int((len(heard) / 5) ** 0.5)))
    return _of_pairs(layer, heard, partial(conditional_connectivity, estimator=estimator, bins=bins))


def correlation_of_layer(layer: Layer, heard: Tensor, labels: Tensor | None = None) -> Tensor:
    """Absolute correlation of each child with each of its parents, class by class where there are labels.

    Args:
        layer: the layer.
        heard: what enters it, [samples, inputs, kernel positions] as in ``Stats.connections``.
        labels: [samples], see :func:`nervure.dependence.correlation`.

    Returns:
        [children, parents] in [0, 1].
    """
    return _of_pairs(layer, heard, partial(correlation, labels=labels))


def _of_pairs(layer: Layer, heard: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What ``measure`` says of parents and children [samples, ...]; in groups each child has those of its own."""
    splits = layer.splits(heard)
    parents = layer.said(heard)
    children = response(layer.weight, heard).reshape(len(heard), splits, -1)
    return torch.cat([measure(parents[:, split], children[:, split]) for split in range(splits)]).float()


def of_layers(listed: Iterable[Layer], stats: Stats, *, estimator: Dependence = "classwise") -> dict[str, Tensor]:
    """Connectivity of all layers whose parents are units of the network: the weights of a companion network.

    Args:
        listed: the layers, in running order; those that read what the model is given are passed over.
        stats: what was measured, with ``"connections"`` and, for ``"classwise"``, ``"labels"``.
        estimator: ``"classwise"``: absolute correlation within each class, averaged over the classes;
            ``"correlation"``: over all samples; ``"residual"`` or ``"gaussian"``: given all other parents, as
            :func:`nervure.dependence.conditional_connectivity` has it.

    Returns:
        For each weight tensor [children, parents], 0 or more.

    Raises:
        DataError: labels are wanted and were not measured.
    """
    labels = _classes(listed := list(listed), stats) if estimator == "classwise" else None
    return {
        layer.tensor: correlation_of_layer(layer, stats.connections[layer.tensor], labels)
        if estimator in ("classwise", "correlation")
        else connectivity(layer, stats.connections[layer.tensor], estimator=cast(Estimator, estimator))
        for layer in listed
        if not layer.is_first
    }


def are_last(listed: Sequence[Layer]) -> set[str]:
    """The tensors of layers whose outputs no other of these layers reads: a classifier, most of the time."""
    read = {group for layer in listed for group, _ in layer.columns}
    return {layer.tensor for layer in listed if not any(group in read for group, _ in layer.rows)}


def _classes(listed: Sequence[Layer], stats: Stats) -> Tensor:
    """The labels; warns where the one output layer has classes that no sample is of."""
    if stats.labels is None:
        raise DataError(UNLABELLED)
    outputs = [layer.children for layer in listed if layer.tensor in are_last(listed)]
    missing = sorted(set(range(outputs[0] if len(outputs) == 1 else 0)) - set(stats.labels.tolist()))
    if missing:
        warnings.warn(
            f"of {outputs[0]} classes {len(missing)} are not among the {stats.samples} samples measured "
            f"({', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''}): connectivity is the mean "
            "over the others. Shuffle the data, or raise samples=.",
            NervureWarning,
            stacklevel=2,
        )
    return stats.labels


def weigh_by_magnitude(layer: Layer, dependence: Tensor) -> Tensor:
    """Dependence [children, parents] times the absolute weight relative to the largest of the layer: the score rho."""
    strength = layer.strength()
    return (dependence + TIE) * strength / strength.max().clamp(min=1e-30)


def needs(graph: Graph, layers: Iterable[Layer], rho: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much its readers need each unit: its share of what each child hears, averaged over the children.

    Shares are relative to an equal one, so the mean of each layer is 1; a unit with several readers has their mean.

    Returns:
        For each group that a layer reads a tensor [units].
    """
    heard: dict[str, list[Tensor]] = {}
    for layer in layers:
        scores = rho[layer.tensor]
        shares = (scores / scores.sum(1, keepdim=True).clamp(min=1e-30)).mean(0) * layer.parents
        for part in layer.columns:
            heard.setdefault(part[0], []).append(per_unit(shares, part, graph[part[0]].size))
    return {group: torch.stack(parts).nanmean(0) for group, parts in heard.items()}


def takes(graph: Graph, layers: Iterable[Layer], rho: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much each unit hears of its own parents, relative to the mean of its layer; averaged over its writers.

    Returns:
        For each group that a layer writes a tensor [units].
    """
    said: dict[str, list[Tensor]] = {}
    for layer in layers:
        sums = rho[layer.tensor].sum(1)
        for part in layer.rows:
            said.setdefault(part[0], []).append(
                per_unit(sums / sums.mean().clamp(min=1e-30), part, graph[part[0]].size)
            )
    return {group: torch.stack(parts).nanmean(0) for group, parts in said.items()}


def per_unit(values: Tensor, part: Part, size: int) -> Tensor:
    """Mean of ``values`` [places] over the places of each unit; NaN where it has none. Shape [units]."""
    units = torch.tensor(part[1].array)
    held = units >= 0
    sums = values.new_zeros(size).index_add_(0, units[held], values[held])
    return sums / torch.bincount(units[held], minlength=size)


def unit_scores(
    graph: Graph,
    layers: Iterable[Layer],
    rho: Mapping[str, Tensor],
    fallback: Mapping[str, Tensor],
    *,
    hears: bool = False,
) -> dict[str, Tensor]:
    """One score for each unit of every prunable group: how much its readers need it.

    Relative to the mean of the layer, so that layers compete.

    Args:
        graph: the model's graph.
        layers: its scored layers.
        rho: their scores.
        fallback: scores [units] with mean 1, for units of which nothing is known.
        hears: whether to multiply by how much a unit hears itself; where one side is not known, the other decides.
    """
    listed = list(layers)
    sides = (needs(graph, listed, rho), takes(graph, listed, rho) if hears else {})
    scores = {}
    for group in graph.prunable:
        other = fallback[group.name].to("cpu", torch.float32)
        unknown = torch.full_like(other, torch.nan)
        needed, taken = (side.get(group.name, unknown) for side in sides)
        known = needed.nan_to_num(1.0) * taken.nan_to_num(1.0)
        scores[group.name] = torch.where(needed.isnan() & taken.isnan(), other, known)
    return scores


def lifelines(graph: Graph, layers: Sequence[Layer], rho: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The connections that keep every output hearing: from the outputs back, the best one of each unit on the way.

    Returns:
        For each layer a boolean [children, parents].
    """
    best = {layer.tensor: rho[layer.tensor].argmax(1) for layer in layers}
    lines = {}
    for layer, alive in zip(layers, needed_children(graph, layers, best).values(), strict=True):
        line = torch.zeros_like(rho[layer.tensor], dtype=torch.bool)
        line[alive, best[layer.tensor][alive]] = True
        lines[layer.tensor] = line if layer.is_prunable else alive[:, None].expand_as(line).clone()
    return lines


def needed_children(graph: Graph, layers: Sequence[Layer], best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The children that are on the way from the outputs back to the inputs, where each hears its best parent.

    Args:
        graph: the model's graph.
        layers: its layers, in running order.
        best: the best parent of each child of a layer, [children].

    Returns:
        For each layer a boolean [children].
    """
    scored = {layer.tensor for layer in layers}
    needed = {
        group.name: torch.full((group.size,), group.is_pinned or _is_read_elsewhere(group, scored))
        for group in graph.groups
    }
    found = {}
    for layer in reversed(layers):
        alive = found[layer.tensor] = _any_of(layer.rows, needed, layer.children)
        heard = torch.full((layer.parents,), bool(alive.any()) and not layer.is_prunable)
        heard[best[layer.tensor][alive]] = True
        for group, units in layer.columns:
            index = torch.tensor(units.array)
            needed[group][index[heard & (index >= 0)]] = True
    return {layer.tensor: found[layer.tensor] for layer in layers}


def _is_read_elsewhere(group: Group, scored: set[str]) -> bool:
    readers = {slot.tensor for slot in group.readers}
    return not readers or bool(readers - scored)


def _any_of(parts: Iterable[Part], marked: Mapping[str, Tensor], size: int) -> Tensor:
    """Places [size] with a marked unit, or with no unit at all."""
    found, held = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for group, units in parts:
        index = torch.tensor(units.array)
        held |= index >= 0
        found |= marked[group][index.clamp(min=0)] & (index >= 0)
    return found | ~held
