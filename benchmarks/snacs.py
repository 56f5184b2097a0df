"""The choices in SNACS, one by one: what each does to a network after equal recovery, on validation data.

Run ``python benchmarks/snacs.py`` (one thread, about half an hour). The demo's network
is trained for four epochs, pruned in one shot and recovered for one epoch on 5,000 images, three seeds. These are the
measurements by which the defaults were chosen, so the numbers are of the validation split; the comparison with other
methods on test data is ``benchmarks/pruning.py``.
Writes ``docs/results/snacs.*``.
"""

import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import train_once, view_of
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import SNACS, Graph, Magnitude, Plan, Random, apply, evaluate, train, zoo
from nervure.budget import allocate
from nervure.budget.connection_masks import LayerBudget, allocate_connections
from nervure.methods import View
from nervure.plan import Keep, Mask
from nervure.scores.bundles import layers
from nervure.scores.parent_dependence import needs
from nervure.surgery import masks_after
from nervure.training import recalibrate
from nervure.zoo import Dataset

SEEDS, KEPT_FILTERS, KEPT_KERNELS, RECOVERY = (0, 1, 2), (0.2,), (0.1,), 5000
# What is trained is trained once.
CACHE = str(Path(tempfile.gettempdir()) / "nervure-benchmark-snacs")
Arm = Callable[[View, float], Plan]


def before(**options: Any) -> SNACS:
    """SNACS by the connectivity of means, as it was when these choices were compared, with these options."""
    usual = {"ranking": "connectivity", "of": "means", "sizes": "threshold", "granularity": "kernels"}
    return SNACS(**{**usual, **options})


def snacs(**options: Any) -> Arm:
    """SNACS with these options."""
    return lambda view, keep: before(keep=keep, **options).plan(view)


def filters_by(sides: str) -> Arm:
    """Filters by what their readers need of them, told by dependence alone, or by weights alone."""

    def plan(view: View, keep: float) -> Plan:
        rho = before(granularity="filters", limits=False).evidence(view).scores
        listed = layers(view.graph, view.weights, rho)
        weights = {layer.tensor: layer.strength() for layer in listed}
        alone = {name: rho[name] / weights[name].clamp(min=1e-12) for name in rho}
        found = needs(view.graph, listed, weights if sides == "weights" else alone)
        scores = {group.name: found[group.name] for group in view.graph.prunable}
        return allocate(view.graph, scores, keep=keep, budget="macs")

    return plan


def kernels_by(score: Callable[[Tensor], Tensor]) -> Arm:
    """Kernels of highest score over all layers."""

    def plan(view: View, keep: float) -> Plan:
        names = before(limits=False, estimator="gaussian").evidence(view).scores
        listed = [layer for layer in layers(view.graph, view.weights, names) if layer.is_prunable]
        stalls = {layer.tensor: _stall(score(layer.strength()), layer.entries()) for layer in listed}
        kept = allocate_connections(stalls, round(keep * sum(int(stall.price.sum()) for stall in stalls.values())))
        masks = (Mask(layer.tensor, Keep.of(layer.mask(kept[layer.tensor]).contiguous())) for layer in listed)
        return Plan(tuple(masks), view.graph.fingerprint)

    return plan


def _stall(scores: Tensor, entries: Tensor) -> LayerBudget:
    return LayerBudget(scores, entries.expand_as(scores), torch.zeros(scores.shape, dtype=torch.bool), scores.numel())


def masks_by_lot(view: View, keep: float) -> Plan:
    """As many kernels as magnitude keeps over all layers together, by lot."""
    keeps = {mask.tensor: mask.keep.tensor() for mask in kernels_by(lambda s: s)(view, keep).masks}
    generator, stalls = torch.Generator().manual_seed(view.seed), {}
    for name, kept in keeps.items():
        entries = torch.tensor(math.prod(kept.shape[2:]))
        stalls[name] = _stall(torch.rand(kept.shape[:2], generator=generator), entries)
    drawn = allocate_connections(stalls, sum(int(kept.sum()) for kept in keeps.values()), "entries")
    masks = (Mask(n, Keep.of(_spread(drawn[n], kept))) for n, kept in keeps.items())
    return Plan(tuple(masks), view.graph.fingerprint)


def _spread(drawn: Tensor, kept: Tensor) -> Tensor:
    return drawn.reshape(*drawn.shape, *[1] * (kept.ndim - drawn.ndim)).expand(kept.shape).contiguous()


