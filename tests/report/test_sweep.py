"""A sweep shows every setting, marks what is on the front, and needs no colour to be read."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nervure.report.charts import SHAPES
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.scatter import DASHES, Mark, scatter_chart
from nervure.report.sweep_report import Sweep, sweep_page, sweep_text, write_sweep

NASTY = "<b>|`x`"


def outcome(method: str, keep: float, seed: int, quality: float, share: float) -> Outcome:
    return Outcome(
        f"{method}{keep}{seed}",
        "net",
        method,
        seed,
        keep,
        "macs",
        accuracy=quality,
        validation=quality,
        macs=int(1000 * share),
        nonzero=int(500 * share),
        macs_kept=share,
        params_kept=share,
        shift={"noise": quality - 0.2, "fog": quality - 0.1},
    )


# The front is A at 0.2, A at 0.4, dense; A at 0.4 stands farthest above the chord. B is beaten everywhere.
OUTCOMES = [
    *(outcome("dense", 1.0, seed, 0.90 + 0.02 * seed, 1.0) for seed in (0, 1)),
    *(outcome("A", 0.2, seed, 0.60, 0.2) for seed in (0, 1)),
    *(outcome("A", 0.4, seed, 0.86, 0.4) for seed in (0, 1)),
    *(outcome(NASTY, 0.4, seed, 0.80 + 0.04 * seed, 0.41) for seed in (0, 1)),
]
TIMED = {o.key: TimedSetting({"64": 10 * o.macs_kept}, {"64": 1 / o.macs_kept}) for o in OUTCOMES}
RECIPE = {"model": {"name": "net"}, "prune": {"budget": "macs"}, "sweep": {"keeps": [0.4, 0.2]}}


def found(outcomes: list[Outcome] = OUTCOMES, **more: object) -> Sweep:
    return Sweep.of(outcomes, TIMED, title="Sweep of net", recipe=RECIPE, folder="runs/x", **more)


def test_settings_are_means_over_seeds() -> None:
    dense, *_, last = found().means
    assert found().candidates == found().means
    assert dense.accuracy.value == pytest.approx(0.91)
    assert dense.accuracy.deviation == pytest.approx(0.02 / math.sqrt(2))
    assert last.shifted.value == pytest.approx(0.82 - 0.15)
    assert (last.accuracy.n, last.macs, last.params) == (2, 410, 205)
    assert last.costs["latency, batch 64"].value == pytest.approx(0.41)


def test_front_and_knee_are_those_of_the_validation_images() -> None:
    assert [c.label for c in found().on_front()] == ["A at 0.2", "A at 0.4", "dense"]
    chosen = found().suggestion
    assert chosen is not None
    assert chosen.label == "A at 0.4"
    assert "Knee: A at 0.4 keeps 40 %" in found().headline
    assert [row[1] for row in found().table().rows] == ["front", "front", "suggested", ""]
    better = [replace(o, validation=0.95) if o.method == NASTY else o for o in OUTCOMES]
    assert [c.label for c in found(better).on_front()] == ["A at 0.2", "A at 0.4", f"{NASTY} at 0.4"]


def test_where_only_weights_are_masked_parameters_are_the_cost() -> None:
    masked = [replace(o, macs_kept=1.0) for o in OUTCOMES]
    assert (found().cost, found(masked).cost) == ("macs", "params")
    assert [c.label for c in found(masked).on_front()] == ["A at 0.2", "A at 0.4", "dense"]


def test_a_sweep_with_nothing_done_or_without_knee_says_so() -> None:
    assert found([]).suggestion is None
    assert "Nothing is done" in sweep_text(found([]))
    assert "No knee" in sweep_page(found(OUTCOMES[:4]))


def test_page_and_text_say_the_same_and_escape_what_is_foreign(tmp_path: Path) -> None:
    swept = found(failures={"net, seed 0, C at 0.1": f"no: {NASTY}"})
    html, text = sweep_page(swept), sweep_text(swept)
    assert NASTY not in html
    for cell in (
        "86.00",
        "410 (41 %)",
        "4.1 (2.44x)",
        "suggested",
        "seed 0, C at 0.1",
        "nervure sweep runs/x/recipe.toml",
    ):
        assert cell in html
        assert cell in text
    assert "nervure run runs/x/trials/A0.40/recipe.toml" in html
    paths = write_sweep(swept, tmp_path)
    assert {p.name for p in paths} >= {"sweep.html", "sweep.md", "sweep.json", "sweep-macs-clean.svg"}
    assert all(f"]({p.name})" in (tmp_path / "sweep.md").read_text() for p in paths if p.suffix == ".svg")
    plain = json.loads((tmp_path / "sweep.json").read_text())
    assert plain["front"] == ["A at 0.2", "A at 0.4", "dense"]
    assert plain["knee"] == "A at 0.4"
    assert plain["candidates"][0]["accuracy"]["value"] == pytest.approx(0.91)
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_there_is_a_chart_for_every_cost_and_quality() -> None:
    charts = found().charts()
    costs = ("macs", "params", "latency-batch-64")
    assert list(charts) == [f"{cost}-{quality}" for cost in costs for quality in ("clean", "under-shift")]
    bare = [replace(o, shift={}) for o in OUTCOMES]
    assert "macs-under-shift" not in found(bare).charts()
    for chart in charts.values():
        ElementTree.fromstring(chart)
        assert chart.count('class="r"') == 2  # in the chart, and in its legend


def test_series_are_told_apart_by_shape_and_dash_also_beyond_the_shapes_there_are() -> None:
    names = [f"m{i}" for i in range(2 * len(SHAPES))]
    svg = scatter_chart([Mark(n, x, i) for i, n in enumerate(names) for x in (0.0, 1.0)], title="t", x_label="x")
    dashes = re.findall(r'stroke-dasharray="([^"]*)" points="0,0 26,0"', svg)
    shapes = re.findall(r'transform="translate\(13.0 0.0\)" d="([^"]*)"', svg)
    assert len(set(zip(dashes, shapes, strict=True))) == len(names)
    assert set(dashes[: len(DASHES)]) == set(DASHES)


def test_error_bars_reach_a_deviation_to_each_side_and_lie_within_the_chart() -> None:
    svg = scatter_chart([Mark("a", 0, 50, 10), Mark("a", 1, 60)], title="t", x_label="x")
    (bar,) = re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)M', svg)
    middle = re.findall(r'translate\([\d.]+ ([\d.]+)\)" d="M', svg)[0]
    high, low = map(float, bar)
    assert 0 < high < float(middle) < low < 300
    assert low - float(middle) == pytest.approx(float(middle) - high, abs=0.2)
    assert scatter_chart([Mark("a", math.nan, 1)], title="t", x_label="x") == ""
