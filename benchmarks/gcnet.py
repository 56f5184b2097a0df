"""GC-Net under shift: connectivity against magnitude, SNIP, Wanda, SNACS and lots, at equal density and fine-tuning.

Run ``python benchmarks/gcnet.py choose`` for the search of a variant (validation images under held-out corruptions,
a seed of its own), and without ``choose`` for the comparison (test images under the 15 other corruptions); one thread.
A line of ``docs/results/gcnet.jsonl`` is one pruned network. Trained networks are kept in ``runs/gcnet``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import train_once, view_of
from benchmarks.runner import ROOT, RUNS, Benchmark, Case, Row, Rows, main
from nervure import ERK, SNACS, SNIP, GCNet, MagnitudeMasks, Wanda, apply, train, zoo
from nervure.evaluation import CORRUPTIONS, HELD_OUT, connectivity_shift, evaluate_shift
from nervure.evaluation.labelled import Batch
from nervure.evaluation.shift import shift_batches
from nervure.methods import Method, View
from nervure.methods.gcnet.guidance import Mode
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.surgery.apply import masks_after
from nervure.training import recalibrate
from nervure.zoo.dataset import Dataset

STATES = RUNS / "gcnet"
SEEDS, CHOOSING = (0, 1, 2), (10,)
SPARSITIES, SEVERITIES = (0.5, 0.7, 0.8, 0.9, 0.95), (1, 3, 5)
SIDE, TRAINED_ON, TUNED_ON, TESTED_ON, BATCH = 16, 8000, 4000, 400, 64
TEST = tuple(name for name in CORRUPTIONS if name not in HELD_OUT)
AUGMENTED = (("rotate", 2), ("translate", 2), ("scale", 2))
"""Beside the clean images, where consistent connectivity has to hold; none of them is in the test."""


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it is trained."""

    network: Callable[[], nn.Module]
    data: str
    epochs: int = 5
    sparsities: tuple[float, ...] = SPARSITIES


TASKS: Mapping[str, Task] = {
    "VGG-16-BN": Task(lambda: zoo.build("vgg16", in_channels=1, width=0.125), "fashion-mnist"),
    "ResNet-18": Task(
        lambda: zoo.build("resnet18", in_channels=1, num_classes=10, width=0.125, small_images=True),
        "fashion-mnist",
        sparsities=(0.7, 0.9, 0.95),
    ),
    "ResNet-8, digits": Task(lambda: zoo.build("resnet8", in_channels=1, width=1.0), "digits", 15, (0.9, 0.95)),
}

KERNELS: dict[str, Any] = {"granularity": "connection", "guard": "units"}
WEIGHTS: dict[str, Any] = {"granularity": "element", "guard": "outputs"}
SLIMMING: dict[str, Any] = {
    "granularity": "kernels",
    "of": "means",
    "sizes": "threshold",
    "samples": 1024,
    "cache": str(STATES / "snacs"),
}


@dataclass(frozen=True)
class Arm:
    """A method, and what is done differently for it.

    Attributes:
        method: at any density.
        consistent: connectivity is the least over the clean and the augmented images.
    """

    method: Method
    consistent: bool = False

    def at(self, density: float) -> Method:
        """The method at this density."""
        name = "keep" if isinstance(self.method, SNACS) else "density"
        changed: Method = replace(self.method, **{name: density})  # type: ignore[type-var]
        return changed


def gc(mode: Mode = "split", **options: Any) -> Arm:
    """GC-Net on kernels, in half of the layers (split) or in all."""
    start = 0.5 if mode == "split" else 0.0
    return Arm(GCNet(**{"mode": mode, "start": start, "estimator": "classwise", **options}))


