"""Batch-norm statistics measured anew: after a cut, the old ones describe activations that no longer exist."""

import itertools

import torch
from torch import Tensor, nn

from nervure.check import require_positive
from nervure.errors import DataError
from nervure.evaluation.batches import Data, call_only, device_of, pairs, to_device
from nervure.graph.example import evaluating


def recalibrate(model: nn.Module, data: Data, batches: int = 100) -> int:
    """Replace the running statistics of every batch norm by their plain average over data; no weight changes.

    Only the batch norms see training mode: dropout stays off. Modes and momenta come back. Where anything fails, the
    statistics of before come back too.

    Args:
        model: changed in place; a model without batch norms stays as it is.
        data: iterable of (inputs, labels) batches; the labels are not looked at.
        batches: how many batches at most.

    Returns:
        How many batches were averaged; 0 for a model without batch norms.

    Raises:
        DataError: if data are empty or give statistics that are NaN or infinite.
    """
    require_positive(batches, "batches")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    before = [(norm.momentum, {name: b.clone() for name, b in norm.named_buffers(recurse=False)}) for norm in norms]
    try:
        with evaluating(model):
            count = _average(model, norms, data, batches)
        _require_finite(norms)
    except BaseException:
        _put_back(norms, [buffers for _, buffers in before])
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    return count


def _average(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], data: Data, batches: int) -> int:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
        norm.train()
    count, place = 0, device_of(model)
    for inputs, _ in itertools.islice(pairs(data), batches):
        call_only(model, to_device(inputs, place))
        count += 1
    return count


def _require_finite(norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
    for norm in norms:
        for name in ("running_mean", "running_var"):
            if not bool(torch.isfinite(norm.get_buffer(name)).all()):
                raise DataError(
                    f"recalibration gave a batch norm of {norm.num_features} channels a {name} that is NaN or "
                    "infinite. Check inputs and weights; the statistics of before are back."
                )


def _put_back(norms: list[nn.modules.batchnorm._BatchNorm], states: list[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, states, strict=True):
        for name, value in buffers.items():
            norm.get_buffer(name).copy_(value)
