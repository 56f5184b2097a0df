"""Refit: what a closed form gives back after a cut, before and after training; plain beside refitted for every arm.

Run ``python benchmarks/refit.py`` (one thread, hours; words choose cells). Networks are trained briefly on 9,000
pictures of Fashion-MNIST at 16 x 16, or to their end on all of it (``benchmarks/trained.py``, whose folder ``--end``
names; without its files those are left out). They are pruned in one shot and measured on test data, clean and
corrupted: as they are, with batch norms remeasured, refitted on 1,024 training pictures without labels, and plain and
refitted after one epoch and after three. Rates of that training were chosen for ResNet-20 on pictures held out, plain
and refitted apart; VGG-16 has the same, the ViT one for both.
Writes ``docs/results/refit.*``.
"""

import ctypes
import itertools
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import trained
from benchmarks.dense import train_once
from benchmarks.refit_page import page
from benchmarks.runner import Benchmark, Case, Row, main
from nervure import (
    SNACS,
    Energy,
    Magnitude,
    MagnitudeMasks,
    Random,
    Taylor,
    Wanda,
    evaluate,
    prune,
    train,
    zoo,
)
from nervure.evaluation.shift import shift_batches
from nervure.graph.copies import copy_model
from nervure.refit import Refit, refit
from nervure.training import recalibrate
from nervure.zoo import Dataset

T = TypeVar("T")
Cell: TypeAlias = tuple[str, str, float]
"""Network, edit, and how much stays (of blocks: how many leave)."""

CACHE = Path(tempfile.gettempdir()) / "nervure-benchmark-refit"
SAMPLES, BATCH, SEVERITY = 1024, 128, 3
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "contrast")
ADAM = {"optimizer": "adamw"}
END = " to its end"
NETWORKS: Mapping[str, dict[str, Any]] = {
    "VGG-16": {"name": "vgg16", "options": {"in_channels": 1, "width": 0.25}, "rates": (0.05, 0.02)},
    "ResNet-20": {"name": "resnet20", "options": {"in_channels": 1}, "rates": (0.05, 0.02)},
    "ViT": {
        "name": "vit_tiny",
        "options": {
            "in_channels": 1, "image_size": 16, "patch": 4, "dim": 48, "depth": 4, "heads": 4, "mlp_ratio": 2.0,
        },
        "how": ADAM,
        "lr": 0.002,
        "epochs": 8,
        "rates": (0.001, 0.001),
    },
    "ResNet-20" + END: {"rates": (0.02, 0.02)},
    "VGG-16" + END: {"rates": (0.02, 0.02)},
    "ResNet-56": {"name": "resnet56", "options": {"in_channels": 1}, "rates": (0.05, 0.02)},
    "MobileNetV2": {"name": "mobilenetv2", "options": {"in_channels": 1, "width": 0.5}, "epochs": 8, "lr": 0.02,
        "rates": (0.05, 0.02)},
    "DenseNet-40": {"name": "densenet40", "options": {"in_channels": 1}, "rates": (0.05, 0.02)},
}  # fmt: skip
"""How each is built and trained; ``rates``: of the training after pruning, plain and refitted."""


def filters(keep: float) -> Mapping[str, Any]:
    """Methods that cut units to a share of the multiply-accumulates."""
    return {
        "Random": Random(keep=keep, budget="macs", multiple=1),
        "Magnitude": Magnitude(keep=keep, budget="macs", multiple=1),
        "Taylor": Taylor(keep=keep, budget="macs", multiple=1),
        "SNACS, means": SNACS(keep=keep, granularity="filters", ranking="connectivity", of="means", limits=False),
        "SNACS": SNACS(keep=keep, budget="macs", multiple=1),
    }


def masks(keep: float) -> Mapping[str, Any]:
    """Methods that mask connections to a share of the weights."""
    return {"Magnitude": MagnitudeMasks(density=keep), "Wanda": Wanda(density=keep)}


def drops(keep: float) -> Mapping[str, Any]:
    """Methods that drop blocks, here a number of them."""
    return {"Energy": Energy(drop=int(keep))}


EDITS = {"filters": filters, "masks": masks, "drops": drops}
SMALL = ("VGG-16", "ResNet-20", "ViT")
CELLS: list[Cell] = [
    *itertools.product(SMALL, ["filters"], [0.5, 0.25]),
    *itertools.product([f"{label}{END}" for label in ("ResNet-20", "VGG-16")], ["filters"], [0.5, 0.25]),
    ("ResNet-20", "drops", 3.0),
    ("ViT", "drops", 1.0),
    *itertools.product(SMALL, ["masks"], [0.1]),
]


def epochs_of(cell: Cell) -> tuple[int, ...]:
    """How long networks are trained after pruning: not, briefly, longer."""
    return (0, 1) if END in cell[0] else (0, 1, 3)


@cache
def dataset(label: str) -> Dataset:
    """Small pictures and few of them; all of them for a network that was trained to its end."""
    return trained.dataset() if END in label else zoo.load("fashion-mnist-subset", size=16)


@cache
def corrupted(label: str) -> Mapping[tuple[str, int], list[tuple[Tensor, Tensor]]]:
    """Some test pictures, each corrupted once for all networks."""
    few = dataset(label).test.sample(500).batches(500)
    return {(name, SEVERITY): list(shift_batches(few, name, SEVERITY)) for name in CORRUPTIONS}


