"""Removing layers: energy statistics against yardsticks at equal parameters, and depth against width at equal time.

Run ``python benchmarks/depth.py`` (or a part of it: name networks, seeds, or a budget, ``params`` or ``blocks``, behind
it, which leaves out the comparison at equal time); one thread, three seeds, seed by seed. Writes
``docs/results/depth.*``, a line for each trial; weights of the dense networks are kept in ``runs/depth``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import train_once
from benchmarks.runner import RUNS, Benchmark, Results, Row, Rows, main, spread
from nervure import (
    Block,
    Depth,
    Drop,
    Energy,
    Graph,
    Magnitude,
    Plan,
    apply,
    count,
    evaluate,
    measure,
    trace,
    train,
)
from nervure.errors import BudgetError
from nervure.methods import View
from nervure.methods.blocks.dropping import BlockBudget, BlockScore, Dropping, droppable
from nervure.methods.blocks.evaluator import BlockEvaluator
from nervure.surgery.price import price
from nervure.training import recalibrate
from nervure.zoo import build, load
from nervure.zoo.dataset import Dataset
from nervure.zoo.models.densenet import DenseNet

WEIGHTS = RUNS / "depth"
SEEDS = (0, 1, 2)
SIDE, TRAINED_ON, BATCH = 14, 4000, 64
SHORTER = 0.8
"""Of the dense network's time, what depth, width and both are brought down to."""
EQUAL = 0.02
"""How far apart, relatively, equal times may be."""


@dataclass(frozen=True)
class Network:
    """A network, and how much of the study it takes part in: the deep ones are slow.

    Attributes:
        make: an untrained one.
        epochs: of training.
        lr: of training.
        recovery_lr: of recovery.
        recovered_on: training images of the recovery, once.
        tested_on: test images.
        measured_on: training images that scores are made from.
        budgets: how much stays.
        deep: compared with the main methods only.
        optimizer: of both trainings.
    """

    make: Callable[[], nn.Module]
    epochs: int = 5
    lr: float = 0.1
    recovery_lr: float = 0.03
    recovered_on: int = 4000
    tested_on: int = 2000
    measured_on: int = 1500
    budgets: tuple[tuple[BlockBudget, float], ...] = (("params", 0.5), ("blocks", 2 / 3))
    deep: bool = True
    optimizer: str = "sgd"


BUDGETS: tuple[tuple[BlockBudget, float], ...] = (("params", 0.75), ("params", 0.5), ("blocks", 2 / 3), ("blocks", 0.4))
NETWORKS: Mapping[str, Network] = {
    "resnet20": Network(lambda: build("resnet20", in_channels=1, width=0.5), budgets=BUDGETS, deep=False),
    "vit": Network(
        lambda: build("vit_tiny", in_channels=1, image_size=SIDE, patch=2, dim=32, depth=6, heads=2, mlp_ratio=2.0),
        epochs=12,
        lr=3e-3,
        recovery_lr=5e-4,
        recovered_on=2000,
        deep=False,
        optimizer="adamw",
    ),
    "densenet": Network(lambda: DenseNet(22, 1, 10, 6, False), 4, 0.1, 0.03, 1000, 1000, 500),
    "resnet56": Network(lambda: build("resnet56", in_channels=1, width=0.5), 4, 0.1, 0.03, 1000, 1000, 500),
    "resnet110": Network(lambda: build("resnet110", in_channels=1, width=0.25), 4, 0.1, 0.03, 1000, 1000, 500),
}
TIMED = ("resnet20", "vit", "densenet")
"""Networks whose depth and width are compared at equal time."""
OURS = "energy, skipped"
MAIN: dict[str, Dropping] = {
    OURS: Energy(recalibrate=3),
    "energy, skipped, rank": Energy(recalibrate=3, policy="rank"),
    "energy R2, rank": Energy(score="r2", policy="rank"),
    "energy R2, knapsack": Energy(score="r2"),
    "max over classes (V), clusters": Energy(score="max_ref", unbiased=False, policy="ckmeans"),
    "block influence": Depth(),
    "block influence, knapsack": Depth(policy="knapsack"),
    "random": Depth(score="random"),
    "random, second lot": Depth(score="random", seed=1000),
    "random, knapsack": Depth(score="random", policy="knapsack"),
}
METHODS: dict[str, Dropping] = MAIN | {
    "energy R2, clusters": Energy(score="r2", policy="ckmeans"),
    "max over classes (V), rank": Energy(score="max_ref", unbiased=False, policy="rank"),
    "coefficient, rank": Energy(score="coefficient", policy="rank"),
    "dcor with probabilities, rank": Energy(score="dcor", target="probabilities", policy="rank"),
    "branch size": Depth(score="branch"),
    "CKA without the block": Depth(score="cka", recalibrate=8),
}
LOTS = ("random", "random, second lot")


