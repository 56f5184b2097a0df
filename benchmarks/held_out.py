"""Criteria for units, all refitted, on networks that took no part in choosing any of them.

Run ``python benchmarks/held_out.py`` (one thread, hours; words choose cells). What the scores do and what their options
are was chosen on VGG-16, ResNet-20 and two small networks made for that; here are four others, trained as in
``benchmarks/refit.py``, whose dense networks are shared (``--cache``). Each is cut to a half, a quarter and an eighth
of its multiply-accumulates by every criterion, refitted on 1,024 training pictures without labels, and measured on test
data, clean and corrupted: as it is, after one epoch, and after three. Networks are the unit of chance: the seeds of one
are averaged first. Writes ``docs/results/held_out.*``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.refit import BATCH, CACHE, SAMPLES, accuracies, dataset, dense, recover
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import FPGM, SNACS, Cut, Magnitude, Plan, Random, Taylor, prune
from nervure.methods import View
from nervure.refit import Refit, refit

CHOSEN_ON, HELD_OUT = ("VGG-16", "ResNet-20"), ("MobileNetV2", "ResNet-56", "DenseNet-40", "ViT")
KEEPS, EPOCHS = (0.5, 0.25, 0.12), (0, 1, 3)
REFITTED = 1
"""Which of a network's rates is that of refitted ones."""


def methods(keep: float) -> Mapping[str, Any]:
    """What competes, at one budget."""
    how: dict[str, Any] = {"keep": keep, "budget": "macs", "multiple": 1}
    return {
        "Random": Random(**how),
        "Magnitude": Magnitude(**how),
        "FPGM": FPGM(**how),
        "Taylor": Taylor(**how),
        "Magnitude, isomorphic": Magnitude(**how, scope="isomorphic"),
        "Taylor, isomorphic": Taylor(**how, scope="isomorphic"),
        "SNACS, means": SNACS(**how, ranking="connectivity", of="means", granularity="filters", limits=False),
        "SNACS": SNACS(**how),
    }


@dataclass(frozen=True)
class SizesOf:
    """The control: as many units of each group as one method leaves, and of these the ones that another scores highest.

    Attributes:
        sizes: whose sizes.
        inside: whose order, a ranking.
    """

    sizes: Any
    inside: Any

    @property
    def wants(self) -> frozenset[str]:
        """What both want."""
        found: frozenset[str] = self.sizes.wants | self.inside.wants
        return found

    def plan(self, view: View) -> Plan:
        """As said above."""
        scores = self.inside.scores(view)
        cuts = []
        for cut in self.sizes.plan(view).cuts:
            stays = torch.zeros(cut.keep.size, dtype=torch.bool)
            stays[scores[cut.group].topk(cut.keep.count).indices] = True
            cuts.append(Cut(cut.group, stays))
        return Plan(tuple(cuts), view.graph.fingerprint)


def controls(keep: float) -> Mapping[str, Any]:
    """Where SNACS leads: by its sizes of layers, or by its choice inside of them?"""
    how: dict[str, Any] = {"keep": keep, "budget": "macs", "multiple": 1}
    return {
        "Magnitude, sizes of SNACS": SizesOf(SNACS(**how), Magnitude(**how)),
        "Random, sizes of SNACS": SizesOf(SNACS(**how), Random(**how)),
    }


def run(label: str, keep: float, name: str, seed: int, epochs: int, options: Namespace) -> Row:
    """One line: cut and refitted, perhaps trained."""
    row = Row(key=[label, keep, name, seed, epochs])
    file = options.cache / f"held-out-{label}-{keep}-{name}-{seed}.pt"
    if not file.exists():
        row |= cut(label, keep, name, seed, options, file)
    model = torch.load(file, weights_only=False)
    if not epochs:
        return row | accuracies(model, label)
    found, cost = recover(label, model, {}, seed, epochs, REFITTED)
    return row | found | {"epoch": cost["seconds"]}


def cut(label: str, keep: float, name: str, seed: int, options: Namespace, file: Path) -> Row:
    """Cut and refit, and keep the network in the file; how long planning and refitting took, and the dense network."""
    model, data = dense(label, seed, options), dataset(label)
    seen, start = data.train.batches(BATCH, shuffle_seed=seed), time.process_time()
    plain = prune(
        model,
        data.example(1),
        (methods(keep) | controls(keep))[name],
        data=seen,
        seed=seed,
        refit=False,
        verify=False,
        progress=False,
    )
    planned, seen.epoch = time.process_time(), 0
    again = refit(plain, seen, reference=model, how=Refit(samples=SAMPLES, seed=seed), progress=False)
    ended = time.process_time()
    draft = file.with_suffix(".draft")
    torch.save(again.result.model, draft)
    draft.replace(file)
    share = plain.cost_after.macs / plain.cost_before.macs
    costs = {"planning": round(planned - start, 2), "refit": round(ended - planned, 2), "macs": round(share, 4)}
    return costs | {
        "dense": accuracies(model, label),
        "errors": again.summary(),
        "plain": accuracies(plain.model, label),
    }


