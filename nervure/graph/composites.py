"""Operators that are made of others: a dispatch mode sees them taken apart."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from nervure.errors import TraceError


class SimpleOperators(TorchDispatchMode):
    """A mode to which simple operators come: what is made of others is taken apart before.

    Raises:
        TraceError: PyTorch has no way to compute a higher-order operator by ordinary ones.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Being skipped by the compiler takes importing it, which costs seconds; it never meets this mode.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parts = _take_apart(self, func, args, kwargs or {})
        return self.compute(func, args, kwargs or {}) if parts is NotImplemented else parts

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a simple operator gives while this mode is on."""
        raise NotImplementedError


def _take_apart(mode: SimpleOperators, func: Any, args: Any, kwargs: Any) -> Any:
    """What a composite or higher-order operator computes, with ``mode`` on for all operators that it is made of.

    NotImplemented of an operator that is simple.
    """
    if not isinstance(func, HigherOrderOperator):
        if (parts := FUSED_CELLS.get(func)) is not None:
            with mode:
                return parts(*args, **kwargs)
        # Composites come to a mode whole where there is nothing to differentiate, as with tensors of inference mode.
        if not _is_composite(func):
            return NotImplemented
        with mode:
            return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
    kernel = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    if kernel is None:
        raise TraceError(
            f"the model calls {func.name()}, a higher-order operator that PyTorch cannot take apart into ordinary "
            "ones. Let forward compute the same with ordinary operators while the model is traced and pruned."
        )
    with mode, _allowing_modes(kernel):
        return kernel(*args, **kwargs)


@cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), DispatchKey.CompositeImplicitAutograd))


def _lstm_cell(
    inputs: Tensor, hidden: Tensor, cell: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = _plus(_plus(inputs + hidden, bias), other).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * cell + i * g
    # What a backward pass reads.
    return o * after.tanh(), after, torch.cat([i, f, g, o], 1)


def _gru_cell(
    inputs: Tensor, hidden: Tensor, state: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    (ir, iz, i), (hr, hz, h) = _plus(inputs, bias).chunk(3, 1), _plus(hidden, other).chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (i + r * h).tanh()
    return n + z * (state - n), torch.cat([r, z, n, state, h], 1)


def _plus(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


FUSED_CELLS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten._thnn_fused_lstm_cell.default: _lstm_cell,
    torch.ops.aten._thnn_fused_gru_cell.default: _gru_cell,
}
"""Recurrent cells that are one operator on a GPU, and what they are made of, which the CPU runs one by one."""


@contextmanager
def _allowing_modes(kernel: Any) -> Iterator[None]:
    """Kernels of control flow assert that no mode is on; under ours they do what they do without."""
    names, asked = kernel.__globals__, "_get_current_dispatch_mode"
    before = names.get(asked)
    if before is None:
        yield
        return
    names[asked] = lambda: None
    try:
        yield
    finally:
        names[asked] = before
