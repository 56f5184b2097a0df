"""Random scores: the yardstick that every criterion must beat."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from nervure.graph.types import Graph


def random_scores(graph: Graph, *, seed: int) -> Mapping[str, Tensor]:
    """Uniform scores in [0, 1) for each prunable group: float32 [units].

    Each group has a stream of its own, from ``seed`` and its name: other groups may come, go or change places.
    """
    return {g.name: torch.rand(g.size, dtype=torch.float32, generator=_stream(seed, g.name)) for g in graph.prunable}


def _stream(seed: int, name: str) -> torch.Generator:
    # Python's own hash of a string differs from process to process.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