CONDITIONAL: dict[str, Any] = {"estimator": "residual"}
VARIANTS: Mapping[str, Arm] = {
    "magnitude": Arm(MagnitudeMasks(**KERNELS)),
    "magnitude, layerwise": Arm(MagnitudeMasks(**KERNELS, distribution="uniform")),
    "Wanda": Arm(Wanda(**KERNELS, samples=1024)),
    **{
        f"{mode}, {estimator}": gc(mode=mode, estimator=estimator)
        for mode, estimator in product(
            ("pure", "split", "product", "mix", "union", "intersection"), ("classwise", "correlation", "residual")
        )
    },
    "split, gaussian": gc(estimator="gaussian"),
    "split, residual, from 1/4": gc(**CONDITIONAL, start=0.25),
    "split, residual, from 3/4": gc(**CONDITIONAL, start=0.75),
    "split, classwise, from 1/4": gc(start=0.25),
    "split, classwise, from 3/4": gc(start=0.75),
    "split, residual, layerwise": gc(**CONDITIONAL, distribution="uniform"),
    "product, residual, layerwise": gc(**CONDITIONAL, mode="product", distribution="uniform"),
    "product, residual, from 1/2": gc(**CONDITIONAL, mode="product", start=0.5),
    "product, residual, from 3/4": gc(**CONDITIONAL, mode="product", start=0.75),
    "mix of 3/4 magnitude, residual": gc(**CONDITIONAL, mode="mix", alpha=0.75),
    "split, residual, 3 rounds": gc(**CONDITIONAL, rounds=3),
    "product, residual, 3 rounds": gc(**CONDITIONAL, mode="product", rounds=3),
    "split, residual, consistent": replace(gc(**CONDITIONAL), consistent=True),
    "product, residual, consistent": replace(gc("product", **CONDITIONAL), consistent=True),
    "split, classwise, consistent": replace(gc(), consistent=True),
    "pure, patches": gc("pure", estimator="residual", of="patches"),
    "split, patches, from 3/4": gc(estimator="residual", of="patches", start=0.75),
    "product, patches, from 3/4": gc("product", estimator="residual", of="patches", start=0.75),
    "magnitude of weights": Arm(MagnitudeMasks(guard="outputs")),
    "Wanda, weights": Arm(Wanda(samples=1024)),
    "product, residual, weights": gc("product", **WEIGHTS, **CONDITIONAL),
    "product, classwise, weights": gc("product", **WEIGHTS),
    "product, residual, weights, from 3/4": gc("product", **WEIGHTS, **CONDITIONAL, start=0.75),
    "mix of 3/4 magnitude, residual, weights": gc("mix", **WEIGHTS, **CONDITIONAL, alpha=0.75),
}
"""Tried on validation images, at the sparsities ``CHOSEN_AT``."""
CHOSEN_AT = (0.8, 0.95)

ARMS: Mapping[str, Arm] = {
    "weights: global magnitude": Arm(MagnitudeMasks(guard="outputs")),
    "weights: layerwise magnitude": Arm(MagnitudeMasks(guard="outputs", distribution="uniform")),
    "weights: random": Arm(ERK(guard="outputs", distribution="uniform")),
    "weights: SNIP": Arm(SNIP(batches=4, statistics="running", guard="outputs")),
    "weights: Wanda": Arm(Wanda(samples=1024)),
    "weights: GC product, conditional": gc("product", **WEIGHTS, **CONDITIONAL),
    "weights: GC, default": Arm(GCNet(**WEIGHTS)),
    "kernels: global magnitude": Arm(MagnitudeMasks(**KERNELS)),
    "kernels: layerwise magnitude": Arm(MagnitudeMasks(**KERNELS, distribution="uniform")),
    "kernels: random": Arm(ERK(**KERNELS, distribution="uniform")),
    "kernels: Wanda": Arm(Wanda(samples=1024, **KERNELS)),
    "kernels: SNACS": Arm(SNACS(**SLIMMING)),
    "kernels: a lot in magnitude's layer sizes": gc(mode="pure", criterion="random"),
    "kernels: GC pure, classwise, layerwise": gc(mode="pure", distribution="uniform"),
    "kernels: GC split, classwise, layerwise (paper)": gc(paper=True),
    "kernels: GC split, classwise": gc(mode="split"),
    "kernels: GC split, conditional": gc(mode="split", **CONDITIONAL),
    "kernels: GC product, conditional": gc(mode="product", **CONDITIONAL),
    "kernels: GC, default": Arm(GCNet()),
}
YARDSTICKS = {"weights": "weights: global magnitude", "kernels": "kernels: global magnitude"}


