"""Mutual information: known answers, symmetries, and what happens to bad input."""

import math

import pytest
import torch
from torch import Tensor

from nervure.dependence import mutual_information
from nervure.dependence.divergences import of_correlation
from nervure.errors import ArgumentError, DataError, NervureWarning

ORACLES = [(0.0, 0.0), (0.3, 0.0231), (0.5, 0.0683), (0.8, 0.2263), (0.9, 0.3517), (0.95, 0.4701)]


def correlated(r: float, n: int = 20000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two standard normal variables whose sample correlation is exactly ``r``."""
    raw = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, _ = torch.linalg.qr(raw - raw.mean(0))
    x, e = (u * n**0.5).T
    return x, r * x + (1 - r * r) ** 0.5 * e


@pytest.mark.parametrize(("r", "truth"), ORACLES)
def test_henze_penrose_of_a_correlation_is_the_integral(r: float, truth: float) -> None:
    assert float(of_correlation(torch.tensor(r), "henze-penrose")) == pytest.approx(truth, abs=6e-5)


@pytest.mark.parametrize(("r", "truth"), ORACLES)
def test_the_gaussian_estimator_finds_the_truth(r: float, truth: float) -> None:
    x, y = correlated(r)
    assert float(mutual_information(x, y, estimator="gaussian")) == pytest.approx(truth, abs=2e-4)
    shannon = float(mutual_information(x, y, estimator="gaussian", divergence="shannon"))
    assert shannon == pytest.approx(-0.5 * math.log1p(-r * r), abs=2e-4)


@pytest.mark.parametrize(("r", "truth"), ORACLES)
def test_the_residual_estimator_comes_near_the_truth_from_below(r: float, truth: float) -> None:
    value = float(mutual_information(*correlated(r)))
    assert 0.85 * truth - 0.001 < value < truth + 0.003


@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_a_uniform_symbol_shares_everything_with_itself(k: int) -> None:
    x = torch.arange(k * 300) % k
    assert float(mutual_information(x, x, bins=8, correction="none", smooth=False)) == pytest.approx(
        (k - 1) / (k + 1), abs=1e-6
    )
    shannon = float(mutual_information(x, x, divergence="shannon", correction="none", smooth=False))
    assert shannon == pytest.approx(math.log(k), abs=1e-6)


def test_shannon_of_symbols_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (2000,), generator=generator)
    y = (x + torch.randint(0, 2, (2000,), generator=generator)) % 4
    ours = float(mutual_information(x, y, divergence="shannon", correction="none", smooth=False))
    assert ours == pytest.approx(metrics.mutual_info_score(x.numpy(), y.numpy()), abs=1e-6)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_a_chain_is_dependent_until_its_middle_is_known(estimator: str) -> None:
    generator = torch.Generator().manual_seed(1)
    z, a, b = torch.randn(3, 50000, generator=generator)
    x, y = 0.8 * z + 0.6 * a, 0.8 * z + 0.6 * b
    assert float(mutual_information(x, y, estimator=estimator)) == pytest.approx(0.113, abs=0.015)
    assert float(mutual_information(x, y, given=z, estimator=estimator)) < 0.002


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_something_irrelevant_changes_nothing(estimator: str) -> None:
    x, y = correlated(0.8)
    z = torch.randn(20000, 3, generator=torch.Generator().manual_seed(5))
    without = float(mutual_information(x, y, estimator=estimator))
    assert float(mutual_information(x, y, given=z, estimator=estimator)) == pytest.approx(without, abs=0.003)


@pytest.mark.parametrize("estimator", ["residual", "gaussian", "hash"])
def test_information_is_mutual(estimator: str) -> None:
    x, y = correlated(0.6, 1000)
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(5))
    there = float(mutual_information(x, y, given=z, estimator=estimator, correction="law"))
    back = float(mutual_information(y, x, given=z, estimator=estimator, correction="law"))
    assert there == pytest.approx(back, abs=1e-9)


def test_a_monotone_map_of_a_variable_changes_nothing() -> None:
    x, y = correlated(0.6, 1000)
    assert float(mutual_information(x.exp(), y**3)) == pytest.approx(float(mutual_information(x, y)), abs=1e-9)


def test_the_order_of_samples_does_not_matter() -> None:
    x, y = correlated(0.6, 1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert float(mutual_information(x[order], y[order])) == pytest.approx(float(mutual_information(x, y)), abs=1e-9)


def test_what_no_correlation_shows_is_seen_by_bins() -> None:
    x, e = torch.randn(2, 4000, generator=torch.Generator().manual_seed(7))
    y = x.square() + 0.1 * e
    assert float(mutual_information(x, y)) > 0.2
    assert float(mutual_information(x, y, estimator="gaussian")) < 0.02


def test_independent_pairs_of_a_vector_add_their_shannon_information() -> None:
    pairs = [correlated(r, 5000, seed) for seed, r in enumerate((0.5, 0.8))]
    x, y = (torch.stack([pair[k] for pair in pairs], dim=1) for k in (0, 1))
    expected = sum(-0.5 * math.log1p(-r * r) for r in (0.5, 0.8))
    value = mutual_information(x, y, estimator="gaussian", divergence="shannon")
    assert float(value) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_an_interval_holds_the_truth_of_most_draws(estimator: str) -> None:
    inside = 0
    for seed in range(10):
        x, e = torch.randn(2, 800, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = mutual_information(x, 0.5 * x + 0.75**0.5 * e, estimator=estimator, interval=0.95)[1:]
        inside += float(low) <= 0.0683 <= float(high)
    assert inside >= 7


@pytest.mark.parametrize("estimator", ["residual", "gaussian", "hash", "mst"])
def test_what_is_constant_shares_nothing(estimator: str) -> None:
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert float(mutual_information(x, torch.full((400,), 3.0), estimator=estimator)) == 0
    known = mutual_information(x, x + 1, given=torch.full((400, 2), 3.0), estimator=estimator)
    assert float(known) > 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_real_kind_of_number_is_taken(dtype: torch.dtype) -> None:
    x = (3 * torch.randn(400, generator=torch.Generator().manual_seed(0))).to(dtype)
    value = mutual_information(x, x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value) > 0.4


def test_input_that_cannot_be_used_is_refused() -> None:
    x, y = correlated(0.5, 400)
    with pytest.raises(DataError, match="1 of 400 samples of given are NaN"):
        mutual_information(x, y, given=torch.where(torch.arange(400) == 3, torch.nan, x))
    with pytest.raises(DataError, match="x has 400, y has 400, given has 399"):
        mutual_information(x, y, given=x[1:])
    with pytest.raises(ArgumentError, match="bins=1 "):
        mutual_information(x, y, bins=1)
    with pytest.raises(ArgumentError, match="divergence='renyi'"):
        mutual_information(x, y, divergence="renyi")  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="interval=95"):
        mutual_information(x, y, bins=4, interval=95)
    with pytest.warns(NervureWarning, match="40 samples are few"):
        mutual_information(x[:40], y[:40])
