"""What a file or a folder says runs no code of whoever made it."""

import ast
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import nervure
from nervure import Magnitude, load, prune, save, zoo
from nervure.cli import main
from nervure.core.container import write_container
from nervure.core.provenance import commit
from nervure.errors import FileError, RecipeError
from nervure.recipe.fresh import difference
from nervure.recipe.probe import PROBE
from nervure.recipe.results import agree
from nervure.recipe.sources import ModelSource, source_in
from nervure.recipe.workers import environment, python
from nervure.report.comparison import Outcome


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(**model: Any) -> str:
    """A pruned ResNet-8 in a file whose header says that ``model`` builds it."""
    net = zoo.build("resnet8", in_channels=1, width=0.25)
    pruned = prune(net, torch.randn(1, 1, 8, 8), Magnitude(keep=0.5), progress=False, verify=False)
    return str(save("m.safetensors", pruned, meta={"model": {"name": "", "factory": "", "options": {}, **model}}))


def said(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(words))
    return result.exit_code, " ".join(result.output.split())


EVIL: dict[str, Any] = {"factory": "os:system", "options": {"command": "touch PWNED"}}


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--data", "digits"),
        ("train", "--data", "digits"),
        ("connectivity", "--input", "1x1x8x8"),
        ("export", "--input", "1x1x8x8", "-o", "m.pt2"),
    ],
)
def test_a_factory_in_a_file_is_not_called_but_told(words: tuple[str, ...]) -> None:
    code, text = said(*words, "--file", saved(**EVIL))
    assert code == 2 and "os:system(command='touch PWNED')" in text and "--trust-factory" in text
    assert not Path("PWNED").exists()


def test_with_consent_a_factory_is_called() -> None:
    code, text = said("evaluate", "--data", "digits", "--file", saved(**EVIL), "--trust-factory")
    assert code == 2 and "returned a int" in text
    assert Path("PWNED").exists()


def test_a_network_of_the_zoo_is_taken_from_a_file() -> None:
    options = {"in_channels": 1, "width": 0.25}
    assert source_in(saved(name="resnet8", options=options)) == ModelSource("resnet8", "", options)
    assert said("evaluate", "--data", "digits", "--file", "m.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "resnet8", "options": {"width": 8.0}}, "larger than the"),
        ({"name": "resnet8", "options": {"width": 1e30}}, "option 'width'"),
        ({"name": "resnet8", "options": {"in_channels": 2**62}}, "option 'in_channels'"),
        ({"name": "vit_tiny", "options": {"depth": 256}}, "larger than the"),
        ({"name": "resnet8", "options": {"width": "1"}}, "option 'width'"),
        ({"name": "resnet8", "options": {"width": True}}, "option 'width'"),
        ({"name": "resnet8", "options": {"shortcut": "os"}}, "option 'shortcut'"),
        ({"name": "resnet8", "options": {"wdith": 1}}, "no option 'wdith'"),
        ({"name": "os"}, "no network 'os'"),
        ({"name": "__class__"}, "no network '__class__'"),
        ({"name": 3}, "at $.meta.model.name"),
        ({"name": "resnet8", "options": []}, "at $.meta.model.options"),
    ],
)
def test_a_network_that_is_not_that_of_the_file_is_refused_before_it_takes_memory(
    model: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError, match="m.safetensors") as refused:
        source_in(saved(**model))
    assert message in str(refused.value)


def test_what_builds_a_network_may_raise_anything_and_is_told_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"operator:truediv cannot be built: TypeError: .*\.$"):
        ModelSource("", "operator:truediv", {}).build()


@pytest.mark.parametrize(("module", "told"), [("worker", 0), ("fresh", 1)])
def test_modules_in_the_working_folder_stand_in_for_none_of_ours(module: str, told: int) -> None:
    for name in ("json", "torch", "numpy", "safetensors"):
        Path(f"{name}.py").write_text("open('PWNED', 'w')\n")
    words = python(f"nervure.recipe.{module}", "nowhere")
    done = subprocess.run(words, input="{}" * told, text=True, capture_output=True, check=False, env=environment(1))
    assert done.returncode == told and ("FileError" in done.stderr) == bool(told)
    assert not Path("PWNED").exists()


