"""What a model is called with, whatever form it was given in.

Public functions make :class:`Inputs` of their ``example`` at the door; further in there is no other form. Code of the
user's (engines, clocks, methods, objectives) gets back what a user gives: see :meth:`Inputs.plain`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import GetAttrKey, KeyEntry, register_pytree_node, tree_leaves, tree_map

from nervure.core.check import Checked, show_value
from nervure.core.documents import is_shallow
from nervure.core.tensors import describe_tensors, require_numbers
from nervure.errors import ArgumentError, ForwardError, NervureError

LOST_DEVICE: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
"""What torch raises where an accelerator answers no more; older versions have no name for it."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Inputs(Checked):
    """The arguments of one call of a model.

    An *example* is a tensor, a tuple of positional arguments, a mapping of keyword arguments, or a list of several; or
    inputs, which say what no other form can: some by position, others by name.

    Attributes:
        args: those by position.
        kwargs: those by name.

    Raises:
        ArgumentError: the former are no tuple or the latter no mapping by name.

    >>> inputs = Inputs((torch.zeros(2, 3),), {"scale": 2.0})
    >>> print(inputs)
    (2, 3) float32
    >>> inputs.resize(5).run(lambda x, scale: scale * x).shape
    torch.Size([5, 3])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any) -> "Inputs":
        """The inputs in an example; of a list of several those of the first. Raises as :meth:`several`."""
        return cls.several(example)[0]

    @classmethod
    def several(cls, example: Any, place: nn.Module | None = None) -> "list[Inputs]":
        """The inputs of each example in a list; one alone is a list of one.

        Tensors of subclasses (pictures, volumes) become plain ones of the same memory.

        Args:
            example: a tensor, a tuple, a dict, inputs, or a list of these.
            place: a model to whose device they go, as :meth:`to` says it; None: they stay where they are.

        Raises:
            ArgumentError: it is none of the forms of an example, is nested too deeply, or the list is empty.
        """
        if isinstance(example, list) and not example:
            raise ArgumentError("example=[] is a list of no examples. Give one, or a list of several.")
        found = [_read_example(one) for one in (example if isinstance(example, list) else [example])]
        return found if place is None else [one.to(place) for one in found]

    @classmethod
    def of_batch(cls, inputs: Any) -> "Inputs":
        """The inputs in a batch of data: there a list holds positional arguments, and anything else is one."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return cls((), {str(name): value for name, value in inputs.items()})
        return cls(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,))

    @property
    def samples(self) -> int:
        """How many samples there are: the length of the first tensor that has any.

        Raises:
            ArgumentError: no tensor has samples along a first axis.
        """
        sizes = (leaf.shape[0] for leaf in tree_leaves(self) if isinstance(leaf, Tensor) and leaf.ndim)
        found = next(filter(None, sizes), None)
        if found is None:
            raise ArgumentError("the example holds no tensor with samples along its first axis; give one, or several.")
        return found

    def resize(self, samples: int) -> "Inputs":
        """The same with so many samples: repeated in order, or the first few.

        Tensors whose first axis is as long as that of the first tensor are resized; whatever else there is stays.

        Raises:
            ArgumentError: no tensor has samples along a first axis, or one that has is sparse.
        """
        before = self.samples
        index = torch.arange(samples) % before

        def fit(x: Tensor) -> Tensor:
            if not x.ndim or x.shape[0] != before:
                return x
            if x.layout != torch.strided:
                raise ArgumentError(f"the example holds {show_value(x)} of layout {x.layout}; give a dense tensor.")
            return x[index.to(x.device)]

        return self.map(fit)

    def to(self, place: nn.Module | torch.device) -> "Inputs":
        """The same on a device, or on that of a model's first parameter; where it has none, they stay.

        Without weights (on ``meta``) whole numbers stay where they are: what the model reads from them can then be
        known.

        Raises:
            ArgumentError: a tensor has a shape without numbers, and the device is one for numbers.
        """
        first = next(place.parameters(), None) if isinstance(place, nn.Module) else None
        device = first.device if first is not None else place
        return self if isinstance(device, nn.Module) else self.map(lambda x: _to_device(x, device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with every tensor changed."""
        found: Inputs = tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, self)
        return found

    def plain(self) -> Any:
        """The simplest form that says the same: a tensor alone, a tuple, a dict; inputs, where no other can."""
        if self.kwargs:
            return self if self.args else dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 and isinstance(self.args[0], Tensor) else self.args

    def call(self, model: Callable[..., Any]) -> Any:
        """What ``model`` makes of them; whatever it raises comes as it is."""
        return model(*self.args, **self.kwargs)

    def run(self, model: Callable[..., Any]) -> Any:
        """What ``model`` makes of them.

        Raises:
            ForwardError: its own forward raised; the message says on what, the cause is its own error.
        """
        try:
            return self.call(model)
        except (NervureError, torch.OutOfMemoryError):
            # Where memory is short, fewer samples may do: callers look for torch's own error.
            raise
        except Exception as error:
            if isinstance(error, LOST_DEVICE):
                raise ForwardError(
                    f"the device gave up in the model's forward, or before it: {str(error).splitlines()[0]}. It "
                    f"answers no more in this process. Start again, and run the model on {self} on the CPU: what is "
                    "wrong, mostly an index or a label out of range, is told there."
                ) from error
            raise ForwardError(
                f"the model's forward raised {type(error).__name__}: {error}. It was given {self}; check that it is "
                "what the model expects."
            ) from error

    def __str__(self) -> str:
        return describe_tensors(self.plain())


def _flatten(inputs: Inputs) -> tuple[list[Any], None]:
    return [inputs.args, dict(inputs.kwargs)], None


def _flatten_with_keys(inputs: Inputs) -> tuple[list[tuple[KeyEntry, Any]], None]:
    parts, _ = _flatten(inputs)
    return [(GetAttrKey(name), part) for name, part in zip(("args", "kwargs"), parts, strict=True)], None


# So that whatever looks into nested values looks into inputs too.
register_pytree_node(Inputs, _flatten, lambda parts, _: Inputs(*parts), flatten_with_keys_fn=_flatten_with_keys)


def _read_example(example: Any) -> Inputs:
    if isinstance(example, Mapping) and not all(isinstance(key, str) for key in example):
        raise ArgumentError(f"example has keys {list(example)!r}; a dict example holds keyword arguments by name.")
    if not isinstance(example, Inputs | Tensor | tuple | Mapping):
        raise ArgumentError(
            f"example is a {type(example).__name__}. Give a tensor, a tuple of positional arguments or a dict of "
            "keyword arguments (or a list of several of these)."
        )
    return plain_tensors(Inputs.of_batch(example))


def plain_tensors(inputs: Inputs) -> Inputs:
    """The same with plain tensors for those of subclasses that only carry something along.

    Raises:
        ArgumentError: lists, tuples and dicts in it have no end to their levels.
    """
    if not is_shallow((inputs.args, dict(inputs.kwargs))):
        raise ArgumentError("example is nested too deeply, or holds itself. Give tensors, a tuple or a dict of them.")
    return inputs.map(plain_tensor)


def plain_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or a plain one of the same memory for one of a subclass that only carries something along."""
    kind: Any = type(tensor)
    carries = kind not in (Tensor, nn.Parameter) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
    return tensor.as_subclass(Tensor) if carries else tensor


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    if isinstance(x, FakeTensor):
        return torch.empty(x.shape, dtype=x.dtype, device="meta" if device.type == "meta" else x.device)
    moved = require_numbers(x, device).to(device)
    if moved.is_meta and not x.is_meta and not x.is_floating_point():
        setattr(moved, CONTENTS, x)
    return moved


CONTENTS = "_contents"
"""Attribute of a tensor on ``meta``: the same tensor with its numbers."""
