"""Scores of weights and a density in, masks out: exactly as many as were asked for, and every output still hears.

A *unit* here is what stays or goes together: one weight, one kernel, or a block of kernels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nervure.budget.connection_masks import LayerBudget, allocate_connections
from nervure.budget.radix_select import add_highest, highest_by_place, highest_of_rows
from nervure.budget.weights import Pattern
from nervure.core.check import require_finite
from nervure.errors import BudgetError

Distribution: TypeAlias = Literal["global", "uniform", "erk", "outliers", "spectrum"]
BISECTIONS = 200


def sparse_masks(
    scores: Mapping[str, Tensor],
    *,
    density: float,
    distribution: Distribution = "global",
    pattern: Pattern | None = None,
    fixed: Mapping[str, Tensor] | None = None,
    kernels: Mapping[str, Sequence[int]] | None = None,
    parents: Mapping[str, Tensor] | None = None,
    by_row: bool = False,
    ratios: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Keep the weights of highest score.

    Args:
        scores: for each tensor [outputs, inputs, kernel positions], higher stays. Single weights are looked at tensor
            by tensor, several times: a mapping that makes each when it is asked saves memory.
        density: the fraction of all these weights that stays, in (0, 1]: ``round(density * weights)`` of them. Where
            blocks are of different sizes, as many as fit, never more. n:m patterns say it themselves.
        distribution: ``"global"``: one ranking over all tensors; ``"uniform"``: the same share of each; ``"erk"``:
            shares by Erdos-Renyi kernels, see :func:`erk`; others: as ``ratios`` say.
        pattern: what stays or goes together; None: single weights.
        fixed: weights that must stay, boolean of the same shapes.
        kernels: sizes of the kernels by tensor, for ``"erk"``; without them a kernel counts as a line.
        parents: for tensors whose inputs do not each belong to a unit of their own, the unit of each, [inputs],
            numbered from 0; for patterns that are ``joined``.
        by_row: whether the best weight of every output comes before the second of any, and so on, as
            :func:`within_rows` has it; for single weights.
        ratios: how dense tensors are in proportion to one another, where the distribution is none of the three.

    Returns:
        Booleans of the same shapes. Ties go to the earlier tensor and the lower index.

    Raises:
        ScoreError: a score is NaN or infinite.
        BudgetError: so few weights cannot hold what must stay; the message says how many can, and which tensor
            needs most of them. Or no tensor can be divided as the pattern asks.
    """
    pattern = pattern or Pattern()
    for name, values in scores.items():
        require_finite(values, f"scores of {name!r}")
    if pattern.most is not None:
        return n_of_m(scores, *pattern.most)
    if pattern.block is None:
        return _single_weights(scores, density, distribution, fixed, kernels or {}, by_row, ratios)
    known = (parents or {}) if pattern.joined else {}
    places = {name: _places(values.shape, pattern.block, known.get(name)) for name, values in scores.items()}
    stalls = {
        name: _stall(values, places[name], None if fixed is None else fixed[name]) for name, values in scores.items()
    }
    sizes = {name: int(stall.price.sum()) for name, stall in stalls.items()}
    budget = _affordable(sizes, {name: _needs(stall) for name, stall in stalls.items()}, density)
    if distribution != "global":
        weights = relative_densities(scores, distribution, kernels or {}, ratios)
        stalls = _fix_counts(stalls, [*weights.values()], budget)
    kept = allocate_connections(stalls, budget, "weights")
    return {name: _spread(kept[name], places[name], values.shape) for name, values in scores.items()}


