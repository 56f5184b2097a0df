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

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nervure.errors import FileError
from nervure.plan import Keep

ROW = 1 << 16
POSITIONS = "nervure.positions/"
"""What the names of packed positions begin with."""


def packed(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors with those that a mask holds at zero packed, and for each of these its shape and layout.

    A tensor stays as it is where something that its mask excludes is not zero (nobody held it), or where packing would
    make it no smaller.

    Args:
        tensors: tensors on the CPU, by name.
        masks: booleans of their shapes; True stays.
    """
    found, layouts = dict(tensors), dict[str, Any]()
    for name in sorted(masks.keys() & tensors.keys()):
        tensor, mask = tensors[name], masks[name].cpu()
        if not _is_zero(tensor[~mask]):
            continue
        layout, positions = _positions(mask)
        values = tensor[mask]
        if _bytes(values) + _bytes(positions) < _bytes(tensor):
            found |= {name: values, POSITIONS + name: positions}
            layouts[name] = {"layout": layout, "shape": list(tensor.shape)}
    return found, layouts


def unpacked(tensors: Mapping[str, Tensor], layouts: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Keep]]:
    """What :func:`packed` was given: the tensors, and the masks of those that were packed.

    Raises:
        FileError: positions, values and shapes do not fit together, or a layout is unknown.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(POSITIONS)}
    keeps = {}
    for name, told in layouts.items():
        try:
            shape = tuple(int(side) for side in told["shape"])
            mask = _mask(told["layout"], tensors[POSITIONS + name], shape)
            full = torch.zeros(shape, dtype=tensors[name].dtype)
            full[mask] = tensors[name]
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise FileError(f"tensor {name!r} cannot be unpacked: {error}.") from error
        found[name], keeps[name] = full, Keep.of(mask)
    return found, keeps


def _is_zero(values: Tensor) -> bool:
    """Whether every bit is zero: a negative zero, or a NaN, would not come back."""
    return not bool(values.contiguous().view(torch.uint8).any())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _positions(mask: Tensor) -> tuple[str, Tensor]:
    """The smaller layout and its bytes, uint8."""
    bits = np.frombuffer(Keep.of(mask).bits, dtype=np.uint8)
    (places,) = np.nonzero(mask.reshape(-1).numpy())
    rows = -(-mask.numel() // ROW)
    if 4 * rows + 2 * len(places) >= len(bits):
        return "bitmask", torch.from_numpy(bits.copy())
    counts = np.bincount(places // ROW, minlength=rows).astype("<u4")
    columns = (places % ROW).astype("<u2")
    return "csr16", torch.from_numpy(np.concatenate([counts.view(np.uint8), columns.view(np.uint8)]))


def _mask(layout: str, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    raw, size = positions.numpy(), int(np.prod(shape, dtype=np.int64))
    if layout == "bitmask":
        return Keep(shape, raw.tobytes()).tensor()
    if layout != "csr16":
        raise ValueError(f"layout {layout!r} is unknown")
    rows = -(-size // ROW)
    counts, columns = raw[: 4 * rows].view("<u4"), raw[4 * rows :].view("<u2")
    flat = np.zeros(size, dtype=bool)
    flat[np.repeat(np.arange(rows) * ROW, counts) + columns] = True
    return torch.from_numpy(flat).reshape(shape)
