"""What stays of a masked matrix makes up for what left: the optimal brain surgeon, and the exact optimum behind it."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

Choose: TypeAlias = Callable[[int, Tensor], Tensor]
"""The number of a column, and what it costs to remove entries of some columns from there on: which of them survive."""
COLUMNS = 128
"""Columns between two updates of all that follow."""
BLOCK = 512
"""Columns between two updates of all that follow, where each takes a factor of its own."""
ROWS = 512
"""Outputs that are worked on at once."""
STEPS = 100
TOLERANCE = 1e-5
"""When conjugate gradients stop: after so many steps, or where the residual has shrunk by so much."""
ROUGHLY = 1e-2
"""By how much it shrinks where answers are only compared."""


def obs_update(weight: Tensor, gram: Tensor, keep: Tensor, columns: int = COLUMNS) -> Tensor:
    """Remove entries column by column; columns behind make up for each (SparseGPT, arXiv 2301.00774, algorithm 1).

    With U the upper Cholesky factor of the inverse Gram, removing ``w_j`` of a row costs least where all that follow
    change by ``- w_j / U_jj * U_j``. Rows share U since columns leave in one order for all of them. Changes of columns
    far behind are gathered and made once per block.

    Args:
        weight: [outputs, inputs].
        gram: of what enters, [inputs, inputs], positive definite (with its ridge).
        keep: True survives, [outputs, inputs].
        columns: how many make a block; any number gives the same.

    Returns:
        The updated weights; exactly zero where they do not survive.
    """
    return obs_select(weight, gram, partial(_look_up, keep), columns)[0]


def _look_up(keep: Tensor, start: int, costs: Tensor) -> Tensor:
    """What survives, where that is settled."""
    return keep[:, start : start + costs.shape[1]]


def obs_select(
    weight: Tensor, gram: Tensor, choose: Choose, columns: int = COLUMNS, together: int = COLUMNS
) -> tuple[Tensor, Tensor]:
    """Remove entries as :func:`obs_update` does, and choose them on the way, by what columns before have made of them.

    Removing ``w_j`` of a row costs ``(w_j / U_jj)^2``: so much the row's squared error grows, once all columns behind
    make up for it.

    Args:
        weight: [outputs, inputs].
        gram: of what enters, [inputs, inputs], positive definite (with its ridge).
        choose: given the number of a column and the costs of it and those behind it, [outputs, together] or fewer:
            which of them survive, of the same shape.
        columns: how many make a block; any number gives the same.
        together: about how many columns ``choose`` decides at once.

    Returns:
        The updated weights, exactly zero where they do not survive, and what survives.
    """
    upper = inverse_factor(gram.clone())
    if upper is None:
        raise torch.linalg.LinAlgError("the Gram matrix is not positive definite: add a ridge")  # type: ignore[attr-defined]
    return eliminate(weight, upper, choose, columns, together)


def update_in_place(weight: Tensor, upper: Tensor, keep: Tensor) -> None:
    """As :func:`obs_update`, with the factor that it makes, some outputs at a time; ``weight`` becomes the answer."""
    for some, kept in zip(weight.split(ROWS), keep.split(ROWS), strict=True):
        some.copy_(eliminate(some, upper, partial(_look_up, kept))[0])


def update_by_gram(weight: Tensor, gram: Tensor, keep: Tensor) -> bool:
    """As :func:`obs_update`, in place; the matrix is written to.

    Args:
        weight: [outputs, inputs]; becomes the answer.
        gram: of what enters, [inputs, inputs], columns next to one another.
        keep: True survives, [outputs, inputs].

    Returns:
        Whether there is an answer: none where the Gram is not positive definite to rounding.
    """
    upper = inverse_factor(gram.mT)
    if upper is not None:
        update_in_place(weight, upper, keep)
    return upper is not None


def update_by_positions(weight: Tensor, x: Tensor, ridge: float, keep: Tensor, columns: int = BLOCK) -> bool:
    """As :func:`obs_update` with the Gram ``X^T X + ridge``, without ever having that: for positions that are few.

    With N the products ``X X^T + ridge`` of the columns behind a block B alone, and Z = N^-1 X_B, the block sees the
    Gram ``ridge (1 + X_B^T Z)`` while all behind it make up for what it loses, and they do so by ``X^T Z`` times that.

    Args:
        weight: [outputs, inputs], in double precision; becomes the answer.
        x: what enters, [positions, inputs].
        ridge: what is added to the diagonal of the Gram.
        keep: True survives, [outputs, inputs].
        columns: how many make a block; any number gives the same, to rounding.

    Returns:
        Whether there is an answer. There is none where the ridge is too weak; weights are of no use then.
    """
    products = x @ x.mT
    products.diagonal().add_(ridge)
    for start in range(0, weight.shape[1], columns):
        block, behind = slice(start, start + columns), slice(start + columns, None)
        mine = x[:, block]
        products.addmm_(mine, mine.mT, alpha=-1)
        factor, info = torch.linalg.cholesky_ex(products)
        z = torch.cholesky_solve(mine, factor)
        gram = (mine.mT @ z).mul_(ridge)
        gram.diagonal().add_(ridge)
        upper = None if bool(info > 0) else inverse_factor(gram)
        if upper is None:
            return False
        lost = weight[:, block].clone()
        update_in_place(weight[:, block], upper, keep[:, block])
        lost -= weight[:, block]
        weight[:, behind].addmm_(lost, z.mT @ x[:, behind])
    return True


def inverse_factor(gram: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the inverse; None where it has none to rounding. The matrix is written to."""
    matrix, info = gram.mT, torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if bool(info > 0):
        return None
    torch.cholesky_inverse(matrix, out=matrix)
    torch.linalg.cholesky_ex(matrix, upper=True, out=(matrix, info))
    return None if bool(info > 0) else matrix


