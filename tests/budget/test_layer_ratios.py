"""How dense layers stay by their outliers and their spectra, by the papers' formulas."""

import pytest
import torch

from nervure.budget.layer_ratios import hill_exponent, outlier_share, ratios_by_outliers, ratios_by_spectrum


def test_outliers_are_those_above_so_many_times_the_mean_of_their_layer() -> None:
    scores = torch.ones(10, 10, 1)
    scores[0, :3] = 100.0
    mean = (97 + 300) / 100
    assert outlier_share(scores, 5.0) == pytest.approx(0.03)
    assert outlier_share(scores, 100 / mean + 0.1) == 0.0


def test_densities_by_outliers_are_those_of_the_published_code() -> None:
    shares, spread, density = {"a": 0.01, "b": 0.05, "c": 0.02}, 0.08, 0.3
    low, high = min(shares.values()), max(shares.values())
    scaled = {name: (d - low) * (1 / (high - low) * spread * 2) for name, d in shares.items()}
    mean = sum(scaled.values()) / 3
    found = ratios_by_outliers(shares, density, spread)
    assert found == pytest.approx({name: s - mean + density for name, s in scaled.items()})
    assert max(found.values()) - min(found.values()) == pytest.approx(2 * spread)
    assert ratios_by_outliers({"a": 0.1, "b": 0.1}, density) == {"a": density, "b": density}


def test_the_exponent_is_hills_of_the_upper_half_of_the_eigenvalues() -> None:
    eigenvalues = torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (6, 9))
    weight = left @ torch.diag(eigenvalues.sqrt()) @ right[:6]
    expected = 1 + 3 / float((eigenvalues[:3] / eigenvalues[3]).log().sum())
    assert hill_exponent(weight) == pytest.approx(expected)
    assert hill_exponent(weight.T) == pytest.approx(expected)
    assert hill_exponent(100 * weight) == pytest.approx(expected)
    assert hill_exponent(torch.ones(1, 5)) == float("inf")


def test_densities_by_spectrum_lie_on_the_published_line_and_keep_what_was_asked() -> None:
    exponents, sizes = {"a": 2.0, "b": 3.0, "c": 6.0}, {"a": 100, "b": 10, "c": 1000}
    found = ratios_by_spectrum(exponents, sizes, 0.7, spread=0.3)
    places = {name: (q - 2) / 4 for name, q in exponents.items()}
    relative = {name: 0.7 + 0.6 * place for name, place in places.items()}
    factor = 0.3 * 1110 / sum(sizes[n] * relative[n] for n in sizes)
    assert found == pytest.approx({name: 1 - factor * r for name, r in relative.items()})
    assert sum(sizes[n] * found[n] for n in sizes) == pytest.approx(0.7 * 1110)
    assert ratios_by_spectrum({"a": float("inf"), "b": 2.0, "c": 3.0}, sizes, 0.7)["a"] == pytest.approx(
        ratios_by_spectrum({"a": 3.0, "b": 2.0, "c": 3.0}, sizes, 0.7)["a"]
    )
