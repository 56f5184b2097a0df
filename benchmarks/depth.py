"""Removing layers: energy statistics against yardsticks at equal parameters, and depth against width at equal time.

Run ``python benchmarks/depth.py`` (or with names of networks behind it); one thread, three seeds. Every line of
``docs/results/depth.jsonl`` is one trial, written when it is done: a run that was stopped goes on where it was.
``python benchmarks/depth.py --table`` writes ``docs/results/depth.md`` from the lines that are there.
Weights of the dense networks are kept in ``runs/depth``.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from nervure import Depth, Drop, Energy, Graph, Magnitude, Plan, apply, count, evaluate, latency, measure, trace, train
from nervure.export import load_state, save_state
from nervure.methods import View
from nervure.methods.dropping import BlockBudget, Dropping, droppable
from nervure.surgery.price import price
from nervure.training import recalibrate
from nervure.zoo import build, load
from nervure.zoo.dataset import Dataset
from nervure.zoo.models.densenet import DenseNet

ROOT = Path(__file__).resolve().parent.parent
RESULTS, WEIGHTS = ROOT / "docs" / "results", ROOT / "runs" / "depth"
SEEDS = (0, 1, 2)
SIDE, TRAINED_ON, TESTED_ON, MEASURED_ON = 14, 4000, 2000, 1500
BATCH, EPOCHS, RECOVERED, LR, RECOVERY_LR = 64, 5, 1, 0.1, 0.03
BUDGETS: tuple[tuple[BlockBudget, float], ...] = (("params", 0.75), ("params", 0.5), ("blocks", 2 / 3), ("blocks", 0.4))
LAST = BUDGETS[1]

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: build("resnet20", in_channels=1, width=0.5),
    "vit": lambda: build("vit_tiny", in_channels=1, image_size=SIDE, patch=2, dim=32, depth=6, heads=2, mlp_ratio=2.0),
    "densenet": lambda: DenseNet(31, 1, 10, 6, False),
    "resnet56": lambda: build("resnet56", in_channels=1, width=0.5),
    "resnet110": lambda: build("resnet110", in_channels=1, width=0.25),
}
METHODS: Mapping[str, Dropping] = {
    "energy R2, clusters": Energy(),
    "energy R2, rank": Energy(policy="rank"),
    "max over classes (V), clusters": Energy(score="max_ref", unbiased=False),
    "max over classes (V), rank": Energy(score="max_ref", unbiased=False, policy="rank"),
    "coefficient, rank": Energy(score="coefficient", policy="rank"),
    "dcor with probabilities, rank": Energy(score="dcor", target="probabilities", policy="rank"),
    "block influence": Depth(),
    "branch size": Depth(score="branch"),
    "CKA without the block": Depth(score="cka", recalibrate=8),
    "random": Depth(score="random"),
    "random, second lot": Depth(score="random", seed=1000),
}


WIDTHS_OF = "energy R2, rank"
"""Whose drops are compared with cuts of channels."""


@dataclass(frozen=True)
class Trial:
    """A dense network, its evidence, and what its smaller versions came to."""

    name: str
    seed: int
    data: Dataset
    model: nn.Module
    view: View

    @property
    def graph(self) -> Graph:
        """The graph of the dense network."""
        return self.view.graph

    def batches(self) -> Any:
        """The training data in the order of this seed."""
        return self.data.train.batches(BATCH, shuffle_seed=self.seed)


class Log:
    """The lines that are there, by what they are about; new ones are written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first line with these entries."""
        return next((r for r in self.rows if all(r.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write one line."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row


def prepared(name: str, seed: int, log: Log) -> Trial:
    """Train the dense network (or read it), trace and measure it."""
    data = load("fashion-mnist", seed=seed, size=SIDE)
    data = replace(data, train=data.train.sample(TRAINED_ON, seed), test=data.test.sample(TESTED_ON, 0))
    torch.manual_seed(seed)
    model, file = NETWORKS[name](), WEIGHTS / f"{name}-{seed}.safetensors"
    if file.exists():
        load_state(file, model)
    else:
        lr, optimizer = (2e-3, "adamw") if name == "vit" else (LR, "sgd")
        batches = data.train.batches(BATCH, shuffle_seed=seed)
        train(model, batches, epochs=EPOCHS, lr=lr, optimizer=optimizer, seed=seed, progress=False)
        WEIGHTS.mkdir(parents=True, exist_ok=True)
        save_state(file, model)
    model.eval()
    example = data.example(1)
    graph = trace(model, example)
    measured = data.train.batches(250, shuffle_seed=seed)
    want = {"blocks", "outputs"}
    stats = measure(model, graph, measured, want=want, samples=MEASURED_ON, seed=seed, progress=False)
    trial = Trial(name, seed, data, model, View(graph, {}, stats, seed, model, example, measured))
    if log.find(network=name, seed=seed, kind="dense") is None:
        found = tested(trial, model)
        again = recovered(trial, apply(model, graph, Plan()))
        params = count(model, example).params
        row = {"network": name, "seed": seed, "kind": "dense", "accuracy": found, "recovered": again}
        log.add(row | {"params": params, "blocks": len(droppable(graph, "fine"))})
    return trial


def tested(trial: Trial, model: nn.Module) -> float:
    """Accuracy on the test images."""
    return evaluate(model, trial.data.test.batches(500), progress=False).accuracy


def recovered(trial: Trial, model: nn.Module) -> float:
    """Accuracy after the recovery that all get: the same data in the same order, the same rates."""
    lr, optimizer = (5e-4, "adamw") if trial.name == "vit" else (RECOVERY_LR, "sgd")
    train(
        model,
        trial.batches(),
        epochs=RECOVERED,
        lr=lr,
        optimizer=optimizer,
        schedule="cosine",
        seed=trial.seed + 100,
        progress=False,
    )
    return tested(trial, model)


def without(trial: Trial, blocks: Sequence[str]) -> nn.Module:
    """The network without these blocks, its batch norms recalibrated."""
    smaller = apply(trial.model, trial.graph, Plan(tuple(Drop(b) for b in blocks))).eval()
    recalibrate(smaller, trial.batches(), 10)
    return smaller


def timed(trial: Trial, model: nn.Module) -> float:
    """Time of a batch of 32 relative to the dense network's, interleaved."""
    pair = {"dense": trial.model, "smaller": model}
    return latency(pair, trial.view.example, batch_sizes=[32], rounds=9, seconds=0.3).row("smaller").ratio


