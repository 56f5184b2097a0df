"""Fine-tuning for shift: what views, consistency, sharpness and a teacher are worth at equal compute.

At 90 and 95 % zeros, and with a quarter of the multiply-accumulates; as pruned, and refitted.

``python benchmarks/shift_training.py`` first chooses a setting for each way (validation images under held-out
corruptions, a seed of its own), then compares the ways (test images under the 15 other corruptions); one thread.
``choose`` does the first alone; numbers name seeds of the second. ``--quick`` tries it with little of everything.
A line of results is one network that was fine-tuned. Trained networks are kept in ``runs/gcnet``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gcnet import BATCH, TASKS, WEIGHTS, data_of, empty, in_all_views, judged_on, seen
from benchmarks.runner import ROOT, Benchmark, Results, Row, Rows, main
from nervure import SNACS, GCNet, Magnitude, MagnitudeMasks, Plan, Refit, apply, prune, refit, train
from nervure.evaluation import evaluate_shift
from nervure.evaluation.labelled import Batch
from nervure.methods import Method, View
from nervure.surgery.apply import masks_after
from nervure.training import (
    SAM,
    Objective,
    Views,
    augmented,
    consistent,
    cross_entropy,
    passes_of,
    picture_views,
    recalibrate,
    with_distillation,
)

WORK = 12
"""Passes' worth of work that each way has; short: a quarter of it."""
RATES = (0.01, 0.03, 0.1)
CHOSEN_ON = ("VGG-16-BN", "ResNet-18")


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        tasks: networks of the test.
        chosen_on: networks of the choice.
        seeds: of the test.
        choosing: of the choice.
        images: to fine-tune on.
        judged: images to judge by; 0: all.
        severities: of the shifts.
        settings: how many of each way; 0: all.
    """

    tasks: Sequence[str] = tuple(TASKS)
    chosen_on: Sequence[str] = CHOSEN_ON
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    choosing: Sequence[int] = (10,)
    images: int = 4000
    judged: int = 0
    severities: Sequence[int] = (1, 3, 5)
    settings: int = 0


QUICK = Scale(("ResNet-8, digits",), ("ResNet-8, digits",), (0,), (10,), 64, 40, (3,), 2)

Make = Callable[[Views, nn.Module], Objective]


@dataclass(frozen=True)
class Way:
    """One setting of a way to fine-tune.

    Attributes:
        make: from what makes views and the dense network to an objective.
        lr: the peak rate.
        sharpness: sharpness-aware steps.
        share: of the work.
        says: what is particular to the setting.
    """

    make: Make = lambda views, dense: cross_entropy
    lr: float = 0.03
    sharpness: SAM | None = None
    share: float = 1.0
    says: str = ""

    @property
    def name(self) -> str:
        """The setting in words."""
        return f"lr {self.lr:g}" + (f", {self.says}" if self.says else "")


def views_or_both(clean: float) -> Make:
    """The loss on views, or on both."""
    return lambda views, dense: augmented(cross_entropy, views, clean=clean)


def agree(weight: float) -> Make:
    """The loss and one view's disagreement."""
    return lambda views, dense: consistent(cross_entropy, views, weight, count=1)


def distil(weight: float) -> Make:
    """A pull towards the dense network."""
    return lambda views, dense: with_distillation(cross_entropy, dense, weight)


def distil_on_views(weight: float) -> Make:
    """The same, on views."""
    return lambda views, dense: augmented(with_distillation(cross_entropy, dense, weight), views)


STEEP = (SAM(0.05), SAM(0.2), SAM(1.0, adaptive=True))
WAYS: Mapping[str, Sequence[Way]] = {
    "plain, short": [Way(lr=lr, share=0.25) for lr in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)],
    "plain, longer": [Way(lr=lr) for lr in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)],
    "augmented": [Way(views_or_both(c), lr, says=f"clean {c:g}") for c, lr in product((0.0, 0.5), RATES)],
    "consistent": [Way(agree(w), lr, says=f"weight {w:g}") for w, lr in product((1.0, 12.0), RATES)],
    "sharpness-aware": [Way(lr=lr, sharpness=how, says=f"{how}") for how, lr in product(STEEP, (0.03, 0.1))],
    "distilled": [Way(distil(w), lr, says=f"weight {w:g}") for w, lr in product((0.5, 0.9), RATES)],
    "augmented, distilled": [Way(distil_on_views(w), lr, says=f"weight {w:g}") for w, lr in product((0.5, 0.9), RATES)],
}
"""Settings of each way: as many for all."""


