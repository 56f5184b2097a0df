"""What may be lost, what networks that were tried have lost, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from nervure.core.schema import Between, Count, NotNegative, Share, Size, convert
from nervure.dependence.student import student_t
from nervure.evaluation.held_out import PartScores

SLACK = 1e-9
"""Of rounding: a loss of exactly the tolerance is within it."""


@final
@dataclass(frozen=True, slots=True)
class Loss:
    """How much worse a network is than the dense one, in the unit of a tolerance; below 0 it is better.

    Attributes:
        value: on the samples held out.
        low: lower end of its interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One amount that was tried.

    Attributes:
        keep: the fraction that was asked to stay.
        quality: the metric of what came of it, on the samples held out; None where there is none.
        lost: how much worse that is than the dense network's; None where there is none.
        is_inside: whether it was taken to be within the tolerance.
        params: parameters of the network.
        nonzero: how many of them are not zero.
        macs: its multiply-accumulates.
        reason: why it is no result; empty where it is one.
    """

    keep: Share
    quality: float | None = None
    lost: Loss | None = None
    is_inside: bool = False
    params: Count = 0
    nonzero: Count = 0
    macs: Count = 0
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is tolerated, and how it is judged.

    Attributes:
        value: how much may be lost.
        metric: what is judged.
        higher_is_better: its direction.
        is_relative: whether losses are parts of the dense network's metric (perplexity), or differences (shares).
        dense: the metric of the dense network.
        samples: how many samples are held out.
        confidence: of the intervals, two-sided.
        is_strict: whether the whole interval has to be within the tolerance.
    """

    value: NotNegative
    metric: str
    higher_is_better: bool
    is_relative: bool
    dense: float
    samples: Size
    confidence: Between = 0.95
    is_strict: bool = False

    def admits(self, lost: Loss) -> bool:
        """Whether a network that lost so much is within it."""
        return (lost.high if self.is_strict else lost.value) <= self.value + SLACK

    def lost(self, dense: PartScores, pruned: PartScores, sizes: Sequence[int]) -> Loss:
        """How much worse a network is than the dense one, with the interval of Student's t over parts of the samples.

        A share is not taken to be surer than with one answer won and one lost: Bonett and Price, "Adjusted Wald
        Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", 2012.

        Args:
            dense: what the metric says of the dense network.
            pruned: the same of the other, on the same parts.
            sizes: samples of each part.
        """
        unit = (1.0 if self.higher_is_better else -1.0) / (abs(self.dense) if self.is_relative else 1.0)
        value = unit * (dense.value - pruned.value)
        each = [unit * (before - after) for before, after in zip(dense.parts, pruned.parts, strict=True)]
        weights = [size / sum(sizes) for size in sizes]
        mean = math.fsum(weight * one for weight, one in zip(weights, each, strict=True))
        spread = math.fsum((weight * (one - mean)) ** 2 for weight, one in zip(weights, each, strict=True))
        error = math.sqrt(spread * len(each) / (len(each) - 1))
        reach = max(student_t(1 - self.confidence, len(each) - 1) * error, self.least_reach(len(each)))
        return Loss(value, value - reach, value + reach)

    def least_reach(self, parts: int) -> float:
        """How far an interval over so many parts reaches at least, to either side."""
        if self.is_relative:
            return 0.0
        return student_t(1 - self.confidence, parts - 1) * math.sqrt(2) / (self.samples + 2)

    def tell(self, lost: float) -> str:
        """How much is lost, as people write it: ``"1.20 points"``, or ``"1.20 %"`` of a perplexity."""
        return f"{100 * lost:.2f} {'%' if self.is_relative else 'points'}"


@final
@dataclass(frozen=True, slots=True)
class AmountSearch:
    """What was tolerated, and all that was tried, first things first."""

    tolerance: Tolerance
    path: tuple[Attempt, ...]

    @property
    def found(self) -> Attempt | None:
        """The smallest amount within the tolerance; None where there is none."""
        return min(
            (one for one in self.path if one.is_inside and not one.reason), key=lambda one: one.keep, default=None
        )

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval of what the smallest lost is within the tolerance."""
        lost = None if self.found is None else self.found.lost
        return lost is not None and lost.high <= self.tolerance.value + SLACK

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"tolerance": asdict(self.tolerance), "path": [asdict(one) for one in self.path]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "AmountSearch":
        """Read what :meth:`to_json` wrote; raises :class:`FileError` on anything else."""
        return convert(data, AmountSearch, "this search for an amount")