def one_set(trial: Trial, log: Log, blocks: Sequence[str]) -> dict[str, Any]:
    """What is left without these blocks; worked out once, however many methods choose them."""
    key = {"network": trial.name, "seed": trial.seed, "kind": "set", "dropped": sorted(blocks)}
    known = log.find(**key)
    if known is not None:
        return known
    start, smaller = time.perf_counter(), without(trial, blocks)
    left = price(trial.graph, Plan(tuple(Drop(b) for b in blocks)))
    row = key | {"params": left.params, "macs": left.macs, "unrecovered": tested(trial, smaller)}
    row |= {"latency": timed(trial, smaller), "recovered": recovered(trial, smaller)}
    return log.add(row | {"seconds": round(time.perf_counter() - start, 1)})


def compare_methods(trial: Trial, log: Log) -> None:
    """Every method at every budget."""
    for budget, keep in BUDGETS:
        for name, method in METHODS.items():
            key = {"network": trial.name, "seed": trial.seed, "kind": "method", "method": name}
            key |= {"budget": budget, "keep": keep}
            if log.find(**key) is None:
                plan = replace(method, keep=keep, budget=budget).plan(trial.view)
                dropped = sorted(d.block for d in plan.drops)
                one_set(trial, log, dropped)
                log.add(key | {"dropped": dropped})


