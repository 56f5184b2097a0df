"""How often a gate chooses each expert, and how much what it adds weighs.

An expert is heard by itself: its mixture runs once more with the matrices of all others at zero. What the mixture then
puts out, beyond what it does without any expert, is the expert's output times the weight that the gate gives it,
however experts are computed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nervure.core.collectives import add_up
from nervure.graph.mixtures import Mixture, mixture_of, output_with, unheard
from nervure.graph.tape import named_tensors
from nervure.graph.types import Graph, Group


@final
class RoutingRecorder:
    """Hears experts, batch by batch.

    Attributes:
        failed: groups of experts that could not be read, and why.
    """

    def __init__(self, model: nn.Module, graph: Graph | None) -> None:
        self.failed: dict[str, str] = {}
        self._mixtures: list[tuple[Mixture, nn.Module]] = []
        self._seen: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        for group in () if graph is None else graph.groups:
            if group.kind == "experts":
                self._add(model, group)

    def routing(self) -> dict[str, Tensor]:
        """Per group [experts, 2]: the share of tokens that came to the expert, and the mean norm of what it added."""
        tokens = add_up({name: torch.tensor(number) for name, number in self._tokens.items()})
        found = {}
        for name, (times, norms) in add_up(self._seen).items():
            found[name] = torch.stack([times / tokens[name].clamp(min=1), norms / times.clamp(min=1)], 1).float()
        return found

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """While this lasts each run of a mixture is heard."""
        with ExitStack() as stack:
            for mixture, alone in self._mixtures:
                hook = model.get_submodule(mixture.path).register_forward_hook(
                    self._hearing(mixture, alone), with_kwargs=True
                )
                stack.callback(hook.remove)
            yield

    def _add(self, model: nn.Module, group: Group) -> None:
        found = mixture_of(group, named_tensors(model))
        if isinstance(found, Mixture):
            self._mixtures.append((found, unheard(model.get_submodule(found.path))))
        else:
            self.failed[group.name] = found

    def _hearing(self, mixture: Mixture, alone: nn.Module) -> Any:
        def hear(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            with torch.no_grad(), _disable_current_modes():
                self._hear(mixture, alone, args, kwargs)

        return hear

    def _hear(self, mixture: Mixture, alone: nn.Module, args: Any, kwargs: Any) -> None:
        name, size = mixture.group.name, mixture.group.size
        nothing = _output(mixture, alone, None, args, kwargs)
        norms = torch.stack(
            [(_output(mixture, alone, unit, args, kwargs) - nothing).norm(dim=-1).flatten() for unit in range(size)]
        )
        heard = torch.stack([(norms > 0).sum(1), norms.sum(1)]).double().cpu()
        self._seen[name] = self._seen.get(name, torch.zeros(2, size, dtype=torch.float64)) + heard
        self._tokens[name] = self._tokens.get(name, 0) + norms.shape[1]


def _output(mixture: Mixture, module: nn.Module, unit: int | None, args: Any, kwargs: Any) -> Tensor:
    """What a mixture puts out, [..., features], with one expert or with none."""
    held, chosen = named_tensors(module), {}
    for name, slot in mixture.stacks.items():
        alive = torch.from_numpy(slot.units.array == (-2 if unit is None else unit)).to(held[name].device)
        shape = [-1 if axis == slot.axis else 1 for axis in range(held[name].ndim)]
        chosen[name] = torch.where(alive.reshape(shape), held[name], torch.zeros_like(held[name]))
    return output_with(module, chosen, args, kwargs).double()
