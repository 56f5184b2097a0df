"""What one trial gave, as a value; the means of several, and the scale on which they are good."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

from nervure.core.schema import Count, Fraction, Seed, convert
from nervure.errors import ArgumentError
from nervure.report.run_report import in_words
from nervure.report.tables import MISSING


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial gave.

    Attributes:
        key: digest of everything that decides the result.
        network: label of the network.
        method: label of the method; ``"dense"`` for the network before any cut.
        seed: the seed of training, data and choices.
        keep: the fraction that was to stay, of ``budget``.
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        options: the method as it was made.
        accuracy: on the test split after recovery, in [0, 1].
        loss: cross entropy on the test split, in nats.
        ece: expected calibration error on the test split, in [0, 1].
        validation: quality on the validation split, in the measure of ``scale_of``: the one to choose by.
        samples: number of test samples.
        params: parameters of the result.
        nonzero: how many of them are not zero.
        macs: multiply-accumulates of the result.
        params_kept: non-zero parameters as a fraction of all parameters of the dense network.
        macs_kept: multiply-accumulates as a fraction of those of the dense network.
        shift: accuracy by corruption, where it was measured.
        seconds: how long the steps of the trial and all of them took.
        loss_curve: training loss of each epoch of recovery.
        provenance: versions, commit, machine and date.
        error: why there is no result; empty where there is one.
        metrics: what the task measures on the test split, by name, the one to look at first; empty without a task.
        higher_is_better: in which direction what a task measures is good, by name, the one that trials are compared by
            first; empty: they are compared by accuracy.
    """

    key: str
    network: str
    method: str
    seed: Seed
    keep: Fraction
    budget: str
    options: str = ""
    accuracy: float = math.nan
    loss: float = math.nan
    ece: float = math.nan
    validation: float = math.nan
    samples: Count = 0
    params: Count = 0
    nonzero: Count = 0
    macs: Count = 0
    params_kept: float = math.nan
    macs_kept: float = math.nan
    shift: Mapping[str, float] = field(default_factory=dict, hash=False)
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)
    loss_curve: tuple[float, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict, hash=False)

    @property
    def quality(self) -> str:
        """How good it is, in a few words: ``"89.60 %"``, or the task's first metric, ``"perplexity 53.1"``."""
        name = next(iter(self.metrics), "loss")
        if name == "accuracy" or (not self.metrics and not math.isnan(self.accuracy)):
            return f"{100 * self.accuracy:.2f} %"
        return f"{in_words(name)} {self.metrics.get(name, self.loss):.4g}"

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Outcome":
        """Read plain data, in which null stands for NaN; raises :class:`FileError` where it is not an outcome."""
        return convert(_with_nan(data), Outcome, "this outcome of a trial")


def _with_nan(data: Any) -> Any:
    """JSON has no word for NaN, and nothing else of an outcome is null."""
    if isinstance(data, Mapping):
        return {key: _with_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_nan(value) for value in data]
    return math.nan if data is None else data


class Mean(NamedTuple):
    """A mean over ``n`` values, their standard deviation, and the standard error of the mean (NaN for one value)."""

    value: float
    deviation: float
    error: float
    n: int

    @staticmethod
    def of(given: Iterable[float]) -> "Mean":
        """The mean of the values that are numbers; of none: NaN."""
        values = [value for value in given if not math.isnan(value)]
        if not values:
            return Mean(math.nan, math.nan, math.nan, 0)
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return Mean(statistics.fmean(values), deviation, deviation / math.sqrt(len(values)), len(values))


NOTHING = Mean.of(())


