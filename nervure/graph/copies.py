"""Copies of models, also of those that training or a forward pass left things in."""

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nervure.errors import CopyError

_DICTS = (dict, OrderedDict)
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
            return copy.deepcopy(model, _copies_of_nothing(model) | (memo or {}))
    except Exception as error:
        name = _culprit(model)
        where = f"attribute {name!r}" if name else f"a {type(model).__name__}"
        raise CopyError(
            f"the model cannot be copied: {where} raises {type(error).__name__}: {error}. Leave it out of the model "
            "while it is pruned, or let it be copied (__deepcopy__, or __getstate__ of what holds it)."
        ) from error


def _copies_of_nothing(model: nn.Module) -> dict[int, Any]:
    """Copies of empty dicts by their ``id``: the places for hooks, eleven a module, take most of a deep copy's time."""
    values = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in values if type(value) in _DICTS and not value}


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
