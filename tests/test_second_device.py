"""What a device can change is tried without a GPU, too: on one of the processor's own memory, in a process apart."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_device import NAME

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no compiler on this machine")
@pytest.mark.parametrize("file", ["tests/test_cuda.py", "tests/test_devices.py"])
def test_the_laws_of_devices_hold_on_a_second_device(file: str, request: pytest.FixtureRequest) -> None:
    whole = ["--whole"] if request.config.getoption("whole") else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, *whole],
        cwd=ROOT,
        env={**os.environ, "NERVURE_TEST_DEVICE": NAME, "PYTEST_ADDOPTS": "", "PYTEST_XDIST_WORKER": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout
