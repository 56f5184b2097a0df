"""Small good files of every format, made by the library, and the calls that read them."""

import contextlib
import copy
import dataclasses
import io
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import nervure
from benchmarks import torture_mutants as mutants
from benchmarks.dense import view_of
from nervure import Keep, Mask, Plan, zoo
from nervure.budget.latency_table import LatencyTable, Rates, Sample
from nervure.cli import main as command_line
from nervure.core.files import read_json, write_json
from nervure.errors import DataError, FileError
from nervure.evaluation.answers import Answers
from nervure.evaluation.metrics import MetricTally
from nervure.export.saving import save_state
from nervure.methods import View
from nervure.methods.snacs import survey as connectivity_module
from nervure.methods.snacs.snacs import SNACS
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.recipe.making import data_of, source_of
from nervure.recipe.results import append_line
from nervure.recipe.sources import ModelSource
from nervure.report.comparison import Outcome
from nervure.zoo.data import fake
from nervure.zoo.readers.idx import write_idx

# -- what is saved ---------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A small network with two groups, a shortcut and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.outer, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [samples, 4]."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


@cache
def model() -> nn.Module:
    """The network, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


@cache
def example() -> Tensor:
    """Two pictures."""
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@cache
def data() -> list[tuple[Tensor, Tensor]]:
    """Two batches with labels."""
    lot = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 6, 6, generator=lot), torch.arange(8) % 4) for _ in range(2)]


def masks() -> dict[str, Tensor]:
    """A third of the inner weights."""
    weight = model().get_parameter("inner.weight")
    return {"inner.weight": torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.3}


def save_pruned(folder: Path) -> None:
    """Cut, masked, and cut twice."""
    cut = nervure.prune(model(), example(), nervure.Magnitude(keep=0.5))
    graph = nervure.trace(model(), example())
    masked = nervure.prune(
        model(), example(), Plan(tuple(Mask(n, Keep.of(m)) for n, m in masks().items()), graph.fingerprint)
    )
    twice = nervure.prune(cut, example(), nervure.Random(keep=0.7))
    for name, pruned in {"cut": cut, "masked": masked, "twice": twice}.items():
        (folder / name).mkdir()
        nervure.save(folder / name / "model.safetensors", pruned, meta={"model": {"name": "none", "width": 0.5}})


def save_named(folder: Path) -> None:
    """Of a network of the zoo, and of one that the author's code would build."""
    zoo_made = ModelSource("resnet8", options={"width": 0.25, "in_channels": 1, "num_classes": 10})
    network = zoo_made.build(0)
    pruned = nervure.prune(network, torch.randn(2, 1, 8, 8), nervure.Magnitude(keep=0.5))
    for name, source in {"zoo": zoo_made, "factory": ModelSource("", "torture_trap:spring")}.items():
        (folder / name).mkdir()
        nervure.save(folder / name / "model.safetensors", pruned, meta={"model": source.to_json()})