def dense(label: str, seed: int, options: Namespace) -> nn.Module:
    """The trained network; what is trained is trained once."""
    if END in label:
        return trained.trained(label.removesuffix(END), options.end)
    network = NETWORKS[label]
    model = zoo.build(network["name"], seed=seed, **network["options"])
    how = {"epochs": network.get("epochs", 4), "seed": seed, "lr": network.get("lr", 0.1), **precision(label)}
    file, how = options.cache / f"{label}-{seed}.safetensors", how | network.get("how", {})
    model = train_once(file, model.to(memory_format=torch.channels_last), batches(label, seed), **how)
    return model.to(memory_format=torch.contiguous_format)


def precision(label: str) -> dict[str, str]:
    """How to train: convolutions gain by bfloat16 (in depthwise ones gradients may be NaN), small products do not."""
    return {"precision": "float32" if label in ("ViT", "MobileNetV2") else "bf16"}


def batches(label: str, seed: int) -> Any:
    """Training data; shifted and mirrored where the network saw them so."""
    return dataset(label).train.batches(BATCH, shuffle_seed=seed, augment=END in label)


def accuracies(model: nn.Module, label: str) -> dict[str, float]:
    """In percent: on test data, on corrupted ones, and on those held out, by which to choose."""
    data = dataset(label)
    shifted = evaluate(model, data.test.sample(500).batches(500), shift=corrupted(label), progress=False)
    splits = {"clean": data.test, "held": data.validation}
    found = {name: evaluate(model, split.batches(500), progress=False).accuracy for name, split in splits.items()}
    return {name: round(100 * value, 2) for name, value in {**found, "shifted": shifted.accuracy}.items()}


def measured(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What it gives; processor seconds, and the most MiB it held beyond what was held before (where Linux tells)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held, start = memory("VmRSS"), time.process_time()
    found = work()
    seconds = time.process_time() - start
    return found, {"seconds": round(seconds, 2), "MiB": round(memory("VmHWM") - held)}


def memory(name: str) -> float:
    """Of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def run(cell: Cell, name: str, seed: int, epochs: int, options: Namespace) -> Row:
    """One line: one cut, plain and refitted, after so many epochs."""
    file = options.cache / f"{'-'.join(map(str, (*cell, name, seed)))}.pt"
    key = {"key": [*cell, name, seed, epochs]}
    if not epochs:
        return key | untrained(cell, name, seed, options, file)
    if not file.exists():
        untrained(cell, name, seed, options, file)
    kept = torch.load(file, weights_only=False)
    found = {arm: recover(cell[0], kept[arm], kept["masks"], seed, epochs, at) for at, arm in enumerate(ARMS)}
    return key | {arm: row for arm, (row, _) in found.items()} | {"epoch": found["plain"][1]}


ARMS = ("plain", "refit")


def untrained(cell: Cell, name: str, seed: int, options: Namespace, file: Path) -> Row:
    """Cut and refit, and keep both networks in the file."""
    label, data = cell[0], dataset(cell[0])
    model, seen = dense(label, seed, options), data.train.batches(BATCH, shuffle_seed=seed)
    method = EDITS[cell[1]](cell[2])[name]
    pruned = prune(model, data.example(1), method, data=seen, seed=seed, refit=False, progress=False)
    seen.epoch = 0
    how = Refit(samples=SAMPLES, seed=seed)
    again, cost = measured(lambda: refit(pruned, seen, reference=model, how=how, progress=False))
    renormed = copy_model(pruned.model)
    recalibrate(renormed, seen, SAMPLES // BATCH)
    torch.save({"plain": pruned.model, "refit": again.result.model, "masks": dict(pruned.masks)}, file)
    few = list(itertools.islice(seen, SAMPLES // BATCH))
    networks = {"dense": model, "plain": pruned.model, "norms": renormed, "refit": again.result.model}
    forward = {arm: measured(lambda arm=arm: passes(networks[arm], few))[1] for arm in ("dense", "plain")}
    found = {arm: accuracies(network, label) for arm, network in networks.items()}
    return found | {"cost": cost, "forward": forward, "errors": again.summary()}


def passes(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One forward pass over all data."""
    with torch.inference_mode():
        for inputs, _ in data:
            model.eval()(inputs)


def recover(
    label: str, model: nn.Module, masks: Mapping[str, Tensor], seed: int, epochs: int, arm: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies after training, and what an epoch cost."""
    network = NETWORKS[label]
    small = copy_model(model).to(memory_format=torch.channels_last)
    how = {"lr": network["rates"][arm], **precision(label), **network.get("how", {})}
    again = partial(train, small, batches(label, seed + 1), epochs=epochs, seed=seed + 1, masks=masks, progress=False)
    _, cost = measured(lambda: again(**how))
    return accuracies(small, label), cost | {"seconds": round(cost["seconds"] / epochs, 2)}


def cases(options: Namespace) -> Iterator[Case]:
    """Cells, methods and seeds."""
    options.cache.mkdir(parents=True, exist_ok=True)
    for seed, cell in itertools.product(range(options.seeds), CELLS):
        if END in cell[0] and (seed or not (options.end / f"{cell[0].removesuffix(END)}.safetensors").exists()):
            continue
        for name, epochs in itertools.product(EDITS[cell[1]](cell[2]), epochs_of(cell)):
            if epochs > options.epochs:
                continue
            yield (*cell, name, seed, epochs), partial(run, cell, name, seed, epochs, options)


BENCHMARK = Benchmark(
    "refit",
    page,
    cases=cases,
    arguments={
        "--seeds": {"type": int, "default": 5},
        "--epochs": {"type": int, "default": 3, "help": "no longer training than this"},
        "--cache": {"type": Path, "default": CACHE, "help": "folder of dense and pruned networks"},
        "--end": {"type": Path, "default": trained.CACHE, "help": "folder of networks that were trained to their end"},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
