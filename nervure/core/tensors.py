"""Tensors in nested values: in what a model is given, and in what it returns."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map_only

from nervure.core.check import show_value
from nervure.errors import ArgumentError


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples, dicts, dataclasses and plain result objects, in order."""
    return list(_collect_tensors(value, set(), lambda _: False))


def outputs_in(value: Any) -> list[Tensor]:
    """All tensors in what a model returned, as :func:`tensors_in`, but for those in caches, see :func:`is_cache`."""
    return list(_collect_tensors(value, set(), is_cache))


def cloned(value: Any) -> Any:
    """Nested values with tensors of their own, without history; all else is the same."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)


def without_history(tensor: Tensor) -> Tensor:
    """The numbers of a tensor; itself, where nothing was computed to have them."""
    return tensor.detach() if tensor.requires_grad else tensor


def at_least_single(tensor: Tensor) -> Tensor:
    """Half precision, and whole numbers, in single precision; double precision as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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


def _collect_tensors(value: Any, seen: set[int], is_left_out: Callable[[Any], bool]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value, is_leaf=is_left_out):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, _DATA) and not is_left_out(leaf):
            seen.add(id(leaf))
            yield from _collect_tensors(list(getattr(leaf, "__dict__", {}).values()), seen, is_left_out)


_DATA = str | int | float | bool | type | nn.Module | None


def has_shape_only(tensor: Tensor) -> bool:
    """Whether a tensor has no numbers: it is on the ``meta`` device, or fake."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def require_numbers(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` unless it has a shape only and is asked to a ``device`` with numbers: then ArgumentError."""
    if tensor.is_meta and device.type != "meta":
        raise ArgumentError(
            f"{show_value(tensor)} is on the meta device: it has a shape without numbers. Give numbers, as torch.randn "
            "does."
        )
    return tensor


def are_whole(numbers: Tensor) -> bool:
    """Whether they may be numbers of classes: integers, and no booleans."""
    return not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)


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


def describe_tensors(value: Any) -> str:
    """Shapes and dtypes of the tensors in nested values, for messages."""
    shown = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(value)]
    return ", ".join(shown) or repr(value)
