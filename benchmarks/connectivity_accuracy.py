"""Do measures of connectivity rank sparse networks by the accuracy they reach when trained?

Run ``python benchmarks/connectivity_accuracy.py``; some minutes of one thread. Masked MLPs of one shape, made in many
ways and trained side by side; then Spearman's correlation of test accuracy with each measure, at the start and when
trained. Writes ``docs/results/connectivity_accuracy.*``; trained networks are kept in ``runs/``.
"""

import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy read it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RUNS, Benchmark, Case, Row, Rows, fields, main, spearman
from nervure import ERK, SNIP, Connectivity, GraSP, SynFlow, connectivity, prune, zoo
from nervure.evaluation import measures

KEPT = RUNS / "connectivity_accuracy.pt"
WIDTHS = (196, 96, 64, 48, 10)
LAYERS = tuple(str(2 * i) for i in range(len(WIDTHS) - 1))
DENSITIES, SEEDS = (0.2, 0.1, 0.05, 0.03), (0, 1, 2)
IMAGES, TESTED, BATCH, EPOCHS, RATE = 8000, 3000, 64, 5, 0.05
ARMS: dict[str, Callable[[float], Any]] = {
    "uniform": lambda d: ERK(density=d, distribution="uniform"),
    "uniform-free": lambda d: ERK(density=d, distribution="uniform", guard="none"),
    "erk": lambda d: ERK(density=d),
    "erk-free": lambda d: ERK(density=d, guard="none"),
    "snip": lambda d: SNIP(density=d),
    "snip-free": lambda d: SNIP(density=d, guard="none"),
    "synflow": lambda d: SynFlow(density=d, steps=30),
    "grasp": lambda d: GraSP(density=d, guard="none"),
    "snip-uniform": lambda d: SNIP(density=d, distribution="uniform"),
    "global-random": lambda d: None,
}
SHUFFLED = ("snip", "synflow")
MEASURES: Mapping[str, int] = {
    "directed_distance": -1,
    "output_width": 1,
    "effective_density": 1,
    "dead_units": -1,
    "spectral_gap": 1,
    "heat_distance_0.25": -1,
    "heat_distance_1": -1,
    "heat_distance_4": -1,
    "heat_distance_inf": -1,
    "path_mass": 1,
}
"""Measures, and whether more of them should be better."""


def images(split: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first images, averaged to 14 x 14, as vectors of mean 0 and variance 1."""
    pairs = list(split.batches(1000))
    x, y = (torch.cat([pair[i] for pair in pairs])[:count] for i in (0, 1))
    x = F.avg_pool2d(x, 2).flatten(1)
    return (x - x.mean()) / x.std(), y


def mlp(seed: int) -> nn.Sequential:
    """Four layers with He's initialisation, seeded."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in pairwise(WIDTHS):
        parts += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*parts[:-1])
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


def masks_of(arm: str, density: float, seed: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The masks that a way of pruning makes of the network of a seed."""
    net, method = mlp(seed), ARMS[arm](density)
    if method is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: torch.rand(p.shape, generator=generator) for n, p in net.named_parameters() if p.ndim > 1}
        return {name: values < density for name, values in drawn.items()}
    found = prune(net, x[:2], method, data=[(x[:512], y[:512])], seed=seed, verify=False, progress=False)
    whole = {f"{name}.weight": torch.ones_like(net[int(name)].weight, dtype=torch.bool) for name in LAYERS}
    return whole | dict(found.masks)


def started(seed: int, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights at the start: masked, and scaled to the inputs that stay on average."""
    net = mlp(seed)
    found = {}
    for name, keep in masks.items():
        inputs = keep.float().sum(1).mean().clamp(min=1)
        found[name] = (net.get_parameter(name) * keep * (keep.shape[1] / inputs) ** 0.5).detach()
    return found


def drawn(x: Tensor, y: Tensor) -> Iterator[Row]:
    """Every sparse network at its start."""
    for seed in SEEDS:
        for density in DENSITIES:
            for arm in ARMS:
                masks = masks_of(arm, density, seed, x, y)
                yield {"arm": arm, "density": density, "seed": seed, "masks": masks, "init": started(seed, masks)}
                if arm in SHUFFLED:
                    generator = torch.Generator().manual_seed(7 + seed)
                    mixed = {
                        n: k.flatten()[torch.randperm(k.numel(), generator=generator)].reshape(k.shape)
                        for n, k in masks.items()
                    }
                    yield {
                        "arm": f"{arm}-shuffled",
                        "density": density,
                        "seed": seed,
                        "masks": mixed,
                        "init": started(seed, mixed),
                    }


def trained(rows: list[Row], x: Tensor, y: Tensor, held: tuple[Tensor, Tensor]) -> list[Row]:
    """All networks trained at once on the same batches; adds what became of the weights and the accuracy."""
    names = [f"{layer}.weight" for layer in LAYERS]
    weights = [torch.stack([r["init"][n] for r in rows]).requires_grad_() for n in names]
    keeps = [torch.stack([r["masks"][n] for r in rows]).float() for n in names]
    biases = [torch.zeros(len(rows), 1, w.shape[1], requires_grad=True) for w in weights]

    def said(batch: Tensor) -> Tensor:
        hidden = batch[None].expand(len(rows), -1, -1)
        for number, (w, b, keep) in enumerate(zip(weights, biases, keeps, strict=True)):
            hidden = torch.baddbmm(b, hidden, (w * keep).transpose(1, 2))
            hidden = hidden.relu() if number + 1 < len(weights) else hidden
        return hidden

    optimizer = torch.optim.SGD([*weights, *biases], lr=RATE, momentum=0.9, weight_decay=5e-4)
    per_epoch = len(y) // BATCH
    torch.manual_seed(0)
    for step in range(EPOCHS * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(len(y))
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * per_epoch)))
        batch = order[step % per_epoch * BATCH :][:BATCH]
        loss = F.cross_entropy(said(x[batch]).flatten(0, 1), y[batch].repeat(len(rows)), reduction="sum") / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (said(held[0]).argmax(2) == held[1]).float().mean(1)
    for number, row in enumerate(rows):
        row["acc"] = float(right[number])
        row["final"] = {
            n: (w[number] * keep[number]).detach() for n, w, keep in zip(names, weights, keeps, strict=True)
        }
    return rows


