"""Documents: JSON with one version and a checksum, so that what was damaged is told and never believed.

A sealed document says ``"format": 3`` and ends with the SHA-256 of all that comes before, without white space. Either
of the two alone gives away that it was sealed, so a damaged key is told as a damaged number is. What has neither was
written by hand, or by a version of nervure that knew no checksums.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from nervure.core.check import show_value
from nervure.core.schema import Count, convert, decode
from nervure.errors import FileError, NervureError

VERSION = 3
"""Of sealed documents."""
DEEPEST = 100
"""Levels of lists and tables within each other: what is nested deeper could not even be compared."""


class Seal(msgspec.Struct):
    """What a document says of itself."""

    format: Count = 0
    sha256: str | None = None


def seal_document(data: Mapping[str, Any], what: str, *, indent: int = 1) -> bytes:
    """``data`` as the text of a document with its version and its checksum.

    Args:
        data: plain data. NaN and infinities become null, for which JSON has a word.
        what: what it is, for the message.
        indent: -1: all on one line.

    Raises:
        FileError: it is not plain data.
    """
    bare = {"format": VERSION} | {key: value for key, value in data.items() if key not in Seal.__struct_fields__}
    text = _encode_plain(bare, f"{what} was not written: it")
    return msgspec.json.format(text[:-1] + _ending(_digest(text)), indent=indent)


def require_plain(data: Any, what: str, error: type[NervureError] = FileError) -> None:
    """Raise ``error`` where ``data`` are more than numbers, texts, lists and tables: no document could hold them."""
    _encode_plain(data, what, error)


def open_document(document: Any, what: str, error: type[NervureError] = FileError) -> dict[str, Any]:
    """The data in a document, without its version and its checksum.

    Args:
        document: its text, as bytes or str, or what a reader of JSON made of it.
        what: what it is, for the message.
        error: what is raised.

    Raises:
        NervureError: ``error``, where it is no JSON object, of a newer version, or not what was sealed.
    """
    # A lone surrogate is no text: as bytes it is told like any other damage.
    text = document.encode("utf-8", "surrogatepass") if isinstance(document, str) else document
    data = _parse(text, what, error) if isinstance(text, bytes) else convert(text, dict[str, Any], what, error)
    if not is_shallow(data):
        raise error(f"{what} cannot be read: it is nested too deeply.")
    seal = convert(data, Seal, what, error)
    if seal.format > VERSION:
        raise error(f"{what} has format {seal.format}; this version of nervure reads up to {VERSION}. Upgrade nervure.")
    if seal.format == VERSION and seal.sha256 is None:
        raise error(f"{what} is damaged: its checksum is missing. {_ADVICE}")
    if seal.sha256 is not None and seal.sha256 != _digest(_bare(text, seal.sha256)):
        raise error(f"{what} is damaged: it does not match its checksum. {_ADVICE}")
    return {key: value for key, value in data.items() if key not in Seal.__struct_fields__}


_ADVICE = "Copy or make it again; where it was changed by hand, take out its 'sha256' and its 'format'."


def _ending(digest: str) -> bytes:
    return f',"sha256":"{digest}"}}'.encode()


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _bare(document: Any, digest: str) -> bytes:
    """The text that was sealed."""
    text = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return msgspec.json.format(text, indent=-1).removesuffix(_ending(digest)) + b"}"


def is_shallow(data: Any) -> bool:
    """Whether plain data have no more than :data:`DEEPEST` levels; a list in itself has more."""
    level = [data] if isinstance(data, dict | list | tuple) else []
    for _ in range(DEEPEST):
        # Each child once: what holds itself twice would double at every level.
        level = list(
            {
                id(child): child
                for values in level
                for child in (values.values() if isinstance(values, dict) else values)
                if isinstance(child, dict | list | tuple)
            }.values()
        )
    return not level


def _parse(text: bytes, what: str, error: type[NervureError]) -> dict[str, Any]:
    if b"NaN" in text or b"Infinity" in text:
        # Python's own writer, which earlier versions used, has these words; JSON, and what is sealed, has not.
        with contextlib.suppress(ValueError, RecursionError):
            data = convert(json.loads(text), dict[str, Any], what, error)
            if "sha256" not in data and data.get("format") != VERSION:
                return data
    return decode(text, dict[str, Any], what, error)


def _encode_plain(data: Any, what: str, error: type[NervureError] = FileError) -> bytes:
    try:
        return _encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as found:
        raise error(f"{what} is not plain data ({found}).") from found


def _encode(data: Any) -> bytes:
    try:
        return msgspec.json.encode(data, enc_hook=_plain)
    except UnicodeEncodeError:
        # Half a character (of a name that is not UTF-8) has no bytes; it is written as the escape that shows it.
        return msgspec.json.encode(_in_whole_characters(msgspec.to_builtins(data, enc_hook=_plain)))


def _in_whole_characters(data: Any) -> Any:
    match data:
        case str():
            return data.encode("utf-8", errors="backslashreplace").decode()
        case dict():
            return {_in_whole_characters(key): _in_whole_characters(value) for key, value in data.items()}
        case list() | tuple():
            return [_in_whole_characters(value) for value in data]
    return data


def _plain(value: Any) -> Any:
    """Numbers and texts of classes of their own, such as ``torch.__version__``."""
    for plain in (str, float, int):
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(f"{show_value(value)} is a {type(value).__name__}")
