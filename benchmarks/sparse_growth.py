"""Growth where very few weights are left: what recycling dead ends is worth, and what strategy adds to gradients.

Run ``python benchmarks/sparse_growth.py``; one thread, a few minutes. Writes ``docs/results/sparse_growth.*``; a line
is one training. Every arm has the same network, the same first weights and the same mean density times steps.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import ROOT, Benchmark, Case, Row, Rows, main
from benchmarks.synthesis import BATCH, EVENTS, LR, Steps, Task, cost_of, digits, fresh, lay
from benchmarks.synthesis import TASKS as IMAGES
from nervure import SET, RigL, Synthesis, connectivity, train
from nervure.evaluation import accuracy_and_auc
from nervure.training import mean_density

DENSITIES, SEEDS, CHOSEN_ON = (0.01, 0.02, 0.03, 0.05), range(6), range(100, 103)
OURS = "Synthesis, thirty times as many candidates, recycling"
FIXED = "fixed masks (ERK)"
ELSEWHERE = (FIXED, "SET", "RigL", "RigL, recycling", OURS, "gradient growth, recycling")
"""The arms on other networks than that on digits."""
START, MORE = 0.4, {"rows": 0.9}
"""Growth begins with so much of the weights it ends with; on some networks 1 % is too little to begin with less."""
Arms = Mapping[str, Any]


class RowByRow(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.GRU(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, from the state after the last row."""
        return self.head(self.read(x.squeeze(1))[0][:, -1])


TASKS: Mapping[str, Task] = IMAGES | {"rows": Task(RowByRow, digits, 15, 6, DENSITIES, START)}
TOLD = {
    "digits": "Digits",
    "clothes": "Clothes, a multilayer perceptron",
    "convolutional": "Clothes, convolutions",
    "rows": "Digits row by row, a GRU",
}
"""The networks of the test."""


def grown(density: float, start: float = START, **options: Any) -> Synthesis:
    """Growth to a density, with as many events as everything else."""
    given = {
        "events": EVENTS,
        "end": 0.75,
        "start": start * density,
        "guard": "paths",
        "granularity": "element",
        "pool": 3.0,
    }
    return Synthesis(density=density, **{**given, **options})


def exchanged(density: float, kind: Callable[..., Any], guard: str) -> Any:
    """SET or RigL, along the same cosine."""
    return kind(density=density, events=EVENTS, end=0.75, schedule="cosine", guard=guard)


EDGES: Mapping[str, Any] = {"origins": "edges", "share": 0.5}


def arms(density: float, name: str = "digits") -> Arms:
    """Every method at this density, on one of the networks."""
    grow = partial(grown, density, MORE.get(name, START))
    return {
        FIXED: None,
        "SET": exchanged(density, SET, "none"),
        "SET, recycling": exchanged(density, SET, "paths"),
        "RigL": exchanged(density, RigL, "none"),
        "RigL, recycling": exchanged(density, RigL, "paths"),
        "Synthesis, three times as many candidates": grow(pool=3.0, guard="none"),
        "Synthesis, thirty times as many candidates, recycling": grow(pool=30.0),
        "Synthesis, edges name both ends, recycling": grow(pool=1.0, **EDGES),
        "gradient growth": grow(growth="gradient", guard="none"),
        "gradient growth, recycling": grow(growth="gradient"),
        "random growth, recycling": grow(growth="random"),
    }


def choices(density: float) -> Arms:
    """What the default was chosen from."""
    return {
        **{f"{n:g} times as many candidates": grown(density, pool=float(n)) for n in (3, 30)},
        **{f"{100 * share:g} % of the places": grown(density, candidates=share) for share in (0.25, 0.5)},
        "edges, 50 % of the places": grown(density, candidates=0.5, **EDGES),
        "gradient alone": grown(density, growth="gradient"),
    }


def fit(name: str, arm: Any, density: float, seed: int) -> tuple[nn.Module, Row]:
    """Train one arm; what it cost is in trainings of a network that has its final density from the start.

    None is an arm of fixed masks: those that RigL begins with.
    """
    task, started = TASKS[name], time.process_time()
    data, model = task.data(), fresh(task, seed)
    cost = cost_of(arm) if isinstance(arm, Synthesis) else 1.0
    batches = Steps(data.train.batches(BATCH, shuffle_seed=seed), task.epochs, cost)
    masks = lay(model, exchanged(density, RigL, "none"), data, seed) if arm is None else None
    hooks = [] if arm is None else [arm]
    history = train(model, batches, epochs=1, lr=LR, hooks=hooks, masks=masks, seed=seed, progress=False)
    whole = sum(mask.numel() for mask in history.masks.values())
    there = sum(int(mask.sum()) for mask in history.masks.values())
    spent = mean_density(history.events, history.steps) if history.events else there / whole
    found = connectivity(model, data.example(2))
    return model, {
        "density": there / whole,
        "live": sum(layer.live for layer in found.layers) / there,
        "cost": spent * history.steps * whole / there / (task.epochs * len(batches.batches)),
        "seconds": round(time.process_time() - started, 2),
    }


