"""Batch-norm statistics measured anew: after a cut, the old ones describe activations that no longer exist."""

import itertools
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from nervure.core.annotations import Batches
from nervure.core.check import checked
from nervure.core.documents import is_shallow
from nervure.core.schema import Size
from nervure.core.tensors import tensors_in
from nervure.errors import ArgumentError, DataError
from nervure.graph.models import device_of, evaluating, is_weightless
from nervure.tasks.batch_forms import iterate_batches, move_batch
from nervure.tasks.task import Forward, Task


@checked
def recalibrate(model: nn.Module, data: Batches, batches: Size = 100, *, task: Task | None = None) -> int:
    """Replace the running statistics of every batch norm by their average over data; no weight changes.

    Batches count by their samples (by all their values in each channel). One that holds a single value per channel has
    no variance: there the norm goes by the batches before. Only batch norms see training mode: dropout stays off.
    Modes and momenta come back; so do the statistics of norms that the data do not reach, and where anything fails,
    those of all.

    Args:
        model: changed in place; a model without batch norms stays as it is.
        data: batches of any form; labels are not looked at, and empty batches are left out.
        batches: how many batches at most.
        task: how batches go into the model, where that is not told by their form.

    Returns:
        How many batches were averaged; 0 for a model without batch norms.

    Raises:
        ArgumentError: if the model has no numbers (it is on the meta device).
        DataError: if data are empty, have one value per channel in every batch, or give statistics that are NaN or
            infinite.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    if is_weightless(model):
        raise ArgumentError("the model has tensors without numbers; give it its weights before recalibrating.")
    before = [(norm.momentum, {name: b.clone() for name, b in norm.named_buffers(recurse=False)}) for norm in norms]
    try:
        with evaluating(model):
            given = task or Task()
            drawn = itertools.islice(iterate_batches(filter(partial(_holds_samples, given), data)), batches)
            seen, count = _average(model, norms, drawn, given.forward)
        _require_finite(norms)
    except BaseException:
        _put_back(norms, [buffers for _, buffers in before])
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    idle = [place for place, norm in enumerate(norms) if not seen[norm]]
    _put_back([norms[place] for place in idle], [before[place][1] for place in idle])
    return count


def by_batch(norm: _BatchNorm) -> RemovableHandle:
    """Let a norm use the statistics of each batch that has any, and its running ones for a single value per channel."""
    return norm.register_forward_pre_hook(_by_batch)


def _by_batch(norm: nn.Module, args: Any) -> None:
    norm.training = _values(args[0]) > 1


def _values(x: Tensor) -> int:
    """How many values each channel has in [samples, channels, ...]."""
    return x.numel() // max(1, x.shape[1])


def _average(
    model: nn.Module, norms: list[_BatchNorm], data: Iterable[Any], forward: Forward
) -> tuple[Counter[nn.Module], int]:
    """How many values of a channel each norm has averaged, and how many batches there were."""
    seen, count, place = Counter[nn.Module](), 0, device_of(model)
    called = set[nn.Module]()

    def weigh(norm: Any, args: Any) -> None:
        called.add(norm)
        if norm.training:
            seen[norm] += (values := _values(args[0]))
            norm.momentum = values / seen[norm]

    with ExitStack() as hooks:
        for norm in norms:
            norm.reset_running_stats()
            hooks.callback(by_batch(norm).remove)
            hooks.callback(norm.register_forward_pre_hook(weigh).remove)
        for batch in data:
            forward(model, move_batch(batch, place))
            count += 1
    if blind := [norm for norm in called if not seen[norm]]:
        raise DataError(
            f"each of {count} batches holds a single value in each channel of {len(blind)} batch norms, which has no "
            "variance. Give larger batches."
        )
    return seen, count


def _holds_samples(task: Task, batch: Any) -> bool:
    """Whether a batch may go in: not where inputs have an axis of no samples. Labels may: pictures without boxes."""
    # What is nested without an end, or no batch of the task, is told where it is taken.
    with suppress(DataError):
        return not is_shallow(batch) or all(len(x) for x in tensors_in(task.inputs(batch)) if x.ndim)
    return True


def _require_finite(norms: list[_BatchNorm]) -> None:
    for norm in norms:
        for name in ("running_mean", "running_var"):
            if not bool(torch.isfinite(norm.get_buffer(name)).all()):
                raise DataError(
                    f"recalibration gave a batch norm of {norm.num_features} channels a {name} that is NaN or "
                    "infinite. Check inputs and weights; the statistics of before are back."
                )


def _put_back(norms: list[_BatchNorm], states: list[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, states, strict=True):
        for name, value in buffers.items():
            norm.get_buffer(name).copy_(value)
