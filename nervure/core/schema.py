"""Plain data from outside become typed values: one mechanism, one error that says what is wrong and where.

A schema is a type: a frozen dataclass, a container, ``Literal``, or a number within bounds such as :data:`Fraction`.
"""

import dataclasses
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from nervure.errors import FileError, NervureError

T = TypeVar("T")
Hook: TypeAlias = Callable[[type[Any], Any], Any]

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""A whole number from 0 on that fits into a tensor."""
Warmup = Annotated[int, Meta(ge=0, le=10_000)]
"""Runs before those that count."""
Size = Annotated[int, Meta(ge=1, lt=1 << 62)]
"""A whole number from 1 on that fits into a tensor."""
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""What ``torch.manual_seed`` takes."""
Rounds = Annotated[int, Meta(ge=1, le=10_000)]
"""How many times something is done that takes a while."""
Length = Annotated[int, Meta(ge=1, le=1 << 20)]
"""How many things are listed or held in memory together."""
Epochs = Annotated[int, Meta(ge=1, le=1_000_000)]
"""Passes over data."""
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
"""A time to spend on a measurement: a day at most."""
Threads = Annotated[int, Meta(ge=1, le=4096)]
"""Threads of a machine."""
Workers = Annotated[int, Meta(ge=0, le=4096)]
"""Processes; 0: one for each core."""
Fraction = Annotated[float, Meta(gt=0, le=1)]
"""A share that is not nothing: in (0, 1]."""
Density = Annotated[float, Meta(gt=0, le=1, description="the fraction that stays")]
"""What a budget or a mask leaves: 1 keeps everything."""
Part = Annotated[float, Meta(ge=0, lt=1)]
"""A share that is not all: in [0, 1)."""
Share = Annotated[float, Meta(ge=0, le=1)]
"""A share: in [0, 1]."""
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
"""A finite number above 0."""
Between = Annotated[float, Meta(gt=0, lt=1)]
"""A share that is neither nothing nor all: in (0, 1)."""
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""A number that is no NaN and no infinity."""
SINGLE = (2 - 2**-23) * 2.0**127
"""The largest number of single precision, in which weights are stepped."""
Rate = Annotated[float, Meta(gt=0, le=SINGLE)]
"""What a step is multiplied by: above 0."""
Decay = Annotated[float, Meta(ge=0, le=SINGLE)]
"""What a weight is multiplied by in its gradient: from 0 on."""
NotNegative = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
"""A finite number from 0 on."""


def decode(text: bytes | str, schema: type[T], what: str, error: type[NervureError] = FileError) -> T:
    """The value of type ``schema`` that JSON ``text`` holds.

    Args:
        text: UTF-8; without NaN or infinities, which JSON has no words for.
        schema: the type that is expected. Fields that it does not name are passed over.
        what: what the text is, for the message: ``"the header of 'model.safetensors'"``.
        error: what is raised.

    Raises:
        NervureError: ``error``, where the text is no JSON, nested too deeply, or no such value (and where in it).
    """
    try:
        return msgspec.json.decode(text, type=schema)
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as found:
        raise error(f"{what} cannot be read: {_describe_error(found)}") from found


def convert(
    value: Any, schema: type[T], what: str, error: type[NervureError] = FileError, *, hook: Hook | None = None
) -> T:
    """The value of type ``schema`` that plain data (dicts, lists, numbers, strings) stand for.

    Args:
        value: plain data.
        schema: the type that is expected. Fields that it does not name are passed over.
        what: what they are, for the message.
        error: what is raised.
        hook: makes a value of a type that is no schema from plain data; raises ValueError where they are no such thing.

    Raises:
        NervureError: ``error``, where they do not, where in them, and what is there.
    """
    try:
        return msgspec.convert(value, schema, dec_hook=hook)
    except (msgspec.ValidationError, RecursionError, UnicodeError, OverflowError) as found:
        raise error(f"{what} cannot be read: {_describe_error(found, value)}") from found
    except (AttributeError, NotImplementedError) as found:
        # What only looks like a mapping: a tensor, a range, a module.
        raise error(f"{what} cannot be read: it is not plain data.") from found


def written_schema(kind: type[Any], replaced: Mapping[str, Any] = MappingProxyType({}), **config: Any) -> Any:
    """The schema of what dataclass ``kind`` is written as, where some of its fields are written as another type.

    Args:
        kind: what is written.
        replaced: the types of these fields.
        config: of :class:`msgspec.Struct`: ``forbid_unknown_fields`` where people write it by hand, and the ``tag`` by
            which several kinds are told apart.
    """
    each = [(f.name, replaced.get(f.name, hints_of(kind)[f.name]), _default(f)) for f in dataclasses.fields(kind)]
    return msgspec.defstruct(kind.__name__, each, **config)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.NODEFAULT if field.default is dataclasses.MISSING else field.default


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """The types of the fields of a class, with their bounds."""
    return get_type_hints(kind, include_extras=True)


def _describe_error(error: BaseException, value: Any = None) -> str:
    """What a decoder found, as the end of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    reason, _, place = str(error).partition(" - at ")
    where = f" (at {place.strip('`')}{_held(value, place)})" if place else ""
    return f"{reason}{where}."


def _held(value: Any, place: str) -> str:
    """What plain data hold at a place such as ``$.groups[0].size``; empty where that is more than a word."""
    for key, number in re.findall(r"\.(\w+)|\[(\d+)\]", place):
        try:
            value = value[key or int(number)]
        except (KeyError, IndexError, TypeError):
            return ""
    return f": {reprlib.repr(value)}" if isinstance(value, str | int | float) else ""
