"""Every format that nervure reads: small good files of each, made by the library, and the reader that users call."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import nervure
from benchmarks import torture_mutants as mutants
from benchmarks.torture_mutants import Mutator
from nervure import Keep, Mask, Plan, zoo
from nervure.budget.latency import LatencyTable, Rates, Sample
from nervure.errors import DataError, FileError
from nervure.evaluation.answers import Answers
from nervure.evaluation.metrics import Tally
from nervure.export.saving import load_state, read_header, save_state
from nervure.files import read_json, write_json
from nervure.methods.connectivity import Connectivity, _Cells
from nervure.methods.snacs import SNACS
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.recipe.results import append_line, read_outcomes
from nervure.report import Report
from nervure.report.comparison import Outcome
from nervure.zoo.data import fake
from nervure.zoo.readers.idx import write_idx

JSON: tuple[Mutator, ...] = (mutants.json_value,) * 10
TENSORS: tuple[Mutator, ...] = (*(mutants.inner_header,) * 7, *(mutants.outer_header,) * 3, mutants.metadata_words)
TOML: tuple[Mutator, ...] = (mutants.toml_value,) * 10


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how good files of it are made, and how one is read.

    Attributes:
        name: in words.
        make: writes good files to a folder; each folder below it, or itself where there is none, is one seed.
        read: the value in a folder like that, by the call that users make.
        mutators: beside those for any bytes.
        is_sealed: whether the library wrote it with a checksum: a changed value must not pass.
        share: of the campaign, relative to the others.
        parts: whether a value may lack some of its items: lines that were cut short are computed again.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    mutators: tuple[Mutator, ...] = ()
    is_sealed: bool = True
    share: int = 4
    parts: bool = False


# -- values ----------------------------------------------------------------------------------------------------------


def told(value: Any) -> Any:
    """A value as plain data that can be compared: tensors by their bytes, modules by their state."""
    match value:
        case Tensor():
            raw = value.detach().contiguous().flatten().view(torch.uint8) if value.numel() else value
            return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]}"
        case nn.Module():
            return [str(value), told(value.state_dict())]
        case Mapping():
            return {str(key): told(item) for key, item in value.items()}
        case list() | tuple():
            return [told(item) for item in value]
        case frozenset() | set():
            return sorted(map(repr, value))
        case _ if dataclasses.is_dataclass(value):
            return {f.name: told(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return repr(value)


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
    want = {"activations", "connections", "labels"}
    nervure.measure(model(), nervure.trace(model(), example()), data(), want=want, samples=8).save(
        folder / "stats.safetensors"
    )


@cache
def survey() -> Connectivity:
    """What SNACS finds out."""
    from nervure.graph.tape import named_tensors
    from nervure.methods import View

    graph = nervure.trace(model(), example())
    weights = {name: tensor.detach() for name, tensor in named_tensors(model()).items()}
    found = SNACS(keep=0.5).evidence(View(graph, weights, None, 0, model(), example(), data()))
    assert isinstance(found, Connectivity)
    return found


def cell(folder: Path) -> Any:
    """A layer's result; made where there is none."""
    return _Cells(folder).get("layer", lambda: torch.arange(12.0).reshape(3, 4))


def answers(folder: Path, *, note: bool = False) -> Any:
    """What the network answered to a batch."""
    inputs, labels = data()[0]
    page = Answers(folder, {"dense": model()}, "settings").page(inputs, labels)
    if note:
        with torch.no_grad():
            for key, shift in ((None, 0), (("fog", 1), 1)):
                page.note("dense", key, Tally().add(model()(inputs + shift), labels, "here"), 4)
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


def in_this_process(folder: Path) -> float:
    """Look at a saved file without the seconds that a new process takes."""
    with torch.random.fork_rng():
        return difference(folder)


@cache
def finished_run(folder: str) -> Path:
    """The folder of a whole run, made once."""
    steps_module._in_fresh_process = in_this_process
    nervure.run(recipe(), folder=folder, progress=False)
    return Path(folder)


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
    notes = json.loads((folder / "steps.json").read_text())
    if "done" in notes:
        notes["done"].remove("report")
    (folder / "steps.json").write_text(json.dumps(notes))


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
            content = pickle.dumps({b"data": pixels, b"labels": labels, b"batch_label": b"x"}, protocol=number % 5)
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


