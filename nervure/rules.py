"""Rules for operations of your own: say in a line what an operation does to the units that pass through it.

>>> import torch
>>> from torch import nn
>>> import nervure
>>> from nervure import rules
>>> @torch.library.custom_op("yours::project", mutates_args=())
... def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
...     return x @ weight.T
>>> class Model(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.first, self.weight = nn.Linear(4, 8), nn.Parameter(torch.ones(3, 8))
...     def forward(self, x):
...         return torch.ops.yours.project(self.first(x).relu(), self.weight)
>>> nervure.trace(Model(), torch.ones(2, 4))["first"].pinned
"mixed by operation 'yours::project', which has no rule (yours::project in the model)"
>>> with nervure.rule("yours::project", rules.contraction("ni,oi->no")):
...     nervure.trace(Model(), torch.ones(2, 4))["first"].is_pinned
False
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar, final, overload

import torch
from torch._library.custom_ops import CustomOpDef

from nervure.core.check import nearest
from nervure.core.renamed import old_names
from nervure.errors import ArgumentError
from nervure.graph.ops.user import (
    STACKS,
    Chooser,
    How,
    Operation,
    contraction,
    give_rule,
    like,
    moves,
    pinned,
    pointwise,
    require_how,
)

__all__ = [
    "How",
    "Operation",
    "UserRule",
    "contraction",
    "current_rules",
    "forget",
    "like",
    "moves",
    "pinned",
    "pointwise",
    "rule",
]

F = TypeVar("F", bound=Chooser)


@final
class UserRule:
    """A rule that was given. It holds until :meth:`remove`, or until the end of a ``with`` block."""

    def __init__(self, name: str, how: How | Chooser) -> None:
        self.name = name
        self.how = how
        STACKS.setdefault(name, []).append(self)
        _settle(name)

    def remove(self) -> None:
        """Take the rule back; the one given before it holds again. Once more does nothing."""
        if self in STACKS.get(self.name, []):
            STACKS[self.name].remove(self)
            _settle(self.name)

    def __enter__(self) -> "UserRule":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.remove()


def _settle(name: str) -> None:
    if STACKS[name]:
        give_rule(name, STACKS[name][-1].how)
    else:
        del STACKS[name]
        give_rule(name, None)


@overload
def rule(operation: Any, how: How | Chooser) -> UserRule: ...


@overload
def rule(operation: Any) -> Callable[[F], F]: ...


def rule(operation: Any, how: Any = None) -> Any:
    """Say what an operation does to the units that pass through it.

    The rule holds wherever a model is traced, cut or verified, until it is taken back. It is the user's word: groups it
    lets go are tried on the example, and stay, with the reason in ``Group.pinned``, where the word was wrong. (On the
    ``meta`` device nothing can be tried, and ``Graph.notes`` says so.)

    Args:
        operation: ``"namespace::name"`` as registered, or the operator (``torch.ops.mylib.project``).
        how: made by ``pointwise``, ``contraction``, ``like``, ``moves`` or ``pinned`` of :mod:`nervure.rules`, or a
            function of the :class:`~nervure.rules.Operation` that returns such. Left out, a decorator for that function
            is returned (then :func:`nervure.rules.forget` takes the rule back).

    Returns:
        What was given, to be used as ``with nervure.rule(...):`` or taken back by ``.remove()``.

    Raises:
        ArgumentError: no such operation is registered, or ``how`` is not a rule.
    """
    name = _name_of(operation)
    if how is not None:
        return UserRule(name, how if callable(how) else require_how(how))

    def decorate(function: F) -> F:
        UserRule(name, function)
        return function

    return decorate


def forget(operation: Any) -> None:
    """Take back every rule given for an operation; raises ArgumentError where none was given."""
    name = _name_of(operation)
    if name not in STACKS:
        raise ArgumentError(f"no rule was given for {name!r}.{nearest(name, STACKS)}")
    for one in list(STACKS[name]):
        one.remove()


def current_rules() -> Mapping[str, How | Chooser]:
    """The rules that hold now, by operation."""
    return {name: stack[-1].how for name, stack in STACKS.items()}


def _name_of(operation: Any) -> str:
    if isinstance(operation, torch._ops.OpOverload):
        return str(operation._schema.name)
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return str(operation._qualified_op_name)
    if isinstance(operation, CustomOpDef):
        return str(operation._qualname)
    if not isinstance(operation, str) or len(operation.split("::")) != 2:
        raise ArgumentError(f"operation={operation!r} is not written namespace::name, e.g. 'mylib::project'.")
    known = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    if operation not in known:
        space = operation.partition("::")[0]
        own = [name for name in known if name.startswith(f"{space}::")]
        raise ArgumentError(f"no operation {operation!r} is registered.{nearest(operation, own)} Define it first.")
    return operation


__getattr__ = old_names(__name__)
