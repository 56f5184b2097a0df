"""Energy statistics against definitions written out, identities, laws of invariance and the dcor library."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from nervure.dependence import (
    class_distances,
    distance_correlation,
    distance_covariance,
    energy_coefficient,
    energy_distance,
    energy_r2,
    partial_distance_correlation,
)
from nervure.errors import ArgumentError, DataError

both_forms = pytest.mark.parametrize("unbiased", [True, False])


def plain_distances(x: Tensor, y: Tensor, exponent: float = 1.0) -> Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(2).sqrt() ** exponent


def centred(d: Tensor, unbiased: bool) -> Tensor:
    """Double centring (V) or U-centring, as in the papers."""
    n = len(d)
    if not unbiased:
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()
    u = d - d.sum(0) / (n - 2) - d.sum(1)[:, None] / (n - 2) + d.sum() / ((n - 1) * (n - 2))
    return u.fill_diagonal_(0.0)


def plain_covariance(a: Tensor, b: Tensor, unbiased: bool) -> float:
    n = len(a)
    pairs = n * (n - 3) if unbiased else n * n
    return float((centred(a.clone(), unbiased) * centred(b.clone(), unbiased)).sum() / pairs)


def related(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 40, generator=generator)
    return x, x[:, :3] ** 2 + 0.5 * torch.randn(n, 3, generator=generator)


@both_forms
@pytest.mark.parametrize("exponent", [1.0, 0.5, 1.5])
def test_covariance_and_correlation_are_those_of_the_definition(unbiased: bool, exponent: float) -> None:
    x, y = related()
    a, b = plain_distances(x, x, exponent), plain_distances(y, y, exponent)
    expected = plain_covariance(a, b, unbiased)
    scale = (plain_covariance(a, a, unbiased) * plain_covariance(b, b, unbiased)) ** 0.5
    found = [f(x, y, unbiased=unbiased, exponent=exponent) for f in (distance_covariance, distance_correlation)]
    power = 1 if unbiased else 0.5
    assert [float(f) for f in found] == pytest.approx([expected**power, (expected / scale) ** power], rel=1e-6)


@both_forms
def test_class_numbers_are_one_apart(unbiased: bool) -> None:
    x, _ = related()
    labels = torch.arange(len(x)) % 3
    b = (labels[:, None] != labels[None]).double()
    expected = plain_covariance(plain_distances(x, x), b, unbiased)
    found = distance_covariance(x, labels, unbiased=unbiased, classes=True)
    assert float(found) == pytest.approx(expected if unbiased else expected**0.5, rel=1e-6)


@pytest.mark.parametrize("tile", [7, 20, 61, 1000])
def test_every_tile_size_gives_the_same_answer(tile: int) -> None:
    x, y = related(61)
    labels = torch.arange(61) % 3
    for one, other in (
        (distance_correlation(x, y), distance_correlation(x, y, tile=tile)),
        (distance_covariance(x, y, unbiased=False), distance_covariance(x, y, unbiased=False, tile=tile)),
        (energy_distance(x, x[:30] + 1), energy_distance(x, x[:30] + 1, tile=tile)),
        (energy_r2(x, labels), energy_r2(x, labels, tile=tile)),
        (partial_distance_correlation(x, y, x[:, :5]), partial_distance_correlation(x, y, x[:, :5], tile=tile)),
    ):
        assert float(one) == pytest.approx(float(other), abs=1e-9)


@pytest.mark.slow
def test_the_library_that_statisticians_use_agrees() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcor = pytest.importorskip("dcor")
        x, y = related()
        a, b, c = (np.asarray(t.double()) for t in (x, y, x[:, 2:9] + 1))
        expected = [
            dcor.distance_correlation(a, b),
            dcor.u_distance_correlation_sqr(a, b),
            dcor.distance_covariance(a, b),
            dcor.u_distance_covariance_sqr(a, b),
            dcor.partial_distance_correlation(a, b, c),
            dcor.energy_distance(a[:, :3], b),
        ]
    found = [
        distance_correlation(x, y, unbiased=False),
        distance_correlation(x, y),
        distance_covariance(x, y, unbiased=False),
        distance_covariance(x, y),
        partial_distance_correlation(x, y, x[:, 2:9] + 1),
        energy_distance(x[:, :3], y, unbiased=False),
    ]
    assert [float(f) for f in found] == pytest.approx(expected, abs=1e-6)


def test_energy_distance_has_its_properties() -> None:
    x, _ = related()
    other = torch.randn(45, 40) + 0.3
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    e = energy_distance(x, other, unbiased=False)
    assert float(energy_distance(x, x, unbiased=False)) == pytest.approx(0, abs=1e-12)
    assert float(e) > 0
    moved = energy_distance(x.double() @ rotation + 5, other.double() @ rotation + 5, unbiased=False)
    assert float(moved) == pytest.approx(float(e), rel=1e-6)
    assert float(energy_distance(3 * x, 3 * other, unbiased=False)) == pytest.approx(3 * float(e), rel=1e-6)
    assert float(energy_coefficient(3 * x, 3 * other)) == pytest.approx(float(energy_coefficient(x, other)), rel=1e-6)
    assert 0 <= float(energy_coefficient(x, other)) <= 1
    assert float(energy_coefficient(torch.zeros(3, 2), torch.ones(4, 2))) == 1


def test_points_of_one_dimension_give_the_known_energy_distance() -> None:
    # X = {0, 1}, Y = {3}: 2 * (3 + 2) / 2 - 2 * 1 / 4 - 0 = 4.5, and without self-pairs 5 - 1 - 0.
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 3.0])
    assert float(energy_distance(x, y[:1], unbiased=False)) == pytest.approx(4.5)
    assert float(energy_distance(x, y)) == pytest.approx(4.0)


def test_under_the_null_the_unbiased_forms_are_about_zero_and_the_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 50, 300, generator=generator) for _ in range(30)]
    e_u = torch.stack([energy_distance(x, y) for x, y in draws])
    e_v = torch.stack([energy_distance(x, y, unbiased=False) for x, y in draws])
    assert abs(float(e_u.mean())) < 4 * float(e_u.std()) / 30**0.5
    assert float(e_v.min()) > 0.5
    assert abs(float(torch.stack([distance_correlation(x, y) for x, y in draws]).mean())) < 0.05
    assert float(distance_correlation(*draws[0], unbiased=False)) > 0.5
    labels = torch.arange(50) % 5
    assert abs(float(torch.stack([energy_r2(x, labels) for x, _ in draws]).mean())) < 0.002
    assert float(energy_r2(draws[0][0], labels, unbiased=False)) > 0.05


def test_r2_is_the_weighted_sum_of_energy_distances_over_the_mean_distance() -> None:
    x, _ = related(50)
    labels = torch.tensor([0] * 25 + [1] * 15 + [2] * 10)
    x[labels == 1] += 1
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    pairs = sum(
        p[j] * p[k] * energy_distance(x[labels == j], x[labels == k], unbiased=False)
        for j in range(3)
        for k in range(j + 1, 3)
    )
    expected = float(pairs / plain_distances(x, x).mean())
    assert float(energy_r2(x, labels, unbiased=False)) == pytest.approx(expected, rel=1e-6)


def test_the_covariance_with_labels_is_the_weighted_distance_of_the_classes_to_all() -> None:
    x, _ = related(50)
    labels = torch.tensor([0] * 25 + [1] * 15 + [2] * 10)
    p = (0.5, 0.3, 0.2)
    expected = sum(p[k] ** 2 * float(energy_distance(x[labels == k], x, unbiased=False)) for k in range(3))
    found = distance_covariance(x, labels, unbiased=False, classes=True)
    assert float(found) ** 2 == pytest.approx(expected, rel=1e-6)


def test_partial_correlation_sees_through_a_common_cause() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(400, 1, generator=generator)
    x, y = (z + 0.3 * torch.randn(400, 1, generator=generator) for _ in range(2))
    assert float(distance_correlation(x, y)) > 0.5
    assert abs(float(partial_distance_correlation(x, y, z))) < 0.1
    assert float(partial_distance_correlation(x, x, z)) == pytest.approx(1)


@both_forms
def test_constant_sides_and_single_classes_tell_nothing(unbiased: bool) -> None:
    x, _ = related(20)
    constant = torch.full((20, 40), 0.1)
    assert float(distance_correlation(x, constant, unbiased=unbiased)) == 0
    assert float(energy_r2(constant, torch.arange(20) % 2, unbiased=unbiased)) == 0
    assert float(energy_r2(x, torch.zeros(20, dtype=torch.int64), unbiased=unbiased)) == 0
    assert float(energy_coefficient(constant[:5], constant[5:], unbiased=unbiased)) == 0


def test_a_class_of_one_sample_is_left_out_of_the_unbiased_r2() -> None:
    x, _ = related(21)
    labels = torch.cat([torch.arange(20) % 2, torch.tensor([7])])
    assert float(energy_r2(x, labels)) == pytest.approx(float(energy_r2(x[:20], labels[:20])))


def test_scores_do_not_depend_on_the_scale_however_small() -> None:
    x, y = related()
    for factor in (1e-18, 1e-6, 1e12):
        assert float(distance_correlation(x * factor, y)) == pytest.approx(float(distance_correlation(x, y)), rel=1e-5)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_near_points_far_from_the_centre_keep_their_distances_in_single_precision(spread: float) -> None:
    """Two clouds far apart, tiny inside: the product form would lose the inner distances."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(40, 64, generator=generator, dtype=torch.float64) * spread
    x = torch.cat([cloud[:20] - 50, cloud[20:] + 50])
    within = class_distances(x, torch.arange(2).repeat_interleave(20)).within(True)
    exact = [plain_distances(part, part).sum() / 380 for part in (x[:20], x[20:])]
    assert within.tolist() == pytest.approx([float(e) for e in exact], rel=1e-6)


