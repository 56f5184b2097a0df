"""What ``example`` may be: a tensor, a tuple of positional arguments, a dict of keyword arguments, a list of these."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from nervure.core.check import show_value
from nervure.core.documents import is_shallow
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


_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "_original_module",
}
"""Wrappers that compute what the module inside computes, by the name of their class, and where they keep it."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers that compile it or spread it over devices; any other module itself."""
    for kind in type(model).__mro__:
        inner = getattr(model, _WRAPPERS.get(kind.__name__, ""), None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return model


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


def require_numbers(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` unless it has a shape only and is asked to a ``device`` with numbers: then ArgumentError."""
    if tensor.is_meta and device.type != "meta":
        raise ArgumentError(
            f"{show_value(tensor)} is on the meta device: it has a shape without numbers. Give numbers, as torch.randn "
            "does."
        )
    return tensor


CONTENTS = "_contents"
"""Attribute of a tensor on ``meta``: the same tensor with its numbers."""


def is_weightless(model: nn.Module) -> bool:
    """Whether some of the model's tensors have shapes only: on the ``meta`` device, or fake."""
    return any(has_shape_only(t) for t in (*model.parameters(), *model.buffers()))


def has_shape_only(tensor: Tensor) -> bool:
    """Whether a tensor has no numbers: it is on the ``meta`` device, or fake."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


@contextmanager
def without_fakes(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself; or, where its tensors are fake, a twin on ``meta``, with the modes that fake tensors off."""
    fake = [t for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor)]
    if not fake:
        yield model
        return
    with _disable_current_modes():
        memo: dict[int, Any] = {}
        for t in fake:
            bare = torch.empty(t.shape, dtype=t.dtype, device="meta")
            memo[id(t)] = nn.Parameter(bare, t.requires_grad) if isinstance(t, nn.Parameter) else bare
        yield copy.deepcopy(model, memo)


def digest_of(value: Any) -> str:
    """A few letters that follow from the contents of nested tensors; other values make no difference."""
    digest = hashlib.sha256()
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor):
            whole = tensor.detach().cpu().contiguous()
            digest.update(
                f"{tuple(whole.shape)}{whole.dtype}".encode() + whole.view(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:16]


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples, dicts, dataclasses and plain result objects, in order."""
    return list(_collect_tensors(value, set(), _never))


def outputs_in(value: Any) -> list[Tensor]:
    """All tensors in what a model returned, as :func:`tensors_in`, but for those in caches, see :func:`is_cache`."""
    return list(_collect_tensors(value, set(), is_cache))


def outputs_by_name(value: Any) -> dict[str, list[Tensor]]:
    """The tensors in what a model returned, by the key, the attribute or the place (``"0"``) they are found under."""
    if isinstance(value, Tensor):
        parts: Any = {}
    elif isinstance(value, Mapping):
        parts = value
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    else:
        parts = getattr(value, "__dict__", {})
    return {str(key): outputs_in(part) for key, part in parts.items() if outputs_in(part)}


def is_cache(value: Any) -> bool:
    """Whether an object is a state that a model fills for its own next call: keys and values of attention, say.

    Results are data. A cache is written into: it is updated with a key and a value, or can be reset, or it says how
    long it has become. Tensors and modules are none; plain containers only where they say that.
    """
    if isinstance(value, Tensor | nn.Module | type):
        return False
    if callable(getattr(value, "get_seq_length", None)):
        return True
    is_plain = isinstance(value, Mapping | Sequence | Set)
    return not is_plain and (
        _count_required(value, "update") >= len(("key", "value")) or _count_required(value, "reset") == 0
    )


def _count_required(value: Any, name: str) -> int:
    """How many positional arguments a method must be given; -1 where there is no such method."""
    method = getattr(value, name, None)
    try:
        parameters = signature(method).parameters.values() if callable(method) else None
    except (TypeError, ValueError):
        parameters = None
    if parameters is None:
        return -1
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _never(value: Any) -> bool:
    return False


def _collect_tensors(value: Any, seen: set[int], is_left_out: Callable[[Any], bool]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value, is_leaf=is_left_out):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, _DATA) and not is_left_out(leaf):
            seen.add(id(leaf))
            yield from _collect_tensors(list(getattr(leaf, "__dict__", {}).values()), seen, is_left_out)


_DATA = str | int | float | bool | type | nn.Module | None


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients inside; afterwards every module is in the mode it was in before.

    Module by module, since a frozen norm inside a model in training mode must come back frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


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


def describe_example(example: Any) -> str:
    """Shapes and dtypes of the tensors of ``example``, for messages."""
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(example)) or repr(
        example
    )
