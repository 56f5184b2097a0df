"""N2NSkip against its twin without skips: same weights in all, same training, guarded and started as suits each.

Run ``python benchmarks/n2nskip.py explore`` for the choices (on validation images), without ``explore`` for the
comparison (on test images), and with ``connect`` instead for the connectivity of the trained networks; one thread, some
hours in all. Images of Fashion-MNIST averaged to 16 x 16, few of them, small
networks, short trainings.
Writes ``docs/results/n2nskip.*``; trained networks go to ``runs/n2nskip``.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, final

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RUNS, Benchmark, Case, Results, Row, Rows, main, spearman
from nervure import SNIP, N2NSkip, Pruned, SynFlow, connectivity, evaluate, prune, train, zoo
from nervure.analysis.connectivity import Connectivity
from nervure.export import load_state, save_state
from nervure.methods import Method, View
from nervure.methods.base import Inquiry
from nervure.methods.masks.base_masks import PrunableWeights, Sparse
from nervure.zoo import Dataset

STATES = RUNS / "n2nskip"
SEEDS, CHOOSING, DENSITIES = (0, 1, 2), (10, 11), (0.1, 0.05, 0.02, 0.01)
SIDE, IMAGES, TESTED, EPOCHS, SCORED = 16, 4000, 4000, 4, 256
Arm = Callable[[float], Method]


# -- networks ------------------------------------------------------------------------------------------------------


def mlp(seed: int, normed: bool = False) -> nn.Module:
    """Five linear layers, at the scale of He et al."""
    torch.manual_seed(seed)
    widths = (256, 512, 256, 128, 64, 10)
    norm = [nn.BatchNorm1d] if normed else []
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), *(make(b) for make in norm), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers[: -1 - len(norm)])
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


NETWORKS: Mapping[str, tuple[Callable[[int], nn.Module], float]] = {
    "MLP": (mlp, 0.05),
    "MLP, batch norm": (lambda seed: mlp(seed, normed=True), 0.1),
    "VGG-11": (lambda seed: zoo.build("vgg11", seed=seed, in_channels=1, width=0.125), 0.1),
    "ResNet-8": (lambda seed: zoo.build("resnet8", seed=seed, in_channels=1, width=1.0, stem_stride=2), 0.1),
}
"""Each with its rate of learning, the same for all arms."""


# -- arms ----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Shuffled(Sparse):
    """As many weights in each layer as SNIP keeps, by lot; every output hears where there are enough."""

    @property
    def asks_of_scores(self) -> tuple[Inquiry[Any], ...]:
        """What SNIP asks."""
        return SNIP(density=self.density).asks_of_scores

    def scores(self, view: View, field: PrunableWeights) -> dict[str, Tensor]:
        """SNIP's, for its densities."""
        return SNIP(density=self.density).scores(view, field)

    def kept(self, view: View, field: PrunableWeights) -> dict[str, Tensor]:
        """SNIP's densities, and weights by lot."""
        found = self.best(field, self.scores(view, field))
        generator = torch.Generator().manual_seed(view.seed)
        lots = {name: torch.rand(mask.shape, generator=generator) for name, mask in found.items()}
        lines = field.lifelines(lots, "outputs") or {}
        return {name: _top(lots[name] + lines[name], int(mask.sum())) for name, mask in found.items()}


def _top(scores: Tensor, count: int) -> Tensor:
    flat = torch.zeros(scores.numel(), dtype=torch.bool)
    flat[scores.flatten().argsort(descending=True)[:count]] = True
    return flat.reshape(scores.shape)


FIRST: Mapping[str, Any] = {"random": "random", "ERK": "erk", "SNIP": "snip", "SynFlow": SynFlow(steps=20)}


def _arm(**options: Any) -> Arm:
    return lambda density: N2NSkip(density=density, **options)


ARMS: Mapping[str, Arm] = {
    **{f"{name}, twin": _arm(share=0.0, first=first) for name, first in FIRST.items()},
    **{f"{name}, N2NSkip": _arm(first=first) for name, first in FIRST.items()},
    "SNIP, as published": _arm(first="snip", paper=True),
    "SNIP shuffled, twin": _arm(share=0.0, first=Shuffled(), rescale=True),
    "SNIP shuffled, N2NSkip": _arm(first=Shuffled(), rescale=True),
    "SNIP, identity": _arm(first="snip", skips="identity"),
}

