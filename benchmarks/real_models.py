"""Trained models of ordinary packages, made smaller without training and refitted, in the metric of what they are for.

Run ``python benchmarks/real_models.py --models FOLDER`` (or set ``NERVURE_REAL_MODELS``); one thread. What has to be in
the folder is said in ``benchmarks/real_data.py``; nothing of it is part of nervure, and no weights are kept here. It
needs ``transformers``, ``torchvision``, ``pillow`` and ``scipy``, and for the detector ``onnx`` and ``ultralytics``
(AGPL-3). Writes ``docs/results/real_models.*``.
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_data import SUBJECTS, Batches, Scores, Subject
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import (
    SNACS,
    Cut,
    Depth,
    Energy,
    Magnitude,
    Plan,
    Pruned,
    Random,
    Refit,
    Taylor,
    Wanda,
    latency,
    prune,
    refit,
    trace,
    train,
)
from nervure.errors import NervureError
from nervure.evaluation import token_shifts
from nervure.graph.copies import copy_model
from nervure.tasks.batch_forms import Layout

PLACE = "NERVURE_REAL_MODELS"
LOUD = 48
"""Samples that choose what stays, where activations do."""


# -- what leaves -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def loudness(model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches) -> dict[str, Tensor]:
    """For each layer the root of the summed squares of each of its inputs."""
    found = {name: torch.zeros(layer.weight.shape[1]) for name, layer in layers.items()}

    def listen(name: str, values: Tensor) -> None:
        found[name] += values.flatten(0, -2).square().sum(0)

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: listen(name, inputs[0]))
        for name, layer in layers.items()
    ]
    for batch in batches:
        Layout().feed(model, batch)
    for hook in hooks:
        hook.remove()
    return {name: sums.sqrt() for name, sums in found.items()}


def thin_branches(subject: Subject, batches: Batches, keep: float) -> Plan:
    """The same share of every MLP: units stay whose activation times the weights that read it is large."""
    graph = trace(subject.model, subject.example)
    modules = dict(subject.model.named_modules())
    groups = [group for group in graph.prunable if "mlp" in group.name]
    readers = {
        group.name: next(slot.tensor for slot in group.slots if slot.role == "reader").removesuffix(".weight")
        for group in groups
    }
    loud = loudness(subject.model, {name: modules[name] for name in readers.values()}, batches)
    cuts = []
    for group in groups:
        name = readers[group.name]
        score = loud[name] * modules[name].weight.detach().norm(dim=0)
        stays = torch.zeros(group.size, dtype=torch.bool)
        stays[score.topk(round(keep * group.size)).indices] = True
        cuts.append(Cut(group.name, stays.tolist()))
    return Plan(tuple(cuts), graph.fingerprint)


# -- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """How a model is made smaller, and on what it is refitted.

    Attributes:
        make: from the subject and the samples that choose to a method or plan.
        samples: how many are refitted on, by domain; an empty name is the first.
        how: choices of the refit.
        noise: whether it is refitted on the same samples with mistaken tokens as well, and by the worse of the two.
    """

    make: Callable[[Subject, Batches], Any]
    samples: Mapping[str, int] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    noise: bool = False


def fixed(method: Any) -> Callable[[Subject, Batches], Any]:
    """A method that is the same for all."""
    return lambda subject, batches: method


LARGEST = "largest weights"
HEAD = ("lm_head*",)
UNTRAINED: Mapping[tuple[str, str], Mapping[str, Arm]] = {
    **{
        ("text reader", f"{keep:.0%} of parameters"): {
            LARGEST: Arm(fixed(Magnitude(keep=keep, budget="params")), {"": 240})
        }
        for keep in (0.5, 0.3, 0.2)
    },
    ("language", "half of every MLP"): {
        "loud units": Arm(partial(thin_branches, keep=0.5), {"faq": 32}),
        "loud units, two domains": Arm(partial(thin_branches, keep=0.5), {"faq": 24, "manual": 16}),
        "loud units, with noise": Arm(partial(thin_branches, keep=0.5), {"faq": 32}, noise=True),
        "loud units, more samples": Arm(partial(thin_branches, keep=0.5), {"faq": 96}),
        "loud units, two domains, more samples": Arm(partial(thin_branches, keep=0.5), {"faq": 160, "manual": 96}),
    },
    ("language", "half of the weights masked"): {
        "Wanda": Arm(fixed(Wanda(density=0.5, dense=HEAD)), {"faq": 32}),
        "Wanda, with noise": Arm(fixed(Wanda(density=0.5, dense=HEAD)), {"faq": 32}, noise=True),
        "Wanda, two domains": Arm(fixed(Wanda(density=0.5, dense=HEAD)), {"faq": 24, "manual": 16}),
    },
    ("language", "2 of 4 weights masked"): {
        "Wanda": Arm(fixed(Wanda(density=0.5, granularity="2:4", dense=HEAD)), {"faq": 32}),
        "Wanda, two domains": Arm(fixed(Wanda(density=0.5, granularity="2:4", dense=HEAD)), {"faq": 24, "manual": 16}),
    },
    ("language", "three of thirty layers dropped"): {
        "Depth": Arm(fixed(Depth(score="influence", granularity="whole", drop=3)), {"faq": 32}),
        "Depth, two domains": Arm(
            fixed(Depth(score="influence", granularity="whole", drop=3)), {"faq": 24, "manual": 16}
        ),
    },
    **{
        ("detector", f"{keep:.0%} of MACs"): {LARGEST: Arm(fixed(Magnitude(keep=keep, budget="macs")), {"": 60})}
        for keep in (0.8, 0.6, 0.5)
    },
}
"""Subject and edit, then arm by arm."""

SAMPLES = {
    "text reader": 120, "text detector": 8, "voice encoder": 128, "classifier": 128, "detector": 60, "speech": 16,
    "language": 16,
}  # fmt: skip
STEPS, RATE = 8, 1e-4
"""Of training after a cut: at least so many, in whole runs through the samples."""


def methods(keep: float) -> Mapping[str, Any]:
    """At equal budgets."""
    return {
        "Magnitude": Magnitude(keep=keep, budget="macs"),
        "Taylor": Taylor(keep=keep, budget="macs"),
        "SNACS": SNACS(keep=keep, budget="macs"),
        "Energy": Energy(keep=keep, budget="macs"),
        "Random": Random(keep=keep, budget="macs"),
    }


EQUAL: Mapping[tuple[str, str], Mapping[str, Arm]] = {
    (name, f"{keep:.0%} of MACs"): {label: Arm(fixed(method), {"": count}) for label, method in methods(keep).items()}
    for name, count in SAMPLES.items()
    for keep in (0.75, 0.5)
}
PARTS = {"untrained": UNTRAINED, "equal": EQUAL}


def calibration(subject: Subject, samples: Mapping[str, int], seed: int) -> Batches:
    """Batches of several domains, in turn."""
    parts = [subject.domains.get(name, subject.batches)(seed, count) for name, count in samples.items()]
    longest = max(map(len, parts))
    return [part[at] for at in range(longest) for part in parts if at < len(part)]


def take(batches: Batches, samples: int) -> Batches:
    """The batches that hold the first so many samples, or a few more."""
    found, seen = [], 0
    for batch in batches:
        if seen >= samples:
            break
        found.append(batch)
        seen += Layout().count(batch)
    return found


def make_smaller(subject: Subject, arm: Arm, batches: Batches, seed: int) -> Pruned:
    """What the arm makes of the subject."""
    method = arm.make(subject, take(batches, LOUD))
    return prune(
        subject.model, subject.example, method, data=batches, task=subject.objective, refit=False, seed=seed,
        progress=False,
    )  # fmt: skip


def run_cell(part: str, name: str, edit: str, arm: str, seed: int, options: Namespace) -> Row:
    """One line: dense, smaller, and refitted; with equal budgets the first draw is also trained, and timed."""
    chosen, subject = PARTS[part][name, edit][arm], load(name, options.models)
    batches, row = calibration(subject, chosen.samples, seed), Row(key=[part, name, edit, arm, seed])
    row |= {"samples": dict(chosen.samples), "dense": dense_score(name, options.models)}
    try:
        pruned = make_smaller(subject, chosen, batches, seed)
    except NervureError as error:
        return row | {"failed": str(error).partition("\n")[0][:300]}
    start = time.process_time()
    how = Refit(samples=sum(chosen.samples.values()), seed=seed, **chosen.how)
    views = list(mistaken(subject, batches, seed)) if chosen.noise else None
    fitted = refit(
        pruned, batches, reference=subject.model, views=views, task=subject.objective, how=how, progress=False
    )
    row |= {
        "seconds": round(time.process_time() - start, 1),
        "plain": subject.score(pruned.model),
        "refit": subject.score(fitted.result.model),
        "macs": pruned.cost_after.macs / pruned.cost_before.macs,
        "params": pruned.cost_after.params / pruned.cost_before.params,
        "errors": {key: round(value, 4) for key, value in fitted.summary().items()},
    }
    if part == "equal" and seed == 0:
        row["plain, trained"] = recover(subject, pruned, batches, seed)
        row["refit, trained"] = recover(subject, fitted.result, batches, seed)
        row["speedup"] = speedup(subject, pruned)
    return row


def mistaken(subject: Subject, batches: Batches, seed: int) -> Batches:
    """The samples with a part of their tokens exchanged for others."""
    (shift,) = token_shifts("replaced_tokens", vocabulary=subject.model.config.vocab_size)
    return [shift(batch, 3, seed=seed) for batch in batches]


def recover(subject: Subject, pruned: Pruned, batches: Batches, seed: int) -> Scores:
    """Scores after a little training on the samples that were calibrated on."""
    model, epochs = copy_model(pruned.model), -(-STEPS // len(batches))
    train(
        model, batches, epochs=epochs, lr=RATE, optimizer="adamw", objective=subject.objective, masks=pruned.masks,
        seed=seed, progress=False,
    )  # fmt: skip
    return subject.score(model.eval())


def speedup(subject: Subject, pruned: Pruned) -> float | str:
    """On ONNX Runtime, against the dense model; or why it could not be timed."""
    try:
        found = latency({"dense": subject.model, "smaller": pruned.model}, subject.example, engine="onnxruntime")
    except NervureError as error:
        return str(error).partition("\n")[0][:200]
    return round(found.speedup("smaller"), 3)


@cache
def load(name: str, folder: Path) -> Subject:
    """A subject, once."""
    make, samples, _ = SUBJECTS[name]
    return make(folder, samples)


@cache
def dense_score(name: str, folder: Path) -> Scores:
    """Of the dense model."""
    return load(name, folder).score(load(name, folder).model)


def cases(options: Namespace) -> Iterator[Case]:
    """Subjects, edits, arms and seeds."""
    if not options.models:
        print(f"Nothing is run: say where the models are, --models FOLDER or {PLACE}; see benchmarks/real_data.py.")
        return
    for part, cells in PARTS.items():
        for seed in range(options.seeds):
            for (name, edit), arms in cells.items():
                for arm in arms:
                    key = (part, name, edit, arm, seed)
                    yield key, partial(run_cell, *key, options)


# -- the page --------------------------------------------------------------------------------------------------------


def mean_of(name: str, metric: str, rows: Rows, what: str) -> str:
    """Over seeds; perplexities in multiples of the dense one, with the spread of seeds where there are several."""
    rows = [row for row in rows if what in row]
    values = [row[what][metric] / (row["dense"][metric] if name == "language" else 1) for row in rows]
    if not values:
        return "–"
    apart = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.3g}{apart}"


def by_cell(rows: Rows) -> dict[tuple[str, str], list[Row]]:
    """Rows of all seeds by edit and arm."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["key"][2], row["key"][3]), []).append(row)
    return found


