"""Distances between samples, tile by tile: no more than a tile of them is ever held."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nervure.core.check import require_positive
from nervure.errors import ArgumentError, DataError

TILE = 1024
"""Samples along a side of a tile: 8 MiB of distances."""

Block: TypeAlias = Callable[[slice, slice], Tensor]
"""From a range of rows and one of columns to their distances, float64 [rows, columns]."""

# Up to here the direct form costs no more than the product does.
FEW_DIMENSIONS = 16
# The product form |x|^2 + |y|^2 - 2xy rounds at about 1e-16 (|x|^2 + |y|^2): nearer pairs than this are taken directly.
NEAR = 1e-7
PAIRS_AT_ONCE = 4096


def ranges(samples: int, tile: int) -> list[slice]:
    """0 .. ``samples`` in ranges of ``tile``."""
    return [slice(start, min(start + tile, samples)) for start in range(0, samples, tile)]


def upper(samples: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """The tiles on and above the diagonal: distances are symmetric, so these are enough."""
    parts = ranges(samples, require_positive(tile, "tile"))
    for index, rows in enumerate(parts):
        for columns in parts[index:]:
            yield rows, columns


def euclidean(x: Tensor, *, exponent: float = 1.0) -> Block:
    """Distances between the samples of ``x`` [samples, dimensions], to the power ``exponent`` in (0, 2].

    Tiles are computed in float64 from centred samples: in float32 the product form loses every digit of pairs that are
    a thousand times nearer to each other than to the centre.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not 0 < exponent <= 2:
        raise ArgumentError(f"exponent={exponent!r} is not in (0, 2].")
    centre = x.mean(0, dtype=torch.float64) if len(x) else x

    def block(rows: slice, columns: slice) -> Tensor:
        here = x[rows].double() - centre
        there = here if rows == columns else x[columns].double() - centre
        squares = _squares(here, there)
        if rows == columns:
            squares.fill_diagonal_(0.0)
        return squares.sqrt_() if exponent == 1 else squares.pow_(exponent / 2)

    return block


def discrete(labels: Tensor) -> Block:
    """The 0/1 metric on class numbers [samples]: any two classes are one apart."""

    def block(rows: slice, columns: slice) -> Tensor:
        return (labels[rows, None] != labels[None, columns]).double()

    return block


def moments(sides: Sequence[Block], samples: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sums of products of distances over all pairs, for every two sides [sides, sides], and row sums [sides, samples].

    One pass over the tiles, and all that distance covariances need: centring can be done on the sums.
    """
    products = torch.zeros(len(sides), len(sides), dtype=torch.float64, device=device)
    sums = torch.zeros(len(sides), samples, dtype=torch.float64, device=device)
    for rows, columns in upper(samples, tile):
        blocks = [side(rows, columns) for side in sides]
        twice = 1.0 if rows == columns else 2.0
        for i, a in enumerate(blocks):
            sums[i, rows] += a.sum(1)
            if rows != columns:
                sums[i, columns] += a.sum(0)
            for j, b in enumerate(blocks[: i + 1]):
                products[i, j] += twice * torch.dot(a.reshape(-1), b.reshape(-1))
    return products + products.tril(-1).T, sums


def samples_of(x: Tensor, name: str, expected: int | None = None) -> Tensor:
    """``x`` as finite numbers [samples, dimensions]; a vector is one dimension, further axes are flattened.

    Raises:
        DataError: ``x`` is empty, not finite, no tensor, or has not the ``expected`` number of samples.
    """
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 or x.is_complex() or not holds_numbers(x):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        unusual = f" ({_kind(x)})" if isinstance(x, Tensor) and not holds_numbers(x) else ""
        raise DataError(f"{name} must be a tensor of real numbers with samples first, got {shape}{unusual}.")
    if expected is not None and len(x) != expected:
        raise DataError(f"{name} has {len(x)} samples, the other side {expected}; they must be the same samples.")
    flat = x.detach().reshape(len(x), -1)
    flat = flat if flat.is_floating_point() else flat.double()
    if not bool(torch.isfinite(flat).all()):
        bad = int((~torch.isfinite(flat)).any(1).sum())
        raise DataError(f"{bad} of {len(flat)} samples of {name} are NaN or infinite. Leave them out, or mend them.")
    return flat


def labels_of(labels: Tensor, expected: int) -> Tensor:
    """Class numbers [samples] as int64; raises DataError where they are not whole numbers, one for each sample."""
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if not whole or not holds_numbers(labels) or labels.shape != (expected,):
        given = (
            f"shape {tuple(labels.shape)}, dtype {labels.dtype}" if isinstance(labels, Tensor) else f"{labels!r:.40}"
        )
        raise DataError(f"labels must be {expected} whole numbers, one per sample, got {given}.")
    return labels.detach().long()


def holds_numbers(x: Tensor) -> bool:
    """Whether every entry of a tensor has a number and a place of its own."""
    return x.layout == torch.strided and not x.is_meta and not x.is_quantized


def _kind(x: Tensor) -> str:
    return "on the meta device" if x.is_meta else "quantised" if x.is_quantized else f"of layout {x.layout}"


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [rows of x, rows of y] with at least six right digits."""
    if x.shape[1] <= FEW_DIMENSIONS:
        return _direct(x, y)
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    squares = torch.addmm(lengths, x, y.T, alpha=-2.0)
    near = squares < NEAR * lengths
    if x is y:
        near.fill_diagonal_(False)
    i, j = near.nonzero(as_tuple=True)
    if len(i) > near.numel() // 8:
        return _direct(x, y)
    for pairs in ranges(len(i), PAIRS_AT_ONCE):
        squares[i[pairs], j[pairs]] = (x[i[pairs]] - y[j[pairs]]).square().sum(1)
    return squares.clamp_min_(0.0)


def _direct(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
