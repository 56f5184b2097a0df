"""Objectives that see views of a batch: the loss on them, and the demand that answers to them agree.

A view's seed is drawn from torch's random numbers, which :func:`nervure.training.train` sets: the same training sees
the same views, also when it was stopped and goes on.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import NotNegative, Share, Size
from nervure.core.tensors import at_least_single
from nervure.errors import ArgumentError
from nervure.tasks.outputs import logits_in
from nervure.tasks.task import Task
from nervure.training.objectives import Objective, class_axis, run_and_hear, task_in
from nervure.training.views import Views

LEAST = -80.0
"""Logarithm of the smallest probability that is told from 0 in single precision."""


@checked
def augmented(objective: Objective, views: Views, *, clean: Share = 0.0) -> Objective:
    """The loss on a view of each batch, in place of the batch.

    Args:
        objective: what the model is trained for; with distillation, the teacher sees the view too.
        views: from a batch and a seed to the view (:func:`nervure.training.picture_views` and others).
        clean: share of the loss on the batch as it is, in [0, 1]; above 0 a step costs two passes.
    """
    return partial(augmented_loss, objective=objective, views=views, clean=clean)


@checked
def consistent(
    objective: Objective,
    views: Views,
    weight: NotNegative = 12.0,
    *,
    count: Size = 2,
    axis: Literal[1, -1] | None = None,
) -> Objective:
    """The loss on each batch, and how far the answers to it and to views of it are apart (AugMix, arXiv:1912.02781).

    The loss is ``objective + weight * JS``, Jensen-Shannon's divergence of ``1 + count`` answers, see
    :func:`jensen_shannon`. A step costs ``1 + count`` passes forward and backward.

    Args:
        objective: what the model is trained for; it must run the model once.
        views: from a batch and a seed to a view. Labels must stay: answers to other questions need not agree.
        weight: of the divergence, 0 or more; 12 in the paper.
        count: how many views; 2 in the paper.
        axis: which axis of the outputs is the classes; None: 1, or the last where the loss is about tokens.

    Raises:
        ArgumentError: when called, if a view has other labels, answers of another shape, or answers are no classes.
    """
    return partial(consistent_loss, objective=objective, views=views, weight=weight, count=count, axis=axis)


@checked
def jensen_shannon(logits: Sequence[Tensor], axis: Literal[1, -1] = 1) -> Tensor:
    """Jensen-Shannon's divergence of answers to the same question: the entropy of their mean less their mean entropy.

    Args:
        logits: two answers or more, of one shape, classes on ``axis``.
        axis: the classes.

    Returns:
        Mean over all but the classes, in nats: from 0 (all equal) to the logarithm of the number of answers.

    Raises:
        ArgumentError: there are fewer than two answers, they are of different shapes, or have no axis of classes.

    >>> one, other = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    >>> round(float(jensen_shannon([one, other])), 4)
    0.6931
    """
    fits = len({one.shape for one in logits}) == 1 and logits[0].ndim > 1 and not logits[0].is_complex()
    if len(logits) < 2 or not fits:
        raise ArgumentError(
            f"jensen_shannon of answers {[tuple(one.shape) for one in logits]}: give two or more of one shape, "
            "[samples, classes, ...] or [samples, ..., classes]."
        )
    each = torch.stack([at_least_single(one).log_softmax(axis).clamp(min=LEAST) for one in logits])
    mixed = each.logsumexp(0) - math.log(len(logits))
    return (each.exp() * (each - mixed)).sum(axis if axis < 0 else axis + 1).mean()


def augmented_loss(model: nn.Module, batch: Any, *, objective: Objective, views: Views, clean: float) -> Tensor:
    """What :func:`augmented` makes small."""
    seen = views(batch, _draw_seed())
    if not clean:
        return objective(model, seen)
    return clean * objective(model, batch) + (1 - clean) * objective(model, seen)


def consistent_loss(
    model: nn.Module,
    batch: Any,
    *,
    objective: Objective,
    views: Views,
    weight: float,
    count: int,
    axis: Literal[1, -1] | None,
) -> Tensor:
    """What :func:`consistent` makes small."""
    loss, answer = run_and_hear(objective, model, batch)
    known = task_in(objective)
    task, answers = known or Task(), [logits_in(answer)]
    chosen = class_axis(known, answers[0]) if axis is None else axis
    _require_classes(known, answers[0], chosen)
    for _ in range(count):
        seen = views(batch, _draw_seed())
        _require_same_labels(task, batch, seen)
        answers.append(logits_in(task.forward(model, seen)))
    return loss + weight * jensen_shannon(answers, chosen)


def _draw_seed() -> int:
    return int(torch.randint(1 << 62, ()))


def _require_classes(task: Task | None, answer: Tensor, axis: int) -> None:
    if (task is not None and task.classes is None) or answer.ndim < 2 or answer.shape[axis] < 2:
        whose = "" if task is None else f" for the task {task.name!r}"
        raise ArgumentError(
            f"consistent() compares probabilities of classes, and an answer of {tuple(answer.shape)} is none{whose}. "
            "Use augmented(), which asks for a loss only, or a Task(classes=)."
        )


def _require_same_labels(task: Task, batch: Any, view: Any) -> None:
    one, other = task.labels(batch), task.labels(view)
    if isinstance(one, Tensor) and isinstance(other, Tensor) and not torch.equal(one, other):
        raise ArgumentError(
            "consistent(): labels have changed with the view, so that its answers are to another question. "
            "Use augmented(), or views after which labels stay."
        )
