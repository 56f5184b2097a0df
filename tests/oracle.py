"""What a cut model must compute, worked out without nervure's own verification.

Two independent answers: the original with the removed units' *outgoing* weights at zero (:func:`zero_readers`), and the
original in which nothing *makes* the removed units (:func:`zero_writers`; only where zero stays zero on the way).
"""

import copy
import dataclasses
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nervure.graph.types import Graph, Group
from nervure.plan import Cut, Plan

Keeps = dict[str, Tensor]


def call(model: nn.Module, example: Any) -> Any:
    """Run ``model`` on an example (a tensor, a tuple of arguments, a dict of keyword arguments), without gradients."""
    with torch.no_grad():
        if isinstance(example, dict):
            return model(**example)
        return model(*example) if isinstance(example, tuple) else model(example)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def double(value: Any) -> Any:
    """``value`` (a module, a tensor or a nest of tensors) with its floating-point numbers in double precision."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: double(item) for name, item in value.items()}
    return type(value)(double(item) for item in value) if isinstance(value, list | tuple) else value


def difference(one: Any, other: Any) -> float:
    """The largest difference between two outputs, relative to the largest value of ``one`` (at least 1e-3)."""
    firsts, seconds = list(tensors(one)), list(tensors(other))
    assert [t.shape for t in firsts] == [t.shape for t in seconds]
    gaps = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in zip(firsts, seconds, strict=True)]
    assert gaps, "the outputs hold no tensors"
    return max(gaps)


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of ``model`` under each of its names, to be changed in place."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.data for name, tensor in named}


def halved(graph: Graph, *, keep: float = 0.5, seed: int = 0, only: str | None = None) -> Keeps:
    """A random ``keep`` of the units of every prunable group (or of ``only`` one), at least one unit each."""
    keeps = {}
    for group in graph.prunable:
        if only in (None, group.name):
            order = list(range(group.size))
            random.Random(zlib.crc32(group.name.encode()) + seed).shuffle(order)
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[order[: max(1, int(keep * group.size))]] = True
            keeps[group.name] = mask
    return keeps


def plan_of(graph: Graph, keeps: Mapping[str, Tensor]) -> Plan:
    """The plan that cuts each group down to ``keeps``."""
    return Plan(tuple(Cut(name, keep) for name, keep in keeps.items()), graph.fingerprint)


def read_units(group: Group) -> Tensor:
    """Which units of ``group`` some reader consumes. Shape [group.size]."""
    read = torch.zeros(group.size, dtype=torch.bool)
    for slot in group.readers:
        units = torch.tensor(slot.units.array)
        read[units[units >= 0]] = True
    return read


def only_read(graph: Graph, keeps: Mapping[str, Tensor]) -> Keeps:
    """``keeps`` in which every unit without a reader stays: zeroing readers says nothing about those."""
    return {name: keep | ~read_units(graph[name]) for name, keep in keeps.items()}


def zero(model: nn.Module, graph: Graph, keeps: Mapping[str, Tensor], roles: tuple[str, ...]) -> nn.Module:
    """A copy of ``model`` in which the slots of these roles are zero at the units that ``keeps`` removes."""
    model = copy.deepcopy(model)
    values = state(model)
    for name, keep in keeps.items():
        for slot in graph[name].slots:
            if slot.role in roles:
                units = torch.tensor(slot.units.array)
                gone = (units >= 0) & ~keep[units.clamp(min=0)]
                values[slot.tensor].index_fill_(slot.axis, gone.nonzero()[:, 0], 0)
    return model


def zero_readers(model: nn.Module, graph: Graph, keeps: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with the outgoing weights of the removed units at zero."""
    return zero(model, graph, keeps, ("reader",))


def zero_writers(model: nn.Module, graph: Graph, keeps: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with the rows, biases and norms that make the removed units at zero."""
    return zero(model, graph, keeps, ("writer", "rider"))