def _text(path: Path, text: str) -> None:
    path.write_text(text)


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("pruned model", save_pruned, lambda p: nervure.load(p / "model.safetensors", model()), TENSORS, share=8),
        Format("header of a pruned model", save_pruned, lambda p: read_header(p / "model.safetensors"), TENSORS),
        Format(
            "state",
            save_states,
            lambda p: load_state(p / "state.safetensors", copy.deepcopy(model())),
            TENSORS,
            share=6,
        ),
        Format(
            "plain safetensors",
            lambda p: save_file(dict(model().state_dict()), p / "state.safetensors"),
            lambda p: load_state(p / "state.safetensors", copy.deepcopy(model())),
            TENSORS,
            is_sealed=False,
        ),
        Format("checkpoint", continue_training, continue_training, TENSORS),
        Format("stats", save_stats, lambda p: nervure.Stats.load(p / "stats.safetensors"), TENSORS),
        Format(
            "survey",
            lambda p: survey().save(p / "connectivity.safetensors"),
            lambda p: Connectivity.load(p / "connectivity.safetensors"),
            TENSORS,
        ),
        Format("cell of a survey", cell, cell, TENSORS),
        Format("answers", lambda p: answers(p, note=True), answers, TENSORS),
        Format(
            "graph",
            lambda p: write_json(p / "graph.json", nervure.trace(model(), example()).to_json()),
            lambda p: nervure.Graph.from_json(read_json(p / "graph.json")),
            JSON,
            share=8,
        ),
        Format("plan", copy_of("plan.json"), lambda p: Plan.from_json(read_json(p / "plan.json")), JSON, share=6),
        Format(
            "table of latencies",
            lambda p: write_json(p / "table.json", latencies().to_json()),
            lambda p: LatencyTable.from_json(read_json(p / "table.json")),
            JSON,
        ),
        Format("results", save_results, lambda p: list(read_outcomes(p / "results.jsonl")), JSON, parts=True),
        Format("report", copy_of("report.json"), lambda p: Report.load(p / "report.json"), JSON),
        Format(
            "recipe (TOML)",
            lambda p: _text(p / "recipe.toml", RECIPE),
            lambda p: nervure.Recipe.from_toml(p / "recipe.toml"),
            TOML,
            is_sealed=False,
        ),
        Format(
            "recipe (JSON)",
            lambda p: _text(p / "recipe.json", json.dumps(recipe().to_dict())),
            lambda p: nervure.Recipe.from_json((p / "recipe.json").read_text(errors="surrogateescape")),
            JSON,
            is_sealed=False,
        ),
        Format(
            "study",
            lambda p: _text(p / "study.toml", STUDY),
            lambda p: nervure.Study.from_toml(p / "study.toml"),
            TOML,
            is_sealed=False,
        ),
        Format("idx", lambda p: save_idx(p, packed=False), dataset("fashion-mnist"), is_sealed=False),
        Format(
            "idx, gzipped",
            lambda p: save_idx(p, packed=True),
            dataset("fashion-mnist"),
            (mutants.inside_gzip,) * 8,
            is_sealed=False,
        ),
        Format(
            "CIFAR, pickled",
            lambda p: save_cifar(p, pickled=True),
            dataset("cifar10"),
            (mutants.pickle_opcode,) * 15,
            is_sealed=False,
            share=8,
        ),
        Format("CIFAR, binary", lambda p: save_cifar(p, pickled=False), dataset("cifar10"), is_sealed=False, share=2),
        Format("folder of images", save_images, dataset("folder"), is_sealed=False),
        Format("Tiny ImageNet", save_tiny, dataset("tiny-imagenet"), is_sealed=False, share=1),
        Format("corrupted set", save_corrupted, read_corrupted, is_sealed=False),
        Format("probe of a run", copy_of("model.safetensors", "probe.safetensors"), difference, TENSORS, share=2),
        Format("folder of a run", unfinished_run, run_again, (*JSON, *TENSORS), share=1),
    )
}


def seeds_of(name: str, folder: Path) -> list[dict[str, bytes]]:
    """The good files of a format: for each seed their contents by path."""
    made = folder / name
    made.mkdir(parents=True)
    FORMATS[name].make(made)
    below = [path for path in sorted(made.iterdir()) if path.is_dir()]
    several = below if name in ("pruned model", "header of a pruned model", "state") else [made]
    return [dict(_contents(seed)) for seed in several]


def _contents(folder: Path) -> Iterable[tuple[str, bytes]]:
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(place, name)
            yield str(path.relative_to(folder)), path.read_bytes()


def lacks_only(value: Any, whole: Any) -> bool:
    """Whether a list holds nothing but items of another."""
    return isinstance(value, list) and all(item in whole for item in value)


def mutators_of(name: str) -> Iterator[Mutator]:
    """Those for any bytes, and those of the format."""
    yield from mutants.ANYWHERE
    yield from FORMATS[name].mutators
