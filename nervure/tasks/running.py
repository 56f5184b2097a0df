"""One pass over data: what a task measures of a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.core.annotations import Batches, Device
from nervure.core.check import checked, nearest
from nervure.core.collectives import add_up_numbers, group, several
from nervure.core.progress import ending, length, track
from nervure.errors import ArgumentError, DataError
from nervure.graph.models import evaluating, on_device
from nervure.tasks.batch_forms import move_batch, naming
from nervure.tasks.task import Measure, Task, Total


@checked
def evaluate_task(
    model: nn.Module, data: Batches, task: Task, *, device: Device | None = None, progress: bool = True
) -> dict[str, float]:
    """The loss and all metrics of a task, in evaluation mode and without gradients.

    The model comes back as it was: every module in the mode it was in, on the device it was on. Metrics that do not
    apply (the top 5 of three classes) are left out. Where the loss follows from an objective of the user's own, and not
    from outputs, the model runs twice for each batch.

    In a process group all processes call it, each with its share of the data (:mod:`nervure.distributed`), and all get
    what holds for all of the data.

    Args:
        model: the model.
        data: batches of any form that the task reads.
        task: what the model is for.
        device: where to run; None: where the model is.
        progress: show a bar on a terminal.

    Returns:
        the mean ``"loss"`` over all that counts, where the task has one, and each metric by its name.

    Raises:
        DataError: the data are empty, labels are missing or do not fit, or a loss is not finite; it names the batch.
        MissingExtraError: a metric is not installed; the message names the extra.
        ArgumentError: several processes work together, and a metric is none of torchmetrics.
    """
    tally = TaskTally(task)
    with on_device(model, device) as place, evaluating(model):
        for number, batch in enumerate(track(ending(data), "evaluating", length(data), enabled=progress)):
            with naming(f"batch {number}"):
                tally.add(model, move_batch(batch, place))
    return tally.results_of_all()


@final
class TaskTally:
    """What was measured so far of one model."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._made: dict[str, Any] = {}
        self._loss: Tensor | float = 0.0
        self._count = self._batches = 0

    def add(self, model: nn.Module, batch: Any) -> None:
        """Run a model on a batch, and count what it answers; raises as :func:`evaluate_task`."""
        self.note(batch, *self.ask(model, batch))

    def ask(self, model: nn.Module, batch: Any) -> tuple[Any, Total | None]:
        """The output of a model, where it is needed, and its loss, where there is one; :meth:`note` counts them."""
        task, output = self._task, None
        if not (task.has_loss or task.metrics):
            raise ArgumentError(
                f"the task {task.name!r} has neither loss nor metrics: give Task(objective=, metrics=)."
            )
        if task.metrics or task.objective is None:
            output = task.forward(model, batch)
        if not task.has_loss:
            return output, None
        return output, task.total(model, batch) if task.objective is not None else task.total_of(output, batch)

    def note(self, batch: Any, output: Any, loss: Total | None) -> None:
        """Count what was answered to a batch; raises as :func:`evaluate_task`."""
        if loss is not None:
            self._loss, self._count = self._loss + _finite(loss.loss.detach().double()), self._count + loss.count
        fed: list[int] = []
        for name, measure in self._task.metrics.items():
            arguments = tuple(map(_in_one_piece, measure.read(output, batch)))
            if name not in self._made:
                self._made[name] = self._make(measure, arguments)
            metric = self._made[name]
            if metric is not None and id(metric) not in fed:
                with _telling(name):
                    metric.update(*arguments)
                fed.append(id(metric))
        self._batches += 1

    def results(self) -> dict[str, float]:
        """Everything by its name."""
        if not self._batches:
            raise DataError(
                "the data gave no batch. Check that they are not empty (drop_last with few samples?) and can be "
                "iterated again (a generator gives its batches once)."
            )
        if self._task.has_loss and not self._count:
            raise DataError("no label counts: all of them are ignored, so there is no loss to tell.")
        loss = {"loss": float(self._loss) / self._count} if self._task.has_loss else {}
        applied = {name: metric for name, metric in self._made.items() if metric is not None}
        found = {name: (metric, self._task.metrics[name].key) for name, metric in applied.items()}
        return loss | {name: _number(metric, key, name) for name, (metric, key) in found.items()}

    def results_of_all(self) -> dict[str, float]:
        """As :meth:`results`, of what all processes of a group have noted; all of them call it."""
        if not several():
            return self.results()
        loss, count = add_up_numbers(float(self._loss), self._count)
        self._loss, self._count = loss, int(count)
        for name, metric in self._made.items():
            if metric is not None and not hasattr(metric, SYNCS):
                raise ArgumentError(
                    f"the metric {name!r} is {type(metric).__name__}, which is none of torchmetrics: what processes "
                    "counted cannot be put together. Evaluate in one, within nervure.distributed.reduce_over(None)."
                )
            if metric is not None:
                metric.distributed_available_fn, metric.process_group = several, group()
        return self.results()

    def _make(self, measure: Measure, arguments: tuple[Any, ...]) -> Any:
        """A new metric, or the one that another measure feeds in the same way to take another result of it."""
        for name, metric in self._made.items():
            other = self._task.metrics[name]
            if measure.key and (other.make, other.read) == (measure.make, measure.read):
                return metric
        metric = measure.make(arguments[0])
        if hasattr(metric, SYNCS):
            # Metrics of torchmetrics wait for all processes by themselves, also where one of them asks alone.
            metric.distributed_available_fn = _never
        place = next((x.device for x in arguments if isinstance(x, Tensor)), None)
        return metric if metric is None or place is None else metric.to(place)


def _in_one_piece(value: Any) -> Any:
    """What a metric is given: some of torchmetrics view their tensors, which takes memory without gaps."""
    return value.contiguous() if isinstance(value, Tensor) and value.layout == torch.strided else value


SYNCS = "distributed_available_fn"
"""What tells metrics of torchmetrics whether there are other processes."""


def _never() -> bool:
    return False


def _finite(loss: Tensor) -> Tensor:
    if not bool(torch.isfinite(loss)):
        raise DataError(f"the loss is {float(loss)}. Check inputs, labels and weights for NaN.")
    return loss.cpu()


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """What a metric raises is about what it was given."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"the metric {name!r} cannot be computed: {error}") from error


def _number(metric: Any, key: str, name: str) -> float:
    with _telling(name):
        found = metric.compute()
    if isinstance(found, Mapping):
        if key not in found:
            raise ArgumentError(f"the metric {name!r} computes no {key!r}.{nearest(key, map(str, found), listed=True)}")
        found = found[key]
    if isinstance(found, Tensor) and found.numel() != 1:
        raise ArgumentError(f"the metric {name!r} computes {found.numel()} numbers; a metric of a task is one number.")
    return float(found)
