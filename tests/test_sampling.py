"""The sample of the large laws: its shares, what it takes at least, and that a seed repeats it."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sampling import LEAST, SEED, TIMES, Case, draw

ROOT = Path(__file__).parent.parent
NETWORKS = [f"n{i}" for i in range(100)]
LAWS = [f"law {i}" for i in range(5)]
CASES = [Case(f"{law} of {net}", law, 0.2, (net,)) for law in LAWS for net in NETWORKS]


@pytest.mark.parametrize("seed", ["1", "20300101", "any word"])
def test_every_law_has_its_share_and_every_network_is_taken_a_few_times(seed: str) -> None:
    names = draw(CASES, seed)
    chosen = [case for case in CASES if case.name in names]
    assert min(Counter(case.law for case in chosen).values()) >= 20
    assert min(Counter(case.values[0] for case in chosen)[net] for net in NETWORKS) >= TIMES
    assert len(chosen) < 0.8 * len(CASES)


def test_a_small_law_is_taken_whole_and_no_law_by_less_than_a_dozen() -> None:
    small = [Case(f"small of {i}", "small", 0.1, ("x",)) for i in range(LEAST - 1)]
    larger = [Case(f"larger of {i}", "larger", 0.1, ("x",)) for i in range(40)]
    chosen = draw([*small, *larger], "1")
    assert {case.name for case in small} <= chosen
    assert sum(case.name in chosen for case in larger) == LEAST


def test_a_law_may_ask_for_its_values_less_often() -> None:
    cases = [Case(f"{law} of {net}", law, 0.01, (net,), times=1) for law in LAWS for net in NETWORKS]
    names = draw(cases, "1")
    assert {case.values for case in cases if case.name in names} == {(net,) for net in NETWORKS}
    assert len(names) < LEAST * len(LAWS) + len(NETWORKS)


def test_a_seed_repeats_its_sample_whatever_the_order_and_another_takes_other_cases() -> None:
    assert draw(CASES, "1") == draw(CASES[::-1], "1")
    assert draw(CASES, "1") != draw(CASES, "2")


LAW = """
import pytest

@pytest.mark.sampled
@pytest.mark.parametrize("number", [0] * 200)
def test_law(number):
    assert {claim}
"""


def run(folder: Path, *words: str, claim: str = "True") -> str:
    """What pytest prints about a law of 200 cases in a folder with our hooks."""
    (folder / "test_law.py").write_text(LAW.format(claim=claim))
    (folder / "conftest.py").write_text("from tests.sampling import pytest_addoption, pytest_configure")
    (folder / "pytest.toml").write_text('[pytest]\nmarkers = ["sampled"]\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT), SEED: "7"}
    done = subprocess.run([*command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def test_a_run_takes_a_fifth_and_a_failure_names_the_seed_and_the_command_that_repeats_it(tmp_path: Path) -> None:
    out = run(tmp_path, claim="number")
    assert "40 failed, 160 deselected" in out
    assert f"{SEED}=7; --whole" in out
    assert f"{SEED}=7 python -m pytest -n 0 'test_law.py::test_law[" in out


def test_everything_runs_where_that_is_asked_for(tmp_path: Path) -> None:
    out = run(tmp_path, "--whole")
    assert "200 passed" in out
    assert SEED not in out