def trial(name: str, density: float, arm: str, seed: int) -> Row:
    """One training, told on test images."""
    model, told = fit(name, arms(density, name)[arm], density, seed)
    found = accuracy_and_auc(model, TASKS[name].data().test.batches(1000))
    return {"key": ["test", name, density, arm, seed], "accuracy": found.accuracy, "auc": found.auc, **told}


def choice(name: str, density: float, arm: str, seed: int) -> Row:
    """One candidate for the default, told on validation images and seeds of its own."""
    model, told = fit(name, choices(density)[arm], density, seed)
    found = accuracy_and_auc(model, TASKS[name].data().validation.batches(1000))
    return {"key": ["choice", name, density, arm, seed], "accuracy": found.accuracy, **told}


def cases(_: Namespace) -> Iterator[Case]:
    """The choice, then the test, the first seeds of everything first."""
    for seed, (name, density) in product(CHOSEN_ON, (("digits", 0.01), ("digits", 0.03), ("clothes", 0.03))):
        for arm in choices(density):
            yield ("choice", name, density, arm, seed), partial(choice, name, density, arm, seed)
    for seed, name, density in product(SEEDS, TOLD, DENSITIES):
        for arm in arms(density) if name == "digits" else ELSEWHERE:
            yield ("test", name, density, arm, seed), partial(trial, name, density, arm, seed)


# -- the page ---------------------------------------------------------------------------------------------------------

Found = Mapping[str, Mapping[tuple[float, int], Row]]


def by_arm(rows: Rows, phase: str, name: str) -> Found:
    """Rows by arm, then by density and seed."""
    listed = arms(DENSITIES[0]) if phase == "test" else choices(DENSITIES[0])
    found: dict[str, dict[tuple[float, int], Row]] = {arm: {} for arm in listed}
    for row in rows:
        if row["key"][:2] == [phase, name]:
            _, _, density, arm, seed = row["key"]
            found[arm][density, seed] = row
    return {arm: runs for arm, runs in found.items() if runs}


def gap(values: list[float]) -> str:
    """Points, with the standard error of their mean."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{100 * fmean(values):+.1f} ± {100 * error:.1f}"


def table(found: Found, control: str) -> list[str]:
    """Accuracy at each density, and the difference to a control, seed by seed."""
    densities = sorted({density for runs in found.values() for density, _ in runs})
    heads = [f"{100 * d:g} % | to {control}" for d in densities]
    lines = [f"| method | {' | '.join(heads)} | on a path | cost |", "|---" * (2 * len(densities) + 3) + "|"]
    for arm, runs in found.items():
        cells = [arm]
        for density in densities:
            mine = {seed: row["accuracy"] for (d, seed), row in runs.items() if d == density}
            base = {seed: row["accuracy"] for (d, seed), row in found.get(control, {}).items() if d == density}
            gaps = [value - base[seed] for seed, value in mine.items() if seed in base]
            cells += [f"{100 * fmean(mine.values()):.1f}" if mine else "", gap(gaps) if gaps and arm != control else ""]
        live = " ".join(
            f"{100 * fmean(row['live'] for (d, _), row in runs.items() if d == density):.0f}"
            for density in densities
            if any(d == density for d, _ in runs)
        )
        lines.append(f"| {' | '.join(cells)} | {live} | {fmean(row['cost'] for row in runs.values()):.2f} |")
    return [*lines, ""]


def page(rows: Rows) -> str:
    """The tables, with how to read them."""
    due = {key for key, _ in cases(Namespace())}
    rows = [row for row in rows if tuple(row["key"]) in due]
    done = len(rows)
    parts = [
        "# Growth where very few weights are left",
        "",
        (ROOT / "benchmarks" / "sparse_growth.intro.md").read_text(encoding="utf-8").strip(),
        "",
        *([] if done == len(due) else [f"**The study is not complete: {done} of {len(due)} trainings.**", ""]),
    ]
    for name, title in TOLD.items():
        found = by_arm(rows, "test", name)
        if found:
            parts += [f"## {title}", "", *table(found, "RigL")]
    parts += ["## How the default was chosen", ""]
    for name in ("digits", "clothes"):
        found = by_arm(rows, "choice", name)
        if found:
            parts += [f"Validation images of {name}, seeds 100 to 102:", "", *table(found, "gradient alone")]
    return "\n".join(parts)


BENCHMARK = Benchmark("sparse_growth", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
