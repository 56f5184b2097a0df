"""Any model, any data, any task, wherever a recipe or the command line names them."""

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from nervure import SNACS, Magnitude, Recipe, prune, run, save, sweep
from nervure.cli import main
from nervure.core.inputs import Inputs
from nervure.errors import FileError, MissingExtraError, RecipeError
from nervure.recipe import Study
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.recipe.making import dataset_of, method_of
from nervure.recipe.own_data import OwnData
from nervure.recipe.probe import answers, largest_difference, read_probe, write_probe
from nervure.recipe.recipe import DataSection, differences
from nervure.recipe.results import read_outcomes
from nervure.recipe.sources import ModelSource, source_in
from nervure.recipe.task_making import MAKERS, task_from
from nervure.report import Report, figures_of, to_html, to_markdown
from nervure.report.sweep_report import Sweep, sweep_page, sweep_text
from nervure.report.tables import comparison
from nervure.tasks import Task

MINE = """
import torch
from torch import nn
from nervure import tasks


def draw(seed, *shape, to=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(to, shape, generator=generator) if to else torch.randn(shape, generator=generator)


def numbers(seed, scale=2.0):
    x = draw(seed, 48, 6)
    batches = list(zip(x.split(16), (x[:, :2] * scale).split(16)))
    return {"train": batches, "validation": batches[:1], "test": batches[1:]}


def tokens(seed):
    batches = [{"ids": ids, "labels": ids % 3} for ids in draw(seed, 24, 6, to=9).split(8)]
    return batches, batches[:1], batches[1:]


class Loaders:
    def __init__(self, seed):
        batches = [{"ids": ids} for ids in draw(seed, 24, 6, to=9).split(8)]
        self.train, self.validation, self.test = batches, batches[:1], batches[1:]


def pictures(seed, side=8):
    shown, labels = draw(seed, 24, 3, side, side), draw(seed, 24, side, side, to=3)
    labels[:, 0] = 255
    batches = list(zip(shown.split(8), labels.split(8)))
    return batches, batches[:1], batches[1:]


def once(seed):
    return iter([]), [], []


def halves(seed):
    return {"train": [], "test": []}


def regressor(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))


class Tagger(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, ids):
        return {"logits": self.head(torch.relu(self.inner(self.table(ids))))}


def segmenter(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 1))


def both(model, batch):
    return (model(batch[0]) - batch[1]).abs().mean()


far = tasks.Task(objective=both, name="far")


def task_of(weight=1.0):
    return tasks.Task(objective=lambda model, batch: weight * both(model, batch), name="weighed")
"""
SHORT: dict[str, Any] = {
    "train": {"epochs": 1, "lr": 0.01},
    "recover": {"epochs": 1, "lr": 0.01},
    "evaluate": {"latency": []},
    "run": {"twins": False},
}


@pytest.fixture(autouse=True)
def in_a_folder_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_code.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    # Saved files are looked at in this process, without the seconds that a new one takes.
    monkeypatch.setattr(steps_module, "_in_fresh_process", difference)


def recipe(model: Any, data: str, **sections: Any) -> Recipe:
    given = {"model": model if isinstance(model, dict) else {"factory": f"my_code:{model}"}}
    given["data"] = {"factory": f"my_code:{data}"}
    return Recipe.from_dict(SHORT | given | sections)


def test_a_regression_network_is_known_by_its_first_batch() -> None:
    pytest.importorskip("torchmetrics")
    said: list[str] = []
    twins = {"prune": {"method": "Taylor"}, "refit": {"samples": 16}, "run": {"twins": True}}
    report = run(recipe("regressor", "numbers", **twins), folder="out", say=said.append)
    assert said[0] == "task: regression, told from the first batch: the labels are numbers, one for each output"
    assert "first batch tells that it is regression" in report.notes[0]
    assert report.rows["pruned"].macs <= report.rows["dense"].macs / 2
    head = comparison(report).head
    assert head[:5] == ("network", "rmse ↓", "mae ↓", "r2 ↑", "loss ↓") and "accuracy" not in head
    assert "rmse" in report.headline and report == Report.load("out/report.json")
    assert "| pruned | " in to_markdown(report) and set(report.rows) == {"dense", "pruned", "dense+", "random"}
    assert "rmse" in report.notes[1]
    assert "Shift was not measured" in report.notes[-1] and "loaders of your own" in report.notes[-1]


