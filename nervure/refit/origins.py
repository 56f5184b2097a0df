"""Where the tensors of a smaller model come from: the name and the positions that they had in the dense one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from nervure.core.lazy_tensors import LazyTensors
from nervure.errors import ArgumentError, DataError
from nervure.graph.models import is_weightless, unwrap
from nervure.graph.tape import named_tensors, names_of_tensors
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.surgery.apply import check_fits, dropped_prefixes, keeps_of
from nervure.surgery.cut import kept_positions
from nervure.surgery.drop import name_after

ENTRIES = 2**20
"""Of a tensor that are compared at once."""
ALIKE = 0.1
"""The least correlation between weights of a model and of its dense twin."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The dense tensor that a tensor was cut from, its shape, and for each axis the positions that stayed."""

    tensor: str
    shape: tuple[int, ...]
    positions: tuple[np.ndarray, ...]

    def entries(self, places: Tensor) -> Tensor:
        """The entries of the dense tensor that these of the smaller one were; both counted through memory. Int64."""
        if not self.shape:
            return torch.zeros_like(places)
        here = np.unravel_index(places.numpy(), [len(kept) for kept in self.positions])
        there = [kept[index] for kept, index in zip(self.positions, here, strict=True)]
        return torch.from_numpy(np.ascontiguousarray(np.ravel_multi_index(there, self.shape)))

    def of(self, dense: Tensor) -> Tensor:
        """What stayed of a dense tensor; itself where all did."""
        for axis, kept in enumerate(self.positions):
            if not np.array_equal(kept, np.arange(self.shape[axis])):
                dense = dense.index_select(axis, torch.from_numpy(kept).to(dense.device))
        return dense

    def after(self, kept: Sequence[np.ndarray | None]) -> "Origin":
        """The same once more was cut: for each axis the positions that stay of those here, None where all do."""
        left = tuple(p if k is None else p[k] for p, k in zip(self.positions, kept, strict=True))
        return Origin(self.tensor, self.shape, left)


def origins(reference: nn.Module, steps: Iterable[tuple[Graph, Plan]]) -> Mapping[str, Origin]:
    """For each tensor that is left of ``reference`` after the plans, by its name then, where it comes from."""
    found = {
        name: Origin(name, tuple(tensor.shape), tuple(np.arange(n) for n in tensor.shape))
        for name, tensor in named_tensors(reference).items()
    }
    for graph, plan in steps:
        keeps, renamed = keeps_of(graph, plan), name_after(graph, plan)
        gone = dropped_prefixes(graph, plan)
        left = {}
        for name, origin in found.items():
            new = None if name.startswith(gone) else renamed(name)
            if new is not None and name in graph.tensors:
                left[new] = origin.after(kept_positions(graph, keeps, name))
        found = left
    return found


def require_twin(model: nn.Module, reference: nn.Module, came: Mapping[str, Origin], names: Iterable[str]) -> None:
    """Raise where the tensors of these names have nothing to do with those of the reference, or are not finite."""
    tensors, dense = named_tensors(model), named_tensors(reference)
    alike = entries = 0.0
    for name in names:
        own = tensors[name].detach()
        other = came[name].of(dense[came[name].tensor].detach()).reshape(own.shape).to(own.device)
        # Tensor by tensor: a refit may make the weights of one layer many times as large as all others.
        alike += own.numel() * _correlation(own, other, name)
        entries += own.numel()
    alike /= max(entries, 1)
    if not alike >= ALIKE:
        raise ArgumentError(
            f"the reference is not the network that this model was pruned from: their weights correlate by "
            f"{alike:.2f}. Give the dense network with the weights it had."
        )


def _correlation(own: Tensor, other: Tensor, name: str) -> float:
    """The cosine between two tensors of one shape; raises DataError where either is not finite."""
    both = same = theirs = 0.0
    pieces = (t.reshape(-1).split(ENTRIES) for t in (own, other))
    for a, b in zip(*(map(Tensor.double, each) for each in pieces), strict=True):
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise DataError(f"weights in {name!r} are NaN or infinite. The model or the reference is broken.")
        both, same, theirs = both + float(a @ b), same + float(a @ a), theirs + float(b @ b)
    return both / max(math.sqrt(same * theirs), torch.finfo(torch.float64).tiny)


def take_apart(
    pruned: Any, masks: Mapping[str, Tensor] | None
) -> tuple[nn.Module, list[tuple[Graph, Plan]], Mapping[str, Tensor]]:
    """The model, the plans that led to it, and its masks."""
    if isinstance(pruned, nn.Module):
        model = unwrap(pruned)
        return model, [], _by_first_names(model, masks or {})
    if not all(hasattr(pruned, name) for name in ("model", "plan", "graph", "masks", "earlier")):
        raise ArgumentError(f"{type(pruned).__name__} is no pruned model. Give what prune returns, or a module.")
    steps = [*((step.graph, step.plan) for step in pruned.earlier), (pruned.graph, pruned.plan)]
    model = unwrap(pruned.model)
    return model, steps, _by_first_names(model, {**pruned.masks, **masks} if masks else pruned.masks)


def _by_first_names(model: nn.Module, masks: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Masks of tensors that several modules share by the names that the model tells them by."""
    firsts = {name: names[0] for names in names_of_tensors(model).values() for name in names}
    given = {firsts.get(name, name): name for name in masks}
    return LazyTensors(given, lambda name: masks[given[name]])


def require_weights(model: nn.Module, reference: nn.Module, steps: Sequence[tuple[Graph, Plan]]) -> None:
    """Raise unless both have weights, and the reference the layers of what was pruned."""
    for one, what in ((model, "the model"), (reference, "the reference")):
        if is_weightless(one):
            raise ArgumentError(f"{what} has no weights: some of its tensors have a shape only. Load them first.")
    if steps:
        check_fits(reference, *steps[0])