VARIANTS: Mapping[str, dict[str, Any]] = {
    "twin": {"share": 0.0},
    "twin, rescaled": {"share": 0.0, "rescale": True},
    "share 0.5": {"share": 0.5, "norm": False},
    "share 0.25": {"share": 0.25, "norm": False},
    "share 0.1": {"share": 0.1, "norm": False},
    "share 0.5, branch norm": {"share": 0.5, "norm": True},
    "share 0.25, branch norm": {"share": 0.25, "norm": True},
    "share 0.25, rescaled": {"share": 0.25, "norm": False, "rescale": True},
    "share 0.25, half the scale": {"share": 0.25, "norm": False, "scale": 0.5},
    "share 0.25, dense fan": {"share": 0.25, "norm": False, "start": "dense_fan"},
    "share 0.25, zero start": {"share": 0.25, "norm": False, "start": "zero"},
}
CHOICES: Mapping[str, Arm] = {
    f"{name}, {variant}": _arm(first=FIRST[name], **options)
    for name in ("SNIP", "ERK")
    for variant, options in VARIANTS.items()
    if name == "SNIP" or "rescaled" not in variant
}
DETAILS = ("half the scale", "dense fan", "zero start")
"""Choices that are tried on MLPs only, which are quick."""


# -- runs ----------------------------------------------------------------------------------------------------------


@cache
def dataset() -> Dataset:
    """Small images, and some of them to choose by."""
    return zoo.load("fashion-mnist", size=SIDE, validation=0.1)


def pruned(network: str, arm: Arm, density: float, seed: int, data: Dataset) -> Pruned:
    """The sparse network before training."""
    model = NETWORKS[network][0](seed)
    batches = data.train.batches(SCORED, shuffle_seed=seed)
    return prune(model, data.example(2), arm(density), data=batches, seed=seed, progress=False)


def trial(*key: Any) -> Row:
    """Prune, train, measure."""
    start = time.perf_counter()
    phase, network, density, arm, seed = key
    data = dataset()
    data = replace(data, train=data.train.sample(IMAGES, seed))
    if arm == "dense":
        model, masks = NETWORKS[network][0](seed), {}
    else:
        found = pruned(network, (ARMS if phase == "test" else CHOICES)[arm], density, seed, data)
        model, masks = found.model, found.masks
    skips = sum(int(mask.sum()) for name, mask in masks.items() if ".link_" in name)
    batches = data.train.batches(128, shuffle_seed=seed)
    train(model, batches, epochs=EPOCHS, lr=NETWORKS[network][1], masks=masks, seed=seed, progress=False)
    split = data.test.sample(TESTED, 0) if phase == "test" else data.validation
    result = evaluate(model, split.batches(1000), progress=False)
    if phase == "test":
        STATES.mkdir(parents=True, exist_ok=True)
        save_state(state_file(key), model, masks=masks)
    return {
        "key": list(key),
        "accuracy": round(result.accuracy, 4),
        "loss": round(result.loss, 4),
        "skips": skips,
        "seconds": round(time.perf_counter() - start, 1),
    }


def state_file(key: Sequence[Any]) -> Path:
    """Where the trained network is."""
    return STATES / f"{'-'.join(map(str, key[1:])).replace(' ', '_')}.safetensors"


@cache
def dense_connectivity(network: str, seed: int) -> Connectivity:
    """That of the dense network trained with the same seed."""
    model = load_state(state_file(["test", network, 1.0, "dense", seed]), NETWORKS[network][0](seed))
    return connectivity(model, torch.zeros(1, 1, SIDE, SIDE))


def connected(*key: Any) -> Row:
    """How the units of a trained network are joined."""
    _, network, density, arm, seed = key
    data = dataset()
    data = replace(data, train=data.train.sample(IMAGES, seed))
    model = load_state(state_file(key), pruned(network, ARMS[arm], density, seed, data).model)
    found = connectivity(model, torch.zeros(1, 1, SIDE, SIDE), reference=dense_connectivity(network, seed))
    _, mixed, _, _, late = found.distances(found.times)
    return {
        "key": list(key),
        "effective density": found.effective_density / density,
        "path mass": found.path_mass if math.isfinite(found.path_mass) else -99.0,
        "directed heat distance": found.directed_distance,
        "output width": found.output_width,
        "heat distance at t*": mixed,
        "heat distance at the end": late,
        "spectral gap": found.spectral_gap,
        "components": found.components,
        "classes without a path": len(found.dead_classes),
    }


PAIRS = tuple(f"{name}, {part}" for name in ("SNIP", "ERK", "random", "SynFlow") for part in ("twin", "N2NSkip"))
MAPS = ("VGG-11", "ResNet-8")
ROUNDS: tuple[tuple[tuple[str, tuple[float, ...], Any], ...], ...] = (
    (("MLP", DENSITIES, ARMS), ("MLP, batch norm", (0.05, 0.02, 0.01), PAIRS)),
    tuple((network, (0.02, 0.01), (*PAIRS[:4], *PAIRS[6:])) for network in MAPS),
    tuple((network, DENSITIES, ARMS) for network in NETWORKS),
)
"""What is measured first, where time is short."""


