"""Integers that remember where they come from.

A module keeps its own widths as Python integers (``num_heads``, ``head_dim``, ``groups``). While a model is traced
these are replaced by :class:`Size`, an ``int`` that knows its attribute and keeps that knowledge through arithmetic, so
that the sizes that arrive in ``view``, ``split`` or ``zeros`` tell which attribute must follow a cut.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn


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
        return list(dict.fromkeys(leaf for o in self.operands if isinstance(o, Expression) for leaf in o.leaves()))

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
}
SIGNS: Mapping[str, str] = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}


class Size(int):
    """An integer with its :class:`Expression`."""

    expression: Expression

    @staticmethod
    def of(expression: Expression) -> "Size":
        """The size that an expression stands for."""
        size = Size(expression.value)
        size.expression = expression
        return size

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __floor__(self) -> "Size":
        return self

    __trunc__ = __ceil__ = __floor__

    def __float__(self) -> float:
        _note_as_number(self)
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        _note_as_number(self, other)
        return int.__truediv__(self, other) if isinstance(other, int) else int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        _note_as_number(self, other)
        return other / int(self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        _note_as_number(self, other)
        return pow(int(self), other, modulus)

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        _note_as_number(self, other)
        return pow(other, int(self))


@final
@dataclass(slots=True)
class Noted:
    """Sizes that were computed or compared with as numbers (a scale, say), and attributes that were computed with.

    ``alike``: pairs of sizes that the code compared and found equal.
    """

    numbers: list[Expression] = field(default_factory=list)
    attributes: set[Attribute] = field(default_factory=set)
    alike: list[tuple[Expression, Expression]] = field(default_factory=list)


_NUMBERS: list[Noted] = []
"""What was noted in each tracing under way."""


def _note_as_number(*values: Any) -> None:
    for value in values:
        if _NUMBERS and isinstance(value, Size):
            _NUMBERS[-1].numbers += value.expression.leaves()
            _NUMBERS[-1].attributes |= value.expression.attributes()


@contextmanager
def noting_numbers() -> Iterator[Noted]:
    """Collect, while this lasts, the axes and attributes whose sizes are computed with as numbers."""
    _NUMBERS.append(Noted())
    try:
        yield _NUMBERS[-1]
    finally:
        _NUMBERS.pop()


def _plain(value: Any) -> Any:
    return value.expression if isinstance(value, Size) else value


def _binary(name: str, *, swapped: bool) -> Callable[[Any, Any], Any]:
    def run(self: Size, other: Any) -> Any:
        if not isinstance(other, int | float) or isinstance(other, bool):
            return NotImplemented
        left, right = (other, self) if swapped else (self, other)
        plain = [int.__index__(v) if isinstance(v, int) else v for v in (left, right)]
        result = OPERATIONS[name](*plain)
        if not isinstance(result, int):
            _note_as_number(left, right)
            return result
        return Size.of(Expression(result, operation=name, operands=(_plain(left), _plain(right))))

    return run


def _note_comparison(one: Size, other: Any, are_equal: bool) -> None:
    noted = _NUMBERS[-1]
    if are_equal and isinstance(other, Size):
        noted.alike.append((one.expression, other.expression))
        noted.attributes |= one.expression.attributes() | other.expression.attributes()
    else:
        for value in (one, other):
            noted.numbers += value.expression.leaves() if isinstance(value, Size) else ()


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    compare = getattr(int, f"__{name}__")

    def run(self: Size, other: Any) -> Any:
        outcome = compare(self, other)
        if self is not other and _NUMBERS:
            _note_comparison(self, other, outcome is (name == "eq") and name in ("eq", "ne"))
        return outcome

    return run


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Size, f"__{_name}__", _comparison(_name))

for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Size, f"__{_name}__", _binary(_name, swapped=False))
    setattr(Size, f"__r{_name}__", _binary(_name, swapped=True))


def expression_of(value: int) -> Expression | int:
    """The expression of a size, or the plain integer."""
    return value.expression if isinstance(value, Size) else value


def _is_integer(value: Any) -> bool:
    return type(value) is int and value > 0


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
                tagged = _tagged(module, prefix + key, value)
                if tagged is not value:
                    undo.append((holder, key, value))
                    holder[key] = tagged
        yield
    finally:
        for holder, key, value in reversed(undo):
            holder[key] = value


_UNTOUCHED = frozenset({"training", "_version", "_non_persistent_buffers_set"})


def numbers_of(path: str, value: Any) -> Iterator[tuple[str, int]]:
    """Path and value of an integer, or of each in a tuple or list of integers."""
    if _is_integer(value):
        yield path, value
    elif type(value) in (tuple, list) and all(_is_integer(v) for v in value):
        yield from ((f"{path}[{i}]", v) for i, v in enumerate(value))


def _tagged(module: str, path: str, value: Any) -> Any:
    if _is_integer(value):
        return Size.of(Expression(value, attribute=Attribute(module, path)))
    if type(value) in (tuple, list) and value and all(_is_integer(v) for v in value):
        sizes = [Size.of(Expression(v, attribute=Attribute(module, f"{path}[{i}]"))) for i, v in enumerate(value)]
        return type(value)(sizes)
    return value


def read_attribute(model: nn.Module, attribute: Attribute) -> Any:
    """Current value of an attribute; raises ``AttributeError`` or ``IndexError`` where it is gone."""
    holder, key, index = _locate(model, attribute)
    return getattr(holder, key) if index is None else getattr(holder, key)[index]


def write_attribute(model: nn.Module, attribute: Attribute, value: int) -> None:
    """Set an attribute (an element of a tuple or list is replaced in a new one of the same type)."""
    holder, key, index = _locate(model, attribute)
    if index is None:
        setattr(holder, key, value)
        return
    old = getattr(holder, key)
    setattr(holder, key, type(old)(value if i == index else v for i, v in enumerate(old)))


def _locate(model: nn.Module, attribute: Attribute) -> tuple[Any, str, int | None]:
    holder: Any = model.get_submodule(attribute.module)
    *parents, last = attribute.path.split(".")
    for name in parents:
        holder = getattr(holder, name)
    key, _, rest = last.partition("[")
    return holder, key, int(rest.rstrip("]")) if rest else None
