"""A sample of the large laws: which of their cases a run takes follows a seed that changes with the day.

A law is large where it is asked of every network, or of every method and every network. A run takes a share of its
cases, at least a dozen, and more until every value that a case names (a network, a method) was taken a few times. The
seed chooses cases, nothing else: a case does the same on every day, so what fails today fails tomorrow if it is run.
"""

import datetime
import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import pytest

SEED = "NERVURE_TEST_SEED"
LEAST = 12
"""Cases of every law, or all where there are fewer."""
TIMES = 2
"""How often every value is taken, over all the laws that are asked of it; ``sampled(times=...)`` says otherwise."""


class Case(NamedTuple):
    """One case of a law: its place among the tests, what its law asks for and the values that it names."""

    name: str
    law: str
    share: float
    values: tuple[Hashable, ...]
    times: int = TIMES


def seed_of_the_day() -> str:
    """The seed that was asked for or, from then on for this process and its children, the date."""
    return os.environ.setdefault(SEED, f"{datetime.datetime.now(datetime.UTC):%Y%m%d}")


def draw(cases: Sequence[Case], seed: str) -> set[str]:
    """Names of the cases that a run with this seed takes."""
    order = sorted(cases, key=lambda case: hashlib.sha256(f"{seed} {case.name}".encode()).digest())
    by_law: dict[str, list[Case]] = defaultdict(list)
    for case in order:
        by_law[case.law].append(case)
    chosen = {c.name: c for law in by_law.values() for c in law[: max(LEAST, round(law[0].share * len(law)))]}
    taken = Counter(value for case in chosen.values() for value in case.values)
    for case in order:
        if case.name not in chosen and any(taken[value] < case.times for value in case.values):
            chosen[case.name] = case
            taken.update(case.values)
    return set(chosen)


def cases_of(items: Sequence[pytest.Item]) -> Iterator[Case]:
    """The cases of the laws marked ``sampled`` among the tests."""
    for item in items:
        mark, spec = item.get_closest_marker("sampled"), getattr(item, "callspec", None)
        if mark is not None and spec is not None:
            # Whatever repeats itself by value: the same network under two names of a parameter is one.
            values = tuple(repr(value) for value in spec.params.values())
            share, times = mark.kwargs.get("share", 0.2), mark.kwargs.get("times", TIMES)
            yield Case(item.nodeid, item.nodeid.partition("[")[0], share, values, times)


def is_whole(config: pytest.Config) -> bool:
    """Whether all cases are to run: by ``--whole``, or because single tests are asked for by name."""
    named = any("::" in argument for argument in config.args)
    return bool(config.getoption("whole") or config.getoption("keyword") or named)


class Sampling:
    """The hooks: leave out what the seed does not choose, and tell the seed where something fails."""

    @staticmethod
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the cases that are not drawn."""
        if is_whole(config):
            return
        cases = list(cases_of(items))
        out = {case.name for case in cases} - draw(cases, seed_of_the_day())
        if out:
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in out])
            items[:] = [item for item in items if item.nodeid not in out]

    @staticmethod
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
        """Say beside a failure of a drawn case how to have it again."""
        report = yield
        if report.failed and item.get_closest_marker("sampled") is not None:
            again = f"{SEED}={seed_of_the_day()} python -m pytest -n 0 {shlex.quote(item.nodeid)}"
            report.sections.append(("drawn by the seed of the day; to run it again", again))
        return report

    @staticmethod
    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        """Print the seed, however quiet the run."""
        if not is_whole(config):
            terminalreporter.write_line(f"large laws were sampled: {SEED}={seed_of_the_day()}; --whole runs every case")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--whole``: every case of every law."""
    parser.addoption("--whole", action="store_true", help="run every case of the large laws, not the day's sample")


def pytest_configure(config: pytest.Config) -> None:
    """The seed is set before workers start, so that they agree on it at midnight too."""
    seed_of_the_day()
    config.pluginmanager.register(Sampling(), "nervure-sampling")
