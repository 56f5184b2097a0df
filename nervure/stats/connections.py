"""What enters each layer, heard so that the layer's mean output follows for any weights of its kernel.

The mean of a layer's output over its positions is linear in its weights. Averaging what enters, apart for each kernel
position, therefore keeps all that a mask over the weights can change: no network has to run again to try one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nervure.core.check import checked
from nervure.core.collectives import whole
from nervure.errors import ArgumentError, DataError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.stats.unit_probe import UnreadableError

MATRIX, SEQUENCE = 2, 3
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUGH = 0.05
"""Largest relative difference between the mean output and what follows from what was heard, by precision."""


@checked
def response(weight: Tensor, connections: Tensor, bias: Tensor | None = None) -> Tensor:
    """What each child of a layer says, averaged over its positions.

    Args:
        weight: [children, inputs per group, ...kernel], masked or not.
        connections: [samples, inputs, kernel positions] as in ``Stats.connections``.
        bias: [children].

    Returns:
        [samples, children].

    >>> response(torch.tensor([[2.0, 1.0]]), torch.tensor([[[3.0], [4.0]]]))
    tensor([[10.]])
    """
    if connections.ndim != 3 or weight.ndim < 2:
        raise ArgumentError(
            f"response() of weight {tuple(weight.shape)} and connections {tuple(connections.shape)}: give weight "
            "[children, inputs, ...kernel] and connections [samples, inputs, kernel positions]."
        )
    samples, inputs, kernel = connections.shape
    flat = weight.reshape(len(weight), -1).to(connections)
    groups = inputs * kernel // flat.shape[1]
    heard = connections.reshape(samples, groups, -1).transpose(0, 1)
    said = torch.bmm(heard, flat.reshape(groups, len(flat) // groups, -1).transpose(1, 2))
    means = said.transpose(0, 1).reshape(samples, -1)
    return means if bias is None else means + bias.to(means)


Reader: TypeAlias = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Any], tuple[Tensor, int, Tensor | None]]
"""Module, arguments, output -> means of what enters, number of positions, mean output (None: not seen)."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Ear:
    """A weight tensor, the module that works with it, and how to read what enters."""

    tensor: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    read: Reader


