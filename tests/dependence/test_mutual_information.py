"""Mutual information: known answers, symmetries, and what happens to bad input."""

import math

import pytest
import torch
from torch import Tensor

from nervure.dependence import mutual_information
from nervure.dependence.divergences import of_correlation

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
