"""Scores of connections and a budget in, masks out: exactly what was asked, within the limits of the layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from nervure.budget.radix_select import add_highest
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
    for name, stall in stalls.items():
        require_finite(stall.scores, name)
    stays = {name: _must_stay(stall) for name, stall in stalls.items()}
    spent = sum(_cost(stall, stays[name]) for name, stall in stalls.items())
    if spent > budget:
        whole = sum(int(stall.price.sum()) for stall in stalls.values())
        raise BudgetError(
            f"{budget} of {whole} {unit} were asked for, but limits, protection and the paths that keep "
            f"every output connected need {spent}."
        )
    if price := _common_price(stalls.values()):
        add_highest({name: stall.scores for name, stall in stalls.items()}, stays, (budget - spent) // price)
    else:
        _buy_best(stalls, stays, budget - spent)
    return {name: stays[name].reshape(stall.scores.shape) for name, stall in stalls.items()}


def least(stalls: Mapping[str, LayerBudget]) -> int:
    """What must stay costs: the smallest budget that can be met."""
    return sum(_cost(stall, _must_stay(stall)) for stall in stalls.values())


def _must_stay(stall: LayerBudget) -> Tensor:
    """What is fixed, and the best of the others beyond those that may go. Boolean [all], a tensor of its own."""
    stays = stall.fixed.detach().cpu().reshape(-1).clone()
    loose = stays.numel() - int(stays.sum())
    if stall.most < loose:
        add_highest({"": stall.scores}, {"": stays}, loose - max(stall.most, 0))
    return stays


def _cost(stall: LayerBudget, stays: Tensor) -> int:
    return int(stall.price.reshape(-1)[stays].sum())


def _common_price(stalls: Iterable[LayerBudget]) -> int | None:
    """What every connection costs; None where they differ."""
    ends = {int(end) for stall in stalls if stall.price.numel() for end in torch.aminmax(stall.price)}
    return ends.pop() if len(ends) == 1 else None


def _buy_best(stalls: Mapping[str, LayerBudget], stays: Mapping[str, Tensor], purse: int) -> None:
    """Mark the best that ``purse`` pays for together, and after them, best first, what the rest still pays."""
    marked = np.concatenate([np.empty(0, bool), *(_flat(mask) for mask in stays.values())])
    prices = np.concatenate([np.empty(0, np.int64), *(_flat(stall.price) for stall in stalls.values())])
    scores = np.concatenate([np.empty(0), *(_flat(stall.scores) for stall in stalls.values())])
    order = np.argsort(-scores, kind="stable")
    marked[_affordable(order[~marked[order]], prices, purse)] = True
    parts = torch.from_numpy(marked).split([mask.numel() for mask in stays.values()])
    for mask, part in zip(stays.values(), parts, strict=True):
        mask.copy_(part)


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
