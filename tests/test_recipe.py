"""A recipe is checked before any work, and a run can be stopped, gone on with, and trusted."""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nervure import Plan
from nervure.core.container import read_container, write_container
from nervure.errors import FileError, MissingExtraError, RecipeError
from nervure.export import load, read_header
from nervure.recipe import Recipe, run
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.recipe.making import dataset_of, train_section
from nervure.recipe.probe import PROBE
from nervure.recipe.recipe import SECTIONS, RecoverSection, differences
from nervure.recipe.sources import ModelSource, factory_of
from nervure.recipe.steps import STEPS
from nervure.report import Report
from nervure.report.tables import budget, edits, speed
from nervure.zoo import Dataset, build
from tests.contracts import counting_runs

TINY = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
train_samples = 256
test_samples = 100
[train]
epochs = 1
[recover]
epochs = 1
recalibrate = 1
[evaluate]
latency = []
shift = []
"""


MEASURED = {
    "latency": [1],
    "engines": ["eager", "openvino"],
    "rounds": 3,
    "shift": ["fog", "noise"],
    "severities": [2, 4],
}


def tiny(**sections: Mapping[str, Any]) -> Recipe:
    data = Recipe.from_toml(TINY).to_dict()
    for name, keys in sections.items():
        data[name] |= keys
    return Recipe.from_dict(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run, twins and latency included."""
    place = tmp_path_factory.mktemp("runs") / "whole"
    run(
        tiny(evaluate=MEASURED),
        folder=place,
        progress=False,
    )
    return place


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved files are looked at in this process, without the seconds that a new one takes; not in ``folder``."""

    def looked_at(folder: Path, source: ModelSource) -> float:
        with torch.random.fork_rng():
            return difference(folder, source)

    monkeypatch.setattr(steps_module, "_in_fresh_process", looked_at)


@pytest.mark.parametrize("form", ["toml", "json", "dict"])
def test_a_recipe_survives_a_round_trip(form: str) -> None:
    recipe = tiny(model={"options": {"width": 0.25, "odd key": [1, 'a\n"b"', True, {"x": 2.5}]}})
    again = {
        "toml": lambda: Recipe.from_toml(recipe.to_toml()),
        "json": lambda: Recipe.from_json(json.dumps(recipe.to_dict())),
        "dict": lambda: Recipe.from_dict(recipe.to_dict()),
    }[form]()
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


@settings(max_examples=10)
@given(st.text(max_size=20), st.floats(0.01, 1), st.integers(0, 10**12), st.booleans())
def test_any_text_and_number_survives_toml(text: str, keep: float, seed: int, twins: bool) -> None:
    recipe = tiny(prune={"keep": keep, "options": {"note": text}}, run={"seed": seed, "twins": twins})
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY.replace("[train]", "[trian]"), r"no section 'trian'. Did you mean 'train'"),
        (TINY.replace("epochs", "epoch"), r"\[train\] has no key 'epoch'. Did you mean 'epochs'"),
        (TINY.replace("epochs = 1", 'epochs = "1"', 1), r"\[train\] epochs = '1' .* Expected `int`, got `str`"),
        (TINY.replace("epochs = 1", "epochs = true", 1), r"\[train\] epochs = True .* Expected `int`, got `bool`"),
        (TINY.replace("epochs = 1", "epochs = 1.5", 1), r"Expected `int`, got `float`"),
        (TINY.replace("epochs = 1", "epochs = -1", 1), r"epochs = -1 .* Expected `int` >= 0"),
        (TINY.replace("latency = []", "latency = [0]"), r"latency = \[0\] .* >= 1 \(at \$\[0\]: 0\)"),
        (TINY.replace("latency = []", "latency = 3"), r"latency = 3 .* Expected `array`"),
        (TINY.replace("latency = []", 'engines = ["onnx"]'), r"no engine with 'onnx'.*'onnxruntime'"),
        (TINY.replace("latency = []", 'engines = ["eager", "eager"]'), r"each once"),
        (TINY.replace("shift = []", 'shift = ["smog"]'), r"'smog' is unknown. Did you mean 'fog'"),
        (TINY.replace("shift = []", "severities = [0, 6]"), r"severities = \(0, 6\) must hold some of"),
        (TINY + "[prune]\nkeep = 1.5", r"\[prune\] keep = 1.5 .* Expected `float` <= 1.0"),
        (TINY + "[prune]\nkeep = nan", r"\[prune\] keep = nan .* Expected `float` > 0.0"),
        (TINY + '[prune]\nbudget = "flops"', r"is not one of 'channels', 'params', 'macs'"),
        (TINY + "[prune]\noptions = { since = 2020-01-01 }", r"\[prune\] options holds"),
        (TINY.replace('name = "resnet8"', ""), r"\[model\] needs either a name .* neither"),
        (TINY.replace('name = "resnet8"', 'name = "a"\nfactory = "b:c"'), r"both was given"),
        (TINY.replace('name = "resnet8"', 'factory = "b.c"'), r"must be written"),
        (TINY.replace('name = "resnet8"', 'name = "resnet8"\nweights = "none.safetensors"'), r"there is no such thing"),
        (TINY.replace('name = "digits"', ""), r"\[data\] needs a name"),
        ("model = 3", r"\[model\] = 3 must be a table"),
        ("[model", r"is not TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_at_once(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml(text if "\n" in text or "=" in text else text + "\n")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe at .*none\.toml"):
        Recipe.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "resnet9"}}, "Did you mean 'resnet8'"),
        ({"model": {"options": {"wdith": 2}}}, "no option .wdith."),
        ({"model": {"name": "", "factory": "no_such_module:f"}}, "cannot be imported"),
        ({"model": {"name": "", "factory": "json:nothing"}}, "has no function (or class )?'nothing'"),
        ({"model": {"name": "", "factory": "json:dumps", "options": {"obj": 1}}}, "not a torch module"),
        ({"data": {"name": "digist"}}, "Did you mean 'digits'"),
        ({"prune": {"method": "Magnitud"}}, "Did you mean 'Magnitude'"),
        ({"prune": {"options": {"nrom": 2}}}, "has no option 'nrom'"),
        ({"prune": {"options": {"norm": 3}}}, "norm=3.: norm is one of 1, 2"),
        ({"prune": {"density": 0.1}}, "Magnitude takes no density.*SNIP"),
        ({"prune": {"method": "ERK", "density": 1.5}}, r"density = 1.5 .* Expected `float` <= 1.0"),
        ({"run": {"device": "toaster"}}, "device = 'toaster' cannot be used"),
    ],
)
def test_unknown_names_are_refused_before_any_work(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        run(tiny(**change), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_fingerprint_depends_on_everything_but_the_folder() -> None:
    assert tiny(run={"folder": "elsewhere"}).fingerprint == tiny().fingerprint
    assert tiny(run={"seed": 1}).fingerprint != tiny().fingerprint
    assert differences(tiny().to_dict(), tiny(prune={"keep": 0.4}).to_dict()) == ["[prune] keep: 0.5 -> 0.4"]


def test_every_section_says_what_it_is_for() -> None:
    assert all(cls.__doc__ and not cls.__doc__.startswith(cls.__name__) for cls in SECTIONS.values())


def test_a_factory_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_beside_it.py").write_text("import torch\ndef net(size=2):\n    return torch.nn.Linear(size, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert factory_of("nets_beside_it:net")().in_features == 2
    assert ModelSource(factory="nets_beside_it:net", options={"size": 5}).build().in_features == 5


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, other = ModelSource("resnet8").build(3), ModelSource("resnet8").build(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_leaves_every_artefact_and_none_half_done(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.toml", "graph.json", "plan.json", "model.safetensors", "report.json", "report.html"} <= names
    assert names <= set(steps_module.ARTEFACTS)
    assert not [name for name in names if name.startswith(".") or "training" in name]


def test_a_run_notes_all_its_steps(folder: Path) -> None:
    assert json.loads((folder / "steps.json").read_text())["done"] == list(STEPS)


def test_a_report_says_on_what_and_with_which_versions_it_was_timed(folder: Path) -> None:
    told = Report.load(folder / "report.json").provenance
    assert told["processor"] and told["commit"]
    assert told["timed in eager"] == f"torch {torch.__version__}"
    assert "openvino 2" in told["timed in openvino"]


def test_the_report_compares_with_two_honest_twins(folder: Path) -> None:
    report = Report.load(folder / "report.json")
    dense, pruned, dense_plus, random = (report.rows[n] for n in ("dense", "pruned", "dense+", "random"))
    assert pruned.macs <= dense.macs / 2
    assert dense_plus.macs == dense.macs
    assert (random.macs, random.params, random.nonzero) == (pruned.macs, pruned.params, pruned.nonzero)
    assert pruned.latency.keys() == pruned.speedup.keys() == {"1", "1 in openvino"}
    assert all(len(curve) == 1 for curve in report.curves.values())
    assert report.plan.asked["keep"] == 0.5
    assert report.verification["saved file in a fresh process"] <= 1e-5


def test_the_report_shows_times_by_engine(folder: Path) -> None:
    table = speed(Report.load(folder / "report.json"))
    assert table.head == ("engine", "batch", "dense", "pruned", "random")
    assert [row[:2] for row in table.rows] == [("eager", "1"), ("openvino", "1")]
    assert all("x)" in cell for row in table.rows for cell in row[2:])
    assert "Speed by engine" in (folder / "report.html").read_text()
    assert "| openvino | 1 |" in (folder / "report.md").read_text()


def test_an_engine_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'onnx>=1\.17' .*'\.\[onnx\]'"):
        run(tiny(evaluate={"latency": [1], "engines": ["onnxruntime"]}), folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_the_report_shows_every_network_under_shift(folder: Path) -> None:
    report = Report.load(folder / "report.json")
    networks = report.shift["networks"]
    assert set(networks) == set(report.rows)
    assert list(networks["pruned"]["accuracy"]) == ["fog", "gaussian_noise", "shot_noise", "impulse_noise"]
    assert report.shift["severities"] == [2, 4]
    assert networks["dense"]["mce"] == 1
    assert networks["pruned"]["clean"] == report.rows["pruned"].accuracy
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * (1 + 4)
    assert "| fog |" in (folder / "report.md").read_text()


def test_the_saved_model_costs_what_the_report_says(folder: Path) -> None:
    row = Report.load(folder / "report.json").rows["pruned"]
    again = load(folder / "model.safetensors", lambda: build("resnet8", width=0.25, in_channels=1))
    assert again.cost_after.params == row.params == sum(p.numel() for p in again.model.parameters())


def test_the_recipe_in_the_folder_is_the_one_that_ran(folder: Path) -> None:
    assert Recipe.from_toml(folder / "recipe.toml") == tiny(evaluate=MEASURED)


def test_a_finished_run_is_not_run_again(folder: Path) -> None:
    said: list[str] = []
    recipe = Recipe.from_toml(folder / "recipe.toml")
    report = run(recipe, folder=folder, say=said.append)
    assert said == [f"{name}: done before" for name in STEPS]
    assert report == Report.load(folder / "report.json")


def test_the_folder_of_another_recipe_is_refused_with_what_differs(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"another recipe: \[prune\] keep: 0.5 -> 0.25"):
        run(tiny(evaluate={"latency": [1], "rounds": 3}, prune={"keep": 0.25}), folder=folder, progress=False)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(RecipeError, match="holds 'thesis.txt'"):
            run(tiny(), folder=tmp_path, progress=False, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot make the folder"):
        run(tiny(), folder=tmp_path / "file" / "run", progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = load(folder / "model.safetensors", lambda: build("resnet8", width=0.25, in_channels=1)).model
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("stopped_at", ["train_dense", "recover"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    stopped_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(run={"twins": False}, train={"epochs": 2}, recover={"epochs": 2})
    brief = {name: step for name, step in STEPS.items() if name not in ("reload", "report")}
    monkeypatch.setattr("nervure.recipe.runner.STEPS", brief)
    monkeypatch.setattr("nervure.recipe.runner.Report", _NoReport)
    run(recipe, folder=tmp_path / "straight", progress=False)

    said: list[str] = []
    with monkeypatch.context() as patch:
        _stop_after_one_epoch(patch, "dense" if stopped_at == "train_dense" else "pruned")
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder=tmp_path / "stopped", say=said.append)
    assert "what is done is kept" in said[-1]
    run(recipe, folder=tmp_path / "stopped", progress=False)

    straight, stopped = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


class _NoReport:
    """Stands in for a report that a brief run does not write."""

    @staticmethod
    def load(path: Path) -> None:
        """Nothing to load."""


def _stop_after_one_epoch(patch: pytest.MonkeyPatch, name: str) -> None:
    """Press Ctrl-C in the validation after the first epoch of the training called ``name``."""
    real, calls = steps_module._train, [0]

    def validating(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return measured(*args, **options)

    from nervure.training import loop

    measured = loop._validate

    def training(bench: Any, which: str, *rest: Any) -> Any:
        if which == name:
            patch.setattr(loop, "_validate", validating)
        return real(bench, which, *rest)

    patch.setattr(steps_module, "_train", training)


def test_beginning_anew_forgets_the_run_before(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said: list[str] = []

    def enough(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(prune={"keep": 0.25}), folder=tmp_path, resume=False, say=enough)
    assert said[0] == "train ..."
    assert not (tmp_path / "report.json").exists()


def test_a_saved_file_that_computes_something_else_is_found(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "probe.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    source = ModelSource(**read_header(folder / "model.safetensors")["meta"]["model"])
    assert difference(tmp_path, source) <= 1e-5
    _, probe = read_container(tmp_path / "probe.safetensors", dict[str, Any], PROBE)
    write_container(tmp_path / "probe.safetensors", probe | {"outputs": probe["outputs"] + 1}, {}, PROBE)
    assert difference(tmp_path, source) > 1e-2


def test_weights_given_replace_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.recipe.runner.STEPS", {"train": STEPS["train"]})
    monkeypatch.setattr("nervure.recipe.runner.Report", _NoReport)
    recipe = tiny(model={"weights": str(folder / "dense.safetensors")})
    run(replace(recipe), folder=tmp_path / "given", progress=False)
    assert json.loads((tmp_path / "given" / "dense.history.json").read_text())["steps"] == 0


def test_recovery_can_listen_to_the_dense_network(tmp_path: Path, folder: Path) -> None:
    taught = run(tiny(recover={"distill": 0.5, "temperature": 2.0}), folder=tmp_path / "taught", progress=False)
    alone = Report.load(folder / "report.json")
    assert taught.rows["dense"].loss == alone.rows["dense"].loss
    # All twins hear the same teacher.
    assert all(taught.rows[name].loss != alone.rows[name].loss for name in ("pruned", "dense+", "random"))


def invert(batch: Any, seed: int) -> Any:
    """A view of the user's own."""
    return -batch[0], batch[1]


