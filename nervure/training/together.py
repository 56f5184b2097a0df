"""What several processes that train one model do together: the same weights, averaged gradients, summed losses."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nervure.core import collectives
from nervure.core.check import checked
from nervure.core.collectives import is_sharded
from nervure.errors import ArgumentError
from nervure.graph.models import is_weightless
from nervure.stats.shares import Share, distributed_sampler


def averages_itself(model: nn.Module) -> bool:
    """Whether a wrapper of torch averages the gradients of the model over processes."""
    return any(isinstance(module, DistributedDataParallel) for module in model.modules()) or any(
        map(is_sharded, model.parameters())
    )


@checked
def send_model(model: nn.Module) -> None:
    """Give all processes of a group the weights and buffers of the first one, in place; all of them call it.

    Args:
        model: of the same names and sizes in all processes.

    Raises:
        ArgumentError: it is sharded over processes, or on the meta device.
    """
    collectives.require_unsharded(model.parameters(), "send_model")
    if is_weightless(model):
        raise ArgumentError("the model has tensors without numbers; give it memory before: model.to_empty(device=...).")
    collectives.send_first([*model.parameters(), *model.buffers()])


def average_buffers(model: nn.Module) -> None:
    """The mean over processes of what norms have counted, each on its share."""
    if not collectives.several():
        return
    real = {name: b for name, b in model.named_buffers() if b.is_floating_point() and not is_sharded(b)}
    with torch.no_grad():
        for name, mean in collectives.add_up(real, "mean").items():
            real[name].copy_(mean)


def average_gradients(parameters: Iterable[nn.Parameter], loss: Tensor, weight: int) -> Tensor:
    """The gradients of all processes' batches as one, in place; and its loss.

    Args:
        parameters: all that can be trained; the same in all processes.
        loss: mean loss of this process's batch.
        weight: over how many the mean is.

    Raises:
        ArgumentError: a gradient is sparse.
    """
    trained = [p for p in parameters if p.requires_grad]
    given = [0.0 if p.grad is None else 1.0 for p in trained]
    told = torch.tensor([float(weight), 0.0, *given], dtype=torch.float64, device=loss.device)
    told[1] = loss.detach().double() * weight
    told = collectives.add_up_one(told)
    counted = told[0].clamp(min=1)
    by_kind: defaultdict[Any, list[nn.Parameter]] = defaultdict(list)
    for parameter in trained:
        by_kind[parameter.dtype, parameter.device].append(parameter)
    for alike in by_kind.values():
        _average(alike, weight / counted)
    if 0.0 in given:
        for parameter, mine, everywhere in zip(trained, given, told[2:].tolist(), strict=True):
            if not mine and not everywhere:
                # As one process would have it: an optimizer passes over what has no gradient.
                parameter.grad = None
    return told[1] / counted


def _average(parameters: list[nn.Parameter], share: Tensor) -> None:
    """The gradients of parameters of one dtype and device in one message; a share of them is this process's."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.is_sparse:
            raise ArgumentError(
                "a parameter has a sparse gradient, which processes cannot average. Make its embedding with "
                "sparse=False."
            )
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    flat = collectives.add_up_one(flat * share.to(flat))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def begin_epoch(data: Any, epoch: int) -> None:
    """Tell data that shuffle by the number of the epoch which one begins."""
    inner = data.data if isinstance(data, Share) else data
    if hasattr(inner, "epoch"):
        # Else the order would follow from what the data were used for before, and from where a run was stopped.
        inner.epoch = epoch
    if (sampler := distributed_sampler(inner)) is not None:
        sampler.set_epoch(epoch)
