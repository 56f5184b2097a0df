"""The notebooks run from top to bottom, are stored without outputs, and are notebooks."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def run_cells(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code"), 1):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare_fairly", "first_prune", "your_model_and_task"]


@EACH
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path, "code"))


@EACH
def test_a_notebook_keeps_to_the_format(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.slow
@EACH
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("PIL") is None:
        pytest.skip("pictures need pillow")
    monkeypatch.chdir(tmp_path)
    run_cells(path)
    assert capsys.readouterr().out.strip()


def test_a_cell_that_fails_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}))
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells(path)
    assert str(caught.traceback[-1].path).endswith("a.ipynb, cell 1")