def eliminate(
    weight: Tensor, upper: Tensor, choose: Choose, columns: int = COLUMNS, together: int = COLUMNS
) -> tuple[Tensor, Tensor]:
    """What :func:`obs_select` gives, by the upper factor of the inverse Gram."""
    # Inputs first: what is changed at once lies together in memory.
    left = weight.mT.clone(memory_format=torch.contiguous_format)
    kept = torch.zeros_like(left, dtype=torch.bool)
    pivots = upper.diagonal()
    # What is decided at once has to have been changed by all columns before it.
    columns = max(columns // together, 1) * together
    for start in range(0, len(left), columns):
        stop = min(start + columns, len(left))
        errors = torch.empty_like(left[start:stop])
        for at in range(start, stop):
            if (at - start) % together == 0:
                ahead = slice(at, min(at + together, stop))
                kept[ahead] = choose(at, (left[ahead] / pivots[ahead, None]).square().mT).mT
            error = torch.where(kept[at], 0, left[at]).div_(pivots[at])
            left[at].masked_fill_(~kept[at], 0)
            left[at + 1 : stop].addr_(upper[at, at + 1 : stop], error, alpha=-1)
            errors[at - start] = error
        left[stop:].addmm_(upper[start:stop, stop:].mT, errors, alpha=-1)
    return left.mT, kept.mT


def restrict(
    gram: Tensor, cross: Tensor, keep: Tensor, start: Tensor, steps: int = STEPS, tolerance: float = TOLERANCE
) -> Tensor:
    """The least-squares answer among those that are zero where not kept, for all outputs at once.

    Minimises ``<D, A D> / 2 - <D, B>`` over ``D`` with the support of ``keep`` by conjugate gradients with a diagonal
    preconditioner (as ALPS does, arXiv 2406.07831, section 3.3), each output with steps of its own. One product of the
    Gram with the change per step: no factor for each output.

    Args:
        gram: A, [..., inputs, inputs], positive definite.
        cross: B, [..., inputs, outputs].
        keep: True may change, [..., inputs, outputs].
        start: where to begin, of the same shape, zero where not kept. The answer is never worse.
        steps: how many at most.
        tolerance: by how much the residual has to shrink, from what it is where nothing changes.
    """
    scale = 1 / gram.diagonal(dim1=-2, dim2=-1)[..., None]
    found, residual = start.clone(), torch.where(keep, cross - gram @ start, 0)
    ahead = scale * residual
    direction, size = ahead, (residual * ahead).sum(-2, keepdim=True)
    whole = torch.where(keep, cross, 0)
    least = tolerance**2 * (scale * whole.square()).sum(-2, keepdim=True)
    for _ in range(steps):
        if not bool((size > least).any()):
            break
        along = torch.where(keep, gram @ direction, 0)
        curve = (direction * along).sum(-2, keepdim=True)
        step = torch.where(curve > 0, size / curve.clamp(min=torch.finfo(curve.dtype).tiny), 0)
        found += step * direction
        residual -= step * along
        ahead = scale * residual
        before, size = size, (residual * ahead).sum(-2, keepdim=True)
        direction = ahead + direction * size / before.clamp(min=torch.finfo(before.dtype).tiny)
    return found
