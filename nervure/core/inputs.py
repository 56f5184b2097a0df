"""What ``example`` may be: a tensor, a tuple of positional arguments, a dict of keyword arguments, a list of these."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from nervure.core.check import show_value
from nervure.core.documents import is_shallow
from nervure.core.tensors import describe_example, require_numbers
from nervure.errors import ArgumentError, ForwardError, NervureError


def examples_of(example: Any) -> list[Any]:
    """The examples in a list of several; one alone is a list of one.

    Raises:
        ArgumentError: the list is empty, or nested too deeply.
    """
    require_shallow(example)
    if not isinstance(example, list):
        return [example]
    if not example:
        raise ArgumentError("example=[] is a list of no examples. Give one, or a list of several.")
    return example


def require_shallow(example: Any) -> None:
    """Raise :class:`ArgumentError` for an example whose lists, tuples and dicts have no end to their levels."""
    if not is_shallow(example):
        raise ArgumentError("example is nested too deeply, or holds itself. Give tensors, a tuple or a dict of them.")


def as_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split ``example`` into positional and keyword arguments; raises :class:`ArgumentError` on anything else.

    Of a list of several examples the first counts. Tensors of subclasses (pictures, volumes) become plain ones of the
    same memory.
    """
    example = plain(examples_of(example)[0])
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        if not all(isinstance(key, str) for key in example):
            raise ArgumentError(f"example has keys {list(example)!r}; a dict example holds keyword arguments by name.")
        return (), dict(example)
    raise ArgumentError(
        f"example is a {type(example).__name__}. "
        "Give a tensor, a tuple of positional arguments or a dict of keyword arguments (or a list of several of these)."
    )


def plain(example: Any) -> Any:
    """The same with plain tensors for those of subclasses that only carry something along."""
    require_shallow(example)
    if not any(isinstance(leaf, Tensor) and _carries(leaf) for leaf in tree_leaves(example)):
        return example
    return tree_map(lambda x: x.as_subclass(Tensor) if isinstance(x, Tensor) and _carries(x) else x, example)


def _carries(tensor: Tensor) -> bool:
    kind: Any = type(tensor)
    return kind not in (Tensor, nn.Parameter) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def placed_like(model: nn.Module, example: Any) -> Any:
    """Move the tensors of ``example`` to the device of the model's first parameter.

    Without weights (on ``meta``) whole numbers stay where they are: what the model reads from them can then be known.
    """
    require_shallow(example)
    first = next(iter(model.parameters()), None)
    if first is None:
        return example
    return tree_map(lambda x: _to_device(x, first.device) if isinstance(x, Tensor) else x, example)


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    if isinstance(x, FakeTensor):
        return torch.empty(x.shape, dtype=x.dtype, device="meta" if device.type == "meta" else x.device)
    moved = require_numbers(x, device).to(device)
    if moved.is_meta and not x.is_meta and not x.is_floating_point():
        setattr(moved, CONTENTS, x)
    return moved


CONTENTS = "_contents"
"""Attribute of a tensor on ``meta``: the same tensor with its numbers."""


def run_example(model: nn.Module, example: Any) -> Any:
    """Run ``model`` on ``example`` without gradients; raises ForwardError as :func:`forward`."""
    args, kwargs = as_inputs(example)
    with torch.no_grad():
        return forward(model, args, kwargs)


def forward(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What ``model`` makes of these arguments.

    Raises:
        ForwardError: its own forward raised; the message says on what, the cause is its own error.
    """
    try:
        return model(*args, **kwargs)
    except (NervureError, torch.OutOfMemoryError):
        # Where memory is short, fewer samples may do: callers look for torch's own error.
        raise
    except Exception as error:
        raise ForwardError(
            f"the model's forward raised {type(error).__name__}: {error}. It was given "
            f"{describe_example((*args, kwargs) if kwargs else tuple(args))}; check that it is what the model expects."
        ) from error


def samples_of(example: Any) -> int:
    """How many samples an example holds: the length of the first tensor that has any.

    Raises:
        ArgumentError: if no tensor has samples along a first axis.
    """
    require_shallow(example)
    sizes = [leaf.shape[0] for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0]]
    if not sizes:
        raise ArgumentError("the example holds no tensor with samples along its first axis; give one, or several.")
    return sizes[0]


def resize_batch(example: Any, batch: int) -> Any:
    """The example with ``batch`` samples: repeated in order, or the first few.

    Tensors whose first axis is as long as that of the first tensor are resized; whatever else there is stays.

    Raises:
        ArgumentError: if no tensor has samples along a first axis, or one that has is sparse.
    """
    samples = samples_of(example)
    index = torch.arange(batch) % samples

    def fit(leaf: Any) -> Any:
        has_samples = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == samples
        if has_samples and leaf.layout != torch.strided:
            raise ArgumentError(f"the example holds {show_value(leaf)} of layout {leaf.layout}; give a dense tensor.")
        return leaf[index.to(leaf.device)] if has_samples else leaf

    return tree_map(fit, example)
