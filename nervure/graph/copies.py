"""Copies of models, also of those that training or a forward pass left things in."""

import copy
import copyreg
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nervure.errors import CopyError

_DICTS = (dict, OrderedDict)
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, torch.Size, torch.dtype, torch.device})
"""Types whose values are not copied."""
_COPIED_ANYWAY = frozenset({"_parameters", "_buffers", "_modules"})


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; tensors that were computed, such as a loss that is kept, lose their history in it.

    Args:
        model: any module.
        memo: what takes the place of values, by their ``id``, as for ``copy.deepcopy``.

    Raises:
        CopyError: an attribute cannot be copied; the message names it.
    """
    try:
        with _WithoutHistory():
            twin: nn.Module = _copy_value(model, dict(memo or {}))
            return twin
    except Exception as error:
        name = _culprit(model)
        where = f"attribute {name!r}" if name else f"a {type(model).__name__}"
        raise CopyError(
            f"the model cannot be copied: {where} raises {type(error).__name__}: {error}. Leave it out of the model "
            "while it is pruned, or let it be copied (__deepcopy__, or __getstate__ of what holds it)."
        ) from error


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives, for modules and dicts of PyTorch's kind in a tenth of its time."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _DICTS:
        twin = memo[id(value)] = kind()
        for key, inner in value.items():
            twin[_copy_value(key, memo)] = _copy_value(inner, memo)
        return twin
    if kind is set and not value:
        return memo.setdefault(id(value), set())
    if isinstance(value, nn.Module) and _has_no_ways(kind) and "__deepcopy__" not in vars(value):
        twin = memo[id(value)] = object.__new__(kind)
        twin.__setstate__({key: _copy_value(inner, memo) for key, inner in value.__getstate__().items()})
        return twin
    return copy.deepcopy(value, memo)


def _has_no_ways(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are copied attribute by attribute, as ``nn.Module`` is."""
    return (
        kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__ is nn.Module.__setstate__
        and not hasattr(kind, "__deepcopy__")
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
        and kind not in copyreg.dispatch_table
    )


class _WithoutHistory(TorchFunctionMode):
    """Copies tensors that have a history, which PyTorch refuses to copy, as the numbers they hold."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def _culprit(model: nn.Module) -> str:
    """The first attribute that cannot be copied by itself."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _COPIED_ANYWAY and not _can_copy(value):
                return f"{name}.{key}" if name else key
    return ""


def _can_copy(value: Any) -> bool:
    try:
        with _WithoutHistory():
            copy.deepcopy(value)
    except Exception:  # what an attribute of the user's raises is anything
        return False
    return True
