"""Each kind of budget is one value in one table."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nervure import Magnitude, Plan, prune, trace, zoo
from nervure.budget import BUDGETS, Budget, CostModel, allocate
from nervure.errors import ArgumentError, RecipeError
from nervure.methods.channels.timed import for_engine
from nervure.recipe import Recipe
from nervure.scores import random_scores

EXAMPLE = torch.randn(1, 3, 16, 16)


def resnet() -> Any:
    return zoo.build("resnet8", width=0.5)


@pytest.mark.parametrize("name", ["params", "macs"])
def test_what_is_predicted_is_what_is_left(name: str) -> None:
    pruned = prune(resnet(), EXAMPLE, Magnitude(keep=0.6), progress=False)
    assert BUDGETS[name].predict(pruned.graph) == getattr(pruned.cost_before, name)
    assert BUDGETS[name].predict(pruned.graph, pruned.plan) == getattr(pruned.cost_after, name)


def test_channels_are_counted_and_times_come_from_a_table() -> None:
    graph = trace(resnet(), EXAMPLE)
    plan = allocate(graph, random_scores(graph, seed=0), keep=0.5)
    assert BUDGETS["channels"].predict(graph) == sum(g.size for g in graph.prunable)
    assert BUDGETS["channels"].predict(graph, plan) == plan.reached["channels"]
    with pytest.raises(ArgumentError, match="latency is predicted from a table"):
        BUDGETS["latency"].predict(graph, Plan())
    with pytest.raises(ArgumentError, match="needs times of an engine: give table="):
        allocate(graph, random_scores(graph, seed=0), keep=0.5, budget="latency")


def test_amounts_are_told_in_words() -> None:
    assert BUDGETS["macs"].format_amount(1200.0) == "1200 macs"
    assert BUDGETS["latency"].format_amount(0.25) == "0.25 of the dense latency"
    assert [name for name, budget in BUDGETS.items() if budget.is_timed] == ["latency"]
    assert for_engine("latency", None, None, None) == ("eager", 16) and for_engine("macs", None, None, None)[0] is None


def test_a_new_kind_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Budget("weight", "weights and products", lambda costs: costs.params)
    monkeypatch.setitem(BUDGETS, "weight", kind)  # type: ignore[arg-type]
    graph = trace(resnet(), EXAMPLE)
    plan = allocate(graph, random_scores(graph, seed=0), keep=0.5, budget="weight")
    same = allocate(graph, random_scores(graph, seed=0), keep=0.5, budget="params")
    assert plan.cuts == same.cuts and 0.4 < plan.reached["keep"] <= 0.5
    method = Magnitude(keep=0.5, budget="weight")
    assert prune(resnet(), EXAMPLE, method, progress=False).cost_after.params <= 0.5 * graph.params()
    text = '[model]\nname = "resnet8"\n[data]\nname = "digits"\n[prune]\nbudget = "weight"\n'
    assert Recipe.from_toml(text).prune.budget == "weight"


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="budget is one of 'channels', 'params', 'macs', 'latency'"):
        Magnitude(budget="flops")
    with pytest.raises(RecipeError, match="is not one of 'channels', 'params', 'macs', 'latency'"):
        Recipe.from_toml('[model]\nname = "resnet8"\n[data]\nname = "digits"\n[prune]\nbudget = "flops"\n')


def test_kinds_are_values() -> None:
    assert replace(BUDGETS["macs"]) == BUDGETS["macs"]
    assert BUDGETS["channels"].counts_units and not BUDGETS["latency"].counts_units
    graph = trace(resnet(), EXAMPLE)
    costs = CostModel.of(graph)
    kept = np.ones(sum(g.size for g in graph.prunable), dtype=bool)
    assert BUDGETS["macs"].cost(costs)(costs.sizes) == BUDGETS["macs"].amount(costs, kept) == graph.macs()
