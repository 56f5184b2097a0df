"""Hard stops: runs, trainings, sweeps and comparisons that are killed, or find the disk full, and go on."""

import contextlib
import copy
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, final

from safetensors.torch import load_file

import nervure
from benchmarks.torture_formats import told
from benchmarks.torture_runner import Found
from benchmarks.torture_seeds import data, in_this_process, masks, model
from nervure.export import save_state
from nervure.recipe import steps as steps_module
from tests.faults import Action, Ended, in_child, record

RECIPE = """
[model]
name = "resnet8"
options = { width = 0.25 }
[data]
name = "digits"
train_samples = 64
test_samples = 40
[train]
epochs = 2
[prune]
method = "Activation"
samples = 32
[recover]
epochs = 1
recalibrate = 1
[evaluate]
latency = []
shift = []
[run]
threads = 1
twins = false
[sweep]
keeps = [0.5, 0.25]
"""
STUDY = """
[study]
seeds = [0]
samples = 32
baseline = "Random"
dense_plus = false
[data]
name = "digits"
train_samples = 64
test_samples = 40
[train]
epochs = 1
[recover]
epochs = 1
[[network]]
name = "resnet8"
options = { width = 0.25 }
[[method]]
name = "Random"
[[method]]
name = "MagnitudeMasks"
"""
TIMES = frozenset(
    {
        "seconds", "date", "provenance", "interrupted", "folder", "sha256", "checksum", "seal", "timings", "latency",
        "speedup", "speedup_low", "speedup_high", "facts",
    }
)  # fmt: skip
"""Keys of what depends on the clock, the place, or on such values."""
FULL_EVERY = 26
"""One attempt of so many finds the disk full: 20 of 520."""


def train(folder: Path) -> None:
    """Three epochs with a checkpoint, and what came of them."""
    network = copy.deepcopy(model())
    options = {"epochs": 3, "lr": 0.01, "masks": masks(), "checkpoint": folder / "training.safetensors"}
    nervure.train(network, data(), validation=data(), progress=False, **options)
    save_state(folder / "trained.safetensors", network)


def run(folder: Path) -> None:
    """A whole run."""
    nervure.run(nervure.Recipe.from_toml(RECIPE), folder=folder / "run", progress=False)


def run_with_twins(folder: Path) -> None:
    """A whole run of a method that rewires, with its twins."""
    recipe = nervure.Recipe.from_toml(RECIPE.replace("twins = false", "").replace('"Activation"', '"SET"'))
    nervure.run(recipe, folder=folder / "run", progress=False)


def sweep(folder: Path) -> None:
    """Two budgets."""
    nervure.sweep(nervure.Recipe.from_toml(RECIPE), folder=folder / "sweep", progress=False)


def compare(folder: Path) -> None:
    """Two methods."""
    nervure.compare(nervure.Study.from_toml(STUDY), folder=folder / "study", progress=False)


COMMANDS: Mapping[str, Callable[[Path], None]] = {
    f.__name__.replace("_", " "): f for f in (train, run, run_with_twins, sweep, compare)
}
SHARES = (2, 4, 1, 2, 2)


class Undisturbed(NamedTuple):
    """A command that nothing happened to: how many events it took, how long, and what it left."""

    events: int
    seconds: float
    left: Mapping[str, Any]


