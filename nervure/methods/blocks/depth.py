"""Depth: yardsticks for removing layers. A method that does not beat them has learnt nothing about layers.

Influence: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024), 1 minus
the cosine between what enters and what leaves a block. CKA: after Pons et al., "Effective Layer Pruning Through
Similarity Metric Perspective" (2024), how far the model's answers are from those without the block.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.dependence import cka
from nervure.errors import DataError
from nervure.graph.types import Block
from nervure.methods.base import View, stats_of
from nervure.methods.blocks.dropping import BlockScore, Dropping, Policy

Yardstick: TypeAlias = Literal["influence", "branch", "cka", "random"]
FARTHEST = 2.0
"""1 minus a cosine is never above this; blocks that change the shape have no cosine, and leave last."""


@final
@dataclass(frozen=True, slots=True)
class Depth(Dropping):
    """Drop blocks by a simple measure of how little they do.

    The other hyper-parameters are those of every method that drops blocks; ``policy`` is ``"rank"`` here.

    Attributes:
        score: ``"influence"`` (1 - mean cosine of what enters and what leaves), ``"branch"`` (size of what it adds
            relative to what enters), ``"cka"`` (1 - CKA of the outputs with and without the block) or ``"random"``.
    """

    policy: Policy = "rank"
    score: Yardstick = "influence"

    @property
    def wants(self) -> frozenset[str]:
        """Blocks, or the outputs, or nothing."""
        outputs = f"outputs:{self.output}" if self.output else "outputs"
        return {"random": frozenset(), "cka": frozenset({outputs})}.get(self.score, frozenset({"blocks"}))

    def block_scores(self, view: View, blocks: Sequence[Block], gone: tuple[str, ...] = ()) -> dict[str, BlockScore]:
        """One number per block."""
        values = SCORES[self.score](self, view, blocks, gone)
        return {b.name: BlockScore.of(b.name, [value]) for b, value in zip(blocks, values, strict=True)}


def _random(method: Depth, view: View, blocks: Sequence[Block], gone: tuple[str, ...]) -> list[float]:
    generator = torch.Generator().manual_seed(method.seed + view.seed)
    drawn: list[float] = torch.rand(len(blocks), dtype=torch.float32, generator=generator).tolist()
    return drawn


def _influence(method: Depth, view: View, blocks: Sequence[Block], gone: tuple[str, ...]) -> list[float]:
    cosines = [float(shift[:, 0].double().mean()) for shift in _shifts(method, view, blocks)]
    return [FARTHEST if math.isnan(cosine) else 1 - cosine for cosine in cosines]


def _branch(method: Depth, view: View, blocks: Sequence[Block], gone: tuple[str, ...]) -> list[float]:
    return [float(shift[:, 1].double().mean()) for shift in _shifts(method, view, blocks)]


def _cka(method: Depth, view: View, blocks: Sequence[Block], gone: tuple[str, ...]) -> list[float]:
    judge = method.judge(view)
    # The whole model is recalibrated like the others: what differs is the block alone.
    whole, *others = (judge.answers_without(names) for names in ((), *((*gone, b.name) for b in blocks)))
    return [1 - float(cka(whole.double(), other.double(), debiased=False)) for other in others]


SCORES: Mapping[str, Callable[[Depth, View, Sequence[Block], tuple[str, ...]], list[float]]] = {
    "random": _random,
    "influence": _influence,
    "branch": _branch,
    "cka": _cka,
}


def _shifts(method: Depth, view: View, blocks: Sequence[Block]) -> list[Tensor]:
    stats = stats_of(method, view)
    missing = [b.name for b in blocks if b.name not in stats.shifts]
    if missing:
        reason = stats.skipped.get(f"block {missing[0]}", "it was not measured")
        raise DataError(f"block {missing[0]!r} has no evidence: {reason}. Pin it with ignore=.")
    return [stats.shifts[b.name] for b in blocks]