@dataclass(frozen=True)
class Smaller:
    """How a network is made smaller.

    Attributes:
        method: what decides; None: the dense network stays, the twin that the others are to come up to.
        refit: whether what stays takes over before it is fine-tuned.
        ways: it is fine-tuned in.
    """

    method: Method | None
    refit: bool = False
    ways: Sequence[str] = ("plain, longer", "consistent")


def zeros(density: float) -> Method:
    """The least weights leave."""
    return MagnitudeMasks(density=density, guard="outputs")


def guided(density: float) -> Method:
    """Connectivity guides which weights leave."""
    return GCNet(density=density, **WEIGHTS)


@dataclass(frozen=True)
class AcrossViews:
    """GC-Net by the connectivity that is there in all views: the least over clean images and augmented ones.

    Attributes:
        method: what it is measured and decided by.
    """

    method: GCNet

    @property
    def wants(self) -> frozenset[str]:
        """What the method wants."""
        return self.method.wants

    def plan(self, view: View) -> Plan:
        """As said above."""
        return self.method.decide(view, in_all_views(self.method, view))


SEEN = ("plain, longer", "augmented", "consistent")
EQUAL = ", equal MACs"
"""Of a way, four times as long: a quarter of the multiply-accumulates in each pass."""
QUARTER: dict[str, Any] = {"keep": 0.25, "budget": "macs", "multiple": 1}
NETWORKS: Mapping[str, Smaller] = {
    "magnitude": Smaller(zeros(0.1), ways=tuple(WAYS)),
    "GC-Net": Smaller(guided(0.1), ways=SEEN),
    "dense": Smaller(None, ways=SEEN),
    "magnitude, refitted": Smaller(zeros(0.1), refit=True),
    "95 %: magnitude": Smaller(zeros(0.05)),
    "95 %: GC-Net": Smaller(guided(0.05)),
    "95 %: GC-Net, patches, in all views": Smaller(AcrossViews(GCNet(density=0.05, **WEIGHTS, of="patches"))),
    "95 %: magnitude, refitted": Smaller(zeros(0.05), refit=True),
    "1/4 of MACs: SNACS, refitted": Smaller(
        SNACS(**QUARTER),
        refit=True,
        ways=("plain, longer", "consistent", f"plain, longer{EQUAL}", f"consistent{EQUAL}"),
    ),
    "1/4 of MACs: SNACS": Smaller(SNACS(**QUARTER)),
    "1/4 of MACs: magnitude, refitted": Smaller(Magnitude(**QUARTER), refit=True),
}
"""What is fine-tuned: 90 % zeros, where the name says nothing else."""


# -- one trial -----------------------------------------------------------------------------------------------------


def trial(scale: Scale, phase: str, task: str, network: str, way: str, setting: Way, seed: int) -> Row:
    """Prune, fine-tune, evaluate."""
    start, data = time.process_time(), data_of(task, seed)
    view = seen(task, seed)
    assert view.model is not None
    model, masks = smaller(NETWORKS[network], view)
    few = data.train.sample(min(scale.images, len(data.train)), seed)
    recalibrate(model, few.batches(BATCH), 10)
    objective = setting.make(picture_views(normalisation=(data.mean, data.std)), view.model)
    work = passes_of(objective, setting.sharpness).work
    epochs = round(setting.share * WORK / work)
    train(
        model,
        few.batches(BATCH, shuffle_seed=seed),
        epochs=epochs,
        lr=setting.lr,
        seed=seed,
        objective=objective,
        sharpness=setting.sharpness,
        masks=masks,
        progress=False,
    )
    recalibrate(model, few.batches(BATCH), 10)
    trained = time.process_time() - start
    clean, moved = judged(scale, task, seed, phase)
    found = evaluate_shift({"": model.eval()}, clean, shift=moved, progress=False)[""]
    row = {"shifted": found.accuracy, "clean": found.clean.accuracy, "ece": found.ece}
    row["worst"] = min(found.by_corruption.values())
    numbers = {name: round(value, 5) for name, value in row.items()}
    told = {"setting": setting.name, "work": work * epochs, "epochs": epochs, "seconds": round(trained, 1)}
    return {"key": key_of(phase, task, network, way, setting, seed)} | numbers | told


