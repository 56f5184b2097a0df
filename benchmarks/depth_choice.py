"""Which score and which policy should be the default of Energy? Candidates side by side, on validation images.

Run ``python benchmarks/depth_choice.py`` after ``benchmarks/depth.py`` (it uses the networks that it trained); scores
and trials are kept in ``runs/depth``, so a run that was stopped goes on where it was. Accuracy is that after
recalibration of batch norms, without recovery: hundreds of selections are compared, and no test image is touched.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.depth import NETWORKS, SIDE, TRAINED_ON, WEIGHTS
from benchmarks.runner import RESULTS, provenance, sources_of, spread
from nervure import Block, Drop, Graph, Plan, apply, trace
from nervure.budget.knapsack import frontier
from nervure.core.tensors import tensors_in
from nervure.dependence import cka as alignment
from nervure.dependence import (
    class_distances,
    distance_correlation,
    energy_distance,
    energy_r2,
    partial_distance_correlation,
)
from nervure.export import load_state
from nervure.methods.blocks.dropping import droppable
from nervure.stats.block_outputs import pool_maps
from nervure.surgery.price import price
from nervure.training import recalibrate
from nervure.zoo import load

STUDIED = ("resnet20", "vit")
SEEDS = (0, 1, 2)
SAMPLES, JUDGED_ON, CALIBRATED_ON, DRAWS = 1000, 1000, 6, 4
GOALS = (("params", 0.25), ("params", 0.5), ("params", 0.65), ("blocks", 1 / 3), ("blocks", 0.6))
"""Which budget, and the share of it that leaves."""

Scores = Mapping[str, float]
Costs = Mapping[str, float]


class Maps:
    """What enters each block and what it adds, whole and averaged over 4 x 4 parts."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block], images: Tensor) -> None:
        self.entered: dict[str, list[Tensor]] = {b.name: [] for b in blocks}
        self.added: dict[str, list[Tensor]] = {b.name: [] for b in blocks}
        with _listening(model, blocks, self):
            self.outputs = answers(model, images)

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Whole maps [samples, channels, ...positions] that enter and that are added."""
        return torch.cat(self.entered[name]), torch.cat(self.added[name])


@contextmanager
def _listening(model: nn.Module, blocks: Sequence[Block], maps: Maps) -> Iterator[None]:
    def hear(into: list[Tensor]) -> Any:
        def hook(module: nn.Module, *heard: Any) -> None:
            tensor = tensors_in(heard[-1] if len(heard) > 1 else heard)[0]
            into.append(tensor if tensor.ndim == 4 else tensor.movedim(-1, 1))

        return hook

    with ExitStack() as hooks:
        for block in blocks:
            first, last = model.get_submodule(block.modules[0]), model.get_submodule(block.modules[-1])
            hooks.callback(first.register_forward_pre_hook(hear(maps.entered[block.name])).remove)
            hooks.callback(last.register_forward_hook(hear(maps.added[block.name])).remove)
        yield


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """The outputs for all images."""
    return torch.cat([model(part) for part in images.split(250)])


def without(model: nn.Module, graph: Graph, names: Iterable[str], batches: Sequence[Any]) -> nn.Module:
    """The network without these blocks, batch norms recalibrated."""
    smaller = apply(model, graph, Plan(tuple(Drop(name) for name in names))).eval()
    recalibrate(smaller, batches, CALIBRATED_ON)
    return smaller


def of_maps(entered: Tensor, added: Tensor, outputs: Tensor) -> dict[str, float]:
    """Scores of one block from its feature maps."""
    u, t, classes = pool_maps(entered), pool_maps(added), outputs.argmax(1)
    found, probabilities = class_distances(t, classes), outputs.softmax(1)
    reference = int(found.counts.argmax())
    alike = u.shape == t.shape
    relative = _spread(t) / _spread(u)
    return {
        "R2 of the map": float(found.r2(True)),
        "max over classes (V)": float(found.energy(False)[reference].max()),
        "coefficient": float(found.coefficient(True)[reference].max()),
        "dcor with probabilities": float(distance_correlation(t, probabilities)),
        "R2, times its spread over the stream's": float(found.r2(True)) * relative,
        "max over classes, over the stream's spread": float(found.energy(False)[reference].max())
        / math.sqrt(t.shape[1])
        / _spread(u),
        "partial dcor with probabilities": float(partial_distance_correlation(t, probabilities, u)),
        "partial dcor with outputs": float(partial_distance_correlation(t, outputs, u)),
        "partial dcor with predictions": float(partial_distance_correlation(t, classes, u, classes=True)),
        "1 - dcor of what enters and leaves": 1 - float(distance_correlation(u, t + u if alike else t)),
        "change of R2 across the block": abs(float(energy_r2(t + u, classes)) - float(energy_r2(u, classes)))
        if alike
        else 1.0,
        "block influence": _influence(entered, added),
        "branch size": float((_size(added) / _size(entered)).mean()),
    }


def of_answers(whole: Tensor, part: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of one block from the outputs with it and without it."""
    p, q = whole.softmax(1), part.softmax(1)
    apart = [
        float((labels == k).double().mean() * energy_distance(p[labels == k], q[labels == k])) for k in labels.unique()
    ]
    return {
        "1 - dcor of outputs, skipped": 1 - float(distance_correlation(whole, part)),
        "1 - dcor of probabilities, skipped": 1 - float(distance_correlation(p, q)),
        "distance of outputs, skipped": float((whole - part).norm(dim=1).mean() / _spread(whole, scaled=False)),
        "distance of probabilities, skipped": float((p - q).norm(dim=1).mean() / _spread(p, scaled=False)),
        "loss of R2 of probabilities, skipped": max(float(energy_r2(p, labels)) - float(energy_r2(q, labels)), 0.0),
        "energy distance within classes, skipped": sum(apart),
        "CKA, skipped": 1 - float(alignment(whole.double(), part.double(), debiased=False)),
        "loss, skipped": float(F.cross_entropy(part, labels) - F.cross_entropy(whole, labels)),
    }


