"""What is coupled to what in a model: tracing by labels that flow, groups, blocks, costs."""

from nervure.graph.cost import Cost, LayerCost, count
from nervure.graph.types import Axis, Block, Edge, Graph, Group, Resize, Silence, Slot, Units, Work

__all__ = [
    "Axis",
    "Block",
    "Cost",
    "Edge",
    "Graph",
    "Group",
    "LayerCost",
    "Resize",
    "Silence",
    "Slot",
    "Units",
    "Work",
    "count",
]
