"""How much two sparse networks have in common: overlap of masks beside its chance level, and the part all share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from torch import Tensor

from nervure.core.check import checked
from nervure.errors import ArgumentError
from nervure.plan import Keep

Masks: TypeAlias = Mapping[str, Tensor | Keep]


@final
@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike two sets of connections are.

    Attributes:
        overlap: connections in both over those of the smaller set, in [0, 1].
        jaccard: connections in both over those in either, in [0, 1].
        chance: the overlap to expect of masks by lot with the same densities in every layer. For one layer, or
            equal densities everywhere, the larger density.
        jaccard_chance: the same for the Jaccard index.
    """

    overlap: float
    jaccard: float
    chance: float
    jaccard_chance: float = math.nan

    @property
    def above_chance(self) -> float:
        """Where the overlap lies between chance (0) and all (1); below 0: less than chance. 0 where chance is all."""
        return (self.overlap - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


@final
@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """The sub-network that several runs share.

    Attributes:
        masks: connections in all of them, by tensor.
        similarity: their number over the mean number of a run, in [0, 1].
        chance: what to expect of masks by lot with the same densities in every layer.
    """

    masks: Mapping[str, Tensor] = field(repr=False)
    similarity: float
    chance: float


@checked
def similarity(masks_a: Masks, masks_b: Masks) -> Similarity:
    """Compare two sets of connections.

    Hidden units can change places without changing what a network computes, so that runs which began apart look alike
    only once their units are brought in the same order: :func:`nervure.evaluation.align`.

    Args:
        masks_a: parameter name -> boolean tensor (or ``Keep``), True where there is a connection; as in
            ``History.masks`` and ``Pruned.masks``.
        masks_b: the same names and shapes.

    Raises:
        ArgumentError: the two are of different networks, or one has no connection at all.

    >>> a, b = torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])
    >>> similarity({"w": a}, {"w": b})
    Similarity(overlap=0.5, jaccard=0.3333333333333333, chance=0.5, jaccard_chance=0.3333333333333333)
    """
    first, second = _tensors(masks_a), _tensors(masks_b)
    _require_alike([first, second])
    sizes = [sum(int(mask.sum()) for mask in masks.values()) for masks in (first, second)]
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    expected = _expected_overlap([first, second])
    return Similarity(
        both / min(sizes), both / (sum(sizes) - both), expected / min(sizes), expected / (sum(sizes) - expected)
    )


@checked
def common(runs: Sequence[Masks]) -> Common:
    """The connections that all runs have.

    Args:
        runs: masks of two runs or more, as of :func:`similarity`.

    Raises:
        ArgumentError: fewer than two runs, or runs of different networks.
    """
    if len(runs) < 2:
        raise ArgumentError(f"{len(runs)} runs have nothing to share; give two or more.")
    found = [_tensors(masks) for masks in runs]
    _require_alike(found)
    shared = {name: torch.stack([masks[name] for masks in found]).all(0) for name in found[0]}
    mean = sum(int(mask.sum()) for masks in found for mask in masks.values()) / len(found)
    return Common(shared, sum(int(mask.sum()) for mask in shared.values()) / mean, _expected_overlap(found) / mean)


def _expected_overlap(runs: Sequence[Mapping[str, Tensor]]) -> float:
    """Connections in all of so many masks by lot."""
    return sum(
        mask.numel() * math.prod(int(masks[name].sum()) / mask.numel() for masks in runs)
        for name, mask in runs[0].items()
    )


def _tensors(masks: Masks) -> dict[str, Tensor]:
    found = {name: mask.tensor() if isinstance(mask, Keep) else mask.detach().cpu() for name, mask in masks.items()}
    for name, mask in found.items():
        if mask.dtype != torch.bool:
            raise ArgumentError(f"mask {name!r} is {mask.dtype}; give a bool tensor, True where there is a connection.")
    return found


def _require_alike(runs: Sequence[Mapping[str, Tensor]]) -> None:
    first = {name: tuple(mask.shape) for name, mask in runs[0].items()}
    for masks in runs[1:]:
        other = {name: tuple(mask.shape) for name, mask in masks.items()}
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise ArgumentError(
                    f"mask {name!r} has shape {first.get(name, 'none')} in one run and {other.get(name, 'none')} in "
                    "another. Compare masks of the same network, over the same tensors."
                )
    if any(not any(bool(mask.any()) for mask in masks.values()) for masks in runs):
        raise ArgumentError("a run without any connection cannot be compared. Check that its masks are not inverted.")
