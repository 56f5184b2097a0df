"""How good a classifier is: accuracy, loss and calibration.

Every number is a pure function of probabilities and labels; a :class:`MetricTally` puts them together batch by batch.
Ties between outputs go to the class of the lower number, so a model that answers a constant scores one class, not luck.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from nervure.core.check import checked, show_value
from nervure.core.collectives import merge_rows
from nervure.core.schema import Count, Length, Positive, Size, convert
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.labelled import require_classes, require_finite_outputs, require_labels


@final
@dataclass(frozen=True, slots=True)
class Metrics:
    """What :func:`evaluate` found.

    Attributes:
        accuracy: share of samples whose likeliest class is the label, in [0, 1].
        top5: share of samples whose label is among the five likeliest classes; None for fewer than six classes.
        loss: mean cross entropy in nats, 0 or more.
        ece: expected calibration error in [0, 1]: how far confidence is from accuracy, over equal-width bins.
        brier: mean squared distance of the probabilities from the one-hot label, in [0, 2].
        per_class: accuracy of each class, in the order of the outputs; None for a class without a sample.
        samples: how many labels were compared (pixels, for a model that labels pixels).
        interval: 95 % Wilson interval of the accuracy, for these samples drawn at random.
    """

    accuracy: float
    top5: float | None
    loss: float
    ece: float
    brier: float
    per_class: tuple[float | None, ...]
    samples: int
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the fields by name, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Metrics":
        """Inverse of :meth:`to_json`; other entries are ignored. Raises :class:`FileError` on anything else."""
        return convert(data, cls, "these metrics")


@final
@dataclass(frozen=True, slots=True)
class Observed:
    """A few numbers per sample, all that the metrics need: memory does not grow with the number of classes."""

    confidence: Tensor
    rank: Tensor
    loss: Tensor
    brier: Tensor
    labels: Tensor


@final
class MetricTally:
    """What one model answered so far."""

    def __init__(self) -> None:
        self._observed: list[Observed] = []
        self._classes = 0

    def add(self, logits: Tensor, labels: Tensor, where: str) -> Observed:
        """Note the answers to one batch, and return what is noted.

        Args:
            logits: [samples, classes] or [samples, classes, ...].
            labels: int64 [samples] or [samples, ...].
            where: which batch, for an error.

        Raises:
            DataError: if a label is out of range, or an output is NaN or infinite.
        """
        require_finite_outputs(logits, where)
        rows, labels = _rows(logits, require_labels(labels.to(logits.device), logits))
        found = _observe(rows, labels)
        self.note(found, rows.shape[1])
        return found

    def note(self, observed: Observed, classes: int) -> None:
        """Note what was found before for a batch with so many classes."""
        self._observed.append(observed)
        self._classes = classes

    @property
    def classes(self) -> int:
        """How many there were in the batch noted last."""
        return self._classes

    @property
    def correct(self) -> Tensor:
        """Whether each label was the likeliest class, bool [samples]."""
        return torch.cat([batch.rank.cpu() for batch in self._observed]) == 0

    def metrics(self, bins: int = 15) -> Metrics:
        """Everything at once; ``bins`` of the calibration error."""
        return _summary(self._whole(), self._classes, bins)

    def metrics_of_all(self, bins: int = 15) -> Metrics:
        """As :meth:`metrics`, of what all processes of a group have noted; all of them call it."""
        columns = {str(place): column for place, column in enumerate(_columns(self._whole()))}
        return _summary(Observed(*merge_rows(columns).values()), self._classes, bins)

    def _whole(self) -> Observed:
        columns = zip(*map(_columns, self._observed), strict=True)
        return Observed(*(torch.cat([part.cpu() for part in column]) for column in columns))


@checked
def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of samples whose likeliest class is the label. Shapes [samples, classes] and [samples].

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    return top_accuracy(probabilities, labels, 1)


@checked
def top_accuracy(probabilities: Tensor, labels: Tensor, k: Size) -> float:
    """Share of samples whose label is among the ``k`` likeliest classes."""
    return float((ranks(probabilities, labels) < k).double().mean())


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label, [samples] int64: 0 where the label is the likeliest.

    Args:
        scores: logits or probabilities, [samples, classes].
        labels: int64, [samples].
    """
    labels = require_labels(labels, scores)
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


