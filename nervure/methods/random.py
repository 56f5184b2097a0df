"""Random: units leave by lot. The control of Mittal et al., "Recovering from Random Pruning", 2018.

A method that does not beat it after equal recovery has learnt nothing about the network.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from nervure.budget import Budget, Scope, allocate, require_budget
from nervure.budget.connections import Stall, allocate_connections
from nervure.errors import ArgumentError
from nervure.methods.base import View
from nervure.plan import Keep, Mask, Plan
from nervure.scores import random_scores


@final
@dataclass(frozen=True, slots=True)
class Random:
    """Keep units by lot.

    Attributes:
        keep: the fraction of the budget that stays, in (0, 1].
        seed: added to the seed of the view, so that either one draws another lot.
        scope: ``"layer"`` (each layer keeps the same fraction) or ``"global"``.
        budget: ``"channels"``, ``"params"`` or ``"macs"``.
        minimum: units that every group keeps.
        multiple: group sizes are rounded up to a multiple of this.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: float = 0.5
    seed: int = 0
    scope: Scope = "layer"
    budget: Budget = "channels"
    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ArgumentError(f"seed={self.seed!r} must be a whole number.")
        keep = require_budget(self.keep, self.budget, self.scope, self.minimum, self.multiple)
        object.__setattr__(self, "keep", keep)

    def plan(self, view: View) -> Plan:
        """Cut units by lot; raises BudgetError where the budget cannot be met."""
        return allocate(
            view.graph,
            random_scores(view.graph, seed=self.seed + view.seed),
            keep=self.keep,
            budget=self.budget,
            scope=self.scope,
            minimum=self.minimum,
            multiple=self.multiple,
        )


def random_masks(plan: Plan, *, seed: int) -> tuple[Mask, ...]:
    """Masks by lot over the tensors that ``plan`` masks, with as many entries that stay in all of them together.

    Where the plan masks whole kernels, so does the lot. Entries that are left over because no kernel is that small stay
    masked.
    """
    keeps = {mask.tensor: mask.keep.tensor() for mask in plan.masks}
    whole = all(_has_whole_kernels(keep) for keep in keeps.values())
    generator = torch.Generator().manual_seed(seed)
    stalls = {name: _stall(keep, whole, generator) for name, keep in keeps.items()}
    drawn = allocate_connections(stalls, sum(int(keep.sum()) for keep in keeps.values()), "entries")
    return tuple(Mask(name, Keep.of(_spread(drawn[name], keep))) for name, keep in keeps.items())


def _has_whole_kernels(keep: Tensor) -> bool:
    flat = keep.reshape(*keep.shape[:2], -1)
    return bool((flat.all(2) | ~flat.any(2)).all())


def _stall(keep: Tensor, whole: bool, generator: torch.Generator) -> Stall:
    size = math.prod(keep.shape[2:]) if whole else 1
    scores = torch.rand(keep.shape[:2] if whole else keep.shape, generator=generator)
    price = torch.full(scores.shape, size, dtype=torch.int64)
    return Stall(scores, price, torch.zeros(scores.shape, dtype=torch.bool), scores.numel())


def _spread(drawn: Tensor, keep: Tensor) -> Tensor:
    return drawn.reshape(*drawn.shape, *[1] * (keep.ndim - drawn.ndim)).expand(keep.shape).contiguous()
