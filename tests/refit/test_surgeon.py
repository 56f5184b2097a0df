"""What stays of a masked matrix makes up for what left, and what left stays zero."""

import importlib

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, prune, refit
from nervure.refit import obs_update, restrict
from nervure.refit.gather import Gathered, GramPart
from nervure.refit.moments import Moments
from nervure.refit.ridge import Equations, Problem, solve
from nervure.refit.surgeon import update_by_positions

gather_module = importlib.import_module("nervure.refit.gather")


def problem_of(outputs: int = 5, inputs: int = 12, samples: int = 200) -> tuple[Tensor, Tensor]:
    """Weights, and correlated inputs, [samples, inputs]."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.eye(inputs, dtype=torch.float64) + 0.3 * torch.randn(inputs, inputs, generator=generator).double()
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x


def unstructured(weight: Tensor) -> Tensor:
    return weight.abs() > weight.abs().median()


def two_of_four(weight: Tensor) -> Tensor:
    ranks = weight.abs().reshape(len(weight), -1, 4).argsort(2, descending=True)
    return torch.zeros_like(weight, dtype=torch.bool).reshape(ranks.shape).scatter(2, ranks[..., :2], True).flatten(1)


def blocks(weight: Tensor) -> Tensor:
    strong = weight.abs().reshape(len(weight), -1, 3).sum(2)
    return (strong > strong.median()).repeat_interleave(3, 1)


PATTERNS = [unstructured, two_of_four, blocks]


def loss(weight: Tensor, now: Tensor, x: Tensor) -> float:
    return float((x @ (now - weight).T).square().sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.__name__)
def test_what_leaves_is_exactly_zero_and_what_stays_makes_up_for_it(pattern) -> None:  # type: ignore[no-untyped-def]
    weight, x = problem_of(outputs=60)
    keep = pattern(weight)
    found = obs_update(weight, x.T @ x, keep)
    assert bool((found[~keep] == 0).all())
    best = restrict(x.T @ x, x.T @ x @ weight.T, keep.T, found.T, steps=200, tolerance=0).T
    assert loss(weight, best, x) <= loss(weight, found, x) < loss(weight, weight * keep, x)


def test_columns_are_updated_in_blocks_of_any_size_alike() -> None:
    weight, x = problem_of()
    keep = unstructured(weight)
    one, five, all_ = (obs_update(weight, x.T @ x, keep, columns=n) for n in (1, 5, 100))
    torch.testing.assert_close(one, five)
    torch.testing.assert_close(one, all_)


@pytest.mark.parametrize("columns", [1, 5, 64, 512])
@pytest.mark.parametrize("ridge", [1e-3, 1e-1, 1e3])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.__name__)
def test_few_positions_do_without_their_gram(pattern, ridge: float, columns: int) -> None:  # type: ignore[no-untyped-def]
    weight, x = problem_of(outputs=9, inputs=240, samples=30)
    keep = pattern(weight)
    expected = obs_update(weight, x.T @ x + ridge * torch.eye(240, dtype=torch.float64), keep)
    found = weight.T.contiguous().T
    assert update_by_positions(found, x, ridge, keep, columns)
    assert bool((found[~keep] == 0).all())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_too_weak_a_ridge_is_told() -> None:
    weight, x = problem_of(inputs=20, samples=5)
    assert not update_by_positions(weight, torch.zeros_like(x), 0.0, unstructured(weight))


def test_removing_one_weight_is_the_brain_surgeon_s_step() -> None:
    weight, x = problem_of(outputs=1)
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[0, 0] = False
    inverse = torch.linalg.inv(x.T @ x)
    expected = weight - weight[0, 0] / inverse[0, 0] * inverse[0]
    torch.testing.assert_close(obs_update(weight, x.T @ x, keep), expected * keep)


def test_the_restricted_answer_is_that_of_each_row_alone() -> None:
    weight, x = problem_of()
    keep, gram = unstructured(weight), x.T @ x
    start = torch.zeros_like(weight.T)
    found = restrict(gram, gram @ weight.T, keep.T, start, steps=200, tolerance=0)
    for row, kept in enumerate(keep):
        alone = torch.linalg.lstsq(x[:, kept], x @ weight[row]).solution
        torch.testing.assert_close(found[kept, row], alone, rtol=1e-6, atol=1e-8)
    assert bool((found.T[~keep] == 0).all())


@pytest.mark.parametrize("steps", [0, 1, 3, 20])
def test_more_steps_are_never_worse_than_where_they_began(steps: int) -> None:
    weight, x = problem_of()
    keep, gram = unstructured(weight), x.T @ x
    start = obs_update(weight, gram, keep).T
    found = restrict(gram, gram @ weight.T, keep.T, start, steps=steps)
    assert loss(weight, found.T, x) <= loss(weight, start.T, x) * (1 + 1e-12)


@pytest.mark.parametrize("by_surgeon", [False, True])
def test_a_masked_layer_is_fitted_inside_its_mask(by_surgeon: bool) -> None:
    weight, x = problem_of()
    keep = unstructured(weight)
    moments = []
    for part in (x[:150], x[150:]):
        moments.append(Moments(1, 12, 5, torch.device("cpu")))
        y = part @ weight.T
        moments[-1].add(part[None], (y - part @ (weight * keep).T)[None], y[None])
    seen, held = moments
    problem = Problem((weight * keep)[None], seen, (held,), has_shift=False, keep=keep[None], by_surgeon=by_surgeon)
    fit = solve(problem)
    still = problem.fit("none", 0, torch.zeros_like(fit.change))
    assert bool((fit.change[0].T[~keep] == 0).all())
    assert moments[0].error(fit.change, fit.shift) < 0.9 * moments[0].error(still.change, still.shift)
    new = weight * keep + fit.change[0].T
    direct = loss(weight, new, x[:150]) / (x[:150] @ weight.T).var(0, correction=0).sum() / 150
    assert moments[0].error(fit.change, fit.shift) == pytest.approx(float(direct), rel=1e-8)


def test_the_answer_inside_a_mask_is_the_optimum_of_the_ridge_that_was_chosen() -> None:
    weight, x = problem_of()
    keep = unstructured(weight)
    moments = [Moments(1, 12, 5, torch.device("cpu")) for _ in range(2)]
    for part, sums in zip((x[:150], x[150:]), moments, strict=True):
        y = part @ weight.T
        sums.add(part[None], (y - part @ (weight * keep).T)[None], y[None])
    problem = Problem((weight * keep)[None], moments[0], (moments[1],), has_shift=False, keep=keep[None])
    fit = solve(problem)
    assert fit.freedom == "ridge"
    gram, cross = problem.gram(fit.ridge * problem.unit)[0], problem.cross
    for row in range(5):
        own = keep[row]
        best = torch.linalg.solve(gram[own][:, own], cross[0, own, row])
        torch.testing.assert_close(fit.change[0, own, row], best, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("samples", "positions"), [(16, 12 * 100), (400, 300 * 32)])
def test_places_are_more_where_samples_are_few(samples: int, positions: int) -> None:
    """Of 100 places of each picture: all where 16 pictures are to give 8,192 positions, 32 where 400 are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    pictures = torch.randn(samples, 1, 10, 10)
    pruned = prune(model, pictures[:1], Magnitude(keep=0.5), progress=False)
    found = refit(pruned, [pictures], reference=model, progress=False)
    assert next(layer.positions for layer in found.layers if layer.tensor == "2.weight") == positions


