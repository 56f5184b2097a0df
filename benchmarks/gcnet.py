"""GC-Net under shift: connectivity against magnitude, SNIP, Wanda and a lot, at equal density and equal fine-tuning.

A narrow VGG-11-BN on Fashion-MNIST at 16 x 16, three seeds, three sparsities. Run ``python benchmarks/gcnet.py``.
A line of ``docs/results/gcnet.jsonl`` is one pruned network; a run that was stopped goes on with the next seed, and
with ``--table`` only ``docs/results/gcnet.md`` is written, from the lines that are there. Which variant is best is read
off the validation split under the four held-out corruptions; the 15 others are the test.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from nervure import ERK, SNIP, GCNet, MagnitudeMasks, Wanda, apply, trace, train, zoo
from nervure.evaluation import CORRUPTIONS, HELD_OUT, connectivity_shift, evaluate_shift
from nervure.graph.tape import named_tensors
from nervure.methods import Method, View
from nervure.surgery.apply import masks_after
from nervure.training import recalibrate
from nervure.zoo.dataset import Dataset

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SEEDS, SPARSITIES, SEVERITIES = (0, 1, 2), (0.8, 0.9, 0.95), (1, 3, 5)
SIDE, TRAINED_ON, TUNED_ON, TESTED_ON, BATCH = 16, 8000, 1920, 200, 64
TEST = tuple(name for name in CORRUPTIONS if name not in HELD_OUT)
KERNELS: dict[str, Any] = {"granularity": "connection", "guard": "units"}
WEIGHTS: dict[str, Any] = {"granularity": "element", "guard": "outputs", "mode": "product"}
ARMS: Mapping[str, Method] = {
    "weights: global magnitude": MagnitudeMasks(guard="outputs"),
    "weights: layerwise magnitude": MagnitudeMasks(guard="outputs", distribution="uniform"),
    "weights: SNIP": SNIP(batches=4, statistics="running", guard="outputs"),
    "weights: Wanda": Wanda(samples=1024),
    "weights: GC product, classwise": GCNet(**WEIGHTS),
    "weights: GC product, conditional": GCNet(**WEIGHTS, estimator="residual"),
    "kernels: global magnitude": MagnitudeMasks(**KERNELS),
    "kernels: layerwise magnitude": MagnitudeMasks(**KERNELS, distribution="uniform"),
    "kernels: random": ERK(**KERNELS, distribution="uniform"),
    "kernels: GC pure, classwise, layerwise": GCNet(mode="pure", distribution="uniform"),
    "kernels: GC split, classwise, layerwise (paper)": GCNet(paper=True),
    "kernels: GC split, classwise": GCNet(),
    "kernels: GC split, conditional": GCNet(estimator="residual"),
    "kernels: GC product, conditional": GCNet(estimator="residual", mode="product"),
}
YARDSTICKS = {"weights": "weights: global magnitude", "kernels": "kernels: global magnitude"}


def main(arguments: list[str]) -> None:
    """Run the seeds that are missing, and write the table."""
    torch.set_num_threads(1)
    path = RESULTS / "gcnet.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in [s for s in SEEDS if s not in {row["seed"] for row in rows}] if "--table" not in arguments else []:
        start, new = time.perf_counter(), trials(seed)
        with path.open("a") as file:
            file.writelines(json.dumps({**row, "seed": seed}) + "\n" for row in new)
        rows += [{**row, "seed": seed} for row in new]
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        (RESULTS / "gcnet.md").write_text(page(rows))
    (RESULTS / "gcnet.md").write_text(page(rows))


def trials(seed: int) -> list[dict[str, Any]]:
    """One dense network, and what each method leaves of it at each sparsity, before and after fine-tuning."""
    data = zoo.load("fashion-mnist", seed=seed, size=SIDE)
    data = replace(data, train=data.train.sample(TRAINED_ON, seed), test=data.test.sample(TESTED_ON, 0))
    torch.manual_seed(seed)
    dense = zoo.build("vgg11", in_channels=1, width=0.125)
    train(dense, data.train.batches(BATCH, shuffle_seed=seed), epochs=5, lr=0.1, seed=seed, progress=False)
    dense.eval()
    tuned, before = {"dense": fine_tuned(dense, data, {}, seed)}, {}
    for sparsity in SPARSITIES:
        for name, (model, masks) in pruned(dense, data, 1 - sparsity, seed).items():
            key = f"{name} @ {sparsity}"
            before[key] = accuracy(model, data)
            tuned[key] = fine_tuned(model, data, masks, seed)
        print(f"seed {seed}: sparsity {sparsity} done", flush=True)
    options: dict[str, Any] = {"severities": SEVERITIES, "progress": False}
    test = evaluate_shift(tuned, data.test.batches(TESTED_ON), shift=TEST, **options)
    chosen = evaluate_shift(tuned, data.validation.sample(TESTED_ON, 0).batches(TESTED_ON), shift=HELD_OUT, **options)
    rows = []
    for key, found in test.items():
        name, _, sparsity_text = key.partition(" @ ")
        row = {"arm": name, "sparsity": float(sparsity_text or 0), "untuned": before.get(key), "ece": found.ece}
        row |= {"clean": found.clean.accuracy, "shifted": found.accuracy, "validation": chosen[key].accuracy}
        rows.append(row | {"worst": min(found.by_corruption.values()), "by_severity": list(found.by_severity.values())})
    watched = [key for key in tuned if key == "dense" or key.endswith("@ 0.9")][:: 3 if seed == 0 else 99]
    moved = connectivity_shift(
        {key: tuned[key] for key in watched}, data.test.batches(TESTED_ON), shift=TEST[::3], progress=False
    )
    relation = moved.relation(test) if len(watched) > 1 else None
    rows[0] |= {"relation": relation, "moved": {key: mean(moved.by_layer(key).values()) for key in watched}}
    return rows


def pruned(
    dense: nn.Module, data: Dataset, density: float, seed: int
) -> dict[str, tuple[nn.Module, Mapping[str, torch.Tensor]]]:
    """What each method leaves, with its masks."""
    example = data.example(2)
    graph = trace(dense, example)
    weights = {name: tensor.detach() for name, tensor in named_tensors(dense).items()}
    view = View(graph, weights, None, seed, dense, example, data.train.batches(256, shuffle_seed=seed))
    result, found = {}, {}
    for name, arm in ARMS.items():
        method: Method = replace(arm, density=density)  # type: ignore[type-var]
        if isinstance(method, GCNet):
            # What was measured does not depend on mode or granularity.
            found[method.estimator] = found.get(method.estimator) or method.evidence(view)
            plan = method.decide(view, found[method.estimator])
        else:
            plan = method.plan(view)
        result[name] = (apply(dense, graph, plan), masks_after(graph, plan))
    return result


def fine_tuned(model: nn.Module, data: Dataset, masks: Mapping[str, torch.Tensor], seed: int) -> nn.Module:
    """The same training for all: one pass over part of the images."""
    few = data.train.sample(TUNED_ON, seed)
    options: dict[str, Any] = {"masks": masks} if masks else {}
    train(model, few.batches(BATCH, shuffle_seed=seed), epochs=1, lr=0.03, seed=seed, progress=False, **options)
    recalibrate(model, few.batches(BATCH), 10)
    return model.eval()


def accuracy(model: nn.Module, data: Dataset) -> float:
    """On the test images, before fine-tuning."""
    ((inputs, labels),) = list(data.test.batches(TESTED_ON))
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(1) == labels).float().mean())


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    seeds = sorted({row["seed"] for row in rows})
    dense = [row for row in rows if row["arm"] == "dense"]
    lines = [
        "# GC-Net under shift",
        "",
        f"A VGG-11-BN of an eighth of the width on Fashion-MNIST at {SIDE} x {SIDE}, {TRAINED_ON} training images, "
        f"{len(seeds)} seeds; equal density, then one pass of fine-tuning over {TUNED_ON} images for all. Accuracy "
        f"under shift is the mean over 15 corruptions at severities {', '.join(map(str, SEVERITIES))} on {TESTED_ON} "
        "test images; in brackets the standard deviation over seeds. The setting is small: it says how methods compare "
        "here, not how good they can be.",
        "",
        f"Dense: clean {told(100 * row['clean'] for row in dense)}, under shift "
        f"{told(100 * row['shifted'] for row in dense)}.",
    ]
    for title, value in (("Under shift", "shifted"), ("Clean", "clean"), ("Clean, before fine-tuning", "untuned")):
        lines += ["", f"## {title}", "", *table(rows, value)]
    lines += ["", "## Under shift, difference to global magnitude of the same granularity, seed by seed", ""]
    lines += table(rows, "shifted", paired=True)
    lines += ["", "## Validation images under the held-out corruptions, the same difference", ""]
    lines += table(rows, "validation", paired=True)
    related = [row for row in dense if row.get("relation") is not None]
    for row in related:
        lines += ["", "## Connectivity under shift", ""]
        lines += [
            f"Rank correlation of how far connectivity moves and how much accuracy is lost, over {len(row['moved'])} "
            f"networks and 5 corruptions (seed {row['seed']}): {row['relation']:+.2f}. Mean distance:",
            "",
            *(f"* {key}: {value:.3f}" for key, value in row["moved"].items()),
        ]
    return "\n".join([*lines, "", "Made by `python benchmarks/gcnet.py`, one thread of a CPU.", ""])


def table(rows: list[dict[str, Any]], value: str, *, paired: bool = False) -> list[str]:
    """Arms down, sparsities across."""
    lines = ["| | " + " | ".join(f"{100 * s:g} %" for s in SPARSITIES) + " |", "|---" * (len(SPARSITIES) + 1) + "|"]
    known = {(row["arm"], row["sparsity"], row["seed"]): row for row in rows}
    for arm in ARMS:
        base = YARDSTICKS[arm.partition(":")[0]]
        if paired and arm == base:
            continue
        cells = []
        for sparsity in SPARSITIES:
            own = {key[2]: row for key, row in known.items() if key[:2] == (arm, sparsity)}
            less = {s: known[base, sparsity, s][value] if paired else 0.0 for s in own}
            cells.append(told((100 * (row[value] - less[s]) for s, row in own.items()), signed=paired))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def told(values: Iterable[float], *, signed: bool = False) -> str:
    """Mean and standard deviation."""
    known = list(values)
    if not known:
        return "-"
    spread = f" ({stdev(known):.1f})" if len(known) > 1 else ""
    return f"{mean(known):+.1f}{spread}" if signed else f"{mean(known):.1f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
