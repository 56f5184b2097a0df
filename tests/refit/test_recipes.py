"""A refit between cut and recovery: in runs, sweeps and studies, and on the command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nervure import Recipe, Report, load, run, sweep, zoo
from nervure.cli import main
from nervure.errors import FileError, RecipeError
from nervure.recipe import Study
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.recipe.making import refit_of
from nervure.recipe.recipe import RefitSection, differences
from nervure.report import to_html, to_markdown

TINY: dict[str, Any] = {
    "model": {"name": "resnet8", "options": {"width": 0.25, "stem_stride": 2}},
    "data": {"name": "digits", "train_samples": 128, "test_samples": 60},
    "train": {"epochs": 1},
    "refit": {"samples": 64},
    "recover": {"epochs": 0},
    "evaluate": {"latency": [], "shift": []},
}


def tiny(**sections: Any) -> Recipe:
    return Recipe.from_dict(TINY | {name: TINY.get(name, {}) | table for name, table in sections.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "refit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_module, "_in_fresh_process", difference)
        run(tiny(), folder=place, progress=False)
    return place


def test_what_recovers_is_the_refitted_network_and_the_twin_gets_the_same(folder: Path) -> None:
    first = lambda: zoo.build("resnet8", in_channels=1, num_classes=10, width=0.25, stem_stride=2)  # noqa: E731
    cut, fitted, model = (load(folder / f"{name}.safetensors", first) for name in ("cut", "refit", "model"))
    weights = [{k: v for k, v in found.model.state_dict().items()} for found in (cut, fitted, model)]
    assert not all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert all(weights[1][name].equal(weights[2][name]) for name in weights[0])
    assert fitted.verification == cut.verification and fitted.plan.edits == cut.plan.edits
    assert "refit" in load(folder / "random.safetensors", first).plan.reached


def test_the_report_shows_what_it_took_and_the_errors(folder: Path) -> None:
    report = Report.load(folder / "report.json")
    assert ", then Refit(samples=64" in report.method
    fits = [fit for fit in report.refit["fits"] if not fit["reason"]]
    assert fits and all(fit["after"] <= fit["before"] for fit in fits) and report.refit["seconds"] > 0
    text, page = to_markdown(report), to_html(report)
    for shown in (text, page):
        assert fits[0]["tensor"] in shown and f"{fits[0]['before']:.2g} → {fits[0]['after']:.2g}" in shown
        assert re.search(r"fitted on 48 training images in [\d.]+ s", shown)
    assert "refit" in json.loads((folder / "steps.json").read_text())["seconds"]
    damaged = report.to_json() | {"refit": {"fits": [{}]}}
    with pytest.raises(FileError, match="the refit of this report"):
        Report.from_json(damaged)


def test_a_report_and_a_recipe_of_before_have_none(folder: Path) -> None:
    plain = Report.load(folder / "report.json").to_json()
    del plain["refit"]
    assert (
        Report.from_json(plain).refit == {} and "Refit" not in to_markdown(Report.from_json(plain)).split("## Plan")[0]
    )
    recipe = Recipe.from_dict({name: table for name, table in TINY.items() if name != "refit"})
    assert recipe.fingerprint == "256633507d515aa4"
    before = {name: table for name, table in recipe.to_dict().items() if name != "refit"}
    assert differences(before, recipe.to_dict()) == []
    assert differences(before, tiny().to_dict()) == ["[refit] samples: 0 -> 64"]
    assert tiny().fingerprint != recipe.fingerprint


def test_a_sweep_compares_one_method_with_and_without(tmp_path: Path) -> None:
    methods = [{"name": "Magnitude", "label": "plain", "refit": {"samples": 0}}, {"name": "Magnitude"}]
    found = sweep(tiny(), keeps=[0.5], methods=methods, folder=tmp_path, progress=False)
    assert found.failures == {} and [mean.label for mean in found.means] == [
        "dense",
        "plain at 0.5",
        "Magnitude at 0.5",
    ]
    plain, fitted = found.means[1:]
    assert plain.macs == fitted.macs and plain.validation != fitted.validation
    seconds = {
        row["method"]: row["seconds"] for row in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    }
    assert "refit" in seconds["Magnitude"] and "refit" not in seconds["plain"]


def test_a_study_names_it_as_an_arm() -> None:
    method = [{"name": "Random"}, {"name": "Random", "label": "refitted", "refit": {"samples": 32, "norms": False}}]
    study = {"data": {"name": "digits"}, "network": [{"name": "resnet8"}], "method": method, "refit": {"positions": 4}}
    whole, plain, fitted = (trial.recipe.refit for trial in Study.from_dict(study).trials()[:3])
    assert (whole, plain) == (RefitSection(), RefitSection(positions=4))
    assert fitted == RefitSection(samples=32, positions=4, norms=False)
    with pytest.raises(RecipeError, match="'Random' refit has no key 'sample'. Did you mean 'samples'"):
        Study.from_dict(study | {"method": [{"name": "Random", "refit": {"sample": 3}}]})


def test_a_recipe_of_before_looks_at_as_many_positions_and_is_written_as_toml() -> None:
    assert [refit_of(tiny(refit=told))[0].positions for told in ({}, {"positions": 0}, {"positions": 4})] == [
        8,
        0,
        4,
    ]
    for recipe in (tiny(), tiny(refit={"positions": 0})):
        assert Recipe.from_toml(recipe.to_toml()) == recipe
    old = {**tiny().to_dict(), "refit": {**tiny().to_dict()["refit"], "positions": 8}}
    assert not differences(old, tiny().to_dict())


def test_what_begins_fresh_has_nothing_to_be_fitted_to(tmp_path: Path) -> None:
    for prune in ({"method": "RigL"}, {"method": "Magnitude", "begin": "fresh"}):
        with pytest.raises(RecipeError, match="what is pruned here has its first weights"):
            run(tiny(prune=prune), folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_the_command_line_refits_a_saved_network(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "refitted.safetensors"
    words = ["refit", "--file", str(folder / "cut.safetensors"), "--data", "digits", "--samples", "64", "-o", str(out)]
    dense = ["--weights", str(folder / "dense.safetensors")]
    done = CliRunner().invoke(main, [*words, *dense, "--set", "masks=surgeon"])
    assert done.exit_code == 0, done.output
    assert "48 samples fitted on, 16 left out" in done.output
    evaluated = CliRunner().invoke(main, ["evaluate", "--file", str(out), "--data", "digits"])
    assert evaluated.exit_code == 0
    for missing, message in ((words, "--weights trained"), ([*words, *dense, "--set", "rigde=1"], "no option 'rigde'")):
        refused = CliRunner().invoke(main, missing)
        assert refused.exit_code == 2 and message in refused.output
