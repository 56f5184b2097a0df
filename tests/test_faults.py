"""The injector of faults: what it lets go wrong goes wrong there, and nowhere else."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.faults import Action, fault, in_child, record


def work(folder: Path) -> None:
    (folder / "a").write_bytes(b"0123456789")
    os.replace(folder / "a", folder / "b")
    (folder / "c").mkdir()
    with open(folder / "c" / "d", "a", encoding="utf-8") as file:
        print("a line", file=file)
        file.flush()
        os.fsync(file.fileno())
    (folder / "b").unlink()


KINDS = ["open", "write", "rename", "mkdir", "open", "write", "fsync", "unlink"]


def test_every_event_is_met_in_order_and_the_work_is_done_as_without(tmp_path):
    assert [event.kind for event in record(lambda: work(tmp_path), tmp_path)] == KINDS
    assert (tmp_path / "c" / "d").read_text(encoding="utf-8") == "a line\n"


def test_events_elsewhere_are_none(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    assert record(lambda: work(tmp_path / "there"), tmp_path / "here") == []


@pytest.mark.parametrize("at", range(len(KINDS)))
def test_a_child_is_killed_in_the_event_that_was_named(tmp_path, at):
    assert in_child(lambda: work(tmp_path), tmp_path, at=at).killed
    assert (tmp_path / "c").exists() == (at > 3)


def test_a_write_in_which_a_process_dies_is_half_done(tmp_path):
    assert in_child(lambda: work(tmp_path), tmp_path, at=1).killed
    assert (tmp_path / "a").read_bytes() == b"01234"


def test_a_child_that_is_not_killed_tells_how_it_ended(tmp_path):
    assert in_child(lambda: work(tmp_path), tmp_path).code == 0
    assert "ZeroDivisionError" in in_child(lambda: 1 // 0, tmp_path).said


def test_a_full_disk_stays_full_but_lets_files_go(tmp_path):
    with fault(tmp_path, at=1, action=Action.FULL):
        with pytest.raises(OSError, match="No space left") as caught:
            work(tmp_path)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "e").mkdir()
        (tmp_path / "a").unlink()
    work(tmp_path)


def test_a_broken_disk_fails_once(tmp_path):
    with fault(tmp_path, at=2, action=Action.BROKEN):
        with pytest.raises(OSError, match="Input/output error"):
            work(tmp_path)
        work(tmp_path)


def test_what_safetensors_writes_is_an_event_and_fails_in_its_own_words(tmp_path):
    tensors, path = {"a": torch.zeros(100)}, tmp_path / "x"
    assert [event.kind for event in record(lambda: save_file(tensors, path), tmp_path)] == ["write"]
    with fault(tmp_path, at=0), pytest.raises(SafetensorError, match="os error 28"):
        save_file(tensors, path)


def test_a_read_can_fail_too(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with fault(tmp_path, at=0, action=Action.BROKEN, reads=True), pytest.raises(OSError, match="Input/output error"):
        (tmp_path / "a").read_bytes()


def test_a_child_that_hangs_is_told_of(tmp_path):
    with pytest.raises(TimeoutError, match="hung"):
        in_child(lambda: __import__("time").sleep(60), tmp_path, limit=0.2)
