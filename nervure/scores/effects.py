"""How much the loss listens to a unit, and how loud the unit is: criteria from evidence gathered at its readers.

Groups that could not be heard get their magnitude, on the scale of the others (see :func:`completed`).
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from torch import Tensor

from nervure.core.check import require_choice, require_finite
from nervure.errors import ScoreError
from nervure.graph.types import Graph
from nervure.scores.common import NORMALISE, Normalise, Scores, Weights, normalise_groups, wants
from nervure.scores.completed import completed
from nervure.stats import Stats

Loudness: TypeAlias = Literal["absolute", "square", "alive"]
HEARD: Mapping[Loudness, Callable[[Tensor], Tensor]] = {
    "absolute": lambda readings: readings[:, 0],
    "square": lambda readings: readings[:, 1],
    "alive": lambda readings: 1 - readings[:, 2],
}


@wants("effects")
def taylor(graph: Graph, weights: Weights, stats: Stats, *, normalise: Normalise = "mean") -> Scores:
    """Mean absolute effect of a unit on the loss of a sample: the sum of activation times gradient over its readers.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017 (equation 8), and
    "Importance Estimation for Neural Network Pruning", 2019. Differs from the papers: heard at what reads a unit, so
    that units of a shortcut have the effect of their cut, not of one of the layers that write them.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, for groups that could not be heard.
        stats: evidence with ``effects``.
        normalise: ``"mean"`` divides by the mean of the group, in the spirit of the layer-wise normalisation of 2017;
            ``"none"`` compares losses over the whole network, as in 2019: cut at once rather than a few at a time, deep
            layers, whose units share the loss among many, can then nearly vanish.

    Returns:
        For each prunable group [units], 0 or more, in nats where not normalised.

    Raises:
        ArgumentError: ``normalise`` is not one of the choices.
        ScoreError: the evidence is missing, of another model, or not finite.
    """
    return score_from_evidence(graph, weights, stats, "effects", lambda value: value.abs().mean(0), normalise)


@wants("effects")
def fisher(graph: Graph, weights: Weights, stats: Stats, *, normalise: Normalise = "mean") -> Scores:
    """Half the mean squared effect of a unit: the second-order loss where the Hessian is the Fisher information.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018; Liu et al., "Group Fisher
    pruning", 2021. Arguments, results and errors are those of :func:`taylor`.
    """
    return score_from_evidence(graph, weights, stats, "effects", lambda value: value.square().mean(0) / 2, normalise)


@wants("readings")
def activation(
    graph: Graph, weights: Weights, stats: Stats, *, of: Loudness = "absolute", normalise: Normalise = "mean"
) -> Scores:
    """How much of a unit arrives at its readers.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, for groups that could not be heard.
        stats: evidence with ``readings``.
        of: ``"absolute"`` (mean absolute value), ``"square"`` (mean square) or ``"alive"`` (share of values that are
            not zero: one minus the average percentage of zeros of Hu et al., "Network Trimming", 2016).
        normalise: ``"mean"`` divides by the mean of the group; ``"none"`` does not.

    Returns:
        For each prunable group [units], 0 or more.

    Raises:
        ArgumentError: ``of`` or ``normalise`` is not one of the choices.
        ScoreError: the evidence is missing, of another model, or not finite.
    """
    require_choice(of, HEARD, "of")
    return score_from_evidence(graph, weights, stats, "readings", HEARD[of], normalise)


def score_from_evidence(
    graph: Graph, weights: Weights, stats: Stats, signal: str, score: Callable[[Tensor], Tensor], normalise: Normalise
) -> Scores:
    """Scores that a function makes of the evidence of each group under the name of ``signal``; see :func:`taylor`."""
    require_choice(normalise, NORMALISE, "normalise")
    if signal not in stats.want:
        raise ScoreError(
            f"the evidence has no {signal} (only {', '.join(sorted(stats.want))}). Measure want={{{signal!r}}}."
        )
    if stats.fingerprint != graph.fingerprint:
        raise ScoreError("the evidence was measured on another model. Measure this one.")
    found = {
        name: score(require_finite(value, f"{signal} of group {name!r}"))
        for name, value in getattr(stats, signal).items()
    }
    return completed(graph, normalise_groups(found, normalise), weights, stats.skipped)
