"""How well tables of latencies predict, and what plans made for a latency are worth beside plans made for MACs.

Run ``python benchmarks/latency_plans.py prediction`` and ``python benchmarks/latency_plans.py accuracy`` (name networks
and engines behind it for a part); one thread. *Prediction*: a table is measured, then plans that it has not seen are
predicted and timed. *Accuracy*: networks of pruning.toml, three seeds; the same trained network is cut for a share of
its latency, once planned by time and once by MACs, where the share of the MACs is the largest whose cut is as fast
when timed; both recover alike. Writes ``docs/results/latency_plans.*``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import train_once, view_of
from benchmarks.runner import RUNS, Benchmark, Case, Row, Rows, fields, main
from nervure import FPGM, Depth, Graph, Magnitude, Plan, Random, apply, evaluate, train
from nervure.engines import ENGINES
from nervure.errors import BudgetError
from nervure.evaluation.timing import SAMPLES, Stopwatch, machine, random_plan
from nervure.methods import Method, View
from nervure.report.markdown import table_text
from nervure.report.tables import Table
from nervure.surgery.price import price
from nervure.zoo import build, load
from nervure.zoo.dataset import Dataset

KEPT = RUNS / "latency_plans"
UNSEEN = 1000
"""Random plans from this number on are in no table."""
SEEDS, TARGETS = (0, 1, 2), (0.7, 0.5)
SIDE, TRAINED_ON, TESTED_ON, BATCH = 16, 8000, 3000, 128
TIMED_BATCH = 32
HALVINGS = 7
ENGINES_BY_DEFAULT = tuple(name for name in ENGINES if name != "compile")
"""torch.compile takes most of a minute for each network, and there are fifty for a table: name it to have it."""

PREDICTED: Mapping[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: build("vgg16"),
    "resnet20": lambda: build("resnet20"),
    "resnet56": lambda: build("resnet56"),
    "mobilenetv2": lambda: build("mobilenetv2", image_size=32, num_classes=10),
    "vit": lambda: build("vit_tiny"),
}


@dataclass(frozen=True)
class Trained:
    """A network of the comparison of accuracy and its training."""

    make: Callable[[], nn.Module]
    lr: float = 0.1
    recovery_lr: float = 0.05
    optimizer: str = "sgd"


TRAINED: Mapping[str, Trained] = {
    "vgg16": Trained(lambda: build("vgg16", in_channels=1, width=0.25)),
    "resnet20": Trained(lambda: build("resnet20", in_channels=1, width=2.0, stem_stride=2)),
    "vit": Trained(
        lambda: build("vit_tiny", in_channels=1, image_size=SIDE, patch=4, dim=96, depth=4, heads=4, mlp_ratio=2.0),
        0.002,
        0.001,
        "adamw",
    ),
}
PLANNED: Mapping[str, Mapping[str, Any]] = {
    "time, multiples of 16": {"budget": "latency", "multiple": 16},
    "time, multiples of 8": {"budget": "latency", "multiple": 8},
    "time": {"budget": "latency", "multiple": 1},
    "time, all layers alike": {"budget": "latency", "multiple": 8, "scope": "layer"},
    "MACs": {"budget": "macs", "multiple": 1},
    "MACs, multiples of 8": {"budget": "macs", "multiple": 8},
    "MACs, multiples of 16": {"budget": "macs", "multiple": 16},
}
BASELINE = "MACs"


def unseen(graph: Graph, view: View) -> Iterator[tuple[str, Plan]]:
    """Plans that no table was fitted to: random ones, and those of methods and budgets."""
    yield from ((f"random {number}", random_plan(graph, UNSEEN + number)) for number in range(8))
    methods: list[Method] = [
        Magnitude(keep=0.5, budget="macs", multiple=1),
        Magnitude(keep=0.3, budget="macs", multiple=8),
        Magnitude(keep=0.6, budget="params", scope="layer", multiple=16),
        FPGM(keep=0.6, scope="layer"),
        FPGM(keep=0.4, budget="params", multiple=8),
        Random(keep=0.5, budget="macs", multiple=16),
        Depth(keep=0.7, budget="macs", score="random"),
    ]
    for method in methods:
        try:
            yield repr(method), method.plan(view)
        except BudgetError as error:
            print(f"  {method!r}: {error}", flush=True)


def predicted(name: str, engine: str, batch: int, samples: int, cache: Path) -> Row:
    """Errors of one network's table on one engine, and of MACs where they stand for time."""
    torch.manual_seed(0)
    model = PREDICTED[name]().eval()
    example = torch.randn(batch, 3, 32, 32)
    view = view_of(model, example, data=[example] * 4)
    graph = view.graph
    watch = Stopwatch(model, graph, example, engine, 1, cache)
    start = time.monotonic()
    table = watch.table(samples=samples)
    took = time.monotonic() - start
    plans = dict(unseen(graph, view))
    rows = [
        {
            "plan": label,
            "predicted": table.predict(graph, plan) / table.dense,
            "macs": price(graph, plan).macs / graph.macs(),
            "timed": ratio,
        }
        for (label, plan), ratio in zip(plans.items(), watch.ratios(list(plans.values())), strict=True)
    ]
    return {
        "part": "prediction",
        "network": name,
        "engine": engine,
        "batch": batch,
        "machine": machine(torch.device("cpu")),
        "seconds": took,
        "samples": samples,
        "step": table.step,
        "told_error": table.error,
        "rows": rows,
    }


