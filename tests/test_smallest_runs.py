"""As small as is tolerated: in recipes, reports and on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nervure import Graph, Refit, trace
from nervure.cli import commands, main
from nervure.errors import BudgetError, FileError, RecipeError
from nervure.evaluation.held_out import HeldOutMetric, PartScores
from nervure.recipe import Recipe, run, steps, sweep
from nervure.recipe.fresh import difference
from nervure.recipe.making import refit_of
from nervure.recipe.recipe import differences
from nervure.report import Report, to_html, to_markdown
from nervure.smallest import AmountFinder

TINY = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
train_samples = 128
test_samples = 100
[train]
epochs = 1
[prune]
tolerance = 0.5
[refit]
samples = 16
[recover]
epochs = 0
[evaluate]
latency = []
shift = []
[run]
twins = false
"""
STEPS = 5


def tiny(**keys: Any) -> Recipe:
    data = Recipe.from_toml(TINY).to_dict()
    data["prune"] |= keys
    return Recipe.from_dict(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, whose search was stopped once."""
    place, lines = tmp_path_factory.mktemp("runs") / "whole", list[str]()

    def stop(line: str) -> None:
        lines.append(line)
        if sum("the tolerance" in told for told in lines) == STEPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), folder=place, say=stop)
    calls, score = list[str](), HeldOutMetric.score

    def counting(self: HeldOutMetric, *args: Any) -> PartScores:
        calls.append(self.name)
        return score(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutMetric, "score", counting)
        patch.setattr(steps, "_in_fresh_process", difference)
        report = run(tiny(), folder=place, progress=False)
    assert 0 < len(calls) <= len(report.search["path"]) - STEPS
    return place


def test_a_run_looks_for_the_smallest_and_cuts_it(folder: Path) -> None:
    report = Report.load(folder / "report.json")
    found = min(one["keep"] for one in report.search["path"] if one["is_inside"] and not one["reason"])
    assert report.plan.asked["keep"] == found < 0.5
    assert f"keep={found!r}" in report.method
    assert report.search["tolerance"]["metric"] == "accuracy"
    assert report.refit["samples"] == 12


def test_the_report_shows_what_was_tried_and_the_interval(folder: Path) -> None:
    report = Report.load(folder / "report.json")
    for page in (to_markdown(report), to_html(report)):
        assert "How small" in page
        assert "is the smallest found within 50.00 points" in page
        assert "95 % interval" in page.replace("</a>", "")
        for one in report.search["path"]:
            assert f"{one['keep']:.4g}" in page


def test_a_report_whose_search_is_damaged_is_refused(folder: Path) -> None:
    data = json.loads((folder / "report.json").read_text())
    data = {key: value for key, value in data.items() if key not in ("sha256", "format")}
    data["search"]["tolerance"]["samples"] = "many"
    with pytest.raises(FileError, match="samples"):
        Report.from_json(data)


def test_a_recipe_with_a_tolerance_goes_to_toml_and_back() -> None:
    recipe = tiny(tolerance=0.02, strict=True)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.fingerprint != tiny(tolerance=0.02).fingerprint


def test_a_recipe_without_one_is_what_it_was() -> None:
    recipe = tiny(tolerance=0.0)
    before = recipe.to_dict()
    del before["prune"]["tolerance"], before["prune"]["strict"]
    assert not differences(before, recipe.to_dict())
    assert Recipe.from_dict(before).fingerprint == recipe.fingerprint


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"then": [{"method": "Magnitude"}]}, "would not be tolerated"),
        ({"tolerance": 0.0, "strict": True}, "strict = true needs a tolerance"),
        ({"tolerance": -1.0}, "tolerance"),
    ],
)
def test_what_a_tolerance_does_not_go_with_is_told_before_any_work(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        tiny(**keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"method": "RigL"}, "changes its masks while a network trains"),
        ({"method": "Depth", "options": {"drop": 1}}, "says how much leaves by drop=1 already"),
        ({"begin": "fresh"}, "has its first weights"),
    ],
)
def test_a_method_whose_amount_cannot_be_looked_for_is_refused(keys: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=text):
        run(tiny(**keys), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_told_its_budgets(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a sweep tries the budgets it is told"):
        sweep(tiny(), keeps=(0.5,), folder=tmp_path / "sweep", progress=False)


def test_the_command_line_writes_a_tolerance_into_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes: list[Recipe] = []

    def note(recipe: Recipe, **options: Any) -> Report:
        recipes.append(recipe)
        raise BudgetError("Nothing smaller is within 1.00 points.")

    monkeypatch.setattr(commands, "run_recipe", note)
    words = ["prune", "--model", "resnet8", "--data", "digits", "--tolerance", "0.01", "--strict", "--refit"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "Nothing smaller is within 1.00 points." in done.output
    assert (recipes[0].prune.tolerance, recipes[0].prune.strict, recipes[0].refit.samples) == (0.01, True, 1024)
    assert recipes[0].run.folder == str(Path("runs") / "resnet8-Magnitude-within-0.01")
    assert refit_of(recipes[0]) == (Refit(),)
    assert Recipe.from_toml(recipes[0].to_toml()) == recipes[0]
    both = CliRunner().invoke(main, [*words, "--keep", "0.5"])
    assert "--tolerance looks for what stays, and --keep says it" in both.output


@pytest.mark.parametrize("tolerance", ["0", "-0.01", "nan", "inf"])
def test_a_tolerance_of_nothing_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tolerance: str) -> None:
    monkeypatch.setattr(commands, "run_recipe", lambda *_, **__: pytest.fail("it ran with the amount by default"))
    done = CliRunner().invoke(main, ["prune", "--model", "resnet8", "--data", "digits", "--tolerance", tolerance])
    assert done.exit_code == 2 and "must be above 0" in done.output


def test_what_the_graph_of_a_run_pins_stays_in_what_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looked: list[Graph] = []

    def pinned(*given: Any) -> Graph:
        graph = trace(*given)
        return replace(graph, groups=tuple(replace(group, pinned="mine") for group in graph.groups))

    def note(self: AmountFinder, *_: Any, **__: Any) -> None:
        looked.append(self.traced.view.graph)
        raise BudgetError("there is nothing to prune")

    monkeypatch.setattr(steps, "trace", pinned)
    monkeypatch.setattr(AmountFinder, "run", note)
    with pytest.raises(BudgetError, match="nothing to prune"):
        run(tiny(), folder=tmp_path, progress=False)
    assert not looked[0].prunable
