"""A method of the user's own, by its name, wherever a method is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nervure import Magnitude, Random, Ranking
from nervure.cli import main
from nervure.errors import ArgumentError, RecipeError
from nervure.methods import Method, method_from, method_keeping
from nervure.recipe import Recipe, Study
from nervure.recipe.making import method_of, methods_after

MINE = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from nervure import Magnitude
from nervure.scores import random_scores


@dataclass(frozen=True)
class Reversed:
    """The largest leave."""

    wants: ClassVar = frozenset()
    keep: float = 0.5
    budget: str = "channels"
    power: float = 1.0

    def plan(self, view):
        turned = {name: -weight for name, weight in view.weights.items()}
        return Magnitude(keep=self.keep, budget=self.budget).plan(view)


def careful(keep=0.5, budget="channels", scope="layer"):
    return Magnitude(keep=keep, budget=budget, scope=scope)


class NoMethod:
    pass


class Shy:
    wants = frozenset()

    def plan(self, view):
        raise AssertionError


class Broken:
    def __init__(self, keep=0.5):
        raise ZeroDivisionError("by my own fault")


def even(graph, *, level=1.0):
    return {g.name: torch.full((g.size,), level) for g in graph.prunable}


def flat(graph):
    return 1
'''


@pytest.fixture(autouse=True)
def in_a_folder_with_methods(write_module: Callable[[str, str], None]) -> None:
    write_module("own_methods", MINE)


def test_a_class_or_a_function_makes_the_method() -> None:
    assert isinstance(method_from("own_methods:Reversed", keep=0.4), Method)
    assert repr(method_from("own_methods:Reversed", keep=0.4)) == "Reversed(keep=0.4, budget='channels', power=1.0)"
    made = method_keeping("own_methods:careful", {}, keep=0.3, budget="macs")
    assert made == Magnitude(keep=0.3, budget="macs", scope="layer")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_method:Reversed", {}, "module 'own_method' cannot be imported: No module named"),
        ("own_methods:Revers", {}, "has no class or function 'Revers'. Did you mean 'Reversed'"),
        ("own_methods:Reversed", {"powr": 2}, "Reversed has no option 'powr'. Did you mean 'power'"),
        ("own_methods:NoMethod", {}, "made a NoMethod, which is no method: it lacks wants and plan"),
        ("own_methods:Shy", {}, "does not show its hyper-parameters"),
        ("own_methods:Broken", {}, "cannot be made: ZeroDivisionError: by my own fault"),
        ("own_methods:careful", {"scope": "all"}, "scope"),
        ("Revesed", {}, "'Revesed' is unknown.*package.module:name"),
    ],
)
def test_what_is_wrong_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        method_from(name, **options)


RECIPE = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
"""


def test_a_recipe_names_it_and_what_comes_after() -> None:
    text = RECIPE + '[prune]\nmethod = "own_methods:Reversed"\noptions = { power = 2.0 }\nkeep = 0.4\n'
    recipe = Recipe.from_toml(text + '[[prune.then]]\nmethod = "own_methods:careful"\n')
    assert repr(method_of(recipe)) == "Reversed(keep=0.4, budget='macs', power=2.0)"
    assert methods_after(recipe) == (Magnitude(keep=0.5, scope="layer"),)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    with pytest.raises(RecipeError, match=r"\[prune\].*no class or function 'Revers'"):
        method_of(replace(recipe, prune=replace(recipe.prune, method="own_methods:Revers")))


def test_a_recipe_names_a_criterion_with_its_options() -> None:
    text = (
        RECIPE
        + '[prune]\nmethod = "Ranking"\noptions = { criterion = "own_methods:even", options = { level = 2.0 } }\n'
    )
    made = method_of(Recipe.from_toml(text))
    assert made == Ranking(criterion="own_methods:even", options={"level": 2.0}, budget="macs", multiple=1)


def test_a_study_names_it() -> None:
    text = '[study]\nseeds = [0]\n[data]\nname = "digits"\n[[network]]\nname = "resnet8"\n'
    study = Study.from_toml(text + '[[method]]\nname = "own_methods:careful"\n[[method]]\nname = "Random"\n')
    made = {trial.method: method_of(trial.recipe) for trial in study.trials()}
    assert made["own_methods:careful"] == Magnitude(keep=0.5, budget="macs", scope="layer")
    assert made["Random"] == Random(keep=0.5, budget="macs", multiple=1)


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, result.output


NETWORK = ("--model", "resnet8", "--option", "width=0.25", "--input", "1x3x16x16")


def test_the_command_line_names_it() -> None:
    code, text = command("plan", "--method", "own_methods:careful", "--keep", "0.4", *NETWORK, "-o", "plan.json")
    assert code == 0, text
    other = command("plan", "Magnitude", "--set", "scope=layer", "--keep", "0.4", *NETWORK, "-o", "other.json")
    assert other[0] == 0
    plans = [Path(path).read_text() for path in ("plan.json", "other.json")]
    assert plans[0] == plans[1]


def test_the_command_line_names_a_criterion() -> None:
    code, text = command("score", "--criterion", "own_methods:even", "--set", "level=3", *NETWORK)
    assert code == 0 and "3.000" in text, text
    code, text = command("score", "--criterion", "own_methods:flat", *NETWORK)
    assert code == 2 and "flat returned 1" in " ".join(text.split())
    code, text = command("score", "--criterion", "magnitud", *NETWORK)
    assert code == 2 and "Did you mean 'magnitude'" in " ".join(text.split())
