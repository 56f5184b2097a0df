"""What a comparison claims: settings are told apart by paired trials, and of one seed nothing is told."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nervure.errors import FileError
from nervure.report.comparison import Outcome, TimedSetting
from nervure.report.comparison_report import MethodComparison, comparison_page, comparison_text, write_comparison_pages
from nervure.report.paired import PairedTest, leaders, some, student_p
from nervure.report.paper import load_found
from nervure.report.sweep_report import Sweep, sweep_page, sweep_text, write_sweep


def outcome(method: str, seed: int, accuracy: float, keep: float = 0.5, network: str = "net", **more: float) -> Outcome:
    key = f"{method}{network}{seed}{keep}"
    known = {"accuracy": accuracy, "validation": accuracy, "samples": 1000, "macs_kept": keep, "params_kept": keep}
    return Outcome(key, network, method, seed, keep, "macs", **(known | more))  # type: ignore[arg-type]


CLEAR = [outcome(m, s, a + 0.05 * s) for m, a in (("A", 0.7), ("B", 0.6)) for s in range(3)]
NOISY = [outcome(m, s, a) for m, v in (("A", (0.7, 0.6, 0.9)), ("B", (0.6, 0.8, 0.5))) for s, a in enumerate(v)]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 30])
def test_the_p_of_student_is_that_of_scipy(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, 1.0, 2.5, 4.0, 12.0, 100.0):
        assert student_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    assert student_p(math.inf, freedom) == pytest.approx(0, abs=1e-12)


def test_pairs_tell_apart_what_their_means_alone_would_not() -> None:
    """Seeds differ far more than methods do, yet the difference is the same in each."""
    (found,) = leaders(CLEAR)
    assert (found.method, found.level, found.pairs) == ("A", (), 3)
    assert found.tests["B"].mean.value == pytest.approx(0.1)
    (other,) = leaders(NOISY)
    assert (other.method, other.level) == ("A", ("B",))


def test_of_one_pair_nothing_is_told() -> None:
    assert math.isnan(PairedTest.of([0.5]).p)
    assert not PairedTest.of([0.5]).differs
    alone = MethodComparison("t", "B", tuple(o for o in CLEAR if not o.seed))
    assert "one pair: nothing can be told" in alone.headline
    assert alone.told_apart().rows[0][-1] == "nothing can be told"


def test_a_difference_within_one_sample_is_none_however_often_it_is_the_same() -> None:
    assert PairedTest.of([0.001, 0.001, 0.001]).differs
    assert not PairedTest.of([0.001, 0.001, 0.001], least=0.001).differs
    assert PairedTest.of([0.0, 0.0, 0.0]).p == 1.0


def test_networks_count_as_pairs_too() -> None:
    two = [outcome(m, 0, a, network=n) for n in ("x", "y") for m, a in (("A", 0.9), ("B", 0.5))]
    assert MethodComparison("t", "B", tuple(two)).told_apart().rows[0][3] == "2"


def test_the_headline_of_a_comparison_goes_budget_by_budget() -> None:
    both = (*CLEAR, *(replace(o, keep=0.25, key=f"{o.key}x") for o in NOISY))
    found = MethodComparison("t", "B", both)
    assert found.headline == "Best at 0.5 A, told apart from the rest; at 0.25 A, not told apart from B"
    assert MethodComparison("t", "B").headline == "No trial is done yet"
    assert "nothing to compare" in MethodComparison("t", "B", (CLEAR[0],)).headline
    assert some(["a"]) == "a"


def test_page_text_and_json_of_a_comparison_say_the_same(tmp_path: Path) -> None:
    failed = Outcome("k", "net", "C", 0, 0.5, "macs", error="no room")
    found = MethodComparison("T", "B", (*CLEAR, failed))
    html, text = comparison_page(found), comparison_text(found.outcomes, title="T", baseline="B")
    for said in (found.headline, "+10.00", "net, seed 0, C at 0.5: no room", "yes (p &lt; 0.001)"):
        assert said in html
        assert said.replace("&lt;", "\\<") in text
    paths = write_comparison_pages(found, tmp_path)
    assert {p.name for p in paths} == {
        *("comparison.html", "comparison.md", "comparison.json", "comparison-net.svg", "comparison-net-quality.svg"),
    }
    again = load_found(tmp_path / "comparison.json")
    assert isinstance(again, MethodComparison)
    assert comparison_page(again) == html
    with pytest.raises(FileError, match="this is not a comparison"):
        MethodComparison.from_json({"kind": "x"})


def test_the_chart_of_quality_has_a_mark_for_each_mean_and_a_point_for_each_seed() -> None:
    chart = MethodComparison("T", "B", tuple(CLEAR)).charts()["net quality"]
    assert chart.count('class="s ') == 6
    assert chart.count("seed 2") == 2
    one = MethodComparison("T", "B", tuple(o for o in CLEAR if not o.seed)).charts()["net quality"]
    assert 'class="s ' not in one


def swept(spread: float = 0.0, seeds: int = 3) -> Sweep:
    """A knee at A 0.4; B beside it is worse by 2 points on average."""
    settings = [("dense", 1.0, 0.9), ("A", 0.2, 0.6), ("A", 0.4, 0.86), ("B", 0.4, 0.84)]
    rows = [
        outcome(m, s, a + (spread * (s - 1) if m == "B" else 0.0), keep)
        for m, keep, a in settings
        for s in range(seeds)
    ]
    timed = {rows[0].key: TimedSetting({"1": 2.0}, {"1": 1.0})}
    return Sweep.of(rows, timed, title="T", recipe={"prune": {"budget": "macs"}}, folder="runs/x")


def test_a_sweep_says_when_its_suggestion_cannot_be_told_apart() -> None:
    assert swept().headline.startswith("Knee: A at 0.4")
    assert "told apart" not in swept().headline
    assert swept(spread=0.1).headline.endswith("not told apart from B at 0.4 (3 seeds)")
    assert swept(seeds=1).headline.endswith("one seed: whether others are as good cannot be told")
    for shown in (sweep_page(swept(0.1)), sweep_text(swept(0.1))):
        assert "nothing can be told" not in shown
        assert "Told apart" in shown
    assert "Told apart" not in sweep_text(swept(seeds=1))
    assert [row[0] for row in swept().told_apart().rows] == ["dense", "A at 0.2", "B at 0.4"]


def test_a_sweep_without_a_knee_says_who_leads() -> None:
    rows = [outcome(m, s, a + 0.2 * s * (m == "B"), 0.4) for m, a in (("A", 0.8), ("B", 0.55)) for s in range(3)]
    found = Sweep.of(rows, {}, title="T", recipe={}, folder="x")
    assert found.headline.endswith("best at 0.4 A, not told apart from B")


def test_a_sweep_is_read_back_whole(tmp_path: Path) -> None:
    write_sweep(swept(0.1), tmp_path)
    again = load_found(tmp_path / "sweep.json")
    assert isinstance(again, Sweep)
    assert sweep_page(again) == sweep_page(swept(0.1))
    assert again.to_json() == swept(0.1).to_json()
    old = {
        k: v
        for k, v in json.loads((tmp_path / "sweep.json").read_text()).items()
        if k not in ("outcomes", "sha256", "format")
    }
    with pytest.raises(FileError, match="sweep again"):
        Sweep.from_json(old)
