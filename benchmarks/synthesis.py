"""Networks that grow: Synthesis in every reading beside random growth, SET, RigL, gradual magnitude and fixed masks.

Run ``python benchmarks/synthesis.py`` (or with names of tasks behind it); one thread. Writes
``docs/results/synthesis.*``; a line is one trial.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, combinations, islice, pairwise, product, repeat
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import ROOT, Benchmark, Case, Row, Rows, main, spread
from nervure import GMP, SET, RigL, Synthesis, similarity, trace, train
from nervure.evaluation import accuracy_and_auc, align, common, reorder_units
from nervure.training import History, mean_density
from nervure.training.dynamic.counts import Ramp
from nervure.training.dynamic.growth import GROWTH as NAMED
from nervure.training.dynamic.growth import Ask, Growth
from nervure.training.dynamic.sites import Site
from nervure.zoo import load
from nervure.zoo.dataset import Dataset

LR, EVENTS, BATCH = 0.1, 15, 64
CHOSEN_ON, RULED_ON = (100, 101, 102), range(100, 108)


@dataclass(frozen=True)
class Task:
    """A network, its data, and how it is trained."""

    network: Callable[[], nn.Module]
    data: Callable[[], Dataset]
    epochs: int
    seeds: int
    densities: tuple[float, ...]
    start: float
    has_all: bool = False


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    widths, layers = (1, 16, 32, 32), list[nn.Module]()
    for before, after in pairwise(widths):
        stride = 1 if before == 1 else 2
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@cache
def digits() -> Dataset:
    return load("digits", validation=0.2)


@cache
def clothes() -> Dataset:
    data = load("fashion-mnist", size=14)
    parts = {"train": data.train.sample(4000, 0), "validation": data.validation.sample(2000, 0)}
    return replace(data, test=data.test.sample(5000, 0), **parts)


TASKS: Mapping[str, Task] = {
    "digits": Task(lambda: mlp(64, 128, 64, 10), digits, 15, 5, (0.05,), 0.02, has_all=True),
    "clothes": Task(lambda: mlp(196, 256, 128, 10), clothes, 5, 5, (0.05,), 0.02),
    "convolutional": Task(convolutional, clothes, 5, 5, (0.15,), 0.06),
}

GROWTH: Mapping[str, Mapping[str, Any]] = {
    "random": {"growth": "random"},
    "link prediction": {"growth": "links"},
    "gradient": {"growth": "gradient"},
    "soft origins, density": {},
    "soft origins, rank": {"endpoints": "rank"},
    "soft origins, tail": {"endpoints": "tail"},
    "soft origins, uniform": {"endpoints": "uniform"},
    "hard origins, density": {"origins": "hard"},
    "hard origins, density, likeliest": {"origins": "hard", "sample": False},
    "ours: soft origins, strong": {"endpoints": "strong"},
    "ours: by activation, density": {"strength": "activation"},
    "ours: by activation, strong": {"strength": "activation", "endpoints": "strong"},
    "ours: density, gradient of 3": {"pool": 3.0},
    "ours: density, gradient of 10": {"pool": 10.0},
    "ours: strong by activation, gradient of 3": {"strength": "activation", "endpoints": "strong", "pool": 3.0},
    "ours: strong by activation, gradient of 10": {"strength": "activation", "endpoints": "strong", "pool": 10.0},
}
OURS = "ours: strong by activation, gradient of 3"
FEW = "random", "gradient", "soft origins, density", "hard origins, density", "ours: by activation, strong", OURS
ABLATED = "random", OURS
LONGER = "random", "soft origins, density", OURS
"""Growth that is also trained for as long as costs just as much as a network that is full from the start."""
SIMILAR = (
    "SET",
    "RigL",
    *(f"grow + prune, {name}" for name in ("random", "soft origins, density", OURS)),
    "grow, random",
    "grow, soft origins, density",
    "grow, hard origins, density",
    "grow, hard origins, density, likeliest",
    f"grow, {OURS}",
)
LIKENESS = {"digits": 3, "clothes": 1}
"""Tasks, and how many times three runs are compared there."""


def arms(task: Task, density: float) -> dict[str, Any]:
    """Every method at this density; None: dense; a string: something that is not a method."""
    shared = {"events": EVENTS, "density": density}
    grown = {**shared, "start": task.start, "end": 0.75}
    paper = {"strength": "weight", "endpoints": "density", "pool": 1.0}
    found: dict[str, Any] = {
        "dense": None,
        "static ERK": "static",
        "SET": SET(**shared, end=0.75),
        "SET, cosine": SET(**shared, end=0.75, schedule="cosine"),
        "RigL": RigL(**shared),
        "GMP": GMP(**shared),
    }
    for name, options in GROWTH.items():
        if task.has_all or name in FEW:
            found[f"grow, {name}"] = Synthesis(**{**grown, **paper, **options, "prune": 0.0})
            found[f"grow + prune, {name}"] = Synthesis(**{**grown, **paper, **options})
    for name in LONGER:
        found[f"grow + prune, {name}, longer"] = Synthesis(**{**grown, **paper, **GROWTH[name]})
    for name in ABLATED if task.has_all else ():
        options = {**grown, **paper, **GROWTH[name]}
        found[f"grow + prune, {name}, linear ramp"] = Synthesis(**{**options, "ramp": "linear"})
        found[f"grow + prune, {name}, 20 % pruned each time"] = Synthesis(
            **{**options, "prune": 0.2, "schedule": "constant", "grace": 1}
        )
        found[f"grow + prune, {name}, drop by saliency"] = Synthesis(**{**options, "drop": "saliency"})
    if task.has_all:
        options = {**grown, **paper}
        found["grow + prune, soft origins, density, gate"] = Synthesis(**options, gate=True, tolerance=0.005)
        found["grow + prune, soft origins, density, new at 0.1"] = Synthesis(**options, initial="gauss", scale=0.1)
        found["grow + prune, soft origins, density, new at 1"] = Synthesis(**options, initial="gauss", scale=1.0)
    if task.network is convolutional:
        for name in ("random", OURS):
            found[f"grow + prune, {name}, elements"] = Synthesis(
                **{**grown, **paper, **GROWTH[name], "granularity": "element"}
            )
    return found


def choices(task: Task, density: float) -> dict[str, Any]:
    """What the default was chosen from, on validation images and seeds of their own."""
    shared = {"events": EVENTS, "end": 0.75, "density": density}
    grown: dict[str, Any] = {**shared, "start": task.start, **GROWTH[OURS], "schedule": "cosine", "grace": 2}
    linear, cubic = {**grown, "ramp": "linear"}, {**grown, "ramp": "cubic"}
    return {
        "SET, cosine": SET(**shared, schedule="cosine"),
        "RigL": RigL(events=EVENTS, density=density),
        "linear, no pruning": Synthesis(**{**linear, "prune": 0.0}),
        "linear, 10 % pruned": Synthesis(**{**linear, "prune": 0.1}),
        "linear, 10 % pruned by activation": Synthesis(**{**linear, "prune": 0.1, "drop": "activation"}),
        "cubic, no pruning": Synthesis(**{**cubic, "prune": 0.0}),
        "cubic, 10 % pruned": Synthesis(**{**cubic, "prune": 0.1}),
        "cubic, 20 % pruned by activation": Synthesis(**{**cubic, "prune": 0.2, "drop": "activation"}),
        "cubic, 10 % pruned by activation, gradient of 10": Synthesis(
            **{**cubic, "prune": 0.1, "drop": "activation", "pool": 10.0}
        ),
        "cubic, 20 % pruned by saliency": Synthesis(**{**cubic, "prune": 0.2, "drop": "saliency"}),
    }


def fresh(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return task.network()


class Steps:
    """Batches of so many epochs as one, and of so many more as a training takes that costs less a step."""

    def __init__(self, batches: Any, epochs: int, cost: float) -> None:
        self.batches, self.length = batches, round(epochs * len(batches) / cost)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.batches.epoch = 0
        epochs = chain.from_iterable(iter(self.batches) for _ in repeat(None))
        return islice(epochs, self.length)


def cost_of(arm: Synthesis) -> float:
    """Its mean density over the final one: the mean of the ramp over the events, and the rest at the end."""
    ramp = Ramp(arm.ramp, arm.start / arm.density, 1.0)
    return arm.end * mean(ramp(event / arm.events) for event in range(arm.events)) + 1 - arm.end


def lay(model: nn.Module, method: Any, data: Dataset, seed: int) -> Mapping[str, Tensor]:
    """The weights and masks that a method begins with."""
    ground = method.ground(model, data.example(), {}, seed)
    with torch.no_grad():
        for name, weight in ground.weights.items():
            model.get_parameter(name).copy_(weight)
    return ground.start  # type: ignore[no-any-return]


def trained(
    task: Task, density: float, arm: Any, seed: int, *, longer: bool = False, begin: int | None = None
) -> tuple[Any, History]:
    """Train one arm; with ``begin``, the network and the masks that seed begins with, whatever the seed of the rest."""
    data = task.data()
    model = fresh(task, seed if begin is None else begin)
    masks, hooks = None, [] if arm is None or arm == "static" else [arm]
    if arm == "static" or begin is not None:
        masks = lay(model, RigL(density=density) if arm == "static" else arm, data, seed if begin is None else begin)
    batches = Steps(data.train.batches(BATCH, shuffle_seed=seed), task.epochs, cost_of(arm) if longer else 1.0)
    validation = data.validation.batches(1000) if hooks and arm.judge is not None else None
    history = train(
        model, batches, epochs=1, lr=LR, masks=masks, hooks=hooks, seed=seed, validation=validation, progress=False
    )
    return model, history


def effective(model: nn.Module) -> float | None:
    """The share of weights that lie on a path from an input to an output; None for networks with convolutions."""
    layers = [m.weight.detach() != 0 for m in model.modules() if isinstance(m, nn.Linear)]
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return None
    reached = [torch.ones(layers[0].shape[1], dtype=torch.bool)]
    for there in layers:
        reached.append((there & reached[-1]).any(1))
    wanted, count = torch.ones(10, dtype=torch.bool), 0
    for there, known in zip(reversed(layers), reversed(reached[:-1]), strict=True):
        count += int((there & known & wanted[:, None]).sum())
        wanted = (there & wanted[:, None]).any(0)
    return count / sum(there.numel() for there in layers)


def trial(name: str, density: float, arm: str, seed: int) -> Row:
    task, started = TASKS[name], time.perf_counter()
    method = arms(task, density)[arm]
    model, history = trained(task, density, method, seed, longer=arm.endswith("longer"))
    data = task.data()
    validation, test = (accuracy_and_auc(model, split.batches(1000)) for split in (data.validation, data.test))
    there = sum(int(mask.sum()) for mask in history.masks.values())
    whole = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    share = there / whole if history.masks else 1.0
    cost = mean_density(history.events, history.steps) if history.events else share
    return {
        "kind": "trial",
        "task": name,
        "of": density,
        "arm": arm,
        "seed": seed,
        "validation": validation.accuracy,
        "accuracy": test.accuracy,
        "auc": test.auc,
        "density": share,
        "effective": effective(model),
        "cost": cost * history.steps,
        "steps": history.steps,
        "undone": sum(event.kind == "undo" for event in history.events),
        "seconds": round(time.perf_counter() - started, 2),
    }


def choice(name: str, density: float, arm: str, seed: int) -> Row:
    """One candidate for the default, judged on validation images alone."""
    task, started = TASKS[name], time.perf_counter()
    model, history = trained(task, density, choices(task, density)[arm], seed)
    found = accuracy_and_auc(model, task.data().validation.batches(1000))
    cost = mean_density(history.events, history.steps) / density
    line = {"kind": "choice", "task": name, "of": density, "arm": arm, "seed": seed}
    return {**line, "validation": found.accuracy, "cost": cost, "seconds": round(time.perf_counter() - started, 2)}


def gradient_of_strong(origin: float, end: float) -> Growth:
    """Gradients, weighed by the strength of where a connection starts and by the z-score of where it ends."""

    def rule(site: Site, ask: Ask) -> Tensor:
        strength = site.strength(heard=True)
        starts, ends = strength.sum(0) + (0 if site.incoming is None else site.incoming), strength.sum(1)
        z = (ends - ends.mean()) / ends.std(correction=0).clamp_min(1e-12)
        assert site.gradient is not None
        weighed = starts.clamp_min(1e-12) ** origin * (end * z).exp()[:, None]
        return site.gradient.abs().double() * weighed[:, :, None]

    return rule


WEIGHED = [pair for pair in product((0.0, 0.5, 1.0), repeat=2) if any(pair)]
NAMED.update({str(pair): gradient_of_strong(*pair) for pair in WEIGHED})
RULES: Mapping[str, Mapping[str, Any]] = {
    "strategic: strong by activation": {**GROWTH["ours: by activation, strong"], "pool": 1.0},
    **{f"of {n} times as many, the steepest gradients": {**GROWTH[OURS], "pool": float(n)} for n in (3, 10, 30)},
    "gradient": {"growth": "gradient"},
    **{f"gradient x strength^{a:g} x exp({b:g} z)": {"growth": str((a, b))} for a, b in WEIGHED},
}
"""Is there anything that the strategy adds to the gradient?"""


def rule(name: str, density: float, arm: str, seed: int) -> Row:
    """One rule of growth, judged on validation images alone."""
    task, started = TASKS[name], time.perf_counter()
    method = Synthesis(density=density, start=task.start, events=EVENTS, end=0.75, **RULES[arm])
    model, _ = trained(task, density, method, seed)
    found = accuracy_and_auc(model, task.data().validation.batches(1000)).accuracy
    line = {"kind": "rule", "task": name, "of": density, "arm": arm, "seed": seed}
    return {**line, "validation": found, "seconds": round(time.perf_counter() - started, 2)}


def likeness(name: str, density: float, arm: str, group: int, shared: bool) -> Row:
    """Three runs that begin alike, or apart: how much of their masks they share."""
    task, started = TASKS[name], time.perf_counter()
    method = arms(task, density)[arm]
    seeds = [10 * group + i for i in range(3)]
    runs = [trained(task, density, method, seed, begin=10 * group if shared else None) for seed in seeds]
    masks = [run.masks for _, run in runs]
    graph = trace(task.network(), task.data().example())
    alike = [similarity(a, b) for a, b in combinations(masks, 2)]
    inputs = next(iter(masks[0]))
    first = [similarity({inputs: a[inputs]}, {inputs: b[inputs]}) for a, b in combinations(masks, 2)]
    weighed = [({n: p.detach() for n, p in model.state_dict().items()}, run.masks) for model, run in runs]
    aligned = [in_order(graph, weighed[0], one) for one in weighed[1:]]
    by_chance = [in_order(graph, weighed[0], shuffled(*one, group)) for one in weighed[1:]]
    shares = common(masks)
    return {
        "kind": "likeness",
        "task": name,
        "of": density,
        "arm": arm,
        "group": group,
        "shared": shared,
        "overlap": mean(s.overlap for s in alike),
        "jaccard": mean(s.jaccard for s in alike),
        "chance": mean(s.chance for s in alike),
        "inputs": mean(s.overlap for s in first),
        "inputs_chance": mean(s.chance for s in first),
        "aligned": mean(aligned),
        "aligned_chance": mean(by_chance),
        "common": shares.similarity,
        "common_chance": shares.chance,
        "seconds": round(time.perf_counter() - started, 2),
    }


Weighed = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def in_order(graph: Any, one: Weighed, other: Weighed) -> float:
    """The overlap once hidden units are in the same order; of weights and masks each."""
    orders = align(graph, one[0], other[0])
    return similarity(one[1], reorder_units(graph, other[1], orders)).overlap


def shuffled(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int) -> Weighed:
    """Each layer's weights in any order, with their masks: what alignment makes of runs that share nothing."""
    draw = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(mask.numel(), generator=draw) for name, mask in masks.items()}
    moved = {n: weights[n].reshape(-1)[order].reshape(weights[n].shape) for n, order in orders.items()}
    return {**weights, **moved}, {n: masks[n].reshape(-1)[order].reshape(masks[n].shape) for n, order in orders.items()}


