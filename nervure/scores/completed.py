"""Scores for groups that a criterion could not measure."""

from collections.abc import Mapping

import torch

from nervure.errors import ScoreError
from nervure.graph.types import Graph
from nervure.scores.common import Scores, Weights
from nervure.scores.magnitude import magnitude


def completed(graph: Graph, measured: Scores, weights: Weights, skipped: Mapping[str, str]) -> Scores:
    """Scores for every prunable group: groups that were not measured get their magnitude, on the scale of the others.

    Their weights' norms, relative to the mean of the group, are multiplied by the mean score of all measured units, so
    such a group competes as an average one.

    Args:
        graph: the model's graph.
        measured: scores of the groups that were measured; others than prunable ones are left out.
        weights: the model's tensors by name.
        skipped: why groups were not measured, for the message.

    Raises:
        ScoreError: no prunable group was measured, or the weights do not fit.
    """
    known = {group.name: measured[group.name] for group in graph.prunable if group.name in measured}
    missing = [group.name for group in graph.prunable if group.name not in known]
    if not missing:
        return known
    if not known:
        reason = skipped.get(missing[0], "it is not in the evidence")
        raise ScoreError(f"no group that can be cut was measured; {missing[0]!r}: {reason}. Use another method.")
    level = torch.cat([value.double() for value in known.values()]).mean()
    sizes = magnitude(graph, weights)
    return known | {name: (sizes[name].double() * level.to(sizes[name].device)).float() for name in missing}