def test_sums_over_an_input_are_made_once_for_all_that_read_it_and_part_where_it_does() -> None:
    made = torch.Generator().manual_seed(0)
    xs = [torch.randn(1, 9, 4, generator=made) for _ in range(3)]
    other = torch.randn(1, 9, 4, generator=made)

    def errors(outputs: int) -> list[Tensor]:
        return [torch.randn(1, 9, outputs, generator=made) for _ in xs]

    first, second = errors(3), errors(2)
    one = Moments(1, 4, 3, torch.device("cpu"))
    two = Moments(1, 4, 2, torch.device("cpu"), one.inputs)
    alone = Moments(1, 4, 2, torch.device("cpu"))
    for place, x in enumerate(xs):
        if place == 2:
            two.part_company()
        one.add(x, first[place], first[place])
        theirs = other if place == 2 else x
        two.add(theirs, second[place], second[place], with_inputs=place == 2)
        alone.add(theirs, second[place], second[place])
    assert one.inputs is not two.inputs
    for name in ("xx", "xr", "mean", "r", "rr", "yy"):
        assert getattr(two, name).equal(getattr(alone, name)), name
    whole = torch.cat(xs, 1)[0].double()
    torch.testing.assert_close(one.xx[0], (whole - whole.mean(0)).T @ (whole - whole.mean(0)), rtol=1e-5, atol=1e-5)


def test_what_does_not_run_each_time_keeps_its_own_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (first, second) = Gathered(), torch.randn(2, 1, 8, 3, generator=torch.Generator().manual_seed(0))
    for rows in ([(0, first), (1, first)], [(0, second)]):
        made = [gather_module._Row(place, x, torch.zeros(1, 8, 2), torch.ones(1, 8, 2), True) for place, x in rows]
        monkeypatch.setattr(gather_module, "_read", lambda *given, made=made: iter(made))
        gather_module._add(found, GramPart(None, held=False), [], None, None, {})  # type: ignore[arg-type]
    torch.testing.assert_close(found.seen[0].mean, torch.cat((first, second), 1).mean(1).double())
    torch.testing.assert_close(found.seen[1].mean, first.mean(1).double())


def test_a_search_near_a_ridge_that_cannot_be_solved_finds_one_that_can() -> None:
    """Eight large inputs say the same, so the weakest ridges are too weak for numbers of this size."""
    torch.manual_seed(0)
    count, inputs = 1536, 384
    x = torch.randn(count + 400, inputs)
    x[:, :8] = torch.randn(count + 400, 1) * torch.randn(1, 8) * 3000
    weight = torch.randn(8, inputs) * 0.05
    weight[:, :8] *= 1e-3
    said = x @ torch.cat([torch.zeros(8, 8), torch.randn(inputs - 8, 8) * 0.1])
    parts = []
    for some, given in ((x[:count], said[:count]), (x[count:], said[count:])):
        moments = Moments(1, inputs, 8, x.device)
        moments.add(some[None], (given - some @ weight.T)[None], given[None])
        parts.append(moments)
    problem = Problem(weight[None].double(), parts[0], (parts[1],), has_shift=True)
    assert Equations(problem).solve(1e-9 * problem.unit, problem.nothing) is None
    best = solve(problem)
    assert best.freedom == "ridge"
    assert {solve(problem, near=near).ridge for near in (10.0, 1e-3, 1e-6, 1e-9)} == {best.ridge}
