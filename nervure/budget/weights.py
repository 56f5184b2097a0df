"""The weights that can be pruned one by one: the parameters that multiply, as the graph knows them."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from nervure.core.check import nearest, show_value
from nervure.errors import ArgumentError, BudgetError
from nervure.graph.tape import names_of_tensors
from nervure.graph.trace import matches
from nervure.graph.types import Graph, Product


def sheets(
    model: nn.Module, graph: Graph, dense: Iterable[str] = (), ignored: Container[str] = ()
) -> tuple[Product, ...]:
    """The parameters whose weights can be pruned one by one, in running order.

    Those are all that multiply: of convolutions and linear layers, attention, recurrent layers, stacks of experts, bare
    parameters, and those from which such a weight is computed in a way that keeps zeros (weight and spectral norm, the
    masks of ``torch.nn.utils.prune``). A table of embeddings multiplies where an output layer shares it. Biases and
    scales do not, and stay.

    Args:
        model: the model.
        graph: its graph.
        dense: names of layers or of their tensors, or patterns of those, that stay as they are.
        ignored: names of tensors that must not change.

    Raises:
        ArgumentError: a pattern in ``dense`` fits nothing.
        BudgetError: there is no such parameter.
    """
    names = names_of_tensors(model)
    found = {p.tensor: p for p in graph.products if not p.reason and p.tensor not in ignored}
    for pattern in dense:
        fitting = [name for name in found if any(matches(other, pattern) for other in names.get(name, (name,)))]
        if not fitting:
            raise ArgumentError(f"dense={pattern!r} fits no layer that could be pruned.{nearest(pattern, found)}")
        for name in fitting:
            del found[name]
    if not found:
        raise BudgetError(
            "there are no weights that multiply to prune; they all stay dense (a graph of an earlier version does not "
            "know them: trace the model again)."
        )
    return tuple(found.values())


def left_dense(graph: Graph, ignored: Container[str] = ()) -> tuple[Product, ...]:
    """The parameters that multiply, or may, and that no mask can be laid on; each with its reason."""
    return tuple(p for p in graph.products if p.reason and p.tensor not in ignored)


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
                f"granularity={show_value(granularity)} is not one of {', '.join(map(repr, kinds))}, or two numbers "
                "like '2:4'."
            )
        n, m = int(found[1]), int(found[2])
        if not 0 < n < m:
            raise ArgumentError(
                f"granularity={show_value(granularity)}: so many of the second must stay, fewer but not none."
            )
        return Pattern(most=(n, m))
