"""Exactly what was asked, never more than the budget, never an empty group."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nervure.budget import allocate, top
from nervure.budget.allocate import units_of_block
from nervure.budget.cost_model import CostModel
from nervure.errors import ArgumentError, BudgetError, ScoreError
from nervure.graph.repeats import repeated_groups
from nervure.graph.types import ConfigSize, Graph, Group, TensorAxis, Units
from nervure.plan import Plan
from tests.graphs import chain, dense, heads, residual

sizes = st.integers(1, 12)
graphs = st.one_of(
    st.lists(sizes, min_size=2, max_size=5).map(lambda s: chain(*s, 8, 10)),
    st.tuples(st.integers(2, 12), st.lists(sizes, min_size=1, max_size=4)).map(lambda a: residual(*a)),
    st.tuples(st.integers(2, 12), st.lists(sizes, min_size=1, max_size=4)).map(lambda a: dense(*a)),
    st.tuples(st.integers(2, 4), st.integers(2, 5)).map(lambda a: heads(*a)),
)
keeps = st.floats(0.05, 1.0)
scopes = st.sampled_from(["global", "layer"])
costs = st.sampled_from(["params", "macs"])


def scored(graph: Graph, seed: int = 0, levels: int = 3) -> dict[str, Tensor]:
    """Scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randint(levels, (g.size,), generator=generator).float() for g in graph.prunable}


def masks(graph: Graph, plan: Plan) -> dict[str, Tensor]:
    whole = {g.name: torch.ones(g.size, dtype=torch.bool) for g in graph.prunable}
    return whole | {cut.group: cut.keep.tensor() for cut in plan.cuts}


def counts(graph: Graph, plan: Plan) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks(graph, plan).items()}


def cost(graph: Graph, budget: str, keeps: Mapping[str, Tensor] | None = None) -> int:
    return graph.params(keeps) if budget == "params" else graph.macs(keeps)


