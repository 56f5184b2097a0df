"""One safetensors file with a typed header and a seal: how everything that holds tensors is written and read.

======================  ====================================================================================
metadata key            what it holds
======================  ====================================================================================
``nervure``             the header, JSON: ``kind``, ``format``, and the fields of a schema
``nervure.sha256``      the seal, two SHA-256: of the header's text and the second; of all tensors (names, dtypes,
                        shapes, bytes)
======================  ====================================================================================

A file with neither key is plain: somebody else's. A file with one of them is damaged. Any program that reads
safetensors reads the tensors. The file is written here, not by the library of that name: its files differ from one
process to the next where there are two keys.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, TypeVar, final

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from nervure.core.files import replacing, require_file
from nervure.core.schema import Count, decode
from nervure.errors import FileError, NervureError

T = TypeVar("T")

MARK = "nervure"
SEAL = "nervure.sha256"
METADATA = "__metadata__"
PREFIX = 8
"""Bytes before the table of tensors; they hold its length, which is a multiple of this."""
LONGEST = 100_000_000
"""Bytes of the table of tensors, at most: the format's own limit."""
LINE = 1000
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class DamageError(NervureError):
    """What is wrong with a file, before its name is added: inside :func:`reading` only."""


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        name: its name in the header.
        what: what it is, for messages: ``"a pruned model"``.
        version: the format that is written, and the newest that is read.
        unsealed: the newest format that had no seal and is read nevertheless.
        remedy: what to do about a damaged one.
    """

    name: str
    what: str
    version: int
    unsealed: int = -1
    remedy: str = "Copy it again."


@final
@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: ``data_offsets`` are its first byte and the one behind its last, after the table."""

    dtype: str
    shape: Annotated[tuple[Count, ...], Meta(max_length=64)]
    data_offsets: tuple[Count, Count]


@final
@dataclass(frozen=True, slots=True)
class _Envelope:
    kind: Annotated[str, Meta(max_length=100)]
    format: Count
    sha256: str | None = None


@final
@dataclass(frozen=True, slots=True)
class _Table:
    """What stands before the tensors: the metadata, and the entries in the order of their bytes."""

    metadata: Mapping[str, str]
    entries: Mapping[str, StoredTensor]

    @property
    def is_plain(self) -> bool:
        return not {MARK, SEAL} & self.metadata.keys()


def write_container(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Any, kind: Kind) -> Path:
    """Write one file, atomically, and return its path. Equal values make equal files.

    Args:
        path: where to; its folder must exist.
        tensors: tensors on any device, by name. They may share memory; each is written whole.
        header: a dataclass of plain data, or a dict.
        kind: the kind of file.

    Raises:
        FileError: the place cannot be written, the header is no plain data (NaN is none), or a tensor has no bytes that
            could be written (meta, sparse or quantised tensors, complex128).
    """
    stored = {name: _writable(path, name, tensors[name]) for name in sorted(tensors, key=lambda n: _order(tensors, n))}
    try:
        fields = msgspec.to_builtins(header) | {"kind": kind.name, "format": kind.version}
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False)
        table = json.dumps(_table(stored, text), ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{str(path)!r} was not written: its header is not plain data ({error}).") from error
    table += b" " * (-len(table) % PREFIX)
    if len(table) > LONGEST:
        raise FileError(f"{str(path)!r} was not written: its header takes {len(table)} bytes of {LONGEST} at most.")
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(table).to_bytes(PREFIX, "little") + table)
        for tensor in stored.values():
            file.write(_bytes(tensor))
    return Path(path)


def read_container(
    path: str | os.PathLike[str], schema: type[T], kind: Kind, *, plain: T | None = None
) -> tuple[T, dict[str, Tensor]]:
    """Header and tensors of a file, checked against its seal.

    Memory is taken for what the file has bytes of. Each tensor lies in memory of its own, aligned like any new one.

    Args:
        path: the file.
        schema: the type of its header.
        kind: the kind that it must be.
        plain: stands for the header of a file that is not ours; None: such a file is refused.

    Raises:
        FileError: the file is missing, damaged, foreign, newer, of another kind, or its header does not fit the schema.
    """
    source = require_file(path, kind.what)
    with reading(source, kind), source.open("rb") as file:
        table = _read_table(file)
        if plain is not None and table.is_plain:
            return plain, _read_tensors(file, table.entries)
        text, seal = _header_text(source, table, (kind,))
        header = decode(text, schema, "its header", DamageError)
        tensors = _read_tensors(file, table.entries)
        if seal is not None and digest(tensors) != seal:
            raise DamageError("its tensors do not match their checksum.")
        return header, tensors


def read_header(path: str | os.PathLike[str], schema: type[T], *kinds: Kind) -> T:
    """The header of a file alone, checked against its seal; its tensors are not read.

    Raises:
        FileError: as :func:`read_container`; the file may be of any of ``kinds``.
    """
    source = require_file(path, kinds[0].what)
    with reading(source, kinds[0]), source.open("rb") as file:
        text, _ = _header_text(source, _read_table(file), kinds)
        return decode(text, schema, "its header", DamageError)


