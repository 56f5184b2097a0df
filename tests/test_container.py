"""A file with a typed header and a seal: what is written is what is read, and any change is told."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nervure.core.container import DTYPES, MARK, SEAL, Kind, read_container, read_header, write_container
from nervure.core.schema import Count
from nervure.errors import FileError

THING = Kind("thing", "a thing", version=2, unsealed=1, remedy="Make another.")


@dataclass(frozen=True)
class Header:
    name: str
    samples: Count = 0


PLAIN = Header("plain")


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_container(tmp_path / "thing", tensors(), Header("it", 3), THING)


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    return read_container(path, Header, THING)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The table and the bytes of the tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, table: dict[str, Any] | bytes, data: bytes) -> Path:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape)
        assert torch.equal(tensor, other[name])


def test_what_is_written_is_read(path: Path) -> None:
    header, found = read(path)
    assert header == Header("it", 3)
    assert read_header(path, Header, THING) == header
    assert_equal(found, tensors())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_and_other_programs_read_it(dtype: torch.dtype, tmp_path: Path) -> None:
    given = torch.arange(2 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    if dtype is torch.bool:
        given = torch.tensor([True, False])
    path = write_container(tmp_path / "one", {"a": given}, {}, THING)
    _, found = read_container(path, dict[str, Any], THING)
    for tensor in (found["a"], load_file(path)["a"]):
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), given.view(torch.uint8))


def test_tensors_that_share_memory_or_are_not_contiguous_are_written_whole(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(4, 3)
    given = {"all": table, "turned": table.T, "part": table[1:, :2]}
    assert_equal(read_container(write_container(tmp_path / "a", given, {}, THING), dict[str, Any], THING)[1], given)


def test_equal_values_make_equal_files_with_the_rights_of_any_new_file(path: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        other = write_container(tmp_path / "other", dict(reversed(tensors().items())), Header("it", 3), THING)
    finally:
        os.umask(before)
    assert other.read_bytes() == path.read_bytes()
    assert other.stat().st_mode & 0o777 == 0o644


def test_a_flipped_bit_anywhere_is_told(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        for reading in (read, lambda file: read_container(file, Header, THING, plain=PLAIN)):
            with pytest.raises(FileError, match="thing"):
                reading(path)


def test_a_flipped_bit_of_the_header_is_told_where_it_is_read_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(rb"\"samples\": 3", rb"\"samples\": 2"))
    with pytest.raises(FileError, match=r"header does not match its checksum\. Make another\."):
        read_header(path, Header, THING)


def test_a_file_cut_anywhere_or_too_long_is_told(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="truncated"):
            read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FileError, match="too long"):
        read(path)


def test_a_file_with_neither_mark_is_plain_and_one_with_a_single_mark_is_damaged(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    save_file(tensors(), plain, metadata={"format": "pt"})
    header, found = read_container(plain, Header, THING, plain=PLAIN)
    assert header is PLAIN
    assert_equal(found, tensors())
    with pytest.raises(FileError, match="nervure did not write it"):
        read(plain)
    for mark in (MARK, SEAL):
        table, data = parts(path)
        table["__metadata__"]["other"] = table["__metadata__"].pop(mark)
        join(plain, table, data)
        with pytest.raises(FileError, match="checksum"):
            read_container(plain, Header, THING, plain=PLAIN)


def test_formats_of_before_seals_are_read_and_checked_by_what_they_have(path: Path) -> None:
    table, data = parts(path)
    text, seal = table["__metadata__"].pop(MARK), table["__metadata__"].pop(SEAL)
    for sha256, is_right in ((seal.split()[1], True), ("0" * 64, False)):
        table["__metadata__"][MARK] = json.dumps(json.loads(text) | {"format": 1, "sha256": sha256})
        join(path, table, data)
        if is_right:
            assert_equal(read(path)[1], tensors())
        else:
            with pytest.raises(FileError, match="checksum"):
                read(path)
    table["__metadata__"][MARK] = text
    with pytest.raises(FileError, match="its checksum is missing"):
        read(join(path, table, data))


def test_newer_files_and_other_kinds_are_told_with_what_was_expected(path: Path) -> None:
    with pytest.raises(FileError, match=r"format 2; this version of nervure reads up to 1\. Upgrade"):
        read_container(path, Header, Kind("thing", "a thing", version=1))
    with pytest.raises(FileError, match=r"of kind 'thing', not something else \('else'\)"):
        read_container(path, Header, Kind("else", "something else", version=2))
    with pytest.raises(FileError, match="should be a thing, but nothing is there"):
        read(path.with_name("none"))


def test_a_header_that_does_not_fit_its_schema_is_told_with_the_place(tmp_path: Path) -> None:
    path = write_container(tmp_path / "thing", {}, {"name": "it", "samples": -1}, THING)
    with pytest.raises(FileError, match=r"is damaged: its header .*>= 0.*samples.*Make another"):
        read(path)


@pytest.mark.parametrize(
    ("table", "data", "said"),
    [
        ({"a": entry([10**12], 0, 4 * 10**12)}, b"1234", "truncated"),
        ({"a": entry([10**12], 0, 4)}, b"1234", "cannot lie at bytes 0 to 4"),
        ({"a": entry([1 << 40, 1 << 40, 0], 0, 0)}, b"", "no memory holds"),
        ({"a": entry([1 << 62], 0, 4)}, b"1234", "shape"),
        ({"a": entry([-1], 0, -4)}, b"1234", "shape"),
        ({"a": entry([1] * 65, 0, 4)}, b"1234", "shape"),
        ({"a": entry([1], 4, 8)}, b"12345678", "cannot lie"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "cannot lie"),
        ({"a": entry([1], 0, 4, "F31")}, b"1234", "unknown dtype 'F31'"),
        ({"a": entry([1], 0, 1, "BOOL")}, b"\2", "neither 0 nor 1"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "data_offsets"),
        ({"a": 3}, b"", "entry of tensor 'a'"),
        ({"__metadata__": {"a": 3}}, b"", "metadata"),
        (b"{" + b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2 + b'"__metadata__":{}}', b"", "twice"),
        (b'{"a":' + b"[" * 100_000, b"", "cannot be read"),
        (b'{"a":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", b"", "cannot be read"),
        (b"[]", b"", "no header"),
        (b'{"\xff":3}', b"", "cannot be read"),
    ],
)
def test_a_table_that_does_not_describe_the_file_is_refused(
    table: dict[str, Any] | bytes, data: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match=said):
        read_container(join(tmp_path / "thing", table, data), Header, THING, plain=PLAIN)


def test_a_length_beyond_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(FileError, match="truncated"):
        read(path)


def test_tensors_lie_in_memory_like_new_ones_wherever_they_lie_in_the_file(tmp_path: Path) -> None:
    table = {"a": entry([3], 0, 3, "U8"), "b": entry([2], 3, 11)}
    data = bytes([1, 2, 3]) + bytes(torch.tensor([1.5, -2.0]).view(torch.uint8).tolist())
    _, found = read_container(join(tmp_path / "odd", table, data), Header, THING, plain=PLAIN)
    assert found["b"].tolist() == [1.5, -2.0]
    assert found["b"].data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ({"a": torch.zeros(2, device="meta")}, {}),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, {}),
        ({"a": torch.eye(2).to_sparse()}, {}),
        ({"__metadata__": torch.zeros(2)}, {}),
        ({"\ud800": torch.zeros(2)}, {}),
        ({}, {"a": float("nan")}),
        ({}, {"a": object()}),
        ({}, {"a": "\ud800"}),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_it_is_written(
    given: dict[str, Tensor], header: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FileError, match="was not written"):
        write_container(tmp_path / "thing", given, header, THING)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nervure.core.files.os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_container(path, {}, {}, THING)
    assert path.read_bytes() == before