def wanted() -> Iterator[tuple[Any, ...]]:
    """All trials, the first seeds of everything first."""
    for name in [name for name in TASKS if name != "convolutional"]:
        for arm in choices(TASKS[name], TASKS[name].densities[0]):
            yield from (("choice", name, TASKS[name].densities[0], arm, seed) for seed in CHOSEN_ON)
        yield from (("rule", name, TASKS[name].densities[0], arm, seed) for seed in RULED_ON for arm in RULES)
    for seed in range(max(task.seeds for task in TASKS.values())):
        for name, task in TASKS.items():
            for density in task.densities:
                if seed < task.seeds:
                    yield from (("trial", name, density, arm, seed) for arm in arms(task, density))
        for name, groups in LIKENESS.items():
            if seed < groups:
                there = [arm for arm in SIMILAR if arm in arms(TASKS[name], 0.05)]
                yield from (("likeness", name, 0.05, arm, seed, shared) for shared in (True, False) for arm in there)


def key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    last = (line["group"], line["shared"]) if line["kind"] == "likeness" else (line["seed"],)
    return (line["kind"], line["task"], line["of"], line["arm"], *last)


def cases(_: Namespace) -> Iterator[Case]:
    kinds: Mapping[str, Callable[..., Row]] = {"trial": trial, "likeness": likeness, "choice": choice, "rule": rule}
    yield from ((what, partial(kinds[what[0]], *what[1:])) for what in wanted())


