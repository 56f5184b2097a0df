"""What measures on a GPU: parts are run, stopped and counted one by one, and every line finds its table."""

import ast
import json
from pathlib import Path

import pytest

from benchmarks.gpu import run
from benchmarks.gpu.pages import PAGES
from benchmarks.gpu.run import Part

SCRIPT = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text(json.dumps({"kind": "feeding", "way": "pinned", "ms": 1.5}) + "\\n" + '{"kind": "fee')
time.sleep(%s)
sys.exit(%d)
"""


@pytest.fixture
def parts(monkeypatch):
    def set_parts(*stages):
        monkeypatch.setattr(run, "STAGES", stages)
        monkeypatch.setattr(run, "LEAST", 1.2)
        monkeypatch.setattr(run, "look_at_machine", lambda surroundings: {"device": "a card", "torch": "2"})

    return set_parts


def made(name, sleep=0, code=0, seconds=20.0, **more):
    return Part(name, ("-c", SCRIPT % (sleep, code)), seconds, "training", **more)


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(parts, tmp_path, capsys):
    parts(
        (made("bad", code=3),), (made("long", sleep=60, seconds=1.5), made("good")), (made("other", needs="no_such"),)
    )
    assert run.main(["--device", "cpu", "--out", str(tmp_path), "--quick"]) == 1
    whole = json.loads((tmp_path / "summary.json").read_text())
    states = {state["part"]: state["state"] for state in whole["parts"]}
    assert states["bad"] == "failed (3)"
    assert states["long"].startswith("stopped after")
    assert states["good"] == "ok"
    assert states["other"] == "left out: no_such is not installed"
    # What a part wrote before it was stopped counts, but for half a line.
    assert len(whole["rows"]["training"]) == 3
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# On a card") and "no results" in text and "| pinned | 1.5 |" in text


def test_parts_are_chosen_by_name_and_nothing_begins_without_time(parts, tmp_path):
    parts((made("one"), made("two")))
    assert run.main(["two", "--device", "cpu", "--out", str(tmp_path), "--seconds", "1"]) == 1
    whole = json.loads((tmp_path / "summary.json").read_text())
    assert [(state["part"], state["state"]) for state in whole["parts"]] == [("two", "left out: no time was left")]


def test_what_is_missing_is_told_with_what_to_do(parts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "NEEDED", ("torch", "no_such_package"))
    assert run.main(["--out", str(tmp_path)]) == 2
    assert "lacks no_such_package" in capsys.readouterr().err


ROWS = {
    "training": [
        {"kind": "reads", "way": "as it is", "reads": 0.0, "waits": 0.0},
        {"kind": "step", "network": "ResNet-20", "way": "train", "ms": 5.1234},
        {"kind": "masks", "network": "MLP", "optimizer": "SGD", "dense_ms": 2.0, "held_ms": 2.1},
        {"kind": "step", "network": "ResNet-50", "failed": "RuntimeError: out of memory"},
    ],
    "latency": [
        {"network": "ViT", "variant": "half", "error": 1e-7, "parameters": 10},
        {"network": "ViT", "variant": "dense", "batch": 8, "mode": "graph", "ms": 4.0},
        {"network": "ViT", "variant": "half", "batch": 8, "mode": "graph", "ms": 2.0},
        {"network": "ViT", "variant": "2:4", "batch": 8, "mode": "eager", "failed": "RuntimeError: no"},
    ],
    "streamed": [
        {
            "case": "a quarter of the width", "layers": 2, "whole": 32, "tokens": 2048, "layer_s": 3.0,
            "outside_s": 24.0, "error_before": 0.2, "error_after": 0.1, "difference": 0.0,
        },
        {"case": "masks", "failed": "RuntimeError: out of memory"},
    ],
    "study": [
        {"network": "VGG-16", "method": "dense", "images": 54000, "parameters": 5, "test": 93.1},
        {"network": "VGG-16", "method": "SNACS", "keep": 0.5, "parameters": 2, "cut": 1.0, "refitted": 80, "test": 92},
    ],
}  # fmt: skip
WORDS = {
    "training": ["| ResNet-20 | train | 5.12 |", "| MLP | SGD | 2 | +5.0 % |", "network=ResNet-50: RuntimeError"],
    "latency": ["| dense | 4 ms |", "| half | 2.00x |", "largest error 1.0e-07", "variant=2:4"],
    "streamed": ["| a quarter of the width | 2 of 32 | 3 | 24 | 2 | 0.2 | 0.1 |", "case=masks: RuntimeError"],
    "study": ["54,000 training pictures", "| VGG-16 | 0.5 | SNACS | 2 | 1 | 80 | 92 |"],
}


@pytest.mark.parametrize("page", PAGES)
def test_lines_become_tables(page):
    text = PAGES[page](ROWS[page])
    assert [word for word in WORDS[page] if word not in text] == []
    assert run.describe(page, [{"strange": 1}])


def test_the_command_itself_needs_no_library():
    for file in (run.__file__, run.__file__.replace("run.py", "pages.py")):
        tree = ast.parse(Path(file).read_text())
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("torch", "numpy", "nervure")}


def test_every_part_is_a_file_that_is_there():
    for part in (part for stage in run.STAGES for part in stage):
        assert part.page in ("", *PAGES)
        assert sum(part.seconds for part in run.STAGES[0]) < run.TOTAL <= 480
        module = part.command[1]
        assert module == "pytest" or (run.ROOT / (module.replace(".", "/") + ".py")).exists()
    assert (run.ROOT / "tests" / "test_cuda.py").exists()