def smaller(how: Smaller, view: View) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network that is fine-tuned, and the masks that it is fine-tuned under."""
    assert view.model is not None
    plan = empty(view) if how.method is None else how.method.plan(view)
    masks = {} if how.method is None else dict(masks_after(view.graph, plan))
    if not how.refit:
        return apply(view.model, view.graph, plan), masks
    plain = prune(view.model, view.example, plan, refit=False, verify=False, progress=False)
    again = refit(plain, view.data, reference=view.model, how=Refit(seed=view.seed), progress=False)
    return again.result.model, masks


def key_of(phase: str, task: str, network: str, way: str, setting: Way, seed: int) -> list[Any]:
    """What a row is known by: of the test the way alone, whatever setting was chosen."""
    return [phase, task, network, way, setting.name if phase == "choose" else "", seed]


def judged(scale: Scale, task: str, seed: int, phase: str) -> tuple[list[Batch], dict[tuple[str, int], list[Batch]]]:
    """Clean images and shifted ones."""
    clean, moved = judged_on(task, seed, phase)
    moved = {key: batches for key, batches in moved.items() if key[1] in scale.severities}
    if not scale.judged:
        return clean, moved

    def few(batches: list[Batch]) -> list[Batch]:
        x, y = batches[0]
        return [(x[: scale.judged], y[: scale.judged])]

    return few(clean), {key: few(batches) for key, batches in moved.items()}


# -- the study -----------------------------------------------------------------------------------------------------


def settings_of(scale: Scale) -> Mapping[str, Sequence[Way]]:
    """The settings that are compared."""
    return {way: settings[: scale.settings or None] for way, settings in WAYS.items()}


def study(log: Results, options: Namespace) -> None:
    """Choose, then compare."""
    torch.manual_seed(0)
    scale = QUICK if options.quick else Scale()
    for seed, task, (way, settings) in product(scale.choosing, scale.chosen_on, settings_of(scale).items()):
        for setting in settings:
            measure(log, scale, "choose", task, "magnitude", way, setting, seed)
    if "choose" in options.names:
        return
    chosen = choose(log.rows, scale)
    asked = [seed for seed in scale.seeds if str(seed) in options.names]
    for seed, task, (network, way) in product(asked or scale.seeds, scale.tasks, compared()):
        measure(log, scale, "test", task, network, way, setting_of(chosen, way), seed)


def setting_of(chosen: Mapping[str, Way], way: str) -> Way:
    """The setting that was chosen, for as many multiply-accumulates as the dense network has where the way says so."""
    setting = chosen[way.removesuffix(EQUAL)]
    return replace(setting, share=4 * setting.share) if way.endswith(EQUAL) else setting


def measure(log: Results, scale: Scale, *trial_of: Any) -> None:
    """A row, where there is none of this setting."""
    if log.find(key=key_of(*trial_of), setting=trial_of[4].name) is None:
        for row in log.add(trial(scale, *trial_of)):
            print({name: row[name] for name in ("key", "setting", "shifted", "clean", "seconds")}, flush=True)


def compared() -> Iterator[tuple[str, str]]:
    """Networks and ways of the test."""
    yield from ((network, way) for network, how in NETWORKS.items() for way in how.ways)


def choose(rows: Rows, scale: Scale) -> dict[str, Way]:
    """The setting of each way that is best under the held-out corruptions, by the mean over networks."""
    means = {key: fmean(values) for key, values in validated(rows).items()}
    return {
        way: max(settings, key=lambda setting: means[way, setting.name]) for way, settings in settings_of(scale).items()
    }


def validated(rows: Rows) -> dict[tuple[str, str], list[float]]:
    """Accuracies under held-out corruptions, by way and setting."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        phase, _, _, way, setting, _ = row["key"]
        if phase == "choose":
            found.setdefault((way, setting), []).append(row["shifted"])
    return found