def compare_width(trial: Trial, log: Log) -> None:
    """Depth, width, and half of each, at the time that the energy plan with half of the parameters takes."""
    depth = log.find(network=trial.name, seed=trial.seed, kind="method", method=WIDTHS_OF, budget=LAST[0], keep=LAST[1])
    if depth is None:
        return
    goal = one_set(trial, log, depth["dropped"])["latency"]
    half = replace(METHODS[WIDTHS_OF], drop=len(depth["dropped"]) // 2).plan(trial.view)
    starts = {"width": [], "both": [d.block for d in half.drops]}
    for kind, blocks in starts.items():
        key = {"network": trial.name, "seed": trial.seed, "kind": kind}
        if log.find(**key) is not None:
            continue
        base = without(trial, blocks)
        graph = trace(base, trial.view.example)
        low, high, best = 0.1, 1.0, base
        for _ in range(5):
            keep = (low + high) / 2
            best = apply(base, graph, Magnitude(keep=keep, budget="macs").plan(View(graph, dict(base.state_dict()))))
            low, high = (low, keep) if timed(trial, best) > goal else (keep, high)
        recalibrate(best, trial.batches(), 10)
        row = key | {"goal": goal, "keep": keep, "latency": timed(trial, best), "unrecovered": tested(trial, best)}
        row |= {"params": count(best, trial.view.example).params, "recovered": recovered(trial, best)}
        log.add(row)


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    found = [100 * v for v in values]
    return f"{mean(found):.1f} ± {stdev(found):.1f}" if len(found) > 1 else f"{found[0]:.1f}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [HEAD, "", complete(rows)]
    for network in NETWORKS:
        own = [r for r in rows if r["network"] == network]
        if own:
            lines += section(network, own)
    return "\n".join(lines) + "\n"


def complete(rows: Sequence[dict[str, Any]]) -> str:
    """How much of the study is there."""
    wanted = len(METHODS) * len(BUDGETS)
    pairs = [(network, seed) for network in NETWORKS for seed in SEEDS]
    done = {
        pair: sum(r["kind"] == "method" and (r["network"], r["seed"]) == pair for r in rows) / wanted for pair in pairs
    }
    whole = sum(share == 1 for share in done.values())
    if whole == len(pairs):
        return "The study is complete."
    begun = ", ".join(f"{network} seed {seed}: {share:.0%}" for (network, seed), share in done.items() if share)
    return (
        f"**The study is not complete: {whole} of {len(pairs)} pairs of network and seed are ({begun}).** "
        "What is below is what is there so far; the same command goes on."
    )


def section(network: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The tables of one network."""
    dense = [r for r in rows if r["kind"] == "dense"]
    sets = {(r["seed"], tuple(r["dropped"])): r for r in rows if r["kind"] == "set"}
    lines = [
        "",
        f"## {network}",
        "",
        f"{dense[0]['blocks']} blocks, {dense[0]['params']:,} parameters, {len(dense)} seeds. Dense: "
        f"{spread(r['accuracy'] for r in dense)} %; after the same recovery {spread(r['recovered'] for r in dense)} %.",
        "",
        "| method | kept | blocks dropped | unrecovered | recovered | above random | time / dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget, keep in BUDGETS:
        lots = [_found(rows, sets, name, budget, keep) for name in METHODS if name.startswith("random")]
        for name in METHODS:
            found = _found(rows, sets, name, budget, keep)
            if not found:
                continue
            gains = [
                r["recovered"] - mean(lot[s]["recovered"] for lot in lots)
                for s, r in found.items()
                if all(s in lot for lot in lots)
            ]
            lines.append(
                f"| {name} | {keep:.0%} of {budget} | {mean(len(r['dropped']) for r in found.values()):.1f} "
                f"| {spread(r['unrecovered'] for r in found.values())} "
                f"| {spread(r['recovered'] for r in found.values())} | {spread(gains) if gains else ''} "
                f"| {median(r['latency'] for r in found.values()):.2f} |"
            )
    return lines + _widths(rows, sets)


def _found(
    rows: Sequence[dict[str, Any]],
    sets: Mapping[tuple[int, tuple[str, ...]], dict[str, Any]],
    name: str,
    budget: str,
    keep: float,
) -> dict[int, dict[str, Any]]:
    own = [
        r for r in rows if r["kind"] == "method" and r["method"] == name and (r["budget"], r["keep"]) == (budget, keep)
    ]
    return {r["seed"]: sets[r["seed"], tuple(r["dropped"])] for r in own}


def _widths(rows: Sequence[dict[str, Any]], sets: Mapping[Any, dict[str, Any]]) -> list[str]:
    depth = _found(rows, sets, WIDTHS_OF, *LAST)
    kinds = {"depth": list(depth.values())} | {k: [r for r in rows if r["kind"] == k] for k in ("width", "both")}
    if not kinds["both"]:
        return []
    lines = ["", "Depth, width (magnitude), or half of the depth and then width, at the same measured time:", ""]
    lines += ["| what | time / dense | parameters | unrecovered | recovered |", "|---|---|---|---|---|"]
    lines += [
        f"| {kind} | {median(r['latency'] for r in own):.2f} | {mean(r['params'] for r in own):,.0f} "
        f"| {spread(r['unrecovered'] for r in own)} | {spread(r['recovered'] for r in own)} |"
        for kind, own in kinds.items()
    ]
    return lines


HEAD = f"""# Removing layers

`python benchmarks/depth.py`: Fashion-MNIST at {SIDE} x {SIDE} pixels, {TRAINED_ON:,} training and {TESTED_ON:,} test
images, {EPOCHS} epochs of training, {RECOVERED} of recovery for everyone (same data, order and rate), one thread. Small
networks and short trainings: the ranking of methods is what can be read here, not the accuracy that networks reach.
Accuracies are in percent, mean and standard deviation over seeds; "above random" is the difference of recovered
accuracies to the mean of two random lots, seed by seed. "Unrecovered" is after recalibration of batch norms. Time is
that of a batch of 32 in turn with the dense network. Methods that choose the same blocks share one trial."""


def main(names: Sequence[str]) -> None:
    """Go through networks and seeds, smallest first."""
    torch.set_num_threads(1)
    log = Log(RESULTS / "depth.jsonl")
    if "--table" not in names:
        for name in names or NETWORKS:
            for seed in SEEDS:
                trial = prepared(name, seed, log)
                compare_methods(trial, log)
                if name in ("resnet20", "resnet56"):
                    compare_width(trial, log)
    (RESULTS / "depth.md").write_text(page(log.rows))


if __name__ == "__main__":
    main(sys.argv[1:])