FILTERS: Mapping[str, Arm] = {
    "SNACS": snacs(granularity="filters"),
    "without limits": snacs(granularity="filters", limits=False),
    "limits by a probe": snacs(granularity="filters", probe=True),
    "magnitude within the limits": snacs(granularity="filters", ranking="magnitude", protect=False),
    "both sides": snacs(granularity="filters", hears=True),
    "both sides, without limits": snacs(granularity="filters", limits=False, hears=True),
    "both sides, limits by a probe": snacs(granularity="filters", probe=True, hears=True),
    "without limits: no protection": snacs(granularity="filters", limits=False, protect=False),
    "without limits: partial correlation": snacs(granularity="filters", limits=False, estimator="gaussian"),
    "without limits: dependence without weights": filters_by("dependence"),
    "without limits: weights without dependence": filters_by("weights"),
    "magnitude": lambda view, keep: Magnitude(keep=keep, budget="macs", multiple=1).plan(view),
    "random, the same share of each layer": lambda view, keep: Random(keep=keep, budget="macs", multiple=1).plan(view),
}
KERNELS: Mapping[str, Arm] = {
    "SNACS": snacs(),
    "limits by the network": snacs(probe=False),
    "without limits": snacs(limits=False),
    "without protection": snacs(protect=False),
    "protection by propagation": snacs(propagated=True),
    "magnitude of the kernel": kernels_by(lambda strength: strength),
    "random": masks_by_lot,
}


def cases(_: Namespace) -> Iterator[Case]:
    """Every arm, filters first."""
    for keeps, arms, kind in ((KEPT_FILTERS, FILTERS, "filters"), (KEPT_KERNELS, KERNELS, "kernels")):
        for seed, keep, name in product(SEEDS, keeps, arms):
            yield (seed, kind, keep, name), partial(measured, arms[name], seed, kind, keep, name)


def measured(arm: Arm, seed: int, kind: str, keep: float, name: str) -> Row:
    """One arm: limits that cannot be kept are raised; that is part of what is measured."""
    data, view = dataset(), dense(seed)
    plan = arm(replace(view, data=data.train.batches(256, shuffle_seed=seed)), keep)
    assert view.model is not None
    return {"key": [seed, kind, keep, name], **_recovered(view.model, view.graph, plan, data, seed)}


@cache
def dataset() -> Dataset:
    """Few images."""
    return zoo.load("fashion-mnist-subset")


@cache
def dense(seed: int) -> View:
    """The trained network, traced."""
    data, model = dataset(), zoo.build("resnet8", seed=seed, in_channels=1, width=1.5)
    batches = data.train.batches(128, shuffle_seed=seed)
    train_once(Path(CACHE) / f"dense{seed}.safetensors", model, batches, epochs=4, lr=0.1, seed=seed)
    return view_of(model, data.example(1), seed=seed)


def _recovered(model: nn.Module, graph: Graph, plan: Plan, data: Dataset, seed: int) -> dict[str, float]:
    some = replace(data.train, images=data.train.images[:RECOVERY], labels=data.train.labels[:RECOVERY])
    batches = some.batches(128, shuffle_seed=seed + 1)
    smaller = apply(model, graph, plan)
    recalibrate(smaller, batches, 20)
    train(smaller, batches, epochs=1, lr=0.05, masks=masks_after(graph, plan), seed=seed + 1, progress=False)
    found = evaluate(smaller.eval(), data.validation.batches(500), progress=False)
    return {"loss": round(found.loss, 4), "accuracy": round(found.accuracy, 4)}


def table(records: Rows, kind: str, keep: float) -> list[str]:
    """Mean validation loss and accuracy, best first, with the difference to SNACS, seed by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        if record["key"][1:3] == [kind, keep]:
            by_arm.setdefault(record["key"][3], {})[record["key"][0]] = record
    first = by_arm.get("SNACS", {})
    lines = ["| | loss | accuracy | seeds | loss less that of SNACS |", "|---|---:|---:|---:|---:|"]
    for name, rows in sorted(by_arm.items(), key=lambda item: fmean(r["loss"] for r in item[1].values())):
        accuracy = 100 * fmean(r["accuracy"] for r in rows.values())
        gaps = [row["loss"] - first[seed]["loss"] for seed, row in rows.items() if seed in first]
        lines.append(
            f"| {name} | {fmean(r['loss'] for r in rows.values()):.3f} | {accuracy:.1f} % | {len(rows)} | "
            f"{_gap(gaps) if name != 'SNACS' else ''} |"
        )
    return lines


def _gap(gaps: list[float]) -> str:
    """Mean and standard error of paired differences."""
    if len(gaps) < 2:
        return "".join(f"{gap:+.3f}" for gap in gaps)
    return f"{fmean(gaps):+.3f} ± {stdev(gaps) / len(gaps) ** 0.5:.3f}"


def page(records: Rows) -> str:
    """The results as Markdown."""
    text = [
        "# SNACS, choice by choice",
        "",
        "`python benchmarks/snacs.py`; one thread. resnet8 (width",
        f"1.5) on fashion-mnist-subset, pruned in one shot, recovered for one epoch on {RECOVERY:,} images;",
        "three seeds but where said; differences are paired by seed, mean ± standard error. Validation split (1,000",
        "images: accuracies have a standard error of about 1.2 points, losses tell more).",
    ]
    for keep in KEPT_FILTERS:
        text += ["", f"## Filters, {keep:.0%} of the multiply-accumulates stay", "", *table(records, "filters", keep)]
    for keep in KEPT_KERNELS:
        text += ["", f"## Kernels, {keep:.0%} of the weights stay", "", *table(records, "kernels", keep)]
    return "\n".join(text) + "\n"


BENCHMARK = Benchmark("snacs", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
