"""What a plan leaves of the costs, told from the graph alone: cut units and dropped blocks."""

from typing import NamedTuple

import numpy as np

from nervure.budget.cost_model import CostModel
from nervure.budget.memory_budget import PeakMemory
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import keeps_of


class Price(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass on the traced example."""

    params: int
    macs: int


def price(graph: Graph, plan: Plan) -> Price:
    """What the model costs once ``plan`` is carried out; masks change nothing, links are not counted.

    Raises:
        PlanError: the plan names groups or blocks that ``graph`` does not have or that cannot be changed.
    """
    gone = tuple(f"{module}." for drop in plan.drops for module in graph.block(drop.block).modules)
    alive = graph.survivors(keeps_of(graph, plan))
    tensors = [graph.tensors[name] for name in graph.parameters if not f"{name}.".startswith(gone)]
    works = [work for work in graph.work if not f"{work.layer}.".startswith(gone)]
    return Price(sum(_product(alive, axes) for axes in tensors), sum(w.fixed * _product(alive, w.axes) for w in works))


def memory_left(graph: Graph, plan: Plan) -> int:
    """Bytes that the model takes at most once ``plan`` is carried out: activations count as if no block was dropped.

    Raises:
        PlanError: as :func:`price`.
        ArgumentError: the graph says nothing of memory.
    """
    gone = tuple(f"{module}." for drop in plan.drops for module in graph.block(drop.block).modules)
    alive = np.append(graph.survivors(keeps_of(graph, plan)), 1)
    return PeakMemory(CostModel.of(graph), gone)(alive)


def _product(alive: np.ndarray, axes: tuple[int, ...]) -> int:
    return int(np.prod(alive[list(axes)], dtype=np.int64))
