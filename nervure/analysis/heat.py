"""Heat on the undirected graph of a circuit: components, the spectral gap, and how heat spreads from the inputs.

Subramaniam and Sharma, "N2NSkip: Learning Highly Sparse Networks using Neuron-to-Neuron Skip Connections", 2020:
S(t) = exp(-t L) A with L = D - W, where A is one at input units.

Differs from the paper: a connection of a convolution is the norm over its kernel; the degree counts edges of both
directions (heat is conserved only then); times are told (the paper tells none).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np

from nervure.analysis.neuron_graph import EdgeSet, Floats, Ints, NeuronGraph
from nervure.core.extras import require_extra

Normalize: TypeAlias = Literal["none", "meandeg", "sym"]
DENSE = 400
"""Components of no more nodes than this are solved by a full decomposition."""
SETTLED = 40.0
"""After this many decay times of the slowest mode heat has settled to the last bit."""
PRECISION = 1e-14
ERROR = 1e-9
"""How far heat may be from the truth, relative to the length of what has not settled."""
STEPS = 512
"""Vectors of a Krylov space at most; where that is not enough, time is gone through in parts."""


class LaplacianBlock(NamedTuple):
    """Edges between ``rows`` and ``columns``, by the strengths in ``matrix``; ``plain``: no node is there twice."""

    rows: Ints
    columns: Ints
    matrix: Any
    plain: bool


@final
@dataclass(frozen=True, eq=False)
class Laplacian:
    """The undirected graph of a circuit.

    What is only added to something is one node with the sum: the output of a convolution before a shortcut is added to
    it, a linked signal. So a network has the same nodes with links as without.

    Attributes:
        whole: for each node of the circuit the first of those that are one with it. Shape [nodes of the circuit].
        blocks: its edges.
        sources: 1 for inputs of the model, 0 elsewhere. Shape [nodes].
        normalize: ``"none"``; ``"meandeg"`` divides all strengths by the mean degree of nodes that have edges;
            ``"sym"`` takes the symmetric normalised Laplacian.
    """

    whole: Ints
    blocks: tuple[LaplacianBlock, ...]
    sources: Floats
    normalize: Normalize = "none"

    @staticmethod
    def of(circuit: NeuronGraph, normalize: Normalize = "none") -> "Laplacian":
        """The undirected graph of ``circuit``; raises MissingExtraError without scipy."""
        whole = wholes(circuit)
        nodes, number = np.unique(whole, return_inverse=True)
        blocks = tuple(_block(bundle, number, whole) for bundle in circuit.bundles)
        sources = np.zeros(len(nodes))
        sources[number[circuit.inputs]] = 1.0
        return Laplacian(whole, blocks, sources, normalize)

    @cached_property
    def nodes(self) -> Ints:
        """For each node of this graph the node of the circuit that it stands for, ascending. Shape [nodes]."""
        return np.unique(self.whole)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    def spread(self, values: Floats) -> Floats:
        """What neighbours hold, weighted by the strength of the edges: W ``values``. Shape [nodes]."""
        out = np.zeros(self.size)
        for rows, columns, matrix, plain in self.blocks:
            for at, new in ((rows, matrix @ values[columns]), (columns, matrix.T @ values[rows])):
                if plain:
                    out[at] += new
                else:
                    np.add.at(out, at, new)
        return out

    @cached_property
    def degrees(self) -> Floats:
        """The sum of the strengths of each node's edges. Shape [nodes]."""
        return self.spread(np.ones(self.size))

    @cached_property
    def _scale(self) -> float:
        degrees = self.degrees[self.degrees > 0]
        return float(degrees.mean()) if self.normalize == "meandeg" and len(degrees) else 1.0

    @cached_property
    def _roots(self) -> Floats:
        return np.sqrt(np.where(self.degrees > 0, self.degrees, np.inf))

    def laplacian(self, values: Floats) -> Floats:
        """L ``values``. Shape [nodes]."""
        if self.normalize == "sym":
            return np.where(self.degrees > 0, values, 0.0) - self.spread(values / self._roots) / self._roots
        return (self.degrees * values - self.spread(values)) / self._scale

    @cached_property
    def bound(self) -> float:
        """A number that no eigenvalue of the Laplacian exceeds."""
        if self.normalize == "sym":
            return 2.0
        tops = [self.degrees[b.rows].max() + self.degrees[b.columns].max() for b in self.blocks if len(b.rows)]
        return float(max(tops, default=0.0)) / self._scale

    @cached_property
    def resting(self) -> Floats:
        """A vector that is 0 under the Laplacian on every component: ones, or the roots of degrees for ``"sym"``."""
        if self.normalize != "sym":
            return np.ones(self.size)
        return np.where(self.degrees > 0, np.sqrt(self.degrees), 1.0)

    # -- components ---------------------------------------------------------------------------------------------

    @cached_property
    def components(self) -> Ints:
        """For each node the number of its component, 0 for the first. Shape [nodes]."""
        pairs = [edge for block in self.blocks for edge in _ties(block)]
        return _components(self.size, pairs)

    @cached_property
    def isolated(self) -> Ints:
        """Nodes without an edge."""
        return np.flatnonzero(self.degrees == 0)

    @cached_property
    def gap(self) -> float:
        """The first eigenvalue of the Laplacian above 0: the slowest mode of all components; 0 without edges."""
        counts = np.bincount(self.components)
        slowest = [self._slowest(np.flatnonzero(self.components == c)) for c in np.flatnonzero(counts > 1)]
        return min(slowest, default=0.0)

    def _slowest(self, members: Ints) -> float:
        rest = self.resting[members] / np.linalg.norm(self.resting[members])
        inside = np.zeros(self.size)

        def lift(values: Floats) -> Floats:
            # The mode that rests is lifted above all others, so that the lowest left is the slowest that moves.
            inside[members] = values.reshape(-1)
            return self.laplacian(inside)[members] + self.bound * rest * (rest @ values.reshape(-1))

        if len(members) <= DENSE:
            matrix = np.stack([lift(row) for row in np.eye(len(members))])
            return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
        linalg = _scipy("scipy.sparse.linalg")
        operator = linalg.LinearOperator((len(members),) * 2, matvec=lift, dtype=np.float64)
        start = np.random.default_rng(0).normal(size=len(members))
        found = linalg.eigsh(operator, k=1, which="SA", v0=start, tol=1e-5, ncv=40, return_eigenvectors=False)
        return float(found[0])

    # -- heat ---------------------------------------------------------------------------------------------------

    def equilibrium(self) -> Floats:
        """S at infinite time: on each component the mean of its sources (weighted by degree for ``"sym"``)."""
        rest, parts = self.resting, self.components
        total = np.bincount(parts, weights=self.sources * rest)
        norm = np.bincount(parts, weights=rest**2)
        return rest * (total / norm)[parts]

    def heat(self, times: Iterable[float]) -> list[Floats]:
        """S(t) = exp(-t L) A at each of ``times``, 0 or more, ``inf`` included; each of shape [nodes].

        What has not settled yet is carried by one Krylov space for all times, whose size grows with the root of t times
        the largest eigenvalue; that of ``scipy.sparse.linalg.expm_multiply`` grows with t times it.
        """
        listed, rest = list(times), self.equilibrium()
        moving = sorted({t for t in listed if t > 0 and t * self.gap < SETTLED})
        found = dict(zip(moving, self._diffuse(self.sources - rest, moving), strict=True))
        return [self.sources.copy() if t == 0 else rest + found.get(t, 0.0) for t in listed]

    def _diffuse(self, start: Floats, times: list[float]) -> list[Floats]:
        """exp(-t L) ``start``, which holds nothing that rests, for ``times`` in ascending order."""
        if not times:
            return []
        found = self._diffuse_lanczos(start, times)
        if found is None:
            halves = self._diffuse(start, [t / 2 for t in times])
            return [self._diffuse(half, [t / 2])[0] for half, t in zip(halves, times, strict=True)]
        return found

    def _diffuse_lanczos(self, start: Floats, times: list[float]) -> list[Floats] | None:
        """The same by Lanczos' method; None where so many steps are not enough."""
        length = float(np.linalg.norm(start))
        if length < PRECISION * math.sqrt(self.size):
            return [np.zeros_like(start) for _ in times]
        basis, diagonal, beside = np.empty((STEPS, self.size)), [], []
        basis[0] = start / length
        for step in range(STEPS):
            known = basis[: step + 1]
            new = self.laplacian(basis[step])
            diagonal.append(float(new @ basis[step]))
            for _ in range(2):  # the second time takes away what rounding left of the first
                new -= known.T @ (known @ new)
            beside.append(float(np.linalg.norm(new)))
            is_over = beside[-1] <= 1e-12 * self.bound
            if is_over or step % 16 == 15:
                values, vectors = _scipy("scipy.linalg").eigh_tridiagonal(diagonal, beside[:-1])
                values = np.maximum(values, 1e-300)
                errors = [beside[-1] * abs(vectors[-1] @ (-np.expm1(-t * values) / values * vectors[0])) for t in times]
                if is_over or max(errors) < ERROR:
                    return [length * ((vectors @ (np.exp(-t * values) * vectors[0])) @ known) for t in times]
            if step + 1 < STEPS:
                basis[step + 1] = new / beside[-1]
        return None