@dataclass(frozen=True, slots=True)
class Given(Dropping):
    """Drop by scores that are known, so that budgets share them."""

    given: Mapping[str, BlockScore] = field(default_factory=dict)

    @property
    def wants(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def block_scores(self, view: View, blocks: Sequence[Block], gone: tuple[str, ...] = ()) -> dict[str, BlockScore]:
        """What is known."""
        return {b.name: self.given[b.name] for b in blocks}


@dataclass(frozen=True)
class Trial:
    """A dense network, its evidence, and the scores that were made from it so far."""

    name: str
    seed: int
    data: Dataset
    model: nn.Module
    view: View
    scores: dict[str, Mapping[str, BlockScore]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of the dense network."""
        return self.view.graph

    @property
    def network(self) -> Network:
        """Its settings."""
        return NETWORKS[self.name]

    def batches(self) -> Any:
        """The training data in the order of this seed."""
        return self.data.train.batches(BATCH, shuffle_seed=self.seed)

    def scored(self, name: str) -> Mapping[str, BlockScore]:
        """The scores that a method gives."""
        key = repr(replace(METHODS[name], policy="rank"))
        if key not in self.scores:
            self.scores[key] = METHODS[name].scores(self.view)
        return self.scores[key]

    def dropped(self, name: str, keep: float, budget: BlockBudget) -> list[str]:
        """What a method drops."""
        given = Given(keep=keep, budget=budget, policy=METHODS[name].policy, given=self.scored(name))
        return sorted(d.block for d in given.plan(self.view).drops)


def prepared(name: str, seed: int, log: Results) -> Trial:
    """Train the dense network (or read it), trace and measure it."""
    network, data = NETWORKS[name], load("fashion-mnist", seed=seed, size=SIDE)
    data = replace(data, train=data.train.sample(TRAINED_ON, seed), test=data.test.sample(network.tested_on, 0))
    torch.manual_seed(seed)
    batches = data.train.batches(BATCH, shuffle_seed=seed)
    how: dict[str, Any] = {"epochs": network.epochs, "lr": network.lr, "optimizer": network.optimizer, "seed": seed}
    model = train_once(WEIGHTS / f"{name}-{seed}.safetensors", network.make(), batches, **how)
    example = data.example(32)
    graph = trace(model, data.example(1))
    measured = data.train.batches(250, shuffle_seed=seed)
    want = {"blocks", "outputs"}
    stats = measure(model, graph, measured, want=want, samples=network.measured_on, seed=seed, progress=False)
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
    images, some = trial.data.train, trial.network.recovered_on
    images = images if some >= len(images) else images.sample(some, trial.seed)
    train(
        model,
        images.batches(BATCH, shuffle_seed=trial.seed),
        epochs=1,
        lr=trial.network.recovery_lr,
        optimizer=trial.network.optimizer,
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


def timed(trial: Trial, models: Mapping[str, nn.Module], rounds: int = 9) -> dict[str, float]:
    """Times of a batch of 32 relative to the dense network's, all in turn.

    Processor time of the one thread: on a machine with nothing else to do that is the latency, and on a shared one it
    does not count the others.
    """
    everyone: dict[str, nn.Module] = {"": trial.model, **models}
    times: dict[str, list[float]] = {name: [] for name in everyone}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, model in everyone.items():
                start = time.process_time()
                model(trial.view.example)
                if turn:
                    times[name].append(time.process_time() - start)
    return {name: median(t / d for t, d in zip(times[name], times[""], strict=True)) for name in models}


def one_set(trial: Trial, log: Results, blocks: Sequence[str]) -> None:
    """What is left without these blocks; worked out once, however many methods choose them."""
    key = {"network": trial.name, "seed": trial.seed, "kind": "set", "dropped": sorted(blocks)}
    if log.find(**key) is not None:
        return
    start, smaller = time.perf_counter(), without(trial, blocks)
    left = price(trial.graph, Plan(tuple(Drop(b) for b in blocks)))
    row = key | {"params": left.params, "macs": left.macs, "unrecovered": tested(trial, smaller)}
    row |= {"latency": timed(trial, {"smaller": smaller})["smaller"], "recovered": recovered(trial, smaller)}
    log.add(row | {"seconds": round(time.perf_counter() - start, 1)})


def compare_methods(trial: Trial, log: Results, budgets: Sequence[str]) -> None:
    """Every method at every budget (of these kinds)."""
    for budget, keep in (b for b in trial.network.budgets if b[0] in budgets):
        for name in methods_of(trial.network):
            key = {"network": trial.name, "seed": trial.seed, "kind": "method", "method": name}
            key |= {"budget": budget, "keep": keep}
            if log.find(**key) is None:
                dropped = trial.dropped(name, keep, budget)
                one_set(trial, log, dropped)
                log.add(key | {"dropped": dropped})


def methods_of(network: Network) -> Mapping[str, Dropping]:
    """The methods that a network is compared with."""
    return MAIN if network.deep else METHODS


def compare_width(trial: Trial, log: Results) -> None:
    """Depth, width, and some of each, brought to the same measured time; then timed in turn with each other."""
    if log.find(network=trial.name, seed=trial.seed, kind="time") is not None:
        return
    blocks, some = shortened(trial, SHORTER), shortened(trial, (1 + SHORTER) / 2)
    depth = without(trial, blocks)
    width, both = (narrowed(trial, base, depth) for base in (trial.model, without(trial, some)))
    models: dict[str, nn.Module] = {"depth": depth, "width": width, "both": both}
    times = timed(trial, models, rounds=41)
    found: dict[str, Any] = {}
    for kind, model in models.items():
        recalibrate(model, trial.batches(), 10)
        found[kind] = {"latency": times[kind], "params": count(model, trial.view.example).params}
        found[kind] |= {"unrecovered": tested(trial, model), "recovered": recovered(trial, model)}
    log.add({"network": trial.name, "seed": trial.seed, "kind": "time", "dropped": blocks} | found)


def shortened(trial: Trial, goal: float) -> list[str]:
    """The blocks that leave at the least loss, by our score and the time of each, until so much of the time is left."""
    blocks = droppable(trial.graph, "fine")
    known = trial.scored(OURS)
    seconds = BlockEvaluator(trial.view, 1).savings_of(blocks)
    sets = METHODS[OURS].removals([known[b.name].mean for b in blocks], blocks, seconds)
    low, high = 0, len(sets) - 1
    while low < high:
        middle = (low + high) // 2
        enough = timed(trial, {"it": without(trial, sets[middle])}, 21)["it"] <= goal
        low, high = (low, middle) if enough else (middle + 1, high)
    return sorted(sets[high])


def narrowed(trial: Trial, base: nn.Module, goal: nn.Module) -> nn.Module:
    """Channels are cut from ``base`` until it takes the time of ``goal``, timed in turn with it."""
    graph = trace(base, trial.data.example(1))
    weights = dict(base.state_dict())
    low, high, nearest = 0.02, 1.0, (float("inf"), base)
    for _ in range(8):
        keep = (low + high) / 2
        try:
            smaller = apply(
                base, graph, Magnitude(keep=keep, budget="macs", multiple=1).plan(View(graph, weights))
            ).eval()
        except BudgetError:  # every layer keeps a channel at least
            low = keep
            continue
        times = timed(trial, {"goal": goal, "it": smaller}, 21)
        off = times["it"] / times["goal"] - 1
        nearest = min(nearest, (abs(off), smaller), key=lambda pair: pair[0])
        if abs(off) < EQUAL:
            break
        low, high = (low, keep) if off > 0 else (keep, high)
    return nearest[1]


Found: TypeAlias = dict[int, dict[str, Any]]
"""By seed, what is left without the blocks that a method drops."""


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [HEAD, "", complete(rows), *summary(rows)]
    for network in NETWORKS:
        own = [r for r in rows if r["network"] == network]
        if own:
            lines += section(network, own)
    return "\n".join(lines) + "\n"


def complete(rows: Rows) -> str:
    """How much of the study is there."""
    done: dict[tuple[str, int], float] = {}
    for name, network in NETWORKS.items():
        wanted = len(methods_of(network)) * len(network.budgets)
        for seed in SEEDS:
            own = sum(r["kind"] == "method" and (r["network"], r["seed"]) == (name, seed) for r in rows)
            done[name, seed] = own / wanted
    whole = sum(share == 1 for share in done.values())
    if whole == len(done):
        return "The study is complete."
    begun = ", ".join(f"{network} seed {seed}: {share:.0%}" for (network, seed), share in done.items() if share)
    return (
        f"**The study is not complete: {whole} of {len(done)} pairs of network and seed are ({begun}).** "
        "What is below is what is there so far; the same command goes on."
    )


def summary(rows: Rows) -> list[str]:
    """Points above random, network by network, at the budgets that all share."""
    lines = []
    for budget, keep in Network(nn.Identity).budgets:
        lines += ["", f"## Above random: {keep:.0%} of {budget} kept", ""]
        lines += [f"| method | {' | '.join(NETWORKS)} |", "|---" * (len(NETWORKS) + 1) + "|"]
        for name in MAIN:
            gains = [_gains(_of(rows, network), name, budget, keep) for network in NETWORKS]
            lines.append(f"| {name} | " + " | ".join(spread(g) if g else "" for g in gains) + " |")
    return lines


def section(network: str, rows: Rows) -> list[str]:
    """The tables of one network."""
    dense, settings = [r for r in rows if r["kind"] == "dense"], NETWORKS[network]
    lines = [
        "",
        f"## {network}",
        "",
        f"{dense[0]['blocks']} blocks, {dense[0]['params']:,} parameters, {len(dense)} seeds. Trained for "
        f"{settings.epochs} epochs, recovered on {settings.recovered_on:,} images, scored on {settings.measured_on:,}, "
        f"tested on {settings.tested_on:,}. Dense: {spread(r['accuracy'] for r in dense)} %; after the same recovery "
        f"{spread(r['recovered'] for r in dense)} %.",
        "",
        "| method | kept | blocks dropped | unrecovered | recovered | above random | time / dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget, keep in settings.budgets:
        for name in methods_of(settings):
            found = _found(rows, name, budget, keep)
            if not found:
                continue
            gains = _gains(rows, name, budget, keep)
            lines.append(
                f"| {name} | {keep:.0%} of {budget} | {mean(len(r['dropped']) for r in found.values()):.1f} "
                f"| {spread(r['unrecovered'] for r in found.values())} "
                f"| {spread(r['recovered'] for r in found.values())} | {spread(gains) if gains else ''} "
                f"| {median(r['latency'] for r in found.values()):.2f} |"
            )
    return lines + _times([r for r in rows if r["kind"] == "time"])


def _of(rows: Rows, network: str) -> Rows:
    return [r for r in rows if r["network"] == network]


def _found(rows: Rows, name: str, budget: str, keep: float) -> Found:
    sets = {(r["seed"], tuple(r["dropped"])): r for r in rows if r["kind"] == "set"}
    own = [
        r for r in rows if r["kind"] == "method" and r["method"] == name and (r["budget"], r["keep"]) == (budget, keep)
    ]
    return {r["seed"]: sets[r["seed"], tuple(r["dropped"])] for r in own}


def _gains(rows: Rows, name: str, budget: str, keep: float) -> list[float]:
    """Recovered accuracy above the mean of the random lots, seed by seed."""
    lots = [_found(rows, lot, budget, keep) for lot in LOTS]
    return [
        r["recovered"] - mean(lot[s]["recovered"] for lot in lots)
        for s, r in _found(rows, name, budget, keep).items()
        if all(s in lot for lot in lots)
    ]


def _times(rows: Rows) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        f"Depth, width (magnitude), or some depth and then width, at the same measured time, {len(rows)} seeds:",
    ]
    lines += ["", "| what | time / dense | parameters | unrecovered | recovered |", "|---|---|---|---|---|"]
    for kind in ("depth", "width", "both"):
        own = [r[kind] for r in rows]
        times = " / ".join(f"{r['latency']:.2f}" for r in own)
        lines.append(
            f"| {kind} | {times} | {mean(r['params'] for r in own):,.0f} "
            f"| {spread(r['unrecovered'] for r in own)} | {spread(r['recovered'] for r in own)} |"
        )
    return lines


HEAD = f"""# Removing layers

`python benchmarks/depth.py`: Fashion-MNIST at {SIDE} x {SIDE} pixels, {TRAINED_ON:,} training images, the same recovery
for everyone (data, order and rate), one thread. Small networks and short trainings: the ranking of methods is what can
be read here, not the accuracy that networks reach. The three deep networks have still shorter trainings, fewer images
and the main methods only, so that the study ends within hours of one core; what each got stands above its table.
Accuracies are in percent, mean and standard deviation over seeds; "above random" is the difference of recovered
accuracies to the mean of two random lots, seed by seed. "Unrecovered" is after recalibration of batch norms. Time is
processor time for a batch of 32, in turn with the dense network (the machine was shared); the first half of the trials
have wall-clock time in turn instead, so read that column as rough. At equal time all is processor time.
Methods that choose the same blocks share one trial. Score and policy of the default were [chosen on validation
images](depth_choice.md); here are test images."""


def study(log: Results, options: Namespace) -> None:
    """Go through seeds, and networks from the smallest."""
    budgets = [b for b in ("params", "blocks") if b in options.names]
    for seed in [s for s in SEEDS if str(s) in options.names] or SEEDS:
        for name in [n for n in NETWORKS if n in options.names] or NETWORKS:
            trial = prepared(name, seed, log)
            compare_methods(trial, log, budgets or ["params", "blocks"])
            if name in TIMED and not budgets:
                compare_width(trial, log)


def key(row: Row) -> tuple[Any, ...]:
    """A set of blocks is a trial, and so is what a method chooses."""
    what = row["dropped"] if row["kind"] == "set" else (row.get("method"), row.get("budget"), row.get("keep"))
    return (row["network"], row["seed"], row["kind"], *what)


BENCHMARK = Benchmark("depth", page, key, study=study)

if __name__ == "__main__":
    main(BENCHMARK)
