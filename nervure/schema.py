"""Plain data from outside become typed values: one mechanism, one error that says what is wrong and where.

A schema is a type: a frozen dataclass, a container, ``Literal``, or a number within bounds such as :data:`Fraction`.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from nervure.errors import FileError, NervureError

T = TypeVar("T")

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
Between = Annotated[float, Meta(gt=0, lt=1)]
"""A share that is neither nothing nor all: in (0, 1)."""
Positive = Annotated[float, Meta(gt=0)]
"""A number above 0 (no NaN)."""
NotNegative = Annotated[float, Meta(ge=0)]
"""A number, 0 or more (no NaN)."""


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
        raise error(f"{what} cannot be read: {_told(found)}") from found


def convert(value: Any, schema: type[T], what: str, error: type[NervureError] = FileError) -> T:
    """The value of type ``schema`` that plain data (dicts, lists, numbers, strings) stand for.

    Raises:
        NervureError: ``error``, where they do not, and where in them.
    """
    try:
        return msgspec.convert(value, schema)
    except (msgspec.ValidationError, RecursionError, OverflowError) as found:
        raise error(f"{what} cannot be read: {_told(found)}") from found


def encode(value: Any) -> bytes:
    """``value`` as JSON with sorted keys: the same bytes for equal values."""
    return msgspec.json.encode(value, order="sorted")


def _told(error: BaseException) -> str:
    """What a decoder found, as the end of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    reason, _, place = str(error).partition(" - at ")
    where = f" (at {place.strip('`')})" if place else ""
    return f"{reason}{where}."