@given(st.lists(st.integers(0, 3), max_size=20), st.data())
def test_top_keeps_exactly_k_and_the_first_of_equals(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    kept = top(torch.tensor(values, dtype=torch.float32), k)
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert kept.nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("k", [-1, 4, 1.0, True])
def test_top_refuses_a_k_that_cannot_be(k: int) -> None:
    with pytest.raises(ArgumentError, match=f"of 3 scores|got {k}"):
        top(torch.zeros(3), k)


def test_top_refuses_nan() -> None:
    with pytest.raises(ScoreError, match="1 of 2"):
        top(torch.tensor([0.0, float("nan")]), 1)


@given(graphs, st.integers(0, 9))
def test_the_ledger_counts_as_the_graph_does(graph: Graph, seed: int) -> None:
    keeps = {name: value > 0 for name, value in scored(graph, seed).items()}
    ledger = CostModel.of(graph)
    flat = np.concatenate([keeps[g.name].numpy() for g in graph.prunable])
    assert ledger.price(ledger.params, flat) == graph.params(keeps)
    assert ledger.price(ledger.macs, flat) == graph.macs(keeps)


@given(graphs, keeps, st.integers(0, 9), st.integers(1, 3))
def test_channels_over_the_whole_network_are_exact_also_with_ties(
    graph: Graph, keep: float, seed: int, minimum: int
) -> None:
    plan = allocate(graph, scored(graph, seed), keep=keep, minimum=minimum)
    floors = {g.name: min(g.size, minimum) for g in graph.prunable}
    total = sum(g.size for g in graph.prunable)
    kept = counts(graph, plan)
    assert sum(kept.values()) == max(round(keep * total), sum(floors.values()))
    assert all(kept[name] >= floor for name, floor in floors.items())


@given(graphs, keeps, st.integers(0, 9), st.integers(1, 3))
def test_channels_of_each_layer_are_exact_also_with_ties(graph: Graph, keep: float, seed: int, minimum: int) -> None:
    scores = scored(graph, seed)
    plan = allocate(graph, scores, keep=keep, scope="layer", minimum=minimum)
    for group in graph.prunable:
        k = max(round(keep * group.size), min(group.size, minimum))
        assert masks(graph, plan)[group.name].equal(top(scores[group.name], k))


@given(graphs, keeps, st.integers(0, 9))
def test_over_the_whole_network_no_removed_unit_outranks_one_that_stays(graph: Graph, keep: float, seed: int) -> None:
    scores = scored(graph, seed)
    kept = masks(graph, allocate(graph, scores, keep=keep))
    removed = [float(scores[n][~kept[n]].max()) for n in scores if not kept[n].all()]
    # The best unit of each group is its floor: it stays whatever it scores.
    free = [scores[n][kept[n]].sort(descending=True).values[1:] for n in scores]
    assert max(removed, default=-1.0) <= min((float(v.min()) for v in free if len(v)), default=9.0)


@given(graphs, keeps, st.integers(0, 9), scopes, costs, st.integers(1, 3), st.sampled_from([1, 1, 2, 4]))
def test_a_cost_is_never_exceeded_and_nothing_more_fits(
    graph: Graph, keep: float, seed: int, scope: str, budget: str, minimum: int, multiple: int
) -> None:
    limit = keep * cost(graph, budget)
    try:
        plan = allocate(
            graph, scored(graph, seed), keep=keep, budget=budget, scope=scope, minimum=minimum, multiple=multiple
        )
    except BudgetError:
        return
    kept = masks(graph, plan)
    assert cost(graph, budget, kept) <= limit
    assert all(n >= min(len(kept[name]), minimum) for name, n in counts(graph, plan).items())
    if multiple > 1:
        return
    for name, mask in kept.items():
        for unit in (~mask).nonzero().flatten().tolist():
            more = mask.clone()
            more[unit] = True
            assert cost(graph, budget, kept | {name: more}) > limit, f"unit {unit} of {name} still fits"


@given(graphs, keeps, scopes, costs)
def test_the_smallest_keep_in_the_message_can_be_met(graph: Graph, keep: float, scope: str, budget: str) -> None:
    try:
        allocate(graph, scored(graph), keep=keep, budget=budget, scope=scope, minimum=2)
    except BudgetError as error:
        smallest = float(str(error).split()[-1].rstrip("."))
        assert keep < smallest <= 1
        allocate(graph, scored(graph), keep=smallest, budget=budget, scope=scope, minimum=2)


@given(graphs, keeps, scopes, st.sampled_from(["channels", "params", "macs"]), st.sampled_from([2, 3, 8]))
def test_sizes_are_multiples_where_the_group_allows(
    graph: Graph, keep: float, scope: str, budget: str, multiple: int
) -> None:
    try:
        plan = allocate(graph, scored(graph), keep=keep, budget=budget, scope=scope, multiple=multiple)
    except BudgetError:
        return
    assert all(cut.keep.count % multiple == 0 for cut in plan.cuts)


@given(keeps, st.integers(0, 9), st.sampled_from(["global", "layer", "uniform"]), costs)
def test_left_open_the_budget_is_used_as_well_as_by_free_sizes(keep: float, seed: int, scope: str, budget: str) -> None:
    graph = chain(24, 40, 160, 10)
    ask = {"keep": keep, "budget": budget, "scope": scope}
    try:
        plan, free = (allocate(graph, scored(graph, seed), **ask, multiple=m) for m in (None, 1))
    except BudgetError:
        return
    assert cost(graph, budget, masks(graph, plan)) <= keep * cost(graph, budget)
    assert plan.reached["keep"] >= min(0.97 * keep, free.reached["keep"])


def test_left_open_wide_groups_keep_whole_blocks_or_finer_ones_where_the_budget_would_not_be_used() -> None:
    graph = chain(256, 10)
    (size,) = counts(graph, allocate(graph, scored(graph), keep=0.87, budget="macs", multiple=None)).values()
    (free,) = counts(graph, allocate(graph, scored(graph), keep=0.87, budget="macs")).values()
    assert free % 4 and size % 4 == 0 and free - size < 4 and size % 8
    wide = chain(256, 256, 256, 10)
    assert all(
        n % 8 == 0 for n in counts(wide, allocate(wide, scored(wide), keep=0.5, budget="macs", multiple=None)).values()
    )


def test_left_open_a_budget_that_free_sizes_meet_is_met() -> None:
    graph = chain(128, 128, 10)
    for keep in (0.05, 0.04, 0.3):
        minimum = 65 if keep == 0.3 else 17
        asked = {"keep": keep, "budget": "params", "minimum": minimum}
        free = allocate(graph, scored(graph), **asked, multiple=1).reached["keep"]
        assert allocate(graph, scored(graph), **asked, multiple=None).reached["keep"] >= 0.97 * min(free, keep)
    with pytest.raises(BudgetError, match=r"minimum=65, multiple=1\)"):
        allocate(graph, scored(graph), keep=0.1, budget="params", minimum=65, multiple=None)


@pytest.mark.parametrize(("width", "units"), [(64, 1), (20, 2), (12, 2), (3, 1)])
def test_left_open_heads_make_whole_blocks(width: int, units: int) -> None:
    slot = TensorAxis("out.weight", 1, "reader", Units(np.repeat(np.arange(8), width)))
    assert units_of_block(Group("attention", 8, "heads", (slot,))) == units


@given(graphs, keeps, scopes, st.sampled_from(["channels", "params", "macs"]))
def test_what_the_plan_says_it_reaches_is_what_it_reaches(graph: Graph, keep: float, scope: str, budget: str) -> None:
    scores = scored(graph)
    before = {name: value.clone() for name, value in scores.items()}
    try:
        plan = allocate(graph, scores, keep=keep, budget=budget, scope=scope)
    except BudgetError:
        return
    kept = masks(graph, plan)
    channels = sum(counts(graph, plan).values())
    whole = {"channels": sum(g.size for g in graph.prunable), "params": graph.params(), "macs": graph.macs()}
    reached = {"channels": channels, "params": graph.params(kept), "macs": graph.macs(kept)}
    assert plan.reached == {"keep": reached[budget] / whole[budget], **reached}
    assert plan.asked == {"budget": budget, "keep": keep, "scope": scope}
    assert plan.fingerprint == graph.fingerprint
    assert all(0 < cut.keep.count < cut.keep.size for cut in plan.cuts)
    assert Plan.from_json(plan.to_json()) == plan
    assert all(before[name].equal(value) for name, value in scores.items())
    assert allocate(graph, scores, keep=keep, budget=budget, scope=scope) == plan


@pytest.mark.parametrize("budget", ["channels", "params", "macs"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_keeping_everything_is_the_empty_plan(budget: str, scope: str) -> None:
    graph = residual(8, [4, 6])
    assert not allocate(graph, scored(graph), keep=1, budget=budget, scope=scope)
    assert not allocate(chain(10), {}, keep=1.0, budget=budget, scope=scope)


@given(st.integers(0, 9), costs)
def test_layers_lose_about_the_same_fraction(seed: int, budget: str) -> None:
    graph = chain(40, 20, 80, 10)
    kept = counts(graph, allocate(graph, scored(graph, seed), keep=0.4, budget=budget, scope="layer"))
    fractions = [kept[g.name] / g.size for g in graph.prunable]
    assert max(fractions) - min(fractions) <= 0.15


def test_the_budget_is_used_up_on_a_network_with_fine_steps() -> None:
    graph = residual(64, [64] * 8)
    plan = allocate(graph, scored(graph, levels=1000), keep=0.5, budget="macs")
    assert 0.495 < plan.reached["keep"] <= 0.5


def test_a_hundred_groups_of_concatenations_are_allocated_in_few_steps() -> None:
    graph = dense(24, [12] * 60)
    plan = allocate(graph, scored(graph, levels=1000), keep=0.3, budget="macs")
    assert 0.295 < plan.reached["keep"] <= 0.3


def test_a_group_of_low_scores_is_thinned_but_never_emptied() -> None:
    graph = chain(4, 4, 10)
    plan = allocate(graph, {"0": torch.arange(4.0), "1": torch.arange(4.0) + 100}, keep=0.5)
    assert counts(graph, plan) == {"0": 1, "1": 3}


def test_scores_of_pinned_groups_are_ignored() -> None:
    graph = chain(4, 10)
    plan = allocate(graph, {"0": torch.arange(4.0), "1": torch.zeros(10)}, keep=0.5)
    assert [cut.group for cut in plan.cuts] == ["0"]


def test_a_network_without_prunable_groups_says_why() -> None:
    with pytest.raises(BudgetError, match="'0' \\(it is the output\\)"):
        allocate(chain(10), {}, keep=0.5)
    with pytest.raises(BudgetError, match="no groups"):
        allocate(Graph(groups=()), {}, keep=0.5)


def test_a_budget_below_the_floors_is_refused_with_the_smallest_that_works() -> None:
    graph = chain(8, 8, 10)
    with pytest.raises(BudgetError, match="smallest keep that can be met is 0"):
        allocate(graph, scored(graph), keep=0.01, budget="params", minimum=4)


def test_a_budget_in_macs_of_a_graph_that_counts_none_is_refused() -> None:
    graph = chain(8, 10)
    silent = Graph(groups=graph.groups, axes=graph.axes, tensors=graph.tensors, parameters=graph.parameters)
    with pytest.raises(BudgetError, match="counts no macs"):
        allocate(silent, scored(graph), keep=0.5, budget="macs")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "'0' .* has no scores"),
        ({"0": torch.zeros(3)}, "shape \\(3,\\)"),
        ({"0": torch.tensor([0.0, 1.0, float("nan"), 2.0])}, "1 of 4 values are NaN"),
        ({"0": torch.zeros(4), "zero": torch.zeros(4)}, "'zero', which is no group"),
    ],
)
def test_wrong_scores_are_refused(scores: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        allocate(chain(4, 10), scores, keep=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0.0},
        {"keep": 1.1},
        {"keep": float("nan")},
        {"keep": True},
        {"keep": "0.5"},
        {"keep": 0.5, "budget": "flops"},
        {"keep": 0.5, "scope": "local"},
        {"keep": 0.5, "minimum": 0},
        {"keep": 0.5, "multiple": 1.5},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    graph = chain(4, 10)
    with pytest.raises(ArgumentError, match=list(wrong)[-1]):
        allocate(graph, scored(graph), **wrong)


@given(st.integers(2, 9), st.integers(2, 9), keeps, st.sampled_from(["channels", "params", "macs"]), st.integers(1, 3))
def test_what_repeats_by_layer_keeps_the_same_number(
    inner: int, other: int, keep: float, budget: str, multiple: int
) -> None:
    graph = renamed(chain(inner, inner, inner, other, 8, 10))
    floors = {"layers.1.up": min(2, inner)}
    options = {"keep": keep, "budget": budget, "scope": "uniform", "multiple": multiple, "floors": floors}
    try:
        plan = allocate(graph, scored(graph), **options)  # type: ignore[arg-type]
    except BudgetError:
        return
    left = counts(graph, plan)
    families = repeated_groups(graph, graph.prunable)
    assert any(len(names) >= 3 for names in families)
    for names in families:
        assert len({left[name] for name in names}) == 1
    if budget != "channels":
        assert cost(graph, budget, masks(graph, plan)) <= keep * cost(graph, budget)


def renamed(graph: Graph) -> Graph:
    """The groups of a chain as those of layers."""
    names = {group.name: f"layers.{i}.up" for i, group in enumerate(graph.groups)}
    axes = tuple(replace(a, parts=tuple((names.get(n, n), t) for n, t in a.parts)) for a in graph.axes)
    groups = tuple(replace(g, name=names[g.name]) for g in graph.groups)
    return replace(graph, groups=groups, axes=axes, edges=())


def test_groups_of_one_config_number_are_a_family() -> None:
    graph = renamed(chain(4, 4, 6, 8, 10))
    names = [group.name for group in graph.prunable]
    assert repeated_groups(graph, graph.prunable)[0] == names[:2]
    apart = replace(graph, groups=tuple(replace(g, name=f"part{i}") for i, g in enumerate(graph.groups)))
    assert [len(f) for f in repeated_groups(apart, apart.prunable)] == [1] * len(names)
    said = replace(apart, declared=(ConfigSize("", "config.d_ff", 4, ("part0", "part1", "part2")),))
    assert repeated_groups(said, said.prunable)[0] == ["part0", "part1"]
