"""What SNACS gave before its defaults changed, bit for bit: as published, and as a recipe of before says it."""

import hashlib
import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import SNACS, Plan, Synthesis, trace
from nervure.errors import RecipeError
from nervure.graph.tape import named_tensors
from nervure.methods import View
from nervure.recipe import Recipe, Study
from nervure.recipe.making import as_before, method_of, methods_after
from nervure.recipe.study import Trial

KERNELS: dict[str, Any] = {"granularity": "kernels", "of": "means", "sizes": "threshold"}
FILTERS: dict[str, Any] = {"granularity": "filters", "of": "means", "ranking": "connectivity", "sizes": "threshold"}
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "published": ({"keep": 0.7, "paper": True}, "b01aa4db6ba6b8b9"),
    "published, propagated": (
        {"keep": 0.5, "paper": True, "propagated": True, "budget": "connections"},
        "dd9be81db7ea99d5",
    ),
    "kernels": ({"keep": 0.4, **KERNELS}, "22fe658f42a491df"),
    "kernels without limits": ({"keep": 0.2, "limits": False, "protect": False, **KERNELS}, "ddac2582fa54bf71"),
    "filters": ({"keep": 0.5, **FILTERS}, "2ca98b863eec431e"),
    "filters by magnitude": ({"keep": 0.5, **FILTERS, "ranking": "magnitude", "limits": False}, "243c8b8de7ea434b"),
}


def view() -> View:
    """A small network of quarters, and pictures with classes: sums have no rounding to differ in."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=generator).float() / 4

    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(whole(*parameter.shape))
    labels = torch.arange(240) % 3
    pictures = whole(240, 2, 6, 6) + labels[:, None, None, None] / 2
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    data = list(zip(pictures.split(80), labels.split(80), strict=True))
    return View(trace(model, pictures[:2]), weights, None, 0, model, pictures[:2], data)


def digest(plan: Plan) -> str:
    edits = json.dumps(plan.to_json()["edits"], sort_keys=True)
    return hashlib.sha256(edits.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PLANS)
def test_plans_are_what_they_were(name: str) -> None:
    options, expected = PLANS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert digest(SNACS(**options).plan(view())) == expected


@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_of_before_means_what_it_meant(name: str) -> None:
    options, _ = PLANS[name]
    said = {key: value for key, value in options.items() if key not in ("of", "sizes", "keep", "budget")}
    if options.get("granularity") == "kernels":
        del said["granularity"]
    if said.get("ranking") == "connectivity":
        del said["ranking"]
    budget = {"budget": options["budget"]} if "budget" in options else {}
    expected = SNACS(**options, multiple=1)
    assert SNACS(**as_before("SNACS", said | budget), keep=options["keep"]) == expected
    if expected.granularity == "filters":
        recipe = {
            "model": {"name": "resnet8"},
            "data": {"name": "digits"},
            "prune": {"method": "SNACS", "options": said},
        }
        assert method_of(Recipe.from_dict(recipe)) == replace(expected, keep=Recipe.from_dict(recipe).prune.keep)


def test_a_recipe_gets_the_defaults_of_now_by_naming_them() -> None:
    assert SNACS(**as_before("SNACS", {"ranking": "compensated"})) == SNACS(multiple=1)
    assert as_before("Magnitude", {"keep": 0.5}, version=3) == {"keep": 0.5}


def test_a_recipe_of_the_second_version_has_what_there_is_now() -> None:
    recipe: dict[str, Any] = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}

    def method(version: dict[str, int], **told: Any) -> Any:
        return method_of(Recipe.from_dict(recipe | {"prune": {"method": "SNACS", **version, **told}}))

    assert method({"version": 3}) == SNACS(keep=0.5, budget="macs")
    assert method({"version": 2}) == SNACS(keep=0.5, budget="macs", multiple=1) != method({"version": 3})
    assert method({"version": 1}, budget="macs") == method({}) != method({"version": 2})
    assert method({"version": 2}, options={"engine": "eager"}) == SNACS(keep=0.5, budget="macs", engine="eager")
    then = [{"method": "SNACS", "keep": 0.5}]
    (after,) = methods_after(Recipe.from_dict(recipe | {"prune": {"version": 2, "then": then}}))
    assert after == SNACS(multiple=1)
    (after,) = methods_after(Recipe.from_dict(recipe | {"prune": {"then": then}}))
    assert after == SNACS(**as_before("SNACS", {}))
    with pytest.raises(RecipeError, match="version = 4 is not one of 1 to 3"):
        method({"version": 4})


@pytest.mark.parametrize(("version", "pool"), [({}, 3), ({"version": 2}, 3), ({"version": 3}, 30)])
def test_synthesis_has_the_candidates_of_its_version(version: dict[str, int], pool: int) -> None:
    prune: dict[str, Any] = {"method": "Synthesis", "keep": 0.1, **version}
    recipe = {"model": {"name": "resnet8"}, "data": {"name": "digits"}, "prune": prune}
    made = method_of(Recipe.from_dict(recipe))
    assert isinstance(made, Synthesis) and made.pool == pool


def test_the_first_version_leaves_digests_as_they_were_and_the_second_does_not() -> None:
    recipe = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
    first, second = (Recipe.from_dict(recipe | {"prune": {"version": version}}) for version in (1, 2))
    assert first.fingerprint == Recipe.from_dict(recipe).fingerprint == "e56675888e230fbc"
    assert second.fingerprint != first.fingerprint
    trials = [Trial("resnet8", "SNACS", one) for one in (first, second)]
    assert trials[0].key != trials[1].key and trials[0].dense_key == trials[1].dense_key


def test_a_study_has_a_version_too() -> None:
    study = {
        "data": {"name": "digits"},
        "network": [{"name": "resnet8"}],
        "method": [{"name": "SNACS"}, {"name": "Random"}],
    }
    found = [
        {repr(method_of(trial.recipe)) for trial in Study.from_dict(study | {"study": told}).trials()}
        for told in ({}, {"version": 3})
    ]
    assert repr(SNACS(keep=0.5, budget="macs")) in found[1] - found[0]


@pytest.mark.parametrize("name", ["snacs", "nervure:SNACS", "nervure.methods:SNACS"])
def test_however_a_recipe_names_it_it_means_what_it_meant(name: str) -> None:
    assert as_before(name, {}) == as_before("SNACS", {}) != {}
