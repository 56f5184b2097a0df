"""The circuit of a model: every unit of every activation a node, every weight between them an edge."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, final

import numpy as np
from torch import Tensor

Kind: TypeAlias = Literal["weight", "sum", "mix"]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@final
@dataclass(frozen=True, slots=True)
class NodeSet:
    """Units made together: nodes ``start`` to ``start + size``.

    Attributes:
        name: the module that makes them (``"conv1"``), with the operator where that is no layer (``"block.add"``).
        start: number of the first node.
        size: how many.
        kind: ``"input"``, ``"weight"`` (outputs of a layer), ``"sum"`` or ``"mix"`` (made without weights).
    """

    name: str
    start: int
    size: int
    kind: Literal["input", "weight", "sum", "mix"]

    @property
    def nodes(self) -> slice:
        """Where its nodes are in a vector over all nodes."""
        return slice(self.start, self.start + self.size)


@final
@dataclass(frozen=True, slots=True, eq=False)
class EdgeSet:
    """Edges made by one operation.

    Attributes:
        sources: nodes, ascending, each once. Shape [columns].
        targets: nodes, each once. Shape [rows].
        matrix: strength of each edge, 0 or more and 0 where there is none: an array or a ``scipy.sparse`` matrix.
            Shape [rows, columns].
        kind: ``"weight"``, ``"sum"`` (of two activations: strength 1) or ``"mix"`` (activations that meet otherwise).
    """

    sources: Ints
    targets: Ints
    matrix: Any
    kind: Kind

    def edges(self) -> Iterator[tuple[Ints, Ints, Floats]]:
        """The edges as arrays of sources, targets and strengths, some rows at a time."""
        if not isinstance(self.matrix, np.ndarray):
            found = self.matrix.tocoo()
            here = found.data != 0
            yield self.sources[found.col[here]], self.targets[found.row[here]], found.data[here]
            return
        step = max(1, 4_000_000 // max(1, len(self.sources)))
        for first in range(0, len(self.targets), step):
            part = self.matrix[first : first + step]
            row, column = part.nonzero()
            yield self.sources[column], self.targets[first + row], part[row, column]


@final
@dataclass(frozen=True, slots=True, eq=False)
class WeightUse:
    """One reading of a weight: which node stands at each input, which at each output.

    Attributes:
        tensor: name of the parameter, ``""`` where it is none or a table of embeddings.
        weight: the numbers, [outputs, inputs of one output, kernel positions].
        groups: blocks of outputs that hear different inputs.
        inputs: node at each input, -1 where a constant stands. Shape [inputs of all groups].
        outputs: node at each output. Shape [outputs].
        stage: number of the stage that it makes.
    """

    tensor: str
    weight: Tensor
    groups: int
    inputs: Ints
    outputs: Ints
    stage: int


@final
@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """Nodes and edges, in running order: every edge leads from a lower number to a higher one.

    Attributes:
        stages: the units, layer by layer.
        bundles: the edges, operation by operation.
        uses: what each weight joins.
        inputs: nodes that the model is given.
        outputs: nodes that it returns.
        links: names of weights of linked skip connections, which have no place in the network without links.
        notes: operators that are taken to join everything they are given, since nervure does not know them.
    """

    stages: tuple[NodeSet, ...]
    bundles: tuple[EdgeSet, ...]
    uses: tuple[WeightUse, ...]
    inputs: Ints
    outputs: Ints
    links: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """Number of nodes."""
        return self.stages[-1].start + self.stages[-1].size if self.stages else 0
