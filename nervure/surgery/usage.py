"""Run a smaller model as its user will: both modes, with and without gradients, another batch, fused kernels on."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError
from nervure.graph.example import as_inputs, resized, samples_of, tensors_in
from nervure.graph.types import Graph
from nervure.surgery.chance import seeded
from nervure.surgery.cut import copied_without

CLOSE = 1e-2
"""How far fused kernels may be from plain ones, relative to the size of an output."""


class Use(NamedTuple):
    """One way to run a model."""

    told: str
    training: bool
    gradients: bool
    example: Any


def broken_use(model: nn.Module, smaller: nn.Module, graph: Graph, example: Any) -> str:
    """In which use ``smaller`` breaks though ``model`` does not, with the error; empty if in none.

    Both run as copies: what a run in training mode leaves in a model stays out of it.
    """
    for use in _uses(example):
        found = _ran(smaller, graph, use)
        if isinstance(found, str):
            dense = _ran(model, graph, use)
            if not isinstance(dense, str):
                return f"{use.told}: {found}"
    return ""


def _uses(example: Any) -> Iterator[Use]:
    yield Use("in evaluation mode without gradients", False, False, example)
    yield Use("in evaluation mode with gradients", False, True, example)
    yield Use("in training mode", True, True, example)
    try:
        samples = samples_of(example)
    except ArgumentError:
        return
    for batch in {1, samples + 1} - {samples}:
        yield Use(f"on a batch of {batch}", False, False, resized(example, batch))


def _ran(model: nn.Module, graph: Graph, use: Use) -> list[Tensor] | str:
    """What a copy of ``model`` returns in this use, or its error."""
    copied = copied_without(model, graph, {}).train(use.training)
    args, kwargs = as_inputs(use.example)
    with seeded(copied), torch.set_grad_enabled(use.gradients):
        try:
            return tensors_in(copied(*args, **kwargs))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
