"""Cutting what is sharded over processes, tensor by tensor: no process holds more than one of them whole."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core import collectives
from nervure.core.check import checked
from nervure.core.collectives import is_sharded, whole
from nervure.errors import ArgumentError, PlanError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import check_fits, cut_masks, dropped_prefixes, keeps_of, lay_on, masks_by_tensor
from nervure.surgery.cut import cut_positions, slice_tensor, weight_norms
from nervure.surgery.drop import name_after
from nervure.surgery.spectral import spectral_norms

OUT = "Cut the model before it is sharded, or put it together first (nervure.distributed.put_together)."
MADE = "Make it by nervure.apply(model, graph, plan), all on the meta device; then fully_shard, then to_empty."


class _Source(NamedTuple):
    """Where a tensor of the smaller model comes from: its name before, itself, and what of each axis stays."""

    name: str
    tensor: Tensor
    positions: list[np.ndarray | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after the cut."""
        sizes = zip(self.tensor.shape, self.positions, strict=True)
        return tuple(size if kept is None else len(kept) for size, kept in sizes)


@checked
def cut_shards(sharded: nn.Module, graph: Graph, plan: Plan, smaller: nn.Module) -> nn.Module:
    """Fill a smaller model, in place, with what a plan leaves of one that is sharded over processes.

    All processes call this. One tensor after another is put together, cut, masked and dealt out again, so no process
    needs memory for the whole model. Each of the two may be sharded in its own way (``fully_shard``,
    ``parallelize_module``), or not at all.

    Args:
        sharded: the model that is cut; it is left as it is.
        graph: traced from the same model on the meta device, before it was sharded.
        plan: cuts, masks and drops.
        smaller: what :func:`nervure.apply` makes of the model on the meta device by that plan, sharded since and given
            memory with ``to_empty``. What it holds is overwritten.

    Returns:
        ``smaller``, with the weights and buffers that :func:`nervure.apply` gives where nothing is sharded.

    Raises:
        ArgumentError: ``smaller`` has other tensors or sizes than the plan leaves, or no memory.
        PlanError: the plan was made for another graph, or the graph for another model; the plan has links; or weights
            are computed from norms of others (weight norm, spectral norm), which need these whole.
    """
    collectives.meet("cut_shards")
    check_fits(sharded, graph, plan)
    if plan.links:
        raise PlanError(f"the plan has links, and shards cannot be given any. {OUT}")
    if weight_norms(sharded) or any(spectral_norms(sharded)):
        raise PlanError(f"the model computes weights from norms of others, which shards do not know. {OUT}")
    keeps, edits = keeps_of(graph, plan), masks_by_tensor(plan)
    masks = cut_masks(graph, plan, keeps)
    sources, places = _sources(sharded, graph, plan, keeps), named_tensors(smaller)
    _require_places(sources, places)
    with torch.no_grad():
        for name, source in sources.items():
            value = slice_tensor(whole(source.tensor.detach()), source.positions)
            if source.name in edits:
                # A slice of all positions is the tensor itself.
                value = value.clone()
                lay_on(value, edits[source.name], masks[source.name])
            _fill(places[name], value)
    return smaller


def _sources(sharded: nn.Module, graph: Graph, plan: Plan, keeps: Mapping[str, np.ndarray]) -> dict[str, _Source]:
    """Where each tensor comes from, by the name that it has after the plan."""
    gone, renamed = dropped_prefixes(graph, plan), name_after(graph, plan)
    found: dict[str, _Source] = {}
    for name, tensor in named_tensors(sharded).items():
        new = None if name.startswith(gone) else renamed(name)
        if new is not None:
            found[new] = _Source(name, tensor, cut_positions(graph, keeps, name, tensor))
    return found


def _require_places(sources: Mapping[str, _Source], places: Mapping[str, Tensor]) -> None:
    """Raise ArgumentError where what is left does not fit."""
    for name, source in sources.items():
        there = tuple(places[name].shape) if name in places else None
        if there != source.shape:
            raise ArgumentError(f"{name!r} has shape {there} in smaller; the plan leaves {source.shape}. {MADE}")
        if places[name].is_meta:
            raise ArgumentError(f"{name!r} of smaller is on the meta device, and has no memory. {MADE}")
    # What was dropped may have left an empty tensor in its place.
    added = [name for name, tensor in places.items() if name not in sources and tensor.numel()]
    if added:
        raise ArgumentError(f"smaller has {added[0]!r}, which the plan does not leave. {MADE}")


def _fill(place: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if not is_sharded(place):
        place.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(place, DTensor)
    place.copy_(distribute_tensor(value.to(place.device), place.device_mesh, place.placements))
