"""Every page fits a telephone, a desk and a sheet of paper, as a real browser lays it out, and needs nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nervure import Cut, Drop, Mask, Plan, connectivity, trace
from nervure.core.files import write_text
from nervure.graph.types import Axis, Graph, Group, OpCost, TensorAxis, Units
from nervure.methods import Magnitude
from nervure.methods.base import View
from nervure.report import Point, Report, Row, Width, connectivity_page, graph_page, to_html
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.comparison_report import MethodComparison, comparison_page
from nervure.report.run_report import place
from nervure.report.sweep_report import Sweep, sweep_page
from nervure.zoo import build
from tests.browser import CHROMIUM, Browser, browse

PHONE, TELEPHONE, DESKTOP, PAPER = 360, 400, 1280, 688  # pixels; the last is A4 between margins of 14 mm
NAMES = ("report", "task", "sweep", "comparison", "graph", "planned", "circuit")
LONG = "encoder.layers.11.self_attention.with_a_name_that_goes_on.projection"
WIDE = {"accuracy": 0.9, "loss": 0.123, "ece": 0.01, "samples": 100, "params": 10**8, "nonzero": 10**8, "macs": 10**9}
OVER = """[...document.querySelectorAll("main *")].filter((one) =>
  !one.closest(".scroll, details:not([open]) > :not(summary)")
  && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"""
LUMINANCE = """getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]"""
HINTS = """[...document.querySelectorAll(".scroll")].map((one) => [one.scrollWidth > one.clientWidth + 1,
  [...one.querySelectorAll(".swipe")].some((hint) => getComputedStyle(hint).visibility === "visible")])"""


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


def of_a_task() -> Report:
    """A run of something that tells no classes."""
    rows = {name: Row(loss=0.5, samples=50, params=1000, nonzero=1000, macs=5000) for name in ("dense", "random")}
    rows |= {"pruned": Row(loss=0.6, samples=50, params=400, nonzero=400, macs=2000, metrics={"r2": 0.8})}
    task = {"name": "regression", "reason": "", "higher_is_better": {"r2": True}}
    return Report(LONG, "Taylor(keep=0.4)", {}, Plan(), rows, task=task, notes=(LONG,))


def chain(length: int) -> Graph:
    """The graph of so many linear layers one after the other, without the time that tracing them takes."""
    units, layers = Units(range(4)), [f"stage{number // 50}.{number % 50}" for number in range(length)]
    slots = [[TensorAxis(f"{name}.weight", 0, "writer", units)] for name in layers]
    for mine, reader in zip(slots, layers[1:], strict=False):
        mine.append(TensorAxis(f"{reader}.weight", 1, "reader", units))
    groups = tuple(Group(name, 4, "channels", tuple(mine)) for name, mine in zip(layers, slots, strict=True))
    axes = (Axis(4), *(Axis(4, ((name, units),)) for name in layers))
    tensors = {f"{name}.weight": (number + 1, number) for number, name in enumerate(layers)}
    work = tuple(OpCost(name, "linear", 1, (number + 1, number)) for number, name in enumerate(layers))
    return Graph(groups, axes=axes, tensors=tensors, parameters=tuple(tensors), work=work)


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
    graph = trace(model, example)
    plan = Magnitude(keep=0.5).plan(View(graph, model.state_dict()))
    return {
        "report": report(),
        "task": to_html(of_a_task()),
        "sweep": swept(),
        "comparison": compared(),
        "graph": graph_page(graph, LONG),
        "planned": graph_page(graph, LONG, plan),
        "circuit": connectivity_page(connectivity(model, example), LONG),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_text(folder / f"{name}.html", text) for name, text in pages().items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with browse(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_in_light_and_dark_without_script_and_network(
    browser: Browser, written: dict[str, Path], name: str
) -> None:
    pictures, shades = set(), {}
    for dark in (False, True):
        browser.show(written[name], PHONE, dark=dark)
        assert browser.requested == [written[name].as_uri()]
        for width in (PHONE, TELEPHONE, DESKTOP):
            browser.resize(width)
            assert browser.ask("document.documentElement.scrollWidth") <= width, width
            assert browser.ask(OVER) == [], width
        shades[dark] = browser.ask(LUMINANCE)
        for width in (TELEPHONE, DESKTOP):
            browser.resize(width)
            pictures.add(browser.picture())
    assert shades[False] > 200 and shades[True] < 60
    assert len(pictures) == 4 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(browser.ask("document.body.innerText")) > 200
    browser.dress(printed=True)
    browser.resize(PAPER)
    assert browser.ask("document.documentElement.scrollWidth") <= PAPER


def test_a_page_that_is_too_wide_is_found(browser: Browser, tmp_path: Path) -> None:
    wide = write_text(tmp_path / "wide.html", "<!doctype html><main><p style='width:500px'>wide")
    browser.show(wide, PHONE)
    assert browser.ask("document.documentElement.scrollWidth") > PHONE
    assert len(browser.ask(OVER)) == 1


def test_a_table_says_that_it_scrolls_where_it_does_and_nowhere_else(
    browser: Browser, written: dict[str, Path]
) -> None:
    seen = set()
    for name in ("report", "sweep", "comparison", "circuit", "planned"):
        for width in (TELEPHONE, 2400):
            browser.show(written[name], width)
            browser.picture()  # what is told of scrolling is settled when a frame is drawn
            told = browser.ask(HINTS)
            assert all(scrolls == says for scrolls, says in told), (name, width, told)
            seen |= {scrolls for scrolls, _ in told}
    assert seen == {True, False}


def test_words_lead_to_what_explains_them(browser: Browser, written: dict[str, Path]) -> None:
    for path in written.values():
        browser.show(path, DESKTOP)
        dead = """[...document.querySelectorAll("a")].filter((one) => !document.querySelector(one.hash))"""
        assert browser.ask(f"{dead}.length") == 0


def test_a_graph_is_searched_and_unfolded_again(browser: Browser, written: dict[str, Path]) -> None:
    browser.show(written["graph"], DESKTOP)
    assert not browser.ask("""document.querySelector("#search").checkVisibility()""")
    browser.show(written["graph"], DESKTOP, script=True)
    seen = """[...document.querySelectorAll(".tree code")].filter((one) => one.checkVisibility()).length"""
    whole = browser.ask(seen)
    typed = """(words) => { const input = document.querySelector("input"); input.value = words;
      input.dispatchEvent(new Event("input")); }"""
    browser.ask(f"({typed})('layer2.0.conv1')")
    assert 0 < browser.ask(seen) < whole / 2
    browser.ask(f"({typed})('')")
    assert browser.ask(seen) == whole
    browser.ask("""document.querySelectorAll("button")[1].click()""")
    assert browser.ask(seen) < whole


def test_a_thousand_layers_do_not_stutter(browser: Browser, tmp_path: Path) -> None:
    text = graph_page(chain(1000), "deep")
    assert len(text) < 1_000_000
    browser.show(write_text(tmp_path / "deep.html", text), DESKTOP, script=True)
    spent = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
    # Tenths of a second on a free core; a page that lays itself out again for each line takes minutes.
    assert spent["LayoutDuration"] + spent["RecalcStyleDuration"] + spent["ScriptDuration"] < 3