def test_tokens_in_dicts_are_classified() -> None:
    pytest.importorskip("torchmetrics")
    report = run(recipe("Tagger", "tokens", task="token_classification"), folder="out", progress=False)
    assert report.task["name"] == "token classification" and report.task["reason"] == ""
    assert 0 <= (report.rows["pruned"].metrics["accuracy"] or 0) <= 1
    assert all(point.accuracy is not None for point in report.curves["dense"])


def test_a_small_language_model_is_pruned_by_its_own_loss() -> None:
    pytest.importorskip("torchmetrics")
    task = {"name": "language_modelling", "output": "logits"}
    model = {"factory": "my_code:Tagger", "options": {"classes": 9}}
    report = run(recipe(model, "Loaders", task=task, prune={"method": "Taylor"}), folder="out", progress=False)
    assert next(iter(report.metrics)) == "perplexity" and "perplexity" in report.headline


def test_a_sweep_of_segmentation_has_the_metrics_of_its_task() -> None:
    pytest.importorskip("torchmetrics")
    task = {"name": "segmentation", "ignore": 255}
    found = sweep(recipe("segmenter", "pictures", task=task), keeps=[0.7, 0.5], folder="out", progress=False)
    assert found.failures == {}
    outcomes = list(read_outcomes(Path("out/results.jsonl")))
    assert all({"mean_iou", "accuracy"} <= outcome.metrics.keys() for outcome in outcomes)
    assert all(outcome.accuracy == outcome.metrics["accuracy"] for outcome in outcomes)
    assert outcomes[0].quality.startswith("mean iou 0.") and next(iter(outcomes[0].higher_is_better)) == "mean_iou"
    bare = recipe("segmenter", "pictures", task=task, evaluate={"latency": [], "shift": []})
    assert sweep(bare, keeps=[0.7], folder="bare", progress=False).notes == ()
    assert {"mean iou ↑", "validation mean iou ↑"} <= set(found.table().head) and found.on_front()


def test_a_sweep_without_metrics_draws_a_front_of_losses() -> None:
    swept = recipe("regressor", "numbers", task="my_code:both", train={"epochs": 0}, recover={"epochs": 0})
    found = sweep(swept, keeps=[0.5], folder="out", progress=False)
    outcomes = list(read_outcomes(Path("out/results.jsonl")))
    assert all(o.validation > 0 and math.isnan(o.accuracy) and o.loss > 0 for o in outcomes)
    assert "accuracy" not in found.headline and outcomes[0].quality.startswith("loss ")
    (note,) = found.notes
    assert "Shift was not measured" in note and note in sweep_text(found) and "Shift was not" in sweep_page(found)
    assert Sweep.from_json(found.to_json()).notes == found.notes
    best = min(found.means, key=lambda mean: mean.validation.value)
    assert best in found.on_front() and "loss ↓" in found.table().head and "macs-clean" in found.charts()


def test_an_objective_of_ones_own_needs_no_metrics() -> None:
    report = run(recipe("regressor", "numbers", task="my_code:both"), folder="out", progress=False)
    assert report.task == {"name": "both", "reason": "", "higher_is_better": {}}
    assert comparison(report).head[:2] == ("network", "loss ↓") and "loss" in report.headline
    assert all(point.accuracy is None for point in report.curves["dense"])
    assert all((point.validation_loss or 0) > 0 for point in report.curves["pruned"])
    assert "Validation loss by epoch" in to_html(report) and "Validation accuracy" not in to_html(report)
    assert figures_of(report)["validation loss"] and Report.load("out/report.json") == report
    with pytest.raises(RecipeError, match=r"another recipe: \[task\] name: 'my_code:both' -> 'my_code:far'"):
        run(recipe("regressor", "numbers", task="my_code:far"), folder="out", progress=False)