# The page


def table(name: str, density: float, found: Rows) -> list[str]:
    mine = [line for line in found if line["kind"] == "trial" and (line["task"], line["of"]) == (name, density)]
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in mine:
        by_arm.setdefault(line["arm"], {})[line["seed"]] = line
    if not by_arm:
        return []
    rows = [
        f"### {name}, density {density:g}",
        "",
        "| method | accuracy | macro AUC | validation | above random growth | compression | on a path | cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in by_arm.items():
        control = f"grow{' + prune' if arm.startswith('grow + prune') else ''}, random"
        base = by_arm.get(f"{control}, longer" if arm.endswith("longer") else control, {})
        gaps = [run["accuracy"] - base[seed]["accuracy"] for seed, run in runs.items() if seed in base]
        paths = [run["effective"] for run in runs.values() if run["effective"] is not None]
        full = mean(run["steps"] * density for run in by_arm.get("SET", runs).values())
        cells = [
            arm,
            *(spread(r[what] for r in runs.values()) for what in ("accuracy", "auc", "validation")),
            spread(gaps) if gaps else "",
            f"{1 / mean(r['density'] for r in runs.values()):.1f}x",
            f"{100 * mean(paths):.1f} %" if paths else "",
            f"{mean(r['cost'] for r in runs.values()) / full:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [*rows, ""]


def chosen(found: Rows) -> list[str]:
    names = [name for name in TASKS if any(line["kind"] == "choice" and line["task"] == name for line in found)]
    rows = [f"| variant | {' | '.join(f'{name} | cost' for name in names)} |", "|---" * (1 + 2 * len(names)) + "|"]
    arms = dict.fromkeys(line["arm"] for line in found if line["kind"] == "choice")
    for arm in arms:
        cells = [arm]
        for name in names:
            mine = [line for line in found if (line["kind"], line["task"], line["arm"]) == ("choice", name, arm)]
            cells += (
                [spread(m["validation"] for m in mine), f"{mean(m['cost'] for m in mine):.2f}"] if mine else ["", ""]
            )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def ruled(found: Rows) -> list[str]:
    mine = [line for line in found if line["kind"] == "rule"]
    names = [name for name in TASKS if any(line["task"] == name for line in mine)]
    rows = [
        f"| rule | {' | '.join(f'{name} | to the gradient' for name in names)} |",
        "|---" * (1 + 2 * len(names)) + "|",
    ]
    for arm in RULES:
        cells = [arm]
        for name in names:
            of = {a: {m["seed"]: m["validation"] for m in mine if (m["task"], m["arm"]) == (name, a)} for a in RULES}
            gaps = [value - of["gradient"][seed] for seed, value in of[arm].items() if seed in of["gradient"]]
            cells += [spread(of[arm].values()), spread(gaps)] if gaps else ["", ""]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def likenesses(found: Rows) -> list[str]:
    rows = [
        "| task | method | start | overlap | chance | Jaccard | input layer (chance) | aligned (chance) "
        "| in all three (chance) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, bool, str], list[Mapping[str, Any]]] = {}
    for line in found:
        if line["kind"] == "likeness":
            groups.setdefault((line["task"], line["shared"], line["arm"]), []).append(line)
    for (name, shared, arm), runs in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1], item[0][2])):
        inputs, aligned, three = (
            f"{spread(r[k] for r in runs)} ({spread(r[f'{k}_chance'] for r in runs)})"
            for k in ("inputs", "aligned", "common")
        )
        rows.append(
            f"| {name} | {arm} | {'the same' if shared else 'different'} | {spread(r['overlap'] for r in runs)} "
            f"| {spread(r['chance'] for r in runs)} | {spread(r['jaccard'] for r in runs)} | {inputs} "
            f"| {aligned} | {three} |"
        )
    return rows


def page(found: Rows) -> str:
    expected = set(wanted())
    done = len(expected & {key(line) for line in found})
    parts = [
        "# Networks that grow",
        "",
        (ROOT / "benchmarks" / "synthesis.intro.md").read_text(encoding="utf-8").strip(),
        "",
        *([] if done == len(expected) else [f"**The study is not complete: {done} of {len(expected)} trials.**", ""]),
        "## Accuracy",
        "",
    ]
    for name, task in TASKS.items():
        for density in task.densities:
            parts += table(name, density, found)
    if any(line["kind"] == "likeness" for line in found):
        parts += ["## What runs share", "", *likenesses(found), ""]
    parts += ["## How the default was chosen", "", "Validation accuracy, seeds 100 to 102.", "", *chosen(found), ""]
    if any(line["kind"] == "rule" for line in found):
        text = "Validation accuracy, seeds 100 to 107; differences seed by seed; strength and z are by activation."
        parts += ["## What the strategy adds to the gradient", "", text, "", *ruled(found), ""]
    return "\n".join(parts)


BENCHMARK = Benchmark("synthesis", page, key, cases)

if __name__ == "__main__":
    main(BENCHMARK)