def test_a_folder_is_checked_with_the_network_of_its_recipe_not_with_that_of_its_file() -> None:
    inputs = torch.randn(2, 1, 8, 8)
    saved(**EVIL)
    Path("m.safetensors").replace("model.safetensors")
    source = ModelSource("resnet8", "", {"in_channels": 1, "width": 0.25})
    outputs = load("model.safetensors", source.build).model.eval()(inputs).detach()
    write_container(Path("probe.safetensors"), {"inputs": inputs, "outputs": outputs}, {}, PROBE)
    assert difference(Path(), source) < 1e-6
    assert not Path("PWNED").exists()


def test_what_a_repository_says_is_to_run_is_not_run() -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], check=True, capture_output=True)

    git("init")
    Path("file").write_text("one")
    git("add", "file")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "one")
    head = commit()
    assert head and head.isalnum()
    Path("file").write_text("another")
    assert commit() == f"{head}+"
    git("config", "core.fsmonitor", "touch PWNED; false")
    assert commit() == f"{head}+"
    git("config", "filter.evil.clean", "touch PWNED; cat")
    Path(".git/info/attributes").write_text("* filter=evil\n")
    assert commit() == f"{head}?"
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("text", ["(" * 90_000, "f(" + "1+" * 40_000 + "1)", "f(\0)", "-" * 90_000, "x", "f(a=1"])
def test_the_method_that_a_line_of_results_names_is_read_not_run(text: str) -> None:
    assert not agree(Outcome("key", "net", "method", 0, 0.5, "macs", text), "Magnitude(keep=0.5)")


CODE_BY_NAME = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "os.system",
    "os.popen",
    "torch.load",
}
CODE_IN_FILES = {"pickle", "marshal", "shelve", "runpy", "code", "dill", "joblib", "cloudpickle", "yaml"}
ALLOWED = {
    ("core/extras.py", "importlib.import_module"),  # libraries, by names of our own
    ("core/renamed.py", "importlib.import_module"),  # our own modules, by a table of our own
    ("core/importing.py", "importlib.import_module"),  # what the user names: a factory, a method, a criterion
    ("zoo/readers/pickled.py", "pickle"),  # a published format, read by a reader of its own
}


def test_nothing_in_the_library_makes_code_of_text_or_runs_a_shell() -> None:
    folder = Path(nervure.__file__).parent
    nodes = [(path, node) for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    calls = [(str(path.relative_to(folder)), node) for path, node in nodes if isinstance(node, ast.Call)]
    found = {(path, ast.unparse(call.func)) for path, call in calls if ast.unparse(call.func) in CODE_BY_NAME}
    for path, node in nodes:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {(str(path.relative_to(folder)), m) for m in modules if m.partition(".")[0] in CODE_IN_FILES}
    assert found <= ALLOWED
    for path, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert "shell" not in given, path
        assert ast.unparse(call.func) != "np.load" or given["allow_pickle"] == "False", path


def test_a_method_or_criterion_that_a_file_names_is_not_imported() -> None:
    Path("evil_scores.py").write_text("from pathlib import Path\nPath('PWNED').touch()\n")
    net = zoo.build("resnet8", in_channels=1, width=0.25)
    pruned = prune(net, torch.randn(1, 1, 8, 8), Magnitude(keep=0.5), progress=False, verify=False)
    told = replace(pruned, method="Ranking(criterion='evil_scores:f')")
    model = {"name": "resnet8", "factory": "", "options": {"in_channels": 1, "width": 0.25}}
    save("m.safetensors", told, meta={"model": model, "method": "evil_scores:f"})
    assert "evil_scores" in load("m.safetensors", net).method
    assert said("evaluate", "--data", "digits", "--file", "m.safetensors")[0] == 0
    assert said("report", "m.safetensors")[0] == 2
    assert not Path("PWNED").exists()
