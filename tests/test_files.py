"""Files are whole or as they were, what the disk refuses is told, and no drafts are removed but those of the dead."""

import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nervure import export
from nervure.core.files import (
    append_line,
    contents,
    drafts,
    is_there,
    read_json,
    read_lines,
    read_text,
    remove_litter,
    replacing,
    require_file,
    require_folder,
    require_writable,
    write_text,
)
from nervure.core.locks import exclusive_file, exclusive_folder
from nervure.core.processes import is_alive, process_mark
from nervure.errors import ArgumentError, FileError
from tests.faults import Action, fault, in_child, record

Write = Callable[[Path], object]
OLD, NEW = "old\n", "new\n" * 1000


def save_tensors(path: Path) -> None:
    with replacing(path) as draft:
        save_file({"a": torch.zeros(1000)}, draft)


WRITERS: dict[str, Write] = {
    "text": lambda path: write_text(path, NEW),
    "tensors": save_tensors,
    "line": lambda path: append_line(path, "new"),
}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def dead(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The mark of a process of this machine that has ended."""
    file = tmp_path_factory.mktemp("dead") / "mark"
    in_child(lambda: file.write_text(process_mark(), encoding="utf-8"), file.parent)
    return file.read_text(encoding="utf-8")


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def left_by(mark: str, folder: Path, name: str = "file") -> Path:
    """Drafts as a process that was killed leaves them."""
    place = folder / f".{name}.{mark}-0.part"
    place.mkdir()
    (place / name).write_bytes(b"half")
    return place


def refused(path: Path, write: Write, at: int, action: Action) -> str:
    """What is said where event ``at`` of a write goes wrong; empty where nobody need know."""
    path.write_text(OLD, encoding="utf-8")
    try:
        with fault(path.parent, at=at, action=action):
            write(path)
    except FileError as error:
        return str(error)
    return ""


@writers
@pytest.mark.parametrize("action", [Action.FULL, Action.BROKEN])
def test_whatever_the_disk_refuses_is_told_and_what_was_there_stays(
    tmp_path: Path, write: Write, action: Action
) -> None:
    path = tmp_path / "file"
    path.write_text(OLD, encoding="utf-8")
    for number, event in enumerate(record(lambda: write(path), tmp_path)):
        said = refused(path, write, number, action)
        if event.kind not in ("unlink", "rmdir"):
            assert repr(str(path)) in said, event
        if "cannot write" in said:
            assert path.read_text(encoding="utf-8") == OLD
        assert contents(tmp_path) == ["file"]
        write(path)


@writers
def test_a_full_disk_is_told_with_the_room_there_is(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "file"
    path.write_text(OLD, encoding="utf-8")
    (number,) = [i for i, event in enumerate(record(lambda: write(path), tmp_path)) if event.kind == "write"]
    assert "No space left on device" in refused(path, write, number, Action.FULL)
    assert f"MB free at {str(tmp_path)!r}; make room" in refused(path, write, number, Action.FULL)


def test_a_full_disk_is_found_behind_the_words_of_any_library(tmp_path: Path) -> None:
    # The folder of the drafts is made, then there is no room.
    with fault(tmp_path, at=1), pytest.raises(FileError, match="No space left"), replacing(tmp_path / "a"):
        raise RuntimeError("PytorchStreamWriter failed writing file")


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), replacing(tmp_path / "a"):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


@writers
def test_killed_anywhere_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, write: Write) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for place in (path, other):
        place.write_text(OLD, encoding="utf-8")
    for number, _ in enumerate(record(lambda: write(other), tmp_path)):
        path.write_text(OLD, encoding="utf-8")
        assert in_child(lambda: write(path), tmp_path, at=number).killed
        found = path.read_bytes()
        assert found in (OLD.encode(), other.read_bytes()) or read_lines(path) == [OLD.strip().encode()]
    require_folder(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]


def test_a_line_cut_short_is_left_out_when_reading_and_gone_after_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    assert read_lines(path) == [b"one", b"two"]
    append_line(path, "three")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"on")
    append_line(path, "one")
    assert path.read_bytes() == b"one\n"
    assert read_lines(tmp_path / "none") == []


@writers
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_rights_that_the_umask_gives(
    tmp_path: Path, umask: Callable[[int], int], mask: int, write: Write
) -> None:
    umask(mask)
    write(tmp_path / "file")
    assert rights(tmp_path / "file") == 0o666 & ~mask


@writers
def test_a_file_that_was_there_keeps_its_rights(tmp_path: Path, umask: Callable[[int], int], write: Write) -> None:
    umask(0o022)
    path = tmp_path / "file"
    path.write_text(OLD, encoding="utf-8")
    path.chmod(0o640)
    write(path)
    assert rights(path) == 0o640


@writers
def test_a_link_stays_and_its_target_is_written_be_it_there_or_not(tmp_path: Path, write: Write) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "target"
    for link in (tmp_path / "link", tmp_path / "link of the link"):
        link.symlink_to(target if link.name == "link" else "link")
    for _ in range(2):
        write(tmp_path / "link of the link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "link of the link").is_symlink()
        assert target.is_file()
        assert not target.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["target"]


def unwritable(folder: Path) -> dict[str, Path | str]:
    """Paths at which no file can be, each with what is wrong with it as its key."""
    (folder / "circle").symlink_to("circle")
    (folder / "plain").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    return {
        "Too many levels of symbolic links": folder / "circle",
        "a folder is there": folder,
        "a pipe is there": folder / "pipe",
        "a device is there": "/dev/null",
        "File name too long": folder / ("x" * 300),
        "has a NUL in it": f"{folder}/a\0b",
        "surrogates not allowed": f"{folder}/\ud800",
    }


@pytest.mark.parametrize("use", [write_text, append_line, require_writable, require_file, read_text, read_json])
def test_what_cannot_be_a_file_gets_a_line_that_says_why(tmp_path: Path, use: Callable[..., object]) -> None:
    more = ("text",) if use in (write_text, append_line) else ()
    for reason, path in unwritable(tmp_path).items():
        with pytest.raises(FileError, match=reason):
            use(path, *more)
    with pytest.raises(FileError, match=r"no folder .*plain|nothing is there|Not a directory"):
        use(tmp_path / "plain" / "file", *more)
    with pytest.raises(ArgumentError, match="should be the path of a file"):
        use(7, *more)


def test_what_cannot_be_a_folder_gets_a_line_that_says_why(tmp_path: Path) -> None:
    for path in (tmp_path / "circle", tmp_path / "plain", tmp_path / "plain" / "under", tmp_path / ("x" * 300), "a\0b"):
        unwritable(tmp_path) if not (tmp_path / "plain").exists() else None
        with pytest.raises(FileError, match=r"make the folder|NUL"):
            require_folder(path)


def test_names_of_any_length_and_in_any_bytes_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, os.fsdecode(b"caf\xe9"), " ", "-n", "a\nb", "é" * 127):
        write_text(tmp_path / name, NEW)
        assert read_text(tmp_path / name) == NEW


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)

    def work() -> None:
        os.setgid(65534)
        os.setuid(65534)
        for use in (require_file, read_text, is_there, require_writable, require_folder):
            with pytest.raises(FileError, match="Permission denied"):
                use(tmp_path / "mine" / "file")

    ended = in_child(work, tmp_path)
    assert ended.code == 0, ended.said


def test_reading_that_fails_is_told(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "{}")
    for use in (read_text, read_json, read_lines):
        with fault(tmp_path, at=0, action=Action.BROKEN, reads=True), pytest.raises(FileError, match="output error"):
            use(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(FileError, match="JSON file. cannot be read"):
        read_json(tmp_path / "a")


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path, dead: str) -> None:
    gone, kept = left_by(dead, tmp_path), left_by(process_mark(), tmp_path)
    require_folder(tmp_path)
    assert not gone.exists()
    assert (kept / "file").exists()


def test_drafts_of_another_machine_stay_for_a_day(tmp_path: Path) -> None:
    place = left_by("00000000-1-1", tmp_path)
    remove_litter(tmp_path)
    assert place.exists()
    for path in (place, place / "file"):
        os.utime(path, (time.time() - 100_000,) * 2)
    remove_litter(tmp_path)
    assert not place.exists()


def test_what_only_looks_like_drafts_stays(tmp_path: Path) -> None:
    names = [".file.part", "file.0000-1-1-0.part", ".thesis.abcdefgh.part", ".DS_Store"]
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    remove_litter(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_process_is_alive_until_it_ends_even_where_its_number_is_used_again(dead: str) -> None:
    machine, number, start = process_mark().split("-")
    assert is_alive(process_mark()) is True
    assert is_alive(dead) is False
    assert is_alive(f"{machine}-{number}-{int(start) - 1}") is False
    assert is_alive(f"00000000-{number}-{start}") is None


def test_hidden_files_and_what_desktops_leave_are_no_contents(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x", ".nfs0001", "thesis.txt", "a"):
        (tmp_path / name).touch()
    assert contents(tmp_path) == ["a", "thesis.txt"]


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    texts = [str(number) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_text(tmp_path / "file") in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def holding(kind: Callable[..., AbstractContextManager[None]], path: Path) -> int:
    """Another process that holds a place, until it is killed; its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with kind(path):
            os.write(writer, b"held")
            time.sleep(60)
        os._exit(0)
    assert os.read(reader, 4) == b"held"
    for handle in (reader, writer):
        os.close(handle)
    return child


@pytest.mark.parametrize("kind", [exclusive_file, exclusive_folder])
def test_who_holds_a_place_is_told_until_he_dies(
    tmp_path: Path, kind: Callable[..., AbstractContextManager[None]]
) -> None:
    process = holding(kind, tmp_path / "place" if kind is exclusive_file else tmp_path)
    for _ in range(2):
        with pytest.raises(FileError, match=rf"is in use: process {process} on .*, since \d{{4}}-"):
            kind(tmp_path / "place" if kind is exclusive_file else tmp_path).__enter__()
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with kind(tmp_path / "place" if kind is exclusive_file else tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_thread_at_a_time_holds_a_place_and_each_its_own(tmp_path: Path) -> None:
    with exclusive_folder(tmp_path), exclusive_file(tmp_path / "a"), exclusive_file(tmp_path / "b"):  # noqa: SIM117
        with pytest.raises(FileError, match=f"process {os.getpid()} "), exclusive_folder(tmp_path):
            pass
    with exclusive_folder(tmp_path):
        pass


def test_a_link_to_a_file_is_held_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    with exclusive_file(tmp_path / "link"), pytest.raises(FileError, match="in use"), exclusive_file(tmp_path / "file"):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full_is_told_and_forgotten_once_there_is_room(small_disk: Path) -> None:
    path, ballast = small_disk / "file", small_disk / "ballast"
    write_text(path, OLD)
    ballast.write_bytes(bytes(200 * 1024))
    for write in (lambda p: write_text(p, "x" * 300_000), lambda p: append_line(p, "x" * 300_000), _save_many):
        with pytest.raises(FileError, match="No space left on device"):
            write(path)
        assert read_text(path) == OLD
    assert contents(small_disk) == ["ballast", "file"]
    ballast.unlink()
    write_text(path, NEW)


def _save_many(path: Path) -> None:
    with replacing(path) as draft:
        save_file({"a": torch.zeros(100_000)}, draft)


def test_drafts_are_in_a_folder_that_goes(tmp_path: Path) -> None:
    with drafts(tmp_path / "file") as folder:
        (folder / "layers").mkdir()
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_finds_the_disk_full_says_so_and_leaves_what_was_there(small_disk: Path) -> None:
    # Some writers of torch end the process there, others of engines give no reason.
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 300)).eval()
    for suffix in ("pt2", *(["onnx"] if find_spec("onnxscript") else []), *(["xml"] if find_spec("openvino") else [])):
        path = small_disk / f"model.{suffix}"
        path.write_text(OLD, encoding="utf-8")
        with pytest.raises(FileError, match="No space left on device"):
            export(model, torch.randn(2, 64), path)
        assert path.read_text(encoding="utf-8") == OLD
    assert list(small_disk.glob(".*")) == []
