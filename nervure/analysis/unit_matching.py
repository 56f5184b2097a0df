"""Hidden units of two networks brought in the same order, so that what they have in common can be seen.

Weight matching: for one group of units after another, the permutation under which the weights of the two networks agree
best, until nothing changes (Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2023).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.errors import ArgumentError
from nervure.graph.types import Graph, Group

Orders = Mapping[str, Tensor]
SWEEPS = 50


@checked
def align(graph: Graph, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each group of hidden units the order in which the units of ``other`` resemble those of ``reference``.

    Args:
        graph: of the network; its pinned groups (the outputs, say) stay in order.
        reference: weights by name, as in ``state_dict``; zeros where connections are masked.
        other: weights of the same names and shapes.

    Returns:
        Group name -> int64 [units]: at ``u`` the unit of ``other`` that plays the part of unit ``u``. Give it to
        :func:`reorder_units`.

    Raises:
        ArgumentError: a tensor is missing or of another shape.
    """
    _require_fitting(graph, reference, other)
    groups = [group for group in graph.prunable if _is_regular(group)]
    orders = {group.name: torch.arange(group.size) for group in groups}
    for _ in range(SWEEPS):
        changed = False
        for group in groups:
            others = {name: order for name, order in orders.items() if name != group.name}
            moved = reorder_units(graph, other, others)
            order = torch.from_numpy(best_assignment(_agreement(group, reference, moved)))
            changed |= not torch.equal(order, orders[group.name])
            orders[group.name] = order
        if not changed:
            break
    return orders


@checked
def reorder_units(graph: Graph, tensors: Mapping[str, Tensor], orders: Orders) -> dict[str, Tensor]:
    """Weights, or masks, with the units of each group in the given order; tensors without such units as they are."""
    found = dict(tensors)
    for name, order in orders.items():
        for slot in graph[name].slots:
            if slot.tensor in found:
                index = _reorder_positions(slot.units.array, order.numpy())
                found[slot.tensor] = found[slot.tensor].index_select(slot.axis, torch.from_numpy(index))
    return found


def best_assignment(gain: np.ndarray) -> np.ndarray:
    """For each row its column so that the gains add up to the most. Square in, int64 [rows] out.

    The Hungarian method by shortest augmenting paths (Kuhn, 1955; Jonker and Volgenant, 1987).

    >>> best_assignment(np.array([[1.0, 5.0], [4.0, 6.0]])).tolist()
    [1, 0]
    """
    cost = -np.asarray(gain, dtype=np.float64)
    size = len(cost)
    # Row and column 0 stand for "not assigned yet".
    rows, columns = np.zeros(size + 1), np.zeros(size + 1)
    owner, before = np.zeros(size + 1, dtype=np.int64), np.zeros(size + 1, dtype=np.int64)
    for row in range(1, size + 1):
        owner[0], column = row, 0
        least, visited = np.full(size + 1, np.inf), np.zeros(size + 1, dtype=bool)
        while owner[column]:
            visited[column] = True
            slack = np.concatenate([[np.inf], cost[owner[column] - 1] - rows[owner[column]] - columns[1:]])
            better = (slack < least) & ~visited
            least[better], before[better] = slack[better], column
            column = int(np.argmin(np.where(visited, np.inf, least)))
            step = least[column]
            rows[owner[visited]] += step
            columns[visited] -= step
            least[~visited] -= step
        while column:
            owner[column] = owner[before[column]]
            column = int(before[column])
    found = np.zeros(size, dtype=np.int64)
    found[owner[1:] - 1] = np.arange(size)
    return found


def _agreement(group: Group, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> np.ndarray:
    """Inner products of everything that belongs to a unit of one with the same of a unit of the other."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for slot in group.slots:
        if slot.tensor in one and one[slot.tensor].is_floating_point():
            a, b = (_by_unit(of[slot.tensor], slot.axis, slot.units.array, group.size) for of in (one, other))
            total += a @ b.T
    return total.numpy()


def _by_unit(tensor: Tensor, axis: int, units: np.ndarray, size: int) -> Tensor:
    """Shape [units, everything of a unit]."""
    order = torch.from_numpy(_places(units))
    return tensor.detach().cpu().double().movedim(axis, 0).index_select(0, order).reshape(size, -1)


def _places(units: np.ndarray) -> np.ndarray:
    """The positions that have a unit, those of the first unit first."""
    order = np.argsort(np.where(units < 0, len(units), units), kind="stable")
    return order[: int((units >= 0).sum())]


def _reorder_positions(units: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Positions with the n-th place of unit order[u] where the n-th place of u was."""
    places = _places(units)
    index = np.arange(len(units))
    index[places] = places.reshape(len(order), -1)[order].reshape(-1)
    return index


def _is_regular(group: Group) -> bool:
    """Whether every unit has as many places as the next, everywhere, and units are single channels."""
    counts: Iterable[np.ndarray] = (
        np.bincount(slot.units.array[slot.units.array >= 0], minlength=group.size) for slot in group.slots
    )
    return group.kind == "channels" and all(len(np.unique(count)) == 1 for count in counts)


def _require_fitting(graph: Graph, reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for name in graph.parameters:
        shapes = [tuple(of[name].shape) if name in of else "missing" for of in (reference, other)]
        wanted = tuple(graph.axes[axis].size for axis in graph.tensors[name])
        if shapes != [wanted, wanted]:
            raise ArgumentError(
                f"tensor {name!r} is {shapes[0]} in one network and {shapes[1]} in the other; the graph says {wanted}. "
                "Give the weights of two networks of this graph, e.g. model.state_dict()."
            )
