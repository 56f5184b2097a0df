"""How loud the inputs of each weight are: their Euclidean norm over samples and positions."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nervure.errors import DataError
from nervure.evaluation.batches import device_of
from nervure.graph.tape import named_tensors
from nervure.methods.slopes import seeded
from nervure.stats.batches import batches


def input_norms(
    model: nn.Module, tensors: Iterable[str], data: Iterable[Any], samples: int, seed: int = 0
) -> dict[str, Tensor]:
    """Norm of what each weight is given, over samples and positions.

    Args:
        model: a model in evaluation mode; hooks are on it while it is listened to.
        tensors: the weights of convolutions, linear layers and attention projections.
        data: batches of inputs, or of (inputs, labels).
        samples: how many samples at most.
        seed: of torch's random numbers while the data are drawn.

    Returns:
        [outputs, inputs of one output] for each tensor that was heard; outputs may be 1, where all hear the same.

    Raises:
        DataError: the data are empty or malformed, or what enters is not finite.
    """
    wanted, names = set(tensors), {id(tensor): name for name, tensor in named_tensors(model).items()}
    squares: dict[str, Tensor] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for weight, heard in _heard(module, args, kwargs):
            name = names.get(id(weight), "")
            if name in wanted:
                squares[name] = squares.get(name, 0) + heard.double().cpu()

    device = device_of(model)
    with ExitStack() as stack, torch.no_grad(), seeded(seed):
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for batch in batches(data, samples, labelled=False):
            batch.to(device).feed(model)
    for name, values in squares.items():
        if not bool(torch.isfinite(values).all()):
            raise DataError(f"what enters {name!r} is NaN or infinite. The model or the data are broken.")
    return {name: values.sqrt() for name, values in squares.items()}


def _heard(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Each weight of the module with the squares that enter it, [outputs or 1, inputs]."""
    match module:
        case nn.MultiheadAttention():
            three = (*args[:3], *(kwargs[k] for k in ("query", "key", "value")[len(args[:3]) :]))
            return _attended(module, [_squares(x, -1) for x in three])
        case _ConvTransposeNd():
            return [(module.weight, _squares(_first(args, kwargs), 1)[None])]
        case _ConvNd():
            rows = _squares(_first(args, kwargs), 1).reshape(module.groups, -1)
            return [(module.weight, rows.repeat_interleave(module.out_channels // module.groups, 0))]
        case nn.Linear():
            return [(module.weight, _squares(_first(args, kwargs), -1)[None])]
    return []


def _attended(module: nn.MultiheadAttention, three: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if module.in_proj_weight is not None:
        return [(module.in_proj_weight, torch.cat([x.expand(module.embed_dim, -1) for x in three]))]
    apart = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return [(weight, x[None]) for weight, x in zip(apart, three, strict=True) if weight is not None]


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    x: Tensor = next(iter((*args, *kwargs.values())))
    return x


def _squares(x: Tensor, axis: int) -> Tensor:
    """Sums of squares along all other axes. Inputs of a convolution without samples have channels first."""
    return x.detach().float().square().movedim(axis, -1).reshape(-1, x.shape[axis]).sum(0)
