"""Least-squares problems: what is solved is right, and takes one matrix beyond what is there."""

import copy
from dataclasses import replace

import pytest
import torch

from nervure.refit.moments import Moments
from nervure.refit.ridge import Equations, Problem, scale_factors, solve, solve_in_place
from tests.memory import peak_of

CPU = torch.device("cpu")


def problem_of(
    inputs: int, outputs: int, positions: int, *, has_shift: bool = True, dtype: torch.dtype = torch.float32
) -> Problem:
    """What is wrong is mostly what another matrix says."""
    made = torch.Generator().manual_seed(inputs)
    weight, wanted = (torch.randn(outputs, inputs, generator=made).to(dtype) for _ in range(2))
    parts = []
    for count in (positions, positions // 4):
        x = torch.randn(count, inputs, generator=made).to(dtype) + 1
        y = x @ wanted.T
        parts.append(Moments(1, inputs, outputs, CPU))
        parts[-1].add(x[None], (y - x @ weight.T)[None], y[None])
    return Problem(weight[None].double(), parts[0], (parts[1],), has_shift)


def peak(problem: Problem) -> int:
    """The most bytes that are held at once while it is solved, beyond what is held before."""
    solve(problem, near=1e-3)
    return peak_of(lambda: solve(problem, near=1e-3))


@pytest.mark.parametrize("has_shift", [True, False])
@pytest.mark.parametrize("positions", [3, 5])
def test_one_square_matrix_is_held_beyond_the_sums(positions: int, has_shift: bool) -> None:
    inputs, outputs = 640, 16
    square = 8 * inputs**2
    held = peak(problem_of(inputs, outputs, positions * inputs, has_shift=has_shift))
    assert square <= held <= 1.7 * square


def test_sums_that_were_looked_at_can_be_added_to() -> None:
    made = torch.Generator().manual_seed(3)
    looked_at, other = Moments(1, 5, 2, CPU), Moments(1, 5, 2, CPU)
    sharing = Moments(1, 5, 2, CPU, looked_at.inputs)
    for _ in range(3):
        x, r, y = (torch.randn(1, 40, width, generator=made) + 10 for width in (5, 2, 2))
        for moments in (looked_at, other):
            moments.add(x, r, y)
        sharing.add(x, 2 * r, y, with_inputs=False)
        assert looked_at.xx.shape == (1, 5, 5)
        assert looked_at.xr.shape == (1, 5, 2)
    for name in ("mean", "r", "rr", "y", "yy", "xx", "xr"):
        torch.testing.assert_close(getattr(looked_at, name), getattr(other, name), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sharing.xr, 2 * looked_at.xr, rtol=1e-5, atol=1e-3)


def summed(moments: Moments) -> Moments:
    """The same, of which sums are all that is left."""
    found = copy.deepcopy(moments)
    assert found.is_few
    assert found.xx.isfinite().all()
    assert found.xr.isfinite().all()
    assert not found.is_few
    return found


@pytest.mark.parametrize("has_shift", [True, False])
@pytest.mark.parametrize("masked", ["", "surgeon", "stepwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_positions_say_what_their_sums_say(masked: str, has_shift: bool, dtype: torch.dtype) -> None:
    few = problem_of(120, 7, 60, has_shift=has_shift, dtype=dtype)
    if masked:
        keep = torch.rand(few.weight.shape, generator=torch.Generator().manual_seed(4)) < 0.5
        few = replace(few, weight=few.weight * keep, keep=keep, by_surgeon=masked == "surgeon")
    sums = replace(few, seen=summed(few.seen), held=tuple(map(summed, few.held)))
    for name in ("cross", "unit"):
        torch.testing.assert_close(getattr(few, name), getattr(sums, name), rtol=1e-4, atol=1e-3)
    ridge = 0.1 * few.unit
    torch.testing.assert_close(few.gram(ridge), sums.gram(ridge), rtol=1e-4, atol=1e-3)
    for ridge in (10 * few.unit, few.unit, 0.01 * few.unit):
        answers = [Equations(one).solve(ridge, one.nothing, tolerance=1e-9) for one in (few, sums)]
        assert answers[0] is not None
        assert answers[1] is not None
        torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)
        if few.keep is not None:
            assert bool(((few.weight.mT + answers[0]) * ~few.keep.mT == 0).all())
        fit = few.fit("ridge", 1, answers[0])
        torch.testing.assert_close(few.held_errors(fit), sums.held_errors(fit), rtol=1e-4, atol=1e-6)
        assert few.seen.error(fit.change, fit.shift) == pytest.approx(sums.seen.error(fit.change, fit.shift), rel=1e-3)
    torch.testing.assert_close(scale_factors(few), scale_factors(sums), rtol=1e-3, atol=1e-4)
    fits = [solve(one) for one in (few, sums)]
    assert fits[0].freedom == fits[1].freedom
    # Products in single precision leave the weakest ridges out.
    assert few.held_errors(fits[0])[0] <= 1.01 * few.held_errors(fits[1])[0]


def test_few_positions_take_no_sums_until_they_are_many() -> None:
    made = torch.Generator().manual_seed(5)
    sharing = Moments(1, 100, 3, CPU)
    other = Moments(1, 100, 3, CPU, sharing.inputs)
    direct, given = torch.zeros(100, 100, dtype=torch.float64), []
    for number in range(4):
        x, r, y = (torch.randn(1, 20, width, generator=made) for width in (100, 3, 3))
        sharing.add(x, r, y)
        other.add(x, -r, y, with_inputs=False)
        assert sharing.is_few == other.is_few == (number < 2)
        if sharing.is_few:
            mine, theirs = ([x for x, _ in one.positions(is_centred=False)] for one in (sharing, other))
            assert all(map(torch.equal, mine, theirs))
        direct += x[0].double().T @ x[0].double()
        given.append((x[0].double(), r[0].double()))
    mean = sharing.mean[0]
    torch.testing.assert_close(sharing.xx[0], direct - 80 * mean[:, None] * mean, rtol=1e-4, atol=1e-4)
    x, r = (torch.cat(each) for each in zip(*given, strict=True))
    torch.testing.assert_close(sharing.xr[0], (x - mean).T @ r, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.xr, -sharing.xr, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_surgeon", [False, True])
def test_few_positions_take_little_memory(by_surgeon: bool) -> None:
    inputs = 640
    problem = problem_of(inputs, 16, 128)
    keep = torch.ones(problem.weight.shape, dtype=torch.bool) if by_surgeon else None
    assert peak(replace(problem, keep=keep, by_surgeon=by_surgeon)) <= 1.6 * 8 * inputs**2


def test_masks_by_few_positions_take_no_square_matrix() -> None:
    inputs = 2048
    problem = problem_of(inputs, 16, 128)
    problem = replace(problem, keep=torch.rand(problem.weight.shape) < 0.5, by_surgeon=True)
    assert problem.seen.is_few
    ridge = 0.01 * problem.unit
    held = peak_of(lambda: Equations(problem).solve(ridge, problem.nothing))
    assert held <= 0.5 * 8 * inputs**2


def test_the_error_is_that_of_all_outputs() -> None:
    problem = problem_of(6, 5000, 90)
    fit = solve(problem)
    assert fit.freedom == "ridge"
    direct = problem.seen.rr - 2 * (fit.change * problem.seen.xr).sum(1)
    direct += (fit.change * (problem.seen.xx @ fit.change)).sum(1)
    whole = float(direct.clamp(min=0).sum() / problem.seen.yy.sum())
    assert problem.seen.error(fit.change, fit.shift) == pytest.approx(whole, rel=1e-6)


def test_a_matrix_is_solved_and_becomes_its_factor() -> None:
    root = torch.randn(2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = (root @ root.mT + torch.eye(7, dtype=torch.float64)).mT.contiguous().mT
    right, before, place = torch.randn(2, 7, 3, dtype=torch.float64), matrix.clone(), matrix.data_ptr()
    torch.testing.assert_close(solve_in_place(matrix, right), torch.linalg.solve(before, right))
    assert matrix.data_ptr() == place
    torch.testing.assert_close(matrix @ matrix.mT, before)
    assert solve_in_place(-before, right) is None


def test_factors_of_inputs_are_the_least_squares() -> None:
    problem = problem_of(9, 4, 200)
    weight, gram, cross = problem.weight[0], problem.seen.xx[0], problem.cross
    system = (weight.T @ weight) * gram
    system.diagonal().add_(1e-3 * system.diagonal().mean())
    factors = torch.linalg.solve(system, (weight.T * cross[0]).sum(1))
    torch.testing.assert_close(scale_factors(problem)[0, :, 0], factors)
