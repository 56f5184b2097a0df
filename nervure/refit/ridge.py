"""Ridge regression towards the weights that are there, with as much freedom as samples that were left out allow.

What a consumer says wrong is ``r = y - (W x + b)``: ``y`` is what the dense network says at this place, ``x`` what
enters the smaller one. Its weights change by the ``D`` that minimises ``|r - D^T x - d|^2 + ridge |D|^2``, so

    (X^T X + ridge I) D = X^T r

and with ``r = 0`` nothing changes. ``d`` goes into the bias; centred moments stand for ``X^T X`` and ``X^T r`` then.
The ridge is in units of the mean variance of an input. Where there are fewer positions than inputs,

    D = X^T (X X^T + ridge I)^-1 r

is the same and takes a smaller matrix.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.refit.moments import Moments
from nervure.refit.surgeon import ROUGHLY, TOLERANCE, restrict, update_by_gram, update_by_positions

RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9)
"""The ridges that are tried, strongest first."""
WORSE = 2
"""After so many in a row that do no better on the samples left out, weaker ones are not tried."""
SCALE_RIDGE = 1e-3
COLUMNS = 256
"""Inputs whose weights are multiplied at once."""
PLENTY = 4
"""Positions per input from which on a factor for each input alone is not tried: weights have enough to learn from."""
ENOUGH = 0.1
"""Positions per input from which on each weight is fitted."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """An answer: by how much weights ([stack, inputs, outputs]) and means ([stack, outputs]) change.

    ``freedom`` is ``"ridge"``, ``"scale"`` (a factor for each input), ``"bias"`` or ``"none"``; ``error`` is that on
    the samples that were fitted on, where it is known.
    """

    freedom: str
    ridge: float
    change: Tensor
    shift: Tensor
    error: float | None = None


@final
@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A consumer to be fitted.

    Attributes:
        weight: its weights, [stack, outputs, inputs], as exact as the model has them.
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

    @property
    def is_stepwise(self) -> bool:
        """Whether the answer is approached step by step, inside a mask."""
        return self.keep is not None and not self.by_surgeon

    def gram(self, ridge: Tensor) -> Tensor:
        """X^T X, centred where means can be corrected, with ``ridge`` [stack] on its diagonal.

        A matrix of its own, which may be written to, laid out as factors are.
        """
        if self.seen.is_few:
            found = self.seen.r.new_zeros(len(self.weight), *2 * self.weight.shape[2:])
            for x, _ in self.seen.positions(is_centred=self.has_shift):
                found.baddbmm_(x.mT, x)
        else:
            found = self.seen.xx.clone()
            if not self.has_shift:
                mean = self.seen.mean
                found.baddbmm_(mean[:, :, None], mean[:, None], alpha=self.seen.count)
        found.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        return found.mT

    @property
    def positions(self) -> tuple[Tensor, Tensor]:
        """X and r, centred where means can be corrected, [stack, positions, inputs or outputs]; where they are few."""
        xs, rs = zip(*self.seen.positions(is_centred=self.has_shift), strict=True)
        return torch.cat(xs, 1), torch.cat(rs, 1)

    @property
    def cross(self) -> Tensor:
        """X^T r, centred where means can be corrected, [stack, inputs, outputs]; not to be written to."""
        if self.seen.is_few:
            x, r = self.positions
            return x.mT @ r
        xr, mean = self.seen.xr, self.seen.mean
        return xr if self.has_shift else xr + self.seen.count * mean[:, :, None] * self.seen.r[:, None]

    @property
    def unit(self) -> Tensor:
        """The mean of the diagonal of X^T X, [stack]."""
        found = self.seen.spread.mean(1)
        return found if self.has_shift else found + self.seen.count * self.seen.mean.square().mean(1)

    @property
    def nothing(self) -> Tensor:
        """No change, [stack, inputs, outputs]; it takes no memory."""
        return self.seen.r.new_zeros(()).expand(self.weight.mT.shape)

    def held_errors(self, fit: "Fit") -> list[float]:
        """The error on the samples that are left out, view by view."""
        return [moments.error(fit.change, fit.shift) for moments in self.held]

    def fit(self, freedom: str, ridge: float, change: Tensor) -> Fit:
        """The answer with these weights, and the means that go with them."""
        shift = torch.zeros_like(self.seen.r)
        if self.has_shift and freedom != "none":
            shift = self.seen.r - (self.seen.mean[:, None] @ change)[:, 0]
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
    judge.take("none", 0, problem.nothing)
    if problem.has_shift:
        judge.take("bias", 0, problem.nothing)
    if bool((problem.unit > 0).any()):
        if problem.seen.count < PLENTY * problem.weight.shape[2]:
            judge.take("scale", SCALE_RIDGE, scale_factors(problem))
        if problem.enough:
            _walk(problem, ridges, near, judge)
    return _refine(problem, judge.best)


@final
class _Judge:
    """Keeps the best of the answers that it is shown, in as few numbers as say it."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._least = problem, float("inf")
        self._best: tuple[str, float, Tensor] = ("none", 0, problem.nothing)
        self._before: list[float] = []

    @property
    def best(self) -> Fit:
        """The best answer."""
        return self._fit(*self._best)

    def _fit(self, freedom: str, ridge: float, numbers: Tensor) -> Fit:
        change = numbers * self._problem.weight.mT if freedom == "scale" else numbers
        return self._problem.fit(freedom, ridge, change)

    def take(self, freedom: str, ridge: float, numbers: Tensor) -> float:
        """The error of an answer, as a share of that of the first.

        Args:
            freedom: see :class:`Fit`.
            ridge: see :class:`Fit`.
            numbers: the change, or of a ``"scale"`` by how many times of itself each input's weights change,
                [stack, inputs, 1].
        """
        errors = self._problem.held_errors(self._fit(freedom, ridge, numbers))
        self._before = self._before or errors
        error = max(e / max(b, sys.float_info.min) for e, b in zip(errors, self._before, strict=True))
        if error < self._least:
            self._best, self._least = (freedom, ridge, numbers), error
        return error


