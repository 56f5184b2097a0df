"""Ridge regression towards the weights that are there, with as much freedom as samples that were left out allow.

What a consumer says wrong is ``r = y - (W x + b)``: ``y`` is what the dense network says at this place, ``x`` what
enters the smaller one. Its weights change by the ``D`` that minimises ``|r - D^T x - d|^2 + ridge |D|^2``, so

    (X^T X + ridge I) D = X^T r

and with ``r = 0`` nothing changes. ``d`` goes into the bias; centred moments stand for ``X^T X`` and ``X^T r`` then.
The ridge is in units of the mean variance of an input.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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
PLENTY = 4
"""Positions per input from which on a factor for each input alone is not tried: weights have enough to learn from."""
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


def solve(problem: Problem, ridges: Sequence[float] = RIDGES, near: float | None = None) -> Fit:
    """The answer that does best on the samples left out; of several that do alike the first, which changes least.

    Of several views that where it gains least counts, so that none is worse off.

    Args:
        problem: what is to be fitted.
        ridges: those that are tried, strongest first.
        near: where the search for a ridge begins, such as that of the layer before. None: with the strongest.
    """
    judge = _Judge(problem)
    for fit in _few_numbers(problem):
        judge.take(fit)
    gram, cross = problem.normal()
    unit = gram.diagonal(dim1=1, dim2=2).mean(1)
    if bool((unit > 0).any()):
        if problem.seen.count < PLENTY * gram.shape[1]:
            judge.take(problem.fit("scale", SCALE_RIDGE, scale_columns(problem.weight, gram, cross)))
        if problem.enough:
            _walk(problem, ridges, near, judge, (gram, cross, unit))
    assert judge.best is not None
    return _refine(problem, judge.best)


def _few_numbers(problem: Problem) -> Iterator[Fit]:
    """Nothing changes, or means alone."""
    still = torch.zeros_like(problem.seen.xr)
    yield problem.fit("none", 0, still)
    if problem.has_shift:
        yield problem.fit("bias", 0, still)


@final
class _Judge:
    """Keeps the best of the answers that it is shown."""

    def __init__(self, problem: Problem) -> None:
        self.best: Fit | None = None
        self._problem, self._least = problem, float("inf")
        self._before: list[float] = []

    def take(self, fit: Fit) -> float:
        """The error of an answer, as a share of that of the first."""
        errors = self._problem.held_errors(fit)
        self._before = self._before or errors
        error = max(e / max(b, sys.float_info.min) for e, b in zip(errors, self._before, strict=True))
        if error < self._least:
            self.best, self._least = fit, error
        return error


def _walk(
    problem: Problem,
    ridges: Sequence[float],
    near: float | None,
    judge: _Judge,
    sums: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Try ridges: all from the strongest on, or those around one, as long as they do better."""
    gram, cross, unit = sums
    change = torch.zeros_like(cross)

    def error(ridge: float) -> float:
        nonlocal change
        found = add_ridge(problem, gram, cross, ridge * unit, change)
        if found is None:
            return float("inf")
        change = found
        return judge.take(problem.fit("ridge", ridge, change))

    # What is approached step by step inside a mask begins with what a stronger ridge gave.
    is_stepwise = problem.keep is not None and not problem.by_surgeon
    if near is None or is_stepwise or len(ridges) <= WORSE:
        _descend(ridges, error, float("inf"), WORSE)
        return
    start = min(range(len(ridges)), key=lambda place: abs(math.log(ridges[place] / near)))
    first = error(ridges[start])
    if not _descend(ridges[start + 1 :], error, first, WORSE):
        _descend(ridges[:start][::-1], error, first, 1)


def _descend(ridges: Iterable[float], error: Callable[[float], float], least: float, patience: int) -> bool:
    """Try ridges until so many in a row did no better; whether any did better than what there was."""
    worse, is_better = 0, False
    for ridge in ridges:
        found = error(ridge)
        # Too weak a ridge says nothing about others.
        worse = 0 if found < least else worse + math.isfinite(found)
        is_better |= found < least
        least = min(least, found)
        if worse == patience:
            break
    return is_better


def _refine(problem: Problem, best: Fit) -> Fit:
    """The same answer, to the end: answers inside a mask are compared where they are roughly there."""
    if best.freedom != "ridge" or problem.keep is None or problem.by_surgeon:
        return best
    gram, cross = problem.normal()
    ridge = best.ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    change = add_ridge(problem, gram, cross, ridge, best.change, tolerance=TOLERANCE)
    return best if change is None else problem.fit("ridge", best.ridge, change)


def add_ridge(
    problem: Problem, gram: Tensor, cross: Tensor, ridge: Tensor, start: Tensor, tolerance: float = ROUGHLY
) -> Tensor | None:
    """The change of all weights (that are kept), [stack, inputs, outputs]; None where the ridge is too weak.

    ``start`` is an answer to begin from, and ``tolerance`` how near to come, where it is approached step by step.
    """
    tiny = torch.finfo(gram.dtype).tiny
    gram = gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(ridge.clamp(min=tiny)[:, None])
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
    diagonal = system.diagonal(dim1=1, dim2=2)
    unit = diagonal.mean(1, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
    diagonal.add_(SCALE_RIDGE * unit)
    factor = torch.linalg.cholesky_ex(system)[0]
    factors: Tensor = torch.cholesky_solve(right[:, :, None], factor)
    return factors * weight.transpose(1, 2)
