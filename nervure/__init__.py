"""Nervure: PyTorch networks made smaller and faster by their connectivity."""

from nervure.budget.latency_table import LatencyTable
from nervure.core.inputs import Inputs
from nervure.core.renamed import find_old_modules as _find_old_modules
from nervure.core.version import __version__ as __version__
from nervure.evaluation import Connectivity, Similarity, connectivity, evaluate, latency, latency_table, similarity
from nervure.export import export, load, save
from nervure.graph import Block, Cost, Graph, Group, count
from nervure.methods import (
    ERK,
    FPGM,
    GMP,
    MINT,
    OBS,
    SET,
    SNACS,
    SNIP,
    Activation,
    Compensated,
    Depth,
    Energy,
    Fisher,
    GCNet,
    GraSP,
    Magnitude,
    MagnitudeMasks,
    N2NSkip,
    Random,
    Ranking,
    RigL,
    Slimming,
    SparseGPT,
    SynFlow,
    Synthesis,
    Taylor,
    Wanda,
)
from nervure.plan import Cut, Drop, Keep, Link, Mask, Plan
from nervure.prune import Pruned, prune
from nervure.recipe import Recipe, Study, compare, run, sweep
from nervure.refit import Refit, Refitted, refit
from nervure.report import Report, Sweep
from nervure.rules import rule
from nervure.sparse import compile_sparse
from nervure.stats import Stats, measure
from nervure.surgery import apply, compact, verify
from nervure.tracing import trace
from nervure.training import hold, train

# Sorted as the alphabet has it, capitals first, which tests and readers can check.
__all__ = [  # noqa: RUF022
    "Activation",
    "Block",
    "Compensated",
    "Connectivity",
    "Cost",
    "Cut",
    "Depth",
    "Drop",
    "ERK",
    "Energy",
    "FPGM",
    "Fisher",
    "GCNet",
    "GMP",
    "GraSP",
    "Graph",
    "Group",
    "Inputs",
    "Keep",
    "LatencyTable",
    "Link",
    "MINT",
    "Magnitude",
    "MagnitudeMasks",
    "Mask",
    "N2NSkip",
    "OBS",
    "Plan",
    "Pruned",
    "Random",
    "Ranking",
    "Recipe",
    "Refit",
    "Refitted",
    "Report",
    "RigL",
    "SET",
    "SNACS",
    "SNIP",
    "Similarity",
    "Slimming",
    "SparseGPT",
    "Stats",
    "Study",
    "Sweep",
    "SynFlow",
    "Synthesis",
    "Taylor",
    "Wanda",
    "apply",
    "compact",
    "compare",
    "compile_sparse",
    "connectivity",
    "count",
    "evaluate",
    "export",
    "hold",
    "latency",
    "latency_table",
    "load",
    "measure",
    "prune",
    "refit",
    "rule",
    "run",
    "save",
    "similarity",
    "sweep",
    "trace",
    "train",
    "verify",
]

_find_old_modules()
