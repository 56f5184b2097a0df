"""The amount of a method: which of its hyper-parameters says how much stays, and the same method with another one."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

from nervure.core.check import checked
from nervure.core.schema import Density
from nervure.errors import ArgumentError
from nervure.methods.base import Method

AMOUNTS = ("keep", "density")
"""What the amount of a method is called, where it says nothing else."""
RIVALS: Mapping[str, tuple[str, ...]] = {"keep": ("target", "drop", "tolerance", "latency", "memory")}
"""Hyper-parameters that say how much leaves in the place of that amount, where they are given."""


@runtime_checkable
class HasAmount(Protocol):
    """A method whose amount has a name of its own.

    Attributes:
        amount: the field that says which fraction stays, in (0, 1].
    """

    @property
    def amount(self) -> str:
        """What was said above."""
        ...


@runtime_checkable
class HasLimits(Protocol):
    """A method that takes ``keep=None``: each group, or layer, is cut to the limit that is found for it.

    Attributes:
        has_limits: True, of the class.
    """

    @property
    def has_limits(self) -> bool:
        """What was said above."""
        ...


def amount_of(method: Method) -> str:
    """The field of a method that says which fraction stays: its ``amount``, or else ``keep`` or ``density``.

    Raises:
        ArgumentError: there is none.
    """
    names = {f.name for f in fields(method)} if is_dataclass(method) and not isinstance(method, type) else set[str]()
    known = [method.amount] if isinstance(method, HasAmount) else [name for name in AMOUNTS if name in names]
    if not known or known[0] not in names:
        raise ArgumentError(
            f"{method!r} does not say how much stays: it needs a field {' or '.join(map(repr, AMOUNTS))}, or another "
            'whose name it gives as its `amount`, e.g. amount: ClassVar[str] = "share". It must be a dataclass.'
        )
    return known[0]


@checked
def with_amount(method: Method, share: Density) -> Method:
    """The same method, leaving another fraction.

    >>> from nervure.methods import Magnitude, MagnitudeMasks
    >>> with_amount(Magnitude(keep=0.5, budget="macs"), 0.25).keep, with_amount(MagnitudeMasks(), 0.25).density
    (0.25, 0.25)

    Args:
        method: a frozen dataclass.
        share: the fraction that stays, of what the method counts.

    Raises:
        ArgumentError: the method has no amount (:func:`amount_of`), it says in another way how much leaves
            (``target``, ``drop``, ...), or it takes no other amount, as patterns like ``"2:4"``.
    """
    name = amount_of(method)
    for other in RIVALS.get(name, ()):
        value: Any = getattr(method, other, None)
        if _is_amount(value):
            raise ArgumentError(
                f"{method!r} says how much leaves by {other}={value!r} already. Leave {other} out, so that "
                f"{name} does; it counts what budget= says."
            )
    # Replacing fields is for any dataclass, which amount_of has seen to.
    return cast(Method, replace(cast(Any, method), **{name: share}))


def _is_amount(value: Any) -> bool:
    """Whether a value is a number, or one with its unit such as ``"3 ms"``: the same names have other meanings too."""
    return isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit())
