"""Which modules of a smaller network are branches, and what each should give."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph
from nervure.plan import Plan
from nervure.refit.origins import Origin, origins
from nervure.refit.prefix import prefix_of
from nervure.stats.loaders import Batch
from nervure.surgery.drop import name_after


@final
@dataclass(frozen=True, slots=True, eq=False)
class PrunedBranch:
    """A module of the smaller network to be reconstructed.

    Attributes:
        name: of the module.
        partner: of the module of the dense network that it comes from.
        target: of the one whose output it should give: the partner, or the last of the layers behind it that left.
        cuts: the positions that axes of its tensors were cut to; along one of them lies what it gives.
        shared: parameters of the model that are used outside of it as well, or more than once.
        reason: why it stays as it is; empty where it is trained.
    """

    name: str
    partner: str = ""
    target: str = ""
    cuts: tuple[Tensor, ...] = ()
    shared: frozenset[str] = frozenset()
    reason: str = ""


def branches(
    model: nn.Module,
    reference: nn.Module,
    steps: Sequence[tuple[Graph, Plan]],
    masks: Mapping[str, Tensor],
    batch: Batch,
    names: Iterable[str] | None,
) -> list[PrunedBranch]:
    """The branches of ``model``, in running order, those that stay as they are included.

    Args:
        model: the smaller network.
        reference: the dense one.
        steps: the graphs and plans that led from one to the other.
        masks: of the smaller network.
        batch: what the networks can run on.
        names: of the modules; None: found by the graph.
    """
    came, layers = origins(reference, steps), prefix_of(reference, batch).names
    wanted = _find(model, steps, batch) if names is None else list(names)
    modules = [name for name, _ in model.named_modules()]
    for name in wanted:
        if name not in modules or not name:
            raise ArgumentError(f"there is no branch {name!r}: the model has no module of that name.")
    if not wanted:
        raise ArgumentError("no residual blocks or list of layers were found. Name the modules: names=[...].")
    shared = _shared(model)
    return [_branch(name, model, came, masks, layers, shared) for name in sorted(set(wanted), key=modules.index)]


def _find(model: nn.Module, steps: Sequence[tuple[Graph, Plan]], batch: Batch) -> list[str]:
    """The smallest modules that hold a residual block each, without those inside of others; else a list's layers."""
    found = {_around(block.modules) for block in steps[0][0].blocks if block.kind != "module"} if steps else set()
    for graph, plan in steps:
        renamed = name_after(graph, plan)
        found = {new for name in found if (new := renamed(name))}
    found &= {name for name, _ in model.named_modules()} - {""}
    found |= {other for name in found for other in _alike(model, name)}
    found = {name for name in found if not any(name.startswith(f"{other}.") for other in found)}
    return sorted(found) or list(prefix_of(model, batch).names)


def _alike(model: nn.Module, name: str) -> list[str]:
    """The layers of the list that a module is in that are of its class: the first may be no block of the graph."""
    parent, _, _ = name.rpartition(".")
    holder, kind = model.get_submodule(parent), type(model.get_submodule(name))
    if not parent or not isinstance(holder, nn.ModuleList | nn.Sequential):
        return []
    return [f"{parent}.{key}" for key, layer in holder.named_children() if type(layer) is kind]


def _around(modules: Sequence[str]) -> str:
    """The module that holds all of these; itself where it is one."""
    paths = [name.split(".") for name in modules]
    parts = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        parts.append(level[0])
    return ".".join(parts)


def _branch(
    name: str,
    model: nn.Module,
    came: Mapping[str, Origin],
    masks: Mapping[str, Tensor],
    layers: Sequence[str],
    shared: frozenset[str],
) -> PrunedBranch:
    inside = [tensor for tensor in named_tensors(model) if tensor.startswith(f"{name}.")]
    known = {tensor: came[tensor] for tensor in inside if tensor in came}
    partners = {
        origin.tensor.removesuffix(tensor.removeprefix(name))
        for tensor, origin in known.items()
        if origin.tensor.endswith(tensor.removeprefix(name))
    }
    if len(partners) != 1:
        return PrunedBranch(name, reason="the dense network has none of that name")
    partner = partners.pop()
    cuts = {tuple(p.tolist()) for o in known.values() for p, n in zip(o.positions, o.shape, strict=True) if len(p) < n}
    target = _target(partner, came, layers)
    is_masked = any(tensor in masks and not bool(masks[tensor].all()) for tensor in inside)
    is_pruned = bool(cuts) or is_masked or target != partner or len(known) < len(inside)
    reason = "" if is_pruned else "nothing in it was pruned"
    return PrunedBranch(name, partner, target, tuple(map(torch.tensor, sorted(cuts))), shared, reason)


def _target(partner: str, came: Mapping[str, Origin], layers: Sequence[str]) -> str:
    """The last of the layers behind one that left; what is left makes up for them."""
    if partner not in layers:
        return partner
    target = partner
    for layer in layers[layers.index(partner) + 1 :]:
        if any(origin.tensor.startswith(f"{layer}.") for origin in came.values()):
            break
        target = layer
    return target


def _shared(model: nn.Module) -> frozenset[str]:
    """Parameters that stand in more than one place."""
    holders = [module for _, module in model.named_modules(remove_duplicate=False)]
    owners = Counter(id(p) for module in holders for p in module.parameters(recurse=False))
    return frozenset(name for name, p in model.named_parameters(remove_duplicate=False) if owners[id(p)] > 1)
