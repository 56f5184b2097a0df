"""Scores of connections and a budget in, masks out: exactly what was asked, within the limits of the layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from nervure.core.check import require_finite
from nervure.errors import BudgetError


@final
@dataclass(frozen=True, slots=True, eq=False)
class LayerBudget:
    """The connections of one layer, for sale.

    Attributes:
        scores: [children, parents], higher stays.
        price: what each costs, of the same shape, whole numbers.
        fixed: which must stay. Boolean of the same shape.
        most: how many may go.
    """

    scores: Tensor
    price: Tensor
    fixed: Tensor
    most: int


def allocate_connections(
    stalls: Mapping[str, LayerBudget], budget: int, unit: str = "connections"
) -> dict[str, Tensor]:
    """Keep the connections with the highest scores until ``budget`` is spent.

    Args:
        stalls: the connections by weight tensor.
        budget: what those that stay may cost together. With equal prices exactly this is spent; with others, the
            threshold is set where it fits and what still fits comes back, best first.
        unit: what prices count, for messages.

    Returns:
        For each tensor a boolean [children, parents]. Ties go to the earlier tensor and the lower index.

    Raises:
        ScoreError: a score is NaN or infinite.
        BudgetError: what must stay costs more than the budget.
    """
    scores = np.concatenate([np.empty(0), *(_flat(require_finite(s.scores, n)) for n, s in stalls.items())])
    prices = np.concatenate([np.empty(0, np.int64), *(_flat(stall.price) for stall in stalls.values())])
    order = np.argsort(-scores, kind="stable")
    stays = _must_stay(stalls, order)
    spent = int(prices[stays].sum())
    if spent > budget:
        raise BudgetError(
            f"{budget} of {int(prices.sum())} {unit} were asked for, but limits, protection and the paths that keep "
            f"every output connected need {spent}."
        )
    stays[_affordable(order[~stays[order]], prices, budget - spent)] = True
    sizes = [stall.scores.numel() for stall in stalls.values()]
    masks = torch.from_numpy(stays).split(sizes)
    return {name: mask.reshape(stall.scores.shape) for (name, stall), mask in zip(stalls.items(), masks, strict=True)}


def least(stalls: Mapping[str, LayerBudget]) -> int:
    """What must stay costs: the smallest budget that can be met."""
    return sum(_least(stall) for stall in stalls.values())


def _least(stall: LayerBudget) -> int:
    stays = _must_stay({"": stall}, np.argsort(-_flat(stall.scores), kind="stable"))
    return int(_flat(stall.price)[stays].sum())


def _must_stay(stalls: Mapping[str, LayerBudget], order: np.ndarray) -> np.ndarray:
    """Fixed connections, and in each layer the best of the others beyond those that may go. Boolean [all]."""
    fixed = np.concatenate([np.empty(0, bool), *(_flat(stall.fixed) for stall in stalls.values())])
    owner = np.repeat(np.arange(len(stalls)), [stall.scores.numel() for stall in stalls.values()])
    loose = order[~fixed[order]]
    stays = fixed.copy()
    for index, stall in enumerate(stalls.values()):
        if stall.most >= stall.scores.numel():
            continue
        own = loose[owner[loose] == index]
        stays[own[: max(0, len(own) - stall.most)]] = True
    return stays


def _affordable(ranked: np.ndarray, prices: np.ndarray, purse: int) -> np.ndarray:
    """The best of ``ranked`` that ``purse`` pays for together, and after them, best first, what the rest still pays."""
    bought = int(np.searchsorted(np.cumsum(prices[ranked]), purse, side="right"))
    purse -= int(prices[ranked[:bought]].sum())
    chosen, rest = [ranked[:bought]], ranked[bought:]
    while True:
        (fits,) = np.nonzero(prices[rest] <= purse)
        if not len(fits):
            return np.concatenate(chosen)
        chosen.append(rest[fits[:1]])
        purse -= int(prices[rest[fits[0]]])
        rest = rest[fits[1:]]


def _flat(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().reshape(-1).numpy())
