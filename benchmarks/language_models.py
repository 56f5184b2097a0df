"""A language model at three quarters of its parameters: as cut, refitted, and recovered on 512 windows of one text.

Run ``python benchmarks/language_models.py --models FOLDER`` (or set ``NERVURE_REAL_MODELS``); one thread, about half an
hour a line. The model and the texts are those of ``benchmarks/real_data.py``: SmolLM2-135M-Instruct, a FAQ on which
everything is calibrated and trained, and a manual and the Bible, which nothing has seen. Perplexity on 12 windows each.
The control is the dense model, trained alike. Writes ``docs/results/language_models.*``.
"""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_data import Batches, Subject, language_model
from benchmarks.real_models import PLACE
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import Activation, Depth, Magnitude, Pruned, Random, Refit, prune, refit, train
from nervure.graph.copies import copy_model
from nervure.training import with_distillation

KEEP, WINDOWS, TESTED = 0.75, 512, 12
"""Of the parameters; windows that are recovered on; windows that are tested of each text."""
HOME, SECOND = "faq", "manual"
MEASURED, FITTED = 64, 16
"""Windows that methods and a refit look at, as ``nervure prune`` has it."""
LAYERS = 9
"""Of 30: with so many the layers alone are a quarter of the parameters, but for one percent."""
FEWER = 4
RECOVERY: Mapping[str, Any] = {"lr": 3e-4, "optimizer": "adamw", "schedule": "onecycle", "precision": "bf16"}
STAGES = ("cut", "refit", "trained")


def units(method: type, found: Any, subject: Subject, batches: Batches, seed: int) -> Pruned:
    """The same number of units of each MLP, so that the whole model keeps its share of the dense one's parameters."""
    now = count(found.model if isinstance(found, Pruned) else found)
    chosen = method(keep=KEEP * count(subject.model) / now, budget="params", scope="uniform")
    return prune(
        found, subject.example, chosen, data=batches, task=subject.objective, refit=False, only=["*.mlp*"], seed=seed,
        progress=False,
    )  # fmt: skip


def layers(drop: int, subject: Subject, batches: Batches, seed: int) -> Pruned:
    """Whole layers, those whose output is most like their input."""
    return prune(
        subject.model, subject.example, Depth(score="influence", granularity="whole", drop=drop), data=batches,
        task=subject.objective, refit=False, seed=seed, progress=False,
    )  # fmt: skip


def layers_and_units(subject: Subject, batches: Batches, seed: int) -> Pruned:
    """A few layers, and units of the others."""
    return units(Activation, layers(FEWER, subject, batches, seed), subject, batches, seed)


def only_units(method: type, subject: Subject, batches: Batches, seed: int) -> Pruned:
    """Units of all layers."""
    return units(method, subject.model, subject, batches, seed)


TWO_TEXTS = "loud units, two texts"
ARMS: Mapping[str, Callable[[Subject, Batches, int], Pruned] | None] = {
    "loud units": partial(only_units, Activation),
    "dense, trained alike": None,
    TWO_TEXTS: partial(only_units, Activation),
    "units of large weights": partial(only_units, Magnitude),
    f"{FEWER} layers, then loud units": layers_and_units,
    f"{LAYERS} layers": partial(layers, LAYERS),
    "random units": partial(only_units, Random),
}


def count(model: nn.Module) -> int:
    """Parameters, those that are shared once."""
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def load(folder: Path) -> Subject:
    """The model, once."""
    return language_model(folder, TESTED)


