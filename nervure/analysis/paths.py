"""Paths from inputs to outputs along the direction in which a network computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nervure.analysis.edge_strength import CHUNK
from nervure.analysis.neuron_graph import Flags, Floats, NeuronGraph, WeightUse


def heard(circuit: NeuronGraph) -> Flags:
    """For each node whether a path leads to it from an input. Shape [nodes]."""
    found = np.zeros(circuit.size)
    found[circuit.inputs] = 1.0
    for bundle in circuit.bundles:
        found[bundle.targets] = bundle.matrix @ found[bundle.sources] > 0
    return found > 0


def read(circuit: NeuronGraph) -> Flags:
    """For each node whether a path leads from it to an output. Shape [nodes]."""
    found = np.zeros(circuit.size)
    found[circuit.outputs] = 1.0
    for bundle in reversed(circuit.bundles):
        found[bundle.sources] += bundle.matrix.T @ found[bundle.targets] > 0
    return found > 0


@final
@dataclass(frozen=True, slots=True)
class Mass:
    """Natural logarithms of path masses, -inf where there is no path; each of shape [nodes].

    The mass of a path is the product of the strengths of its edges.

    Attributes:
        arrived: of all paths from an input to each node.
        left: of all paths from each node to an output.
    """

    arrived: Floats
    left: Floats

    @property
    def through(self) -> Floats:
        """Of all paths from an input to an output through each node."""
        return self.arrived + self.left


def masses(circuit: NeuronGraph) -> Mass:
    """Path masses of all nodes; logarithms, since they grow and shrink with depth beyond any floating-point range."""
    arrived, left = (np.full(circuit.size, -np.inf) for _ in range(2))
    arrived[circuit.inputs] = left[circuit.outputs] = 0.0
    for bundle in circuit.bundles:
        arrived[bundle.targets] = _log_times(bundle.matrix, arrived[bundle.sources])
    for bundle in reversed(circuit.bundles):
        more = _log_times(bundle.matrix.T, left[bundle.targets])
        left[bundle.sources] = np.logaddexp(left[bundle.sources], more)
    return Mass(arrived, left)


def _log_times(matrix: Any, logs: Floats) -> Floats:
    top = logs.max(initial=-np.inf)
    if top == -np.inf:
        return np.full(matrix.shape[0], -np.inf)
    with np.errstate(divide="ignore"):
        found: Floats = np.log(matrix @ np.exp(logs - top)) + top
    return found


def log_sum(logs: Floats) -> float:
    """The logarithm of the sum of what ``logs`` are the logarithms of; -inf for none."""
    return float(np.logaddexp.reduce(logs)) if len(logs) else -np.inf


@final
@dataclass(frozen=True, slots=True)
class LayerCounts:
    """The weights of one tensor, counted.

    Attributes:
        tensor: its name.
        places: how many there could be.
        connections: how many are not 0.
        live: how many of these lie on a path from an input to an output.
        stages: numbers of the stages that it makes.
    """

    tensor: str
    places: int
    connections: int
    live: int
    stages: tuple[int, ...]


def census(circuit: NeuronGraph, is_heard: Flags, is_read: Flags) -> tuple[LayerCounts, ...]:
    """Count the weights of every tensor; one that is read several times is live where any reading is."""
    families: dict[tuple[str, tuple[int, ...], int], list[WeightUse]] = {}
    for use in circuit.uses:
        if use.tensor:
            families.setdefault((use.tensor, tuple(use.weight.shape), use.groups), []).append(use)
    return tuple(_count_layer(name, uses, is_heard, is_read) for (name, *_), uses in families.items())


def _count_layer(name: str, uses: Sequence[WeightUse], is_heard: Flags, is_read: Flags) -> LayerCounts:
    weight = uses[0].weight
    rows, columns, kernel = weight.shape
    connections = live = 0
    step = max(1, CHUNK // max(1, columns * kernel))
    for first in range(0, rows, step):
        there = (weight[first : first + step] != 0).sum(-1).cpu().numpy()
        alive = np.zeros(there.shape, dtype=bool)
        for use in uses:
            alive |= _alive(use, slice(first, first + len(there)), is_heard, is_read)
        connections += int(there.sum())
        live += int(there[alive].sum())
    return LayerCounts(name, weight.numel(), connections, live, tuple(dict.fromkeys(use.stage for use in uses)))


def _alive(use: WeightUse, part: slice, is_heard: Flags, is_read: Flags) -> Flags:
    """Which places of some rows of a weight join a unit that hears an input to one that an output hears."""
    below = np.where(use.inputs >= 0, is_heard[use.inputs], False).reshape(use.groups, -1)
    above = np.where(use.outputs >= 0, is_read[use.outputs], False)
    rows = np.arange(len(use.outputs))[part]
    found: Flags = above[part, None] & below[rows // (len(use.outputs) // use.groups)]
    return found


def carried_heat(circuit: NeuronGraph) -> Floats:
    """The heat that has come through each node when inputs began with 1 and heat moves along the edges only.

    A node hands all that it gets to its targets, in proportion to the strengths of its edges; what has nowhere to go
    is lost to the outputs. Shape [nodes].
    """
    outward, found = np.zeros(circuit.size), np.zeros(circuit.size)
    for bundle in circuit.bundles:
        outward[bundle.sources] += np.asarray(bundle.matrix.sum(axis=0)).reshape(-1)
    found[circuit.inputs] = 1.0
    for bundle in circuit.bundles:
        shares = found[bundle.sources] / np.where(outward[bundle.sources] > 0, outward[bundle.sources], 1.0)
        found[bundle.targets] = bundle.matrix @ shares
    return found