@final
class Stops:
    """The part of the campaign that stops commands."""

    name, number, size, seconds = "stops", 520, 10, 60.0
    meanings: Mapping[str, str] = {
        "equal": "stopped, gone on with, and the same tensors and reports as if nothing had happened",
        "not reached": "ended before its stop",
    }

    def __init__(self, commands: Iterable[str] = tuple(COMMANDS)) -> None:
        self.commands = list(commands)
        self.undisturbed: dict[str, Undisturbed] = {}

    def prepare(self, folder: Path) -> None:
        """Do each command twice, undisturbed: here, which imports all it needs, and in a child that counts."""
        steps_module._in_fresh_process = in_this_process
        for name in self.commands:
            here, there, notes = folder / f"{name} here", folder / f"{name} there", folder / f"{name}.json"
            here.mkdir()
            there.mkdir()
            with warnings.catch_warnings(action="ignore"):
                COMMANDS[name](here)
            ended = in_child(partial(_recorded, COMMANDS[name], there, notes), folder)
            left = left_in(there)
            if ended.code or left != left_in(here):
                raise RuntimeError(f"{name} is not the same twice: {ended.said}{differing(left, left_in(here))}")
            self.undisturbed[name] = Undisturbed(*json.loads(notes.read_text()), left)

    def _drawn(self, seed: int, number: int) -> tuple[Random, str]:
        draw = Random(f"stops {seed} {number}")
        shares = [SHARES[list(COMMANDS).index(name)] for name in self.commands]
        return draw, draw.choices(self.commands, shares)[0]

    def kind(self, seed: int, number: int) -> str:
        """The command, and what happens to it."""
        return f"{self._drawn(seed, number)[1]}, {'disk full' if number % FULL_EVERY == 0 else 'killed'}"

    def stops(self, seed: int, number: int) -> list[dict[str, Any]]:
        """What happens to the command, time after time, as arguments of ``in_child``."""
        draw, name = self._drawn(seed, number)
        whole = self.undisturbed[name]
        if number % FULL_EVERY == 0:
            return [{"at": draw.randrange(whole.events), "action": Action.FULL}]
        # Seldom stopped twice; a quarter of all stops in the first moments.
        often = draw.choice((1, 1, 1, 2))
        events = [draw.randrange(draw.choice((whole.events, whole.events, whole.events, 8))) for _ in range(often)]
        if draw.random() < 0.35:
            return [{"after": draw.uniform(0, 1.1 * whole.seconds)} for _ in events]
        return [{"at": at, "action": draw.choice((Action.KILL,) * 4 + (Action.TERM,))} for at in events]

    def attempt(self, seed: int, number: int, folder: Path) -> Found:
        """Stop a command, go on with it, and compare."""
        _, name = self._drawn(seed, number)
        kind, place = self.kind(seed, number), folder / "stopped"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        work, stopped = partial(COMMANDS[name], place), False
        for stop in self.stops(seed, number):
            ended = _ended(work, place, **stop)
            stopped |= ended.code != 0
            if ended.code > 0 and not is_ours(ended):
                return Found(kind, "foreign exception", where(ended), f"{self.show(seed, number)}: {_last(ended)}")
        ended = _ended(work, place)
        if ended.code:
            return Found(kind, "not resumed", where(ended), f"{self.show(seed, number)}: {_last(ended)}")
        left, expected = left_in(place), self.undisturbed[name].left
        if left.keys() > expected.keys() and all(left[name] == expected[name] for name in expected):
            more = sorted(left.keys() - expected.keys())
            return Found(kind, "litter", "", f"{self.show(seed, number)}: {more}")
        if left != expected:
            return Found(kind, "other result", "", f"{self.show(seed, number)}: {differing(left, expected)}")
        return Found(kind, "equal" if stopped else "not reached")

    def show(self, seed: int, number: int) -> str:
        """The command and its stops, in words."""
        stops = [
            ", ".join(f"{k} {getattr(v, 'name', v)}" for k, v in stop.items()) for stop in self.stops(seed, number)
        ]
        return f"{self._drawn(seed, number)[1]} ({'; then '.join(stops)})"


def _recorded(work: Callable[[Path], None], folder: Path, notes: Path) -> None:
    begun = time.monotonic()
    events = record(partial(work, folder), folder)
    notes.write_text(json.dumps([len(events), time.monotonic() - begun]))


def _ended(work: Callable[[], None], folder: Path, **stop: Any) -> Ended:
    with warnings.catch_warnings(action="ignore"):
        return in_child(work, folder, **stop)


def _last(ended: Ended) -> str:
    lines = [line for line in ended.said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {ended.code}"


def is_ours(ended: Ended) -> bool:
    """Whether a command that failed told it in an error of nervure's own."""
    return _last(ended).startswith("nervure.errors.")


def where(ended: Ended) -> str:
    """The last place in the package of the traceback that was told."""
    places = [line for line in ended.said.splitlines() if "/nervure/" in line and line.strip().startswith("File ")]
    if not places:
        return ""
    file, _, rest = places[-1].partition('", line ')
    return f"nervure/{file.rpartition('/nervure/')[2]}:{rest.partition(',')[0]}"


# -- what a command left ---------------------------------------------------------------------------------------------


def left_in(folder: Path) -> dict[str, Any]:
    """Every file below a folder by path: tensors and plain data without times; of pages only that they are there."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    with contextlib.suppress(ValueError):
        if path.suffix == ".safetensors":
            return told(load_file(path))
        if path.suffix == ".json":
            return timeless(json.loads(path.read_text()))
        if path.suffix == ".jsonl":
            rows = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
            return {str(row.get("key", number)): row for number, row in enumerate(rows)}
    return path.read_text() if path.suffix == ".toml" else ""


def timeless(value: Any) -> Any:
    """Plain data without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differing(left: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The files that differ, and in what the first one does."""
    from benchmarks.torture_files import difference_of

    more, less = sorted(left.keys() - expected.keys()), sorted(expected.keys() - left.keys())
    changed = [name for name in left if name in expected and left[name] != expected[name]]
    first = f": {difference_of(left[changed[0]], expected[changed[0]])}" if changed else ""
    return f"too many: {more}; missing: {less}; changed: {changed}{first}"
