"""Every page fits a telephone and a sheet of paper, as a real browser lays it out."""

import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch

from nervure import Cut, Drop, Mask, Plan, connectivity, trace
from nervure.report import Point, Report, Row, Width, connectivity_page, graph_page, to_html
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.comparison_report import MethodComparison, comparison_page
from nervure.report.run_report import place
from nervure.report.sweep_report import Sweep, sweep_page
from nervure.zoo import build

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, PAPER = 360, 688  # pixels: a small telephone; A4 between margins of 14 mm
LONG = "encoder.layers.11.self_attention.with_a_name_that_goes_on.projection"
WIDE = {"accuracy": 0.9, "loss": 0.123, "ece": 0.01, "samples": 100, "params": 10**8, "nonzero": 10**8, "macs": 10**9}
MEASURE = """<script>onload = () => { for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument.documentElement;
  const told = document.createElement("p");
  told.textContent = `${frame.id}=${page.scrollWidth};`;
  document.body.append(told); } }</script>"""


def report() -> str:
    speeds = {place(n, engine): 12.345 for engine in ("eager", "compile", "onnxruntime") for n in (1, 64, 256)}
    rows = {name: Row(**WIDE, latency=speeds, speedup=speeds) for name in ("dense", "pruned", "dense+", "random")}
    accuracy = {f"corruption_{i}": 0.5 for i in range(3)}
    network: dict[str, Any] = {"clean": 0.9, "mean": 0.5, "interval": [0.4, 0.6], "mce": 1.0, "relative_mce": 1.0}
    shift = {"severities": [3], "samples": 10, "networks": {name: {**network, "accuracy": accuracy} for name in rows}}
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    evidence = {
        "layers": {LONG: [[0.1] * 40] * 40},
        "limits": {LONG: {"shares": [0.0, 1.0], "quality": [0.9, 0.1], "upper": 0.5}},
        "protected": {LONG: list(range(200))},
    }
    return to_html(
        Report(
            title=LONG,
            method=f"Method({LONG * 3})",
            recipe={"model": {"name": LONG, "options": {LONG: LONG * 3}}},
            plan=Plan((Cut(LONG, [True, False]), Mask(LONG, [True, False]), Drop(LONG)), asked={LONG: 1.0}),
            rows=rows,
            widths=(Width(LONG, 1024, 512), Width(f"{LONG}.2", 8, 8, LONG * 2)),
            curves={name: (Point(1, 1.0, 0.5), Point(2, 0.5, 0.9)) for name in rows},
            verification={LONG: 1e-7},
            provenance={"data": LONG, "again": f"nervure run {LONG * 2}/recipe.toml --folder {LONG}"},
            evidence=evidence,
            shift={**shift, "original": [picture] * 3, "pictures": {name: [picture] * 3 for name in accuracy}},
        )
    )


def trials() -> list[Outcome]:
    return [
        Outcome(f"{m}{k}{s}", LONG, m, s, k, "macs", accuracy=k, validation=k**0.5, macs_kept=k, params_kept=k, macs=10)
        for m in ("dense", f"Taylor of {LONG}", *"ABCDEFGH")
        for k in (0.25, 0.5, 1.0)
        for s in (0, 1)
    ]


def compared() -> str:
    return comparison_page(MethodComparison(LONG, "A", (*trials(), replace(trials()[-1], error=LONG * 2))))


def swept() -> str:
    outcomes = trials()
    timed = {
        o.key: TimedSetting(dict.fromkeys(["1", "64", "256"], 1.0), dict.fromkeys(["1", "64", "256"], 1.0))
        for o in outcomes
    }
    failures = {LONG: LONG * 2}
    return sweep_page(Sweep.of(outcomes, timed, title=LONG, recipe={}, folder=f"runs/{LONG}", failures=failures))


def pages() -> dict[str, str]:
    model, example = build("resnet8", width=0.25), torch.randn(1, 3, 8, 8)
    return {
        "report": report(),
        "sweep": swept(),
        "comparison": compared(),
        "graph": graph_page(trace(model, example), LONG),
        "circuit": connectivity_page(connectivity(model, example), LONG),
    }


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_no_page_is_wider_than_a_telephone_or_a_sheet_of_paper(tmp_path: Path) -> None:
    frames = {name: (text, PHONE) for name, text in pages().items()}
    # What a printer is told, told to the screen.
    frames |= {
        f"{name}-printed": (text.replace("@media print", "@media all"), PAPER) for name, (text, _) in frames.items()
    }
    frames["control"] = ("<!doctype html><div style='width:500px'>wide", PHONE)
    inside = "".join(
        f'<iframe id="{name}" style="border:0;width:{width}px;height:700px" srcdoc="{escape(text)}"></iframe>'
        for name, (text, width) in frames.items()
    )
    (tmp_path / "all.html").write_text(f'<!doctype html><meta charset="utf-8"><body>{inside}{MEASURE}')
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(BROWSER), *flags, (tmp_path / "all.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = {name: int(done.stdout.rpartition(f"<p>{name}=")[2].partition(";")[0]) for name in frames}
    assert found.pop("control") > PHONE
    assert {name: width for name, width in found.items() if width > frames[name][1]} == {}