@cache
def dataset() -> Dataset:
    """Small pictures, few of them."""
    data = load("fashion-mnist", size=SIDE, validation=0.034, seed=0)
    return replace(data, train=data.train.sample(TRAINED_ON, 0), test=data.test.sample(TESTED_ON, 0))


def learned(model: nn.Module, network: Trained, data: Dataset, seed: int, *, epochs: int, lr: float) -> nn.Module:
    """Train in place."""
    batches = data.train.batches(BATCH, shuffle_seed=seed)
    train(model, batches, epochs=epochs, lr=lr, optimizer=network.optimizer, seed=seed, progress=False)
    return model.eval()


def dense(name: str, seed: int, data: Dataset, folder: Path) -> nn.Module:
    """The trained network, from its file where it is there."""
    network = TRAINED[name]
    torch.manual_seed(seed)
    batches = data.train.batches(BATCH, shuffle_seed=seed)
    how: dict[str, Any] = {"epochs": 3, "lr": network.lr, "optimizer": network.optimizer, "seed": seed}
    return train_once(folder / f"{name}-{seed}.safetensors", network.make(), batches, **how)


def compared(name: str, engine: str, seed: int, target: float, folder: Path) -> Iterator[Row]:
    """One trained network cut for one latency by every way of planning, and recovered."""
    data = dataset()
    model, network = dense(name, seed, data, folder), TRAINED[name]
    example = data.example(TIMED_BATCH)
    view = view_of(model, example, seed=seed)
    graph = view.graph
    watch = Stopwatch(model, graph, example, engine)
    whole = evaluate(model, data.test.batches(500)).accuracy
    for label, options in PLANNED.items():
        try:
            plan = as_fast(watch, view, options, target, engine)
        except BudgetError as error:
            print(f"  {label}: {error}", flush=True)
            continue
        smaller = learned(apply(model, graph, plan), network, data, seed + 1, epochs=1, lr=network.recovery_lr)
        yield {
            "part": "accuracy",
            "network": name,
            "engine": engine,
            "seed": seed,
            "target": target,
            "way": label,
            "dense": whole,
            "timed": watch.ratio(plan),
            "macs": price(graph, plan).macs / graph.macs(),
            "accuracy": evaluate(smaller, data.test.batches(500)).accuracy,
            "sizes": [cut.keep.count for cut in plan.cuts],
        }


def as_fast(watch: Stopwatch, view: View, options: Mapping[str, Any], target: float, engine: str) -> Plan:
    """The plan for a latency; by MACs the largest that is as fast when timed, found by halving; raises BudgetError."""
    if options["budget"] == "latency":
        return Magnitude(**options, engine=engine, target=target).plan(view)
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        keep = (low + high) / 2
        try:
            plan = Magnitude(**options, keep=keep).plan(view)
        except BudgetError:
            low = keep
            continue
        if watch.ratio(plan) <= target:
            low, best = keep, plan
        else:
            high = keep
    if best is None:
        raise BudgetError(f"no share of the MACs found is as fast as {target}.")
    return best


