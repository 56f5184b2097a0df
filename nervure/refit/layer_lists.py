"""Lists of layers that run one after the other: each reads what the one before it gives."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.tensors import tensors_in
from nervure.graph.models import device_of
from nervure.refit.activations import watchable
from nervure.refit.replay import replaced_forward
from nervure.stats.loaders import Batch


def list_of_layers(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """The names of the longest list of layers in a model that run one after the other; none where there is no such.

    It is tried: where all but the last give what that gives, the model has to give the same again.
    """
    batch = batch.to(device_of(model))
    with watchable(model):
        names = max(_chains(model, batch), key=len, default=())
        return names if names and _is_chain_alone(model, names, batch) else ()


def _is_chain_alone(model: nn.Module, names: Sequence[str], batch: Batch) -> bool:
    """Whether nothing but the next layer looks at what a layer gives."""
    *skipped, last = (model.get_submodule(name) for name in names[:-1])
    given: list[Tensor] = []
    with ExitStack() as stack:
        stack.callback(last.register_forward_hook(lambda *call: given.append(call[2].detach().clone())).remove)
        whole = tensors_in(batch.feed(model))
    with ExitStack() as stack:
        for layer in skipped:
            stack.enter_context(replaced_forward(layer, lambda x, *args, **kwargs: x))
        stack.enter_context(replaced_forward(last, lambda *args, **kwargs: given[0].clone()))
        short = tensors_in(batch.feed(model))
    return len(whole) == len(short) and all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))


def _chains(model: nn.Module, batch: Batch) -> Iterator[tuple[str, ...]]:
    """Lists of two layers or more that each run once, in order, from tensor to tensor, and share no parameters."""
    lists = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1
    }
    calls: list[tuple[nn.Module, Any, Any]] = []
    with ExitStack() as stack:
        for layer in {id(layer): layer for listed in lists.values() for layer in listed}.values():
            handle = layer.register_forward_hook(
                lambda *call: calls.append((call[0], call[1], call[3])), with_kwargs=True
            )
            stack.callback(handle.remove)
        batch.feed(model)
    for name, listed in lists.items():
        mine = [call for call in calls if any(call[0] is layer for layer in listed)]
        if [layer for layer, _, _ in mine] == list(listed) and _is_chain(mine) and not _share(model, listed):
            yield tuple(f"{name}.{key}" if name else key for key, _ in listed.named_children())


def _is_chain(calls: Sequence[tuple[nn.Module, Any, Any]]) -> bool:
    """Whether each layer gives a tensor, and takes first what the one before it gave."""
    follows = all(args and args[0] is given for (_, _, given), (_, args, _) in itertools.pairwise(calls))
    return follows and all(isinstance(given, Tensor) for _, _, given in calls)


def _share(model: nn.Module, listed: Iterable[nn.Module]) -> bool:
    """Whether layers share a parameter with each other or with anything else."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return any(owners[id(p)] > 1 for layer in listed for p in layer.parameters())
