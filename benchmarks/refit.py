"""Refit: what a closed form gives back after a cut, before and after training; plain beside refitted for every arm.

Run ``python benchmarks/refit.py`` (one thread). Networks are trained for a few epochs on
Fashion-MNIST averaged to 16 x 16 (the embedded subset, where nothing else is installed), pruned in one shot, and
measured on test data: as they are, refitted on 1,024 training images without labels, and both again after one epoch.
Writes ``docs/results/refit.*``.
"""

import itertools
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import train_once
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import (
    SNACS,
    Energy,
    Magnitude,
    MagnitudeMasks,
    Pruned,
    Random,
    Taylor,
    Wanda,
    evaluate,
    prune,
    train,
    zoo,
)
from nervure.graph.copies import copy_model
from nervure.refit import Refit, refit
from nervure.training import recalibrate
from nervure.zoo import Dataset

CACHE = Path(tempfile.gettempdir()) / "nervure-benchmark-refit"
EPOCHS, RECOVERY = 4, 1
ADAM = {"optimizer": "adamw"}
NETWORKS: Mapping[str, dict[str, Any]] = {
    "VGG-16": {"name": "vgg16", "options": {"in_channels": 1, "width": 0.25}},
    "ResNet-20": {"name": "resnet20", "options": {"in_channels": 1}},
    "ViT": {
        "name": "vit_tiny",
        "options": {
            "in_channels": 1, "image_size": 16, "patch": 4, "dim": 48, "depth": 4, "heads": 4, "mlp_ratio": 2.0,
        },
        "train": ADAM | {"lr": 0.002},
        "recover": ADAM | {"lr": 0.001},
        "epochs": 8,
    },
}  # fmt: skip


def filters(keep: float) -> Mapping[str, Any]:
    """Methods that cut units to a share of the multiply-accumulates."""
    return {
        "Random": Random(keep=keep, budget="macs"),
        "Magnitude": Magnitude(keep=keep, budget="macs"),
        "Taylor": Taylor(keep=keep, budget="macs"),
        "SNACS": SNACS(keep=keep, granularity="filters", limits=False),
    }


def masks(keep: float) -> Mapping[str, Any]:
    """Methods that mask connections to a share of the weights."""
    return {"Magnitude": MagnitudeMasks(density=keep), "Wanda": Wanda(density=keep)}


def drops(keep: float) -> Mapping[str, Any]:
    """Methods that drop blocks, here a number of them."""
    return {"Energy": Energy(drop=int(keep))}


EDITS = {"filters": filters, "masks": masks, "drops": drops}
CELLS = [
    *itertools.product(NETWORKS, ["filters"], [0.5]),
    *itertools.product(NETWORKS, ["masks"], [0.1]),
    *itertools.product(["ResNet-20"], ["drops"], [3.0]),
    *itertools.product(NETWORKS, ["filters"], [0.25]),
    *itertools.product(["ViT"], ["drops"], [1.0]),
]
"""Network, edit, and how much stays (of blocks: how many leave)."""


def dense(label: str, seed: int, data: Dataset) -> nn.Module:
    """The trained network; what is trained is trained once."""
    network = NETWORKS[label]
    model = zoo.build(network["name"], seed=seed, **network["options"])
    how = {"epochs": network.get("epochs", EPOCHS), "seed": seed} | network.get("train", {"lr": 0.1})
    batches = data.train.batches(128, shuffle_seed=seed)
    return train_once(CACHE / f"{label}{seed}.safetensors", model, batches, **how)


def accuracy(model: nn.Module, data: Dataset) -> float:
    """On test data, in percent."""
    return round(100 * evaluate(copy_model(model).eval(), data.test.batches(500), progress=False).accuracy, 2)


def recovered(label: str, pruned: Pruned, data: Dataset, seed: int) -> float:
    """Accuracy after an epoch of training."""
    model, options = copy_model(pruned.model), NETWORKS[label].get("recover", {"lr": 0.05})
    batches = data.train.batches(128, shuffle_seed=seed + 1)
    train(model, batches, epochs=RECOVERY, seed=seed + 1, masks=pruned.masks, progress=False, **options)
    return accuracy(model, data)


def run(cell: tuple[str, str, float], name: str, method: Any, seed: int) -> Row:
    """One line: dense, plain and refitted, before and after training."""
    data = dataset()
    model = dense(cell[0], seed, data)
    batches = data.train.batches(128, shuffle_seed=seed)
    pruned = prune(model, data.example(1), method, data=batches, seed=seed, progress=False)
    start = time.process_time()
    refitted = refit(pruned, batches, reference=model, how=Refit(seed=seed), progress=False)
    took, renormed = time.process_time() - start, copy_model(pruned.model)
    recalibrate(renormed, batches, 8)
    return {
        "key": [*cell, name, seed],
        "dense": accuracy(model, data),
        "plain": accuracy(pruned.model, data),
        "norms": accuracy(renormed, data),
        "refit": accuracy(refitted.result.model, data),
        "plain, trained": recovered(cell[0], pruned, data, seed),
        "refit, trained": recovered(cell[0], refitted.result, data, seed),
        "seconds": round(took, 1),
        "errors": {key: round(value, 4) for key, value in refitted.summary().items()},
    }


@cache
def dataset() -> Dataset:
    """Small images."""
    return zoo.load("fashion-mnist", size=16)


def cases(options: Namespace) -> Iterator[Case]:
    """Cells, methods and seeds."""
    for seed, cell in itertools.product(range(options.seeds), CELLS):
        for name, method in EDITS[cell[1]](cell[2]).items():
            yield (*cell, name, seed), partial(run, cell, name, method, seed)


def table(records: Rows, cell: tuple[str, str, float]) -> list[str]:
    """Means over seeds, method by method."""
    mine = [r for r in records if r["key"][:3] == list(cell)]
    columns = ("plain", "norms", "refit", "plain, trained", "refit, trained")
    lines = [
        "| | plain | norms remeasured | refitted | plain, one epoch | refitted, one epoch | refit takes | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(r["key"][3] for r in mine):
        rows = [r for r in mine if r["key"][3] == name]
        cells = " | ".join(f"{fmean(r[c] for r in rows):.1f}" for c in columns)
        lines.append(f"| {name} | {cells} | {fmean(r['seconds'] for r in rows):.0f} s | {len(rows)} |")
    return lines


def page(records: Rows) -> str:
    """The results as Markdown."""
    text = [
        "# Refit: plain beside refitted",
        "",
        "`python benchmarks/refit.py`; one thread; times are of the",
        "processor. Test accuracy in percent, means over seeds. Refitted on 1,024 training",
        "images without labels, a quarter of them to choose by.",
    ]
    for cell in CELLS:
        rows = [r for r in records if r["key"][:3] == list(cell)]
        if rows:
            of = fmean(r["dense"] for r in rows)
            what = {"filters": "of the multiply-accumulates stay", "masks": "of the weights stay"}.get(cell[1])
            how = f"{cell[2]:.0%} {what}" if what else f"{int(cell[2])} blocks dropped"
            text += ["", f"## {cell[0]}: {how} (dense: {of:.1f})", "", *table(records, cell)]
    return "\n".join(text) + "\n"


BENCHMARK = Benchmark("refit", page, cases=cases, arguments={"--seeds": {"type": int, "default": 1}})

if __name__ == "__main__":
    main(BENCHMARK)