# -- one trial -----------------------------------------------------------------------------------------------------


@cache
def data_of(task: str, seed: int) -> Dataset:
    """Few images, and the same test images for all."""
    name = TASKS[task].data
    if name == "digits":
        return zoo.load("digits", seed=seed, validation=0.2)
    data = zoo.load("fashion-mnist", seed=seed, size=SIDE)
    return replace(data, train=data.train.sample(TRAINED_ON, seed), test=data.test.sample(TESTED_ON, 0))


@cache
def judged_on(task: str, seed: int, phase: str) -> tuple[list[Batch], dict[tuple[str, int], list[Batch]]]:
    """Clean images, and the same under each shift."""
    data = data_of(task, seed)
    split, names = (data.test, TEST) if phase == "test" else (data.validation.sample(TESTED_ON, 0), HELD_OUT)
    batches = split.batches(TESTED_ON)
    keys = product(names, SEVERITIES)
    return list(batches), {(name, level): list(shift_batches(batches, name, level)) for name, level in keys}


@cache
def seen(task: str, seed: int) -> View:
    """The trained dense network, traced."""
    data = data_of(task, seed)
    torch.manual_seed(seed)
    batches = data.train.batches(BATCH, shuffle_seed=seed)
    how: dict[str, Any] = {"epochs": TASKS[task].epochs, "lr": 0.1, "seed": seed}
    model = train_once(STATES / f"{task}-{seed}.safetensors", TASKS[task].network(), batches, **how)
    return view_of(model, data.example(2), seed=seed, data=data.train.batches(256, shuffle_seed=seed))


@cache
def measured(task: str, seed: int, estimator: str, of: str, consistent: bool) -> ConnectivityEvidence:
    """Connectivity of the dense network; where consistent, the least over clean and augmented images."""
    view, asked = seen(task, seed), GCNet(estimator=estimator, of=of)  # type: ignore[arg-type]
    return in_all_views(asked, view) if consistent else asked.evidence(view)


def in_all_views(asked: GCNet, view: View) -> ConnectivityEvidence:
    """The least connectivity over clean and augmented images."""
    found = asked.evidence(view)
    views = (replace(view, data=list(shift_batches(view.data, *key))) for key in AUGMENTED)
    others = [asked.evidence(one).scores for one in views]
    least = {n: torch.stack([s, *(o[n] for o in others)]).amin(0) for n, s in found.scores.items()}
    return replace(found, scores=least)


def trial(phase: str, task: str, name: str, sparsity: float, seed: int) -> Row:
    """Prune, evaluate, fine-tune, evaluate."""
    start, view, data = time.process_time(), seen(task, seed), data_of(task, seed)
    clean, moved = judged_on(task, seed, phase)
    if name == "dense":
        model, masks = apply(view.model, view.graph, empty(view)), dict[str, Tensor]()
    else:
        arm = (VARIANTS if phase == "choose" else ARMS)[name]
        method = arm.at(1 - sparsity)
        if isinstance(method, GCNet):
            plan = method.decide(view, measured(task, seed, method.estimator, method.of, arm.consistent))
        else:
            plan = method.plan(view)
        assert view.model is not None
        model, masks = apply(view.model, view.graph, plan), masks_after(view.graph, plan)
    recalibrate(model, view.data, 5)
    before = evaluate_shift({"": model.eval()}, clean, shift=moved, progress=False)[""]
    fine_tuned(model, data, masks, seed)
    after = evaluate_shift({"": model}, clean, shift=moved, progress=False)[""]
    row = {"untuned": before.clean.accuracy, "untuned shifted": before.accuracy}
    row |= {"clean": after.clean.accuracy, "shifted": after.accuracy, "ece": after.ece}
    row["worst"] = min(after.by_corruption.values())
    found = {key: round(value, 5) for key, value in row.items()}
    took = round(time.process_time() - start, 1)
    return {"key": [phase, task, name, sparsity, seed]} | found | {"seconds": took}


