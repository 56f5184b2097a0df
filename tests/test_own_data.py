"""Data and budgets of the user's own, by name, wherever data and budgets are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from nervure import Magnitude, Recipe, prune, save, sweep, zoo
from nervure.cli import main
from nervure.errors import NervureError, RecipeError
from nervure.recipe import Study, run
from nervure.recipe.making import dataset_of
from nervure.recipe.recipe import DataSection

MINE = """
import torch
from nervure.budget import Budget
from nervure.zoo.data import assemble


def load(*, seed, validation=0.2):
    labels = torch.arange(60) % 2
    pictures = torch.randint(0, 255, (60, 1, 8, 8), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    pictures[labels == 0, :, ::2] = 0
    split = pictures[:40], labels[:40]
    return assemble("stripes", split, (pictures[40:], labels[40:]), ("a", "b"), validation=validation, seed=seed)


def loaders():
    batches = [(torch.randn(4, 1, 8, 8), torch.randn(4, 10))]
    return {"train": batches, "validation": batches, "test": batches}


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def louder(batch, seed):
    return 2 * batch[0], batch[1]


def nothing():
    return 3


def broken():
    raise ZeroDivisionError("by my own fault")


weights = Budget("weights_mine", "weights and products", lambda costs: costs.params)
"""
NET: dict[str, Any] = {"name": "resnet8", "options": {"width": 0.25}}


@pytest.fixture(autouse=True)
def in_a_folder_with_data(write_module: Callable[[str, str], None]) -> None:
    write_module("own_data", MINE)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"objective": "augmented"}, r"\[recover\] objective = 'augmented': of loaders of your own .* what a view is"),
        ({"objective": "augmented", "views": "own_data:loud"}, r"\[recover\] .*own_data has no .*'loud'.*'louder'"),
        ({"objective": "consistent", "views": "own_data:louder"}, r"\[recover\] .*which loss has none of.*classes="),
    ],
)
def test_views_that_nothing_makes_are_told_before_any_work(keys: dict[str, str], words: str, tmp_path: Path) -> None:
    model = {"name": "resnet8", "options": {"in_channels": 1, "width": 0.25}}
    own = {"model": model, "data": {"name": "own_data:loaders"}, "task": {"name": "own_data:loss"}, "recover": keys}
    recipe = Recipe.from_dict(own)
    with pytest.raises(RecipeError, match=words):
        run(recipe, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_function_makes_the_data_of_what_it_takes() -> None:
    data = dataset_of(DataSection("own_data:load", validation=0.5, train_samples=10), seed=1)
    assert (data.name, data.classes, len(data.train), len(data.validation), len(data.test)) == (
        "stripes", ("a", "b"), 10, 20, 20,
    )  # fmt: skip
    other = dataset_of(DataSection("own_data:load", validation=0.5), seed=2)
    assert not torch.equal(data.validation.images, other.validation.images)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "own_data:laod"}, "own_data has no function 'laod'. Did you mean 'load'"),
        ({"name": "no_such_module:load"}, "module 'no_such_module' cannot be imported"),
        ({"name": "own_data:nothing"}, "own_data:nothing made a int; give a dict"),
        ({"name": "own_data:broken"}, "cannot be made: ZeroDivisionError: by my own fault"),
        ({"name": "own_data:load", "size": 16}, "takes no size"),
        ({"name": "own_data:load", "root": "."}, "takes no root"),
        ({"name": "own_data"}, 'One of your own is named "package.module:function"'),
    ],
)
def test_what_makes_no_data_is_told(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as told:
        dataset_of(DataSection(**section), seed=0)
    assert message in str(told.value)


def test_recipes_sweeps_and_their_workers_find_it() -> None:
    recipe = Recipe.from_dict(
        {
            "model": NET,
            "data": {"name": "own_data:load"},
            "train": {"epochs": 1},
            "recover": {"epochs": 1},
            "evaluate": {"latency": [], "shift": []},
            "run": {"twins": False},
        }
    )
    found = sweep(recipe, keeps=[0.6, 0.5], folder="out", workers=2, progress=False)
    assert found.title == "Sweep of resnet8, stripes"
    assert found.failures == {} and [m.label for m in found.means][1:] == ["Magnitude at 0.6", "Magnitude at 0.5"]


def test_the_command_line_finds_it() -> None:
    done = CliRunner().invoke(
        main, ["evaluate", "--model", "resnet8", "--option", "width=0.25", "--data", "own_data:load"]
    )
    assert done.exit_code == 0 and "of 20 test samples" in done.output


def test_recipes_and_studies_name_a_budget() -> None:
    for name in ("own_data:weights", "params"):
        assert (
            Recipe.from_dict({"model": NET, "data": {"name": "digits"}, "prune": {"budget": name}}).prune.budget == name
        )
        method = [{"name": "Random"}]
        study = {"study": {"budget": name}, "data": {"name": "digits"}, "network": [NET], "method": method}
        assert Study.from_dict(study).trials()[1].recipe.prune.budget == name


def test_a_budget_of_ones_own_prunes_in_a_recipe_and_on_the_command_line() -> None:
    words = ["plan", "--model", "resnet8", "--option", "width=0.25", "--input", "1x3x8x8", "-o", "plan.json"]
    done = CliRunner().invoke(main, [*words, "--budget", "own_data:weights", "--keep", "0.5"])
    assert done.exit_code == 0 and "weights_mine" in Path("plan.json").read_text()


def test_data_and_a_budget_that_a_file_names_are_text() -> None:
    Path("evil.py").write_text("open('PWNED', 'w')\n")
    net = zoo.build("resnet8", in_channels=1, width=0.25)
    pruned = prune(net, torch.randn(1, 1, 8, 8), Magnitude(keep=0.5), progress=False, verify=False)
    recipe = Recipe.from_dict({"model": NET, "data": {"name": "evil:load"}, "prune": {"budget": "evil:budget"}})
    model = {"name": "resnet8", "factory": "", "options": {"in_channels": 1, "width": 0.25}}
    pruned = replace(pruned, plan=replace(pruned.plan, asked={"budget": "evil:budget"}))
    file = str(save("m.safetensors", pruned, meta={"model": model, "recipe": recipe.to_dict()}))
    done = CliRunner().invoke(main, ["evaluate", "--file", file, "--data", "digits"])
    assert done.exit_code == 0, done.output
    assert not Path("PWNED").exists()


UNMEASURED = """
import torch
from nervure import tasks


class Odd:
    def to(self, place):
        return self

    def update(self, *given):
        raise ValueError("three numbers, not two")


def net():
    return torch.nn.Linear(8, 2)


def loaders():
    batches = [(torch.randn(4, 8), torch.randn(4, 2)) for _ in range(3)]
    return {"train": batches, "validation": batches, "test": batches}


odd = tasks.Task(
    name="odd",
    objective=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    metrics={"odd": tasks.Measure(lambda first: Odd(), lambda output, batch: (output, batch[1]), True)},
)
"""


def test_a_metric_that_cannot_be_computed_is_told_before_anything_is_trained(
    write_module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module("unmeasured", UNMEASURED)
    monkeypatch.setattr("nervure.recipe.steps._train", lambda *_: pytest.fail("it was trained before"))
    told = {
        "model": {"name": "unmeasured:net"},
        "data": {"name": "unmeasured:loaders"},
        "task": {"name": "unmeasured:odd"},
        "prune": {"method": "Magnitude", "keep": 0.5},
    }
    with pytest.raises(NervureError, match=r"batch 0: the metric 'odd' cannot be computed: three numbers, not two"):
        run(Recipe.from_dict(told), progress=False)