def page(lines: Rows) -> str:
    """The page."""
    text = [
        "# Plans for a latency",
        "",
        f"Made by `python benchmarks/latency_plans.py` on {lines[0].get('machine', 'the same machine')}; one thread.",
    ]
    if told := [line for line in lines if line["part"] == "prediction"]:
        text += ["", "## What tables predict", "", PREDICTION, "", table_text(_predictions(told))]
    if trained := [line for line in lines if line["part"] == "accuracy"]:
        text += ["", "## Accuracy at equal latency", "", ACCURACY, "", table_text(_accuracies(trained))]
    return "\n".join(text) + "\n"


PREDICTION = (
    "Relative errors of the time predicted for plans that the table was not fitted to, timed against the dense network "
    "(random ones, methods and budgets); beside them the errors where the share of MACs is taken for the share of time."
)
ACCURACY = (
    "Test accuracy after recovery, mean over seeds, of the same trained networks cut by magnitudes to the same timed "
    "share of the dense latency; the difference to a plan by MACs is paired, in points."
)


def _predictions(lines: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for line in lines:
        told, macs = (
            [abs(row[key] - row["timed"]) / row["timed"] for row in line["rows"]] for key in ("predicted", "macs")
        )
        errors = (f"{value:.1%}" for value in (median(told), max(told), median(macs), max(macs)))
        minutes = f"{line['seconds'] / 60:.1f}"
        rows.append((line["network"], line["engine"], str(line["batch"]), *errors, str(line["step"]), minutes))
    head = ("network", "engine", "batch", "median error", "worst", "by MACs: median", "worst", "step", "minutes")
    return Table(head, tuple(rows))


def _accuracies(lines: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    cases = dict.fromkeys((line["network"], line["engine"], line["target"]) for line in lines)
    for case in cases:
        mine = [line for line in lines if (line["network"], line["engine"], line["target"]) == case]
        base = {line["seed"]: line["accuracy"] for line in mine if line["way"] == BASELINE}
        for way in PLANNED:
            found = [line for line in mine if line["way"] == way]
            if not found:
                rows.append((*map(str, case), way, "not reached", "", "", "", ""))
                continue
            shares = (f"{mean(line[key] for line in found):.1%}" for key in ("timed", "macs", "accuracy"))
            gaps = [100 * (line["accuracy"] - base[line["seed"]]) for line in found if line["seed"] in base]
            gap = f"{mean(gaps):+.2f} ({min(gaps):+.2f} .. {max(gaps):+.2f})" if gaps else ""
            rows.append((*map(str, case), way, *shares, gap, str(len(found))))
    return Table(
        ("network", "engine", "target", "planned by", "timed", "MACs", "accuracy", "points to MACs", "seeds"),
        tuple(rows),
    )


def cases(options: Namespace) -> Iterator[Case]:
    """Predictions for every network and engine, then accuracies on the engines that are named, or one."""
    folder = options.results.parent if options.quick else KEPT
    named = [name for name in ENGINES if name in options.names]
    batch, samples = (2, 16) if options.quick else (TIMED_BATCH, SAMPLES)
    for engine, name in product(named or ENGINES_BY_DEFAULT, PREDICTED):
        yield ("prediction", name, engine), partial(predicted, name, engine, batch, samples, folder / "tables")
    seeds, targets = (SEEDS[:1], TARGETS[:1]) if options.quick else (SEEDS, TARGETS)
    for seed, name, target, engine in product(seeds, TRAINED, targets, named or ("onnxruntime",)):
        # All ways of one case are noted together: a case that was stopped is done again.
        yield ("accuracy", name, engine, seed, target), partial(_all_ways, name, engine, seed, target, folder)


def _all_ways(*case: Any) -> list[Row]:
    return list(compared(*case))


def tell(row: Row) -> str:
    """A line without its long parts."""
    return str({key: value for key, value in row.items() if key not in ("rows", "sizes", "versions")})


KEY = fields("part", "network", "engine", "seed", "target", "way")
BENCHMARK = Benchmark("latency_plans", page, KEY, cases, tell=tell, quick=True)

if __name__ == "__main__":
    main(BENCHMARK)
