"""What is coupled to what in a model: tracing by labels that flow, groups, blocks, costs."""

from nervure.core.renamed import old_names
from nervure.graph.cost import Cost, LayerCost, count
from nervure.graph.types import Axis, Block, Edge, Graph, Group, OpCost, SizeAttribute, TensorAxis, Units, ZeroStub

__all__ = [
    "Axis",
    "Block",
    "Cost",
    "Edge",
    "Graph",
    "Group",
    "LayerCost",
    "OpCost",
    "SizeAttribute",
    "TensorAxis",
    "Units",
    "ZeroStub",
    "count",
]

__getattr__ = old_names(__name__)