def evaluate_file(folder: Path) -> Any:
    """The numbers that the command line gives about a saved network."""
    words = [
        "evaluate",
        "--file",
        str(folder / "model.safetensors"),
        "--data",
        "digits",
        "-o",
        str(folder / "out.json"),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        command_line(words, standalone_mode=False)
    return json.loads((folder / "out.json").read_text())


def save_states(folder: Path) -> None:
    """As it is, and with packed masks."""
    for name, held in {"whole": None, "packed": masks()}.items():
        (folder / name).mkdir()
        state = copy.deepcopy(model())
        if held:
            state.get_parameter("inner.weight").data.mul_(held["inner.weight"])
        save_state(folder / name / "state.safetensors", state, meta={"note": 1}, masks=held)


def continue_training(folder: Path) -> Any:
    """One epoch of training: of a finished checkpoint, what it holds."""
    network = copy.deepcopy(model())
    path = folder / "training.safetensors"
    history = nervure.train(network, data(), epochs=1, lr=0.01, masks=masks(), checkpoint=path, progress=False)
    return network, history.loss, history.steps, history.masks


def save_stats(folder: Path) -> None:
    """Evidence of several kinds."""
    want = {"activations", "connections", "labels", "readings"}
    nervure.measure(model(), nervure.trace(model(), example()), data(), want=want, samples=8).save(
        folder / "stats.safetensors"
    )


@cache
def view() -> View:
    """All that a method sees of it."""
    return view_of(model(), example(), data=data())


def survey(folder: Path | None = None) -> Any:
    """What SNACS finds out; with a folder, from what it kept there."""
    return SNACS(keep=0.5, granularity="kernels", cache=None if folder is None else str(folder)).evidence(view())


def save_cells(folder: Path) -> None:
    """A survey that was stopped when all layers were done."""
    with mock.patch.object(connectivity_module.Path, "unlink"):
        survey(folder)
    for path in folder.rglob("connectivity.safetensors"):
        path.unlink()


def answers(folder: Path, *, note: bool = False) -> Any:
    """What the network answered to a batch."""
    inputs, labels = data()[0]
    page = Answers(folder, {"dense": model()}, "settings").page(inputs, labels)
    if note:
        with torch.no_grad():
            for key, shift in ((None, 0), (("fog", 1), 1)):
                page.note("dense", key, MetricTally().add(model()(inputs + shift), labels, "here"), 4)
        page.save()
    found = [page.get("dense", key) for key in (None, ("fog", 1))]
    if None in found:
        raise FileError("set aside")
    return found


def latencies() -> LatencyTable:
    """A table with two families of operations."""
    sample = Sample({"stem": 4, "inner": 3}, ("outer",), 0.75)
    rates = {"conv 9 2": Rates(0.25, 0.125, 0.5), "linear 1 2": Rates(0.125)}
    return LatencyTable(
        {"engine": "eager", "threads": "1"}, 0.0125, 8, rates, 0.25, (sample, sample), (sample,), 0.01, 0.02, 8
    )


def save_results(folder: Path) -> None:
    """Three outcomes, one of which failed."""
    for seed, error in enumerate(("", "", "it failed")):
        outcome = Outcome(
            f"key{seed}", "resnet8", "SNACS", seed, 0.5, "macs", "SNACS(keep=0.5)", 0.91, 0.25, 0.01, 0.9, 100, 1000,
            900, 5000, 0.5, 0.5, {"fog 1": 0.5}, {"all": 1.5}, (0.5, 0.25), {"python": "3"}, error,
        )  # fmt: skip
        append_line(folder / "results.jsonl", dataclasses.asdict(outcome))


# -- recipes, and a run ----------------------------------------------------------------------------------------------

RECIPE = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
train_samples = 128
test_samples = 60
validation = 0.1
[train]
epochs = 1
lr = 0.1
batch_size = 64
[prune]
method = "Magnitude"
keep = 0.5
budget = "macs"
options = { norm = 1 }
[recover]
epochs = 1
recalibrate = 1
[evaluate]
latency = []
shift = []
severities = [1, 3]
[run]
seed = 1
threads = 1
twins = false
[sweep]
keeps = [0.5, 0.25]
seeds = [0, 1]
[[sweep.method]]
name = "Random"
"""
STUDY = """
[study]
title = "Two"
seeds = [0, 1]
keeps = [0.5]
budget = "macs"
baseline = "Random"
[data]
name = "digits"
[train]
epochs = 1
[[network]]
label = "small"
name = "resnet8"
options = { width = 0.25 }
train = { lr = 0.05 }
[[method]]
name = "Random"
[[method]]
name = "Magnitude"
options = { norm = 1 }
keeps = [0.5, 0.25]
"""


@cache
def recipe() -> nervure.Recipe:
    """A run of a second or two."""
    return nervure.Recipe.from_toml(RECIPE)


def in_this_process(*given: Any) -> float:
    """Look at a saved file without the seconds that a new process takes."""
    with torch.random.fork_rng():
        return difference(*given)


@cache
def finished_run(folder: str) -> Path:
    """The folder of a whole run, made once."""
    steps_module._in_fresh_process = in_this_process
    nervure.run(recipe(), folder=folder, progress=False)
    return Path(folder)


@cache
def source() -> ModelSource:
    """Where its network comes from."""
    return source_of(recipe(), data_of(recipe()))


def probe(folder: Path) -> float:
    """How far the saved network is from what it computed."""
    return difference(folder, source())


def whole_run(folder: Path) -> Path:
    """The run that all formats share."""
    return finished_run(str(folder.parent / "run of all"))


def copy_of(*names: str) -> Callable[[Path], None]:
    """Copies files of the run."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes((whole_run(folder) / name).read_bytes())

    return make


def run_again(folder: Path) -> Any:
    """The report of a run that is complete but for its last step."""
    facts = nervure.run(recipe(), folder=folder, progress=False).to_json()
    return {name: item for name, item in facts.items() if name not in ("provenance", "folder")}


def unfinished_run(folder: Path) -> None:
    """A run whose report is to be written again."""
    for path in whole_run(folder).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    notes = read_json(folder / "steps.json")
    write_json(folder / "steps.json", notes | {"done": [step for step in notes["done"] if step != "report"]})


# -- data ------------------------------------------------------------------------------------------------------------


def dataset(name: str) -> Callable[[Path], Any]:
    """Reads a data set of the zoo."""

    def read(folder: Path) -> Any:
        found = zoo.load(name, folder, checksum=False, validation=0.25)
        return found.train.images, found.train.labels, found.test.images, found.test.labels, found.classes

    return read


def pictures(count: int, *shape: int) -> np.ndarray:
    """Noise of bytes."""
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def save_idx(folder: Path, *, packed: bool) -> None:
    """Four files of an MNIST-like set."""
    for part, count in (("train", 80), ("t10k", 20)):
        arrays = {"images-idx3": pictures(count, 5, 5), "labels-idx1": np.arange(count, dtype=np.uint8) % 10}
        for name, array in arrays.items():
            path = folder / f"{part}-{name}-ubyte.gz"
            write_idx(path, array)
            if not packed:
                path.with_suffix("").write_bytes(mutants.gzip.decompress(path.read_bytes()))
                path.unlink()


def save_cifar(folder: Path, *, pickled: bool) -> None:
    """Six batches of eight images, as Python's or as binary files."""
    labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    for number, name in enumerate(
        ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    ):
        pixels = pictures(20 + number, 3072)[:20]
        if pickled:
            content = pickle.dumps({b"data": pixels, b"labels": labels, b"batch_label": b"x"}, protocol=2 + number % 3)
            (folder / name).write_bytes(content)
        else:
            rows = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], 1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
    names = [f"class{number}" for number in range(10)]
    if pickled:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in names]}, protocol=2))
    else:
        (folder / "batches.meta.txt").write_text("\n".join(names))


