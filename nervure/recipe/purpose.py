"""What the network of a run is for: the task that is asked for, or else what the first batch says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from nervure.core.extras import require_extra
from nervure.core.inputs import Inputs, plain_tensors
from nervure.errors import ArgumentError, DataError, RecipeError
from nervure.graph.models import device_of, evaluating
from nervure.recipe.own_data import Data, OwnData
from nervure.recipe.recipe import TaskSection
from nervure.recipe.task_making import task_from
from nervure.tasks import Task, move_batch
from nervure.tasks.batch_forms import naming
from nervure.tasks.guessing import find_task
from nervure.tasks.running import TaskTally

TRIED = 2
"""Samples on which it is tried whether what a task measures can be computed."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Purpose:
    """What a network is for.

    Attributes:
        task: how it is called, trained and measured; None: it tells classes of samples in batches (inputs, labels), and
            accuracy, loss and calibration are measured.
        name: what the task is called.
        reason: what it was told from, where nobody named it.
        example: what the network is called with for one sample of the data; None: an image of the data.
    """

    task: Task | None = None
    name: str = "classification"
    reason: str = ""
    example: Inputs | None = None

    @property
    def tells_classes(self) -> bool:
        """Whether a training notes how many labels are met on its validation data, rather than the loss."""
        return self.task is None or self.task.classes is not None

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """For every metric but the loss, in which direction it is good; the first is the one to look at."""
        found = {} if self.task is None else self.task.higher_is_better
        return {name: better for name, better in found.items() if name != "loss"}

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it; nothing where there is nothing to say."""
        if self.task is None and not self.reason:
            return {}
        return {"name": self.name, "reason": self.reason, "higher_is_better": dict(self.higher_is_better)}


def purpose_of(section: TaskSection, data: Data, build: Callable[[], nn.Module]) -> Purpose:
    """What a network is for.

    Args:
        section: what is asked for.
        data: their first batch says it where nothing is asked for.
        build: makes the network, which is run on one sample; not called for data of the zoo.

    Raises:
        RecipeError: there is no such task, several fit, or the data do not suit the network.
        DataError: the loss or a metric of the first batch cannot be computed.
        MissingExtraError: the metrics of the task are not installed.
    """
    task = task_from(section.name, section.options) if section.name else None
    if not isinstance(data, OwnData):
        return _with_metrics(Purpose(task, task.name)) if task else Purpose()
    model = build()
    batch = move_batch(data.first(), device_of(model))
    found = task or _find(model, batch)
    purpose = Purpose(found, found.name, found.reason, example_for(model, batch, found))
    if task is None and found.name == "classification" and _is_pair(batch):
        # As for the data of the zoo: what is measured must not depend on who made the batches.
        return Purpose(None, found.name, found.reason, purpose.example)
    _with_metrics(purpose)
    # What cannot be measured is told before anything is trained.
    with evaluating(model), naming("batch 0"):
        TaskTally(found).add(model, found.take(batch, slice(TRIED), found.samples(batch)))
    return purpose


def example_for(model: nn.Module, batch: Any, task: Task) -> Inputs:
    """What ``task`` calls ``model`` with for the first sample of a batch; raises DataError or ForwardError."""
    seen: list[Inputs] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Inputs(args, kwargs))

    one = task.take(batch, slice(1), task.samples(batch))
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with evaluating(model):
            # An objective of the user's own knows better than the form of the batch how the network is called.
            if task.objective is None:
                task.forward(model, one)
            else:
                task.objective(model, one)
    finally:
        hook.remove()
    if not seen:
        raise RecipeError(f"[task] {task.name} did not run the network: there is no example to trace it with.")
    labels = task.labels(one)
    kept = {name: value for name, value in seen[0].kwargs.items() if labels is None or value is not labels}
    return plain_tensors(Inputs(seen[0].args, kept))


def _find(model: nn.Module, batch: Any) -> Task:
    try:
        return find_task(model, batch)
    except (ArgumentError, DataError) as error:
        raise RecipeError(
            f'[task] {error} In a recipe: task = "regression", or "package.module:name"; '
            "--task NAME on the command line."
        ) from error


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def _with_metrics(purpose: Purpose) -> Purpose:
    """Complain now, not after the training."""
    if purpose.task is not None and purpose.task.metrics:
        require_extra("torchmetrics", f"what is measured of {purpose.name}", "metrics")
    return purpose