def told(row: Row, when: str, dense: Connectivity) -> dict[str, float]:
    """The measures of one network."""
    net = mlp(row["seed"])
    with torch.no_grad():
        for name, weight in row[when].items():
            net.get_parameter(name).copy_(weight)
    return measures(net, torch.zeros(1, WIDTHS[0]), dense)


def correlation(rows: Rows, when: str, name: str, sign: int) -> float:
    """Spearman's, 0 where a measure is the same for all."""
    return spearman([sign * max(row[when][name], -1e9) for row in rows], [row["acc"] for row in rows])


def page(rows: Rows) -> str:
    """The page."""
    ways = len({row["arm"] for row in rows})
    lines = [
        "# Does connectivity rank sparse networks?",
        "",
        f"`python benchmarks/connectivity_accuracy.py`: {len(rows)} masked MLPs, {ways} ways to make the masks,",
        f"densities {', '.join(f'{d:.0%}' for d in DENSITIES)}, seeds {', '.join(map(str, SEEDS))};",
        f"weights scaled to the inputs that stay; {IMAGES:,} images of Fashion-MNIST at 14 x 14, {EPOCHS} epochs.",
        "Spearman's correlation of test accuracy with each measure, turned so that +1 is a measure that ranks as it",
        "is meant to: the mean of the correlations at each density, and over all networks. The reference of the",
        "distances is the dense network at its start. Path mass is meant to be more rather than less, as synaptic",
        "flow is.",
        "",
        "The directed distance and the width of outputs were chosen on these very networks and on N2NSkip's MLPs among",
        "some forty measures of their kind, so their numbers here are those of the better of many; the others are as",
        "they were defined before. Networks that were not looked at for that are in the study of N2NSkip.",
        "",
        "| measure | start: at one density | start: all | trained: at one density | trained: all |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, sign in MEASURES.items():
        cells = []
        for when in ("init", "final"):
            at_one = [[r for r in rows if r["density"] == d] for d in DENSITIES]
            cells += [
                fmean(correlation(part, when, name, sign) for part in at_one),
                correlation(rows, when, name, sign),
            ]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(f"{c:+.2f}" for c in cells) + " |")
    lines += [
        "",
        "Accuracy in percent, mean over seeds:",
        "",
        "| masks | " + " | ".join(f"{d:.0%}" for d in DENSITIES) + " |",
    ]
    lines.append("|---|" + "---:|" * len(DENSITIES))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        means = [fmean(r["acc"] for r in rows if (r["arm"], r["density"]) == (arm, d)) for d in DENSITIES]
        lines.append(f"| {arm} | " + " | ".join(f"{100 * m:.1f}" for m in means) + " |")
    return "\n".join(lines) + "\n"


@cache
def networks() -> dict[tuple[Any, ...], Row]:
    """The trained networks: those kept from before, or all made now."""
    if not KEPT.exists():
        data = zoo.load("fashion-mnist", seed=0)
        x, y = images(data.train, IMAGES)
        KEPT.parent.mkdir(exist_ok=True)
        torch.save(trained(list(drawn(x, y)), x, y, images(data.test, TESTED)), KEPT)
    return {BENCHMARK.key(row): row for row in torch.load(KEPT, weights_only=False)}


@cache
def dense(seed: int) -> Connectivity:
    """That of the network at its start."""
    return connectivity(mlp(seed), torch.zeros(1, WIDTHS[0]))


def measured(*key: Any) -> Row:
    """One network: its accuracy, and its measures at the start and when trained."""
    row = networks()[key]
    kept = {name: row[name] for name in ("arm", "density", "seed", "acc")}
    return plain(kept | {when: told(row, when, dense(row["seed"])) for when in ("init", "final")})


def plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity; six digits."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def cases(_: Namespace) -> Iterator[Case]:
    """Every network; those of a shuffled arm follow it."""
    for seed, density, arm in product(SEEDS, DENSITIES, ARMS):
        for name in (arm, f"{arm}-shuffled") if arm in SHUFFLED else (arm,):
            yield (name, density, seed), partial(measured, name, density, seed)


BENCHMARK = Benchmark("connectivity_accuracy", page, fields("arm", "density", "seed"), cases)

if __name__ == "__main__":
    main(BENCHMARK)