def losses_of(data: Dataset, **keys: Any) -> tuple[float, ...]:
    """Of a short recovery."""
    model = ModelSource("resnet8", options={"width": 0.25, "in_channels": 1}).build(seed=0)
    section = RecoverSection(epochs=1, batch_size=16, **keys)
    return train_section(model, data, section, seed=0, progress=False, tested=["rotate"]).loss


def test_a_section_says_which_views_are_trained_on_and_which_steps_are_taken() -> None:
    data = dataset_of(tiny(data={"train_samples": 32}).data, 0)
    data = replace(data, validation=data.validation.sample(20))
    found = [
        losses_of(data),
        losses_of(data, objective="augmented"),
        losses_of(data, objective="augmented", views=f"{__name__}:invert"),
        losses_of(data, objective="consistent", view_count=1),
        losses_of(data, objective="consistent", view_count=1, consistency=1.0),
        losses_of(data, sharpness=0.1),
        losses_of(data, sharpness=0.1, adaptive=True),
    ]
    assert len(set(found)) == len(found)


def test_what_is_tested_is_not_trained_on_in_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("nervure.recipe.making.picture_views", lambda **how: seen.append(how) or invert)
    recipe = tiny(train={"objective": "augmented", "epochs": 1}, evaluate={"shift": ["noise", "rotate"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nervure.recipe.runner.STEPS", {"train": STEPS["train"]})
        patch.setattr("nervure.recipe.runner.Report", _NoReport)
        run(recipe, folder=tmp_path, progress=False)
    assert seen[0]["tested"] == ("noise", "rotate") and len(seen[0]["normalisation"]) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"objective": "mixed"}, "objective = 'mixed' is not one of 'plain', 'augmented', 'consistent'"),
        ({"objective": "augmented", "views": "augmix"}, "views = 'augmix' is not written 'package.module:name'"),
        ({"views": "mine:views"}, 'needs objective = "augmented" or "consistent"'),
        ({"adaptive": True}, "adaptive = True needs a sharpness above 0"),
        ({"sharpness": -1.0}, "sharpness = -1.0"),
        ({"view_count": 0}, "view_count = 0"),
    ],
)
@pytest.mark.parametrize("section", ["train", "recover"])
def test_views_and_steps_that_mean_nothing_are_refused(section: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        tiny(**{section: keys})


def test_a_recipe_without_views_has_the_digest_that_it_had() -> None:
    content = tiny().to_dict()
    for section in ("train", "recover"):
        for key in ("objective", "views", "view_count", "consistency", "sharpness", "adaptive"):
            del content[section][key]
    assert tiny().fingerprint == "6c5e21a03ec917d6"
    assert tiny(train={"sharpness": 0.05}).fingerprint != tiny().fingerprint
    assert not differences(content, tiny().to_dict())


def test_a_teacher_pulls_towards_its_answers() -> None:
    data = dataset_of(tiny().data, 0)
    teacher, losses = ModelSource("resnet8", options={"width": 0.25, "in_channels": 1}).build(seed=1).eval(), {}
    with torch.no_grad():
        teacher.fc.bias += 3 * torch.arange(10.0)
    for share in (0.0, 1.0):
        model = ModelSource("resnet8", options={"width": 0.25, "in_channels": 1}).build(seed=0)
        section = RecoverSection(epochs=5, batch_size=32, distill=share, temperature=1.0)
        train_section(model, data, section, seed=0, teacher=teacher, progress=False)
        x = data.example(64)
        with torch.no_grad():
            losses[share] = float((model(x).softmax(1) - teacher(x).softmax(1)).abs().sum(1).mean())
    assert losses[1.0] < 0.5 * losses[0.0]


def test_layers_then_channels_in_one_recipe(tmp_path: Path) -> None:
    text = (
        TINY
        + """
[prune]
keep = 0.9
[[prune.then]]
method = "Magnitude"
keep = 0.6
budget = "macs"
"""
    )
    recipe = Recipe.from_toml(text)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    data = recipe.to_dict()
    data["prune"] |= {"method": "Depth", "options": {"drop": 1}}
    data["run"]["twins"] = False
    report = run(Recipe.from_dict(data), folder=tmp_path / "both", progress=False)
    assert report.method.startswith("Depth(")
    assert ", then Magnitude(keep=0.6" in report.method
    assert len(report.plan.drops) == 1
    (cut,) = report.later
    after = [w.after for w in report.widths if w.after < w.before]
    assert sorted(after) == sorted(c.keep.count for c in cut.cuts)
    told = [row[0] for row in budget(report).rows]
    assert "drop" in told and "then keep" in told
    assert [row[0] for row in edits(report).rows] == ["drop"]
    assert Report.from_json(report.to_json()) == report
    source = ModelSource(**read_header(tmp_path / "both" / "model.safetensors")["meta"]["model"])
    again = load(tmp_path / "both" / "model.safetensors", source.build)
    assert again.plan.cuts
    assert again.earlier[0].plan == report.plan
    assert again.cost_after.macs < 0.6 * again.cost_before.macs


@pytest.mark.parametrize(
    ("table", "message"),
    [({"method": "Magnitud"}, "number 1: there is no method 'Magnitud'"), ({"method": "Random", "kep": 1}, "'kep'")],
)
def test_a_later_method_that_is_unknown_is_refused_before_any_work(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run(tiny(prune={"then": [table]}), folder=tmp_path / "run", progress=False)


@pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")
@pytest.mark.parametrize(
    ("method", "options"),
    [("SNACS", {"granularity": "filters", "samples": 64}), ("SNIP", {}), ("Energy", {"drop": 1, "rounds": 1})],
)
def test_the_network_is_asked_under_measure_and_the_plan_runs_it_not_once(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def plan(bench: Any) -> None:
        with counting_runs() as runs:
            steps_module.plan_cut(bench)
        ran.append(runs)
        raise FileError("this is enough")

    monkeypatch.setitem(steps_module.STEPS, "plan", plan)  # type: ignore[arg-type]
    with pytest.raises(FileError, match="this is enough"):
        run(tiny(prune={"method": method, "options": options}), folder=tmp_path / "run", progress=False)
    assert ran == [[]]
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["edits"]


def test_masks_have_a_twin_with_as_many_masked_by_lot(tmp_path: Path) -> None:
    options = {"granularity": "kernels", "limits": False, "samples": 128}
    report = run(
        tiny(prune={"method": "SNACS", "keep": 0.4, "options": options}), folder=tmp_path / "r", progress=False
    )
    pruned, random, dense = (report.rows[name] for name in ("pruned", "random", "dense"))
    assert pruned.macs == dense.macs
    assert abs(random.nonzero - pruned.nonzero) <= 2
    assert random.nonzero < 0.7 * dense.nonzero
    assert set(report.evidence["layers"]) >= {"conv1.weight", "fc.weight"}
    assert "Connectivity" in (tmp_path / "r" / "report.html").read_text()


def test_a_density_in_a_recipe_prunes_before_training_and_has_a_twin_by_lot(tmp_path: Path) -> None:
    recipe = tiny(train={"epochs": 0}, prune={"method": "SNIP", "density": 0.1})
    report = run(recipe, folder=tmp_path / "r", progress=False)
    plan = Plan.from_json(json.loads((tmp_path / "r" / "plan.json").read_text()))
    assert plan.asked["density"] == 0.1
    kept, whole = (sum(getattr(mask.keep, what) for mask in plan.masks) for what in ("count", "size"))
    # The last layer may be whole.
    assert kept / whole <= 0.1 < (kept + 50) / whole
    networks = {
        name: load(tmp_path / "r" / f"{name}.safetensors", lambda: tiny_network()) for name in ("model", "random")
    }
    for name, found in networks.items():
        for mask in plan.masks:
            weight = found.model.get_parameter(mask.tensor)
            assert int(torch.count_nonzero(weight.detach())) == mask.keep.count, (name, mask.tensor)
    assert any(not torch.equal(mask, networks["random"].masks[name]) for name, mask in networks["model"].masks.items())
    assert max(report.rows[name].nonzero for name in ("pruned", "random")) < 0.2 * report.rows["dense"].nonzero


def tiny_network() -> torch.nn.Module:
    return build("resnet8", width=0.25, in_channels=1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("RigL", {"density": 0.3, "events": 3}),
        ("GMP", {"density": 0.3, "events": 3}),
    ],
)
def test_a_method_that_rewires_does_so_in_a_run(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny(prune={"method": method, "options": options}, train={"epochs": 3}, recover={"epochs": 3})
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    report = run(recipe, folder=tmp_path, progress=False)
    saved = load(
        tmp_path / "model.safetensors", lambda: ModelSource("resnet8", "", {"width": 0.25, "in_channels": 1}).build()
    )
    there = sum(int(mask.sum()) for mask in saved.masks.values())
    whole = sum(mask.numel() for mask in saved.masks.values())
    assert options["density"] * whole - 10 < there <= round(options["density"] * whole)
    assert all(not bool(saved.model.get_parameter(name)[~mask].any()) for name, mask in saved.masks.items())
    assert report.plan.reached == pytest.approx({"density": there / whole, "weights": there})
    # Methods that begin by lot train a fresh network as the dense one was trained; GMP goes on with the trained one.
    assert ("dense+" in report.rows) == (method == "GMP")
    assert report.rows["random"].nonzero == pytest.approx(report.rows["pruned"].nonzero, rel=0.05)
    events = [json.loads(line) for line in (tmp_path / "pruned.events.jsonl").read_text().splitlines()]
    assert events == list(report.evidence["events"]) and events[0]["kind"] == "start"
    assert "connections that are there" in (tmp_path / "report.html").read_text()
    assert Report.from_json(report.to_json()) == report