def erk(scores: Mapping[str, Tensor], kernels: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Relative densities of Erdos-Renyi kernels: (outputs + inputs + kernel sides) / (their product).

    Evci et al., "Rigging the Lottery: Making All Tickets Winners", 2020 (after Mocanu et al., 2018).
    """
    found = {}
    for name, values in scores.items():
        sides = (*values.shape[:2], *kernels.get(name, values.shape[2:] if values.shape[2] > 1 else ()))
        found[name] = sum(sides) / math.prod(sides)
    return found


def distribute(sizes: Sequence[int], weights: Sequence[float], budget: int, floors: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to ``sizes * weights`` that sum to ``budget``.

    None is above its size or below its floor; what these take or leave is shared by the others in proportion. What
    rounding leaves goes to the largest remainders, ties to the earlier.

    >>> distribute([100, 50, 10], [1.0, 1.0, 50.0], 40, [0, 0, 0])
    [20, 10, 10]
    """
    size, floor = np.array(sizes, dtype=np.float64), np.array(floors, dtype=np.float64)
    raw = size * np.array(weights, dtype=np.float64)
    low, high = 0.0, float((size / np.maximum(raw, 1e-300)).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(raw * middle, floor, size).sum() < budget else (low, middle)
    ideal = np.clip(raw * high, floor, size)
    # A hair more: 3 can come out as 2.9999999.
    whole = np.floor(ideal + 1e-6)
    first = np.argsort(-(ideal - whole), kind="stable")
    while whole.sum() < budget and (whole < size).any():
        ready = first[whole[first] < size[first]]
        whole[ready[: int(budget - whole.sum())]] += 1
    while whole.sum() > budget and (whole > floor).any():
        ready = first[::-1][(whole > floor)[first[::-1]]]
        whole[ready[: int(whole.sum() - budget)]] -= 1
    return [int(n) for n in whole]


def n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> dict[str, Tensor]:
    """Of every ``m`` inputs in a row the ``n`` of highest score, at each output and kernel position.

    Tensors whose inputs cannot be divided by ``m`` stay whole: they are not in the result.

    Raises:
        BudgetError: that is so for all of them.
    """
    masks = {}
    for name, values in scores.items():
        outputs, inputs, kernel = values.shape
        if inputs % m:
            continue
        kept = highest_of_rows(values.detach().cpu().transpose(1, 2).reshape(-1, m), n)
        masks[name] = kept.reshape(outputs, kernel, inputs).transpose(1, 2)
    if not masks:
        found = ", ".join(f"{name} {values.shape[1]}" for name, values in list(scores.items())[:5])
        raise BudgetError(f"granularity='{n}:{m}' needs inputs in multiples of {m}, and no layer has them: {found}.")
    return masks


def within_rows(scores: Tensor) -> Tensor:
    """Scores that say how high a weight is in its own row; rows come first in turn. Shape stays.

    In (-1, 0]. The best weight of each row is above the second of any row, and so on; equal places go by score.

    Args:
        scores: [outputs, inputs, kernel positions], higher stays.
    """
    rows = scores.reshape(len(scores), -1).double()
    place = rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1).double()
    overall = torch.empty(rows.numel(), dtype=torch.float64)
    order = rows.reshape(-1).argsort(descending=True, stable=True)
    overall[order] = torch.arange(rows.numel(), dtype=torch.float64)
    return -((place + overall.reshape(rows.shape) / rows.numel()) / rows.shape[1]).reshape(scores.shape)


def _single_weights(
    scores: Mapping[str, Tensor],
    density: float,
    distribution: Distribution,
    fixed: Mapping[str, Tensor] | None,
    kernels: Mapping[str, Sequence[int]],
    by_row: bool,
    ratios: Mapping[str, float] | None,
) -> dict[str, Tensor]:
    shapes = {name: values.shape for name, values in scores.items()}
    # All of them before anything that is large and soon gone: memory in pieces is lost memory.
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name, held in (fixed or {}).items():
        masks[name].copy_(held)
    sizes = {name: mask.numel() for name, mask in masks.items()}
    needs = {name: int(mask.sum()) for name, mask in masks.items()}
    flat = {name: mask.reshape(-1) for name, mask in masks.items()}
    if distribution == "global":
        budget = _affordable(sizes, needs, density)
        add_highest(
            {n: within_rows(s) for n, s in scores.items()} if by_row else scores, flat, budget - sum(needs.values())
        )
        return masks
    weights = relative_densities(scores, distribution, kernels, ratios)
    for name, share in count_weights(sizes, needs, density, weights).items():
        if by_row:
            rows = scores[name].detach().cpu().flatten(1)
            found = highest_by_place(rows, masks[name].flatten(1), share - needs[name])
            masks[name].copy_(found.reshape(shapes[name]))
        else:
            add_highest({name: scores[name]}, {name: flat[name]}, share - needs[name])
    return masks


def relative_densities(
    scores: Mapping[str, Tensor],
    distribution: Distribution,
    kernels: Mapping[str, Sequence[int]],
    ratios: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How dense tensors are in proportion to one another; see :func:`sparse_masks`, not for ``"global"``."""
    if distribution == "erk":
        return erk(scores, kernels)
    return dict.fromkeys(scores, 1.0) if ratios is None else {name: ratios[name] for name in scores}


def count_weights(
    sizes: Mapping[str, int], needs: Mapping[str, int], density: float, weights: Mapping[str, float]
) -> dict[str, int]:
    """How many weights of each tensor stay, in proportion to ``weights``, :func:`distribute` says how.

    Args:
        sizes: of the tensors.
        needs: how many of each must stay.
        density: the fraction of all that stays.
        weights: how dense they are in proportion to one another.

    Raises:
        BudgetError: so few cannot hold what must stay.
    """
    budget = _affordable(sizes, needs, density)
    shares = distribute([*sizes.values()], [weights[n] for n in sizes], budget, [needs[n] for n in sizes])
    return dict(zip(sizes, shares, strict=True))


def _places(shape: torch.Size, block: tuple[int, int], parents: Tensor | None) -> Tensor:
    """The unit of each pair of output and input. Shape [outputs, inputs]."""
    rows, columns = (torch.arange(size) // side for size, side in zip(shape, block, strict=False))
    columns = columns if parents is None else parents
    return rows[:, None] * (int(columns.max()) + 1) + columns


def _stall(scores: Tensor, places: Tensor, fixed: Tensor | None) -> LayerBudget:
    """The units of a tensor: their mean score, what they weigh, and whether one of their weights must stay."""
    fixed = torch.zeros(scores.shape, dtype=torch.bool) if fixed is None else fixed
    index, kernel = places.reshape(-1), scores.shape[2]
    price = torch.bincount(index) * kernel
    sums = torch.zeros(len(price), dtype=torch.float64).index_add_(0, index, scores.double().sum(2).reshape(-1))
    held = torch.zeros(len(price), dtype=torch.bool)
    held[index[fixed.any(2).reshape(-1)]] = True
    return LayerBudget(sums / price, price, held, len(price))


def _spread(kept: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    return kept[places][:, :, None].expand(shape).contiguous()


def _needs(stall: LayerBudget) -> int:
    return int(stall.price[stall.fixed].sum())


def _affordable(sizes: Mapping[str, int], needs: Mapping[str, int], density: float) -> int:
    """How many weights stay; BudgetError where they cannot hold what must."""
    whole, needed = sum(sizes.values()), sum(needs.values())
    budget = round(density * whole)
    if budget >= max(needed, 1):
        return budget
    name = max(needs, key=lambda name: needs[name])
    least = math.ceil(max(needed, 1) / whole * 1e6) / 1e6
    raise BudgetError(
        f"density={density:g} leaves {budget} of {whole} weights, but it takes {max(needed, 1)} to keep every output "
        f"connected; layer {name!r} alone takes {needs[name]} of its {sizes[name]}. "
        f"Give density={least:g} or more.",
        layer=name,
        least=max(needed, 1),
    )


def _fix_counts(stalls: Mapping[str, LayerBudget], weights: Sequence[float], budget: int) -> dict[str, LayerBudget]:
    """The same stalls with what each tensor keeps fixed, so that only what blocks leave over is still for sale."""
    sizes = [int(stall.price.sum()) for stall in stalls.values()]
    shares = distribute(sizes, weights, budget, [_needs(stall) for stall in stalls.values()])
    return {
        name: LayerBudget(stall.scores, stall.price, allocate_connections({name: stall}, share)[name], stall.most)
        for (name, stall), share in zip(stalls.items(), shares, strict=True)
    }
