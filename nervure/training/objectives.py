"""Objectives: pure functions of a model and a batch that give the scalar to make small.

An objective runs the model itself, so it may run it twice, look inside it, or ask another model. Variations wrap an
objective and are objectives again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.core.check import checked
from nervure.core.late import checks_late, fit_classes
from nervure.core.schema import Part, Positive, Share
from nervure.core.tensors import at_least_single
from nervure.errors import ArgumentError
from nervure.evaluation.labelled import Batch, call, require_labels
from nervure.graph.models import device_of, evaluating
from nervure.tasks.batch_forms import move_batch
from nervure.tasks.categorical import classification
from nervure.tasks.outputs import logits_in
from nervure.tasks.task import Task

Objective: TypeAlias = Callable[[nn.Module, Any], Tensor]


@checked
def cross_entropy(model: nn.Module, batch: Batch, *, smoothing: Part = 0.0) -> Tensor:
    """Mean cross entropy in nats of logits [samples, classes, ...] against int64 labels [samples, ...].

    Labels may also be probabilities of the shape of the logits (mixed samples).

    Raises:
        DataError: if a label is out of range or the shapes do not fit.
    """
    inputs, labels = batch
    # Half-precision exponentials lose the small probabilities that the gradient of a confident model consists of.
    logits = at_least_single(call(model, inputs))
    if labels.is_floating_point() and labels.shape == logits.shape:
        labels = labels.to(logits.dtype)
    else:
        labels = require_labels(labels, logits, read=not checks_late())
        if checks_late():
            labels, unfit = fit_classes(labels, logits.shape[1])
            return F.cross_entropy(logits, labels, label_smoothing=smoothing).masked_fill(unfit, math.nan)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@checked
def label_smoothing(eps: Part) -> Objective:
    """Cross entropy against labels of which the fraction ``eps``, in [0, 1), is spread over all classes."""
    return partial(cross_entropy, smoothing=eps)


@checked
def with_distillation(
    objective: Objective,
    teacher: nn.Module,
    weight: Share = 0.5,
    temperature: Positive = 4.0,
    axis: Literal[1, -1] | None = None,
) -> Objective:
    """Blend an objective with the pull towards a teacher's answers (Hinton et al. 2015).

    The loss is ``(1 - weight) * objective + weight * temperature^2 * KL(teacher || model)``, with both answers softened
    by the temperature. The teacher runs in evaluation mode without gradients, and is not changed.

    Args:
        objective: what the model is trained for otherwise, a task perhaps; it must run the model once.
        teacher: a model of the same inputs and classes, on any device.
        weight: share of the pull, in [0, 1].
        temperature: above 0; higher shows more of what the teacher thinks of the wrong classes.
        axis: which axis of the outputs is the classes; None: 1, or the last where the loss is about tokens.

    Raises:
        ArgumentError: if weight or temperature is out of range, or, when called, if the two have not the same outputs.
    """
    return partial(
        distillation_loss,
        objective=objective,
        teacher=teacher,
        weight=weight,
        temperature=temperature,
        axis=axis,
    )


def task_in(objective: Objective) -> Task | None:
    """The task of an objective, also when wrapped: cross entropy is classification; None of a function."""
    while isinstance(objective, partial):
        objective = objective.keywords.get("objective", objective.func)
    if objective is cross_entropy:
        return classification()
    return objective if isinstance(objective, Task) else None


def distillation_loss(
    model: nn.Module,
    batch: Any,
    *,
    objective: Objective,
    teacher: nn.Module,
    weight: float,
    temperature: float,
    axis: int | None,
) -> Tensor:
    """What :func:`with_distillation` makes small."""
    loss, answer = run_and_hear(objective, model, batch)
    student = at_least_single(logits_in(answer))
    task = task_in(objective)
    with evaluating(teacher):
        taught = logits_in((task or Task()).forward(teacher, move_batch(batch, device_of(teacher)))).to(student)
    if taught.shape != student.shape:
        raise ArgumentError(
            f"the teacher answers {tuple(taught.shape)}, the model {tuple(student.shape)}; they need the same classes."
        )
    axis = class_axis(task, student) if axis is None else axis
    pull = _divergence(student / temperature, taught / temperature, axis)
    return (1 - weight) * loss + weight * temperature**2 * pull


def run_and_hear(objective: Objective, model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """The loss of a batch, and what the model said last on the way; ArgumentError where the model was not run."""
    seen: list[Any] = []
    # Listening, rather than a second pass: it costs half, and a second pass would move batch-norm statistics twice.
    ear = model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        loss = objective(model, batch)
    finally:
        ear.remove()
    if not seen:
        raise ArgumentError("the objective did not run the model, so there is no answer to compare with another.")
    return loss, seen[-1]


def class_axis(task: Task | None, outputs: Tensor) -> Literal[1, -1]:
    """Outputs of three axes are [samples, tokens, classes] for a task, unless it is plain classification."""
    is_tokens = outputs.ndim == 3 and task is not None and task.name != "classification"
    return -1 if is_tokens else 1


def _divergence(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Mean over samples of KL(teacher || student) in nats, from logits whose classes are on an axis."""
    target = teacher.log_softmax(axis)
    each = (target.exp() * (target - student.log_softmax(axis))).sum(axis)
    return torch.mean(each)
