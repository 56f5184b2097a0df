"""Dropping blocks: the modules of a branch step aside, its output becomes zero (nothing, where it was concatenated).

Whole layers of a list are taken out of it, so that the model is the one that its constructor makes with fewer layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from nervure.core.tensors import tensors_in
from nervure.graph.layer_counts import shorten
from nervure.graph.types import NOT_CUT, Block, Graph, ZeroStub
from nervure.plan import Plan


class Pass(nn.Module):
    """Returns its first argument, whatever else it is given; in a tuple, before None for each of ``extras``."""

    def __init__(self, extras: int = -1) -> None:
        super().__init__()
        self.extras = extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return first if self.extras < 0 else (first, *[None] * self.extras)


class Silent(nn.Module):
    """Returns zeros of the shape that the module it stands for returned; see :class:`nervure.graph.types.ZeroStub`."""

    def __init__(self, silence: ZeroStub) -> None:
        super().__init__()
        self.entered, self.left = list(silence.entered), list(silence.left)
        self.live, self.own, self.extras = silence.live, silence.own, silence.extras

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros."""
        x: Tensor = tensors_in((args, kwargs))[0]
        sizes = [self._size(axis, x) for axis in range(len(self.left))]
        zeros = x.new_zeros(sizes)
        return zeros if self.extras < 0 else (zeros, *[None] * self.extras)

    def _size(self, axis: int, x: Tensor) -> int:
        if axis in self.live:
            return x.shape[axis]
        if axis in self.own or axis >= x.dim() or not self.entered[axis]:
            return self.left[axis]
        return x.shape[axis] * self.left[axis] // self.entered[axis]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        return f"{tuple(self.entered)} -> {tuple(self.left)}"


def drop(model: nn.Module, graph: Graph, block: Block, keeps: Mapping[str, np.ndarray]) -> None:
    """Take ``block`` out of ``model``, whose groups were cut to ``keeps``, in place."""
    silences = {silence.module: _after(silence, graph, keeps) for silence in block.silences}
    for name in block.modules:
        parent, _, key = name.rpartition(".")
        old = model.get_submodule(name)
        new = Silent(silences[name]) if name in silences else Pass(block.extras)
        _take_settings(new, old)
        owner = model.get_submodule(parent)
        setattr(owner, key, new.train(old.training))
        _leave_fused_path(owner, old, new)
    for name in block.aliases:
        parent, _, key = name.rpartition(".")
        left, old = Settings(), model.get_submodule(name)
        _take_settings(left, old)
        setattr(model.get_submodule(parent), key, left)


class Settings(nn.Module):
    """Stands for a part of a module that left: holds what code around it may read, and runs nothing."""


def _take_settings(new: nn.Module, old: nn.Module) -> None:
    """Code around a module may read plain settings off it and its parts (the kind of its attention, say): they stay.

    So do types and devices of parameters, which are empty from now on.
    """
    for key, value in vars(old).items():
        if not key.startswith("_") and key not in vars(new) and not isinstance(value, Tensor | nn.Module):
            vars(new)[key] = value
    for key, parameter in old.named_parameters(recurse=False):
        new.register_buffer(key, parameter.detach().new_empty(0), persistent=False)
    for key, part in old.named_children():
        new.add_module(key, Settings())
        _take_settings(new.get_submodule(key), part)


def _leave_fused_path(owner: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """PyTorch's encoder layer has a fused path that reads weights off its parts; it must run them instead."""
    if isinstance(owner, nn.TransformerEncoderLayer):
        owner.activation_relu_or_gelu = 0
    if isinstance(old, nn.MultiheadAttention):
        # What the layer takes for "attention without biases", which has no fused path.
        new.register_buffer("in_proj_bias", None, persistent=False)


def _after(silence: ZeroStub, graph: Graph, keeps: Mapping[str, np.ndarray]) -> ZeroStub:
    left = list(silence.left)
    for axis, number in zip(silence.own, silence.axes, strict=True):
        if number != NOT_CUT:
            left[axis] = int(graph.axes[number].kept(keeps).sum())
    return replace(silence, left=tuple(left))


# -- lists of layers -----------------------------------------------------------------------------------------------


def leaving(graph: Graph, plan: Plan) -> dict[str, set[int]]:
    """For each list that loses whole elements, and stays itself, their numbers; lists inside of others first.

    An element that a link goes around stays in its place.
    """
    found: dict[str, set[int]] = {}
    elements = {graph.block(d.block).element for d in plan.drops} - {"", *(link.route.joins for link in plan.links)}
    for element in sorted(elements):
        name, _, number = element.rpartition(".")
        if not any(f"{name}.".startswith(f"{outer}.") for outer in elements):
            found.setdefault(name, set()).add(int(number))
    return {name: found[name] for name in sorted(found, key=len, reverse=True)}


def name_after(graph: Graph, plan: Plan) -> Callable[[str], str | None]:
    """What modules and tensors of the model are called once the elements that ``plan`` drops have left their lists.

    The function that is returned takes a name of the model and returns that of the edited one, None where it has left.
    """
    lists = leaving(graph, plan)

    def rename(name: str) -> str | None:
        for parent, gone in lists.items():
            number, dot, rest = name.removeprefix(f"{parent}.").partition(".")
            if not name.startswith(f"{parent}.") or not number.isdigit():
                continue
            if int(number) in gone:
                return None
            name = f"{parent}.{int(number) - sum(g < int(number) for g in gone)}{dot}{rest}"
        return name

    return rename


def take_out(model: nn.Module, graph: Graph, plan: Plan) -> None:
    """Take the layers that ``plan`` drops as a whole out of their lists, in place.

    Those behind are renumbered: in the list, where they keep their own number, and where the model or its config
    counts them.
    """
    lists = leaving(graph, plan)
    shorten(model, lists, {name for block in graph.blocks for name in _lists_of(block)})
    for name, gone in lists.items():
        elements = model.get_submodule(name)
        assert isinstance(elements, nn.ModuleList | nn.Sequential)
        numbered = _numbered_attributes(elements)
        for number in sorted(gone, reverse=True):
            del elements[number]
        for number, element in enumerate(elements):
            for holder, path, key in _whole_numbers(element):
                if (path, key) in numbered:
                    holder[key] = number


def _lists_of(block: Block) -> Iterable[str]:
    return [block.element.rpartition(".")[0]] if block.element else []


def _whole_numbers(element: nn.Module) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Where the modules of an element hold whole numbers: attributes, the module's name in the element, key."""
    for path, module in element.named_modules():
        for key, value in vars(module).items():
            if type(value) is int and not key.startswith("_"):
                yield vars(module), path, key


def _numbered_attributes(elements: Iterable[nn.Module]) -> set[tuple[str, str]]:
    """Attributes, by module and key, that say of every element that has them which one it is.

    Where a single one has that module, the key must be known from others.
    """
    values: dict[tuple[str, str], list[bool]] = {}
    for number, element in enumerate(elements):
        for holder, path, key in _whole_numbers(element):
            values.setdefault((path, key), []).append(holder[key] == number)
    right = {place: len(found) for place, found in values.items() if all(found)}
    known = {key for (_, key), count in right.items() if count > 1}
    return {(path, key) for path, key in right if key in known}
