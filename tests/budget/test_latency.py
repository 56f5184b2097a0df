"""Tables of latencies with a known staircase: what is predicted, what is fitted, and what is cut."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nervure.budget import allocate
from nervure.budget.allocate import unit_multiple
from nervure.budget.latency_table import LatencyTable, Rates, Sample, fit_table, nonnegative
from nervure.errors import ArgumentError, BudgetError, FileError, PlanError
from nervure.graph.types import Graph, Group, TensorAxis, Units
from nervure.plan import Cut, Keep, Plan
from tests.graphs import chain, dense, residual

GRAPHS = (chain(8, 12, 10), residual(8, [6, 8]), dense(6, [4, 5]))


def invented(graph: Graph, step: int = 4, block: int = 1, **rates: float) -> LatencyTable:
    """A table that charges every family of operations alike."""
    known = Rates(**(rates or {"stairs": 1e-3, "first": 2e-3, "call": 1e-3}))
    families = {f"{w.op} {w.fixed} {len(w.axes)}": known for w in graph.work}
    return LatencyTable({"engine": "invented"}, 0.5, step, families, 0.01, block=block)


def keeping(graph: Graph, *sizes: int) -> Plan:
    """The first units of each prunable group stay."""
    cuts = [
        Cut(g.name, Keep.of(torch.arange(g.size) < size))
        for g, size in zip(graph.prunable, sizes, strict=True)
        if size < g.size
    ]
    return Plan(tuple(cuts), graph.fingerprint)


def sizes_in(graph: Graph, plan: Plan) -> list[int]:
    kept = {cut.group: cut.keep.count for cut in plan.cuts}
    return [kept.get(g.name, g.size) for g in graph.prunable]


def scored(graph: Graph, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) + 0.2 for g in graph.prunable}


def test_a_prediction_is_the_sum_of_what_operations_cost_on_the_stairs() -> None:
    graph = chain(8, 12, 10)  # 3 -> 8 -> 12 -> 10
    table = replace(invented(graph, step=4, stairs=1.0, work=0.5), dense=2.0, rest=5.0)

    def cost(first: int, second: int) -> float:
        up = {size: -(-size // 4) * 4 for size in (first, second)}
        stairs = 3 * up[first] + up[first] * up[second] + up[second] * 12
        return stairs + 0.5 * (3 * first + first * second + second * 10) + 5

    for first, second in ((8, 12), (5, 12), (4, 9), (1, 1)):
        expected = 2.0 * cost(first, second) / cost(8, 12)
        assert table.predict(graph, keeping(graph, first, second)) == pytest.approx(expected)


def test_outputs_between_two_blocks_cost_more() -> None:
    graph = chain(
        8, 12, 10
    )  # 3 -> 8 -> 12 -> 10; no output of the last layer is cut, but it is no multiple of 4 either
    table = replace(invented(graph, step=1, block=4, work=1.0, ragged=2.0), dense=1.0, rest=0.0)

    def cost(first: int, second: int) -> float:
        work = {first: 3 * first, second: first * second}
        return sum(w * (3 if size % 4 else 1) for size, w in work.items()) + 3 * second * 10

    for first, second in ((8, 12), (4, 12), (5, 12), (8, 9), (7, 11)):
        expected = cost(first, second) / cost(8, 12)
        assert table.predict(graph, keeping(graph, first, second)) == pytest.approx(expected)


@given(st.sampled_from(GRAPHS), st.data())
def test_more_channels_are_never_predicted_to_be_faster(graph: Graph, data: st.DataObject) -> None:
    table = invented(graph, stairs=1.0, work=0.1, first=0.5, second=0.2)
    small = [data.draw(st.integers(1, g.size)) for g in graph.prunable]
    large = [data.draw(st.integers(low, g.size)) for low, g in zip(small, graph.prunable, strict=True)]
    assert table.predict(graph, keeping(graph, *small)) <= table.predict(graph, keeping(graph, *large)) + 1e-12


def test_a_table_survives_json_and_nothing_else_is_read() -> None:
    table = replace(invented(GRAPHS[0]), samples=(Sample({"0": 3}, (), 0.4),), checks=(Sample({}, ("b",), 0.9),))
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    with pytest.raises(FileError, match="no|not a table"):
        LatencyTable.from_json({"key": {}})
    with pytest.raises(FileError, match="format 99"):
        LatencyTable.from_json({"format": 99})


def test_a_table_of_another_network_is_refused() -> None:
    graph = chain(8, 12, 10)
    other = replace(graph, work=tuple(replace(w, fixed=7) for w in graph.work))
    with pytest.raises(PlanError, match="another network"):
        invented(graph).predict(other, Plan())


@pytest.mark.parametrize("step", [1, 8, 16])
def test_a_fit_finds_the_step_and_predicts_what_it_has_not_seen(step: int) -> None:
    graph = chain(48, 64, 40, 64, 10)
    truth = invented(graph, step, stairs=1e-6, first=2e-5, call=1e-3)
    lot = np.random.default_rng(0)
    plans = [keeping(graph, *(int(lot.integers(1, g.size + 1)) for g in graph.prunable)) for _ in range(50)]
    ratios = [truth.predict(graph, plan) / truth.dense for plan in plans]
    samples = [Sample.of(plan, ratio) for plan, ratio in zip(plans[:30], ratios, strict=False)]
    table = fit_table(graph, truth.key, truth.dense, samples)
    assert table.step == step
    predicted = [table.predict(graph, plan) / truth.dense for plan in plans[30:]]
    assert predicted == pytest.approx(ratios[30:], rel=0.06)
    assert table.error < 0.03
    assert table.predict(graph, Plan()) == pytest.approx(truth.dense)


def test_a_fit_finds_the_block_and_plans_keep_to_it() -> None:
    graph = chain(48, 64, 40, 64, 10)
    truth = invented(graph, 8, 8, stairs=1e-6, ragged=2e-6, call=1e-4)
    lot = np.random.default_rng(0)
    steps = [(8, 1)[number % 2] for number in range(40)]
    sizes = [[int(lot.integers(1, g.size // step + 1)) * step for g in graph.prunable] for step in steps]
    plans = [keeping(graph, *each) for each in sizes]
    samples = [Sample.of(plan, truth.predict(graph, plan) / truth.dense) for plan in plans]
    table = fit_table(graph, truth.key, truth.dense, samples)
    assert table.block == 8
    assert table.error < 0.03
    plan = allocate(graph, scored(graph, 0), keep=0.75, budget="latency", table=table)
    assert truth.predict(graph, plan) <= 0.8 * truth.dense
    assert sum(size % 8 > 0 for size in sizes_in(graph, plan)) <= 1


def test_the_solution_of_least_squares_is_the_best_that_is_not_negative() -> None:
    lot = np.random.default_rng(1)
    for _ in range(20):
        design, target = lot.normal(size=(12, 6)), lot.normal(size=12)
        x = nonnegative(design, target)
        slope = design.T @ (design @ x - target)
        assert (x >= 0).all()
        # Karush, Kuhn, Tucker: no way to go is downhill.
        assert (slope >= -1e-7).all()
        assert np.abs(slope * x).max() < 1e-7


def best_by_brute_force(
    graph: Graph, scores: dict[str, Tensor], table: LatencyTable, limit: float, multiple: int
) -> float:
    """The highest kept score of all networks within ``limit``."""
    allowed = [[k for k in range(1, g.size + 1) if k == g.size or k % multiple == 0] for g in graph.prunable]
    ranked = [scores[g.name].sort(descending=True).values for g in graph.prunable]
    within = (
        sizes
        for sizes in itertools.product(*allowed)
        if table.predict(graph, keeping(graph, *sizes)) <= limit * table.dense
    )
    return max(sum(float(r[:k].sum()) for r, k in zip(ranked, sizes, strict=True)) for sizes in within)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("keep", [0.6, 0.75])
def test_plans_keep_nearly_the_best_score_that_brute_force_finds_and_mostly_just_that(
    keep: float, multiple: int
) -> None:
    same = []
    for graph, seed in itertools.product((chain(6, 8, 10), residual(6, [4, 6])), range(3)):
        table, scores = invented(graph), scored(graph, seed)
        plan = allocate(graph, scores, keep=keep, budget="latency", table=table, multiple=multiple)
        keeps = {cut.group: cut.keep.tensor() for cut in plan.cuts}
        got = sum(float(s[keeps[n]].sum() if n in keeps else s.sum()) for n, s in scores.items())
        best = best_by_brute_force(graph, scores, table, keep, multiple)
        assert got >= 0.89 * best
        same.append(got > best - 1e-5)
    assert sum(same) >= len(same) / 2


@given(
    st.sampled_from(GRAPHS),
    st.floats(0.5, 0.99),
    st.integers(0, 9),
    st.sampled_from(["global", "layer"]),
    st.sampled_from([1, 2, 4]),
)
def test_a_latency_is_never_exceeded_and_nothing_more_fits(
    graph: Graph, keep: float, seed: int, scope: str, multiple: int
) -> None:
    table = invented(graph, stairs=1e-3, first=2e-3)
    try:
        plan = allocate(
            graph, scored(graph, seed), keep=keep, budget="latency", table=table, scope=scope, multiple=multiple
        )
    except BudgetError as error:
        assert error.keep is not None and error.keep > keep
        return
    sizes = sizes_in(graph, plan)
    assert plan.reached["keep"] <= keep + 1e-9
    assert plan.reached["seconds"] == pytest.approx(plan.reached["keep"] * table.dense)
    for place, group in enumerate(graph.prunable):
        more = list(sizes)
        more[place] = min(group.size, (sizes[place] // multiple + 1) * multiple)
        if more != sizes:
            assert table.predict(graph, keeping(graph, *more)) > keep * table.dense


def test_channels_that_cost_nothing_stay() -> None:
    graph = chain(32, 48, 10)
    plan = allocate(graph, scored(graph, 0), keep=0.6, budget="latency", table=invented(graph, 16, stairs=1e-3))
    assert plan.cuts
    assert all(cut.keep.count % 16 == 0 for cut in plan.cuts)


def test_a_latency_that_cannot_be_met_is_told_with_the_nearest() -> None:
    graph = chain(8, 12, 10)
    with pytest.raises(BudgetError, match=r"smallest keep that can be met is 0\.\d+") as caught:
        allocate(graph, scored(graph, 0), keep=0.01, budget="latency", table=invented(graph), minimum=4)
    assert caught.value.keep is not None
    allocate(graph, scored(graph, 0), keep=caught.value.keep, budget="latency", table=invented(graph), minimum=4)


def test_a_latency_without_a_table_is_refused() -> None:
    graph = chain(8, 10)
    with pytest.raises(ArgumentError, match="give table="):
        allocate(graph, scored(graph, 0), keep=0.5, budget="latency")


@pytest.mark.parametrize(
    ("kind", "width", "multiple", "units"),
    [("heads", 64, 16, 1), ("heads", 8, 16, 2), ("heads", 6, 16, 8), ("blocks", 4, 1, 1), ("channels", 1, 16, 16)],
)
def test_heads_bring_all_of_their_channels(kind: str, width: int, multiple: int, units: int) -> None:
    slot = TensorAxis("out.weight", 1, "reader", Units(np.repeat(np.arange(6), width)))
    assert unit_multiple(Group("attention", 6, kind, (slot,)), multiple) == units