KINDS = ("png", "bmp", "gif", "ppm", "jpg", "webp")


def save_images(folder: Path) -> None:
    """Two classes of images in every format."""
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / part / name).mkdir(parents=True)
            for place, kind in enumerate(KINDS):
                picture = Image.fromarray(pictures(number + 2 + place, 8, 8, 3)[0])
                picture.save(folder / part / name / f"{place}.{kind}")


def save_tiny(folder: Path) -> None:
    """Tiny ImageNet with two classes; a mutant may be of its lists."""
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, name in enumerate(("n01", "n02")):
        (folder / "train" / name / "images").mkdir(parents=True)
        for place in range(8):
            picture = Image.fromarray(pictures(number + 2 + place, 8, 8, 3)[0])
            picture.save(folder / "train" / name / "images" / f"{place}.JPEG")
        picture.save(folder / "val" / "images" / f"{number}.JPEG")
        lines.append(f"{number}.JPEG\t{name}\t0\t0\t7\t7")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines))
    (folder / "wnids.txt").write_text("n01\nn02\n")
    (folder / "words.txt").write_text("n01\ta cat\nn02\ta dog\n")


def save_corrupted(folder: Path) -> None:
    """One corruption of six pictures at five severities."""
    np.save(folder / "fog.npy", pictures(30, 8, 8, 3))
    np.save(folder / "labels.npy", np.arange(30) % 4)


@cache
def clean() -> Any:
    """The split that corrupted pictures are compared with."""
    return fake(24, 4, 3, 8).test


def read_corrupted(folder: Path) -> Any:
    """All pictures of two severities."""
    found = zoo.load_corrupted(folder, clean(), severities=(1, 5), batch_size=4)
    if not found:
        raise DataError("nothing is there")
    return {str(key): list(batches) for key, batches in found.items()}


def write(path: Path, text: str) -> None:
    """Write a text."""
    path.write_text(text)
