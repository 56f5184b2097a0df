"""Small pieces of work that may be killed anywhere, and what must be equal however often that happened."""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from nervure.recipe import Recipe, Study, compare, run, sweep
from nervure.recipe import steps as steps_module
from nervure.recipe.fresh import difference
from nervure.training import train
from nervure.zoo import build

NETWORK: Mapping[str, Any] = {"name": "resnet8", "options": {"width": 0.125, "stem_stride": 2}}
DATA: Mapping[str, Any] = {"name": "digits", "train_samples": 64, "test_samples": 30}
RECIPE: Mapping[str, Any] = {
    "model": NETWORK,
    "data": DATA,
    "train": {"epochs": 2},
    "prune": {"method": "Taylor", "samples": 32},
    "recover": {"epochs": 1},
    "evaluate": {"latency": [], "shift": []},
}
TIMES = frozenset({"seconds", "date", "latency", "latencies", "speedup", "interrupted", "sha256", "commit"})
"""Keys of what differs from time to time."""
TIME = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:]+\+00:00(, )?|(?<=commit: ).*$"
    r"|(?<=\| seconds \| )[\d.]+|[\d.]+(?= \| \d+ \|$)|(?<=<td>seconds</td><td>)[\d.]+"
    r"|[\d.]+(?=</td><td>\d+</td></tr>)",
    re.MULTILINE,
)
"""Times in pages."""


def run_recipe(folder: Path) -> None:
    """A whole run, whose saved file is looked at in this process: a new one takes seconds."""
    steps_module._in_fresh_process = difference
    run(Recipe.from_dict(RECIPE), folder=folder / "run", progress=False)


def sweep_recipe(folder: Path) -> None:
    """Two budgets and the dense twin."""
    sweep(Recipe.from_dict(RECIPE | {"sweep": {"keeps": [0.6, 0.4]}}), folder=folder / "sweep", progress=False)


def compare_methods(folder: Path) -> None:
    """Two methods on one network."""
    study = {
        "study": {"seeds": [0], "keeps": [0.5], "samples": 32},
        "data": DATA,
        "train": {"epochs": 1},
        "recover": {"epochs": 1},
        "network": [NETWORK],
        "method": [{"name": "Random"}, {"name": "Taylor"}],
    }
    compare(Study.from_dict(study), folder=folder / "comparison", progress=False)


def train_model(folder: Path) -> None:
    """A training with a checkpoint, which leaves its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("resnet8", width=0.125, stem_stride=2, in_channels=1)
        data = [(torch.randn(8, 1, 8, 8), torch.arange(8)) for _ in range(2)]
    train(model, data, epochs=3, checkpoint=folder / "training.safetensors", progress=False)


WORKS: Mapping[str, Callable[[Path], None]] = {
    "run": run_recipe,
    "train": train_model,
    "sweep": sweep_recipe,
    "compare": compare_methods,
}


def facts(folder: Path) -> dict[str, Any]:
    """What work left below a folder, file by file, without what differs from time to time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _told(path, folder) for path in files}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lines that tell how what work left differs from what other work left; empty where it does not."""
    lines = [f"{name} is left once only" for name in one.keys() ^ other.keys()]
    for name in one.keys() & other.keys():
        texts = [
            value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
            for value in (one[name], other[name])
        ]
        if one[name] != other[name]:
            lines += [name, *difflib.unified_diff(*(text.splitlines() for text in texts), n=0, lineterm="")][:20]
    return lines


def _told(path: Path, folder: Path) -> Any:
    if path.suffix == ".safetensors":
        return {n: (t.dtype, t.shape, t.contiguous().view(-1).tolist()) for n, t in load_file(path).items()}
    text = path.read_text(encoding="utf-8").replace(str(folder), "")
    if path.suffix == ".json":
        return _timeless(json.loads(text))
    if path.suffix == ".jsonl":
        # A trial that failed is done again, after the others, and its earlier line stays.
        rows = [_timeless(row) for row in map(json.loads, text.splitlines()) if not row.get("error")]
        return sorted(rows, key=json.dumps)
    return re.sub(TIME, "", text)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(held) for key, held in value.items() if key not in TIMES}
    if isinstance(value, str):
        return re.sub(TIME, "", value)
    return [_timeless(held) for held in value] if isinstance(value, list) else value
