"""Read the dictionary in a pickled batch of CIFAR, opcode by opcode; nothing is unpickled.

The official Python version of CIFAR is pickled, and unpickling may run any code that a file names, or hand any numbers
to numpy's own reconstruction. Here ``pickletools`` of the standard library splits a file into opcodes, and a table says
what each of the few that such a file needs does: plain values, containers, and arrays of numbers whose shape fits their
bytes. A name in a file stands for one of the functions below or is refused; it is never imported. What is built takes
about as much memory as the file. nervure itself never writes a pickle.
"""

import math
import os
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from nervure.errors import DataError
from nervure.zoo.readers.raw import open_file, printable

# Nearly all of a batch are pixels, so a file with more opcodes than that is not one, and would cost more than its size.
FEW_OPCODES = 10_000
BYTES_PER_OPCODE = 64
LONGEST_KEY = 100
LONGEST_NAME = 200
MOST_AXES = 8
NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
ORDERS = {"|": "=", "=": "=", "<": "<", ">": ">"}


@final
@dataclass
class _Dtype:
    """What stands for a numpy dtype: its code, and its byte order once that is known."""

    code: str
    order: str = "="

    def build(self, state: Any) -> None:
        """Take the state (version, order, None, None, None, ...) of a dtype without fields."""
        _require(
            isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None), "has a dtype of parts"
        )
        order = _text(state[1])
        _require(order in ORDERS, "has a dtype of unknown byte order")
        self.order = ORDERS[order]


@final
@dataclass
class _Array:
    """What stands for a numpy array, whose values come after it."""

    values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Take the state (version, shape, dtype, whether columns come first, bytes) of an array."""
        _require(isinstance(state, tuple) and len(state) == 5, "has an array without its five parts")
        _, shape, dtype, is_fortran, data = state
        self.values = _values(data, dtype, shape, "F" if is_fortran is True else "C")


@final
@dataclass(frozen=True)
class _Name:
    """A name in a file; nothing is looked up for it but in ``CALLS``."""

    name: str


@final
@dataclass
class _Machine:
    """The memory of a pickle: a stack, the marks on it, and what is kept to be named again.

    ``room`` is how many letters may still be copied: in all as many as the file has bytes.
    """

    room: int
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def take(self, count: int) -> tuple[Any, ...]:
        """The last ``count`` values, off the stack."""
        _require(0 <= count <= len(self.stack), "takes more than it has put")
        start = len(self.stack) - count
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def pop_to_mark(self) -> tuple[Any, ...]:
        """The values since the last mark, off the stack."""
        _require(bool(self.marks), "takes more than it has put")
        return self.take(len(self.stack) - self.marks.pop())

    def top(self, *kinds: type) -> Any:
        """The last value, of one of these types."""
        _require(bool(self.stack) and isinstance(self.stack[-1], kinds), "changes what is no container or array")
        return self.stack[-1]

    def remember(self, number: int | None) -> None:
        """Keep the last value under this number, or the next one."""
        self.memo[len(self.memo) if number is None else number] = self.top(object)

    def recall(self, number: int) -> None:
        """Put what was kept under this number on the stack."""
        _require(number in self.memo, "recalls what it has not kept")
        self.push(self.memo[number])


def _values(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    _require(isinstance(data, bytes | bytearray) and isinstance(dtype, _Dtype), "has an array that is not of numbers")
    _require(isinstance(shape, tuple) and 1 <= len(shape) <= MOST_AXES, "has an array of no sensible shape")
    _require(all(type(n) is int and 1 <= n <= len(data) for n in shape), "has an array of no sensible shape")
    kind = np.dtype(dtype.order + dtype.code)
    needed = math.prod(shape) * kind.itemsize
    _require(needed == len(data), f"has an array of shape {shape} and {kind} with {len(data)} bytes, not {needed}")
    return np.frombuffer(data, dtype=kind).reshape(shape, order="F" if _text(order) == "F" else "C")


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in the pickles that Python 2 reads."""
    _require(isinstance(text, str) and encoding == "latin1", "has bytes in another encoding than latin1")
    return bytes(text, "latin1")


def _dtype(code: Any, *_: Any) -> _Dtype:
    _require(_text(code) in NUMBERS, "has an array that is not of numbers")
    return _Dtype(_text(code))


