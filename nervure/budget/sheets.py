"""The weights that can be pruned one by one, each laid out as outputs by inputs by kernel."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nervure.check import nearest
from nervure.errors import ArgumentError, BudgetError
from nervure.graph.tape import named_tensors
from nervure.graph.trace import matches
from nervure.graph.types import Graph

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """One weight tensor of a convolution, a linear layer or an attention projection.

    Attributes:
        tensor: its name.
        module: the module that works with it.
        transposed: whether its inputs come first, as in transposed convolutions.
    """

    tensor: str
    module: nn.Module
    transposed: bool = False

    def laid(self, values: Tensor) -> Tensor:
        """``values`` of the tensor's shape as [outputs, inputs of one output, kernel positions]."""
        rows = values.transpose(0, 1) if self.transposed else values
        return rows.reshape(*rows.shape[:2], -1)

    def back(self, laid: Tensor, shape: Iterable[int]) -> Tensor:
        """What :meth:`laid` made of a tensor of that shape, in that shape again."""
        first, second, *kernel = shape
        if self.transposed:
            return laid.reshape(second, first, *kernel).transpose(0, 1).contiguous()
        return laid.reshape(first, second, *kernel)


def sheets(
    model: nn.Module, graph: Graph, dense: Iterable[str] = (), ignored: Container[str] = ()
) -> tuple[Sheet, ...]:
    """The tensors whose weights can be pruned one by one, in running order.

    Those are the weights of convolutions and linear layers and the projections of attention. Left alone are
    embeddings (also where a linear layer shares their weight), norms, biases, grouped transposed convolutions, and
    weights that are computed from others (parametrisations).

    Args:
        model: the model.
        graph: its graph.
        dense: names of layers or of their tensors, or patterns of those, that stay as they are.
        ignored: names of tensors that must not change.

    Raises:
        ArgumentError: a pattern in ``dense`` fits nothing.
        BudgetError: there is no such tensor.
    """
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    parameters = set(graph.parameters)
    found: dict[str, Sheet] = {}
    for module in model.modules():
        for weight, transposed in _weights(module):
            name = names.get(id(weight), "")
            if name in parameters and name not in ignored and id(weight) not in shared:
                found.setdefault(name, Sheet(name, module, transposed))
    for pattern in dense:
        fitting = [name for name in found if matches(name, pattern)]
        if not fitting:
            raise ArgumentError(f"dense={pattern!r} fits no layer that could be pruned.{nearest(pattern, found)}")
        for name in fitting:
            del found[name]
    if not found:
        raise BudgetError("there are no weights of convolutions or linear layers to prune; they all stay dense.")
    order = {work.layer: number for number, work in reversed(list(enumerate(graph.work)))}
    return tuple(sorted(found.values(), key=lambda sheet: order.get(sheet.tensor.rpartition(".")[0], len(order))))


def _weights(module: nn.Module) -> list[tuple[Tensor, bool]]:
    match module:
        case _ConvTransposeNd():
            return [(module.weight, True)] if module.groups == 1 else []
        case _ConvNd() | nn.Linear():
            return [(module.weight, False)]
        case nn.MultiheadAttention():
            projections = (getattr(module, name) for name in ATTENTION)
            return [(weight, False) for weight in projections if weight is not None]
    return []


@final
@dataclass(frozen=True, slots=True)
class Pattern:
    """What stays or goes together.

    Attributes:
        block: outputs and inputs of a block of whole kernels; None: single weights.
        joined: whether the kernels of all inputs of one unit go together (a flattened map has many).
        most: n and m where n of every m inputs in a row stay; None elsewhere.
    """

    block: tuple[int, int] | None = None
    joined: bool = False
    most: tuple[int, int] | None = None

    @staticmethod
    def of(granularity: str, block: tuple[int, int]) -> "Pattern":
        """Read ``"element"``, ``"kernel"``, ``"connection"``, ``"block"`` or ``"n:m"``; raises ArgumentError."""
        kinds: Mapping[str, Pattern] = {
            "element": Pattern(),
            "kernel": Pattern(block=(1, 1)),
            "connection": Pattern(block=(1, 1), joined=True),
            "block": Pattern(block=block),
        }
        if granularity in kinds:
            return kinds[granularity]
        found = re.fullmatch(r"(\d+):(\d+)", granularity) if isinstance(granularity, str) else None
        if found is None:
            raise ArgumentError(
                f"granularity={granularity!r} is not one of {', '.join(map(repr, kinds))}, or two numbers like '2:4'."
            )
        n, m = int(found[1]), int(found[2])
        if not 0 < n < m:
            raise ArgumentError(f"granularity={granularity!r}: so many of the second must stay, fewer but not none.")
        return Pattern(most=(n, m))
