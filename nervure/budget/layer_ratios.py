"""How dense each layer stays where layers differ in what they can lose: by outliers, and by the spectrum of weights.

=======================  ============================================================================================
``outlier_share``,       Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning
``ratios_by_outliers``   LLMs to High Sparsity", 2024, section 4
``hill_exponent``,       Lu et al., "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved
``ratios_by_spectrum``   Layer-wise Pruning of Large Language Models", 2024, equations 2 and 3
=======================  ============================================================================================

Differs from the papers: a layer is one weight tensor, not a block of a transformer, and densities are scaled, or cut
off at 1 and shared out anew, so that exactly as many weights stay as were asked for.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

OUTLIER = 5.0
OUTLIER_SPREAD = 0.08
SPECTRUM_SPREAD = 0.3
"""What the papers take for large language models."""


def outlier_share(scores: Tensor, times: float = OUTLIER) -> float:
    """The share of scores, 0 or more, that are above ``times`` their mean: the layer's outlier ratio ``D``."""
    return float((scores > times * scores.mean(dtype=torch.float64).to(scores)).double().mean())


def ratios_by_outliers(shares: Mapping[str, float], density: float, spread: float = OUTLIER_SPREAD) -> dict[str, float]:
    """Densities that rise with the outlier ratio, ``2 * spread`` from the least to the highest, ``density`` on average.

    >>> ratios_by_outliers({"a": 0.0, "b": 0.5, "c": 1.0}, 0.5, spread=0.25)
    {'a': 0.25, 'b': 0.5, 'c': 0.75}
    """
    low, high = min(shares.values()), max(shares.values())
    rise = {name: 2 * spread * (share - low) / (high - low) if high > low else 0.0 for name, share in shares.items()}
    mean = sum(rise.values()) / len(rise)
    return {name: min(max(value - mean + density, 0.0), 1.0) for name, value in rise.items()}


def hill_exponent(weight: Tensor, share: float = 0.5) -> float:
    """Hill's estimate of the exponent of the tail of the eigenvalues of ``W^T W``, from the ``share`` that is largest.

    Heavy tails (small exponents) are a sign of a layer that has learnt much. Infinite where the tail is flat.

    Args:
        weight: [outputs, inputs].
        share: k / n in ``1 + k / sum(log(eigenvalue_i / eigenvalue_k+1))``, i over the k largest of n eigenvalues.
    """
    wide = weight.double()
    gram = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=torch.finfo(torch.float64).tiny)
    k = min(max(int(share * len(values)), 1), len(values) - 1)
    if k < 1:
        return float("inf")
    total = float((values[:k] / values[k]).log().sum())
    return 1 + k / total if total > 0 else float("inf")


def ratios_by_spectrum(
    exponents: Mapping[str, float], sizes: Mapping[str, int], density: float, spread: float = SPECTRUM_SPREAD
) -> dict[str, float]:
    """Densities that fall with the exponent: sparsities from ``1 - spread`` to ``1 + spread`` times a common factor.

    The factor is such that ``density`` of all weights stay, where no layer would lose more than it has.

    >>> ratios_by_spectrum({"a": 2.0, "b": 4.0}, {"a": 10, "b": 10}, 0.5, spread=0.25)
    {'a': 0.625, 'b': 0.375}
    """
    finite = [value for value in exponents.values() if value < float("inf")]
    low, high = min(finite, default=1.0), max(finite, default=1.0)
    places = {n: (min(value, high) - low) / (high - low) if high > low else 0.5 for n, value in exponents.items()}
    relative = {name: 1 - spread + 2 * spread * place for name, place in places.items()}
    factor = (1 - density) * sum(sizes.values()) / sum(sizes[name] * value for name, value in relative.items())
    return {name: min(max(1 - factor * value, 0.0), 1.0) for name, value in relative.items()}