def test_prune_writes_a_recipe_and_runs_it() -> None:
    words = ["prune", "--model", "my_code:regressor", "--data", "my_code:numbers", "--data-option", "scale=3"]
    words += ["--task", "my_code:far", "--keep", "0.6", "--method", "Random", "--refit", "--lr", "0.02"]
    done = CliRunner().invoke(main, [*words, "--epochs", "1", "--train-epochs", "1", "--out", "out", "--quiet"])
    assert done.exit_code == 0, done.output
    written = Recipe.from_toml("out/recipe.toml")
    assert f"recipe: {Path('out/recipe.toml')}" in done.output
    assert (written.prune.keep, written.prune.method, written.refit.samples) == (0.6, "Random", 1024)
    assert (written.train.lr, written.recover.epochs, written.data.options) == (0.02, 1, {"scale": 3})
    again = CliRunner().invoke(main, ["run", "out/recipe.toml", "--folder", "out"])
    assert again.exit_code == 0 and "report: done before" in again.output


def test_commands_take_tasks_and_loaders() -> None:
    own = ["--model", "my_code:regressor", "--data", "my_code:numbers", "--task", "my_code:far"]
    for words in (
        ["plan", "Taylor", "--keep", "0.5", *own, "--out", "plan.json"],
        ["apply", "--plan", "plan.json", *own, "--out", "cut.safetensors"],
        ["train", "--file", "cut.safetensors", "--epochs", "1", "--lr", "0.01", *own, "--out", "new.safetensors"],
        ["evaluate", "--file", "new.safetensors", *own, "--out", "numbers.json"],
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    assert "loss" in done.output and json.loads(Path("numbers.json").read_text())["task"] == "far"
    refused = CliRunner().invoke(main, ["evaluate", *own, "--shift", "all"])
    assert refused.exit_code == 2 and "--shift is for images" in refused.output


@pytest.mark.parametrize(
    "told", ["segmentation", {"name": "segmentation", "ignore": 0}, {"name": "segmentation", "options": {"ignore": 0}}]
)
def test_a_task_is_written_in_several_ways(told: Any) -> None:
    one = recipe("segmenter", "pictures", task=told)
    assert one.task.name == "segmentation" and one.task.options == ({} if isinstance(told, str) else {"ignore": 0})
    assert Recipe.from_toml(one.to_toml()) == one == Recipe.from_dict(one.to_dict())
    assert one.fingerprint != recipe("segmenter", "pictures").fingerprint


def test_digests_of_recipes_without_the_new_keys_are_as_they_were() -> None:
    plain = Recipe.from_dict({"model": {"name": "resnet8"}, "data": {"name": "digits"}})
    assert plain.fingerprint == "e56675888e230fbc"
    before = plain.to_dict()
    del before["task"], before["data"]["factory"], before["data"]["options"]
    assert differences(before, plain.to_dict()) == []
    study = {"data": {"name": "digits"}, "network": [{"name": "resnet8"}], "method": [{"name": "Random"}]}
    keys = [(trial.key, trial.dense_key) for trial in Study.from_dict(study).trials()]
    assert keys[1] == ("074eebab21cd5f9b", "65d71a63c3204b66")
    tasked = Study.from_dict(study | {"task": "segmentation"}).trials()[1]
    assert tasked.key != keys[1][0] and tasked.dense_key != keys[1][1]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("segmentaton", "no task 'segmentaton'. Did you mean 'segmentation'"),
        ({"name": "segmentation", "ignroe": 0}, "has no option 'ignroe'. Did you mean 'ignore'"),
        ({"name": "segmentation", "ignore": "sky"}, "segmentation: "),
        ({"name": "sequence"}, "sequence needs kind"),
        ("agreement", "returns tasks.agreement(dense)"),
        ({"ignore": 0}, "needs a name beside 'ignore'"),
        (3, "must be a table"),
    ],
)
def test_what_is_no_task_is_told_at_once(task: Any, message: str) -> None:
    with pytest.raises(RecipeError) as told:
        recipe("segmenter", "pictures", task=task)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("my_code:nothing", {}, "has no task or function 'nothing'"),
        ("my_code:far", {"weight": 2}, "is a task already"),
        ("my_code:task_of", {"wieght": 2}, "Did you mean 'weight'"),
        ("my_code:regressor", {}, "returned a Sequential"),
    ],
)
def test_what_makes_no_task_is_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        task_from(name, options)


