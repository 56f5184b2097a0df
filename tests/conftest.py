"""One thread, no waiting for displays, and the same examples on every run."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: OpenMP reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.sampling import pytest_addoption, pytest_configure

__all__ = ["pytest_addoption", "pytest_collection", "pytest_configure", "seeded", "write_module"]

torch.set_num_threads(1)

# A busy machine is not a failing test, and a failure must be repeatable.
settings.register_profile(
    "nervure",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("nervure")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, so none depends on which ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module of that name and text into the folder that the test works in, where it can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among the thousands of tests while they are collected, nor among them later: all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