# numpy moved its core; files written before and after name the same function differently. Protocol 5 has its own.
CALLS: Mapping[str, Callable[..., Any]] = {
    "_codecs encode": _encode,
    "numpy dtype": _dtype,
    "numpy.core.multiarray _reconstruct": lambda _kind, _shape, _code: _Array(),
    "numpy._core.multiarray _reconstruct": lambda _kind, _shape, _code: _Array(),
    "numpy.core.numeric _frombuffer": lambda *state: _Array(_values(*state)),
    "numpy._core.numeric _frombuffer": lambda *state: _Array(_values(*state)),
}
NAMES = frozenset({*CALLS, "numpy ndarray"})


def _push_name(machine: _Machine, name: str) -> None:
    _require(name in NAMES, f"names {ascii('.'.join(name.split()))[1:-1][:80]}, which a file of arrays has no use for")
    machine.push(_Name(name))


def _push_stacked_name(machine: _Machine, _: Any) -> None:
    module, name = machine.take(2)
    _push_name(machine, f"{_text(module)} {_text(name)}")


def _call(machine: _Machine, _: Any) -> None:
    name, arguments = machine.take(2)
    _require(
        isinstance(name, _Name) and name.name in CALLS and isinstance(arguments, tuple), "calls what is no function"
    )
    # A text that is recalled and encoded again and again would be copied each time.
    machine.room -= sum(len(argument) for argument in arguments if isinstance(argument, str))
    _require(machine.room >= 0, "copies more than it holds")
    machine.push(CALLS[name.name](*arguments))


def _build(machine: _Machine, _: Any) -> None:
    (state,) = machine.take(1)
    machine.top(_Array, _Dtype).build(state)


def _append_items(machine: _Machine, items: tuple[Any, ...]) -> None:
    machine.top(list).extend(items)


def _set_items(machine: _Machine, items: tuple[Any, ...]) -> None:
    # Other keys need not be read, and hashing what is nested deeply can overflow the stack of the process.
    _require(all(isinstance(key, str | bytes) and len(key) <= LONGEST_KEY for key in items[::2]), "has keys of no use")
    machine.top(dict).update(zip(items[::2], items[1::2], strict=True))


def _push_tuple(size: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(machine.take(size))


def _push_constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


ACTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    # The strings of Python 2, which are bytes.
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda machine, text: machine.push(text.encode("latin1"))),
    "NONE": _push_constant(None),
    "NEWTRUE": _push_constant(True),
    "NEWFALSE": _push_constant(False),
    "EMPTY_TUPLE": _push_tuple(0),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "TUPLE": lambda machine, _: machine.push(machine.pop_to_mark()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "APPEND": lambda machine, _: _append_items(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append_items(machine, machine.pop_to_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _push_name,
    "STACK_GLOBAL": _push_stacked_name,
    "REDUCE": _call,
    "BUILD": _build,
}
"""Opcode -> what it does with the machine and its argument; others are refused."""


def _text(value: Any) -> str:
    """A string of Python 2 or 3, as a string."""
    _require(isinstance(value, str | bytes) and len(value) <= LONGEST_NAME, "has another thing where a name should be")
    return value if isinstance(value, str) else value.decode("latin1")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(f"it {complaint}")


@final
class _Bounded:
    """A file that asks for no more memory than it has bytes, whatever a size in it says."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes."""
        return self._file.read(min(count, self._size))

    def readline(self) -> bytes:
        """A line, or the beginning of one that is longer than any name."""
        return self._file.readline(LONGEST_NAME)


def read_arrays(path: Path) -> dict[bytes, Any]:
    """The dictionary that is pickled in a file, its keys as bytes.

    Raises:
        DataError: the file cannot be read, holds anything but plain values, containers and arrays of numbers, is
            damaged, or holds no dictionary.
    """
    with open_file(path) as file:
        try:
            value = _read(file, os.fstat(file.fileno()).st_size)
        # pickletools has an error of its own kind for each way in which an argument can be damaged.
        except Exception as error:
            raise DataError(f"{str(path)!r} is refused as a pickled batch: {printable(str(error))[:200]}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} holds a {type(value).__name__}, not the dictionary of a pickled batch.")
    return {_key(key): item.values if isinstance(item, _Array) else item for key, item in value.items()}


def _key(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode(errors="replace")


def _read(file: BinaryIO, size: int) -> Any:
    machine, most = _Machine(size), FEW_OPCODES + size // BYTES_PER_OPCODE
    for number, (opcode, argument, _) in enumerate(pickletools.genops(_Bounded(file, size))):  # type: ignore[arg-type]
        _require(number < most, f"has more than the {most} opcodes that a batch of its size needs")
        _require(opcode.name in ACTIONS, f"uses {opcode.name}, which a file of arrays has no use for")
        ACTIONS[opcode.name](machine, argument)
    _require(len(machine.stack) == 1, "ends with more than one value, or none")
    return machine.stack[0]
