"""Units that hear nothing leave the whole network, and what they say is handed on.

A unit whose weights are all zero says its bias, whatever the input; after activations and norms that is still one
number per unit. A reader of it adds that number times a weight to each of its outputs, always: that is a bias. Once it
is handed on like this, nobody reads the unit, and :func:`nervure.compact` can cut it with all that only it had heard.
The network computes the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nervure.core.inputs import Inputs
from nervure.errors import NervureError
from nervure.graph.copies import copy_model
from nervure.graph.types import Graph, Group, TensorAxis
from nervure.plan import Plan
from nervure.sparse.watch import Heard, inputs_of, layers_of, noisy
from nervure.surgery import apply, compact
from nervure.tracing import trace

CONSTANT = 1e-6
"""What spreads less, relative to its size, is one number: vectorised and scalar code round differently."""


def without_dead_units(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, str]:
    """A smaller model that computes the same, and what was done; the model itself where nothing can leave."""
    current = copy_model(model)
    added = _with_biases(current)
    try:
        graph = trace(current, inputs)
        while _hand_on(current, graph, inputs):
            pass
        masks = {name: weight != 0 for name, weight in current.state_dict().items() if _counts(graph, name, weight)}
        plan = compact(graph, masks, model=current, example=inputs)
        if not plan.cuts:
            return model, ""
        smaller = apply(current, graph, Plan(plan.cuts, plan.fingerprint))
    except NervureError as error:
        return model, f"dead units stay: {error}"
    _without_biases(smaller, added)
    count = sum(cut.keep.size - cut.keep.count for cut in plan.cuts)
    return smaller, f"{count} dead units of {len(plan.cuts)} groups are cut"


def _with_biases(model: nn.Module) -> list[str]:
    """Give every layer that may have to say a constant a bias of zeros; which did not have one."""
    added: list[str] = []
    for name, module in layers_of(model).items():
        if module.bias is None:
            weight: Any = module.weight
            module.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype, device=weight.device))
            added.append(name)
    return added


def _without_biases(model: nn.Module, added: list[str]) -> None:
    for name in added:
        module: Any = model.get_submodule(name)
        if not module.bias.any():
            module.bias = None


def _counts(graph: Graph, name: str, weight: Tensor) -> bool:
    return name in graph.tensors and weight.ndim > 1 and bool((weight == 0).any())


def _hand_on(model: nn.Module, graph: Graph, inputs: Inputs) -> bool:
    """Move what deaf units say into the biases of what reads them; whether there was anything to move."""
    layers = layers_of(model)
    found = []
    for group in graph.prunable:
        deaf = _deaf(model, group)
        if not group.notes and deaf.any():
            found += [(slot, deaf) for slot in group.readers if _adds_evenly(slot, layers)]
    if not found:
        return False
    runs = [inputs_of(model, given) for given in (inputs, noisy(inputs))]
    return any(
        [_fold(layers[_owner(slot)], slot, deaf, [run.get(_owner(slot)) for run in runs]) for slot, deaf in found]
    )


def _owner(slot: TensorAxis) -> str:
    return slot.tensor.rpartition(".")[0]


def _deaf(model: nn.Module, group: Group) -> Tensor:
    """Which units hear nothing: all their weights are zero, in all that writes them."""
    tensors = model.state_dict()
    deaf = torch.full((group.size,), bool(group.writers))
    for slot in group.writers:
        if slot.tensor not in tensors or tensors[slot.tensor].ndim < 2:
            return torch.zeros(group.size, dtype=torch.bool)
        units = torch.tensor(slot.units.array)
        loud = tensors[slot.tensor].movedim(slot.axis, 0).flatten(1).any(1).cpu()
        deaf[units[(units >= 0) & loud]] = False
    return deaf


def _adds_evenly(slot: TensorAxis, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a constant that the slot reads adds as much everywhere: at the edge of a padded picture it does not."""
    module: Any = layers.get(_owner(slot))
    if module is None or slot.axis != 1 or _is_shared(module, layers):
        return False
    return type(module) is nn.Linear or (
        module.groups == 1 and not isinstance(module.padding, str) and not any(module.padding)
    )


def _is_shared(module: Any, layers: Mapping[str, nn.Module]) -> bool:
    return any(other is not module and other.weight is module.weight for other in layers.values())


@torch.no_grad()
def _fold(module: Any, slot: TensorAxis, deaf: Tensor, heard: list[Heard | None]) -> bool:
    """Fold the columns of deaf units with a constant input into the bias of a layer; whether one was not zero."""
    once = [run.first for run in heard if run is not None and run.calls == 1]
    if len(once) < len(heard):
        return False
    axis = -1 if type(module) is nn.Linear else -3
    given = torch.cat([x.movedim(axis, 0).flatten(1) for x in once], 1)
    low, high = given.amin(1), given.amax(1)
    units = torch.tensor(slot.units.array)
    columns = ((units >= 0) & deaf[units.clamp(min=0)]).to(given.device)
    columns &= high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
    kernels = module.weight.flatten(2).sum(2) if axis == -3 else module.weight.clone()
    columns &= module.weight.movedim(1, 0).flatten(1).any(1)
    if not columns.any():
        return False
    module.bias += kernels[:, columns] @ ((low + high) / 2)[columns]
    module.weight[:, columns] = 0
    return True
