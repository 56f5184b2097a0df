"""A sample of the campaign in ``benchmarks/torture.py``, and what its attempts are judged by."""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from benchmarks.torture import found_in, page
from benchmarks.torture_files import Files
from benchmarks.torture_mutants import Pairs, Raw, dump, parse
from benchmarks.torture_runner import Found, row_of, run_batches
from benchmarks.torture_seeds import in_this_process
from benchmarks.torture_stops import Stops, timeless
from benchmarks.torture_values import Values, fits
from nervure.errors import FileError
from nervure.recipe import steps as steps_module

SEED = 20
"""Of the sample: another one than the campaign's."""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """Parts look at saved files in their own process; other tests do not."""
    monkeypatch.setattr(steps_module, "_in_fresh_process", in_this_process)


def faults(found):
    return [f"{number}: {one}" for number, one in found.items() if one.is_fault]


def test_a_mutated_file_gives_an_error_of_ours_or_what_it_held_and_runs_nothing():
    found = found_in(Files(), SEED, 2500)
    assert not faults(found)
    assert len(found) == 2500


def test_what_was_killed_or_found_no_room_goes_on_to_equal_tensors_and_reports():
    found = found_in(Stops(), SEED, 14)
    assert not faults(found)
    assert sum(one.outcome == "equal" for one in found.values()) > 7


def test_a_bad_value_gives_an_error_of_ours_wherever_it_is_given():
    found = found_in(Values(), SEED, 300)
    assert not faults(found)
    assert len(found) == 300


class Tries:
    """A part whose attempts go wrong in every way."""

    name, number, size, seconds = "tries", 8, 8, 0.2
    meanings: ClassVar[dict[str, str]] = {"told": "an error"}

    def prepare(self, folder):
        pass

    def kind(self, seed, number):
        return "try"

    def show(self, seed, number):
        return f"attempt {number}"

    def attempt(self, seed, number, folder):
        match number:
            case 1:
                while True:
                    pass
            case 2:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 3:
                raise KeyError("lost")
            case 4:
                time.sleep(60)
            case 5:
                raise MemoryError
        return Found("try", "told")


def test_an_attempt_that_crashes_or_hangs_costs_no_other(tmp_path):
    ((_, found),) = run_batches(Tries(), 0, {0: range(8)}, tmp_path, 1)
    outcomes = [found[number].outcome for number in range(8)]
    assert outcomes == ["told", "hang", "killed", "foreign exception", "hang", "memory", "told", "told"]
    row = row_of(0, found)
    assert row["counts"] == {"try": {"told": 3, "hang": 2, "killed": 1, "foreign exception": 1, "memory": 1}}
    assert [fault["number"] for fault in row["faults"]] == [1, 2, 3, 4, 5]


def _tell():
    raise FileError("damaged")


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda folder: {"a": 1}, "equal"),
        (lambda folder: _tell(), "told"),
        (lambda folder: {"a": 2}, "silent change"),
        (lambda folder: {}["a"], "foreign exception"),
        (lambda folder: bytes(1 << 40), "memory"),
        (lambda folder: {"a": len(b"x" * (200 << 20)) and 1}, "memory"),
        (lambda folder: os.system("true") or {"a": 1}, "code run"),
        (lambda folder: {"a": Path(folder.parent.parent, "x").write_text("") or 1}, "code run"),
    ],
)
def test_what_a_reader_does_is_seen(read, outcome, tmp_path, monkeypatch):
    from benchmarks import torture_files, torture_formats

    kind = torture_formats.Format("made up", lambda folder: (folder / "a").write_text("{}"), lambda folder: {"a": 1})
    monkeypatch.setitem(torture_files.FORMATS, "made up", kind)
    part = Files(("made up",))
    part.prepare(tmp_path)
    wrong = torture_formats.Format("made up", kind.make, read)
    monkeypatch.setitem(torture_files.FORMATS, "made up", wrong)
    ((_, found),) = run_batches(part, 0, {0: range(1)}, tmp_path, 1)
    assert found[0].outcome == outcome


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (float("nan"), float, False),
        ("a", float, False),
        (object(), bool, False),
        (None, int | None, True),
        ([1, 2], tuple[int, ...], True),
        (["a"], tuple[int, ...], False),
        ({"a": 1}, dict[str, int], True),
        ({1: 1}, dict[str, int], False),
        (torch.nn.Linear, torch.nn.Module, False),
        (torch.nn.Linear(1, 1), torch.nn.Module, True),
    ],
)
def test_whether_a_value_is_of_a_type(value, hint, does):
    assert fits(value, hint) is does


def test_json_is_written_with_what_was_put_in():
    tree = parse('{"a": [1, {"b": null}]}')
    tree[0][1].append(Raw("NaN"))
    assert dump(Pairs([*tree, ("a", 2)])) == '{"a":[1,{"b":null},NaN],"a":2}'


def test_times_are_not_compared():
    assert timeless({"loss": [1], "seconds": 2, "rows": [{"date": 1, "x": 2}]}) == {"loss": [1], "rows": [{"x": 2}]}


def test_the_table_counts_by_kind_and_names_each_fault():
    row = row_of(0, {0: Found("graph", "told"), 1: Found("graph", "hang", "nervure/a.py:3", "why")})
    text = page([{"part": "files", "seed": 0, "attempts": 2, "commit": "abc", **row}])
    assert "| graph | 2 | 1 | 1 |" in text
    assert "`files:0:1` why" in text
