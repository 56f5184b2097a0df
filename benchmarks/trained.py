"""Two networks trained to their end on all of Fashion-MNIST at 28 x 28, which other benchmarks begin with.

Run ``python benchmarks/trained.py`` (one thread, about twenty minutes). It needs the files of Fashion-MNIST
(``apt install dataset-fashion-mnist``). The rates are the usual ones, fixed beforehand; a tenth of the training images
is held out and only looked at. A run that was stopped goes on from its last epoch; files of weights stay in the folder
of ``--cache``.
Writes ``docs/results/trained.*``.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import evaluate, train, zoo
from nervure.errors import DataError
from nervure.export import load_state, save_state
from nervure.training import label_smoothing
from nervure.zoo import Dataset

CACHE = Path(tempfile.gettempdir()) / "nervure-benchmark-trained"
BATCH, EPOCHS = 128, 16
NETWORKS: Mapping[str, dict[str, Any]] = {
    "ResNet-20": {"name": "resnet20", "in_channels": 1},
    "VGG-16": {"name": "vgg16", "in_channels": 1, "width": 0.25},
}


@cache
def dataset() -> Dataset:
    """All of it, as it is published."""
    data = zoo.load("fashion-mnist")
    if len(data.train) < 50_000:
        raise DataError(f"Only {len(data.train)} training images are there: install all of Fashion-MNIST.")
    return data


def build(label: str) -> nn.Module:
    """The network before training."""
    return zoo.build(seed=0, **NETWORKS[label])


def trained(label: str, folder: Path) -> nn.Module:
    """The network with the weights that were kept."""
    return load_state(folder / f"{label}.safetensors", build(label)).eval()


def run(label: str, folder: Path) -> Row:
    """Train, or go on; keep the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    data, model = dataset(), build(label).to(memory_format=torch.channels_last)
    history = train(
        model,
        data.train.batches(BATCH, shuffle_seed=0, augment=True),
        epochs=EPOCHS,
        objective=label_smoothing(0.1),
        validation=data.validation.sample(2000).batches(500),
        precision="bf16",
        progress=False,
        checkpoint=folder / f"{label}.checkpoint",
    )
    save_state(folder / f"{label}.safetensors", model)
    splits = {"held out": data.validation, "test": data.test}
    found = {name: evaluate(model, split.batches(500), progress=False).accuracy for name, split in splits.items()}
    return {"network": label, **history.to_json(), **found}


def cases(options: Namespace) -> Iterator[Case]:
    """Network by network."""
    for label in NETWORKS:
        yield (label,), partial(run, label, options.cache)


def page(records: Rows) -> str:
    """The results as Markdown."""
    text = [
        "# Networks trained to their end",
        "",
        "`python benchmarks/trained.py`; one thread, bfloat16; seconds are of the clock on a machine that did other",
        "things. Fashion-MNIST at 28 x 28: 54,000 images to train on, shifted and mirrored,",
        f"{EPOCHS} epochs of SGD at 0.1 with one cycle, labels smoothed by 0.1. Nothing was chosen by the test images.",
        "Accuracy in percent, one seed.",
        "",
        "| | held out | test | seconds |",
        "|---|---:|---:|---:|",
    ]
    for row in records:
        text.append(
            f"| {row['network']} | {100 * row['held out']:.2f} | {100 * row['test']:.2f} | {row['seconds']:,.0f} |"
        )
    text += ["", "After each fourth epoch, on 2,000 of the images held out:", ""]
    for row in records:
        every = ", ".join(f"{100 * value:.1f}" for value in row["validation"][3::4])
        text.append(f"* {row['network']}: {every}")
    return "\n".join(text) + "\n"


ARGUMENTS = {"--cache": {"type": Path, "default": CACHE, "help": "folder of checkpoints and weights"}}
BENCHMARK = Benchmark("trained", page, fields("network"), cases, arguments=ARGUMENTS)

if __name__ == "__main__":
    main(BENCHMARK)
