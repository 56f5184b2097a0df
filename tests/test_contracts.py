"""Every law for every criterion, allocator, edit and method."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from nervure import Depth, Energy, Graph, Magnitude, Plan, Random, Recipe, apply
from nervure.budget import allocate
from nervure.errors import PlanError, ScoreError
from nervure.methods import Method, View
from tests import contracts
from tests.contracts import ALLOCATORS, CRITERIA, DROPPING, EQUIVARIANT, MASKING, METHODS, MODELS, WITH_BLOCKS, Case
from tests.networks import NETWORKS


@cache
def case(name: str) -> Case:
    return contracts.case(name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_one_finite_number_per_unit(model: str, criterion: str) -> None:
    contracts.scores_are_one_finite_number_per_unit_and_inputs_stay(case(model), criterion)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("criterion", EQUIVARIANT)
def test_permuting_channels_permutes_scores(model: str, criterion: str) -> None:
    contracts.permuting_channels_permutes_scores(case(model), criterion)


@pytest.mark.parametrize("criterion", EQUIVARIANT)
def test_scores_keep_the_precision_of_the_weights(criterion: str) -> None:
    contracts.scores_keep_the_precision_of_the_weights(case("residual"), criterion)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_masked_entries_stay_zero_through_training(optimizer: type[torch.optim.Optimizer], model: str) -> None:
    contracts.masked_entries_stay_zero_through_training(case(model), optimizer)


@pytest.mark.parametrize("keep", [0.5, 0.77])
@pytest.mark.parametrize("model", ["residual", "concat", "squeeze_excitation"])
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_budgets_are_met(allocator: str, model: str, keep: float) -> None:
    contracts.the_budget_is_met_and_never_exceeded(case(model), allocator, keep)


@pytest.mark.sampled(share=0.1, times=1)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_methods_keep_the_laws(method: Method, model: str) -> None:
    contracts.a_method_keeps_the_laws(case(model), method)


@pytest.mark.sampled(share=0.1, times=1)
@pytest.mark.parametrize("model", ["residual", "grouped_conv", "squeeze_excitation", "vit"])
@pytest.mark.parametrize("method", MASKING, ids=repr)
def test_methods_that_mask_keep_the_laws(method: Method, model: str) -> None:
    contracts.a_method_keeps_the_laws(case(model), method)


@pytest.mark.sampled(share=0.1, times=1)
@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("model", WITH_BLOCKS)
@pytest.mark.parametrize("method", DROPPING, ids=repr)
def test_methods_that_drop_blocks_keep_the_laws(method: Method, model: str) -> None:
    contracts.a_method_keeps_the_laws(case(model), method)


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("method", (*METHODS, *MASKING), ids=repr)
def test_a_plan_follows_from_evidence(method: Method) -> None:
    contracts.a_plan_follows_from_evidence(case("residual"), method)


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize("method", (*DROPPING, Energy(tolerance=0.5, stages=2)), ids=repr)
def test_a_plan_that_drops_blocks_follows_from_evidence(method: Method) -> None:
    contracts.a_plan_follows_from_evidence(case("bottlenecks"), method)


def test_a_plan_that_drops_blocks_for_a_latency_follows_from_what_was_timed() -> None:
    c = case("bottlenecks")
    view = View(c.graph, c.weights, None, 0, c.model, c.example, contracts.data_for(c.model, c.example))
    assert contracts.a_plan_runs_no_network(view, Depth(keep=0.9, budget="latency", stages=2)).drops


@pytest.mark.parametrize(("method", "why"), contracts.ASKING_MEANWHILE.items(), ids=repr)
def test_what_asks_the_network_meanwhile_is_listed_for_a_reason(method: Method, why: str) -> None:
    with pytest.raises(AssertionError, match="modules ran"):
        contracts.a_plan_follows_from_evidence(case("residual"), method)


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
def test_methods_plan_the_same_in_another_process() -> None:
    contracts.the_same_in_another_process((*METHODS, *DROPPING, *MASKING), "residual")


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_wrong_cut_of_any_network_is_caught(name: str) -> None:
    network, finishes = NETWORKS[name], list(contracts.FINISHES.values())
    model = contracts.Finished(network.factory(), finishes[sorted(NETWORKS).index(name) % len(finishes)])
    assert contracts.a_wrong_cut_is_caught(model, network.example(), groups=1)


@pytest.mark.sampled
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("finish", contracts.FINISHES)
def test_a_wrong_cut_is_caught_whatever_is_made_of_the_answer(model: str, finish: str) -> None:
    network = NETWORKS[model]
    assert contracts.a_wrong_cut_is_caught(
        contracts.Finished(network.factory(), contracts.FINISHES[finish]), network.example(), groups=2
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_edit_leaves_the_model_alone(model: str) -> None:
    contracts.apply_leaves_its_input_alone(case(model))


@pytest.mark.parametrize("model", MODELS)
def test_plans_and_graphs_survive_json(model: str) -> None:
    c = case(model)
    plan = contracts.edits_of_every_kind(c)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert hash(Plan.from_json(plan.to_json())) == hash(plan)
    assert Graph.from_json(json.loads(json.dumps(c.graph.to_json()))) == c.graph


def test_recipes_survive_json() -> None:
    recipe = Recipe.from_toml(
        '[model]\nname = "resnet8"\n[data]\nname = "fashion-mnist-subset"\n[prune]\nmethod = "magnitude"\nkeep = 0.5\n'
    )
    assert Recipe.from_json(json.dumps(recipe.to_dict())) == recipe


@pytest.mark.parametrize("method", [Magnitude(keep=1.0), Random(keep=1.0)], ids=repr)
def test_keeping_everything_is_the_empty_plan(method: Method) -> None:
    c = case("residual")
    assert not method.plan(View(c.graph, c.weights)).edits


def test_a_stale_plan_is_refused() -> None:
    c = case("residual")
    with pytest.raises(PlanError, match="fingerprint"):
        apply(c.model, c.graph, replace(contracts.edits_of_every_kind(c), fingerprint="gone"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    c = case("residual")
    scores = {g.name: torch.ones(g.size) for g in c.graph.prunable}
    scores[c.graph.prunable[0].name][1] = bad
    with pytest.raises(ScoreError):
        allocate(c.graph, scores, keep=0.5)
