"""Of one budget and one seed a sweep says who is best, with the intervals that the test samples leave open."""

from dataclasses import replace

import pytest

from nervure.evaluation import wilson_interval
from nervure.report.comparison import TimedSetting
from nervure.report.outcome import Outcome
from nervure.report.sweep_report import Sweep, sweep_page

RECIPE = {"prune": {"budget": "macs"}, "recover": {"epochs": 0}}


def outcome(method: str, accuracy: float, keep: float = 0.2, seed: int = 0) -> Outcome:
    costs = {"macs": int(1000 * keep), "macs_kept": keep, "params_kept": keep, "nonzero": int(500 * keep)}
    key = f"{method}{keep}{seed}"
    return Outcome(
        key, "net", method, seed, keep, "macs", accuracy=accuracy, validation=accuracy, samples=10_000, **costs
    )


DENSE, BEST = outcome("dense", 0.88, 1.0), outcome("A refitted", 0.86)
TRIALS = [DENSE, BEST, outcome("B refitted", 0.855), outcome("C refitted", 0.83), outcome("A as cut", 0.1)]
PLACE = "16 in onnxruntime"
TIMED = {DENSE.key: TimedSetting({PLACE: 2.0}, {PLACE: 1.0}), BEST.key: TimedSetting({PLACE: 0.5}, {PLACE: 4.0})}


def swept(trials: list[Outcome], recipe: dict[str, dict[str, object]] = RECIPE) -> Sweep:
    return Sweep.of(trials, TIMED, title="s", recipe=recipe, folder="f")


def test_the_headline_names_the_best_and_whose_interval_overlaps() -> None:
    assert swept(TRIALS).headline == (
        "80 % of the multiply-accumulates removed without training: A refitted, accuracy 88.0 → 86.0 %, 4.0x faster "
        "(batch 16 in onnxruntime), its interval overlaps that of B refitted, the others 83.0 to 10.0 %"
    )


def test_what_a_budget_is_missed_by_brings_nothing_onto_the_front() -> None:
    cheaper = replace(outcome("B refitted", 0.5), macs_kept=0.1995)
    found = swept([DENSE, BEST, cheaper])
    assert [mean.method for mean in found.on_front()] == ["A refitted", "dense"]


def test_of_one_seed_there_is_no_table_of_what_is_told_apart() -> None:
    assert "<h2>Told apart" not in sweep_page(swept(TRIALS))


def test_a_recovery_is_not_called_no_training() -> None:
    assert "without training" not in swept(TRIALS, RECIPE | {"recover": {"epochs": 2}}).headline


def test_of_one_seed_tables_and_charts_show_the_interval_of_so_many_test_samples() -> None:
    found = swept(TRIALS)
    assert found.means[1].interval == wilson_interval(8600, 10_000)
    table = found.table()
    assert table.rows[1][table.head.index("accuracy (%)")] == "86.00 (85.3 to 86.7)"
    charts = found.charts()
    assert "A as cut" in charts["by-setting"] and 'class="e"' in charts["by-setting"]
    assert charts["by-setting"] in sweep_page(found)
    assert "macs-clean" not in charts


def test_of_several_seeds_or_budgets_there_is_the_front_as_ever() -> None:
    more = [*TRIALS, *(replace(t, key=f"{t.key}again", seed=1) for t in TRIALS)]
    assert swept(more).means[1].interval is None
    assert "removed" not in swept(more).headline
    budgets = [*TRIALS, outcome("A refitted", 0.84, 0.1)]
    assert "removed" not in swept(budgets).headline
    assert "macs-clean" in swept(budgets).charts() and "by-setting" not in swept(budgets).charts()


@pytest.mark.parametrize("metrics", [{"accuracy": 0.86}])
def test_what_counts_tokens_has_no_interval_of_samples(metrics: dict[str, float]) -> None:
    assert swept([replace(t, metrics=metrics) for t in TRIALS]).means[1].interval is None
