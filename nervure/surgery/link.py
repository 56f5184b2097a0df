"""Links: a sparse skip connection from what one module is given, or puts out, to what another puts out.

The two modules keep their class name, parameters and places: each becomes a subclass of itself that hands its input or
its output to a shared signal, or adds the linked signal to its output. Copies of a model keep pairs together.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure.errors import PlanError
from nervure.graph.sizes import submodule
from nervure.graph.types import Axis, Graph, Units
from nervure.plan import Link, Plan
from nervure.surgery.signal import Signal

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "hardtanh": F.relu6,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
}
"""Non-linearities by the names that operators have (bounded ones are those from 0 to 6)."""

MATRIX = 2
"""Axes of a weight that has no kernel."""


@dataclass(eq=False)
class Ends:
    """The links that begin and end at a module: what it hands on, and what it adds, by the name of the wire."""

    given: list[Signal] = field(default_factory=list)
    said: list[Signal] = field(default_factory=list)
    added: list[tuple[str, Signal]] = field(default_factory=list)


class Wire(nn.Module):
    """The way of a link: a linear map or a convolution without bias, then norm, non-linearity and gate as asked.

    Attributes:
        map: its weight is [target units, source units, *kernel], zero where the link keeps nothing. Whoever trains it
            holds these zeros like those of any mask (``Pruned.masks`` has them). Of a link by the identity it is a
            buffer of ones, which nobody trains.
    """

    map: nn.Linear | nn.modules.conv._ConvNd

    def __init__(self, link: Link, keep: Tensor, like: Tensor) -> None:
        super().__init__()
        route, (outputs, inputs, *kernel) = link.route, keep.shape
        place: Mapping[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.map = _map(inputs, outputs, tuple(kernel), route.stride or (1,) * len(kernel), place)
        drawn = (
            torch.randn(keep.shape, dtype=torch.float32, generator=torch.Generator().manual_seed(route.seed))
            * route.std
        )
        with torch.no_grad():
            self.map.weight.copy_(drawn.masked_fill(~keep, 0))
        if route.identity:
            del self.map.weight
            self.map.register_buffer("weight", keep.to(like.device, like.dtype))
        self.norm = _NORMS[max(1, len(kernel))](outputs, affine=False, **place) if route.norm else None
        self.gate = None if route.gate is None else nn.Parameter(torch.full((), route.gate, **place))
        self.activation = route.activation

    def forward(self, signal: Tensor, target: Tensor) -> Tensor:
        """What arrives at ``target`` from ``signal``, both [batch, units, ...], or [..., units] for a linear map."""
        x: Tensor = self.map(signal)
        if not isinstance(self.map, nn.Linear) and x.shape[2:] != target.shape[2:]:
            x = _POOLS[x.dim() - 2](x, list(target.shape[2:]))
        if self.norm is not None:
            x = self.norm(x) if not isinstance(self.map, nn.Linear) else self.norm(x.flatten(0, -2)).reshape(x.shape)
        if self.activation:
            x = ACTIVATIONS[self.activation](x)
        return x if self.gate is None else x * self.gate


def _map(
    inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...], place: Mapping[str, Any]
) -> nn.Linear | nn.modules.conv._ConvNd:
    # Made empty: drawing weights here would use up the user's random numbers.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")
        if not kernel:
            flat: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, **place)
            return flat
        pads = tuple((side - 1) // 2 for side in kernel)
        found: nn.modules.conv._ConvNd = nn.utils.skip_init(
            _CONVOLUTIONS[len(kernel)], inputs, outputs, kernel, stride, pads, bias=False, **place
        )
        return found


_CONVOLUTIONS: Mapping[int, type[nn.modules.conv._ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@cache
def _link_class(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ends: Ends = self.__dict__["_ends"]
        for signal in ends.given:
            signal.give(args[0] if args else next(iter(kwargs.values())))
        out = kind.forward(self, *args, **kwargs)
        for name, signal in ends.added:
            value = signal.take(out, training=self.training)
            if value is not None:
                out = out + getattr(self, name)(value, out)
        for signal in ends.said:
            signal.give(out)
        return out

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        # Classes that are made while running cannot be pickled by name: they are made again.
        reduced: Any = kind.__reduce_ex__(self, protocol)
        make, (_, *args), *rest = reduced
        return (_made_again, (make, kind, *args), *rest)

    members = {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__, "_is_linked": True}
    return type(kind.__name__, (kind,), members)


def _made_again(make: Callable[..., nn.Module], kind: Any, *args: Any) -> nn.Module:
    return make(_link_class(kind), *args)


def link(model: nn.Module, graph: Graph, edit: Link, name: str, keep: Tensor) -> None:
    """Insert the connection of ``edit`` into ``model`` in place, as the module ``name`` with mask ``keep``.

    Both are as in :func:`wires_of`.

    Raises:
        PlanError: its ends are not there.
    """
    first, second = _module(model, edit, _source(graph, edit)), _module(model, edit, _target(graph, edit))
    signal, like = Signal(), next(model.parameters())
    begin, end = _become(first), _become(second)
    (begin.given if edit.route.reads else begin.said).append(signal)
    key = name.rpartition(".")[2]
    setattr(second, key, Wire(edit, keep, like).train(model.training))
    end.added.append((key, signal))


def wire_names(graph: Graph, plan: Plan) -> list[str]:
    """What the wire of each link of ``plan`` is called in the edited model, e.g. ``"fc3.link_0"``."""
    names: list[str] = []
    for edit in plan.links:
        stem = f"{_target(graph, edit)}.link_"
        there = {tensor.removeprefix(stem).partition(".")[0] for tensor in graph.tensors if tensor.startswith(stem)}
        names.append(f"{stem}{len(there) + sum(name.startswith(stem) for name in names)}")
    return names


def wire_masks(graph: Graph, plan: Plan, keeps: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The masks of the links of ``plan`` by the name of their weight, once groups keep these units.

    Links by the identity have no weights to mask.
    """
    wires = zip(plan.links, wires_of(graph, plan, keeps).items(), strict=True)
    return {f"{name}.map.weight": keep for edit, (name, keep) in wires if not edit.route.identity}


