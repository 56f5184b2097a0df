"""The hash estimator and the spanning tree: known answers, the published form and its flaws."""

import pytest
import torch
from torch import Tensor

from nervure.dependence import conditional_connectivity, mutual_information
from nervure.dependence.hashing import hash_codes
from nervure.dependence.spanning import friedman_rafsky, spanning_tree
from nervure.dependence.weighting import PHIS
from nervure.errors import ArgumentError, DataError


def chain(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    z, a, b = torch.randn(3, n, generator=torch.Generator().manual_seed(seed))
    return 0.8 * z + 0.6 * a, 0.8 * z + 0.6 * b, z


def layer(n: int = 400, parents: int = 4, children: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(n, parents, generator=generator)
    w = torch.randn(children, parents, generator=generator)
    return p, torch.relu(p @ w.T + 0.3 * torch.randn(n, children, generator=generator)), w


def test_hash_cells_of_symbols_are_the_symbols() -> None:
    symbols = torch.arange(1600) % 8
    codes = hash_codes(symbols[:, None].double(), 0).bucket
    assert bool((codes.max(1).values == 7).all())
    value = float(mutual_information(symbols, symbols, estimator="hash", correction="none"))
    assert value == pytest.approx(7 / 9, abs=1e-6)


@pytest.mark.parametrize(("r", "truth", "room"), [(0.0, 0.0, 0.001), (0.5, 0.0683, 0.03), (0.8, 0.2263, 0.07)])
def test_hashing_comes_near_the_truth(r: float, truth: float, room: float) -> None:
    x, e = torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))
    assert float(mutual_information(x, r * x + (1 - r * r) ** 0.5 * e, estimator="hash")) == pytest.approx(
        truth, abs=room
    )


def test_a_chain_is_dependent_until_its_middle_is_known() -> None:
    x, y, z = chain(4000)
    assert float(mutual_information(x, y, estimator="hash")) == pytest.approx(0.113, abs=0.04)
    assert float(mutual_information(x, y, given=z, estimator="hash")) < 0.01


def test_the_published_sum_misses_the_cells_no_sample_fell_into() -> None:
    symbols = torch.arange(1600) % 8
    published = float(mutual_information(symbols, symbols, estimator="hash", faithful=True))
    assert published == pytest.approx(0.340, abs=0.001)


def test_bias_is_most_of_an_uncorrected_conditional_estimate() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y, z = (torch.randn(1000, d, generator=generator) for d in (1, 1, 8))
    raw, corrected = (
        float(mutual_information(x, y, given=z, estimator="hash", correction=c)) for c in ("none", "permutation")
    )
    assert raw > 0.03
    assert corrected < 0.1 * raw


@pytest.mark.parametrize("phi", PHIS)
def test_every_factor_gives_scores(phi: str) -> None:
    p, x, w = layer()
    scores = conditional_connectivity(p, x, estimator="hash", weights=w, phi=phi)
    assert scores.shape == (3, 4)
    assert bool(torch.isfinite(scores).all() and (scores >= 0).all() and (scores > 0).any())


def test_the_published_weights_are_signed() -> None:
    p, x, w = layer()
    plain = conditional_connectivity(p, x, estimator="hash", faithful=True)
    weighted = conditional_connectivity(p, x, estimator="hash", faithful=True, weights=w)
    torch.testing.assert_close(weighted, plain * (w - w.min()) / (w.max() - w.min()))


def test_a_decaying_factor_joins_weight_and_activity_inside_the_sum() -> None:
    p, x, w = layer()
    none = torch.full_like(w, 1e-12).index_fill(0, torch.tensor([0]), 1.0)
    joined = conditional_connectivity(p, x, estimator="hash", weights=none, phi="exp(-(w*act)^2/2)", correction="none")
    plain = conditional_connectivity(p, x, estimator="hash", correction="none")
    torch.testing.assert_close(joined[1:], plain[1:])
    assert bool((joined[0] < plain[0]).all())


def test_a_layer_is_scored_as_its_pairs_are() -> None:
    p, x, _ = layer()
    scores = conditional_connectivity(p, x, estimator="hash")
    alone = mutual_information(x[:, 1], p[:, 2], given=p[:, [0, 1, 3]], estimator="hash")
    torch.testing.assert_close(scores[1, 2], alone)


@pytest.mark.parametrize("estimator", ["hash", "mst"])
def test_groups_dead_channels_and_tiles(estimator: str) -> None:
    p, x, _ = layer(240)
    x = torch.cat([x, torch.ones(240, 1)], dim=1)
    scores = conditional_connectivity(p, x, estimator=estimator)
    assert scores[3].abs().max() == 0
    assert conditional_connectivity(p, x, estimator=estimator, groups=2).shape == (2, 2)
    if estimator == "hash":
        torch.testing.assert_close(conditional_connectivity(p, x, estimator=estimator, memory=500_000), scores)
        with pytest.raises(ArgumentError, match="at least 384000 bytes"):
            conditional_connectivity(p, x, estimator=estimator, memory=1000)


def test_a_seed_decides() -> None:
    x, y, _ = chain(300)
    z = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    values = [float(mutual_information(x, y, given=z, estimator="hash", seed=s)) for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_the_tree_is_the_shortest() -> None:
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = spanning_tree(points)
    ours = (points[ends[:, 0]] - points[ends[:, 1]]).norm(dim=1).sum()
    theirs = csgraph.minimum_spanning_tree(torch.cdist(points, points).numpy()).sum()
    assert float(ours) == pytest.approx(float(theirs))


def test_the_tree_statistic_knows_near_from_far() -> None:
    a, b = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(friedman_rafsky(torch.cat([a, b + 100]), 200)) == pytest.approx(1 - 1 / 200)
    assert float(friedman_rafsky(torch.cat([a, b]), 200)) < 0.12


def test_the_tree_estimator_finds_dependence_and_what_explains_it() -> None:
    x, y, z = chain(1500)
    without = float(mutual_information(x, y, estimator="mst"))
    known = float(mutual_information(x, y, given=z, estimator="mst"))
    strong = float(mutual_information(x, x + 0.1 * y, estimator="mst"))
    assert known < 0.1 < without + 0.05 < strong


def test_what_these_estimators_cannot_do() -> None:
    x, y, _ = chain(100)
    with pytest.raises(ArgumentError, match="henze-penrose"):
        mutual_information(x, y, estimator="mst", divergence="shannon")
    with pytest.raises(DataError, match="6 or more"):
        mutual_information(x[:5], y[:5], estimator="mst")
    with pytest.raises(ArgumentError, match="needs estimator='hash'"):
        conditional_connectivity(x, y, phi="act")
    with pytest.raises(ArgumentError, match="faithful=True"):
        conditional_connectivity(x, y, faithful=True)
