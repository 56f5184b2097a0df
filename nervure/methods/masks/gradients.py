"""What the loss makes of a network's weights, asked of a copy: gradients, and the Hessian times the gradient."""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from nervure.errors import ArgumentError, DataError
from nervure.evaluation.labelled import Batch, call, pairs, require_labels, to_device
from nervure.graph.copies import copy_model
from nervure.graph.models import device_of
from nervure.methods.base import View
from nervure.stats.loaders import fixed_seed
from nervure.training.norms import by_batch
from nervure.training.objectives import Objective, require_scalar

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


def draw_batches(view: View, batches: int, asker: object) -> list[Batch]:
    """The first ``batches`` batches of the view's data, the same for the same seed, on the model's device.

    Raises:
        DataError: there are no data, or a batch is no pair of inputs and labels.
    """
    if view.data is None or view.model is None:
        raise DataError(f"{asker!r} needs the gradient of the loss: give data=, batches of (inputs, labels).")
    place = device_of(view.model)
    with fixed_seed(view.seed):
        return [to_device(batch, place) for batch in islice(pairs(view.data), batches)]


def with_temperature(temperature: float) -> Objective:
    """Mean cross entropy of logits divided by ``temperature``."""
    return partial(_soft_objective, temperature=temperature)


def slopes(
    model: nn.Module, tensors: Iterable[str], batches: Iterable[Batch], objective: Objective, seed: int = 0
) -> dict[str, Tensor]:
    """Gradient of the mean loss over all samples with respect to each tensor.

    Raises:
        DataError: the loss is not finite.
    """
    parameters, listed = _gradients_asked(model, tensors), list(batches)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with fixed_seed(seed):
        for batch in listed:
            found = _gradient(objective(model, batch), parameters)
            _add(total, found, len(batch[1]) / sum(len(b[1]) for b in listed))
    return total


def hessian_times_slopes(
    model: nn.Module, tensors: Iterable[str], batches: Iterable[Batch], objective: Objective, seed: int = 0
) -> dict[str, Tensor]:
    """The Hessian of the mean loss times its gradient, both with respect to ``tensors`` only.

    Raises:
        DataError: the loss is not finite.
    """
    listed = list(batches)
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        first = slopes(model, tensors, listed, objective, seed)
        parameters = _gradients_asked(model, first)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        with fixed_seed(seed):
            for batch in listed:
                found = _gradient(objective(model, batch), parameters, differentiable=True)
                along = torch.stack([(found[name] * first[name]).sum() for name in found]).sum()
                if along.requires_grad:
                    _add(total, _gradient(along, parameters), len(batch[1]) / sum(len(b[1]) for b in listed))
    return total


def lay_on(model: nn.Module, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set the tensors of a copy to ``weights`` where ``masks`` are True, and to zero elsewhere."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.copy_(weights[name].to(parameter).masked_fill(~mask.to(parameter.device), 0))


def _soft_objective(model: nn.Module, batch: Batch, *, temperature: float) -> Tensor:
    inputs, labels = batch
    logits = call(model, inputs).float()
    return F.cross_entropy(logits / temperature, require_labels(labels, logits))


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


def _add(total: Mapping[str, Tensor], found: Mapping[str, Tensor], share: float) -> None:
    for name, slope in found.items():
        total[name].add_(slope.detach(), alpha=share)
