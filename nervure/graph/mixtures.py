"""Mixtures of experts: the module that a gate and what it chooses from lie in, run with other matrices.

However experts are computed, what a mixture gives is a sum over those that were chosen, so an expert is heard where the
matrices of all others are zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import commonpath
from typing import Any, final

from torch import Tensor, nn
from torch.func import functional_call

from nervure.core.tensors import cloned, tensors_in
from nervure.graph.copies import copy_model
from nervure.graph.tape import named_tensors
from nervure.graph.types import Group, TensorAxis

MATRIX_NDIM = 2


@final
@dataclass(frozen=True, slots=True)
class Mixture:
    """A group of experts and where it lies.

    Attributes:
        group: the experts.
        path: the module that holds the gate and all that it chooses from.
        stacks: the matrices, by their names within this module, and which axis of each counts experts.
    """

    group: Group
    path: str
    stacks: Mapping[str, TensorAxis]


def mixture_of(group: Group, tensors: Mapping[str, Tensor]) -> Mixture | str:
    """Where a group of experts lies in a model with these tensors; or why it cannot be heard."""
    holders = [slot.tensor.rpartition(".")[0].replace(".", "/") for slot in group.slots]
    path = commonpath(holders).replace("/", ".")
    if not path:
        return "its gate and its experts are in no module of their own"
    below = f"{path}."
    stacks = {s.tensor.removeprefix(below): s for s in group.riders if tensors[s.tensor].ndim >= MATRIX_NDIM}
    return Mixture(group, path, stacks) if stacks else "nothing that is chosen has matrices of its own"


def unheard(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its tensors, and that no hook hears."""
    return copy_model(module, {id(tensor): tensor for tensor in named_tensors(module).values()})


def output_with(module: nn.Module, replaced: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
    """The first tensor of what a module gives with other matrices, [..., features].

    It is given copies, for it may write into what it is given.
    """
    args, kwargs = cloned((args, kwargs))
    return tensors_in(functional_call(module, dict(replaced), args, kwargs))[0]
