"""What a layer with zeros could become: each way to compute the same with less work."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from nervure.errors import VerificationError
from nervure.sparse.agree import agreement
from nervure.sparse.layers import Compacted, SparseConv2d, SparseLinear, live

Layer: TypeAlias = nn.Linear | nn.Conv2d

DENSE = "dense"
MOST_STORED = 0.5
"""A kernel that would store more than this share of the weights is not tried: dense ones are far ahead there."""
MOST_COMPACT = 0.9
LARGEST_PATCHES = 2**24
"""Numbers in the patches of a convolution: beyond it they take much memory, and longer than the convolution."""
BLOCKS = (4, 8, 16)


def density(layer: Layer) -> float:
    """The share of the weights that are not zero."""
    return int(layer.weight.count_nonzero()) / max(1, layer.weight.numel())


def candidates(layer: Layer, x: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """Ways to compute ``layer``, by name, of which the first is the layer itself."""
    found: dict[str, Callable[[], nn.Module]] = {DENSE: lambda: layer}
    rows, columns = live(layer.weight)
    left = int(rows.sum()) * int(columns.sum())
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if not grouped and 0 < left <= MOST_COMPACT * rows.numel() * columns.numel():
        found["compact"] = lambda: Compacted(layer)
    if not _fits(layer, x):
        return found
    if density(layer) <= MOST_STORED:
        found["csr"] = lambda: _sparse(layer, 1)
    weight = layer.weight.flatten(1)
    for block in BLOCKS:
        if block_density(weight, block) <= MOST_STORED:
            found[f"bsr{block}"] = lambda block=block: _sparse(layer, block)  # type: ignore[misc]
    return found


def block_density(weight: Tensor, block: int) -> float:
    """The share of the ``block`` x ``block`` blocks of a matrix with anything in them; 1 where they do not fit."""
    rows, columns = weight.shape
    if rows % block or columns % block or not weight.numel():
        return 1.0
    blocks = (weight != 0).view(rows // block, block, columns // block, block)
    return float(blocks.any(3).any(1).float().mean())


def _fits(layer: Layer, x: Tensor) -> bool:
    """Whether there is a sparse kernel for the layer."""
    if isinstance(layer, nn.Linear):
        return True
    if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str) or x.ndim != 4:
        return False
    height, width = x.shape[2] // layer.stride[0], x.shape[3] // layer.stride[1]
    return len(x) * layer.weight[0].numel() * height * width <= LARGEST_PATCHES


def _sparse(layer: Layer, block: int) -> nn.Module:
    return SparseLinear(layer, block) if isinstance(layer, nn.Linear) else SparseConv2d(layer, block)


def working(layer: Layer, x: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The candidates that run and compute what the layer does on ``x``; and why others do not."""
    expected, found, failed = layer(x), {}, {}
    for name, make in candidates(layer, x).items():
        try:
            made = make()
            agreement([expected], [made(x)], f"as {name}", layer, lambda other: [other(x)])
        # Which kernels there are depends on the build of torch, the dtype and the device: it says so when asked.
        except (RuntimeError, NotImplementedError, VerificationError) as error:
            failed[name] = str(error).partition("\n")[0]
        else:
            found[name] = made
    return found, failed
