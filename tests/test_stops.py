"""Killed at any write, on a disk that is full or broken at any write: what goes on ends as if nothing had happened.

``NERVURE_STOPS=100`` tries so many of the events of each work, spread over all of them, instead of a few.
"""

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nervure.errors import FileError
from tests.faults import Action, Event, in_child, record
from tests.stopped import WORKS, differences, facts

TRIED = int(os.environ.get("NERVURE_STOPS", "2"))
Whole = tuple[list[Event], Mapping[str, Any]]


@pytest.fixture(scope="module", params=WORKS)
def work(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return WORKS[request.param]


@pytest.fixture(scope="module")
def whole(work: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The events of the work where nothing stops it, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole")
    events = record(partial(work, folder), folder)
    return events, facts(folder)


def spread(events: list[Event], begin: int, tried: int = TRIED) -> range:
    """Numbers of events from all over, an early one first."""
    return range(begin, len(events), -(-len(events) // max(tried, 1)))


def test_killed_anywhere_it_goes_on_to_the_same(work: Callable[[Path], None], whole: Whole, tmp_path: Path) -> None:
    events, expected = whole
    for at in spread(events, begin=1):
        folder = tmp_path / str(at)
        folder.mkdir()
        assert in_child(partial(work, folder), folder, at=at).killed
        again = in_child(partial(work, folder), folder)
        assert again.code == 0, (at, events[at], again.said)
        assert differences(facts(folder), expected) == [], (at, events[at])


@pytest.mark.parametrize("action", [Action.FULL, Action.BROKEN])
def test_whatever_the_disk_refuses_is_told_and_it_goes_on_to_the_same(
    work: Callable[[Path], None], whole: Whole, tmp_path: Path, action: Action
) -> None:
    events, expected = whole
    middle = len(events) // 2 if TRIED < 4 else 0
    for at in spread(events, middle + (action is Action.FULL), TRIED // 2):
        folder = tmp_path / str(at)
        folder.mkdir()
        refused = in_child(partial(work, folder), folder, at=at, action=action)
        assert refused.code == 0 or FileError.__name__ in refused.said.splitlines()[-1], (at, events[at], refused.said)
        again = in_child(partial(work, folder), folder)
        assert again.code == 0, (at, events[at], again.said)
        assert differences(facts(folder), expected) == [], (at, events[at])


def test_asked_to_end_it_leaves_no_lock_and_no_draft(
    work: Callable[[Path], None], whole: Whole, tmp_path: Path
) -> None:
    events, expected = whole

    def interrupted() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        work(tmp_path)

    ended = in_child(interrupted, tmp_path, at=len(events) // 2, action=Action.TERM)
    assert "KeyboardInterrupt" in ended.said.splitlines()[-1]
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []
    assert in_child(lambda: work(tmp_path), tmp_path).code == 0
    assert differences(facts(tmp_path), expected) == []
