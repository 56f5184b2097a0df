"""How much experts are used: criteria for mixtures, from evidence of where a gate sends tokens.

Groups of other units, and mixtures that could not be heard, get their magnitude
(see :func:`nervure.scores.completed.completed`).
"""

from nervure.graph.types import Graph
from nervure.scores.common import Normalise, Scores, Weights, wants
from nervure.scores.effects import score_from_evidence
from nervure.stats import Stats


@wants("routing")
def frequency(graph: Graph, weights: Weights, stats: Stats, *, normalise: Normalise = "mean") -> Scores:
    """The share of tokens that came to an expert.

    Args:
        graph: the model's graph.
        weights: the model's tensors by name, for groups that are no experts.
        stats: evidence with ``routing``.
        normalise: ``"mean"`` divides by the mean of the group; ``"none"`` leaves shares.

    Returns:
        For each prunable group [units], 0 or more.

    Raises:
        ArgumentError: ``normalise`` is not one of the choices.
        ScoreError: the evidence is missing, of another model, or not finite.
    """
    return score_from_evidence(graph, weights, stats, "routing", lambda value: value[:, 0], normalise)


@wants("routing")
def reap(graph: Graph, weights: Weights, stats: Stats, *, normalise: Normalise = "mean") -> Scores:
    """The mean norm of an expert's output times its gate's weight, over the tokens that came to it.

    Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", 2025. Differs from the paper:
    the norm is that of the product as it enters the sum of experts, so that a weight which the model scales counts as
    scaled. An expert that no token came to has 0. Arguments, results and errors are those of :func:`frequency`.
    """
    return score_from_evidence(graph, weights, stats, "routing", lambda value: value[:, 1], normalise)
