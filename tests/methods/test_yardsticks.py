"""Magnitude and Random, and methods by name."""

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from nervure.errors import ArgumentError
from nervure.methods import METHODS, Magnitude, Method, Random, View, method_from
from tests.graphs import dense, residual, weights_of

METHOD_EXAMPLES = [
    Magnitude(),
    Magnitude(keep=0.3, norm=2, scope="layer", budget="macs", minimum=2, multiple=2),
    Magnitude(keep=1),
    Random(),
    Random(keep=0.7, seed=5, scope="global", budget="params"),
]
every_method = pytest.mark.parametrize("method", METHOD_EXAMPLES, ids=repr)


def view(seed: int = 0) -> View:
    graph = residual(16, [8, 12])
    return View(graph, weights_of(graph), seed=seed)


@every_method
def test_a_method_is_a_value_that_its_repr_makes_again(method: Any) -> None:
    assert eval(repr(method)) == method
    assert hash(eval(repr(method))) == hash(method)
    assert isinstance(method, Method)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        method.keep = 0.1


@every_method
def test_the_same_view_gives_the_same_plan_and_is_left_alone(method: Any) -> None:
    given = view()
    before = {name: w.clone() for name, w in given.weights.items()}
    assert method.plan(given) == method.plan(view())
    assert all(before[name].equal(w) for name, w in given.weights.items())


@pytest.mark.parametrize("cls", [Magnitude, Random])
@pytest.mark.parametrize("budget", ["params", "macs"])
def test_the_budget_is_met(cls: Any, budget: str) -> None:
    plan = cls(keep=0.5, budget=budget).plan(view())
    assert 0.4 < plan.reached["keep"] <= 0.5


@pytest.mark.parametrize("cls", [Magnitude, Random])
def test_keeping_everything_is_the_empty_plan(cls: Any) -> None:
    assert not cls(keep=1.0).plan(view())


def test_magnitude_removes_the_smallest_filters() -> None:
    given = view()
    given.weights["block0.a.weight"][:4] *= 0.01
    plan = Magnitude(keep=0.5, scope="layer").plan(given)
    (cut,) = [cut for cut in plan.cuts if cut.group == "block0.a"]
    assert cut.keep.tensor().tolist() == [False] * 4 + [True] * 4


def test_layers_compete_on_equal_terms_whatever_their_fan_in() -> None:
    graph = dense(16, [16] * 6)
    weights = {name: torch.rand(w.shape) for name, w in weights_of(graph).items()}
    cuts = Magnitude(keep=0.5, norm=2).plan(View(graph, weights)).cuts
    # With raw norms the layers with the smallest fan-in would lose all they can.
    assert {cut.group for cut in cuts} == {g.name for g in graph.prunable}


def test_either_seed_draws_another_lot() -> None:
    first = Random().plan(view())
    assert Random(seed=1).plan(view()) != first
    assert Random().plan(view(seed=1)) != first


@pytest.mark.parametrize("cls", [Magnitude, Random])
@pytest.mark.parametrize(
    "wrong",
    [{"keep": 0}, {"keep": 2}, {"scope": "all"}, {"budget": "flops"}, {"minimum": 0}, {"multiple": 0}],
)
def test_hyper_parameters_are_checked_when_they_are_given(cls: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        cls(**wrong)


def test_a_norm_or_seed_that_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match="norm=3"):
        Magnitude(norm=3)
    with pytest.raises(ArgumentError, match="seed='a'"):
        Random(seed="a")


def test_numbers_of_numpy_become_plain() -> None:
    assert repr(Magnitude(keep=np.float64(0.25))) == repr(Magnitude(keep=0.25))


def test_methods_are_found_by_name_in_any_case_and_listed_once() -> None:
    assert METHODS["Magnitude"] is METHODS["magnitude"] is Magnitude
    assert set(METHODS) >= {"Magnitude", "Random"}
    assert len(list(METHODS)) == len(METHODS)
    assert method_from("random", keep=0.3, seed=2) == Random(keep=0.3, seed=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magnitud", {}, "'magnitud' is unknown. Did you mean 'Magnitude'"),
        ("zzz", {}, "Known: .*Magnitude"),
        ("magnitude", {"keeep": 0.5}, "Magnitude has no option 'keeep'. Did you mean 'keep'"),
        ("magnitude", {"wants": 1}, "no option 'wants'"),
        ("magnitude", {"keep": 3}, "keep=3"),
    ],
)
def test_wrong_names_and_options_name_the_nearest(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        method_from(name, **options)