def keys(phase: str) -> Iterator[list[Any]]:
    """What there is to measure, most telling first."""
    if phase == "choose":
        for seed, network, density, arm in product(CHOOSING, NETWORKS, (0.02,), CHOICES):
            quick = network.startswith("MLP")
            if quick or (seed == CHOOSING[0] and not arm.endswith(DETAILS)):
                yield [phase, network, density, arm, seed]
        return
    for round_, seed in product(ROUNDS, SEEDS):
        for network, densities, arms in round_:
            yield [phase, network, 1.0, "dense", seed]
            yield from ([phase, network, density, arm, seed] for density, arm in product(densities, arms))


def cases(options: Namespace) -> Iterator[Case]:
    """The choices or the connectivity where they are asked for, otherwise the comparison."""
    options.names = ["choose" if name == "explore" else name for name in options.names]
    if "connect" not in options.names:
        work, found = trial, [tuple(key) for key in keys("choose" if "choose" in options.names else "test")]
    else:
        work, trials = connected, Results(options.results, BENCHMARK.key).by_key
        found = [("connect", *key[1:]) for key in trials if key[0] == "test" and key[3] != "dense"]
        found.sort(key=lambda key: (key[2] not in (0.02, 0.01), key[4]))
    yield from ((key, partial(work, *key)) for key in found)


# -- the page ------------------------------------------------------------------------------------------------------

Found = Mapping[tuple[str, float, str], Mapping[int, dict[str, Any]]]


def by_arm(records: Rows, phase: str) -> Found:
    """Records by network, density and arm, then by seed."""
    found: dict[tuple[str, float, str], dict[int, dict[str, Any]]] = {}
    for record in records:
        kind, network, density, arm, seed = record["key"]
        if kind == phase:
            found.setdefault((network, density, arm), {})[seed] = record
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation in points, or a dash."""
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{around}" if values else "-"


def accuracies(found: Found, network: str) -> list[str]:
    """Arms by densities."""
    lines = ["| | " + " | ".join(f"{d:.0%}" for d in DENSITIES) + " |", "|---|" + "---:|" * len(DENSITIES)]
    for arm in ARMS:
        cells = [spread([r["accuracy"] for r in found.get((network, d, arm), {}).values()]) for d in DENSITIES]
        lines += _row(arm, cells)
    return lines


def _row(name: str, cells: list[str]) -> list[str]:
    """A row of a table, where anything was measured."""
    return [f"| {name} | " + " | ".join(cells) + " |"] if set(cells) != {"-"} else []


def gains(found: Found, network: str) -> list[str]:
    """N2NSkip less its twin, and less the best twin of all, seed by seed."""
    lines = ["| | " + " | ".join(f"{d:.0%}" for d in DENSITIES) + " |", "|---|" + "---:|" * len(DENSITIES)]
    for name in (*FIRST, "SNIP shuffled"):
        cells = [
            _gain(found.get((network, d, f"{name}, N2NSkip"), {}), found.get((network, d, f"{name}, twin"), {}))
            for d in DENSITIES
        ]
        lines += _row(name, cells)
    cells = [_gain(*(best(found, network, d, part) for part in ("N2NSkip", "twin"))) for d in DENSITIES]
    lines.append("| best N2NSkip less best twin | " + " | ".join(cells) + " |")
    if (normed := f"{network}, batch norm") in NETWORKS:
        ends = [(best(found, network, d, "N2NSkip"), best(found, normed, d, "twin")) for d in DENSITIES]
        lines.append("| best N2NSkip less best twin *with* batch norms | " + " | ".join(_gain(*e) for e in ends) + " |")
    return lines


def best(found: Found, network: str, density: float, part: str) -> Mapping[int, dict[str, Any]]:
    """The arm of that part with the highest mean."""
    arms = [found.get((network, density, f"{name}, {part}"), {}) for name in (*FIRST, "SNIP shuffled")]
    return max(arms, key=lambda rows: fmean([r["accuracy"] for r in rows.values()] or [0.0]))


def _gain(here: Mapping[int, dict[str, Any]], there: Mapping[int, dict[str, Any]]) -> str:
    both = sorted(here.keys() & there.keys())
    gaps = [here[seed]["accuracy"] - there[seed]["accuracy"] for seed in both]
    text = spread(gaps)
    return text if text.startswith("-") else f"+{text}"


def choices(found: Found) -> list[str]:
    """What each choice gains over the twin, seed by seed, on validation images."""
    networks = [n for n in NETWORKS if any(key[0] == n for key in found)]
    lines = ["| | " + " | ".join(networks) + " |", "|---|" + "---:|" * len(networks)]
    for arm in CHOICES:
        first, _, variant = arm.partition(", ")
        rows = [(found.get((n, 0.02, arm), {}), found.get((n, 0.02, f"{first}, twin"), {})) for n in networks]
        cells = [
            spread([r["accuracy"] for r in here.values()]) if variant == "twin" else _gain(here, twin)
            for here, twin in rows
        ]
        lines += _row(arm, cells)
    return lines


MEASURES: Mapping[str, int] = {
    "effective density": 1,
    "path mass": 1,
    "directed heat distance": -1,
    "output width": 1,
    "heat distance at t*": -1,
    "heat distance at the end": -1,
    "spectral gap": 1,
    "components": -1,
}
"""Measures of connectivity, and whether more of it should be better."""


def ranks(found: Found, joined: Found) -> list[str]:
    """Spearman's correlation of accuracy with each measure, over arms and seeds of a network at one density."""
    lines = ["| network, density (runs) | " + " | ".join(MEASURES) + " |", "|---|" + "---:|" * len(MEASURES)]
    for network, density in product(NETWORKS, DENSITIES):
        rows = [
            (record, joined[network, density, arm][seed])
            for arm in ARMS
            for seed, record in found.get((network, density, arm), {}).items()
            if seed in joined.get((network, density, arm), {})
        ]
        if len(rows) < len(PAIRS):
            continue
        cells = [
            f"{sign * spearman([a['accuracy'] for a, _ in rows], [b[name] for _, b in rows]):+.2f}"
            for name, sign in MEASURES.items()
        ]
        lines.append(f"| {network}, {density:.0%} ({len(rows)}) | " + " | ".join(cells) + " |")
    return lines


