"""One model, one pass over data: how good it is, on the data as they are and, if asked, under shift."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, overload

from torch import nn

from nervure.core.annotations import Device, FilePath
from nervure.core.check import checked
from nervure.core.collectives import group_used, require_same_weights
from nervure.core.progress import length, track
from nervure.core.schema import Length, Seed
from nervure.errors import ArgumentError
from nervure.evaluation.answers import Key
from nervure.evaluation.corruptions import SEVERITIES
from nervure.evaluation.labelled import Data, call, pairs, to_device
from nervure.evaluation.metrics import Metrics, MetricTally
from nervure.evaluation.shift import Normalisation, Shifted, evaluate_shift
from nervure.evaluation.task_shift import TaskShift, evaluate_task_shift
from nervure.graph.models import evaluating, on_device
from nervure.stats.shares import is_share
from nervure.tasks.guessing import TaskLike, as_task
from nervure.tasks.running import evaluate_task

BINS = 15
"""Of the calibration error, where nobody says otherwise."""
Shift = str | Iterable[str] | Mapping[Key, Data]


@overload
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    task: None = None,
    shift: None = None,
    bins: Length = BINS,
    device: Device | None = None,
    progress: bool = True,
) -> Metrics: ...


@overload
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    task: TaskLike,
    shift: None = None,
    bins: Length = BINS,
    device: Device | None = None,
    progress: bool = True,
) -> dict[str, float]: ...


@overload
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    task: TaskLike,
    shift: Any,
    severities: Iterable[int] = SEVERITIES,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    device: Device | None = None,
    progress: bool = True,
) -> TaskShift: ...


@overload
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    task: None = None,
    shift: Shift,
    severities: Iterable[int] = SEVERITIES,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    bins: Length = BINS,
    device: Device | None = None,
    cache: FilePath | None = None,
    progress: bool = True,
) -> Shifted: ...


@checked
def evaluate(  # noqa: PLR0913 - one keyword per choice
    model: nn.Module,
    data: Data,
    *,
    task: TaskLike | None = None,
    shift: Any = None,
    severities: Iterable[int] = SEVERITIES,
    normalisation: Normalisation | None = None,
    seed: Seed = 0,
    bins: Length = BINS,
    device: Device | None = None,
    cache: FilePath | None = None,
    progress: bool = True,
) -> Metrics | Shifted | TaskShift | dict[str, float]:
    """Measure a model on data, in evaluation mode and without gradients; with ``shift``, also under corruption.

    The model comes back as it was: every module in the mode it was in, on the device it was on.

    In a process group processes work together where the data say that they are a share: those of
    :func:`nervure.distributed.share`, or a loader with a ``DistributedSampler``. All call it then, and get what holds
    for all of the data. With other data, and with ``shift``, each process is alone.

    Args:
        model: without ``task`` it returns logits [samples, classes] or [samples, classes, ...], alone or as described
            in ``logits_of``.
        data: iterable of (inputs, labels) batches; with ``task`` of any form.
        task: what the model is for, see :mod:`nervure.tasks`: the result is the loss and the metrics of the task, by
            name, as of :func:`nervure.tasks.evaluate_task`. None: it is a classifier.
        shift: "all", kinds or names of corruptions, or ready data by (name, severity): see
            :func:`~nervure.evaluation.shift.evaluate_shift`, which measures several models at once. With ``task``
            whatever :func:`~nervure.evaluation.task_shift.evaluate_task_shift` takes.
        severities: of the corruptions, which of 1 to 5.
        normalisation: mean and std per channel that the pictures were normalised with, where the batches do not say.
        seed: another seed draws other corruptions.
        bins: number of equal-width bins of the calibration error.
        device: where to run; None: where the model is.
        cache: with ``shift``, a folder where answers are kept, see :func:`~nervure.evaluation.shift.evaluate_shift`.
        progress: show a bar on a terminal.

    Raises:
        DataError: if data are empty, a label is out of range, an output is NaN or infinite, or pictures are not
            normalised as said.
        ArgumentError: if ``bins`` is below 1, a corruption or severity is unknown, or ``bins`` or ``cache`` is given
            beside a task.
    """
    with nullcontext() if shift is None and is_share(data) else group_used(None):
        require_same_weights(model.parameters(), "evaluate")
        if (given := as_task(task)) is not None:
            _require_no_classifier(bins, cache)
            if shift is None:
                return evaluate_task(model, data, given, device=device, progress=progress)
            how = {"shift": shift, "severities": severities, "normalisation": normalisation, "seed": seed}
            with on_device(model, device):
                return evaluate_task_shift({"model": model}, data, given, progress=progress, **how)["model"]
        with on_device(model, device) as place, evaluating(model):
            if shift is not None:
                found = evaluate_shift(
                    {"model": model},
                    data,
                    shift=shift,
                    severities=severities,
                    normalisation=normalisation,
                    seed=seed,
                    bins=bins,
                    cache=cache,
                    progress=progress,
                )
                return found["model"]
            tally = MetricTally()
            for number, (inputs, labels) in enumerate(track(pairs(data), "evaluating", length(data), enabled=progress)):
                tally.add(call(model, to_device(inputs, place)), labels, f"batch {number}")
            return tally.metrics_of_all(bins)


def _require_no_classifier(bins: int, cache: FilePath | None) -> None:
    """What is for classifiers alone does nothing beside a task: say so."""
    for name, given, usual in (("bins", bins, BINS), ("cache", cache, None)):
        if given != usual:
            raise ArgumentError(f"{name}={given!r} is for classifiers without task=: leave one of them out.")
