"""What the loss makes of a network's weights, asked of a copy: gradients, and the Hessian times the gradient."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from nervure.errors import ArgumentError, DataError
from nervure.graph.copies import copy_model
from nervure.graph.models import device_of
from nervure.methods.base import View
from nervure.stats.loaders import fixed_seed, leaves_of
from nervure.tasks.batch_forms import map_tensors, move_batch, naming
from nervure.tasks.task import Task, Total, require_scalar
from nervure.training.norms import by_batch

Statistics: TypeAlias = Literal["batch", "running"]


def twin(view: View, statistics: Statistics = "running") -> nn.Module:
    """A copy of the model in evaluation mode; its batch norms use those of the batch where that is asked."""
    if view.model is None:
        raise ArgumentError("this method runs the model: give the view its model.")
    model = copy_model(view.model).eval()
    if statistics == "batch":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                by_batch(module)
    return model


def draw_batches(view: View, batches: int, asker: object) -> list[Any]:
    """The first ``batches`` batches of the view's data, the same for the same seed, on the model's device.

    Raises:
        DataError: there are no data.
    """
    if view.data is None or view.model is None:
        raise DataError(f"{asker!r} needs the gradient of the loss: give data=, batches of (inputs, labels).")
    place = device_of(view.model)
    with fixed_seed(view.seed):
        return [move_batch(batch, place) for batch in islice(leaves_of(view.data), batches)]


def with_temperature(task: Task, temperature: float) -> Task:
    """The task whose loss is that of outputs divided by ``temperature``."""
    return task if temperature == 1 else replace(task, objective=partial(_soft_loss, task, temperature), loss=None)


def slopes(
    model: nn.Module, tensors: Iterable[str], batches: Iterable[Any], task: Task, seed: int = 0
) -> dict[str, Tensor]:
    """Gradient of the mean loss over all that counts with respect to each tensor.

    Raises:
        DataError: the loss is not finite.
    """
    parameters = _gradients_asked(model, tensors)
    mean = _Mean(parameters)
    with fixed_seed(seed):
        for number, batch in enumerate(batches):
            total = _total(task, model, batch, number)
            mean.add(_gradient(total.mean, parameters), total.count)
    return mean.found()


def hessian_times_slopes(
    model: nn.Module, tensors: Iterable[str], batches: Iterable[Any], task: Task, seed: int = 0
) -> dict[str, Tensor]:
    """The Hessian of the mean loss times its gradient, both with respect to ``tensors`` only.

    Raises:
        DataError: the loss is not finite.
    """
    listed = list(batches)
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        first = slopes(model, tensors, listed, task, seed)
        parameters = _gradients_asked(model, first)
        mean = _Mean(parameters)
        with fixed_seed(seed):
            for number, batch in enumerate(listed):
                total = _total(task, model, batch, number)
                found = _gradient(total.mean, parameters, differentiable=True)
                along = torch.stack([(found[name] * first[name]).sum() for name in found]).sum()
                mean.add(_gradient(along, parameters) if along.requires_grad else {}, total.count)
    return mean.found()


def lay_on(model: nn.Module, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set the tensors of a copy to ``weights`` where ``masks`` are True, and to zero elsewhere."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.copy_(weights[name].to(parameter).masked_fill(~mask.to(parameter.device), 0))


def _soft_loss(task: Task, temperature: float, model: nn.Module, batch: Any) -> Tensor:
    output = task.forward(model, batch)
    return task.total_of(map_tensors(lambda x: x / temperature if x.is_floating_point() else x, output), batch).mean


def _total(task: Task, model: nn.Module, batch: Any, number: int) -> Total:
    with naming(f"batch {number}"):
        return task.total(model, batch)


def _gradients_asked(model: nn.Module, tensors: Iterable[str]) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).requires_grad_() for name in tensors}


def _gradient(loss: Tensor, parameters: Mapping[str, Tensor], *, differentiable: bool = False) -> dict[str, Tensor]:
    """Of each parameter; zero where the loss does not depend on it."""
    if not bool(torch.isfinite(require_scalar(loss).detach())):
        raise DataError(f"the loss is {float(loss.detach())}, so weights cannot be scored. Check data and weights.")
    if not loss.requires_grad:
        raise ArgumentError("the loss does not depend on the weights: does the model detach its outputs?")
    found = torch.autograd.grad(loss, list(parameters.values()), create_graph=differentiable, allow_unused=True)
    return {
        name: torch.zeros_like(p) if slope is None else slope
        for (name, p), slope in zip(parameters.items(), found, strict=True)
    }


@final
class _Mean:
    """The mean of slopes, each batch by what counts in it."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._count = 0

    def add(self, found: Mapping[str, Tensor], count: int) -> None:
        for name, slope in found.items():
            self._sums[name].add_(slope.detach(), alpha=count)
        self._count += count

    def found(self) -> dict[str, Tensor]:
        return {name: total / max(self._count, 1) for name, total in self._sums.items()}