def empty(view: View) -> Any:
    """A plan that does nothing."""
    return MagnitudeMasks(density=1.0).plan(view)


def fine_tuned(model: nn.Module, data: Dataset, masks: Mapping[str, Tensor], seed: int) -> None:
    """The same training for all: one pass over part of the images."""
    few = data.train.sample(min(TUNED_ON, len(data.train)), seed)
    options: dict[str, Any] = {"masks": masks} if masks else {}
    train(model, few.batches(BATCH, shuffle_seed=seed), epochs=1, lr=0.03, seed=seed, progress=False, **options)
    recalibrate(model, few.batches(BATCH), 10)
    model.eval()


# -- all of them ---------------------------------------------------------------------------------------------------


def keys(phase: str) -> Iterator[list[Any]]:
    """Every trial, in the order in which they are of use: the sparsest first."""
    seeds, arms = (CHOOSING, VARIANTS) if phase == "choose" else (SEEDS, ARMS)
    tasks = {n: t for n, t in TASKS.items() if phase == "test" or t.data != "digits"}
    yield from ([phase, task, "dense", 0.0, seed] for seed, task in product(seeds, tasks))
    for sparsity, seed, task in product(reversed(SPARSITIES), seeds, tasks):
        if sparsity in (CHOSEN_AT if phase == "choose" else tasks[task].sparsities):
            yield from ([phase, task, arm, sparsity, seed] for arm in arms)


def related(task: str) -> Row:
    """How far connectivity moves under shift, beside the accuracy that is lost."""
    models = {"dense": seen(task, 0).model}
    view, data = seen(task, 0), data_of(task, 0)
    for name in ("kernels: global magnitude", "kernels: random", "kernels: GC split, conditional", "kernels: SNACS"):
        method = ARMS[name].at(0.1)
        plan = method.plan(view)
        model, masks = apply(view.model, view.graph, plan), masks_after(view.graph, plan)  # type: ignore[arg-type]
        fine_tuned(model, data, masks, 0)
        models[name] = model
    batches, some = data.test.batches(TESTED_ON), TEST[::2]
    moved = connectivity_shift(models, batches, shift=some, progress=False)  # type: ignore[arg-type]
    lost = evaluate_shift(models, batches, shift=some, severities=(3,), progress=False)  # type: ignore[arg-type]
    means = {key: round(fmean(moved.by_layer(key).values()), 4) for key in models}
    accuracies = {key: round(lost[key].accuracy, 4) for key in models}
    return {"key": ["moved", task], "relation": moved.relation(lost), "moved": means, "shifted": accuracies}


def cases(options: Namespace) -> Iterator[Case]:
    """The search where it is asked for, otherwise the comparison."""
    phase = "choose" if "choose" in options.names else "test"
    yield from ((tuple(key), partial(trial, *key)) for key in keys(phase))
    if phase == "test":
        yield from ((("moved", task), partial(related, task)) for task in TASKS)


# -- the page ------------------------------------------------------------------------------------------------------

Known = Mapping[tuple[str, str, float], Mapping[int, dict[str, Any]]]


def known(lines: Iterable[dict[str, Any]], phase: str) -> Known:
    """Lines of a phase by task, arm and sparsity, then by seed."""
    found: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for row in lines:
        if row["key"][0] == phase:
            _, task, arm, sparsity, seed = row["key"]
            found.setdefault((task, arm, sparsity), {})[seed] = row
    return found


