"""The highest of very many scores without sorting them: exact, ties by index, in memory of a few chunks.

Floating-point numbers of one sign are in the order of their bits read as whole numbers. So the k-th highest is found
digit by digit (16 bits at a time): count how often each digit occurs, walk down to the one that holds it, and look at
the next digit of those scores only. Rows are short enough to be partitioned instead.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nervure.core.tensors import at_least_single

CHUNK = 1 << 17
"""Scores that are looked at together."""
DIGIT = 16
"""Bits that are counted at once."""
NARROW = (torch.float32, torch.float16, torch.bfloat16)
"""Scores that float32 holds without rounding."""


def add_highest(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int) -> None:
    """Mark the ``count`` highest scores among those that are not marked; ties go to the earlier tensor, lower index.

    Args:
        scores: tensors of any shape, finite. Each is read several times: a mapping may make them when it is asked.
        masks: booleans by the same names, flat, contiguous; changed in place.
        count: how many; all where there are no more.
    """
    if count <= 0:
        return
    if count >= sum(mask.numel() - int(mask.sum()) for mask in masks.values()):
        for mask in masks.values():
            mask.fill_(True)
        return
    dtype = torch.float32 if all(scores[name].dtype in NARROW for name in scores) else torch.float64
    least, left = _find_least(scores, masks, count, dtype)
    for keys, marked in _chunks(scores, masks, dtype):
        ties = (keys == least).logical_and_(~marked).nonzero().flatten()[:left]
        marked.logical_or_(keys > least)
        marked[ties] = True
        left -= len(ties)


def highest_of_rows(rows: Tensor, count: int) -> Tensor:
    """Mark the ``count`` highest of each row; ties go to the lower index. Boolean of the shape of ``rows``."""
    found = torch.zeros(rows.shape, dtype=torch.bool)
    step = max(1, CHUNK // max(rows.shape[1], 1))
    for part, marked in zip(rows.split(step), found.split(step), strict=True):
        _mark_rows(part, marked, count)
    return found


def highest_by_place(rows: Tensor, fixed: Tensor, count: int) -> Tensor:
    """``fixed`` and the ``count`` best of the others: the best of every row come first, then the second of every row.

    Those at the same place of their rows go by score, ties to the lower index.

    Args:
        rows: scores, [rows, columns], finite.
        fixed: boolean of the same shape.
        count: how many are added, at most as many as are not fixed.
    """
    columns = rows.shape[1]
    held = torch.bincount(_places(rows, fixed), minlength=columns + 1).cumsum(0)
    # How many are not fixed among the first 1, 2, ... of every row.
    free = len(rows) * torch.arange(1, columns + 1) - held[:columns]
    whole = int(torch.searchsorted(free, count, right=True))
    kept = highest_of_rows(rows, whole)
    left = count - (int(free[whole - 1]) if whole else 0)
    if left:
        following = highest_of_rows(rows, whole + 1) & ~kept & ~fixed
        candidates = following.any(1).nonzero().flatten()
        best = rows[candidates, following[candidates].to(torch.uint8).argmax(1)]
        chosen = candidates[best.argsort(descending=True, stable=True)[:left]]
        kept[chosen] |= following[chosen]
    return kept | fixed


def _places(rows: Tensor, marked: Tensor) -> Tensor:
    """How many of its row come before each marked score."""
    which, column = marked.nonzero(as_tuple=True)
    found = torch.empty_like(which)
    step = max(1, CHUNK // max(rows.shape[1], 1))
    order = torch.arange(rows.shape[1])
    for row, at, place in zip(which.split(step), column.split(step), found.split(step), strict=True):
        mine, own = rows[row], rows[row, at][:, None]
        place.copy_((mine > own).sum(1) + ((mine == own) & (order < at[:, None])).sum(1))
    return found


def _mark_rows(rows: Tensor, marked: Tensor, count: int) -> None:
    columns = rows.shape[1]
    if count in (0, columns):
        marked.fill_(bool(count))
        return
    wide = at_least_single(rows)
    least = torch.from_numpy(np.partition(wide.numpy(), columns - count, axis=1)[:, columns - count, None])
    torch.gt(wide, least, out=marked)
    equal = wide == least
    missing = count - marked.sum(1, keepdim=True)
    # Where all that are equal stay, as nearly always, none has to be counted.
    tied = (equal.sum(1, keepdim=True) > missing).flatten()
    equal[tied] &= equal[tied].cumsum(1) <= missing[tied]
    marked |= equal


def _find_least(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int, dtype: torch.dtype
) -> tuple[int, int]:
    """The key of the lowest score that is marked, and how many of those that are equal to it are."""
    shifts: Sequence[int] = range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT)
    known, first = 0, 1 << (DIGIT - 1)
    for shift in shifts:
        is_first = shift == shifts[0]
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for keys, marked in _chunks(scores, masks, dtype):
            near = keys >> shift
            # The first digit has the sign.
            wanted = ~marked if is_first else (near >> DIGIT == known).logical_and_(~marked)
            digits = near[wanted]
            counts += torch.bincount(digits + first if is_first else digits & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        above = counts.flip(0).cumsum(0).flip(0)
        digit = int((above >= count).nonzero().max())
        count -= int(above[digit] - counts[digit])
        known = digit - first if is_first else (known << DIGIT) + digit
    return known, count


def _chunks(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole numbers in the order of the scores, and what of them is marked; one tensor in memory at a time."""
    whole = torch.int32 if dtype == torch.float32 else torch.int64
    for name in scores:
        flat = scores[name].detach().reshape(-1)
        for values, marked in zip(flat.split(CHUNK), masks[name].split(CHUNK), strict=True):
            # Adding nothing makes a zero of a zero with a sign.
            keys = (values.to("cpu", dtype) + 0.0).view(whole)
            yield torch.where(keys < 0, keys ^ torch.iinfo(whole).max, keys), marked
