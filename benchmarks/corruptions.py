"""What corrupting pictures costs, beside other packages, and what it does to a network.

Run ``python benchmarks/corruptions.py [--peers PYTHON]``; one thread. In one run:

* Networks (ResNet-8 of half the width) are trained on Fashion-MNIST with three seeds. The 10,000 test pictures are made
  in all 95 versions (19 corruptions, five severities) and each network is evaluated on them: accuracy by corruption and
  severity, where it does not fall with the severity, and the processor seconds of making and of evaluating.
* Throughput: 32-pixel colour pictures per second of processor time at severity 3, here and in the packages that the
  Python of ``--peers`` has (see ``corruptions_peers.py``), which work on one picture at a time.

Writes ``docs/results/corruptions.*``, version by version, so that a run that was stopped goes on.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import train
from nervure.evaluation import CORRUPTIONS, SEVERITIES, corrupt
from nervure.zoo import Dataset, Split, build, load

SEEDS = (0, 1, 2)
BATCH = 500
SLACK = 0.002
"""Accuracy may rise with the severity by so much before it counts: with 10,000 pictures, half a standard error."""
PICTURES = 256
DATA, EPOCHS = "fashion-mnist", 2
PEERS = Path(__file__).with_name("corruptions_peers.py")


def trained(data: Dataset, seed: int) -> nn.Module:
    """A network trained on the data."""
    model = build("resnet8", seed=seed, in_channels=1, width=0.5)
    batches = data.train.batches(128, shuffle_seed=seed, augment=True)
    train(model, batches, epochs=EPOCHS, lr=0.1, seed=seed, progress=False)
    return model.eval()


@torch.no_grad()
def correct(model: nn.Module, split: Split, pictures: Tensor) -> float:
    """Accuracy on pictures in [0, 1] with the labels of the split."""
    hits = 0
    for images, labels in zip(pictures.split(BATCH), split.labels.split(BATCH), strict=True):
        hits += int((model(split.normalise(images)).argmax(1) == labels).sum())
    return hits / len(pictures)


@cache
def made(few: bool) -> tuple[str, Split, Tensor, list[nn.Module]]:
    """The name of the data, test pictures, the same in [0, 1], and the trained networks."""
    data = load("digits" if few else DATA)
    test = data.test.sample(200 if few else 10_000)
    return data.name, test, test.images.float() / 255, [trained(data, seed) for seed in SEEDS]


def clean(few: bool) -> Row:
    """Accuracies on the pictures as they are."""
    name, test, pictures, models = made(few)
    accuracies = [correct(model, test, pictures) for model in models]
    return {"kind": "clean", "data": name, "pictures": len(test), "accuracy": accuracies}


def version_of(name: str, severity: int, few: bool) -> Row:
    """One corrupted version: processor seconds to make it and to evaluate a network on it, and accuracies."""
    _, split, pictures, models = made(few)
    began = time.process_time()
    moved = torch.cat([corrupt(part, name, severity) for part in pictures.split(BATCH)])
    between = time.process_time()
    accuracies = [correct(model, split, moved) for model in models]
    return {
        "kind": "version",
        "corruption": name,
        "severity": severity,
        "make": between - began,
        "evaluate": (time.process_time() - between) / len(models),
        "accuracy": accuracies,
    }


def colour(split: Split) -> Tensor:
    """Pictures of 32 pixels in colour, in [0, 1]: those of the split, enlarged, each channel another picture."""
    grey = split.images[: 3 * PICTURES].float().div(255).view(PICTURES, 3, *split.images.shape[2:])
    return torch.nn.functional.interpolate(grey, (32, 32), mode="bilinear").clamp(0, 1)


def own_rates(pictures: Tensor) -> dict[str, float]:
    """Pictures per second of processor time, all in one call."""
    found = {}
    for name in CORRUPTIONS:
        corrupt(pictures[:8], name, 3)
        began, done = time.process_time(), 0
        while time.process_time() - began < 1:
            corrupt(pictures, name, 3)
            done += len(pictures)
        found[name] = done / (time.process_time() - began)
    return found


def peer_rates(python: str, pictures: Tensor) -> dict[str, Any]:
    """What the packages of another environment do."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, (255 * pictures).round().byte().permute(0, 2, 3, 1).numpy())
        command = [python, str(PEERS), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_severity(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """Accuracies of each network at each severity of one corruption."""
    return [row["accuracy"] for s in SEVERITIES for row in rows if (row["corruption"], row["severity"]) == (name, s)]


def rises(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the mean accuracy is higher at a higher severity."""
    found = []
    for name in CORRUPTIONS:
        means = [fmean(accuracies) for accuracies in by_severity(rows, name)]
        for s in range(len(means) - 1):
            if means[s + 1] > means[s] + SLACK:
                found.append(f"{name} from {s + 1} to {s + 2} ({100 * means[s]:.1f} to {100 * means[s + 1]:.1f} %)")
    return found


def strength_table(versions: Rows) -> str:
    """Accuracy in per cent by corruption and severity, mean and standard deviation over seeds."""
    lines = ["| corruption | " + " | ".join(map(str, SEVERITIES)) + " | make, s |", "| --- " * 7 + "|"]
    for name in CORRUPTIONS:
        rows = by_severity(versions, name)
        cells = [f"{100 * fmean(a):.1f} ± {100 * stdev(a):.1f}" if len(a) > 1 else f"{100 * a[0]:.1f}" for a in rows]
        seconds = sum(row["make"] for row in versions if row["corruption"] == name)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def rate_table(rates: Mapping[str, float], peers: Mapping[str, Any]) -> str:
    """Pictures per second, here and there."""
    titles = [f"{name} {peer['version']}" for name, peer in peers.items()]
    lines = ["| corruption | " + " | ".join(["nervure", *titles]) + " |", "| --- " * (2 + len(titles)) + "|"]
    for name in CORRUPTIONS:
        cells = [peer["rates"].get(name, peer.get("failed", "–")) for peer in peers.values()]
        told = [f"{cell:,.0f} ({rates[name] / cell:.1f}x)" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"| {name} | {' | '.join([f'{rates[name]:,.0f}', *told])} |")
    return "\n".join(lines)


def page(rows: Rows) -> str:
    """The page of results."""
    versions, (whole,) = ([row for row in rows if row["kind"] == kind] for kind in ("version", "clean"))
    make, evaluating = (sum(row[key] for row in versions) for key in ("make", "evaluate"))
    found = rises(versions)
    parts = [
        "# Corruptions",
        "Written by `python benchmarks/corruptions.py --peers PYTHON` (one thread). Seconds are processor time.",
        "## What they cost",
        f"All {len(versions)} versions of {whole['pictures']:,} grey 28 x 28 pictures: {make:.0f} s to make, and "
        f"{evaluating:.0f} s to evaluate one network (ResNet-8 of half the width) on them: {make + evaluating:.0f} s "
        "together.",
        "## What they do to a network",
        f"Accuracy in per cent on the test pictures of {whole['data']}, mean and standard deviation over "
        f"{len(whole['accuracy'])} seeds; clean {100 * fmean(whole['accuracy']):.1f} %. The last column is the time to "
        "make all five.",
        strength_table(versions),
        "Accuracy falls with the severity everywhere."
        if not found
        else f"Accuracy rises with the severity by more than {100 * SLACK:.1f} points at: {'; '.join(found)}.",
    ]
    for row in (row for row in rows if row["kind"] == "rates"):
        parts += [
            "## Beside other packages",
            "Pictures of 32 x 32 in colour per second of processor time, severity 3. Here a batch of "
            f"{PICTURES} goes as one; the others take one picture at a time. In brackets: how many times as fast "
            "nervure is. Strengths are not the same everywhere, and albumentations has transforms of the same kind, "
            "not the same corruptions.",
            rate_table(row["rates"], row["peers"]),
        ]
    return "\n\n".join(parts) + "\n"


def beside(peers: str) -> Row:
    """Pictures per second here and in other packages."""
    pictures = colour(load(DATA).test)
    return {"kind": "rates", "rates": own_rates(pictures), "peers": peer_rates(peers, pictures)}


def cases(options: Namespace) -> Iterator[Case]:
    """Clean pictures, every version, and where their Python is named the other packages."""
    yield ("clean", None, None), partial(clean, options.quick)
    for key in product(CORRUPTIONS, SEVERITIES):
        yield ("version", *key), partial(version_of, *key, options.quick)
    if options.peers:
        yield ("rates", None, None), partial(beside, options.peers)


BENCHMARK = Benchmark(
    "corruptions",
    page,
    fields("kind", "corruption", "severity"),
    cases,
    arguments={"--peers": {"default": "", "help": "Python of an environment with the other packages"}},
    quick=True,
)

if __name__ == "__main__":
    main(BENCHMARK)
