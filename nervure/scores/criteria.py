"""Criteria by name: what the command line says, made into scores. A new criterion is one line in ``CRITERIA``."""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from nervure.core.check import nearest
from nervure.errors import ArgumentError
from nervure.graph.types import Graph
from nervure.scores.common import Scores, Weights
from nervure.scores.effects import activation, fisher, taylor
from nervure.scores.fpgm import fpgm
from nervure.scores.magnitude import magnitude
from nervure.scores.random import random_scores
from nervure.scores.slimming import slimming
from nervure.stats import Stats

CRITERIA: Mapping[str, Callable[..., Scores]] = {
    "activation": activation,
    "fisher": fisher,
    "fpgm": fpgm,
    "magnitude": magnitude,
    "random": random_scores,
    "slimming": slimming,
    "taylor": taylor,
}


def score(
    criterion: str, graph: Graph, weights: Weights, stats: Stats | None = None, *, seed: int = 0, **options: Any
) -> Scores:
    """The scores that the criterion of that name gives, from as much of the evidence as it takes.

    A criterion says by the names of its parameters what it needs: ``graph``, ``weights``, ``stats``, ``seed``.

    Args:
        criterion: a name in ``CRITERIA``.
        graph: the model's graph.
        weights: the model's tensors by name, as in ``state_dict``.
        stats: evidence gathered on data, for criteria that need it.
        seed: where randomness starts, for criteria that draw lots.
        options: further arguments of the criterion, e.g. ``norm=2``.

    Raises:
        ArgumentError: the criterion or an option is unknown, or it needs evidence that was not given.
        ScoreError: the evidence does not fit the graph.
    """
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion {criterion!r} is unknown.{nearest(criterion, CRITERIA, listed=True)}")
    takes = signature(CRITERIA[criterion]).parameters
    evidence = {"graph": graph, "weights": weights, "stats": stats, "seed": seed}
    own = [name for name in takes if name not in evidence]
    for option in options:
        if option not in own:
            raise ArgumentError(f"{criterion} has no option {option!r}.{nearest(option, own, listed=True)}")
    if stats is None and "stats" in takes and takes["stats"].default is Parameter.empty:
        raise ArgumentError(f"{criterion} needs evidence gathered on data: run measure first and give its stats.")
    return CRITERIA[criterion](**{k: v for k, v in evidence.items() if k in takes}, **options)
