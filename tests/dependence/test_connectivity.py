"""Conditional connectivity of whole layers: against a naive loop, whatever the tile, and with bad input."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nervure.dependence import conditional_connectivity, mutual_information
from nervure.dependence.estimator_options import Options
from nervure.dependence.regression import residuals
from nervure.dependence.residual import connectivity
from nervure.errors import ArgumentError, DataError, NervureWarning


def layer(n: int = 1500, parents: int = 6, children: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated ReLU parents and ReLU children of them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(parents, parents, generator=generator) / parents**0.5 + torch.eye(parents)
    p = torch.relu(torch.randn(n, parents, generator=generator) @ mixing)
    w = torch.randn(parents, children, generator=generator)
    return p, torch.relu(p @ w + 0.5 * torch.randn(n, children, generator=generator))


def standard(values: Tensor) -> np.ndarray:
    array = values.double().numpy()
    return (array - array.mean(0)) / array.std(0)


def test_the_residuals_are_those_of_one_regression_for_each_pair() -> None:
    p, x = layer()
    left = residuals(p.double(), x.double(), 1e-9)
    for i, j in product(range(6), range(5)):
        others = np.delete(standard(p), i, axis=1)
        parent, child = standard(p)[:, i], standard(x)[:, j]
        expected = [v - others @ np.linalg.lstsq(others, v, rcond=None)[0] for v in (parent, child)]
        found = [left.parent[:, i].numpy(), (left.child[:, j] + left.slope[i, j] * left.parent[:, i]).numpy()]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("divergence", ["henze-penrose", "shannon"])
@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_a_layer_is_scored_as_its_pairs_are(estimator: str, divergence: str) -> None:
    p, x = layer()
    whole = conditional_connectivity(p, x, estimator=estimator, divergence=divergence)
    for i, j in product(range(6), range(5)):
        others = p[:, [k for k in range(6) if k != i]]
        alone = mutual_information(p[:, i], x[:, j], given=others, estimator=estimator, divergence=divergence)
        # The edges of a pair in a layer are put together from those of its two parts.
        assert float(whole[j, i]) == pytest.approx(float(alone), abs=0.02 if estimator == "residual" else 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 21), st.integers(330, 900), st.integers(60_000, 4_000_000), st.integers(0, 99))
def test_the_tile_changes_nothing(parents: int, children: int, n: int, memory: int, seed: int) -> None:
    p, x = layer(n, parents, children, seed)
    whole = conditional_connectivity(p, x, memory=2**30)
    try:
        tiled = conditional_connectivity(p, x, memory=memory)
    except ArgumentError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        tiled = conditional_connectivity(p, x, memory=least)
    assert torch.equal(whole, tiled)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_permuting_channels_permutes_scores(estimator: str) -> None:
    p, x = layer()
    rows, columns = torch.randperm(5), torch.randperm(6)
    scores = conditional_connectivity(p, x, estimator=estimator, noise=0.1)
    permuted = conditional_connectivity(p[:, columns], x[:, rows], estimator=estimator, noise=0.1)
    torch.testing.assert_close(permuted, scores[rows][:, columns], atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_units_of_measurement_do_not_matter(estimator: str) -> None:
    p, x = layer()
    scores = conditional_connectivity(p, x, estimator=estimator)
    scaled = conditional_connectivity(
        p * torch.tensor([3.0, 1e3, -2.0, 7.0, -1.0, 0.5]) + 4, 100 * x - 3, estimator=estimator
    )
    torch.testing.assert_close(scaled, scores, atol=2e-3, rtol=0)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_precision_of_the_input_is_kept_and_hardly_matters(estimator: str) -> None:
    p, x = layer()
    single, double = (
        conditional_connectivity(p.to(d), x.to(d), estimator=estimator) for d in (torch.float32, torch.float64)
    )
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_dead_channels_score_zero_and_disturb_no_other(estimator: str) -> None:
    p, x = layer()
    scores = conditional_connectivity(p, x, estimator=estimator)
    p_dead = torch.cat([p[:, :2], torch.full((len(p), 1), 7.0), p[:, 2:]], dim=1)
    x_dead = torch.cat([x, torch.zeros(len(x), 1)], dim=1)
    found = conditional_connectivity(p_dead, x_dead, estimator=estimator)
    assert found[:, 2].abs().max() == 0
    assert found[-1].abs().max() == 0
    torch.testing.assert_close(found[:-1, [0, 1, 3, 4, 5, 6]], scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("correction", ["law", "permutation"])
def test_independence_scores_near_zero_once_corrected(correction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    p, x = torch.randn(1000, 12, generator=generator), torch.randn(1000, 12, generator=generator)
    raw = conditional_connectivity(p, x, correction="none", smooth=False)
    corrected = conditional_connectivity(p, x, correction=correction, smooth=False)
    assert 0.010 < raw.mean() < 0.014
    assert corrected.mean() < 0.0015
    assert conditional_connectivity(p, x, correction=correction).mean() < 0.0003


@pytest.mark.parametrize("smooth", [True, False])
def test_the_bias_is_known_where_the_regression_uses_most_of_the_samples(smooth: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    p, x = (torch.randn(600, width, generator=generator, dtype=torch.float64) for width in (300, 16))
    left = residuals(p, x, 1e-3)
    assert left.freedom == pytest.approx(300, abs=5)
    scores = connectivity(left, Options(bins=4, smooth=smooth))
    assert abs(float(scores.mean())) < 0.2 * 0.25 / 300
    biased = connectivity(left, Options(bins=4, smooth=smooth, correction="none"))
    assert float(biased.mean()) > 0.8 * 0.25 / 300


def test_a_parent_alone_is_scored_without_condition() -> None:
    p, x = layer(parents=1, children=1)
    alone = float(conditional_connectivity(p[:, 0], x[:, 0]))
    assert alone == pytest.approx(float(mutual_information(p, x)), abs=0.02)
    assert conditional_connectivity(p[:, 0], x[:, 0]).shape == (1, 1)


def test_groups_are_blocks_of_neighbours() -> None:
    p, x = layer(parents=6, children=4)
    means = conditional_connectivity(p.view(-1, 3, 2).mean(2), x.view(-1, 2, 2).mean(2))
    torch.testing.assert_close(conditional_connectivity(p, x, groups=(2, 3)), means)
    with pytest.raises(ArgumentError, match="4 children cannot be cut into 3"):
        conditional_connectivity(p, x, groups=3)


def test_weights_multiply_scores() -> None:
    p, x = layer()
    w = torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(2))
    strength = w.abs().mean((2, 3)) / w.abs().mean((2, 3)).max()
    scores = conditional_connectivity(p, x)
    torch.testing.assert_close(conditional_connectivity(p, x, weights=w), scores * strength)
    torch.testing.assert_close(conditional_connectivity(p, x, weights=w, phi="w^2"), scores * strength**2)
    torch.testing.assert_close(
        conditional_connectivity(p, x, weights=w, phi="exp(-w^2/2)"), scores * torch.exp(-(strength**2) / 2)
    )
    torch.testing.assert_close(conditional_connectivity(p, x, weights=-w), scores * strength)
    with pytest.raises(ArgumentError, match="give weights="):
        conditional_connectivity(p, x, phi="w")
    with pytest.raises(DataError, match="weights have shape"):
        conditional_connectivity(p, x, weights=w[:3])


def test_an_interval_holds_the_value_and_narrows_with_samples() -> None:
    p, x = layer(4000)
    few = conditional_connectivity(p[:1000], x[:1000], interval=0.9)
    many = conditional_connectivity(p, x, interval=0.9)
    assert bool((many.low <= many.value).all() and (many.value <= many.high).all() and (many.low >= 0).all())
    assert float((many.high - many.low).mean()) < 0.75 * float((few.high - few.low).mean())
    torch.testing.assert_close(many.value, conditional_connectivity(p, x))


def test_too_few_samples_for_the_bins_are_told() -> None:
    p, x = layer(100)
    with pytest.warns(NervureWarning, match="100 samples are few for 8 x 8 bins: 320 are needed"):
        conditional_connectivity(p, x)


def test_a_memory_that_holds_nothing_says_what_would() -> None:
    with pytest.raises(ArgumentError, match="needs at least [0-9]+ bytes"):
        conditional_connectivity(*layer(), memory=1000)


def test_input_that_cannot_be_used_is_refused() -> None:
    p, x = layer()
    spoilt = p.clone()
    spoilt[3, 1], spoilt[7, 0] = torch.nan, torch.inf
    with pytest.raises(DataError, match="2 of 1500 samples of parents are NaN or infinite"):
        conditional_connectivity(spoilt, x)
    with pytest.raises(DataError, match="parents has 1500, children has 1499"):
        conditional_connectivity(p, x[1:])
    with pytest.raises(DataError, match="at least 2 samples"):
        conditional_connectivity(p[:1], x[:1])
    with pytest.raises(ArgumentError, match="estimator='copula'"):
        conditional_connectivity(p, x, estimator="copula")  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="singular"):
        conditional_connectivity(torch.cat([p, p], dim=1), x, ridge=0.0)


@pytest.mark.parametrize("estimator", ["residual", "gaussian"])
def test_children_without_any_noise_are_ranked_by_what_each_parent_adds(estimator: str) -> None:
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(12, 12, generator=generator) / 12**0.5 / 2 + torch.eye(12)
    p, w = torch.randn(1500, 12, generator=generator) @ mixing, torch.randn(8, 12, generator=generator)
    truth = w.abs() * torch.linalg.inv(torch.cov(p.T)).diagonal().rsqrt()
    children = p @ w.T
    scores = conditional_connectivity(p, children, estimator=estimator, noise=0.1)
    for score, true in zip(scores, truth, strict=True):
        ranks = torch.stack([score.argsort().argsort(), true.argsort().argsort()]).double()
        assert float(torch.corrcoef(ranks)[0, 1]) > 0.95
    with pytest.raises(ArgumentError, match="noise=-1"):
        conditional_connectivity(p, children, estimator=estimator, noise=-1)


def test_whole_numbers_are_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randint(0, 5, (1000, 3), generator=generator)
    assert conditional_connectivity(p, p[:, 0] + p[:, 1])[0].argmin() == 2
