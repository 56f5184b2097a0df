"""Trials are compared by one measure with a direction: less perplexity is better, and pages of accuracies stay."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from nervure.errors import ArgumentError, FileError
from nervure.report.comparison_report import MethodComparison, comparison_page, comparison_text, write_comparison_pages
from nervure.report.outcome import Mean, Outcome, scale_of
from nervure.report.paired import leaders, paired_values
from nervure.report.sweep_report import Sweep, sweep_page, sweep_text

DIRECTIONS = {"perplexity": False, "accuracy": True, "loss": False}


def trial(method: str, keep: float, seed: int, perplexity: float) -> Outcome:
    return Outcome(
        f"{method}{keep}{seed}",
        "net",
        method,
        seed,
        keep,
        "macs",
        accuracy=0.5,
        loss=math.log(perplexity),
        validation=perplexity,
        samples=100,
        macs=int(1000 * keep),
        nonzero=int(500 * keep),
        macs_kept=keep,
        params_kept=keep,
        metrics={"perplexity": perplexity, "accuracy": 0.5},
        higher_is_better=DIRECTIONS,
    )


# The cheapest is the worst; A at 0.4 is the knee; B is beaten.
SCORES = {("dense", 1.0): 20.0, ("A", 0.2): 80.0, ("A", 0.4): 25.0, ("B", 0.4): 60.0}
TRIALS = [trial(m, k, s, p + (s if m != "B" else 2 * s)) for (m, k), p in SCORES.items() for s in (0, 1, 2)]


def swept(outcomes: list[Outcome] = TRIALS) -> Sweep:
    return Sweep.of(outcomes, {}, title="s", recipe={"prune": {"budget": "macs"}}, folder="f")


def test_less_perplexity_is_better_on_the_front_and_at_its_knee() -> None:
    found = swept()
    assert [c.label for c in found.on_front()] == ["A at 0.2", "A at 0.4", "dense"]
    assert found.suggestion is not None and found.suggestion.label == "A at 0.4"
    assert "perplexity 21 → 26" in found.headline and "accuracy" not in found.headline
    assert {"validation perplexity ↓", "perplexity ↓"} <= set(found.table().head)
    assert "Perplexity (lower is better)" in found.charts()["macs-clean"]
    assert found.told_apart().head[1] == "suggestion minus this (perplexity)"
    assert found.rivals()["B at 0.4"].mean.value == pytest.approx(-36)
    for page in (sweep_page(found), sweep_text(found)):
        assert "26 ± 1" in page and "images" not in page
    assert Sweep.from_json(found.to_json()) == found and found.to_json()["quality"]["name"] == "perplexity"


def test_less_perplexity_leads_in_a_comparison(tmp_path: Path) -> None:
    found = MethodComparison("t", "B", tuple(TRIALS))
    assert "Best at 0.4 A" in found.headline
    assert found.told_apart().rows[0][1:3] == ("A", "-36 ± 0.58")
    assert "Perplexity (lower is better) is that of the test split" in comparison_text(TRIALS, title="t", baseline="B")
    assert "in points" not in comparison_page(found)
    assert "minus B (perplexity)" in found.tables()["network net"].head
    assert "net: perplexity (lower is better)" in found.charts()["net quality"]
    write_comparison_pages(found, tmp_path)
    assert MethodComparison.from_json((tmp_path / "comparison.json").read_text()) == found
    assert "perplexity" in found.tables()["trials"].head


@pytest.mark.parametrize(("metric", "best"), [("quality", "A"), ("validation", "A"), ("loss", "A"), ("accuracy", "B")])
def test_a_measure_is_chosen_by_its_name(metric: str, best: str) -> None:
    rows = [replace(o, metrics={**o.metrics, "accuracy": 0.9}) if o.method == "B" else o for o in TRIALS]
    (found,) = leaders(rows, metric)
    assert found.method == best


def test_a_measure_that_is_not_there_is_told() -> None:
    with pytest.raises(ArgumentError, match="metric='bleu' was not measured; there is quality, validation, perplexity"):
        leaders(TRIALS, "bleu")
    written = MethodComparison("t", "B", tuple(TRIALS)).to_json() | {"metric": "bleu"}
    with pytest.raises(FileError, match="bleu"):
        MethodComparison.from_json(written)


def test_accuracies_stay_in_percent_and_points() -> None:
    plain = [replace(o, metrics={}, higher_is_better={}, accuracy=1 / o.validation, validation=0.5) for o in TRIALS]
    scale = scale_of(plain)
    assert (scale.name, scale.unit, scale.column, scale.axis) == ("accuracy", "points", "accuracy (%)", "accuracy (%)")
    assert scale.spread(Mean.of([0.5, 0.6])) == "55.00 ± 7.07" and scale.difference(Mean.of([0.1])) == "+10.00"
    assert swept(plain).table().head[1:4] == ("choice", "validation (%)", "accuracy (%)")
    assert "test images" in sweep_page(swept(plain))


def test_what_was_written_before_measures_had_directions_is_not_mixed_with_what_came_after() -> None:
    old = replace(TRIALS[0], higher_is_better={}, validation=0.5)
    scale = scale_of([old, TRIALS[1]], "validation")
    assert math.isnan(scale.of(old)) and scale.of(TRIALS[1]) == 21
    assert paired_values([old], [replace(old, metrics={"perplexity": 19.0})]) == [0.0]
