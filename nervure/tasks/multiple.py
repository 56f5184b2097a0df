"""Networks with several outputs: a task for each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

from nervure.core.check import checked
from nervure.core.schema import NotNegative
from nervure.errors import ArgumentError
from nervure.tasks.batch_forms import Layout, Place
from nervure.tasks.task import Task, Total


@final
@dataclass(frozen=True, slots=True)
class Heads:
    """Tasks by name, with the weight of each in the loss."""

    tasks: Mapping[str, Task]
    weights: Mapping[str, float]
    layout: Layout = field(default_factory=Layout)

    def loss(self, output: Any, batch: Any) -> Total:
        """The weighted sum of the mean losses, times the samples."""
        means = [self.weights.get(name, 1.0) * task.total_of(output, batch).mean for name, task in self.tasks.items()]
        count = self.layout.count(batch)
        return Total(torch.stack(means).sum() * count, count)

    def labels(self, batch: Any) -> dict[str, Any]:
        """Those of each task."""
        return {name: task.labels(batch) for name, task in self.tasks.items()}


@checked
def multitask(
    *,
    inputs: Place | tuple[Place, ...] | None = None,
    weights: Mapping[str, NotNegative] | None = None,
    **heads: Task,
) -> Task:
    """Several tasks of one network, ``multitask(age=regression(output="age", labels="age"), ...)``.

    Metrics are called ``"age.rmse"``. Where labels are nested, their places are: ``labels="1.age"`` in
    ``(inputs, {"age": ...})``.

    Args:
        inputs: where the inputs are, see :class:`Layout`.
        weights: of each loss in their sum; 1 where none is given.
        heads: the tasks, each of which says which output and which labels are its own.

    Raises:
        ArgumentError: there are no tasks, one has no loss of an output, or a weight is of none of them.
    """
    for name, head in heads.items():
        if head.loss is None:
            raise ArgumentError(f"multitask({name}=): the task {head.name!r} has no loss of an output.")
    unknown = sorted((weights or {}).keys() - heads.keys())
    if unknown or not heads:
        raise ArgumentError(
            f"multitask(): {f'weights of {unknown}, which are no tasks' if unknown else 'no tasks'}. "
            "Give e.g. age=tasks.regression(output='age', labels='age')."
        )
    both = Heads(heads, weights or {}, Layout(inputs))
    return Task(
        name=f"multitask, {', '.join(heads)}",
        loss=both.loss,
        forward=both.layout.feed,
        inputs=both.layout.inputs_in,
        metrics={f"{name}.{key}": measure for name, head in heads.items() for key, measure in head.metrics.items()},
        labels=both.labels,
        samples=both.layout.count,
    )
