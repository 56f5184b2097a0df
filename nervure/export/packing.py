"""Masked tensors in few bytes: the values that stay, and where they stay, by whichever of two layouts is smaller.

==============  =====================================================================  =========================
layout          positions                                                              bytes for n of N entries
==============  =====================================================================  =========================
``"bitmask"``   one bit per entry, in order                                            N / 8
``"csr16"``     rows of 65,536 entries: for each how many stay (4 bytes), then 16-bit  2 n + 4 per row
                positions in the row
==============  =====================================================================  =========================

The second is smaller below a density of 1/16. Nothing is lost: a mask comes back as it was, values bit for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta
from torch import Tensor

from nervure.core.container import DamageError
from nervure.core.schema import Count
from nervure.plan import Keep

Bytes: TypeAlias = npt.NDArray[np.uint8]
Flags: TypeAlias = npt.NDArray[np.bool_]

ROW = 1 << 16
POSITIONS = "nervure.positions/"
"""What the names of packed positions begin with."""


@final
@dataclass(frozen=True, slots=True)
class Packing:
    """How a tensor is packed: its layout, and the shape that it has unpacked."""

    layout: Literal["bitmask", "csr16"]
    shape: Annotated[tuple[Count, ...], Meta(max_length=64)]


def pack(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Packing]]:
    """Tensors with those that a mask holds at zero packed, and how each of these is packed.

    A tensor stays as it is where something that its mask excludes is not zero (nobody held it), or where packing would
    make it no smaller.

    Args:
        tensors: tensors on the CPU, by name.
        masks: booleans of their shapes; True stays.
    """
    found, packings = dict(tensors), dict[str, Packing]()
    for name in sorted(masks.keys() & tensors.keys()):
        tensor, mask = tensors[name], masks[name].cpu()
        if not _is_zero(tensor[~mask]):
            continue
        layout, positions = _positions(mask)
        values = tensor[mask]
        if _bytes(values) + _bytes(positions) < _bytes(tensor):
            found |= {name: values, POSITIONS + name: positions}
            packings[name] = Packing(layout, tuple(tensor.shape))
    return found, packings


def unpack(tensors: Mapping[str, Tensor], packings: Mapping[str, Packing]) -> tuple[dict[str, Tensor], dict[str, Keep]]:
    """What :func:`pack` was given: the tensors, and the masks of those that were packed.

    A few bytes may stand for a very large tensor: look at the shapes first.

    Raises:
        DamageError: positions, values and shapes do not fit together.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(POSITIONS)}
    keeps = {}
    for name, packing in packings.items():
        mask, values = unpacked_mask(tensors, name, packing), tensors.get(name, torch.zeros(0))
        if values.shape != (int(mask.sum()),):
            raise DamageError(
                f"tensor {name!r} has values of shape {tuple(values.shape)} for {int(mask.sum())} places."
            )
        found[name] = torch.zeros(packing.shape, dtype=values.dtype)
        found[name][mask] = values
        keeps[name] = Keep.of(mask)
    return found, keeps


def unpacked_mask(tensors: Mapping[str, Tensor], name: str, packing: Packing) -> Tensor:
    """Where a packed tensor has its values: booleans of its shape; raises :class:`DamageError` as :func:`unpack`."""
    raw = tensors.get(POSITIONS + name)
    if raw is None or raw.dtype != torch.uint8 or raw.ndim != 1:
        raise DamageError(f"tensor {name!r} has no positions.")
    size = math.prod(packing.shape)
    flat = (_from_bits if packing.layout == "bitmask" else _from_columns)(raw.numpy(), size)
    if flat is None:
        raise DamageError(f"tensor {name!r} of shape {packing.shape} has positions of another one.")
    return torch.from_numpy(flat).reshape(packing.shape)


def _is_zero(values: Tensor) -> bool:
    """Whether every bit is zero: a negative zero, or a NaN, would not come back."""
    return not bool(values.contiguous().view(torch.uint8).any())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _positions(mask: Tensor) -> tuple[Literal["bitmask", "csr16"], Tensor]:
    """The smaller layout and its bytes, uint8."""
    bits = np.frombuffer(Keep.of(mask).bits, dtype=np.uint8)
    (places,) = np.nonzero(mask.reshape(-1).numpy())
    rows = -(-mask.numel() // ROW)
    if 4 * rows + 2 * len(places) >= len(bits):
        return "bitmask", torch.from_numpy(bits.copy())
    counts = np.bincount(places // ROW, minlength=rows).astype("<u4")
    columns = (places % ROW).astype("<u2")
    return "csr16", torch.from_numpy(np.concatenate([counts.view(np.uint8), columns.view(np.uint8)]))


def _from_bits(raw: Bytes, size: int) -> Flags | None:
    if len(raw) != -(-size // 8):
        return None
    bits = np.unpackbits(raw)
    return None if bits[size:].any() else bits[:size].astype(bool)


def _from_columns(raw: Bytes, size: int) -> Flags | None:
    rows = -(-size // ROW)
    if len(raw) < 4 * rows or len(raw) % 2:
        return None
    counts, columns = raw[: 4 * rows].view("<u4"), raw[4 * rows :].view("<u2")
    if int(counts.sum(dtype=np.uint64)) != len(columns):
        return None
    places = np.repeat(np.arange(rows) * ROW, counts) + columns
    if (np.diff(places) <= 0).any() or (places[-1:] >= size).any():
        return None
    flags = np.zeros(size, dtype=bool)
    flags[places] = True
    return flags