def test_shapes_are_flattened_and_class_distances_name_their_classes() -> None:
    x = torch.randn(12, 2, 3, 3)
    labels = torch.tensor([5, 9, 9, 5, 5, 9] * 2)
    found = class_distances(x, labels)
    assert found.classes.tolist() == [5, 9]
    assert found.counts.tolist() == [6, 6]
    expected = plain_distances(x.flatten(1), x.flatten(1))
    assert float(found.sums.sum()) == pytest.approx(float(expected.sum()), rel=1e-9)


def test_what_cannot_be_measured_is_refused_with_the_reason() -> None:
    x, y = related(10)
    with pytest.raises(DataError, match="3 samples: distance covariance takes 4"):
        distance_correlation(x[:3], y[:3])
    with pytest.raises(DataError, match="y has 9 samples, the other side 10"):
        distance_correlation(x, y[:9])
    x[2, 3] = float("nan")
    with pytest.raises(DataError, match="1 of 10 samples of x are NaN"):
        distance_correlation(x, y)
    with pytest.raises(DataError, match="x has 3 dimensions, y 2"):
        energy_distance(y, y[:, :2])
    with pytest.raises(DataError, match="takes 2 of each"):
        energy_distance(y, y[:1])
    with pytest.raises(DataError, match="10 whole numbers"):
        energy_r2(y, torch.rand(10))
    with pytest.raises(DataError, match="samples first"):
        energy_r2(torch.tensor(1.0), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="exponent=3"):
        distance_correlation(y, y, exponent=3)
    with pytest.raises(ArgumentError, match="tile=0"):
        distance_correlation(y, y, tile=0)


def test_the_inputs_are_left_alone_and_need_no_gradient() -> None:
    x, y = related(12)
    x.requires_grad_()
    before = x.detach().clone()
    assert not distance_correlation(x, y).requires_grad
    assert torch.equal(x, before)