def test_tasks_are_made_of_plain_data() -> None:
    assert isinstance(task_from("my_code:task_of", {"weight": 0.5}), Task)
    heads = {"age": {"name": "regression", "output": "age", "labels": "age"}, "weights": {"age": 0.5}}
    assert "age.rmse" in task_from("multitask", heads).metrics
    assert task_from("regression", {"inputs": ["a", "b"]}).inputs({"a": 1, "b": 2, "c": 3}) == {"a": 1, "b": 2}
    assert set(MAKERS) > {"segmentation", "detection"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("once", {}, "train can be gone through once only"),
        ("halves", {}, "made no validation"),
        ("numbers", {"sacle": 3}, "has no option 'sacle'. Did you mean 'scale'"),
        ("both", {}, "cannot be made: TypeError"),
    ],
)
def test_what_makes_no_loaders_is_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        dataset_of(DataSection(factory=f"my_code:{name}", options=options), seed=0)


def test_so_many_samples_are_taken_of_loaders() -> None:
    data = dataset_of(DataSection(factory="my_code:tokens", train_samples=12), seed=0)
    assert isinstance(data, OwnData)
    assert [len(batch["ids"]) for batch in data.train.batches()] == [8, 4]
    assert data.train.describe() == "12 samples" and data.test.describe() == "2 batches"


def test_code_beside_a_recipe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "beside_it.py").write_text(MINE)
    (place / "mine.toml").write_text(recipe("regressor", "numbers").to_toml().replace("my_code", "beside_it"))
    found = Recipe.from_toml(place / "mine.toml")
    assert isinstance(dataset_of(found.data, 0), OwnData)
    assert isinstance(ModelSource(factory=found.model.factory).build(), nn.Sequential)


def test_a_probe_holds_arguments_of_any_form(tmp_path: Path) -> None:
    def model(x: torch.Tensor, *, parts: dict[str, Any], flag: bool) -> dict[str, torch.Tensor]:
        return {"sum": x + parts["y"][0], "twice": 2 * x}

    inputs = Inputs((torch.ones(2, 3),), {"parts": {"y": [torch.ones(3)], "none": None}, "flag": True})
    path = write_probe(tmp_path / "p.safetensors", inputs, answers(model, inputs))
    again, expected = read_probe(path)
    assert largest_difference(answers(model, again), expected) == 0
    assert largest_difference(answers(model, again.map(lambda x: x + 1)), expected) > 0.1


@pytest.mark.parametrize("name", ["timm:resnet50", "torchvision:resnet18", "hf:folder"])
def test_a_library_that_is_absent_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(module: str) -> Any:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[(timm|torchvision|transformers)\]'"):
        ModelSource.of_name(name, {}).build()


def test_a_file_that_names_a_library_must_be_trusted() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    pruned = prune(net, torch.randn(2, 4), Magnitude(keep=0.5), progress=False, verify=False)
    model = {"name": "timm:resnet18", "factory": "", "options": {"checkpoint_path": "evil.pt"}}
    file = str(save("m.safetensors", pruned, meta={"model": model}))
    with pytest.raises(FileError, match="--trust-factory"):
        source_in(file)
    assert source_in(file, trust_factory=True) == ModelSource("timm:resnet18", "", model["options"])


