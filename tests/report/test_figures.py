"""Figures that a reader checks with a pocket calculator: milliseconds and factors, losses and their ratios."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nervure.evaluation import Latency, Metrics, Shifted, Timing
from nervure.plan import Plan
from nervure.report import Report, Row, to_html, to_markdown
from nervure.report.comparison import Mean, MeanOutcome
from nervure.report.shift_section import caption, table
from nervure.report.sweep_report import Sweep
from nervure.report.tables import comparison, speed, stays

times = st.floats(1e-3, 5e3)
GROUP = "[0-9.e+-]+"


def report(rows: dict[str, Row], **rest: Any) -> Report:
    return Report(title="", method="", recipe={}, plan=Plan((), "abc"), rows=rows, **rest)


@given(dense=times, own=times, paired=times)
def test_the_factor_of_a_table_is_the_quotient_of_its_milliseconds(dense: float, own: float, paired: float) -> None:
    places = ("1", "1 in openvino")
    rows = {
        "dense": Row(latency=dict.fromkeys(places, dense), speedup=dict.fromkeys(places, 1.0)),
        "pruned": Row(latency=dict.fromkeys(places, own), speedup=dict.fromkeys(places, paired)),
    }
    found = report(rows)
    cells = [(comparison(found).rows[0][-1], comparison(found).rows[1][-1]), speed(found).rows[1][-2:]]
    for first, second in cells:
        whole, part, factor = (
            float(re.findall(GROUP, cell)[at]) for cell, at in ((first, 0), (second, 0), (second, 1))
        )
        assert factor == pytest.approx(whole / part, abs=0.0051)
        assert stays(found)["latency, batch 1"] == pytest.approx(part / whole)
        if claim := re.search(f"({GROUP})x", found.headline):
            assert float(claim[1]) == pytest.approx(whole / part, abs=0.051)


@given(dense=times, own=times)
def test_the_factor_of_a_sweep_is_the_quotient_of_its_milliseconds(dense: float, own: float) -> None:
    def mean(method: str, latency: float) -> MeanOutcome:
        costs = {"macs": Mean.of([0.5]), "params": Mean.of([0.5]), "latency, batch 1": Mean.of([own / dense])}
        good = Mean.of([0.9])
        return MeanOutcome(method, 0.5, good, good, good, costs, 1.0, 1.0, {"1": Mean.of([latency])}, method)

    rows = Sweep("", {}, "", (mean("dense", dense), mean("Taylor", own))).table().rows
    whole, part = (float(re.findall(GROUP, row[-2])[0]) for row in rows)
    assert float(re.findall(GROUP, rows[1][-2])[1]) == pytest.approx(whole / part, abs=0.0051)


@given(dense=st.floats(1e-4, 10), own=st.floats(1e-4, 10))
def test_the_last_column_of_latencies_is_the_quotient_of_the_medians(dense: float, own: float) -> None:
    timings = [Timing(n, 1, 1, t, (t, t), 7.0, (7.0, 7.0), 3) for n, t in (("dense", dense), ("own", own))]
    first, second = (line.split() for line in str(Latency(tuple(timings))).splitlines()[1:])
    assert float(second[-1]) == pytest.approx(float(second[4]) / float(first[4]), abs=0.00051)


def shifted(clean: float, samples: int = 1000, **accuracies: float) -> Shifted:
    def of(accuracy: float) -> Metrics:
        return Metrics(accuracy, None, 1.0, 0.0, 0.5, (accuracy,), samples, (0.0, 1.0))

    return Shifted(of(clean), {(name, 1): of(accuracy) for name, accuracy in accuracies.items()})


def test_a_corruption_that_costs_the_reference_nothing_does_not_rule_the_corruption_errors() -> None:
    dense = shifted(0.9, fog=0.8999, noise=0.5)
    sparse = shifted(0.88, fog=0.86, noise=0.4)
    assert sparse.relative_mce(dense) == pytest.approx((0.02 + 0.48) / (0.0001 + 0.4))
    assert shifted(1, fog=0.5, noise=0.4).mce(shifted(1, fog=0.9999, noise=0.5)) == pytest.approx(1.1 / 0.5001)


def test_what_is_lost_within_the_standard_error_is_no_reference() -> None:
    dense = shifted(0.9, fog=0.89, noise=0.89)
    assert dense.gap_error == pytest.approx(((0.9 * 0.1 + 0.89 * 0.11) / 1000) ** 0.5)
    assert math.isnan(shifted(0.8, fog=0.5, noise=0.5).relative_mce(dense))
    many = shifted(0.9, 100_000, fog=0.89, noise=0.89)
    assert shifted(0.8, fog=0.5, noise=0.5).relative_mce(many) == pytest.approx(30)


def test_a_ratio_that_has_no_reference_is_a_dash_that_is_explained() -> None:
    network = {"clean": 0.9, "mean": 0.9, "interval": [0.8, 1.0], "mce": 1.0, "relative_mce": None, "accuracy": {}}
    shift = {"severities": [1], "samples": 100, "networks": {"dense": network, "pruned": network}}
    found = report({"dense": Row(), "pruned": Row()}, shift=shift)
    assert table(found).rows[-1] == ("relative mCE, dense = 100", "–", "–")
    assert "standard error" in caption(found)


def test_the_headline_names_the_best_of_several_speed_ups_as_such() -> None:
    times = {"1": 2.0, "64": 8.0}
    rows = {"dense": Row(latency=times), "pruned": Row(latency={"1": 1.5, "64": 2.0})}
    assert "up to 4.0x faster at batch 64" in report(rows).headline


def test_times_of_networks_of_the_same_shapes_are_said_to_differ_by_noise() -> None:
    pruned, other = Row(params=5, macs=7, latency={"1": 2.0}), Row(params=6, macs=7, latency={"1": 2.0})
    rows = {"dense": Row(latency={"1": 3.0}), "pruned": pruned}
    for lot, told in ((pruned, True), (other, False)):
        found = report({**rows, "random": lot})
        assert ("noise" in to_markdown(found)) == ("noise" in to_html(found)) == told