def ears(model: nn.Module, graph: Graph) -> tuple[list[Ear], dict[str, str]]:
    """An ear for each module whose weights can be heard, and for all other weights on an edge the reason why not."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    reasons: dict[str, str] = {}
    for owner, module in model.named_modules():
        reasons |= _unreadable(owner, module)
    found = [
        Ear(names[id(weight)], module, weight, bias, reader)
        for module in model.modules()
        for reader, weight, bias in _readable(module)
        if names.get(id(weight), "") not in {"", *reasons}
    ]
    silent = {edge.tensor for edge in graph.edges} - {ear.tensor for ear in found}
    return found, dict.fromkeys(silent, "no convolution or linear module works with it") | reasons


def _readable(module: nn.Module) -> Iterator[tuple[Reader, Tensor, Tensor | None]]:
    match module:
        case _ConvTransposeNd():
            return
        case _ConvNd():
            yield _convolution, module.weight, module.bias
        case nn.Linear():
            yield _linear, module.weight, module.bias
        case nn.MultiheadAttention() if module.in_proj_weight is not None:
            yield _attention, module.in_proj_weight, module.in_proj_bias


def _unreadable(owner: str, module: nn.Module) -> dict[str, str]:
    dot = f"{owner}." if owner else ""
    match module:
        case _ConvTransposeNd():
            return {f"{dot}weight": "what enters a transposed convolution is not read"}
        case nn.MultiheadAttention():
            return {f"{dot}out_proj.weight": "what enters it is seen only inside the attention kernel"}
    return {}


def _convolution(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> tuple[Tensor, int, Tensor]:
    x = _only(args, kwargs)
    if x.ndim != len(module.kernel_size) + 2:
        raise UnreadableError(f"its input of shape {tuple(x.shape)} has no axis of samples")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    # Private, but the only place where torch says what padding="same" comes to.
    x = F.pad(x.float(), module._reversed_padding_repeated_twice, mode=mode)
    positions = output.shape[2:]
    # The windows of a convolution are a product of ranges, so one axis after the other shrinks to kernel positions.
    for axis, size in enumerate(positions, start=2):
        width, stride, step = (values[axis - 2] for values in (module.kernel_size, module.stride, module.dilation))
        if x.shape[axis] <= step * (width - 1) + stride * (size - 1):
            raise UnreadableError(f"its output of shape {tuple(output.shape)} is larger than its padded input")
        x = torch.stack([_range(x, axis, k * step, size, stride).mean(axis) for k in range(width)], axis)
    return x.flatten(2), positions.numel(), output.float().flatten(2).mean(2)


def _range(x: Tensor, axis: int, start: int, size: int, stride: int) -> Tensor:
    stop = start + stride * (size - 1) + 1
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]


def _linear(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> tuple[Tensor, int, Tensor]:
    x = _only(args, kwargs)
    if x.ndim < MATRIX:
        raise UnreadableError(f"its input of shape {tuple(x.shape)} has no axis of samples")
    samples = len(x)
    entered = x.float().reshape(samples, -1, x.shape[-1])
    left = output.float().reshape(samples, -1, output.shape[-1])
    return entered.mean(1)[:, :, None], entered.shape[1], left.mean(1)


def _attention(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, int, Tensor | None]:
    query, key, value = (*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args[:3]) :]))
    if not (query is key is value) or query.ndim != SEQUENCE:
        raise UnreadableError("queries, keys and values come from different tensors, but one weight reads them all")
    x = (query if module.batch_first else query.transpose(0, 1)).float()
    return x.mean(1)[:, :, None], x.shape[1], None


def _only(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    x: Tensor
    (x,) = (*args, *kwargs.values())
    return x


@final
class Listener:
    """Collects what enters the layers, batch by batch.

    Attributes:
        failed: weight tensors that could not be read, and why.
    """

    def __init__(self, ears: list[Ear]) -> None:
        self.failed: dict[str, str] = {}
        self._ears = ears
        self._sums: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}
        self._heard: dict[str, list[Tensor]] = {ear.tensor: [] for ear in ears}
        self._checked: set[int] = set()
        self._samples = self._passes = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks are on the modules inside the block, and gone after it."""
        handles = [ear.module.register_forward_hook(self._hook(ear), with_kwargs=True) for ear in self._ears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start(self, samples: int) -> None:
        """A batch of so many samples comes."""
        self._samples = samples
        self._sums, self._positions = {}, {}

    def finish(self, loss: Tensor | None = None) -> None:
        """The batch went through, whatever its loss; raises :class:`DataError` where what entered is not finite."""
        self._passes += 1
        for name, total in self._sums.items():
            means = (total / self._positions[name]).cpu()
            if not bool(torch.isfinite(means).all()):
                raise DataError(f"what enters {name!r} is NaN or infinite. The model or the data are broken.")
            self._heard[name].append(means)

    @property
    def bytes_per_sample(self) -> int:
        """What one sample takes in memory; known after the first batch."""
        return sum(4 * parts[0][0].numel() for parts in self._heard.values() if parts)

    def connections(self) -> dict[str, Tensor]:
        """Per weight tensor [samples, inputs, kernel positions]; the parts are given up, so this works once."""
        for name, parts in self._heard.items():
            if len(parts) < self._passes:
                self.failed.setdefault(name, "its module did not run for every batch")
        return {name: _concat(parts) for name, parts in self._heard.items() if name not in self.failed}

    def _hook(self, ear: Ear) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if ear.tensor in self.failed:
                return
            try:
                with torch.no_grad():
                    self._hear(ear, *ear.read(module, args, kwargs, output))
            except UnreadableError as reason:
                self.failed[ear.tensor] = str(reason)
                self._sums.pop(ear.tensor, None)
                self._heard[ear.tensor].clear()

        return hook

    def _hear(self, ear: Ear, means: Tensor, positions: int, said: Tensor | None) -> None:
        if len(means) != self._samples:
            raise UnreadableError(f"its input has {len(means)} rows for {self._samples} samples")
        if said is not None and id(ear) not in self._checked:
            _require_same(ear, means, said)
            self._checked.add(id(ear))
        before = self._sums.get(ear.tensor)
        if before is not None and before.shape != means.shape:
            raise UnreadableError("its modules read it in different ways")
        self._sums[ear.tensor] = means * positions if before is None else before + means * positions
        self._positions[ear.tensor] = self._positions.get(ear.tensor, 0) + positions


def _require_same(ear: Ear, means: Tensor, said: Tensor) -> None:
    """A module may do more than its class does: standardise its weights, pad by itself, scale what it gives."""
    expected = response(whole(ear.weight.detach()), means, None if ear.bias is None else whole(ear.bias.detach()))
    difference = float((expected - said).abs().max() / said.abs().max().clamp(min=1e-12))
    if said.isfinite().all() and not difference <= TOLERANCE.get(ear.weight.dtype, ROUGH):
        raise UnreadableError(
            f"its output is not what its weight makes of its input (relative difference {difference:.1e})"
        )


def _concat(parts: list[Tensor]) -> Tensor:
    whole = torch.cat(parts)
    # The network's evidence can be large: it must not be in memory twice.
    parts.clear()
    return whole
