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
from nervure.refit.layer_list import layer_list
from nervure.refit.origins import Origin, origins, require_twin
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
    batch: Batch,
    names: Iterable[str] | None,
) -> list[PrunedBranch]:
    """The branches of ``model``, in running order, those that stay as they are included.

    Args:
        model: the smaller network.
        reference: the dense one.
        steps: the graphs and plans that led from one to the other.
        batch: what the networks can run on.
        names: of the modules; None: found by the graph.
    """
    came, partners = origins(reference, steps), _partners(reference, steps)
    matrices = [name for name, p in model.named_parameters() if p.ndim > 1 and name in came]
    if matrices:
        require_twin(model, reference, came, matrices)
    targets = _targets(model, layer_list(reference, batch), partners)
    wanted = _find(model, steps, batch) if names is None else list(names)
    modules = [name for name, _ in model.named_modules()]
    for name in wanted:
        if name not in modules or not name:
            raise ArgumentError(f"there is no branch {name!r}: the model has no module of that name.")
    if not wanted:
        raise ArgumentError("no residual blocks or list of layers were found. Name the modules: names=[...].")
    shared = _shared(model)
    return [
        _branch(name, partners.get(name, ""), model, reference, came, targets, shared)
        for name in sorted(set(wanted), key=modules.index)
    ]


def _partners(reference: nn.Module, steps: Sequence[tuple[Graph, Plan]]) -> dict[str, str]:
    """For each module's name in the smaller network that in the dense one."""
    found = {name: name for name, _ in reference.named_modules()}
    for graph, plan in steps:
        renamed = name_after(graph, plan)
        found = {new: old for name, old in found.items() if (new := renamed(name)) is not None}
    return found


def _targets(model: nn.Module, layers: Sequence[str], partners: Mapping[str, str]) -> dict[str, str]:
    """For each layer of the dense network's list the last of those behind it that left; it makes up for them."""
    names = {old: new for new, old in partners.items()}
    found: dict[str, str] = {}
    kept = ""
    for layer in layers:
        is_there = layer in names and any(n.startswith(f"{names[layer]}.") for n, _ in model.named_parameters())
        kept = layer if is_there or not kept else kept
        found[kept] = layer
    return found


def _find(model: nn.Module, steps: Sequence[tuple[Graph, Plan]], batch: Batch) -> list[str]:
    """The smallest modules that hold a residual block each, without those inside of others; else a list's layers."""
    found = {_around(block.modules) for block in steps[0][0].blocks if block.kind != "module"} if steps else set()
    for graph, plan in steps:
        renamed = name_after(graph, plan)
        found = {new for name in found if (new := renamed(name))}
    found &= {name for name, _ in model.named_modules()} - {""}
    found |= {other for name in found for other in _alike(model, name)}
    found = {name for name in found if not any(name.startswith(f"{other}.") for other in found)}
    return sorted(found) or _of_list(model, layer_list(model, batch))


def _of_list(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """The layers of a list; the list as a whole where none of them holds two weights with something between them."""
    parents = {name.rpartition(".")[0] for name in layers} - {""}
    if len(parents) == 1 and all(_weights(model.get_submodule(name)) < 2 for name in layers):
        holder = model.get_submodule(*parents)
        return [*parents] if isinstance(holder, nn.Sequential) else list(layers)
    return list(layers)


def _weights(module: nn.Module) -> int:
    """How many modules in it multiply."""
    return sum(any(p.ndim > 1 for p in one.parameters(recurse=False)) for one in module.modules())


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
    partner: str,
    model: nn.Module,
    reference: nn.Module,
    came: Mapping[str, Origin],
    targets: Mapping[str, str],
    shared: frozenset[str],
) -> PrunedBranch:
    inside = [tensor for tensor in named_tensors(model) if tensor.startswith(f"{name}.")]
    known = {tensor: came[tensor] for tensor in inside if tensor in came}
    if not partner:
        return PrunedBranch(name, reason="the dense network has none of that name")
    cuts = {tuple(p.tolist()) for o in known.values() for p, n in zip(o.positions, o.shape, strict=True) if len(p) < n}
    target = targets.get(partner, partner)
    tensors, dense = named_tensors(model), named_tensors(reference)
    is_changed = any(t not in known or not _is_same(tensors[t], known[t].of(dense[known[t].tensor])) for t in inside)
    reason = "" if cuts or is_changed or target != partner else "it is as in the dense network"
    return PrunedBranch(name, partner, target, tuple(map(torch.tensor, sorted(cuts))), shared, reason)


def _is_same(mine: Tensor, dense: Tensor) -> bool:
    return torch.equal(mine.detach().reshape(-1), dense.detach().reshape(-1).to(mine.device))


def _shared(model: nn.Module) -> frozenset[str]:
    """Parameters that stand in more than one place."""
    holders = [module for _, module in model.named_modules(remove_duplicate=False)]
    owners = Counter(id(p) for module in holders for p in module.parameters(recurse=False))
    return frozenset(name for name, p in model.named_parameters(remove_duplicate=False) if owners[id(p)] > 1)
