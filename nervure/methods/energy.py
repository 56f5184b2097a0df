"""Energy: layers whose feature maps tell little of the answer leave.

Soltani, Wu, Li, Ding, Tarokh, "On The Energy Statistics of Feature Maps in Pruning of Neural Networks with
Skip-Connections", ICASSP 2022.

A unit is what lies beside a shortcut: a residual branch, a dense layer, attention or an MLP. Its score is how strongly
what it adds depends on the predicted class, by statistics of distances; units are clustered by score, and each cluster
keeps one. ``Energy(score="max_ref", unbiased=False, reduce="flatten")`` is the score of the authors; the default is
free of scale and bias. See docs/methods/energy.md for what differs and why.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final, get_args

import torch
from torch import Tensor

from nervure.check import require_choice, require_positive
from nervure.dependence import ClassDistances, class_distances, distance_correlation
from nervure.errors import ArgumentError, DataError, NervureWarning, ScoreError
from nervure.graph.types import Block
from nervure.methods.base import View
from nervure.methods.dropping import BlockScore, Dropping
from nervure.stats import Stats
from nervure.stats.blocks import REDUCTIONS

EnergyScore: TypeAlias = Literal["r2", "max_ref", "coefficient", "dcor"]
Target: TypeAlias = Literal["predictions", "labels", "probabilities", "outputs"]
Reduce: TypeAlias = Literal["pool4", "flatten", "gap", "random"]

FEW = 20
"""Samples of a class in a round below which scores are told to be noisy."""
FEWEST = 4


def _reference(distances: ClassDistances) -> int:
    """The class with most samples, the first of several."""
    return int(distances.counts.argmax())


CLASSWISE: Mapping[str, Callable[[ClassDistances, bool], Tensor]] = {
    "r2": lambda d, unbiased: d.r2(unbiased),
    "max_ref": lambda d, unbiased: d.energy(unbiased)[_reference(d)].max(),
    "coefficient": lambda d, unbiased: d.coefficient(unbiased)[_reference(d)].max(),
}
"""Scores made from the distances within and between classes."""


@final
@dataclass(frozen=True, slots=True)
class Energy(Dropping):
    """Drop the blocks whose feature maps tell least of the answer.

    The other hyper-parameters (``keep``, ``budget``, ``drop``, ``tolerance``, ``policy``, ``back``, ``granularity``,
    ``stages``, ``recalibrate``, ``seed``) are those of every method that drops blocks.

    Attributes:
        score: ``"r2"``: the share of the distances between samples that classes explain, free of scale;
            ``"max_ref"``: the largest energy distance of a class to the most frequent one, in the unit of the feature
            map; ``"coefficient"``: the same over twice the mean distance; ``"dcor"``: distance correlation.
        target: what blocks should tell of: the ``"predictions"`` or ``"labels"`` (classes); with ``"dcor"`` also the
            ``"probabilities"`` (softmax of the outputs) or the ``"outputs"`` as they are (regression, embeddings).
        output: which of several outputs is meant, by its key or place; empty: ``"logits"``, or the first.
        reduce: what is kept of a feature map: ``"pool4"`` (averages over 4 x 4 parts), ``"flatten"`` (all), ``"gap"``
            (averages of whole maps) or ``"random"`` (512 random directions).
        unbiased: statistics without the bias of few samples or many dimensions.
        rounds: the evidence is parted into so many rounds, alike in classes; scores are their means, and their spread
            gives the standard error.
    """

    score: EnergyScore = "r2"
    target: Target = "predictions"
    output: str = ""
    reduce: Reduce = "pool4"
    unbiased: bool = True
    rounds: int = 4

    @property
    def wants(self) -> frozenset[str]:
        """Blocks, and labels or outputs."""
        blocks = "blocks" if self.reduce == "pool4" else f"blocks:{self.reduce}"
        if self.target == "labels":
            return frozenset({blocks, "labels"})
        return frozenset({blocks, f"outputs:{self.output}" if self.output else "outputs"})

    def check(self) -> None:
        """Complain about a hyper-parameter that is not one of the choices."""
        require_choice(self.score, get_args(EnergyScore), "score")
        require_choice(self.target, get_args(Target), "target")
        require_choice(self.reduce, REDUCTIONS, "reduce")
        require_positive(self.rounds, "rounds")
        if self.score != "dcor" and self.target in ("probabilities", "outputs"):
            raise ArgumentError(
                f'score={self.score!r} compares classes, but target={self.target!r} is continuous. Take score="dcor".'
            )

    def block_scores(self, view: View, blocks: Sequence[Block]) -> dict[str, BlockScore]:
        """The statistic of what each block adds and the target, round by round."""
        stats = view.stats
        if stats is None:
            raise DataError(f"{self!r} needs evidence: {', '.join(sorted(self.wants))}.")
        target, is_classes = self._target(stats)
        parts = _rounds(target if is_classes else None, len(target), self.rounds, view.seed + self.seed)
        if is_classes:
            _warn_of_few([target[part] for part in parts])
        found = {}
        for block in blocks:
            if block.name not in stats.blocks:
                reason = stats.skipped.get(f"block {block.name}", "it was not measured")
                raise ScoreError(f"block {block.name!r} has no evidence: {reason}. Pin it with ignore=.")
            features = stats.blocks[block.name]
            values = [self._one(features[part], target[part], is_classes) for part in parts]
            found[block.name] = BlockScore.of(block.name, values)
        return found

    def _one(self, features: Tensor, target: Tensor, is_classes: bool) -> float:
        if self.score == "dcor":
            return float(distance_correlation(features, target, unbiased=self.unbiased, classes=is_classes))
        return float(CLASSWISE[self.score](_enough(features, target, self.unbiased), self.unbiased))

    def _target(self, stats: Stats) -> tuple[Tensor, bool]:
        """What blocks should tell of, and whether it is class numbers."""
        if self.target == "labels":
            if stats.labels is None:
                raise DataError('target="labels" needs labels: measure want={"blocks", "labels"}.')
            return _told_apart(stats.labels, "labels"), True
        if stats.outputs is None:
            raise DataError(f'target={self.target!r} needs the outputs: measure want={{"blocks", "outputs"}}.')
        if self.target == "predictions":
            if stats.outputs.shape[1] < 2:
                raise DataError(
                    "the model has one output per sample, so it predicts no classes. "
                    'Take score="dcor" with target="outputs", or name another output.'
                )
            return _told_apart(stats.outputs.argmax(1), "predictions"), True
        values = stats.outputs.softmax(1) if self.target == "probabilities" else stats.outputs
        if bool((values == values[0]).all()):
            raise ScoreError(f"the {self.target} are the same for all {len(values)} samples: nothing depends on them.")
        return values, False


def _told_apart(classes: Tensor, what: str) -> Tensor:
    if len(classes.unique()) < 2:
        raise ScoreError(
            f"the {what} of all {len(classes)} samples are class {int(classes[0])}: there is nothing to tell apart. "
            "Give more samples, shuffled, of several classes."
        )
    return classes


def _rounds(classes: Tensor | None, samples: int, rounds: int, seed: int) -> list[Tensor]:
    """Places of the samples of each round: by lot, and alike in classes."""
    number = max(1, min(rounds, samples // FEWEST))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    if classes is not None:
        order = order[torch.argsort(classes[order], stable=True)]
    return [order[start::number].sort().values for start in range(number)]


def _enough(features: Tensor, classes: Tensor, unbiased: bool) -> ClassDistances:
    """Distances of the classes that have enough samples for the statistic."""
    labels, counts = classes.unique(return_counts=True)
    held = torch.isin(classes, labels[counts > 1]) if unbiased else torch.ones_like(classes, dtype=torch.bool)
    if len(classes[held].unique()) < 2:
        raise ScoreError(
            f"a round has {len(classes)} samples and fewer than two classes with two of them. "
            "Give more samples, or take fewer rounds."
        )
    return class_distances(features[held], classes[held])


def _warn_of_few(rounds: Sequence[Tensor]) -> None:
    fewest = min(int(part.unique(return_counts=True)[1].min()) for part in rounds)
    if fewest < FEW:
        warnings.warn(
            f"A class has only {fewest} samples in a round (below {FEW}): scores are noisy. Measure more samples, or "
            "take fewer rounds; with unbiased statistics the noise is at least not taken for dependence.",
            NervureWarning,
            stacklevel=2,
        )