def table(rows: Rows) -> list[str]:
    """Of one subject: plain and refitted side by side, and both trained where they were."""
    name, metrics = rows[0]["key"][1], list(rows[0]["dense"])
    stages = ["plain", "refit", *(s for s in ("plain, trained", "refit, trained") if any(s in row for row in rows))]
    timed = any(isinstance(row.get("speedup"), float) for row in rows)
    titles = ["", "", "calibrated on", *(f"{m}: {stage}" for m in metrics for stage in stages)]
    titles += ["MACs", "parameters", "refit takes", *(["ONNX Runtime"] if timed else []), "seeds"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * 3}{'---:|' * (len(titles) - 3)}"]
    for (edit, arm), found in by_cell(rows).items():
        mine = [row for row in found if "failed" not in row]
        if not mine:
            lines.append(f"| {edit} | {arm} | {'not done: ' + found[0]['failed']} |{' |' * (len(titles) - 3)}")
            continue
        samples = ", ".join(f"{count} {domain}".strip() for domain, count in mine[0]["samples"].items())
        values = [mean_of(name, m, mine, stage) for m in metrics for stage in stages]
        shares = [f"{100 * fmean(row[kind] for row in mine):.0f} %" for kind in ("macs", "params")]
        speeds = [f"{row['speedup']:.2f} x" for row in mine if isinstance(row.get("speedup"), float)][:1] or ["-"]
        ends = [*shares, f"{fmean(row['seconds'] for row in mine):.0f} s", *(speeds if timed else []), str(len(mine))]
        lines.append(f"| {' | '.join([edit, arm, samples, *values, *ends])} |")
    return lines