@final
@dataclass(frozen=True, slots=True)
class QualityScale:
    """What tells how good a trial is: one measure, on one split, with the direction in which it is good.

    Attributes:
        name: of the measure: ``"accuracy"``, ``"loss"``, or a metric of the task.
        higher_is_better: its direction.
        split: what it was measured on.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    split: Literal["test", "validation"] = "test"

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of samples, shown in percent, with differences in points."""
        return self.name == "accuracy"

    @property
    def factor(self) -> float:
        """From the measure to what is shown."""
        return 100.0 if self.is_accuracy else 1.0

    @property
    def unit(self) -> str:
        """What differences are in."""
        return "points" if self.is_accuracy else in_words(self.name)

    @property
    def words(self) -> str:
        """What it is called in a sentence, with the split where that is not the test split."""
        name = in_words(self.name)
        return name if self.split == "test" else "validation" if self.is_accuracy else f"validation {name}"

    @property
    def direction(self) -> str:
        """Which values are good."""
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def column(self) -> str:
        """The head of a column of a table."""
        return f"{self.words} {'(%)' if self.is_accuracy else '↑' if self.higher_is_better else '↓'}"

    @property
    def axis(self) -> str:
        """The title of a chart."""
        return f"{self.words} ({'%' if self.is_accuracy else self.direction})"

    def of(self, outcome: Outcome) -> float:
        """The measure of a trial; NaN where it was not measured."""
        if self.split == "validation":
            chosen_by = next(iter(outcome.higher_is_better), "accuracy")
            return outcome.validation if chosen_by == self.name else math.nan
        if self.name in outcome.metrics:
            return outcome.metrics[self.name]
        return float(getattr(outcome, self.name)) if self.name in _MEASURED else math.nan

    def rank(self, value: float) -> float:
        """The value with the sign of which more is better."""
        return value if self.higher_is_better else -value

    def show(self, value: float) -> str:
        """One value, e.g. ``89.60 %`` or ``53.12``."""
        return f"{100 * value:.2f} %" if self.is_accuracy else f"{value:.4g}"

    def spread(self, mean: Mean) -> str:
        """A mean with its standard deviation over seeds, e.g. ``89.60 ± 0.70``."""
        if not mean.n:
            return MISSING
        if not self.is_accuracy:
            return f"{mean.value:.4g}" + ("" if math.isnan(mean.deviation) else f" ± {mean.deviation:.2g}")
        return f"{100 * mean.value:.2f}" + ("" if math.isnan(mean.deviation) else f" ± {100 * mean.deviation:.2f}")

    def difference(self, mean: Mean) -> str:
        """A mean difference with its standard error, e.g. ``+1.20 ± 0.31``."""
        if not mean.n:
            return MISSING
        if not self.is_accuracy:
            return f"{mean.value:+.4g}" + ("" if math.isnan(mean.error) else f" ± {mean.error:.2g}")
        return f"{100 * mean.value:+.2f}" + ("" if math.isnan(mean.error) else f" ± {100 * mean.error:.2f}")


_MEASURED: Mapping[str, bool] = {"accuracy": True, "loss": False, "ece": False}
"""The measures that are fields of an :class:`Outcome`, and whether more of them is better."""


def scale_of(outcomes: Iterable[Outcome], metric: str = "quality") -> QualityScale:
    """The scale on which trials are compared.

    Args:
        outcomes: of trials of one task.
        metric: ``"quality"``: what the trials name, on the test split; ``"validation"``: the same on the validation
            split; or a measure by its name, such as ``"accuracy"``, ``"loss"`` or a metric of the task.

    Raises:
        ArgumentError: no trial has such a measure.
    """
    named: dict[str, bool] = {}
    trials = tuple(outcomes)
    for outcome in trials:
        named = {**named, **{name: better for name, better in outcome.higher_is_better.items() if name not in named}}
    known = {**named, **_MEASURED}
    if metric in ("quality", "validation"):
        first = next(iter(known))
        return QualityScale(first, known[first], "validation" if metric == "validation" else "test")
    if trials and metric not in known:
        raise ArgumentError(
            f"metric={metric!r} was not measured; there is {', '.join(['quality', 'validation', *known])}."
        )
    return QualityScale(metric, known.get(metric, True))
