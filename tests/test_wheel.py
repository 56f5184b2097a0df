"""What is built is whole: a wheel that works elsewhere, and a source archive that builds the same wheel."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import pytest

from nervure.core.version import __version__

pytest.importorskip("hatchling", reason="the builder comes with the extra 'test'")

ROOT = Path(__file__).parent.parent
NAME = f"nervure-{__version__}"
RECIPE = """\
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "fashion-mnist"
train_samples = 64
test_samples = 64
[train]
epochs = 1
[prune]
method = "Magnitude"
[recover]
epochs = 0
[evaluate]
latency = []
shift = []
"""
USE = """\
import sys
from pathlib import Path
import torch
import nervure

assert Path(nervure.__file__).is_relative_to(sys.prefix), nervure.__file__
model, example = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(2, 4)
pruned = nervure.prune(model, example, nervure.Magnitude(keep=0.5), progress=False)
nervure.save("m.safetensors", pruned)
assert torch.equal(nervure.load("m.safetensors", model).model(example), pruned.model(example))
"""


class Built(NamedTuple):
    """The folder of the unpacked source archive, and the wheel that is made of it."""

    source: Path
    wheel: Path


def build(source: Path, target: str, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of the project in ``source``, without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("built")
    with tarfile.open(build(ROOT, "sdist", place / "sdist")) as archive:
        archive.extractall(place, filter="data")
    return Built(place / NAME, build(place / NAME, "wheel", place / "wheel"))


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment in which there is this wheel, and no clone."""
    place = tmp_path_factory.mktemp("env")
    venv.create(place, symlinks=True)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(place), "install", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, str(built.wheel)], check=True, capture_output=True)
    # What it depends on is that of this environment; what is linked from there (an editable nervure) is not.
    site = next(place.rglob("site-packages"))
    theirs = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(theirs), encoding="utf-8")
    return scripts


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a command writes that is run in ``folder``, with nothing of this process's paths."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "_build", "reference"} & {*path.parts}
    }


def test_the_wheel_of_the_archive_is_the_package_and_nothing_else(built: Built) -> None:
    entries = {entry.filename: entry.CRC for entry in zipfile.ZipFile(built.wheel).infolist()}
    ours = {f"nervure/{name}": crc32((ROOT / "nervure" / name).read_bytes()) for name in files_below(ROOT / "nervure")}
    assert {name: crc for name, crc in entries.items() if ".dist-info/" not in name} == ours
    assert {"nervure/py.typed", "nervure/cli/surface.jsonl", "nervure/report/templates/report.html.j2"} <= set(ours)


def test_the_archive_holds_what_it_takes_to_test_and_document(built: Built) -> None:
    for folder in ("tests", "examples", "benchmarks", "docs"):
        assert files_below(built.source / folder) == files_below(ROOT / folder)
    there = {path.name for path in built.source.iterdir()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml"}
    assert needed | {"constraints-ci.txt", "requirements-dev.txt"} <= there
    assert not {"runs", "dist", ".venv", ".git"} & there


def test_the_metadata_say_what_the_project_says(built: Built) -> None:
    text = zipfile.ZipFile(built.wheel).read(f"{NAME}.dist-info/METADATA").decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nVersion: {__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert all(f"\nRequires-Dist: {line}\n" in text for line in project["dependencies"])
    assert (ROOT / "README.md").read_text(encoding="utf-8")[-200:] in text


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    assert __version__ in run([installed / "nervure", "--version"], tmp_path)


def test_what_is_installed_prunes_saves_and_loads(installed: Path, tmp_path: Path) -> None:
    run([installed / "python", "-c", USE], tmp_path)


@pytest.mark.slow
def test_what_is_installed_runs_a_recipe_on_its_own_data_and_reports(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    run([installed / "nervure", "run", "recipe.toml", "--folder", "out"], tmp_path)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
