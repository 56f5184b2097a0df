"""Every format that nervure reads: small good files of each, made by the library, and the reader that users call."""

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nervure
from benchmarks import torture_mutants as mutants
from benchmarks import torture_uses as uses
from benchmarks.torture_mutants import Mutator
from benchmarks.torture_seeds import (
    RECIPE,
    STUDY,
    answers,
    continue_training,
    copy_of,
    dataset,
    evaluate_file,
    example,
    latencies,
    model,
    probe,
    read_corrupted,
    recipe,
    run_again,
    save_cells,
    save_cifar,
    save_corrupted,
    save_idx,
    save_images,
    save_named,
    save_pruned,
    save_results,
    save_states,
    save_stats,
    save_tiny,
    survey,
    unfinished_run,
    write,
)
from nervure import Plan
from nervure.budget.latency_table import LatencyTable
from nervure.core.files import read_json, write_json
from nervure.errors import NervureError
from nervure.export.saving import load_state, read_header
from nervure.methods.snacs.survey import ConnectivityEvidence
from nervure.recipe.results import read_outcomes
from nervure.report import Report

JSON: tuple[Mutator, ...] = (*(mutants.json_value,) * 6, *(mutants.sealed_json,) * 6)
PLAIN_JSON: tuple[Mutator, ...] = (mutants.json_value,) * 10
TENSORS: tuple[Mutator, ...] = (
    *(mutants.inner_header,) * 4, *(mutants.sealed_header,) * 4, *(mutants.outer_header,) * 3, mutants.metadata_words
)  # fmt: skip
TOML: tuple[Mutator, ...] = (mutants.toml_value,) * 10


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how good files of it are made, and how one is read.

    Attributes:
        name: in words.
        make: writes good files to a folder.
        read: the value in a folder like that, by the call that users make, or what they do with it.
        mutators: beside those for any bytes.
        is_sealed: whether the library wrote it with a checksum: a changed value must not pass.
        share: of the campaign, relative to the others.
        parts: whether a value may lack some of its items: lines that were cut short are computed again.
        has_several: whether each folder that ``make`` makes is a good one.
        may_be_refused: whether there are good files that must not be read: those that name code of their author.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    mutators: tuple[Mutator, ...] = ()
    is_sealed: bool = True
    share: int = 4
    parts: bool = False
    may_be_refused: bool = False
    has_several: bool = False


TOLD = (NervureError, click.ClickException)
"""How nervure tells what is wrong, in Python and on the command line."""


# -- values ----------------------------------------------------------------------------------------------------------