HEADS = {
    "untrained": "Without training",
    "equal": "At equal budgets: plain, refitted, and both trained a little on the same samples",
}


def page(rows: Rows) -> str:
    """The results as Markdown."""
    text = INTRODUCTION.splitlines()
    for part, title in HEADS.items():
        chosen = [row for row in rows if row["key"][0] == part]
        text += ["", f"## {title}"] if chosen else []
        for name, (_, count, told) in SUBJECTS.items():
            mine = [row for row in chosen if row["key"][1] == name]
            if mine:
                dense = ", ".join(f"{metric} {value:.3g}" for metric, value in mine[0]["dense"].items())
                head = ["", f"### {name.capitalize()}", "", f"{told[0].upper()}{told[1:]}; {count} test samples."]
                text += [*head, f"Dense: {dense}.", "", *table(mine)]
    return "\n".join(text) + "\n"


INTRODUCTION = f"""# Real models, made smaller

`python benchmarks/real_models.py --models FOLDER`; one thread, times are of the processor. Trained models from ordinary
packages, named with their licences in `benchmarks/real_data.py`; no weights and no data are kept here. Calibration data
are drawn anew for each seed, and never tested on: other windows of a text, other lines, other crops (of the same three
photographs for the detector, of other photographs for the classifier), other clips.

What stands in no table was not run; the last column says on how many seeds a row rests. Of one seed, differences of a
few points mean nothing. Where the dense model has no labels to be measured by, it is the measure itself.

*Trained* is what follows a cut or a refit: {STEPS} steps or more of AdamW at {RATE:g} on the samples that were
calibrated on, in whole runs through them, by the task's own loss (against the dense model's answers where there are no
labels), on the first draw of samples alone."""

BENCHMARK = Benchmark(
    "real_models",
    page,
    cases=cases,
    arguments={
        "--models": {"type": Path, "default": os.environ.get(PLACE), "help": "the folder of the unpacked packages"},
        "--seeds": {"type": int, "default": 1},
    },
    packages=("transformers", "torchvision", "ultralytics"),
)

if __name__ == "__main__":
    main(BENCHMARK)