def test_timm_builds_by_name_and_for_the_data() -> None:
    pytest.importorskip("timm", exc_type=Exception)
    source = ModelSource.of_name("timm:resnet10t", {}).suited_to(1, 7)
    assert source.build().eval()(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(RecipeError, match="Did you mean 'resnet10t'"):
        ModelSource.of_name("timm:resnet10tt", {}).build()


def test_torchvision_builds_by_name_and_for_the_data() -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    source = ModelSource.of_name("torchvision:squeezenet1_1", {}).suited_to(3, 7)
    assert source.build().eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    assert (
        "num_classes" not in ModelSource.of_name("torchvision:resnet18", {"weights": "DEFAULT"}).suited_to(3, 7).options
    )
    with pytest.raises(RecipeError, match="Did you mean 'squeezenet1_1'"):
        ModelSource.of_name("torchvision:squeezenet11", {}).build()


def test_transformers_builds_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=9, num_labels=3, **sizes)
    model = transformers.BertForTokenClassification(config)
    model.save_pretrained(tmp_path / "tiny")
    again = ModelSource.of_name("hf:tiny", {}).build(seed=5)
    assert type(again) is type(model) and torch.equal(again.classifier.weight, model.classifier.weight)
    fresh = ModelSource.of_name("hf:tiny", {"pretrained": False, "num_labels": 5}).build()
    assert fresh.classifier.out_features == 5
    masked = ModelSource.of_name("hf:tiny", {"class": "AutoModelForMaskedLM", "pretrained": False}).build()
    assert type(masked).__name__ == "BertForMaskedLM"
    with pytest.raises(RecipeError, match="Did you mean 'AutoModelForMaskedLM'"):
        ModelSource.of_name("hf:tiny", {"class": "AutoModelForMaskedLMs"}).build()
    with pytest.raises(RecipeError, match="its config has no 'num_lables'. Did you mean 'num_labels'"):
        ModelSource.of_name("hf:tiny", {"pretrained": False, "num_lables": 5}).build()
    with pytest.raises(RecipeError, match=r"there is no folder 'tyni'.* Did you mean 'tiny'"):
        ModelSource.of_name("hf:tyni", {"local_files_only": True}).build()


@pytest.mark.parametrize(
    ("words", "options"), [([], {}), (["--set", "granularity=kernels"], {"granularity": "kernels"})]
)
def test_a_new_recipe_has_snacs_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], options: dict[str, str]
) -> None:
    written: list[Recipe] = []
    monkeypatch.setattr("nervure.cli.commands.run_recipe", lambda recipe, **_: written.append(recipe) or 1 / 0)
    command = ["prune", "--model", "resnet8", "--data", "digits", "--keep", "0.5", "--method", "SNACS", *words]
    CliRunner().invoke(main, [*command, "--out", str(tmp_path / "run")])
    assert (written[0].prune.version, written[0].prune.options) == (3, options)
    again = Recipe.from_toml(written[0].to_toml())
    assert method_of(again) == SNACS(keep=0.5, budget="macs", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "keep"),
    [
        (["--method", "SNACS"], "limits"),
        (["--method", "Compensated", "--keep", "limits"], "limits"),
        (["--method", "SNACS", "--keep", "0.4"], 0.4),
        (["--method", "SNACS", "--budget", "params"], 0.5),
        (["--method", "SNACS", "--budget", "params", "--keep", "limits"], "limits"),
        (["--method", "SNACS", "--set", "granularity=kernels", "--set", "limits=false"], 0.5),
        (["--method", "SNACS", "--tolerance", "0.01"], 0.5),
        (["--method", "Magnitude"], 0.5),
    ],
)
def test_limits_decide_where_the_command_line_says_nothing_and_the_method_finds_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], keep: float | str
) -> None:
    written: list[Recipe] = []
    monkeypatch.setattr("nervure.cli.commands.run_recipe", lambda recipe, **_: written.append(recipe) or 1 / 0)
    CliRunner().invoke(
        main, ["prune", "--model", "resnet8", "--data", "digits", *words, "--out", str(tmp_path / "run")]
    )
    assert written[0].prune.keep == keep
    assert Recipe.from_toml(written[0].to_toml()) == written[0]
    assert getattr(method_of(written[0]), "keep", None) == (None if keep == "limits" else keep)


def test_limits_are_refused_where_a_method_finds_none() -> None:
    told = CliRunner().invoke(main, ["plan", "Magnitude", "--keep", "limits", "--model", "resnet8"])
    assert told.exit_code == 2 and "Magnitude finds no limits" in told.output and "SNACS" in told.output
    recipe = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
    with pytest.raises(RecipeError, match="Magnitude finds no limits"):
        method_of(Recipe.from_dict(recipe | {"prune": {"keep": "limits"}}))
    with pytest.raises(RecipeError, match="keep = 'limit'"):
        Recipe.from_dict(recipe | {"prune": {"method": "SNACS", "keep": "limit"}})
    told = CliRunner().invoke(main, ["plan", "SNACS", "--keep", "half", "--model", "resnet8"])
    assert told.exit_code == 2 and "'half'" in told.output and "limits" in told.output