def read_shapes(path: str | os.PathLike[str], kind: Kind) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of any safetensors file, which are not read; raises FileError where it is damaged."""
    source = require_file(path, kind.what)
    with reading(source, kind), source.open("rb") as file:
        return {name: entry.shape for name, entry in _read_table(file).entries.items()}


@contextmanager
def reading(path: str | os.PathLike[str], kind: Kind) -> Iterator[None]:
    """Tell what is found wrong in a file as one :class:`FileError`: which file, what is wrong, what to do."""
    try:
        yield
    except FileError:
        raise
    except NervureError as error:
        # A hostile name is no longer than a message should be.
        reason = str(error) if len(str(error)) < LINE else f"{str(error)[:LINE]}..."
        raise FileError(f"{str(path)!r} is damaged: {reason} {kind.remedy}") from error
    except OSError as error:
        raise FileError(f"cannot read {str(path)!r}: {error.strerror or error}.") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors on the CPU, whatever their order."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name}|{tensors[name].dtype}|{tuple(tensors[name].shape)}|".encode())
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    raw: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return raw


def _order(tensors: Mapping[str, Tensor], name: str) -> tuple[int, str]:
    """Wide numbers first: then all lie at multiples of their size."""
    return -tensors[name].element_size(), name


def _writable(path: str | os.PathLike[str], name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in NAMES or name == METADATA:
        what = "without values" if tensor.is_meta else f"of {tensor.layout} and {tensor.dtype}"
        raise FileError(f"{str(path)!r} was not written: the file format has no place for tensor {name!r}, {what}.")
    return tensor.detach().cpu()


def _table(stored: Mapping[str, Tensor], text: str) -> dict[str, Any]:
    table, begin = {METADATA: {MARK: text, SEAL: _seal(text, digest(stored))}}, 0
    for name, tensor in stored.items():
        end = begin + tensor.numel() * tensor.element_size()
        table[name] = msgspec.to_builtins(StoredTensor(NAMES[tensor.dtype], tuple(tensor.shape), (begin, end)))
        begin = end
    return table


def _seal(text: str, tensors: str) -> str:
    return f"{hashlib.sha256((text + tensors).encode()).hexdigest()} {tensors}"


def _read_table(file: BufferedReader) -> _Table:
    """The table before the tensors, and nothing behind it, once it is known to describe this very file."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(PREFIX), "little")
    if size < PREFIX or file.peek(1)[:1] != b"{":
        raise DamageError("it is truncated, or not a safetensors file: it has no header.")
    if length > min(LONGEST, size - PREFIX):
        raise DamageError(f"it is truncated, or its header is: {length} bytes of header in {size} bytes of file.")
    text = file.read(length)
    raw = decode(text, dict[str, msgspec.Raw], "its table of tensors", DamageError)
    metadata = decode(raw.pop(METADATA, b"{}"), dict[str, str], "its metadata", DamageError)
    found = {
        name: decode(entry, StoredTensor, f"the entry of tensor {name!r}", DamageError) for name, entry in raw.items()
    }
    _require_different_names(text)
    entries = dict(sorted(found.items(), key=lambda item: item[1].data_offsets))
    _require_seamless(entries, size - PREFIX - length)
    return _Table(metadata, entries)


def _require_different_names(text: bytes) -> None:
    def hook(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise DamageError("its table of tensors has a name twice.")

    try:
        json.loads(text, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"its table of tensors cannot be read: {error}.") from error


def _require_seamless(entries: Mapping[str, StoredTensor], size: int) -> None:
    """Raise where tensors do not follow one another through all ``size`` bytes, each as long as its shape says."""
    place = 0
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if entry.dtype not in DTYPES:
            raise DamageError(f"tensor {name!r} has the unknown dtype {entry.dtype!r}.")
        if math.prod(side for side in entry.shape if side) >= 1 << 62:
            raise DamageError(f"tensor {name!r} has the shape {entry.shape}, which no memory holds.")
        if begin != place or end - begin != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise DamageError(f"tensor {name!r}, {entry.dtype} {entry.shape}, cannot lie at bytes {begin} to {end}.")
        place = end
    if place != size:
        raise DamageError(f"it is {'truncated' if place > size else 'too long'}: {size} bytes of {place} for tensors.")


def _header_text(path: Path, table: _Table, kinds: tuple[Kind, ...]) -> tuple[str, str | None]:
    """The text of the header, and the digest that the tensors must have (None: an earlier format that has none)."""
    if table.is_plain:
        raise FileError(
            f"{str(path)!r} is a safetensors file, but nervure did not write it: it does not hold {kinds[0].what}."
        )
    text, seal = table.metadata.get(MARK, ""), table.metadata.get(SEAL)
    tensors = (seal or "").partition(" ")[2]
    if MARK not in table.metadata or (seal is not None and seal != _seal(text, tensors)):
        raise DamageError("its header does not match its checksum.")
    envelope = decode(text, _Envelope, "its header", DamageError)
    kind = _kind(path, envelope, kinds)
    if seal is None and envelope.format > kind.unsealed:
        raise DamageError("its checksum is missing.")
    return text, envelope.sha256 if seal is None else tensors


def _kind(path: Path, envelope: _Envelope, kinds: tuple[Kind, ...]) -> Kind:
    kind = next((kind for kind in kinds if kind.name == envelope.kind), None)
    if kind is None:
        wanted = " or ".join(f"{kind.what} ({kind.name!r})" for kind in kinds)
        raise FileError(f"{str(path)!r} is a file of kind {envelope.kind!r}, not {wanted}.")
    if envelope.format > kind.version:
        raise FileError(
            f"{str(path)!r} has format {envelope.format}; this version of nervure reads up to {kind.version}. "
            "Upgrade nervure."
        )
    return kind


def _read_tensors(file: BufferedReader, entries: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    return {name: _read_tensor(file, name, entry) for name, entry in entries.items()}


def _read_tensor(file: BufferedReader, name: str, entry: StoredTensor) -> Tensor:
    raw = torch.empty(entry.data_offsets[1] - entry.data_offsets[0], dtype=torch.uint8)
    if file.readinto(raw.numpy().data) != len(raw):
        raise DamageError("it is truncated: it became shorter while it was read.")
    if entry.dtype == "BOOL" and bool((raw > 1).any()):
        raise DamageError(f"tensor {name!r} has booleans that are neither 0 nor 1.")
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
