"""Nervure: PyTorch networks made smaller and faster by their connectivity."""

from nervure.evaluation import evaluate, latency
from nervure.export import load, save
from nervure.graph import Block, Cost, Graph, Group, count
from nervure.methods import Magnitude, Random
from nervure.plan import Cut, Drop, Keep, Link, Mask, Plan
from nervure.prune import Pruned, prune
from nervure.recipe import Recipe, run
from nervure.report import Report
from nervure.stats import Stats, measure
from nervure.surgery import apply, verify
from nervure.tracing import trace
from nervure.training import hold, train

__all__ = [
    "Block",
    "Cost",
    "Cut",
    "Drop",
    "Graph",
    "Group",
    "Keep",
    "Link",
    "Magnitude",
    "Mask",
    "Plan",
    "Pruned",
    "Random",
    "Recipe",
    "Report",
    "Stats",
    "apply",
    "count",
    "evaluate",
    "hold",
    "latency",
    "load",
    "measure",
    "prune",
    "run",
    "save",
    "trace",
    "train",
    "verify",
]

__version__ = "0.1.0"
