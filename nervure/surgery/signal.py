"""What the source of a link hands to its target: a value that belongs to one call of the model.

Threads that run one model do not see each other's values. Where a part of the model is computed again for its backward
pass (activation checkpoints), one end may run without the other: the target then gets what it was given the first
time, and the gradient of that goes to the source as it would have gone without a checkpoint.
"""

import threading
import weakref
from collections import deque
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nervure.errors import ForwardError

WAITING = 4
"""Passes remembered that wait for a backward pass where nothing else tells how long: both ends in checkpoints."""
SAMPLED = 8


class _Given(NamedTuple):
    value: Tensor
    with_grad: bool


@final
class _Call:
    """A value that was handed over, and how to recognise the same pass when a part of it is computed again."""

    def __init__(self, value: Tensor, said: Tensor, met: Tensor, *, wants_grad: bool) -> None:
        # Gradients of what has no graph behind it go straight to it.
        self.leaf = value if value.is_leaf and value.requires_grad else value.detach().requires_grad_(wants_grad)
        self.said, self.met = said, met

    def collect(self, grad: Tensor) -> Tensor:
        """As a hook of the source's value: with what came to it where the target was computed again."""
        extra, self.leaf.grad = self.leaf.grad, None
        return grad if extra is None else grad + extra

    def hold(self, _grad: Tensor) -> None:
        """As a hook: live as long as the pass may be gone back through."""


@final
class Signal:
    """The values on their way from a source to a target; between passes there are none."""

    def __init__(self) -> None:
        self.traced: Tensor | None = None
        self._given: dict[tuple[int, Any], _Given] = {}
        self._calls: weakref.WeakSet[_Call] = weakref.WeakSet()
        self._waiting: deque[_Call] = deque(maxlen=WAITING)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Signal, ()

    def give(self, value: Tensor) -> None:
        """From the source."""
        if _is_traced():
            self.traced = value
            return
        thread, node = key = _where()
        if node is None:
            for old in [k for k in tuple(self._given) if k[0] == thread]:
                del self._given[old]
        elif value.requires_grad and (call := self._call("said", value)) is not None:
            value.register_hook(call.collect)
        self._given[key] = _Given(value, torch.is_grad_enabled())

    def take(self, met: Tensor, *, training: bool) -> Tensor | None:
        """For the target, whose own output is ``met``; None where the source did not run."""
        if _is_traced():
            traced, self.traced = self.traced, None
            return traced
        key = _where()
        given = self._given.pop(key, None)
        if given is None:
            call = None if key[1] is None else self._call("met", met)
            return None if call is None else call.leaf
        is_for_gradients = torch.is_grad_enabled() or given.value.requires_grad or training
        # Nothing is computed again inside the transforms of torch.func.
        if key[1] is not None or not is_for_gradients or torch._C._functorch.peek_interpreter_stack() is not None:
            return given.value
        return self._recall(given, met)

    def _recall(self, given: _Given, met: Tensor) -> Tensor:
        value = given.value
        call = _Call(value, _sample(value), _sample(met), wants_grad=value.requires_grad or not given.with_grad)
        with self._lock:
            self._calls.add(call)
        if value.requires_grad and not value.is_leaf:
            value.register_hook(call.collect)
        elif met.requires_grad:
            met.register_hook(call.hold)
        else:
            self._waiting.append(call)
        # A source in a checkpoint ran without gradients: they are collected here, and wait for it to run again.
        return value if given.with_grad or not torch.is_grad_enabled() else call.leaf

    def _call(self, side: str, value: Tensor) -> _Call | None:
        """The pass that is computed again."""
        with self._lock:
            calls = list(self._calls)
        sample = _sample(value)
        found = next((call for call in calls if _are_equal(getattr(call, side), sample)), None)
        if found is None and calls and side == "met":
            raise ForwardError(
                "a checkpoint computes a link's target again, but not as before: does it keep the random state, and do "
                f"at most {WAITING} passes wait for their backward pass?"
            )
        return found


def _where() -> tuple[int, Any]:
    """The thread, and what in a backward pass has something computed again; None in a forward pass."""
    return threading.get_ident(), torch._C._current_autograd_node()


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def _sample(value: Tensor) -> Tensor:
    """A few entries of the first and of the last row."""
    with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction():
        if not value.numel():
            return value.detach().reshape(-1)
        ends = [value.detach()[(place,) * (value.ndim - 1)].reshape(-1)[:SAMPLED] for place in (0, -1)]
        return torch.cat(ends)


def _are_equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
