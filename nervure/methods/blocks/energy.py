"""Energy: layers that the network's answers hardly depend on leave.

After Soltani, Wu, Li, Ding, Tarokh, "On The Energy Statistics of Feature Maps in Pruning of Neural Networks with
Skip-Connections", ICASSP 2022.

A unit is what lies beside a shortcut: a residual branch, a dense layer, attention or an MLP. The paper's score is how
strongly what a unit adds depends on the predicted class, by statistics of distances; units are clustered by score, and
each cluster keeps one: ``Energy(score="max_ref", policy="ckmeans", unbiased=False, reduce="flatten")``. The default is
ours: how much of the answers' dependence on the whole network's is lost when the unit is skipped, and the least lost
for the saving. See docs/methods/energy.md for what differs and why.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from nervure.core.schema import Rounds
from nervure.dependence import ClassDistances, class_distances, distance_correlation
from nervure.errors import ArgumentError, DataError, NervureWarning, ScoreError
from nervure.graph.types import Block
from nervure.methods.base import View, stats_of
from nervure.methods.blocks.dropping import BlockScore, Dropping
from nervure.stats import Stats

EnergyScore: TypeAlias = Literal["skip", "r2", "max_ref", "coefficient", "dcor"]
Target: TypeAlias = Literal["auto", "predictions", "labels", "probabilities", "outputs"]
Reduce: TypeAlias = Literal["pool4", "flatten", "gap", "random"]

CONTINUOUS = ("probabilities", "outputs")
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
    """Drop the blocks that the answers hardly depend on.

    The other hyper-parameters (``keep``, ``budget``, ``drop``, ``tolerance``, ``policy``, ``back``, ``granularity``,
    ``stages``, ``recalibrate``, ``seed``, ``output``) are those of every method that drops blocks.

    Attributes:
        score: ``"skip"``: 1 minus the distance correlation of the answers with the block and without it, batch norms
            recalibrated on both sides. The others look at what the block adds to its shortcut, its feature map:
            ``"r2"``: the share of the distances between samples that classes explain, free of scale; ``"max_ref"``:
            the largest energy distance of a class to the most frequent one, in the unit of the feature map;
            ``"coefficient"``: the same over twice the mean distance; ``"dcor"``: distance correlation with the target.
        target: with ``"skip"`` the answers that are compared: ``"probabilities"`` (softmax of the outputs) or
            ``"outputs"`` as they are (regression, embeddings). Otherwise what feature maps should tell of: the
            ``"predictions"`` or ``"labels"`` (classes), with ``"dcor"`` also the two above. ``"auto"``: with
            ``"skip"`` probabilities (outputs, where there is one per sample), otherwise predictions.
        reduce: what is kept of a feature map: ``"pool4"`` (averages over 4 x 4 parts), ``"flatten"`` (all), ``"gap"``
            (averages of whole maps) or ``"random"`` (512 random directions).
        unbiased: statistics without the bias of few samples or many dimensions.
        rounds: the evidence is parted into so many rounds, alike in classes; scores are their means, and their spread
            gives the standard error.
    """

    score: EnergyScore = "skip"
    target: Target = "auto"
    reduce: Reduce = "pool4"
    unbiased: bool = True
    rounds: Rounds = 4

    @property
    def wants(self) -> frozenset[str]:
        """Outputs, or blocks with outputs or labels."""
        outputs = f"outputs:{self.output}" if self.output else "outputs"
        if self.score == "skip":
            return frozenset({outputs})
        blocks = "blocks" if self.reduce == "pool4" else f"blocks:{self.reduce}"
        if self.target == "labels":
            return frozenset({blocks, "labels"})
        return frozenset({blocks, outputs})

    def check(self) -> None:
        """Complain about a score and a target that do not go together."""
        if self.score in CLASSWISE and self.target in CONTINUOUS:
            raise ArgumentError(
                f'score={self.score!r} compares classes, but target={self.target!r} is continuous. Take score="dcor".'
            )
        if self.score == "skip" and self.target in ("predictions", "labels"):
            raise ArgumentError(
                f'score="skip" compares answers with answers, not with target={self.target!r}. Take "probabilities" or '
                '"outputs", or score="r2".'
            )

    def block_scores(self, view: View, blocks: Sequence[Block], gone: tuple[str, ...] = ()) -> dict[str, BlockScore]:
        """The statistic of each block, round by round."""
        if self.score == "skip":
            return self._score_by_skipping(view, blocks, gone)
        return self._score_by_maps(stats_of(self, view), view.seed, blocks)

    def _score_by_skipping(self, view: View, blocks: Sequence[Block], gone: tuple[str, ...]) -> dict[str, BlockScore]:
        """How much of the answers' dependence is lost when a block is skipped."""
        judge = self.judge(view)
        # The whole model is recalibrated like the others: what differs is the block alone. At every stage it is the
        # whole model that is compared with, so that small losses add up instead of being forgotten.
        whole = judge.answers_without(())
        if len(whole) < FEWEST:
            raise DataError(f"the data gave {len(whole)} samples; dependence takes {FEWEST} at least. Give more.")
        target = self._continuous(whole)
        parts = _rounds(None, len(whole), self.rounds, view.seed + self.seed)

        def measure_shares(names: tuple[str, ...]) -> list[float]:
            answers = self._continuous(judge.answers_without(names), refuse=False)
            return [float(distance_correlation(target[part], answers[part], unbiased=self.unbiased)) for part in parts]

        def share(names: tuple[str, ...]) -> list[float]:
            found: list[float] = judge.record.get("shares", names, lambda: measure_shares(names))
            return found

        before = share(gone) if gone else [1.0] * len(parts)
        return {
            block.name: BlockScore.of(
                block.name, [b - s for b, s in zip(before, share((*gone, block.name)), strict=True)]
            )
            for block in blocks
        }

    def _score_by_maps(self, stats: Stats, seed: int, blocks: Sequence[Block]) -> dict[str, BlockScore]:
        """What feature maps tell of the target."""
        target, is_classes = self._target(stats)
        parts = _rounds(target if is_classes else None, len(target), self.rounds, seed + self.seed)
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
        if self.target in CONTINUOUS:
            return self._continuous(stats.outputs), False
        if stats.outputs.shape[1] < 2:
            raise DataError(
                "the model has one output per sample, so it predicts no classes. "
                'Take score="skip", score="dcor" with target="outputs", or name another output.'
            )
        return _told_apart(stats.outputs.argmax(1), "predictions"), True

    def _continuous(self, outputs: Tensor, *, refuse: bool = True) -> Tensor:
        """Outputs or probabilities, as the target says; a model whose answers are all the same is refused."""
        as_they_are = self.target == "outputs" or (self.target == "auto" and outputs.shape[1] == 1)
        values = outputs if as_they_are else outputs.softmax(1)
        if refuse and bool((values == values[0]).all()):
            what = "outputs" if as_they_are else "probabilities"
            hint = ' One output per sample has no others to compete with: take target="outputs".'
            raise ScoreError(
                f"the {what} are the same for all {len(values)} samples: nothing depends on them."
                + hint * (values.shape[1] == 1)
            )
        return values


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
