"""What an engine is: something that turns a module into a function that runs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nervure.core.inputs import Inputs
from nervure.errors import EngineError
from nervure.graph.models import evaluating
from nervure.graph.preserve import restore_after

Runner: TypeAlias = Callable[[Any], Any]
"""Takes inputs as the module does (a tensor, a tuple of positional or a dict of keyword arguments) and returns what the
module returns, in its structure."""

FLOAT32, BF16 = "float32", "bf16"


@final
@dataclass(frozen=True, slots=True)
class Program:
    """A module made ready for an engine.

    Attributes:
        runner: gives the function that runs it with so many threads.
        samples: the only number of samples it takes; None: any number, as the module does.
    """

    runner: Callable[[int], Runner]
    samples: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Engine:
    """Something that runs modules.

    Attributes:
        name: what users call it.
        prepare: makes a module in evaluation mode ready, given an example and a precision; all slow work is here.
        precisions: those it computes in.
        libraries: modules it needs.
        extra: the extra of nervure that brings them; empty where it needs none.
        follows: whether it runs on the device of the model; else on the CPU.
    """

    name: str
    prepare: Callable[[nn.Module, Any, str], Program]
    precisions: tuple[str, ...] = (FLOAT32, BF16)
    libraries: tuple[str, ...] = ()
    extra: str = ""
    follows: bool = False


@final
@dataclass(frozen=True, slots=True)
class Structure:
    """How the tensors that a module returns are put together."""

    spec: TreeSpec
    leaves: tuple[Any, ...]

    @staticmethod
    def of(model: nn.Module, inputs: Inputs) -> "Structure":
        """The structure of what ``model`` returns on ``inputs``; tensors are forgotten, other values kept."""
        with restore_after(model, inputs), evaluating(model):
            leaves, spec = tree_flatten(inputs.run(model))
        return Structure(spec, tuple(... if isinstance(leaf, Tensor) else leaf for leaf in leaves))

    def fill(self, tensors: list[Tensor]) -> Any:
        """The structure with ``tensors`` in their places, in order; raises EngineError where their number differs."""
        expected = sum(leaf is ... for leaf in self.leaves)
        if expected != len(tensors):
            raise EngineError(f"the engine returned {len(tensors)} tensors, the module returns {expected}.")
        rest = iter(tensors)
        return tree_unflatten([next(rest) if leaf is ... else leaf for leaf in self.leaves], self.spec)


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads of torch inside the block."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