def paths(joined: Found) -> list[str]:
    """Means over seeds of what connectivity says, at 2 % density."""
    columns = ("effective density", "directed heat distance", "output width", "heat distance at t*", "components")
    lines = ["| | " + " | ".join(columns) + " | classes without a path |", "|---|" + "---:|" * (len(columns) + 1)]
    for network, arm in product(NETWORKS, ARMS):
        rows = list(joined.get((network, 0.02, arm), {}).values())
        if rows:
            cells = [f"{fmean(row[name] for row in rows):.2f}" for name in (*columns, "classes without a path")]
            lines.append(f"| {network}: {arm} | " + " | ".join(cells) + " |")
    return lines


def page(records: Rows) -> str:
    """The results as Markdown."""
    tests, chosen, joined = (by_arm(records, phase) for phase in ("test", "choose", "connect"))
    text = [
        "# N2NSkip against its twin without skips",
        "",
        "`python benchmarks/n2nskip.py`; one thread. Fashion-MNIST",
        f"averaged to 16 x 16, {IMAGES:,} training images, {EPOCHS} epochs of SGD with a one-cycle rate; the same for",
        "all arms of a network. All arms have exactly as many weights; twins are guarded (no output without a path)",
        "and start as suits them: scored weights as they were scored (SNIP, SynFlow), lots rescaled to the inputs that",
        "stay. Accuracy in percent, mean and standard deviation over seeds; gains are paired by seed, in points.",
    ]
    for network in NETWORKS:
        seeds = sorted({seed for key, rows in tests.items() if key[0] == network for seed in rows})
        if seeds:
            dense = spread([r["accuracy"] for r in tests.get((network, 1.0, "dense"), {}).values()])
            title = f"## {network} (dense: {dense} %; seeds {', '.join(map(str, seeds))})"
            text += ["", title, "", *accuracies(tests, network), "", "Gain over the twin:", "", *gains(tests, network)]
    if chosen:
        text += ["", "## Choices", "", "At 2 % density, on 6,000 validation images, other seeds than above: the twin's"]
        text += ["accuracy, and gains over it.", "", *choices(chosen)]
    if joined:
        text += [
            "",
            "## Does connectivity rank the networks?",
            "",
            "Spearman's correlation of accuracy with measures of the trained network (`nervure.connectivity`), over",
            "arms and seeds; distances and components are turned, so that +1 is a measure that ranks as it is meant",
            "to.",
            "",
            *ranks(tests, joined),
            "",
            "What they are at 2 % density (effective density as a share of the density, distances to the dense",
            "network):",
            "",
            *paths(joined),
        ]
    return "\n".join(text) + "\n"


BENCHMARK = Benchmark("n2nskip", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