def told(value: Any) -> Any:
    """A value as plain data that can be compared: tensors by their bytes, modules by their state."""
    match value:
        case Tensor():
            raw = value.detach().contiguous().flatten().view(torch.uint8) if value.numel() else value
            return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]}"
        case nn.Module():
            return [str(value), told(value.state_dict())]
        case Mapping():
            return {str(key): told(item) for key, item in value.items()}
        case list() | tuple():
            return [told(item) for item in value]
        case frozenset() | set():
            return sorted(map(repr, value))
        case _ if dataclasses.is_dataclass(value):
            return {f.name: told(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return repr(value)


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format(
            "pruned model",
            save_pruned,
            lambda p: nervure.load(p / "model.safetensors", model()),
            TENSORS,
            share=8,
            has_several=True,
        ),
        Format(
            "pruned model, command line",
            save_named,
            evaluate_file,
            (*TENSORS, *(mutants.sealed_source,) * 4),
            share=1,
            may_be_refused=True,
            has_several=True,
        ),
        Format(
            "header of a pruned model",
            save_pruned,
            lambda p: read_header(p / "model.safetensors"),
            TENSORS,
            has_several=True,
        ),
        Format(
            "state",
            save_states,
            lambda p: load_state(p / "state.safetensors", copy.deepcopy(model())),
            TENSORS,
            share=6,
            has_several=True,
        ),
        Format(
            "plain safetensors",
            lambda p: save_file(dict(model().state_dict()), p / "state.safetensors"),
            lambda p: load_state(p / "state.safetensors", copy.deepcopy(model())),
            TENSORS,
            is_sealed=False,
        ),
        Format("checkpoint", continue_training, continue_training, TENSORS),
        Format("stats", save_stats, lambda p: nervure.Stats.load(p / "stats.safetensors"), TENSORS),
        Format(
            "survey",
            lambda p: survey().save(p / "connectivity.safetensors"),
            lambda p: ConnectivityEvidence.load(p / "connectivity.safetensors"),
            TENSORS,
        ),
        Format("cells of a survey", save_cells, survey, TENSORS, share=1),
        Format("answers", lambda p: answers(p, note=True), answers, TENSORS),
        Format(
            "graph",
            lambda p: write_json(p / "graph.json", nervure.trace(model(), example()).to_json()),
            lambda p: nervure.Graph.from_json(read_json(p / "graph.json")),
            JSON,
            share=8,
        ),
        Format("plan", copy_of("plan.json"), lambda p: Plan.from_json(read_json(p / "plan.json")), JSON, share=6),
        Format(
            "table of latencies",
            lambda p: write_json(p / "table.json", latencies().to_json()),
            lambda p: LatencyTable.from_json(read_json(p / "table.json")),
            JSON,
        ),
        Format("results", save_results, lambda p: list(read_outcomes(p / "results.jsonl")), JSON, parts=True),
        Format("report", copy_of("report.json"), lambda p: Report.load(p / "report.json"), JSON),
        Format(
            "recipe (TOML)",
            lambda p: write(p / "recipe.toml", RECIPE),
            lambda p: nervure.Recipe.from_toml(p / "recipe.toml"),
            TOML,
            is_sealed=False,
        ),
        Format(
            "recipe (JSON)",
            lambda p: write(p / "recipe.json", json.dumps(recipe().to_dict())),
            lambda p: nervure.Recipe.from_json((p / "recipe.json").read_text(errors="surrogateescape")),
            PLAIN_JSON,
            is_sealed=False,
        ),
        Format(
            "study",
            lambda p: write(p / "study.toml", STUDY),
            lambda p: nervure.Study.from_toml(p / "study.toml"),
            TOML,
            is_sealed=False,
        ),
        Format("idx", lambda p: save_idx(p, packed=False), dataset("fashion-mnist"), is_sealed=False),
        Format(
            "idx, gzipped",
            lambda p: save_idx(p, packed=True),
            dataset("fashion-mnist"),
            (mutants.inside_gzip,) * 8,
            is_sealed=False,
        ),
        Format(
            "CIFAR, pickled",
            lambda p: save_cifar(p, pickled=True),
            dataset("cifar10"),
            (mutants.pickle_opcode,) * 15,
            is_sealed=False,
            share=8,
        ),
        Format("CIFAR, binary", lambda p: save_cifar(p, pickled=False), dataset("cifar10"), is_sealed=False, share=2),
        Format("folder of images", save_images, dataset("folder"), is_sealed=False),
        Format("Tiny ImageNet", save_tiny, dataset("tiny-imagenet"), is_sealed=False, share=1),
        Format("corrupted set", save_corrupted, read_corrupted, is_sealed=False),
        Format("probe of a run", copy_of("model.safetensors", "probe.safetensors"), probe, TENSORS, share=2),
        Format("folder of a run", unfinished_run, run_again, (*JSON, *TENSORS), share=1),
        Format("plan, carried out", uses.save_plans, uses.carry_out, JSON, share=6, has_several=True),
        Format("table of latencies, asked", uses.save_table, uses.predict, JSON, share=2),
        Format("report, shown", copy_of("report.json"), uses.show_report, JSON, share=2),
        Format("results, shown", save_results, uses.show_results, JSON, share=2, is_sealed=False),
        Format("stats, used", save_stats, uses.plan_by_stats, TENSORS, share=2),
        Format("survey, used", uses.save_survey, uses.decide_by_survey, TENSORS, share=2),
    )
}


def seeds_of(name: str, folder: Path) -> list[dict[str, bytes]]:
    """The good files of a format: for each seed their contents by path."""
    made = folder / name
    made.mkdir(parents=True)
    FORMATS[name].make(made)
    seeds = sorted(made.iterdir()) if FORMATS[name].has_several else [made]
    return [dict(_contents(seed)) for seed in seeds]


def _contents(folder: Path) -> Iterable[tuple[str, bytes]]:
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(place, name)
            yield str(path.relative_to(folder)), path.read_bytes()


def lacks_only(value: Any, whole: Any) -> bool:
    """Whether a list holds nothing but items of another."""
    return isinstance(value, list) and all(item in whole for item in value)


def mutators_of(name: str) -> Iterator[Mutator]:
    """Those for any bytes, and those of the format."""
    yield from mutants.ANYWHERE
    yield from FORMATS[name].mutators
