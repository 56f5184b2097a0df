"""The layers of a network as bundles of connections: which unit each row and each column of a weight belongs to."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from nervure.core.check import require_finite
from nervure.core.tensors import without_history
from nervure.graph.types import Axis, Graph, Part, Product, Units

Weights = Mapping[str, Tensor]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One weight tensor as connections between children (its rows) and parents (what it reads).

    Attributes:
        tensor: name of the weight.
        weight: [children, inputs, ...kernel], float32 on the CPU; the inputs of one child, where groups divide them.
        blocks: for each input the parent it belongs to: a unit may hold many inputs (a flattened map). Shape [inputs].
        parents: number of parents of each child.
        rows: the groups along the children and the unit of each row.
        columns: the groups along the parents and the unit of each parent.
        is_first: whether no layer makes its parents: they are what the model is given.
        is_fixed: whether the user wants it as it is.
        product: what the axes of the tensor are for; None: outputs by inputs by kernel.
    """

    tensor: str
    weight: Tensor
    blocks: Tensor
    parents: int
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    is_first: bool
    is_fixed: bool = False
    product: Product | None = None

    @property
    def children(self) -> int:
        """Number of rows."""
        return len(self.weight)

    @property
    def is_prunable(self) -> bool:
        """Whether its connections can be masked: not in a first or fixed layer, nor a child's only one."""
        return not self.is_first and not self.is_fixed and self.parents > 1

    def splits(self, heard: Tensor) -> int:
        """Groups of the convolution, from what enters it, [samples, inputs of all groups, kernel positions]."""
        return heard.shape[1] // self.weight.shape[1]

    def said(self, heard: Tensor) -> Tensor:
        """What the parents say: mean over inputs and kernel positions. Shape [samples, splits, parents]."""
        means = heard.mean(2).reshape(len(heard), self.splits(heard), -1)
        return self._mean_inputs(means)

    def strength(self) -> Tensor:
        """Mean absolute weight of each connection. Shape [children, parents]."""
        return self.fold(self.weight.abs())

    def means(self) -> Tensor:
        """Mean signed weight of each connection. Shape [children, parents]."""
        return self.fold(self.weight)

    def fold(self, values: Tensor) -> Tensor:
        """Mean over each connection of values of the shape of the weight. Shape [children, parents]."""
        return self._mean_inputs(values.reshape(*values.shape[:2], -1).mean(2))

    def mask(self, keep: Tensor) -> Tensor:
        """The connections that stay, [children, parents], as a mask of the shape of the tensor."""
        full = keep[:, self.blocks]
        mask = full.reshape(*full.shape, *[1] * (self.weight.ndim - 2)).expand(self.weight.shape)
        return mask if self.product is None else self.product.back(mask, self.product.shape)

    def entries(self) -> Tensor:
        """Weights of one connection of each parent. Shape [parents]."""
        return torch.bincount(self.blocks, minlength=self.parents) * self.weight[0, 0].numel()

    def _mean_inputs(self, values: Tensor) -> Tensor:
        """Mean over the inputs of each parent, along the last axis."""
        sums = values.new_zeros(*values.shape[:-1], self.parents).index_add_(-1, self.blocks, values)
        return sums / torch.bincount(self.blocks, minlength=self.parents)


def layers(graph: Graph, weights: Weights, tensors: Iterable[str], *, fixed: Container[str] = ()) -> tuple[Layer, ...]:
    """The layers of these weight tensors, in running order; those that no two axes of the graph describe are left out.

    Args:
        graph: the model's graph.
        weights: its tensors by name.
        tensors: the names of the weights.
        fixed: those of them that must not change.

    Raises:
        ScoreError: a weight is NaN or infinite.
    """
    products = {product.tensor: product for product in graph.products}
    order = {work.layer: number for number, work in reversed(list(enumerate(graph.work)))}
    ranks = {name: number for number, name in enumerate(products)} if products else {}
    running = sorted(
        tensors, key=lambda name: (ranks.get(name, len(ranks)), order.get(name.rpartition(".")[0], len(order)))
    )
    found = (
        _layer(graph, products.get(name), name, weights[name], name in fixed)
        for name in running
        if name in graph.tensors
    )
    return tuple(layer for layer in found if layer is not None)


def _layer(graph: Graph, product: Product | None, name: str, weight: Tensor, fixed: bool) -> Layer | None:
    require_finite(weight, f"tensor {name!r}")
    if product is None or product.reason:
        product = Product(name, tuple(weight.shape), (0,), (1,))
    rows, columns = (axis_along(graph, product, axes) for axes in (product.rows, product.columns))
    if rows is None or columns is None:
        return None
    wide = without_history(weight).to("cpu", torch.float32)
    is_plain = (product.rows, product.columns) == ((0,), (1,))
    blocks, firsts = _blocks(columns)
    return Layer(
        tensor=name,
        weight=wide if is_plain else product.to_matrix(wide),
        blocks=torch.from_numpy(blocks),
        parents=len(firsts),
        rows=rows.parts,
        columns=tuple((group, Units(units.array[firsts])) for group, units in columns.parts),
        is_first=not any(graph[group].writers for group, _ in columns.parts),
        is_fixed=fixed,
        product=None if is_plain else product,
    )


def axis_along(graph: Graph, product: Product, axes: Sequence[int]) -> Axis | None:
    """The units along axes of a product, taken together in this order; None where one of the tensor's is divided."""
    sizes = [product.shape[a] for a in axes]
    parts: list[Part] = []
    for number, mine in zip(graph.tensors[product.tensor], _divided_axes(graph, product), strict=True):
        wide = [a for a in mine if product.shape[a] > 1]
        if not graph.axes[number].parts or not any(a in axes for a in wide):
            continue
        if not all(a in axes for a in wide):
            return None
        for group, units in graph.axes[number].parts:
            apart = units.array.reshape([product.shape[a] for a in wide])
            apart = apart.transpose(sorted(range(len(wide)), key=lambda place: axes.index(wide[place])))
            apart = apart.reshape([product.shape[a] if a in wide else 1 for a in axes])
            parts.append((group, Units(np.broadcast_to(apart, sizes).reshape(-1))))
    return Axis(math.prod(sizes), tuple(parts))


def _divided_axes(graph: Graph, product: Product) -> list[list[int]]:
    """For each axis of the tensor the axes of the product that it is divided into."""
    found: list[list[int]] = []
    rest = list(range(len(product.shape)))
    for number in graph.tensors[product.tensor]:
        mine = [rest.pop(0)]
        while math.prod(product.shape[a] for a in mine) < graph.axes[number].size:
            mine.append(rest.pop(0))
        found.append(mine)
    return found


def _blocks(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The parent of each input, numbered by first appearance, and the first input of each parent."""
    if not axis.parts:
        return np.arange(axis.size), np.arange(axis.size)
    labels = np.stack([units.array for _, units in axis.parts])
    alone = (labels < 0).all(0)
    # An input that belongs to no unit is a parent of its own.
    labels = np.concatenate([labels, np.where(alone, np.arange(axis.size), -1)[None]])
    _, first, inverse = np.unique(labels, axis=1, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))
    return place[inverse.reshape(-1)], np.sort(first)
