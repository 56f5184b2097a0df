"""Criteria by name: what a method or the command line says, made into scores.

A new criterion of the library is one line in ``CRITERIA``; one of your own is named ``"package.module:function"``.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeAlias

from torch import Tensor

from nervure.core.check import nearest, show_value
from nervure.core.importing import import_named, import_path_of, is_import_path
from nervure.errors import ArgumentError, ScoreError
from nervure.graph.types import Graph
from nervure.scores.common import Scores, Weights
from nervure.scores.effects import activation, fisher, taylor
from nervure.scores.fpgm import fpgm
from nervure.scores.magnitude import magnitude
from nervure.scores.random import random_scores
from nervure.scores.slimming import slimming
from nervure.stats import Stats

Criterion: TypeAlias = Callable[..., Scores]
CRITERIA: Mapping[str, Criterion] = {
    "activation": activation,
    "fisher": fisher,
    "fpgm": fpgm,
    "magnitude": magnitude,
    "random": random_scores,
    "slimming": slimming,
    "taylor": taylor,
}
GIVEN = ("graph", "weights", "stats", "seed")
"""Parameters of a criterion that are filled in; all others are its options."""


def score(
    criterion: str | Criterion,
    graph: Graph,
    weights: Weights,
    stats: Stats | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> Scores:
    """The scores that a criterion gives, from as much of the evidence as it takes.

    A criterion says by the names of its parameters what it needs: ``graph``, ``weights``, ``stats``, ``seed``.

    Args:
        criterion: a name in ``CRITERIA``, a function of your own or its ``"package.module:name"``.
        graph: the model's graph.
        weights: the model's tensors by name, as in ``state_dict``.
        stats: evidence gathered on data, for criteria that need it.
        seed: where randomness starts, for criteria that draw lots.
        options: further arguments of the criterion, e.g. ``norm=2``.

    Raises:
        ArgumentError: the criterion or an option is unknown, or it needs evidence that was not given.
        ScoreError: the evidence does not fit the graph, or what comes back are no scores.
    """
    function = criterion if callable(criterion) else find_criterion(criterion)
    require_criterion_options(function, options)
    takes = signature(function).parameters
    evidence = {"graph": graph, "weights": weights, "stats": stats, "seed": seed}
    name = _called(function)
    if stats is None and "stats" in takes and takes["stats"].default is Parameter.empty:
        raise ArgumentError(f"{name} needs evidence gathered on data: run measure first and give its stats.")
    scores = function(**{k: v for k, v in evidence.items() if k in takes}, **options)
    if not isinstance(scores, Mapping) or not all(isinstance(value, Tensor) for value in scores.values()):
        raise ScoreError(f"{name} returned {show_value(scores)}, not a tensor [units] for the name of each group.")
    return scores


def find_criterion(name: str) -> Criterion:
    """The function of that name in ``CRITERIA``, or at ``"package.module:name"``.

    Raises:
        ArgumentError: there is none, or what is there takes no graph.
    """
    if not is_import_path(name):
        if name not in CRITERIA:
            raise ArgumentError(
                f"criterion {show_value(name)} is unknown.{nearest(name, CRITERIA, listed=True)} "
                'One of your own is named "package.module:function".'
            )
        return CRITERIA[name]
    found: Criterion = import_named(name, "criterion")
    if "graph" not in _parameters(found, name):
        raise ArgumentError(
            f"criterion {show_value(name)} takes no argument named graph. A criterion is a function of graph and, as "
            "it needs them, weights, stats and seed."
        )
    return found


def name_of_criterion(criterion: str | Criterion) -> str:
    """What :func:`find_criterion` finds a criterion by; raises ArgumentError for a function that cannot be found."""
    if isinstance(criterion, str):
        return criterion
    names = [name for name, function in CRITERIA.items() if function is criterion]
    return names[0] if names else import_path_of(criterion, "criterion")


def require_criterion_options(criterion: Criterion, options: Mapping[str, Any]) -> None:
    """Raise ArgumentError for an option that ``criterion`` does not take."""
    known = [option for option in signature(criterion).parameters if option not in GIVEN]
    for option in options:
        if option not in known:
            raise ArgumentError(f"{_called(criterion)} has no option {option!r}.{nearest(option, known, listed=True)}")


def signals_of(criterion: Criterion) -> frozenset[str]:
    """The evidence that a criterion needs, as in ``measure(want=...)``; see :func:`nervure.scores.wants`.

    Raises:
        ArgumentError: it takes ``stats`` and does not say which.
    """
    takes = signature(criterion).parameters
    if "stats" not in takes:
        return frozenset()
    signals = getattr(criterion, "wants", None)
    if signals is None:
        raise ArgumentError(
            f"criterion {_called(criterion)} takes stats and does not say which. Write above it, for example, "
            '@nervure.scores.wants("readings").'
        )
    return frozenset(signals)


def _called(criterion: Criterion) -> str:
    names = [name for name, function in CRITERIA.items() if function is criterion]
    return names[0] if names else str(getattr(criterion, "__name__", criterion))


def _parameters(function: Criterion, name: str) -> Mapping[str, Parameter]:
    try:
        return signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"criterion {show_value(name)} does not say what it takes: {error}.") from error
