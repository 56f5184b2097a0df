"""Ridge regression towards the weights that are there, with as much freedom as samples that were left out allow.

What a consumer says wrong is ``r = y - (W x + b)``: ``y`` is what the dense network says at this place, ``x`` what
enters the smaller one. Its weights change by the ``D`` that minimises ``|r - D^T x - d|^2 + ridge |D|^2``, so

    (X^T X + ridge I) D = X^T r

and with ``r = 0`` nothing changes. ``d`` goes into the bias; centred moments stand for ``X^T X`` and ``X^T r`` then.
The ridge is in units of the mean variance of an input.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.refit.moments import Moments
from nervure.refit.surgeon import ROUGHLY, TOLERANCE, obs_update, restrict

RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9)
"""The ridges that are tried, strongest first."""
WORSE = 2
"""After so many in a row that do no better on the samples left out, weaker ones are not tried."""
SCALE_RIDGE = 1e-3
ENOUGH = 0.1
"""Positions per input from which on each weight is fitted."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """An answer: by how much weights ([stack, inputs, outputs]) and means ([stack, outputs]) change.

    ``freedom`` is ``"ridge"``, ``"scale"`` (a factor for each input), ``"bias"`` or ``"none"``.
    """

    freedom: str
    ridge: float
    change: Tensor
    shift: Tensor


@final
@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A consumer to be fitted.

    Attributes:
        weight: its weights, [stack, outputs, inputs], in double precision.
        seen: moments over the samples to fit on.
        held: moments over the samples that are left out, view by view, by which the answer is chosen.
        has_shift: whether means can be corrected, in a bias or in the norm that follows.
        keep: which weights may be other than zero; None: all.
        by_surgeon: whether these are found by the optimal brain surgeon: fast and rough.
    """

    weight: Tensor
    seen: Moments
    held: tuple[Moments, ...]
    has_shift: bool
    keep: Tensor | None = None
    by_surgeon: bool = False

    @property
    def enough(self) -> bool:
        """Whether there are positions enough to fit each weight."""
        return self.seen.count >= ENOUGH * self.weight.shape[2]

    def normal(self) -> tuple[Tensor, Tensor]:
        """X^T X and X^T r, centred where means can be corrected."""
        seen = self.seen
        if self.has_shift:
            return seen.xx, seen.xr
        mean = seen.mean
        return (
            seen.xx + seen.count * mean[:, :, None] * mean[:, None],
            seen.xr + seen.count * mean[:, :, None] * seen.r[:, None],
        )

    def held_errors(self, fit: "Fit") -> list[float]:
        """The error on the samples that are left out, view by view."""
        return [moments.error(fit.change, fit.shift) for moments in self.held]

    def fit(self, freedom: str, ridge: float, change: Tensor) -> Fit:
        """The answer with these weights, and the means that go with them."""
        shift = torch.zeros_like(self.seen.r)
        if self.has_shift and freedom != "none":
            shift = self.seen.r - (change * self.seen.mean[:, :, None]).sum(1)
        return Fit(freedom, ridge, change, shift)


def solve(problem: Problem, ridges: Sequence[float] = RIDGES) -> Fit:
    """The answer that does best on the samples left out; of several that do alike the first, which changes least.

    Of several views that where it gains least counts, so that none is worse off.
    """
    best, least, worse = None, float("inf"), 0
    before: list[float] = []
    for fit in _answers(problem, ridges):
        errors = problem.held_errors(fit)
        before = before or errors
        error = max(e / max(b, sys.float_info.min) for e, b in zip(errors, before, strict=True))
        better = error < least
        worse = 0 if better else worse + (fit.freedom == "ridge")
        if better:
            best, least = fit, error
        if worse == WORSE:
            break
    assert best is not None
    return _refine(problem, best)


def _refine(problem: Problem, best: Fit) -> Fit:
    """The same answer, to the end: answers inside a mask are compared where they are roughly there."""
    if best.freedom != "ridge" or problem.keep is None or problem.by_surgeon:
        return best
    gram, cross = problem.normal()
    ridge = best.ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    change = add_ridge(problem, gram, cross, ridge, best.change, tolerance=TOLERANCE)
    return best if change is None else problem.fit("ridge", best.ridge, change)


def _answers(problem: Problem, ridges: Sequence[float]) -> Iterator[Fit]:
    """What can be done, from nothing to all; weights only where they have inputs to learn from."""
    still = torch.zeros_like(problem.seen.xr)
    yield problem.fit("none", 0, still)
    if problem.has_shift:
        yield problem.fit("bias", 0, still)
    gram, cross = problem.normal()
    unit = gram.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((unit > 0).any()):
        return
    yield problem.fit("scale", SCALE_RIDGE, scale_columns(problem.weight, gram, cross))
    change = still
    for ridge in ridges if problem.enough else ():
        found = add_ridge(problem, gram, cross, ridge * unit, change)
        if found is not None:
            change = found
            yield problem.fit("ridge", ridge, change)


def add_ridge(
    problem: Problem, gram: Tensor, cross: Tensor, ridge: Tensor, start: Tensor, tolerance: float = ROUGHLY
) -> Tensor | None:
    """The change of all weights (that are kept), [stack, inputs, outputs]; None where the ridge is too weak.

    ``start`` is an answer to begin from, and ``tolerance`` how near to come, where it is approached step by step.
    """
    tiny = torch.finfo(gram.dtype).tiny
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    gram = gram + ridge.clamp(min=tiny)[:, None, None] * eye
    if problem.keep is not None and not problem.by_surgeon:
        return restrict(gram, cross, problem.keep.transpose(1, 2), start, tolerance=tolerance)
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool((info > 0).any()):
        return None
    change = torch.cholesky_solve(cross, factor)
    if problem.keep is None:
        return change
    free = problem.weight + change.transpose(1, 2)
    left = [obs_update(w, a, k) for w, a, k in zip(free, gram, problem.keep, strict=True)]
    return (torch.stack(left) - problem.weight).transpose(1, 2)


def scale_columns(weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """The change that multiplies each input by a factor of its own: ``(W^T W * X^T X) s = diag(W X^T r)``."""
    system = (weight.transpose(1, 2) @ weight) * gram
    right = (weight.transpose(1, 2) * cross).sum(2)
    unit = system.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(system + SCALE_RIDGE * unit * eye)[0]
    factors: Tensor = torch.cholesky_solve(right[:, :, None], factor)
    return factors * weight.transpose(1, 2)
