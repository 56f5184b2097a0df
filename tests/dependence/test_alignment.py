"""Centred kernel alignment and HSIC: invariances and known answers."""

import pytest
import torch
from torch import Tensor

from nervure.dependence import cka, hsic
from nervure.errors import ArgumentError, DataError

KINDS = [("linear", True), ("linear", False), ("rbf", True), ("rbf", False)]


def draw(n: int, *widths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator, dtype=torch.float64) for width in widths]


@pytest.mark.parametrize(("kernel", "debiased"), KINDS)
def test_turning_and_scaling_change_nothing(kernel: str, debiased: bool) -> None:
    x, noise, turn = draw(60, 5, 7, 5)
    y = torch.cat([x, noise], dim=1)
    q, _ = torch.linalg.qr(turn[:5])
    value = cka(x, y, kernel=kernel, debiased=debiased)
    torch.testing.assert_close(cka(3 * x @ q + 2, -0.1 * y, kernel=kernel, debiased=debiased), value)
    torch.testing.assert_close(cka(y, x, kernel=kernel, debiased=debiased), value)
    assert 0 < float(value) < 1


@pytest.mark.parametrize(("kernel", "debiased"), KINDS)
def test_a_representation_is_aligned_with_itself(kernel: str, debiased: bool) -> None:
    (x,) = draw(40, 6)
    assert float(cka(x, x, kernel=kernel, debiased=debiased)) == pytest.approx(1)


def test_few_samples_of_many_dimensions_look_alike_only_to_the_biased_one() -> None:
    x, y = draw(20, 500, 500)
    assert float(cka(x, y, debiased=False)) > 0.9
    assert abs(float(cka(x, y))) < 0.1


def test_linear_hsic_is_the_squared_cross_covariance() -> None:
    x, y = draw(30, 4, 3)
    covariance = (x - x.mean(0)).T @ (y - y.mean(0)) / 29
    assert float(hsic(x, y, unbiased=False)) == pytest.approx(float(covariance.square().sum()))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_unbiased_hsic_averages_zero_under_independence(kernel: str) -> None:
    values = torch.stack([hsic(*draw(8, 2, 2, seed=seed), kernel=kernel) for seed in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20
    plain = torch.stack([hsic(*draw(8, 2, 2, seed=seed), kernel=kernel, unbiased=False) for seed in range(50)])
    assert float(plain.mean()) > 10 * float(values.std()) / 20


def test_the_unbiased_hsic_is_that_of_song_and_others() -> None:
    x, y = draw(9, 2, 3)
    k, ell = (v @ v.T for v in (x, y))
    k, ell = k.fill_diagonal_(0), ell.fill_diagonal_(0)
    n = 9
    expected = (k @ ell).trace() + k.sum() * ell.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ ell).sum()
    assert float(hsic(x, y)) == pytest.approx(float(expected) / (n * (n - 3)))


def test_what_cannot_be_aligned() -> None:
    x, y = draw(10, 2, 2)
    assert float(cka(x, torch.ones(10))) == 0
    assert cka(x.float()[:, 0], torch.arange(10)).dtype == torch.float32
    with pytest.raises(DataError, match="needs 4"):
        cka(x[:3], y[:3])
    with pytest.raises(DataError, match="x has 10, y has 9"):
        hsic(x, y[1:])
    with pytest.raises(DataError, match="1 of 10 samples of y are NaN"):
        hsic(x, torch.where(torch.arange(10) == 4, torch.nan, 1.0))
    with pytest.raises(ArgumentError, match="kernel='cosine'"):
        cka(x, y, kernel="cosine")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="bandwidth"):
        cka(x, y, kernel="rbf", bandwidth=0)