def page(lines: Rows) -> str:
    """The results as Markdown."""
    test, chosen = known(lines, "test"), known(lines, "choose")
    head = ROOT / "benchmarks" / "gcnet.intro.md"
    text = ["# GC-Net under shift", "", *(head.read_text().splitlines() if head.exists() else []), ""]
    missing = sum(1 for key in keys("test") if key[4] not in test.get((key[1], key[2], key[3]), {}))
    if missing:
        text += [
            f"**The study is not complete: {missing} of {sum(1 for _ in keys('test'))} networks are missing.**",
            "",
        ]
    for task, settings in TASKS.items():
        dense = test.get((task, "dense", 0.0), {}).values()
        if not dense:
            continue
        text += [f"## {task}", "", f"Dense: {told([r['clean'] for r in dense])} % clean, "]
        text[-1] += f"{told([r['shifted'] for r in dense])} % under shift; {len(dense)} seeds."
        text += ["", "Under shift, less global magnitude of the same granularity, in points, seed by seed:", ""]
        text += table(test, task, settings.sparsities, "shifted", paired=True)
        for title, value in (("Under shift", "shifted"), ("Clean", "clean"), ("Worst corruption", "worst")):
            text += ["", f"{title}, %:", "", *table(test, task, settings.sparsities, value)]
        text += ["", "Before fine-tuning (batch norms measured anew), under shift, %:", ""]
        text += [*table(test, task, settings.sparsities, "untuned shifted"), ""]
    for row in (row for row in lines if row["key"][0] == "moved"):
        text += [f"## Connectivity under shift, {row['key'][1]}", ""]
        text += [
            "Rank correlation of how far connectivity moves and how much accuracy is lost, over 5 networks at 90 % and "
            f"{len(TEST[::2])} corruptions (one seed): {row['relation']:+.2f}. Distance, and accuracy under shift:",
            "",
            *(f"* {name}: {far:.3f}, {100 * row['shifted'][name]:.1f} %" for name, far in row["moved"].items()),
            "",
        ]
    return "\n".join([*text, *choice(chosen), ""])


def choice(chosen: Known) -> list[str]:
    """The search, best first."""
    tasks = [task for task, settings in TASKS.items() if settings.data != "digits"]
    cells = list(product(tasks, CHOSEN_AT))
    scores: dict[str, list[str]] = {}
    order: dict[str, float] = {}
    for name in VARIANTS:
        base = "magnitude of weights" if "weights" in name else "magnitude"
        gains = {}
        for task, sparsity in cells:
            own, other = chosen.get((task, name, sparsity), {}), chosen.get((task, base, sparsity), {})
            gains[task, sparsity] = [own[s]["shifted"] - other[s]["shifted"] for s in own if s in other]
        every = [gain for values in gains.values() for gain in values]
        if every:
            order[name] = fmean(every) - (10 if "weights" in name else 0)
            scores[name] = [told(gains[cell], signed=True) for cell in cells] + [told(every, signed=True)]
    if not order:
        return []
    heads = [f"{task}, {sparsity:.0%}" for task, sparsity in cells]
    lines = ["## The search", "", "Validation images under the held-out corruptions, seed 10: points above "]
    lines[-1] += "global magnitude of the same granularity. Sorted by the mean."
    lines += ["", f"| | {' | '.join(heads)} | all |", "|---" * (len(heads) + 2) + "|"]
    return lines + [f"| {n} | {' | '.join(scores[n])} |" for n in sorted(order, key=lambda n: -order[n])]


def table(found: Known, task: str, sparsities: Iterable[float], value: str, *, paired: bool = False) -> list[str]:
    """Arms down, sparsities across."""
    lines = ["| | " + " | ".join(f"{100 * s:g} %" for s in sparsities) + " |"]
    lines.append("|---" * (len(list(sparsities)) + 1) + "|")
    for arm in ARMS:
        base = YARDSTICKS[arm.partition(":")[0]]
        if paired and arm == base:
            continue
        cells = []
        for sparsity in sparsities:
            own, other = found.get((task, arm, sparsity), {}), found.get((task, base, sparsity), {})
            seeds = [seed for seed in own if not paired or seed in other]
            cells.append(told([own[s][value] - (other[s][value] if paired else 0) for s in seeds], signed=paired))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def told(values: Iterable[float], *, signed: bool = False) -> str:
    """Mean and standard deviation, in percent or points."""
    every = [100 * value for value in values]
    if not every:
        return "-"
    spread = f" ({stdev(every):.1f})" if len(every) > 1 else ""
    return f"{fmean(every):+.1f}{spread}" if signed else f"{fmean(every):.1f}{spread}"


BENCHMARK = Benchmark("gcnet", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
