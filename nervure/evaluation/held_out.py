"""How good networks are on samples held out, as a whole and part by part, so that differences can have an interval."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.check import nearest
from nervure.errors import ArgumentError, DataError
from nervure.graph.models import evaluating, on_device
from nervure.stats.loaders import Batch, batches, fixed_seed
from nervure.stats.measure import batches_digest
from nervure.tasks.batch_forms import move_batch, naming
from nervure.tasks.metric_specs import ACCURACY, DIVERGENCE, FLIPS, MetricSpec
from nervure.tasks.running import TaskTally
from nervure.tasks.task import Measure, Task

PARTS = 20
"""Into so many parts samples are dealt: the spread of a difference over them tells how sure it is."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Samples that nothing is gathered on.

    Attributes:
        batches: some samples each, as the data gave them.
        numbers: for each batch the part that it is in, from 0 on.
        sizes: the samples of each part.
    """

    batches: tuple[Any, ...]
    numbers: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(drawn: Iterable[Batch]) -> "HeldOut":
        """Deal batches, of which there are two samples at least, into parts of about one size."""
        listed = list(drawn)
        total = sum(batch.size for batch in listed)
        if total < 2:
            raise DataError(f"{total} samples are held out, and a difference takes two at least. Give more data.")
        parts, seen = min(PARTS, total), 0
        pieces, numbers, sizes = list[Any](), list[int](), [0] * parts
        for batch in listed:
            for rows in torch.arange(batch.size).tensor_split(-(-batch.size // (total // parts))):
                number = seen * parts // total
                pieces.append(batch.raw if len(rows) == batch.size else batch.rows(rows).raw)
                numbers.append(number)
                sizes[number] += len(rows)
                seen += len(rows)
        return HeldOut(tuple(pieces), tuple(numbers), tuple(sizes))

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """Tells these samples from others."""
        told = f"{self.numbers}{batches_digest(self.batches, count=len(self.batches))}"
        return hashlib.sha256(told.encode()).hexdigest()


def draw_samples(data: Iterable[Any], samples: int, task: Task | None = None, *, seed: int = 0) -> list[Batch]:
    """The first so many samples, to keep: a loader that shuffles gives the same for the same seed."""
    with fixed_seed(seed):
        return list(batches(data, samples, labelled=False, task=task))


def hold_out(drawn: Iterable[Batch], share: float, *, seed: int = 0) -> tuple[list[Batch], HeldOut]:
    """Part samples by lot: those to gather evidence on, and a ``share`` of all, in (0, 1), that is held out.

    Raises:
        DataError: there are too few for both.
    """
    generator, seen = torch.Generator().manual_seed(seed), 0
    used, held = list[Batch](), list[Batch]()
    for batch in drawn:
        count = round((seen + batch.size) * share) - round(seen * share)
        seen += batch.size
        order = torch.randperm(batch.size, generator=generator)
        for chosen, part in ((order[:count], held), (order[count:], used)):
            if len(chosen):
                part.append(batch if len(chosen) == batch.size else batch.rows(chosen.sort().values))
    if not used or sum(batch.size for batch in held) < 2:
        raise DataError(
            f"{seen} samples with a share of {share:g} held out are too few to measure on some and to judge on others. "
            "Give hundreds, or give validation=, batches to judge on."
        )
    return used, HeldOut.of(held)


@final
@dataclass(frozen=True, slots=True)
class PartScores:
    """What a metric says of one network.

    Attributes:
        value: on all samples held out; NaN where it says nothing.
        parts: on each part of them.
    """

    value: float
    parts: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all of it are numbers."""
        return all(map(math.isfinite, (self.value, *self.parts)))


@final
@dataclass(frozen=True, slots=True)
class HeldOutMetric:
    """One metric of a task.

    Attributes:
        name: of the metric, or ``"loss"``.
        task: measures it and nothing else.
        higher_is_better: its direction.
        is_relative: whether differences are told as parts of its size.
    """

    name: str
    task: Task
    higher_is_better: bool
    is_relative: bool

    @staticmethod
    def of(task: Task, name: str) -> "HeldOutMetric":
        """The metric of that name, without torchmetrics where answers are only counted; ArgumentError without one."""
        known = [key for key in task.higher_is_better if key != "loss" or task.has_loss]
        if name not in known:
            raise ArgumentError(f"the task {task.name!r} measures no {name!r}.{nearest(name, known, listed=True)}")
        if name == "loss":
            return HeldOutMetric(name, replace(task, metrics={}), False, True)
        measure = _counting(task, task.metrics[name])
        alone = replace(task, metrics={name: measure}, loss=None, objective=None)
        return HeldOutMetric(name, alone, measure.higher_is_better, measure.is_relative)

    def score(self, model: nn.Module, held: HeldOut) -> PartScores:
        """What it says of a network, in evaluation mode and without gradients; raises as ``evaluate_task``."""
        whole, parts = TaskTally(self.task), [TaskTally(self.task) for _ in held.sizes]
        with on_device(model, None) as place, evaluating(model):
            for number, (batch, part) in enumerate(zip(held.batches, held.numbers, strict=True)):
                with naming(f"batch {number} of the samples held out"):
                    moved = move_batch(batch, place)
                    answer = whole.ask(model, moved)
                    whole.note(moved, *answer)
                    parts[part].note(moved, *answer)
        value, *each = (tally.results()[self.name] for tally in (whole, *parts))
        return PartScores(value, tuple(each))


def default_metrics(task: Task) -> tuple[str, ...]:
    """What a task is judged by, the first first: its metrics as it names them, then its loss.

    A divergence comes after other metrics: of the model that it is from it is 0, and nothing is a part of that.
    """
    names = sorted(task.metrics, key=lambda name: _is_divergence(task.metrics[name]))
    return (*names, *(["loss"] if task.has_loss else []))


def _is_divergence(measure: Measure) -> bool:
    return isinstance(measure.make, MetricSpec) and measure.make.place == DIVERGENCE.place


def _counting(task: Task, measure: Measure) -> Measure:
    """The measure; where it only counts answers, one that does so by itself."""
    spec = measure.make
    if isinstance(spec, MetricSpec) and "top_k" not in spec.settings:
        if spec.place == FLIPS.place:
            return replace(measure, make=_Misses)
        if spec.place == ACCURACY.place and task.classes is not None:
            return replace(measure, make=_Matches, read=task.classes)
    return measure


class _Matches:
    """The share of answers [n, classes] that are the class [n] they should be."""

    def __init__(self, scores: Tensor) -> None:
        self._right = self._all = 0

    def update(self, scores: Tensor, classes: Tensor) -> None:
        self._right += int((scores.argmax(-1) == classes).sum())
        self._all += classes.numel()

    def compute(self) -> float:
        return self._right / self._all if self._all else math.nan

    def to(self, device: torch.device) -> "_Matches":
        return self


class _Misses(_Matches):
    """The share that is another class."""

    def compute(self) -> float:
        return 1 - super().compute()
