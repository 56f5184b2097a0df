"""Integers that remember where they come from.

A module keeps its own widths as Python integers (``num_heads``, ``head_dim``, ``groups``). While a model is traced
these are replaced by :class:`Size`, an ``int`` that knows its attribute and keeps that knowledge through arithmetic, so
that the sizes that arrive in ``view``, ``split`` or ``zeros`` tell which attribute must follow a cut.
"""

import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard, final

import torch
from torch import nn

from nervure.errors import PlanError


@final
@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute: qualified module name and the path below the module."""

    module: str
    path: str


@final
@dataclass(frozen=True, slots=True)
class Expression:
    """A number and where it comes from: an attribute, an axis of a tensor, or an operation on such numbers.

    ``dimension`` is the number of a value on the tape and one of its axes.
    """

    value: int
    attribute: Attribute | None = None
    dimension: tuple[int, int] | None = None
    operation: str = ""
    operands: tuple["Expression | int | float", ...] = ()

    def attributes(self) -> set[Attribute]:
        """All attributes in the expression."""
        if self.attribute is not None:
            return {self.attribute}
        return {a for o in self.operands if isinstance(o, Expression) for a in o.attributes()}

    def dimensions(self) -> set[tuple[int, int]]:
        """All axes of tensors in the expression."""
        if self.dimension is not None:
            return {self.dimension}
        return {d for o in self.operands if isinstance(o, Expression) for d in o.dimensions()}

    def leaves(self) -> "list[Expression]":
        """The attributes and axes in the expression, as expressions, each once."""
        if not self.operation:
            return [self]
        inner = (o for o in self.operands if isinstance(o, Expression))
        return list(dict.fromkeys(leaf for expression in inner for leaf in expression.leaves()))

    def evaluate(self, leaf: "Callable[[Expression], Any]") -> Any:
        """The number (or the array of numbers) when attributes and axes are what ``leaf`` says of them."""
        if not self.operation:
            return leaf(self)
        numbers = [o.evaluate(leaf) if isinstance(o, Expression) else o for o in self.operands]
        return OPERATIONS[self.operation](*numbers)

    def __str__(self) -> str:
        if self.attribute is not None:
            return self.attribute.path
        if self.dimension is not None:
            return f"x.size({self.dimension[1]})"
        numbers = [f"({o})" if isinstance(o, Expression) and o.operation else str(o) for o in self.operands]
        sign = SIGNS.get(self.operation, self.operation)
        return f" {sign} ".join(numbers) if len(numbers) > 1 else f"{sign}{numbers[0]}"


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "abs": abs,
}
SIGNS: Mapping[str, str] = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}


_READINGS = """
__int__ __float__ __index__ __str__ __repr__ __format__ __hash__ __invert__ bit_length bit_count to_bytes
as_integer_ratio conjugate
"""
"""Methods of integers that give no size."""


class Size(int):
    """An integer with its :class:`Expression`, good for the tracing that it was made in; a plain number after it.

    What the class is asked (arithmetic, comparisons, texts) it answers from the expression. What reads the integer
    itself asks nothing, as ``range`` and ``0.5 * size`` do: that finds another number where the tracing has sizes lie,
    so that it shows in what the model does (see ``lost``).
    """

    expression: Expression
    noted: "Noted"

    @staticmethod
    def of(expression: Expression) -> "Size":
        """The size that an expression stands for."""
        noted = _running()
        lies = bool(noted.lies) and not noted.lies.isdisjoint(expression.leaves())
        size = int.__new__(Size, 2 * expression.value + 1 if lies else expression.value)
        size.expression, size.noted = expression, noted
        return size

    def __deepcopy__(self, memo: Any) -> int:
        return self.expression.value

    def __reduce__(self) -> Any:
        return int, (self.expression.value,)

    def __pos__(self) -> "Size":
        return self

    __floor__ = __trunc__ = __ceil__ = __pos__

    def __round__(self, digits: Any = None) -> int:
        if digits is None or digits >= 0:
            return self
        _note_as_number(self)
        return round(self.expression.value, digits)

    def __neg__(self) -> int:
        return _computed_size("sub", 0, self)  # type: ignore[no-any-return]

    def __abs__(self) -> int:
        return self if not self.expression.operation else _of(abs(self.expression.value), "abs", self)

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << other) if type(other) is int else _as_numbers(operator.lshift, self, other)

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << other) if type(other) is int else _as_numbers(operator.rshift, self, other)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __bool__(self) -> bool:
        # No cut leaves an axis empty, but what is computed from its size may become zero.
        if self.expression.operation:
            _note_as_number(self)
        return bool(self.expression.value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _note_as_number(*inputs)
        return getattr(ufunc, method)(*plain(inputs), **plain(kwargs))


@final
@dataclass(slots=True)
class Noted:
    """Sizes that were computed or compared with as numbers (a scale, say), and attributes that were computed with.

    ``alike``: pairs of sizes that the code compared and found equal. ``lies``: attributes and axes of which the sizes
    are wrong numbers for all that does not ask where they come from.
    """

    numbers: list[Expression] = field(default_factory=list)
    attributes: set[Attribute] = field(default_factory=set)
    alike: list[tuple[Expression, Expression]] = field(default_factory=list)
    lies: frozenset[Expression] = frozenset()


class _Tracings(threading.local):
    def __init__(self) -> None:
        self.running: list[Noted] = []


_TRACINGS = _Tracings()
"""What is noted in each tracing under way in this thread, the innermost last."""


def _running() -> Noted:
    return _TRACINGS.running[-1] if _TRACINGS.running else Noted()


def _is_current(value: Any) -> TypeGuard[Size]:
    return isinstance(value, Size) and value.noted is _running()


def _note_as_number(*values: Any) -> None:
    for value in values:
        if _is_current(value):
            value.noted.numbers += value.expression.leaves()
            value.noted.attributes |= value.expression.attributes()


@contextmanager
def noting_numbers(lies: frozenset[Expression] = frozenset()) -> Iterator[Noted]:
    """Collect, while this lasts, the axes and attributes whose sizes are computed with as numbers."""
    noted = Noted(lies=lies)
    _TRACINGS.running.append(noted)
    try:
        yield noted
    finally:
        _TRACINGS.running.remove(noted)


def plain(value: Any) -> Any:
    """Nested arguments with every size as the number that it is."""
    if isinstance(value, Size):
        return value.expression.value
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if type(value) in (tuple, list, torch.Size):
        return type(value)([plain(v) for v in value])
    if type(value) is dict:
        return {key: plain(v) for key, v in value.items()}
    return value


def _of(value: int, operation: str, *operands: Any) -> int:
    """A size computed from others; a plain number where they are those of a tracing that is over."""
    if not any(_is_current(o) for o in operands):
        return value
    return Size.of(Expression(value, operation=operation, operands=tuple(map(expression_of, operands))))


def _as_numbers(compute: Callable[..., Any], *values: Any) -> Any:
    """The result of a computation that gives no size."""
    _note_as_number(*values)
    return compute(*plain(values))


def _computed_size(name: str, left: Any, right: Any) -> Any:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        # A tensor notes the call by itself; a list is repeated.
        _note_as_number(left, right)
        return NotImplemented
    result = OPERATIONS[name](*plain((left, right)))
    return _of(result, name, left, right) if isinstance(result, int) else _as_numbers(lambda *_: result, left, right)


def _binary(name: str, *, swapped: bool) -> Callable[[Any, Any], Any]:
    return lambda self, other: _computed_size(name, *((other, self) if swapped else (self, other)))


def _number_of(name: str) -> Callable[..., Any]:
    method = getattr(int, name)
    return lambda self, *others: _as_numbers(method, self, *others)


def _number_with(compute: Callable[..., Any], *, swapped: bool) -> Callable[..., Any]:
    return lambda self, other, *more: _as_numbers(compute, *((other, self) if swapped else (self, other)), *more)


def _note_comparison(one: Size, other: Any, are_equal: bool) -> None:
    if are_equal and _is_current(other):
        one.noted.alike.append((one.expression, other.expression))
        one.noted.attributes |= one.expression.attributes() | other.expression.attributes()
    else:
        for value in (one, other):
            one.noted.numbers += value.expression.leaves() if _is_current(value) else []


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    compare = getattr(operator, name)

    def run(self: Size, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        outcome = compare(*plain((self, other)))
        if self is not other and _is_current(self):
            _note_comparison(self, other, outcome is (name == "eq") and name in ("eq", "ne"))
        return outcome

    return run


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _comparison(_name))
for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Size, f"__{_name}__", _binary(_name, swapped=False))
    setattr(Size, f"__r{_name}__", _binary(_name, swapped=True))
for _name in ("truediv", "and_", "or_", "xor"):
    _method, _compute = _name.rstrip("_"), getattr(operator, _name)
    setattr(Size, f"__{_method}__", _number_with(_compute, swapped=False))
    setattr(Size, f"__r{_method}__", _number_with(_compute, swapped=True))
Size.__pow__, Size.__rpow__ = _number_with(pow, swapped=False), _number_with(pow, swapped=True)  # type: ignore[method-assign]
for _name in _READINGS.split():
    setattr(Size, _name, _number_of(_name))
for _name in ("real", "numerator"):
    setattr(Size, _name, property(_number_of("__int__")))


def expression_of(value: int) -> Expression | int:
    """The expression of a size, or the plain integer."""
    return value.expression if _is_current(value) else int(plain(value))


def _is_integer(value: Any) -> bool:
    return type(value) in (int, Size) and value > 0


def holders(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every attribute dictionary that may hold sizes: (module name, path prefix, dictionary), configs included once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        yield name, "", vars(module)
        for key in ("config", "cfg", "args", "hparams"):
            config = vars(module).get(key)
            holder = getattr(config, "__dict__", None)
            if isinstance(holder, dict) and id(holder) not in seen and not isinstance(config, nn.Module | type):
                seen.add(id(holder))
                yield name, f"{key}.", holder


@contextmanager
def tagged_attributes(model: nn.Module) -> Iterator[None]:
    """Replace integer attributes of modules (of configs and in tuples too) by :class:`Size`, then restore."""
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module, prefix, holder in holders(model):
            for key, value in list(holder.items()):
                if key.startswith("__") or key in _UNTOUCHED:
                    continue
                tagged = _tag(module, prefix + key, value)
                if tagged is not value:
                    undo.append((holder, key, plain(value)))
                    holder[key] = tagged
        yield
    finally:
        for holder, key, value in reversed(undo):
            holder[key] = value


_UNTOUCHED = frozenset({"training", "_version", "_non_persistent_buffers_set"})


def numbers_of(path: str, value: Any) -> Iterator[tuple[str, int]]:
    """Path and value of an integer, or of each in a tuple or list of integers."""
    if _is_integer(value):
        yield path, plain(value)
    elif type(value) in (tuple, list) and all(_is_integer(v) for v in value):
        yield from ((f"{path}[{i}]", v) for i, v in enumerate(plain(value)))


def _tag(module: str, path: str, value: Any) -> Any:
    if _is_integer(value):
        return Size.of(Expression(plain(value), attribute=Attribute(module, path)))
    if type(value) in (tuple, list) and value and all(_is_integer(v) for v in value):
        sizes = [
            Size.of(Expression(v, attribute=Attribute(module, f"{path}[{i}]"))) for i, v in enumerate(plain(value))
        ]
        return type(value)(sizes)
    return value


def read_attribute(model: nn.Module, attribute: Attribute) -> int:
    """Current value of an attribute; raises PlanError where no whole number is there."""
    return int(_Number.at(model, attribute).value())


def write_attribute(model: nn.Module, attribute: Attribute, value: int) -> None:
    """Set an attribute (an element of a tuple or list is replaced in a new one of the same type).

    Raises:
        PlanError: no whole number is there.
    """
    _Number.at(model, attribute).put(value)


def put(holder: Any, path: str, value: int) -> None:
    """Set what lies at ``path`` below an object, as ``"config.sizes[1]"``; a tuple or a list is made anew.

    Raises:
        PlanError: no whole number is there.
    """
    _Number.below(holder, path, type(holder).__name__).put(value)


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """The part of a model that a name from a file stands for, found without a call of anything; None where none is."""
    module: nn.Module | None = model
    for key in name.split(".") if name else ():
        module = None if module is None else module._modules.get(key)
    return module


class _Number(NamedTuple):
    """The place of a whole number: an entry of an object's own dictionary, or an element of a tuple or list there.

    Paths come from files too. They lead through dictionaries, so that no property is called, and end at numbers, so
    that nothing else is set.
    """

    holder: Any
    key: str
    element: int | None

    @staticmethod
    def at(model: nn.Module, attribute: Attribute) -> "_Number":
        return _Number.below(submodule(model, attribute.module), attribute.path, attribute.module or "the model")

    @staticmethod
    def below(holder: Any, path: str, whose: str) -> "_Number":
        *parents, last = path.split(".")
        for name in parents:
            holder = _entries(holder).get(name)
        key, _, rest = last.removesuffix("]").partition("[")
        place = _Number(holder, key, int(rest) if rest.isdecimal() else None)
        if type(place.value()) is not int or place.path != last or key in _UNTOUCHED:
            raise PlanError(f"{whose} has no whole number at {path!r}, as the graph says: trace it again.")
        return place

    @property
    def path(self) -> str:
        return self.key if self.element is None else f"{self.key}[{self.element}]"

    def value(self) -> Any:
        held: Any = _entries(self.holder).get(self.key)
        if self.element is None:
            return held
        return held[self.element] if type(held) in (tuple, list) and self.element < len(held) else None

    def put(self, value: int) -> None:
        old = _entries(self.holder)[self.key]
        new: Any = value
        if self.element is not None:
            new = type(old)(value if i == self.element else v for i, v in enumerate(old))
        setattr(self.holder, self.key, new)


def _entries(holder: Any) -> Mapping[str, Any]:
    return getattr(holder, "__dict__", {})
