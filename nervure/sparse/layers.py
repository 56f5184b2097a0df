"""Layers that compute with their non-zero weights only.

Sparse kernels are fast where features come first and samples lie side by side: ``csr @ x.T``. So every layer here hands
on a *transposed view* of what it made. Its shape is as ever, and since elementwise operations keep the order in memory
of what they are given, a chain of such layers with activations between transposes nothing but its first input. (The
drop-in ``F.linear(x, csr)`` multiplies by the transposed matrix, which is 5 to 8 times as slow.)
"""

import math
import warnings
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure.errors import ArgumentError


class Inference(nn.Module):
    """A module that is made for inference and refuses to be trained."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode; raises :class:`ArgumentError` for any other."""
        if mode:
            raise ArgumentError(
                f"{type(self).__name__} computes with the weights that are not zero now and cannot be trained: "
                "gradients of sparse tensors are dense, and no optimizer keeps their zeros. Train the masked model "
                "(see nervure.hold), then compile it again."
            )
        return super().train(False)


@final
class SparseMatrix(Inference):
    """A matrix by its non-zero entries (CSR), or by its non-zero square blocks (BSR).

    It keeps plain tensors, so that copies, ``state_dict`` and ``to`` work as ever. Indices have 32 bits: that is what
    the kernels compute with, and a matrix with longer ones is converted at every product.

    Attributes:
        shape: rows and columns.
        starts: where each row begins. Shape [rows / block + 1].
        columns: of each entry or block.
        values: shape [entries] or [blocks, block, block].
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, weight: Tensor, block: int = 1) -> None:
        super().__init__()
        self.shape = (weight.shape[0], weight.shape[1])
        # torch says once per process that these tensors may change: that is for us to know, not for the user.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*[Ss]parse.*", UserWarning)
            made = weight.to_sparse_csr() if block == 1 else weight.to_sparse_bsr((block, block))
        self.register_buffer("starts", made.crow_indices().int())
        self.register_buffer("columns", made.col_indices().int())
        self.register_buffer("values", made.values().clone())
        self.eval()

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product with ``x``, and ``bias`` added to each column. Shapes [columns, samples] -> [rows, samples]."""
        build = torch.sparse_csr_tensor if self.values.ndim == 1 else torch.sparse_bsr_tensor
        matrix = build(self.starts, self.columns, self.values, self.shape, check_invariants=False)
        if x.shape[1] == 1:
            return (matrix @ x[:, 0] if bias is None else torch.addmv(bias, matrix, x[:, 0]))[:, None]
        return matrix @ x if bias is None else torch.addmm(bias[:, None], matrix, x)


class SparseLayer(Inference):
    """What sparse layers share.

    Attributes:
        weight: the matrix.
        bias: [rows], or None.
        contiguous: hand on copies in the usual order, for code after the layer that demands it (``view``).
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, block: int) -> None:
        super().__init__()
        self.weight = SparseMatrix(weight.detach(), block)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.contiguous = False
        self.eval()

    def handed_on(self, y: Tensor) -> Tensor:
        """The output, as a view or as a copy."""
        return y.contiguous() if self.contiguous else y

    def extra_repr(self) -> str:
        """Size, and how much of it is there."""
        rows, columns = self.weight.shape
        kind = "csr" if self.weight.values.ndim == 1 else f"bsr{self.weight.values.shape[-1]}"
        return f"{columns}, {rows}, {kind}, {self.weight.values.numel()} entries"


@final
class SparseLinear(SparseLayer):
    """A linear layer. Shape [..., columns] -> [..., rows]."""

    def __init__(self, layer: nn.Linear, block: int = 1) -> None:
        super().__init__(layer.weight, layer.bias, block)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in memory features first."""
        rows, columns = self.weight.shape
        y = self.weight.times(x.reshape(-1, columns).t(), self.bias)
        return self.handed_on(y.t().view(*x.shape[:-1], rows))


@final
class SparseConv2d(SparseLayer):
    """A convolution as a product with its input's patches. Shape [(samples,) channels, height, width]."""

    def __init__(self, layer: nn.Conv2d, block: int = 1) -> None:
        super().__init__(layer.weight.flatten(1), layer.bias, block)
        assert not isinstance(layer.padding, str)
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in memory channels first."""
        if x.ndim == 3:
            return self.forward(x[None])[0]
        patches = self._patches(x)
        sides = self.sides(x.shape[2:])
        y = self.weight.times(patches.transpose(0, 1).reshape(patches.shape[1], -1), self.bias)
        return self.handed_on(y.view(len(y), len(x), *sides).transpose(0, 1))

    def sides(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Height and width of what comes out, of those of what goes in."""
        whole = zip(given, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in whole)

    def _patches(self, x: Tensor) -> Tensor:
        """Shape [samples, channels * kernel, positions]."""
        if math.prod(self.kernel_size) == 1 and not any(self.padding):
            down, right = self.stride
            return x[:, :, ::down, ::right].flatten(2)
        return F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)


@final
class Compacted(Inference):
    """A layer without its rows and columns of zeros: what hears nothing says its bias.

    Attributes:
        inner: the smaller, dense layer.
        columns: which inputs it is given, None for all.
        rows: where its outputs go, None where all rows live.
        rest: the output without it, all biases. Shape [rows].
    """

    columns: Tensor | None
    rows: Tensor | None
    rest: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        rows, columns = live(weight)
        self.axis = -1 if isinstance(layer, nn.Linear) else -3
        self.inner = _smaller(layer, weight[rows][:, columns], rows)
        self.register_buffer("columns", None if columns.all() else columns.nonzero()[:, 0])
        self.register_buffer("rows", None if rows.all() else rows.nonzero()[:, 0])
        silent = torch.zeros(len(rows), dtype=weight.dtype, device=weight.device)
        self.register_buffer("rest", silent if layer.bias is None else layer.bias.detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        y: Tensor = self.inner(x if self.columns is None else x.index_select(self.axis, self.columns))
        if self.rows is None:
            return y
        shape = list(y.shape)
        shape[self.axis] = len(self.rest)
        column = [1] * -self.axis
        column[0] = -1
        return self.rest.view(column).expand(shape).clone().index_copy_(y.ndim + self.axis, self.rows, y)


def live(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows and which columns of a weight [rows, columns, ...] hold anything but zeros."""
    there = weight.flatten(2).any(2) if weight.ndim > 2 else weight != 0
    return there.any(1), there.any(0)


def _smaller(layer: nn.Linear | nn.Conv2d, weight: Tensor, rows: Tensor) -> nn.Module:
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
    inner: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        inner = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        same = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        inner = nn.Conv2d(weight.shape[1], weight.shape[0], **same, **options)
    inner.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if layer.bias is not None:
        inner.bias = nn.Parameter(layer.bias.detach()[rows], requires_grad=False)
    return inner
