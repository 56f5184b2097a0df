"""Connectivity and magnitude of the same connections, put together into one score."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from nervure.scores.common import match_ranks as match_ranks  # noqa: PLC0414 - it was here

Mode: TypeAlias = Literal["pure", "split", "product", "mix", "union", "intersection"]
Criterion: TypeAlias = Literal["magnitude", "rows", "columns", "random"]
TIE = 1e-6
"""In structured scores a connection's own connectivity counts this much, to decide between equals."""


def score_companion(connectivity: Tensor, criterion: Criterion, generator: torch.Generator) -> Tensor:
    """What a criterion says of the weights of one layer of a companion network.

    Args:
        connectivity: [children, parents], 0 or more.
        criterion: ``"magnitude"``: the weights themselves; ``"rows"`` and ``"columns"``: the mean of all that one child
            hears or one parent says, so that they go as a whole; ``"random"``: a lot, as a control.
        generator: for the lot.

    Returns:
        [children, parents], 0 or more.
    """
    match criterion:
        case "magnitude":
            return connectivity
        case "random":
            return torch.rand(connectivity.shape, dtype=torch.float32, generator=generator)
    whole = connectivity.mean(1 if criterion == "rows" else 0, keepdim=True)
    return whole + TIE * connectivity


def combine_scores(direct: Tensor, guide: Tensor, mode: Mode, alpha: float = 0.5) -> Tensor:
    """One score of magnitude and connectivity.

    The union of the best by either is what is best by the larger of the two ranks, the intersection by the smaller:
    ranked so, any number can be kept.

    Args:
        direct: magnitudes, 0 or more.
        guide: connectivity of the same connections, 0 or more, of the same shape.
        mode: ``"pure"`` and ``"split"``: connectivity; ``"product"``: magnitude times connectivity relative to its
            mean; ``"mix"``: rank ** alpha of magnitude times rank ** (1 - alpha) of connectivity; ``"union"`` and
            ``"intersection"``: the larger and the smaller rank.
        alpha: the part of magnitude in a mix.

    Returns:
        Scores of the same shape, above 0; what has no weight left scores 0.
    """
    match mode:
        case "pure" | "split":
            scores = guide
        case "product":
            scores = direct * guide / guide.mean().clamp(min=1e-30)
        case "mix":
            scores = ranks(direct) ** alpha * ranks(guide) ** (1 - alpha)
        case "union":
            scores = torch.maximum(ranks(direct), ranks(guide))
        case "intersection":
            scores = torch.minimum(ranks(direct), ranks(guide))
    # What no parent is heard through has connectivity 0 too, and yet goes after what is gone already.
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).masked_fill(direct == 0, 0.0)


def ranks(values: Tensor) -> Tensor:
    """For each value the share of values that are not above it, in (0, 1]; equal values have equal ranks.

    >>> ranks(torch.tensor([0.3, 0.1, 0.3, 7.0]))
    tensor([0.7500, 0.2500, 0.7500, 1.0000])
    """
    flat = values.reshape(-1).contiguous()
    places = torch.searchsorted(flat.sort().values, flat, right=True)
    return (places / max(len(flat), 1)).reshape(values.shape)