def _walk(problem: Problem, ridges: Sequence[float], near: float | None, judge: _Judge) -> None:
    """Try ridges: all from the strongest on, or those around one, as long as they do better."""
    change, unit, equations = problem.nothing, problem.unit, Equations(problem)

    def error(ridge: float) -> float:
        nonlocal change
        found = equations.solve(ridge * unit, change)
        if found is None:
            return float("inf")
        change = found
        return judge.take("ridge", ridge, change)

    # What is approached step by step inside a mask begins with what a stronger ridge gave.
    if near is None or problem.is_stepwise or len(ridges) <= WORSE:
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
    if best.freedom != "ridge" or not problem.is_stepwise:
        return best
    change = Equations(problem).solve(best.ridge * problem.unit, best.change, tolerance=TOLERANCE)
    return best if change is None else problem.fit("ridge", best.ridge, change)


@final
class Equations:
    """What has to hold of the change of all weights (that are kept), to be solved with one ridge after another."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        if problem.seen.is_few and not problem.is_stepwise:
            self._x, self._right = problem.positions
            self._products = self._x @ self._x.mT
        else:
            self._right = problem.cross

    def solve(self, ridge: Tensor, start: Tensor, tolerance: float = ROUGHLY) -> Tensor | None:
        """The change, [stack, inputs, outputs]; None where the ridge is too weak.

        Args:
            ridge: [stack].
            start: an answer to begin from, where it is approached step by step.
            tolerance: how near to come there.
        """
        problem, ridge = self._problem, ridge.clamp(min=torch.finfo(torch.float64).tiny)
        if problem.keep is None:
            return self._without_mask(ridge)
        if problem.is_stepwise:
            gram, keep = problem.gram(ridge), problem.keep.transpose(1, 2)
            return restrict(gram, self._right, keep, start, tolerance=tolerance)
        change = self._without_mask(ridge)
        return None if change is None else self._by_surgeon(change, ridge, problem.keep)

    def _by_surgeon(self, change: Tensor, ridge: Tensor, keep: Tensor) -> Tensor | None:
        change += self._problem.weight.mT
        if self._problem.seen.is_few:
            found = map(update_by_positions, change.mT, self._x, ridge.tolist(), keep)
        else:
            found = map(update_by_gram, change.mT, self._problem.gram(ridge), keep)
        return change.sub_(self._problem.weight.mT) if all(found) else None

    def _without_mask(self, ridge: Tensor) -> Tensor | None:
        if not self._problem.seen.is_few:
            return solve_in_place(self._problem.gram(ridge), self._right)
        products = self._products.clone()
        products.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        found = solve_in_place(products.mT, self._right)
        return None if found is None else self._x.mT @ found


def solve_in_place(matrix: Tensor, right: Tensor) -> Tensor | None:
    """``matrix^-1 right``; None where the matrix is not positive definite. The matrix becomes its factor.

    Args:
        matrix: symmetric, [stack, inputs, inputs], columns next to one another: else it is copied.
        right: [stack, inputs, outputs].
    """
    info = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if bool((info > 0).any()):
        return None
    half = torch.linalg.solve_triangular(matrix, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(matrix.mT, half, upper=True)
    return whole


def scale_factors(problem: Problem) -> Tensor:
    """By how many times of itself each input's weights change: ``(W^T W * X^T X) s = diag(W X^T r)``.

    [stack, inputs, 1]; all are zero where these inputs determine none.
    """
    weight, right = problem.weight, _said_by_each(problem)[:, :, None]
    system = problem.gram(torch.zeros_like(problem.unit))
    for rows in _pieces(weight.shape[2]):
        mine = weight[:, :, rows].double()
        for columns in _pieces(weight.shape[2]):
            system[:, rows, columns] *= mine.mT @ weight[:, :, columns].double()
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.add_(SCALE_RIDGE * diagonal.mean(1, keepdim=True).clamp(min=torch.finfo(diagonal.dtype).tiny))
    factors = solve_in_place(system, right)
    return torch.zeros_like(right) if factors is None else factors


def _said_by_each(problem: Problem) -> Tensor:
    """``diag(W X^T r)``: how far what each input adds goes along with what is wrong, [stack, inputs]."""
    if problem.seen.is_few:
        x, r = problem.positions
        return (x * (r @ problem.weight.double())).sum(1)
    return (problem.weight.mT * problem.cross).sum(2)


def _pieces(size: int) -> list[slice]:
    return [slice(first, first + COLUMNS) for first in range(0, size, COLUMNS)]
