"""What enters and what leaves an operator that multiplies with a parameter, position by position.

Whatever the operator, it is ``y = W x`` at each of its positions, side by side for each member of a stack (groups of a
convolution, experts): ``x`` is [stack, positions, inputs], ``W`` [stack, outputs, inputs], ``y`` [stack, positions,
outputs]. Inputs of a convolution are channels times kernel positions.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nervure.graph.ops.table import family
from nervure.graph.products import COLUMN, KERNEL, MATRIX, ROW, STACK, Operand
from nervure.graph.tape import Entry

BIAS: Mapping[str, int] = {"addmm": 0, "baddbmm": 0, "addmv": 0, "linear": 2, "convolution": 2}
"""Where an operator takes its bias."""
MATRICES = frozenset(("mm", "bmm", "addmm", "baddbmm", "linear", "mv", "addmv"))
"""Products that are read position by position; the others of the table (experts, say) are not."""


def is_read(use: Operand, entry: Entry, args: tuple[Any, ...]) -> bool:
    """Whether what enters and leaves this operator can be told position by position."""
    if family(entry.name) == "convolution":
        return True
    if entry.name not in MATRICES or any(entry.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return False
    return len(_other_kinds(use, entry, args)) == args[use.other].ndim and KERNEL not in use.kinds


def to_matrix(use: Operand, values: Tensor) -> Tensor:
    """Values of the operand's shape as [stack, outputs, inputs]."""
    values = use.divide(values)
    order = [a for kind in (STACK, ROW, COLUMN, KERNEL) for a, k in enumerate(use.kinds) if k == kind]
    sizes = [math.prod(n for n, k in zip(values.shape, use.kinds, strict=True) if k in of) for of in ("s", "r", "ck")]
    return values.permute(order).reshape(sizes)


def places(use: Operand) -> Tensor:
    """Which entry of the parameter stands at each place of its matrix, [stack, outputs, inputs]; -1: none does.

    Where all members of a stack are the same matrix it is told once. Int32, where that is enough.
    """
    found = to_matrix(use, use.trail.places())
    found = found[:1] if is_repeated(found) else found
    return found.int() if math.prod(use.trail.shape) <= torch.iinfo(torch.int32).max else found


def is_repeated(found: Tensor) -> bool:
    """Whether the members of a stack are one and the same."""
    return len(found) > 1 and bool((found == found[:1]).all())


def choose_positions(entry: Entry, out: Tensor, most: int, generator: torch.Generator) -> Tensor | None:
    """Positions of a convolution to look at, at most so many per sample: [samples, positions]. None: all there are."""
    if family(entry.name) != "convolution":
        return None
    samples, there = out.shape[0], math.prod(out.shape[2:])
    if there <= most:
        return torch.arange(there).expand(samples, there)
    return torch.rand(samples, there, dtype=torch.float32, generator=generator).argsort(1)[:, :most]


def entering(use: Operand, entry: Entry, args: tuple[Any, ...], at: Tensor | None) -> Tensor:
    """What the parameter multiplies, [stack, positions, inputs]; ``at`` as from :func:`choose_positions`."""
    x: Tensor = args[use.other].detach()
    if at is not None:
        return _patches(use, entry, args, at)
    kinds = _other_kinds(use, entry, args)
    order = [a for kind in (STACK, ROW, COLUMN) for a, k in enumerate(kinds) if k == kind]
    sizes = [math.prod(n for n, k in zip(x.shape, kinds, strict=True) if k == kind) for kind in "src"]
    return x.permute(order).reshape(sizes)


def leaving(use: Operand, entry: Entry, out: Tensor, at: Tensor | None) -> Tensor:
    """What the operator gives, [stack, positions, outputs]; ``at`` as from :func:`choose_positions`."""
    if at is not None:
        found = _gather(out.flatten(2), at)
        return found.reshape(-1, use.parts, out.shape[1] // use.parts).transpose(0, 1)
    if entry.name == "linear":
        return out.reshape(1, -1, out.shape[-1])
    if entry.name in ("mv", "addmv"):
        return out.reshape(1, 1, -1)
    stacked: Tensor = out if out.ndim > MATRIX else out[None]
    is_second = use.operand > use.other
    return stacked if is_second else stacked.transpose(1, 2)


def _other_kinds(use: Operand, entry: Entry, args: tuple[Any, ...]) -> str:
    """What the axes of what is multiplied are for: members of a stack, positions (as outputs), inputs."""
    rank = args[use.other].ndim
    return use.mirrored or ROW * (rank - 1) + COLUMN


def _gather(values: Tensor, at: Tensor) -> Tensor:
    """[samples, channels, all positions] at [samples, positions]: [samples, positions, channels]."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, :, at.to(values.device)]


def _patches(use: Operand, entry: Entry, args: tuple[Any, ...], at: Tensor) -> Tensor:
    """What each output of a convolution is a sum over, [groups, samples x positions, inputs x kernel]."""
    x, weight, _, stride, padding, dilation, transposed, more = [
        a.detach() if isinstance(a, Tensor) else a for a in args[:8]
    ]
    spatial = x.ndim - 2
    kernel = weight.shape[2:]
    stride, padding, dilation, more = (
        [*v] * spatial if len(v) == 1 else [*v] for v in (stride, padding, dilation, more)
    )
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        # A transposed convolution is one of step 1, with its kernel turned, over inputs with zeros in between.
        x = _spread(x, stride)
        around = [(r - p, r - p + m) for r, p, m in zip(reach, padding, more, strict=True)]
        stride = [1] * spatial
    else:
        around = [(p, p) for p in padding]
    x = F.pad(x, [n for pair in reversed(around) for n in pair]).contiguous()
    sizes = [(x.shape[2 + a] - reach[a] - 1) // stride[a] + 1 for a in range(spatial)]
    steps = x.stride()
    windows = x.as_strided(
        (*x.shape[:2], *sizes, *kernel),
        (*steps[:2], *(s * t for s, t in zip(steps[2:], stride, strict=True)),
         *(s * d for s, d in zip(steps[2:], dilation, strict=True))),
    )  # fmt: skip
    where = torch.unravel_index(at.to(x.device), sizes)
    rows = torch.arange(len(x), device=x.device)[:, None]
    index: Any = (rows, slice(None), *where)
    found = windows[index]
    if transposed:
        found = found.flip([*range(3, found.ndim)])
    samples, positions, channels = found.shape[:3]
    divided = found.reshape(samples * positions, use.parts, channels // use.parts * math.prod(kernel))
    return divided.transpose(0, 1)


def _spread(x: Tensor, stride: list[int]) -> Tensor:
    """``x`` with ``stride`` - 1 zeros between neighbours along each spatial axis."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros((*x.shape[:2], *sizes))
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return wide
