"""Where helpers about inputs were: :class:`nervure.Inputs` has taken over most of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nervure.core.inputs import CONTENTS, Inputs
from nervure.core.tensors import describe_tensors as describe_example
from nervure.core.tensors import (
    digest_of,
    has_shape_only,
    is_cache,
    outputs_by_name,
    outputs_in,
    require_numbers,
    tensors_in,
)
from nervure.graph.models import evaluating, is_weightless, unwrap, without_fakes

__all__ = [
    "CONTENTS",
    "as_inputs",
    "describe_example",
    "digest_of",
    "evaluating",
    "examples_of",
    "forward",
    "has_shape_only",
    "is_cache",
    "is_weightless",
    "outputs_by_name",
    "outputs_in",
    "placed_like",
    "plain",
    "require_numbers",
    "resize_batch",
    "run_example",
    "samples_of",
    "tensors_in",
    "unwrap",
    "without_fakes",
]


def examples_of(example: Any) -> list[Any]:
    """``Inputs.several``."""
    return list(Inputs.several(example))


def as_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``Inputs.of``, in two parts."""
    inputs = Inputs.of(example)
    return inputs.args, dict(inputs.kwargs)


def plain(example: Any) -> Any:
    """``Inputs.of``, in its simplest form."""
    return Inputs.of(example).plain()


def placed_like(model: nn.Module, example: Any) -> Any:
    """``Inputs.to``, in the simplest form."""
    return Inputs.of(example).to(model).plain()


def run_example(model: nn.Module, example: Any) -> Any:
    """``Inputs.run``, without gradients."""
    with torch.no_grad():
        return Inputs.of(example).run(model)


def forward(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``Inputs.run`` for these."""
    return Inputs(tuple(args), kwargs).run(model)


def samples_of(example: Any) -> int:
    """``Inputs.samples``."""
    return Inputs.of(example).samples


def resize_batch(example: Any, batch: int) -> Any:
    """``Inputs.resize``, in the simplest form."""
    return Inputs.of(example).resize(batch).plain()
