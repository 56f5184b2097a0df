"""How good a classifier stays when its data shift: accuracy, calibration and corruption errors, beside the clean ones.

The measures follow Hendrycks and Dietterich (2019): the corruption error of a network is its error over that of a
reference. The reference here is the *dense twin* of a sparse network, so that an error below 1 says that pruning
helped. Its errors may be few, unlike those of AlexNet in the paper; so ratios are of means over corruptions, not taken
corruption by corruption. Several networks are measured in one pass, on the same corrupted inputs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any, TypedDict, final

import torch
from torch import Tensor, nn

from nervure.core.annotations import FilePath
from nervure.core.check import checked, require_choice, show_value
from nervure.core.markup import listing
from nervure.core.progress import length, track
from nervure.core.schema import Count, Length, Seed, convert
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.answers import Answers, Key, Page
from nervure.evaluation.corruptions import GROUPS, SEVERITIES, expand_names
from nervure.evaluation.features import FEATURE_SHIFTS, TOKEN_SHIFTS, corrupt_features, corrupt_tokens
from nervure.evaluation.labelled import Batch, Data, call, pairs, to_device
from nervure.evaluation.metrics import Metrics, MetricTally
from nervure.evaluation.picture_range import Normalisation, Normalised, PictureRange
from nervure.graph.models import device_of, evaluating

__all__ = ["Normalisation", "Normalised", "Shifted", "evaluate_shift", "shift_batches", "shifts_of"]


@final
@dataclass(frozen=True, slots=True)
class Shifted:
    """Metrics of one network, clean and under shift.

    Attributes:
        clean: on the data as they are.
        rows: by (corruption, severity).
        interval: 95 % interval of ``accuracy``, for these samples drawn at random: a sample's corrupted copies are no
            new samples, so shares are taken per sample first.
    """

    clean: Metrics
    rows: Mapping[Key, Metrics]
    interval: tuple[float, float] = field(default=(0.0, 1.0))

    @property
    def names(self) -> tuple[str, ...]:
        """Corruptions that were tried, in order."""
        return tuple(dict.fromkeys(name for name, _ in self.rows))

    @property
    def accuracy(self) -> float:
        """Mean accuracy over corruptions, each the mean over its severities, in [0, 1]."""
        return fmean(self.by_corruption.values())

    @property
    def ece(self) -> float:
        """Mean expected calibration error over corruptions and severities."""
        return fmean(row.ece for row in self.rows.values())

    @property
    def gap(self) -> float:
        """Clean accuracy less mean accuracy under shift."""
        return self.clean.accuracy - self.accuracy

    @property
    def by_corruption(self) -> dict[str, float]:
        """Accuracy of each corruption, the mean over its severities."""
        return {name: fmean(self._accuracies(name)) for name in self.names}

    @property
    def by_severity(self) -> dict[int, float]:
        """Accuracy at each severity, the mean over corruptions."""
        severities = sorted({severity for _, severity in self.rows})
        return {s: fmean(row.accuracy for (_, own), row in self.rows.items() if own == s) for s in severities}

    @property
    def by_group(self) -> dict[str, float]:
        """Accuracy of each kind of corruption (noise, blur, ...) of which one was tried."""
        own = self.by_corruption
        kinds = {kind: [own[name] for name in names if name in own] for kind, names in GROUPS.items()}
        return {kind: fmean(values) for kind, values in kinds.items() if values}

    @property
    def worst(self) -> Key:
        """The corruption and severity at which the accuracy is lowest."""
        return min(self.rows, key=lambda key: self.rows[key].accuracy)

    @property
    def worst_class(self) -> tuple[int, float]:
        """The class with the lowest accuracy under shift, and that accuracy (mean over corruptions and severities)."""
        columns = zip(*(row.per_class for row in self.rows.values()), strict=True)
        means = {number: fmean(known) for number, known in enumerate(map(_known_values, columns)) if known}
        lowest = min(means, key=lambda number: means[number])
        return lowest, means[lowest]

    @property
    def gap_error(self) -> float:
        """Standard error of :attr:`gap` from the number of samples.

        Both accuracies are taken for shares of independent samples, ``sqrt((p (1 - p) + q (1 - q)) / n)``; clean and
        shifted samples being the same ones, the true error is no larger.
        """
        shares = (self.clean.accuracy, self.accuracy)
        return math.sqrt(sum(p * (1 - p) for p in shares) / self.clean.samples)

    def mce(self, reference: "Shifted") -> float:
        """Mean corruption error: mean error under shift over that of ``reference``.

        NaN where the reference makes fewer errors than their standard error. A ratio of means, not the mean of a ratio
        for each corruption: one that the reference solves would outweigh all others.

        Raises:
            ArgumentError: if the two were measured under other corruptions.
        """
        self._require_same(reference)
        error = 1 - reference.accuracy
        return _ratio(1 - self.accuracy, error, math.sqrt(error * (1 - error) / reference.clean.samples))

    def relative_mce(self, reference: "Shifted") -> float:
        """Relative mean corruption error: accuracy lost under shift (:attr:`gap`) over what ``reference`` loses.

        NaN where the reference loses less than the standard error of its loss (:attr:`gap_error`). A ratio of means
        over corruptions, as :meth:`mce` is.

        Raises:
            ArgumentError: if the two were measured under other corruptions.
        """
        self._require_same(reference)
        return _ratio(self.gap, reference.gap, reference.gap_error)

    def describe(self) -> str:
        """Accuracy of each corruption by severity, and the mean, as lines of text."""
        severities = sorted({severity for _, severity in self.rows})
        width = max(len("corruption"), *map(len, self.names))
        lines = [f"{'corruption':<{width}}  " + "  ".join(f"{s:>5}" for s in severities) + "   mean"]
        for name, mean in self.by_corruption.items():
            row = (self.rows.get((name, severity)) for severity in severities)
            cells = "  ".join("    –" if one is None else f"{100 * one.accuracy:5.1f}" for one in row)
            lines.append(f"{name:<{width}}  {cells}  {100 * mean:5.1f}")
        low, high = self.interval
        lines.append(
            f"mean {100 * self.accuracy:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), "
            f"clean {100 * self.clean.accuracy:.1f} %, {self.clean.samples} samples; "
            f"worst: {self.worst[0]} at severity {self.worst[1]}"
        )
        return listing(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        rows = [{"corruption": n, "severity": s, **row.to_json()} for (n, s), row in self.rows.items()]
        return {"clean": self.clean.to_json(), "rows": rows, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Shifted":
        """Inverse of :meth:`to_json`; raises :class:`FileError` on anything else."""
        found = convert(data, _Written, "this accuracy under shift")
        keys = convert(found["rows"], list[_Shift], "this accuracy under shift")
        rows = {
            (k["corruption"], k["severity"]): Metrics.from_json(r) for k, r in zip(keys, found["rows"], strict=True)
        }
        return cls(found["clean"], rows, found["interval"])

    def _accuracies(self, name: str) -> list[float]:
        return [row.accuracy for (own, _), row in self.rows.items() if own == name]

    def _require_same(self, reference: "Shifted") -> None:
        if set(self.rows) != set(reference.rows):
            raise ArgumentError("the two were measured under other corruptions or severities; measure them together.")


class _Shift(TypedDict):
    corruption: str
    severity: Count


class _Written(TypedDict):
    clean: Metrics
    rows: list[dict[str, Any]]
    interval: tuple[float, float]


def _ratio(own: float, reference: float, error: float) -> float:
    """``own / reference``; NaN where the reference does not exceed its standard error, and rounding."""
    return own / reference if reference > max(error, 1e-12) else math.nan


def _known_values(column: Iterable[float | None]) -> list[float]:
    return [value for value in column if value is not None]


@checked
def evaluate_shift(
    models: Mapping[str, nn.Module],
    data: Data,
    *,
    shift: str | Iterable[str] | Mapping[Key, Data] = "all",
    severities: Iterable[int] = SEVERITIES,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    bins: Length = 15,
    cache: FilePath | None = None,
    progress: bool = True,
) -> dict[str, Shifted]:
    """Measure classifiers clean and under shift, all on the same corrupted inputs, without gradients.

    Args:
        models: by name, each on its own device; they come back as they were.
        data: (inputs, labels) batches. Pictures [samples, 1 or 3, height, width]; rows or sequences of features, float
            [samples, ..., features]; or tokens, integers [samples, length].
        shift: "all" for every corruption made for such inputs, kinds ("noise", "blur", "geometric", ...) or names; or
            ready data by (name, severity), as a folder of CIFAR-10-C is read.
        severities: which of 1 to 5.
        normalisation: mean and std per channel of the pictures, which are corrupted as they were before. Batches that
            know theirs need none, nor do pictures in [0, 1].
        seed: another seed draws other corruptions.
        bins: of the calibration error.
        cache: a folder where answers are kept, batch by batch: what was stopped goes on there, and what was asked once
            costs nothing again. Take another folder after a change of a network's code.
        progress: show a bar on a terminal.

    Raises:
        DataError: if data are empty or mislabelled, or pictures are not normalised as said (what was found is told).
        ArgumentError: for an unknown corruption, severity, no model, or a cache for ready data.
        FileError: the cache cannot be written.
    """
    levels = [require_choice(severity, SEVERITIES, "severity") for severity in severities]
    if not models or not levels:
        raise ArgumentError("nothing to evaluate: give at least one model and one severity.")
    if isinstance(shift, Mapping):
        if not shift:
            raise ArgumentError("shift={} holds no data: give them by (name, severity), or names of corruptions.")
        if cache is not None:
            raise ArgumentError("cache= keeps answers to corruptions that are made here; ready data are not kept.")
        return _evaluate_given(models, data, shift, bins, progress)
    tallies: dict[str, dict[Key | None, MetricTally]] = {name: {} for name in models}
    pictures = PictureRange.of(data, normalisation)
    kept = None if cache is None else Answers(cache, models, f"{pictures} {seed}")
    with _all_evaluating(models.values()):
        for inputs, labels in track(pairs(data), "evaluating under shift", length(data), enabled=progress):
            page = None if kept is None else kept.page(inputs, labels)
            for key in (None, *product(shifts_of(shift, inputs), levels)):
                asked = models if page is None else _take_known(tallies, models, key, page)
                if asked:
                    given = inputs if key is None else _corrupted(inputs, *key, pictures, seed)
                    _add(tallies, asked, key, given, labels, page)
            if page is not None:
                page.save()
    return {name: _summary(found, bins) for name, found in tallies.items()}


def shift_batches(
    data: Data, name: str, severity: int, *, normalisation: Normalisation | None = None, seed: int = 0
) -> Iterator[Batch]:
    """The batches of ``data`` under one shift, each as :func:`evaluate_shift` makes it.

    Raises:
        DataError: data are empty, or pictures are not normalised as said.
        ArgumentError: the shift or the severity is unknown, or the name is that of several shifts.
    """
    pictures = PictureRange.of(data, normalisation)
    for inputs, labels in pairs(data):
        known = shifts_of(name, inputs)
        if len(known) != 1:
            raise ArgumentError(f"{name!r} names {len(known)} shifts: {', '.join(known)}. Give one of them.")
        yield _corrupted(inputs, *known, severity, pictures, seed), labels


def shifts_of(shift: str | Iterable[str], inputs: Any) -> tuple[str, ...]:
    """Names of the shifts that a choice means for such inputs; raises as :func:`evaluate_shift`."""
    if not isinstance(inputs, Tensor):
        raise DataError(f"inputs of type {type(inputs).__name__} cannot be shifted; give single tensors.")
    if inputs.ndim == 4:
        return expand_names(shift)
    known = FEATURE_SHIFTS if inputs.is_floating_point() else TOKEN_SHIFTS
    if shift == "all":
        return known
    names = [shift] if isinstance(shift, str) else list(shift)
    if not names:
        raise ArgumentError(f"shift={show_value(shift)} names no shift; give 'all', or some of {', '.join(known)}.")
    return tuple(require_choice(name, known, "shift") for name in names)


def _corrupted(inputs: Tensor, name: str, severity: int, pictures: PictureRange, seed: int) -> Tensor:
    if name in TOKEN_SHIFTS:
        return corrupt_tokens(inputs, name, severity, seed=seed)
    if name in FEATURE_SHIFTS:
        return corrupt_features(inputs, name, severity, seed=seed)
    return pictures.corrupt(inputs, name, severity, seed)


def _add(
    tallies: dict[str, dict[Key | None, MetricTally]],
    models: Mapping[str, nn.Module],
    key: Key | None,
    inputs: Any,
    labels: Tensor,
    page: Page | None = None,
) -> None:
    for name, model in models.items():
        where = "the clean data" if key is None else f"{key[0]} at severity {key[1]}"
        logits = call(model, to_device(inputs, device_of(model)))
        tally = tallies[name].setdefault(key, MetricTally())
        observed = tally.add(logits, labels, f"{where} ({name})")
        if page is not None:
            page.note(name, key, observed, tally.classes)


def _take_known(
    tallies: dict[str, dict[Key | None, MetricTally]], models: Mapping[str, nn.Module], key: Key | None, page: Page
) -> dict[str, nn.Module]:
    """Take over the answers that are known, and return the networks that are still to be asked."""
    asked = {}
    for name, model in models.items():
        known = page.get(name, key)
        if known is None:
            asked[name] = model
        else:
            tallies[name].setdefault(key, MetricTally()).note(*known)
    return asked


def _evaluate_given(
    models: Mapping[str, nn.Module], data: Data, shift: Mapping[Key, Data], bins: int, progress: bool
) -> dict[str, Shifted]:
    tallies: dict[str, dict[Key | None, MetricTally]] = {name: {} for name in models}
    parts: list[tuple[Key | None, Data]] = [(None, data), *shift.items()]
    with _all_evaluating(models.values()):
        for key, part in track(parts, "evaluating under shift", len(parts), enabled=progress):
            for inputs, labels in pairs(part, "data" if key is None else f"shift {key}"):
                _add(tallies, models, key, inputs, labels)
    return {name: _summary(found, bins) for name, found in tallies.items()}


@contextmanager
def _all_evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        yield


def _summary(found: Mapping[Key | None, MetricTally], bins: int) -> Shifted:
    rows = {key: tally.metrics(bins) for key, tally in found.items() if key is not None}
    correct = [tally.correct.double() for key, tally in found.items() if key is not None]
    clean = next(tally for key, tally in found.items() if key is None).metrics(bins)
    return Shifted(clean, rows, _interval(correct))


def _interval(correct: list[Tensor]) -> tuple[float, float]:
    """95 % interval of the mean; each sample counts once, by its share over all corruptions."""
    if len({len(column) for column in correct}) > 1:
        ends = [(float(c.mean()), float(c.var(correction=0)) / len(c)) for c in correct]
        centre, spread = fmean(m for m, _ in ends), math.sqrt(fmean(v for _, v in ends) / len(ends))
    else:
        share = torch.stack(correct).mean(0)
        centre, spread = float(share.mean()), float(share.std(correction=0)) / math.sqrt(len(share))
    return max(0.0, centre - 1.96 * spread), min(1.0, centre + 1.96 * spread)