def run(arm: str, seed: int, options: Namespace) -> Row:
    """One line: a model cut, refitted and recovered, with what each takes."""
    subject = load(options.models)
    windows = windows_of((HOME, SECOND) if arm == TWO_TEXTS else (HOME,), subject, seed)
    row = Row(key=[arm, seed], dense=subject.score(subject.model), seconds={})
    make, model = ARMS[arm], copy_model(subject.model)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = work()
        row["seconds"][stage] = round(time.process_time() - start)
        return found

    if make is not None:
        few = windows[: MEASURED // len(windows[0]["input_ids"])]
        pruned = timed("cut", lambda: make(subject, few, seed))
        row["cut"] = subject.score(pruned.model)
        how = Refit(samples=FITTED, seed=seed)
        fitted = timed(
            "refit",
            lambda: refit(pruned, few, reference=subject.model, task=subject.objective, how=how, progress=False),
        )
        model = fitted.result.model
        row["refit"] = subject.score(model)
    timed("trained", lambda: recover(subject, model, windows, seed))
    return row | {"trained": subject.score(model.eval()), "params": count(model) / count(subject.model)}


def windows_of(texts: tuple[str, ...], subject: Subject, seed: int) -> Batches:
    """So many windows of all texts together, in turn."""
    parts = [subject.domains[text](seed, WINDOWS // len(texts)) for text in texts]
    return [batch for batches in zip(*parts, strict=True) for batch in batches]


def recover(subject: Subject, model: nn.Module, windows: Batches, seed: int) -> None:
    """Train on each window once, half by the next token and half by what the dense model thinks of all tokens."""
    pairs = [batch | {"input_ids": part} for batch in windows for part in batch["input_ids"].split(2)]
    objective = with_distillation(subject.objective, subject.model, 0.5, temperature=1.0)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    data = [pairs[place] for place in order]
    train(model, data, epochs=1, objective=objective, seed=seed, progress=False, **RECOVERY)


def cases(options: Namespace) -> Iterator[Case]:
    """Seeds, then arms."""
    if not options.models:
        print(f"Nothing is run: say where the models are, --models FOLDER or {PLACE}; see benchmarks/real_data.py.")
        return
    for seed in range(options.seeds):
        for arm in ARMS:
            yield (arm, seed), partial(run, arm, seed, options)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    texts = list(rows[0]["dense"]) if rows else []
    titles = ["what left", "parameters", *(f"{text}: {stage}" for text in texts for stage in STAGES)]
    titles += [f"{stage} takes" for stage in STAGES] + ["seeds"]
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    for arm in ARMS:
        mine = [row for row in rows if row["key"][0] == arm]
        if not mine:
            continue
        cells = [f"{100 * fmean(row['params'] for row in mine):.0f} %"]
        for text in texts:
            cells += [_mean([row[s][text] for row in mine if s in row], ".1f") for s in STAGES]
        cells += [_mean([row["seconds"][s] for row in mine if s in row["seconds"]], ".0f", " s") for s in STAGES]
        lines.append(f"| {' | '.join([arm, *cells, str(len(mine))])} |")
    dense = ", ".join(f"{text} {value:.1f}" for text, value in rows[0]["dense"].items()) if rows else "–"
    return "\n".join([*INTRODUCTION.splitlines(), "", f"Dense: {dense}.", "", *lines]) + "\n"


def _mean(values: list[float], form: str, unit: str = "") -> str:
    return f"{fmean(values):{form}}{unit}" if values else "–"


INTRODUCTION = """# A smaller language model

`python benchmarks/language_models.py --models FOLDER`; processor seconds of one thread. SmolLM2-135M-Instruct at three
quarters of its parameters. Perplexity on a text like that it was calibrated and trained on (the FAQ), and on two
others, of 12 windows of 256 tokens each.

*Trained*: each of 512 windows of the FAQ once, two at a time, AdamW at 3e-4 in bfloat16, half by the next token and
half by what the dense model thinks of all tokens, as `nervure prune hf:FOLDER --data text:FILE --epochs 1` does; with
two texts, 256 windows of each. What training alone does on this text is the line of the dense model. Its settings were
taken as they first were, and not chosen by these figures."""

BENCHMARK = Benchmark(
    "language_models",
    page,
    cases=cases,
    arguments={
        "--models": {"type": Path, "default": os.environ.get(PLACE), "help": "the folder of the unpacked packages"},
        "--seeds": {"type": int, "default": 1},
    },
    packages=("transformers",),
)

if __name__ == "__main__":
    main(BENCHMARK)
