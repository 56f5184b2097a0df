"""What N2NSkip is made of: how many connections each skip gets, which, and where all of them start."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from nervure.budget.weight_masks import distribute
from nervure.graph.skip_sites import SkipSite
from nervure.methods.masks.base_masks import PrunableWeights
from nervure.plan import Keep, Link, Mask, Plan, Route

HE = 2.0
"""Variance times fan-in that keeps the size of signals through ReLUs (He et al., 2015)."""


# -- how many and which --------------------------------------------------------------------------------------------


def shares(found: Sequence[SkipSite], budget: int, granularity: str) -> list[int]:
    """Connections of each skip, in proportion to how many it could have; together ``budget`` or as near as fits below.

    Args:
        found: the places.
        budget: connections in all.
        granularity: ``"kernel"``: multiples of the size of a kernel; ``"element"``: any number.
    """
    sizes = [place.inputs * place.outputs * math.prod(place.kernel) for place in found]
    even = distribute(sizes, [1.0] * len(sizes), min(budget, sum(sizes)), [0] * len(sizes)) if sizes else []
    units = [math.prod(place.kernel) if granularity == "kernel" else 1 for place in found]
    counts = [n // unit * unit for n, unit in zip(even, units, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - even[i])
    for i in by_remainder:
        if sum(counts) + units[i] <= budget and counts[i] + units[i] <= sizes[i]:
            counts[i] += units[i]
    return counts


def draws(found: Sequence[SkipSite], counts: Sequence[int], granularity: str, seed: int) -> dict[SkipSite, Tensor]:
    """Which connections each skip has: by lot, without replacement. Boolean [outputs, inputs, *kernel]."""
    generator = torch.Generator().manual_seed(seed)
    keeps = {}
    for place, count in zip(found, counts, strict=True):
        unit = math.prod(place.kernel) if granularity == "kernel" else 1
        kernel = () if granularity == "kernel" else place.kernel
        flat = torch.zeros(place.outputs * place.inputs * math.prod(kernel), dtype=torch.bool)
        flat[torch.randperm(len(flat), generator=generator)[: count // unit]] = True
        whole = flat.reshape(place.outputs, place.inputs, *(kernel or [1] * len(place.kernel)))
        if count:
            keeps[place] = whole.expand(place.outputs, place.inputs, *place.kernel).contiguous()
    return keeps


def identity_edits(field: PrunableWeights, found: Sequence[SkipSite]) -> tuple[Link, ...]:
    """A link by the identity at each place, of as many channels as both ends have; its kernel has one position."""
    edits = []
    for place in found:
        keep = torch.eye(place.outputs, place.inputs, dtype=torch.bool)
        keep = keep.reshape(*keep.shape, *[1] * len(place.kernel))
        route = Route(place.reads, place.joins, place.stride, activation=place.activation, identity=True)
        ends = _group(field, place.reads, 1), _group(field, place.joins, 0)
        edits.append(Link(*ends, Keep.of(keep), route))
    return tuple(edits)


def masks_of(field: PrunableWeights, plan: Plan) -> dict[str, Tensor]:
    """The masks of a plan for all weights of a field, those that stay whole too, in the shapes of the tensors."""
    masks = {s.tensor: torch.ones(field.view.weights[s.tensor].shape, dtype=torch.bool) for s in field.sheets}
    return masks | {mask.tensor: mask.keep.tensor() for mask in plan.masks}


# -- where they start ----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Starts:
    """Where connections start; see the attributes of ``N2NSkip``."""

    start: str
    scale: float
    norm: bool
    rescale: bool
    reinit: bool
    seed: int


def starting_edits(
    field: PrunableWeights, masks: Mapping[str, Tensor], skips: Mapping[SkipSite, Tensor], starts: Starts
) -> tuple[Mask | Link, ...]:
    """The edits that mask the layers and lay the skips, each from where it starts."""
    joined = dict.fromkeys(masks, 0)
    for place, keep in skips.items():
        # Behind a batch norm the sizes of both do not depend on each other.
        if not (place.normed or starts.norm or starts.start == "zero"):
            joined[f"{place.layer}.weight"] = joined.get(f"{place.layer}.weight", 0) + int(keep.sum())
    edits: list[Mask | Link] = []
    for number, (name, keep) in enumerate(masks.items()):
        gain = _gain(field, name, keep, joined[name]) if starts.rescale else 1.0
        shuffled = starts.seed + number if starts.reinit else None
        if gain != 1 or starts.reinit or not bool(keep.all()):
            edits.append(Mask(name, Keep.of(keep), gain, shuffled))
    meeting = {place: _meeting(place, masks, skips, joined) for place in skips}
    for number, (place, keep) in enumerate(skips.items()):
        route = Route(
            reads=place.reads,
            joins=place.joins,
            stride=place.stride,
            norm=starts.norm,
            activation=place.activation,
            std=starts.scale * (_dense_std(place) if starts.start == "dense_fan" else meeting[place]),
            seed=starts.seed + number,
            gate=0.0 if starts.start == "zero" else None,
        )
        edits.append(Link(_group(field, place.reads, 1), _group(field, place.joins, 0), Keep.of(keep), route))
    return tuple(edits)


def _gain(field: PrunableWeights, name: str, keep: Tensor, joined: int) -> float:
    """What makes up for the inputs that left, less what skips bring: so the sum that meets keeps its variance."""
    return math.sqrt(field.weights[name].numel() / max(1, int(keep.sum()) + joined))


def _meeting(
    place: SkipSite, masks: Mapping[str, Tensor], skips: Mapping[SkipSite, Tensor], joined: Mapping[str, int]
) -> float:
    """The standard deviation at which all connections that meet at a target make the variance of a layer."""
    others = [keep for other, keep in skips.items() if other.joins == place.joins]
    fan = sum(int(keep.sum()) for keep in others)
    layer = f"{place.layer}.weight"
    if joined.get(layer) and layer in masks:
        fan += int(masks[layer].sum())
    return math.sqrt(HE * place.outputs / fan)


def _dense_std(place: SkipSite) -> float:
    """Of a dense layer of this shape: by what leaves a convolution, by what enters a linear layer."""
    return math.sqrt(HE / (place.outputs * math.prod(place.kernel) if place.kernel else place.inputs))


def _group(field: PrunableWeights, module: str, side: int) -> str:
    """The group along that side of a module's weight, empty where there is none or more than one."""
    graph = field.view.graph
    axis = graph.axis_of(module, side)
    names = {group for group, _ in axis.parts if group in graph} if axis is not None else set()
    return next(iter(names)) if len(names) == 1 else ""