# -- the page ------------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """Rows of the test by network, way and task, then by seed."""

    rows: dict[tuple[str, str, str], dict[int, Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> "Known":
        """From all rows."""
        known = cls()
        for row in rows:
            phase, task, network, way, _, seed = row["key"]
            if phase == "test":
                known.rows.setdefault((network, way, task), {})[seed] = row
        return known

    def gains(self, one: tuple[str, str], other: tuple[str, str], task: str, value: str) -> list[float]:
        """Points of one above another, seed by seed."""
        mine, yours = self.rows.get((*one, task), {}), self.rows.get((*other, task), {})
        return [100 * (mine[seed][value] - yours[seed][value]) for seed in sorted(mine) if seed in yours]

    def values(self, one: tuple[str, str], task: str, value: str) -> list[float]:
        """Percent, seed by seed."""
        return [100 * row[value] for row in self.rows.get((*one, task), {}).values()]


def page(rows: Rows) -> str:
    """The results as Markdown."""
    known = Known.of(rows)
    tasks = [task for task in TASKS if any(key[2] == task for key in known.rows)]
    text = ["# Training for shift", "", (ROOT / "benchmarks" / "shift_training.intro.md").read_text().rstrip(), ""]
    base, twin = ("magnitude", "plain, longer"), ("dense", "plain, longer")
    for title, value, other in (
        ("Under shift, points above plain training of the same masks and work", "shifted", base),
        ("Under shift, points above the dense network with plain training of the same work", "shifted", twin),
        ("Clean, points above plain training of the same masks and work", "clean", base),
    ):
        lines = [[told(known.gains(one, other, task, value)) for task in tasks] for one in compared()]
        overall = [over_networks([known.gains(one, other, task, value) for task in tasks]) for one in compared()]
        text += [
            f"## {title}",
            "",
            "Seed by seed: mean (deviation over seeds); *all*: the mean of the networks' means, ",
        ]
        text[-1] += "± their standard error."
        text += ["", *table(tasks, lines, overall), ""]
    for title, value in (("Under shift", "shifted"), ("Clean", "clean"), ("Worst corruption", "worst")):
        lines = [[told(known.values(one, task, value), signed=False) for task in tasks] for one in compared()]
        text += [f"## {title}, %", "", *table(tasks, lines), ""]
    return "\n".join([*text, *costs(rows), *choices(rows)])


def table(tasks: Sequence[str], lines: Sequence[Sequence[str]], overall: Sequence[str] = ()) -> list[str]:
    """Ways down, networks across."""
    heads = [*tasks, *(["all"] if overall else [])]
    text = [f"| masks | fine-tuning | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for number, (network, way) in enumerate(compared()):
        cells = [*lines[number], *([overall[number]] if overall else [])]
        text.append(f"| {network} | {way} | {' | '.join(cells)} |")
    return text


def told(values: Sequence[float], *, signed: bool = True) -> str:
    """Mean and deviation."""
    if not values:
        return "-"
    spread = f" ({stdev(values):.1f})" if len(values) > 1 else ""
    return f"{fmean(values):{'+' if signed else ''}.1f}{spread}"


def over_networks(gains: Sequence[Sequence[float]]) -> str:
    """The mean of networks' means, with the standard error of these."""
    means = [fmean(values) for values in gains if values]
    if not means:
        return "-"
    error = f" ± {stdev(means) / sqrt(len(means)):.1f}" if len(means) > 1 else ""
    return f"{fmean(means):+.1f}{error}"


def costs(rows: Rows) -> list[str]:
    """What a fine-tuning came to."""
    text = ["## Work", "", "| masks | fine-tuning | setting | epochs | work | seconds, mean |", "|---" * 6 + "|"]
    for network, way in compared():
        mine = [row for row in rows if row["key"][0] == "test" and row["key"][2:4] == [network, way]]
        if mine:
            one, seconds = mine[0], fmean(row["seconds"] for row in mine)
            text.append(
                f"| {network} | {way} | {one['setting']} | {one['epochs']} | {one['work']:.0f} | {seconds:.0f} |"
            )
    return [*text, ""]


def choices(rows: Rows) -> list[str]:
    """All settings, best first."""
    found = validated(rows)
    text = ["## The choice", "", "Validation images under the four held-out corruptions, %, mean over networks.", ""]
    text += ["| fine-tuning | settings, best first |", "|---|---|"]
    for way in WAYS:
        mine = sorted(((fmean(v), name) for (own, name), v in found.items() if own == way), reverse=True)
        if mine:
            text.append(f"| {way} | {'; '.join(f'{name}: {100 * mean:.1f}' for mean, name in mine)} |")
    return [*text, ""]


BENCHMARK = Benchmark("shift_training", page, study=study, quick=True)

if __name__ == "__main__":
    main(BENCHMARK)