def _scipy(module: str) -> Any:
    return require_extra(module, "The connectivity of a network", "connectivity")


def _components(size: int, pairs: Iterable[tuple[Ints, Ints]]) -> Ints:
    listed = list(pairs)
    one, two = (np.concatenate([p[side] for p in listed] or [np.zeros(0, np.int64)]) for side in (0, 1))
    graph = _scipy("scipy.sparse").coo_matrix((np.ones(len(one), dtype=np.int8), (one, two)), shape=(size, size))
    labels: Ints = _scipy("scipy.sparse.csgraph").connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def wholes(circuit: NeuronGraph) -> Ints:
    """For each node of a circuit the first of those that are one with it. Shape [nodes of the circuit]."""
    readers = np.zeros(circuit.size, dtype=np.int64)
    for bundle in circuit.bundles:
        readers[bundle.sources] += 1
    free = readers == 1
    free[circuit.inputs] = free[circuit.outputs] = False
    ties = [(s[free[s]], t[free[s]]) for b in circuit.bundles if b.kind == "sum" for s, t, _ in b.edges()]
    labels = _components(circuit.size, ties)
    first = np.unique(labels, return_index=True)[1]
    return first[labels]


def _block(bundle: EdgeSet, number: Ints, whole: Ints) -> LaplacianBlock:
    """The edges of a bundle between other nodes than one and the same."""
    matrix = bundle.matrix
    if bundle.kind == "sum":
        matrix = matrix.tocoo()
        other = whole[bundle.targets[matrix.row]] != whole[bundle.sources[matrix.col]]
        at = (matrix.row[other], matrix.col[other])
        matrix = _scipy("scipy.sparse").csr_matrix((matrix.data[other], at), shape=matrix.shape)
    rows, columns = number[bundle.targets], number[bundle.sources]
    plain = all(len(np.unique(side)) == len(side) for side in (rows, columns))
    return LaplacianBlock(rows, columns, matrix, plain)


def _ties(block: LaplacianBlock) -> Iterator[tuple[Ints, Ints]]:
    """Edges that connect what a block connects; few where a row has edges to all columns, as in dense layers."""
    rows, columns, matrix, _ = block
    if isinstance(matrix, np.ndarray):
        there = matrix > 0
        full = np.flatnonzero(np.atleast_1d(there.all(axis=1))) if there.size else there
        if len(full):
            some = np.atleast_1d(there.any(axis=1))
            yield rows[some], columns[there.argmax(axis=1)[some]]
            yield np.full(len(columns), rows[full[0]]), columns
            return
        row, column = there.nonzero()
    else:
        found = matrix.tocoo()
        row, column = found.row[found.data > 0], found.col[found.data > 0]
    yield rows[row], columns[column]