def wires_of(graph: Graph, plan: Plan, keeps: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The masks of the links of ``plan`` by the name of their wire; raises PlanError where a link cannot be made."""
    names = wire_names(graph, plan)
    return {name: link_mask(graph, edit, keeps) for name, edit in zip(names, plan.links, strict=True)}


def link_mask(graph: Graph, edit: Link, keeps: Mapping[str, np.ndarray]) -> Tensor:
    """``edit.keep`` in the shape of the wire's weight, without the units that leave; PlanError where it cannot fit."""
    keep = edit.keep.tensor()
    ends = _ends(graph, edit)
    wanted = tuple(keep.shape[i] if axis is None else axis.size for i, axis in enumerate(ends))
    if keep.ndim < MATRIX or keep.shape[:2] != wanted:
        raise PlanError(f"{_format_edit(edit)}: keep has shape {tuple(keep.shape)}, the ends {wanted}.")
    for number, axis in enumerate(ends):
        if axis is None and keeps:
            raise PlanError(
                f"{_format_edit(edit)} ends at a module without weights, where no cut can follow: link later."
            )
        if axis is not None:
            keep = keep.index_select(number, torch.from_numpy(np.flatnonzero(axis.kept(keeps))))
    if not edit.route.joins and keep.ndim == MATRIX:
        # Between whole groups a matrix says which maps are joined: by kernels of one position.
        keep = keep.reshape(*keep.shape, *[1] * (len(graph.tensors.get(f"{_target(graph, edit)}.weight", ())) - MATRIX))
    _require_route(edit, tuple(keep.shape[MATRIX:]))
    return keep


def _require_route(edit: Link, kernel: tuple[int, ...]) -> None:
    stride, activation = edit.route.stride, edit.route.activation
    if (kernel and len(kernel) not in _CONVOLUTIONS) or 0 in kernel:
        raise PlanError(f"{_format_edit(edit)}: there is no convolution with a kernel of {kernel}.")
    if stride and len(stride) != len(kernel):
        raise PlanError(f"{_format_edit(edit)}: stride {stride} is not one step for each side of a kernel of {kernel}.")
    if activation not in ("", *ACTIVATIONS):
        raise PlanError(f"{_format_edit(edit)}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}.")


def linked_groups(graph: Graph, edit: Link) -> set[str]:
    """The groups whose units enter a link or are added to."""
    ends = _ends(graph, edit)
    named = {name for name in (edit.source, edit.target) if name}
    return named | {group for axis in ends if axis is not None for group, _ in axis.parts}


@contextmanager
def silence_links(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """The wires of these names add nothing while this lasts."""
    wanted = set(names)
    found = [(name, m.__dict__["_ends"]) for name, m in model.named_modules() if "_ends" in m.__dict__]
    before = [ends.added for _, ends in found]
    try:
        for name, ends in found:
            ends.added = [(key, signal) for key, signal in ends.added if f"{name}.{key}" not in wanted]
        yield
    finally:
        for (_, ends), added in zip(found, before, strict=True):
            ends.added = added


def _format_edit(edit: Link) -> str:
    return f"link {edit.route.reads or edit.source!r} -> {edit.route.joins or edit.target!r}"


def _source(graph: Graph, edit: Link) -> str:
    return edit.route.reads or _writer(graph, edit.source)


def _target(graph: Graph, edit: Link) -> str:
    return edit.route.joins or _writer(graph, edit.target)


def _writer(graph: Graph, name: str) -> str:
    writers = graph[name].writers
    if not writers:
        raise PlanError(f"group {name!r} is written by no layer, so no link can start or end there.")
    return writers[0].tensor.rpartition(".")[0]


def _module(model: nn.Module, edit: Link, name: str) -> nn.Module:
    module = submodule(model, name)
    if module is None:
        raise PlanError(f"{_format_edit(edit)}: the model has no module {name!r}.")
    return module


def _ends(graph: Graph, edit: Link) -> tuple[Axis | None, Axis | None]:
    """What lies along the two axes of a link's weight; None at a module whose own weight does not tell."""
    size = (*edit.keep.shape, 0, 0)
    return (
        _axis(graph, edit.target, edit.route.joins, 0, size[0]),
        _axis(graph, edit.source, edit.route.reads, 1, size[1]),
    )


def _axis(graph: Graph, group: str, module: str, side: int, size: int) -> Axis | None:
    if not module:
        return Axis(graph[group].size, ((group, Units(range(graph[group].size))),))
    # Norms have their units along their only axis, grouped convolutions those of one group.
    axis = graph.axis_of(module, side)
    return axis if axis is not None and axis.size == size else None


def _become(module: nn.Module) -> Ends:
    if not getattr(type(module), "_is_linked", False):
        kind: Any = type(module)
        module.__class__ = _link_class(kind)
        module.__dict__["_ends"] = Ends()
    ends: Ends = module.__dict__["_ends"]
    return ends