def cases(options: Namespace) -> Iterator[Case]:
    """Seeds, networks, budgets, criteria, epochs: what is needed first comes first."""
    options.cache.mkdir(parents=True, exist_ok=True)
    for seed, epochs, label, keep in product(range(options.seeds), EPOCHS, (*HELD_OUT, *CHOSEN_ON), KEEPS):
        for name in (*methods(keep), *(() if epochs else controls(keep))) if epochs <= options.epochs else ():
            yield (label, keep, name, seed, epochs), partial(run, label, keep, name, seed, epochs, options)


# -- the page --------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """The results as Markdown."""
    text = INTRODUCTION.splitlines()
    for epochs, kind in product(EPOCHS, ("clean", "shifted")):
        found = [row for row in rows if row["key"][4] == epochs]
        if found:
            when = f"after {epochs} epoch{'s' * (epochs > 1)}" if epochs else "without training"
            text += ["", f"## {kind.capitalize()}, {when}", "", *table(found, kind)]
    return "\n".join([*text, "", "## What it takes", "", *costs(rows)]) + "\n"


def table(rows: Rows, kind: str) -> list[str]:
    """Accuracies, mean over seeds: networks and budgets by criterion; then the mean over networks held out."""
    names = list(dict.fromkeys(row["key"][2] for row in rows))
    lines = [f"| network | MACs | {' | '.join(names)} | seeds |", f"|---|---:|{'---:|' * (len(names) + 1)}"]
    means: dict[tuple[str, float], dict[str, float]] = {}
    for label, keep in product((*HELD_OUT, *CHOSEN_ON), KEEPS):
        here = [row for row in rows if row["key"][:2] == [label, keep]]
        run = [name for name in names if any(row["key"][2] == name for row in here)]
        seeds = [s for s in range(99) if all(any(r["key"][2:4] == [n, s] for r in here) for n in run)] if run else []
        if not seeds:
            continue
        found = {n: fmean(r[kind] for r in here if r["key"][2] == n and r["key"][3] in seeds) for n in run}
        means[label, keep], best = found, max(found.values())
        cells = [
            "–" if name not in found else f"**{found[name]:.1f}**" if found[name] == best else f"{found[name]:.1f}"
            for name in names
        ]
        chosen = " (chosen on)" if label in CHOSEN_ON else ""
        lines.append(f"| {label}{chosen} | {keep} | {' | '.join(cells)} | {len(seeds)} |")
    return [*lines, *summary(means, names)]


def summary(means: Mapping[tuple[str, float], Mapping[str, float]], names: list[str]) -> list[str]:
    """Over networks held out: the mean of each criterion at each budget, and in how many cells it is first or level."""
    lines = []
    for keep in KEEPS:
        found = [means[label, keep] for label in HELD_OUT if (label, keep) in means]
        if found:
            cells = [
                f"{fmean(one[name] for one in found):.1f}" if all(name in one for one in found) else "–"
                for name in names
            ]
            lines.append(f"| *mean of {len(found)} held out* | {keep} | {' | '.join(cells)} | |")
    cells_held = [found for (label, _), found in means.items() if label in HELD_OUT]
    first = [
        f"{sum(found[name] >= max(found.values()) - LEVEL for found in run)} of {len(run)}"
        for name in names
        if (run := [found for found in cells_held if name in found]) or True
    ]
    return [*lines, f"| *first or level* | | {' | '.join(first)} | |"]


LEVEL = 0.5
"""Points within which two are level."""


def costs(rows: Rows) -> list[str]:
    """Processor seconds of a plan and of a refit."""
    found = [row for row in rows if "planning" in row]
    names = list(dict.fromkeys(row["key"][2] for row in found))
    lines = [f"| network | {' | '.join(names)} | refit |", f"|---|{'---:|' * (len(names) + 1)}"]
    for label in (*HELD_OUT, *CHOSEN_ON):
        here = [row for row in found if row["key"][0] == label]
        cells = [
            f"{fmean(times):.1f} s" if (times := [r["planning"] for r in here if r["key"][2] == name]) else "–"
            for name in names
        ]
        if here:
            lines.append(f"| {label} | {' | '.join(cells)} | {fmean(r['refit'] for r in here):.1f} s |")
    return lines


INTRODUCTION = """# Criteria on networks held out

`python benchmarks/held_out.py`; one thread. Accuracy on test data in percent, means over seeds; all arms are refitted
on 1,024 training pictures of Fashion-MNIST at 16 x 16 without labels. *Shifted* is the mean over Gaussian noise,
defocus, fog and contrast at severity 3, on 500 pictures. What SNACS does was chosen on VGG-16 and ResNet-20 (last,
where they were run) and on a small ResNet-8 and ViTs made for that. A row rests on so many seeds as its last column
says: of one seed, differences of a point mean nothing, and the networks, not their seeds, are the unit of chance.
*Level* is within half a point of the best. A criterion that ranks all layers together may leave a layer with a single
channel: hence those that let groups of one build compete alone (*isomorphic*). *Sizes of SNACS* are the control: each
layer is as large as SNACS makes it, and what stays in it is chosen by magnitude, or by lot."""

BENCHMARK = Benchmark(
    "held_out",
    page,
    cases=cases,
    arguments={
        "--seeds": {"type": int, "default": 5},
        "--epochs": {"type": int, "default": 3, "help": "no longer training than this"},
        "--cache": {"type": Path, "default": CACHE, "help": "folder of dense and pruned networks"},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