def _spread(values: Tensor, *, scaled: bool = True) -> float:
    half = len(values) // 2
    size = math.sqrt(values.shape[1]) if scaled else 1.0
    return float(torch.cdist(values[:half].double(), values[half:].double()).mean()) / size


def _size(maps: Tensor) -> Tensor:
    size: Tensor = maps.flatten(1).norm(dim=1) / math.sqrt(maps[0].numel())
    return size


def _influence(entered: Tensor, added: Tensor) -> float:
    if entered.shape != added.shape:
        return 2.0
    return 1 - float(F.cosine_similarity(entered, entered + added, dim=1).mean())


def by_rank(scores: Scores, costs: Costs, goal: float) -> list[str]:
    """The lowest scores leave."""
    left, gone = 0.0, list[str]()
    for name in sorted(scores, key=lambda n: scores[n]):
        if left >= goal - 1e-9:
            break
        left, gone = left + costs[name], [*gone, name]
    return gone


def by_cost(scores: Scores, costs: Costs, goal: float) -> list[str]:
    """The lowest scores per saved cost leave."""
    return by_rank({n: max(s, 1e-6) / costs[n] for n, s in scores.items()}, costs, goal)


def by_knapsack(scores: Scores, costs: Costs, goal: float) -> list[str]:
    """The lowest sum of scores leaves."""
    names = list(scores)
    sets = frontier([scores[n] for n in names], [costs[n] for n in names])
    return [names[i] for i in next(s for s in sets if sum(costs[names[i]] for i in s) >= goal - 1e-9)]


POLICIES: Mapping[str, Callable[[Scores, Costs, float], list[str]]] = {
    "rank": by_rank,
    "rank per parameter": by_cost,
    "knapsack": by_knapsack,
}