@checked
def calibration_error(probabilities: Tensor, labels: Tensor, bins: Length = 15) -> float:
    """Expected calibration error: how far accuracy is from confidence in the bin a sample falls in, on average.

    Bins are equal-width in confidence (the largest probability) and closed on the right, as in Guo et al. (2017).

    Args:
        probabilities: [samples, classes], rows sum to 1.
        labels: int64, [samples].
        bins: number of bins.

    >>> calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1]))
    0.0
    """
    right = ranks(probabilities, labels) == 0
    return _gap(probabilities.double().amax(1), right, bins)


@checked
def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over samples of the squared distance between probabilities and one-hot label, in [0, 2].

    >>> brier_score(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    0.5
    """
    return float(_squared_distance(probabilities.double(), labels).mean())


@checked
def class_accuracies(correct: Tensor, labels: Tensor, classes: Length) -> tuple[float | None, ...]:
    """Accuracy of each class; None for a class without a sample.

    Args:
        correct: bool, [samples].
        labels: int64, [samples].
        classes: how many classes there are.
    """
    if correct.dtype != torch.bool or correct.shape != labels.shape:
        raise DataError(
            f"correct is {show_value(correct)}; give whether each of {tuple(labels.shape)} labels was met, as bool."
        )
    require_classes(labels, classes)
    seen = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[correct], minlength=classes).tolist()
    return tuple(r / n if n else None for r, n in zip(right, seen, strict=True))


@checked
def wilson_interval(successes: Count, samples: Size, z: Positive = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share; with the default ``z``, 95 % confidence.

    >>> low, high = wilson_interval(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if not 0 <= successes <= samples or samples < 1:
        raise ArgumentError(f"{successes} successes of {samples} samples are no share.")
    p, shrink = successes / samples, 1 + z * z / samples
    centre = (p + z * z / (2 * samples)) / shrink
    half = z * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples * samples)) / shrink
    # The ends are exact at 0 and 1; rounding would leave them a hair outside.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == samples else centre + half)


def _rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One row per label, in double precision on the CPU (some devices have no doubles)."""
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    return rows.float().cpu().double(), labels.reshape(-1).cpu()


def _observe(logits: Tensor, labels: Tensor) -> Observed:
    logarithms = logits.log_softmax(1)
    probabilities = logarithms.exp()
    return Observed(
        confidence=probabilities.amax(1),
        rank=ranks(logits, labels),
        loss=-logarithms.gather(1, labels[:, None])[:, 0],
        brier=_squared_distance(probabilities, labels),
        labels=labels,
    )


def _columns(o: Observed) -> tuple[Tensor, ...]:
    return o.confidence, o.rank, o.loss, o.brier, o.labels


def _summary(o: Observed, classes: int, bins: int) -> Metrics:
    correct = o.rank == 0
    samples = len(o.labels)
    return Metrics(
        accuracy=int(correct.sum()) / samples,
        top5=int((o.rank < 5).sum()) / samples if classes >= 6 else None,
        loss=float(o.loss.mean()),
        ece=_gap(o.confidence, correct, bins),
        brier=float(o.brier.mean()),
        per_class=class_accuracies(correct, o.labels, classes),
        samples=samples,
        interval=wilson_interval(int(correct.sum()), samples),
    )


def _gap(confidence: Tensor, correct: Tensor, bins: int) -> float:
    # With weight n/N per bin, the sum of |mean - mean| is the sum of |difference of sums| over N.
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    difference = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    difference.index_add_(0, index, correct.double() - confidence.double())
    return float(difference.abs().sum() / len(confidence))


def _squared_distance(probabilities: Tensor, labels: Tensor) -> Tensor:
    labels = require_labels(labels, probabilities)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    return probabilities.square().sum(1) - own.square() + (1 - own).square()
