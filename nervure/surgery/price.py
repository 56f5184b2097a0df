"""What a plan leaves of the costs, told from the graph alone: cut units and dropped blocks."""

from typing import NamedTuple

import numpy as np

from nervure.budget.cost_model import CostModel
from nervure.budget.memory_budget import PeakMemory
from nervure.graph.types import Graph, count_products
from nervure.plan import Plan
from nervure.surgery.apply import dropped_prefixes, keeps_of


class Price(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass on the traced example."""

    params: int
    macs: int


def price(graph: Graph, plan: Plan) -> Price:
    """What the model costs once ``plan`` is carried out; masks change nothing, links are not counted.

    Raises:
        PlanError: the plan names groups or blocks that ``graph`` does not have or that cannot be changed.
    """
    gone = dropped_prefixes(graph, plan)
    alive = graph.survivors(keeps_of(graph, plan))
    tensors = [graph.tensors[name] for name in graph.parameters if not f"{name}.".startswith(gone)]
    works = [work for work in graph.work if not f"{work.layer}.".startswith(gone)]
    params = sum(count_products(alive, axes) for axes in tensors)
    macs = sum(work.fixed * count_products(alive, work.axes) for work in works)
    return Price(params, macs)


def memory_left(graph: Graph, plan: Plan) -> int:
    """Bytes that the model takes at most once ``plan`` is carried out: activations count as if no block was dropped.

    Raises:
        PlanError: as :func:`price`.
        ArgumentError: the graph says nothing of memory.
    """
    gone = dropped_prefixes(graph, plan)
    alive = np.append(graph.survivors(keeps_of(graph, plan)), 1)
    return PeakMemory(CostModel.of(graph), gone)(alive)