class Case:
    """One trained network; its scores and trials are kept in a file."""

    def __init__(self, name: str, seed: int) -> None:
        self.file = Path(WEIGHTS / f"choice-{name}-{seed}.json")
        self.kept: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.kept.setdefault("sets", {})
        data = load("fashion-mnist", seed=seed, size=SIDE)
        self.train = list(islice(data.train.sample(TRAINED_ON, seed).batches(250, shuffle_seed=seed), CALIBRATED_ON))
        self.images, self.labels = next(iter(data.validation.sample(JUDGED_ON, 0).batches(JUDGED_ON)))
        self.model = NETWORKS[name].make()
        load_state(WEIGHTS / f"{name}-{seed}.safetensors", self.model)
        self.graph = trace(self.model.eval(), data.example(1))
        self.blocks = droppable(self.graph, "fine")
        whole = price(self.graph, Plan()).params
        self.params = {b.name: 1 - price(self.graph, Plan((Drop(b.name),))).params / whole for b in self.blocks}

    def scores(self) -> dict[str, dict[str, float]]:
        """By score, then by block."""
        if "scores" not in self.kept:
            self.kept["scores"] = self._scores()
            self._save()
        found: dict[str, dict[str, float]] = self.kept["scores"]
        return found | {"all alike": dict.fromkeys(self.params, 1.0)}

    def _scores(self) -> dict[str, dict[str, float]]:
        images, labels = (torch.cat([b[i] for b in self.train])[:SAMPLES] for i in (0, 1))
        maps = Maps(self.model, self.blocks, images)
        whole = answers(without(self.model, self.graph, (), self.train), images)
        found: dict[str, dict[str, float]] = {}
        for block in self.blocks:
            part = answers(without(self.model, self.graph, [block.name], self.train), images)
            rows = of_maps(*maps.of(block.name), maps.outputs) | of_answers(whole, part, labels)
            for score, value in rows.items():
                found.setdefault(score, {})[block.name] = value
        return found

    def accuracy(self, gone: Iterable[str]) -> float:
        """On validation images, without these blocks."""
        key = ",".join(sorted(gone))
        if key not in self.kept["sets"]:
            smaller = without(self.model, self.graph, [n for n in key.split(",") if n], self.train)
            right = answers(smaller, self.images).argmax(1) == self.labels
            self.kept["sets"][key] = float(right.double().mean())
            self._save()
        return float(self.kept["sets"][key])

    def _save(self) -> None:
        self.file.write_text(json.dumps(self.kept))

    def row(self, score: str, policy: str) -> list[float]:
        """Accuracies at all goals."""
        found = []
        for budget, goal in GOALS:
            costs = self.params if budget == "params" else dict.fromkeys(self.params, 1 / len(self.params))
            lots = self._lots() if score == "random" else [self.scores()[score]]
            found.append(mean(self.accuracy(POLICIES[policy](lot, costs, goal)) for lot in lots))
        return found

    def _lots(self) -> list[Scores]:
        generator = torch.Generator().manual_seed(0)
        return [
            dict(zip(self.params, torch.rand(len(self.params), generator=generator).tolist(), strict=True))
            for _ in range(DRAWS)
        ]


def section(name: str) -> list[str]:
    """The table of one network, best at equal parameters first."""
    cases = [Case(name, seed) for seed in SEEDS if (WEIGHTS / f"{name}-{seed}.safetensors").exists()]
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for score in (*cases[0].scores(), "random"):
        for policy in POLICIES:
            if score == "random" and policy == "rank per parameter":
                continue
            rows[score, policy] = [case.row(score, policy) for case in cases]
    best = sorted(rows, key=lambda key: -mean(mean(row) for row in rows[key]))
    heads = [f"-{goal:.0%} {budget}" for budget, goal in GOALS]
    lines = ["", f"## {name}, {len(cases)} seeds", "", f"| score | policy | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 2) + "|")
    for key in best:
        cells = [spread(row[i] for row in rows[key]) for i in range(len(GOALS))]
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")
    return lines


HEAD = f"""# Which score, which policy

`python benchmarks/depth_choice.py`: candidates for the default of `Energy` on the networks of [the study](depth.md).
Accuracy in percent on {JUDGED_ON:,} validation images (mean and standard deviation over seeds) when so much of the
parameters or blocks leaves; batch norms recalibrated, no recovery. Scores are made from {SAMPLES:,} training images.
"Skipped" compares the answers with a block and without it; the others look at feature maps. "All alike" gives every
block the same score: with a knapsack that is the fewest blocks. Random is the mean of {DRAWS} lots. Rows are sorted by
the mean of their columns; where blocks are counted all policies are ranks."""


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    lines = [HEAD] + [line for name in STUDIED for line in section(name)]
    (RESULTS / "depth_choice.md").write_text("\n".join([*lines, "", sources_of([provenance()])]) + "\n")


if __name__ == "__main__":
    main()
