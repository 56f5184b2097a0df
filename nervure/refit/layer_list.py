"""The longest list of layers in a model that run one after the other: the branches of networks without blocks."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from nervure.core.tensors import tensors_in
from nervure.graph.models import device_of
from nervure.refit.activations import watchable
from nervure.refit.replay import are_equal, run_instead
from nervure.stats.loaders import Batch

TRIED = 4
"""How many lists are tried, the longest first."""


def layer_list(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """The names of the longest list of layers in a model that run one after the other, on what the one before gave.

    It is tried: with its first layers skipped, the model has to give the same again. Where it does not, somebody looks
    at what is inside, and shorter ones are. Empty where there is none.
    """
    batch = batch.to(device_of(model))
    with watchable(model):
        lists = sorted(_chains(model, batch), key=len, reverse=True)
        return next((names for names in lists[:TRIED] if _works(model, names, batch)), ())


def _works(model: nn.Module, names: Sequence[str], batch: Batch) -> bool:
    """Whether the model gives the same with the first layers skipped, however many of them."""
    layers, given = [model.get_submodule(name) for name in names], list[Tensor]()
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(lambda _, args, out: given.append(out.clone())).remove)
        whole = tensors_in(batch.feed(model))
    try:
        return all(are_equal(whole, _skipping(model, layers[:n], given[n - 1], batch)) for n in _depths(names))
    except Exception:
        # What looks at a layer that was skipped finds something of another shape, and may say so in any way.
        return False


def _skipping(model: nn.Module, layers: Sequence[nn.Module], given: Tensor, batch: Batch) -> list[Tensor]:
    """What the model gives where these layers do not run, and the last of them gives what it gave."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(run_instead(layer, lambda *args, **kwargs: given.clone()))
        return tensors_in(batch.feed(model))


def _depths(names: Sequence[str]) -> list[int]:
    """How many layers are skipped to try it: half, all of the lists before another, all but the last.

    Skips from an encoder to a decoder are only seen where the one is skipped and the other is not.
    """
    owners = [name.rpartition(".")[0] for name in names]
    ends = {n for n, (one, other) in enumerate(itertools.pairwise(owners), 1) if one != other}
    return sorted({*ends, len(names) // 2, len(names) - 1})


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
    whole: list[tuple[str, ...]] = []
    ends: list[tuple[Any, Any]] = []
    for name, listed in lists.items():
        mine = [call for call in calls if any(call[0] is layer for layer in listed)]
        if [layer for layer, _, _ in mine] == list(listed) and _is_chain(mine) and not _share(model, listed):
            whole.append(tuple(f"{name}.{key}" if name else key for key, _ in listed.named_children()))
            ends.append((mine[0][1][0] if mine[0][1] else None, mine[-1][2]))
    yield from _join(whole, ends)


def _join(lists: Sequence[tuple[str, ...]], ends: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, ...]]:
    """Each list, and behind it those that take up what the one before them gave: the stages of a network."""
    for first, names in enumerate(lists):
        joined, last = list(names), first
        while (after := _next(ends, last)) is not None:
            joined, last = [*joined, *lists[after]], after
        yield from {names, tuple(joined)}


def _next(ends: Sequence[tuple[Any, Any]], last: int) -> int | None:
    """The list behind this one that takes what it gave."""
    return next((n for n, (taken, _) in enumerate(ends) if n > last and taken is ends[last][1]), None)


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
