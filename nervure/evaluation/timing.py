"""Timing one network, cut in many ways, on an engine: done once on a machine, and kept on disk.

Nothing is timed twice: a table that was begun goes on where it was, and a plan that was checked is known.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from nervure.budget.latency_table import LatencyTable, Sample, fit_table
from nervure.core.annotations import FilePath
from nervure.core.check import checked, require_positive
from nervure.core.collectives import done_by_first
from nervure.core.files import read_json, require_folder, write_json
from nervure.core.inputs import Inputs
from nervure.core.progress import progress as progressing
from nervure.core.schema import Rounds, Threads
from nervure.engines import ENGINES, EngineName, require_engine
from nervure.errors import FileError
from nervure.evaluation.latency import Built, Latency, in_turn
from nervure.graph.models import device_of
from nervure.graph.types import Block, Graph
from nervure.plan import Cut, Drop, Keep, Plan
from nervure.surgery.apply import apply
from nervure.tracing import trace

SAMPLES = 32
TOGETHER = 8
"""Cut networks that are timed in turn with the dense one."""
ROUNDS, SECONDS = 15, 0.5
CHECK_ROUNDS, CHECK_SECONDS = 40, 1.0
STEPS = (16, 1, 16, 8)
"""In turn, what sampled widths are multiples of."""
LEAST_LEVEL, SPREAD, DROPPED = 0.15, 0.35, 0.3
VERSIONS = "versions"


@checked
def latency_table(
    model: nn.Module,
    example: Any,
    *,
    engine: EngineName = "eager",
    graph: Graph | None = None,
    threads: Threads | None = None,
    samples: Rounds = SAMPLES,
    cache: FilePath | None = None,
    progress: bool = True,
) -> LatencyTable:
    """Times of ``model`` on an engine of this machine, from which the latency of any plan for it is predicted.

    The dense network and so many networks cut at random (every fourth without some blocks too) are made ready for the
    engine and timed. That takes minutes where the engine compiles; it is done once, and goes on where it was stopped.

    Args:
        model: the network; left as it is.
        example: see :class:`nervure.Inputs`; its batch is what is timed.
        engine: see :func:`nervure.engines.runner`.
        graph: its graph; None: it is traced.
        threads: CPU threads; None: as many as torch uses.
        samples: how many cut networks to time.
        cache: the folder where tables are kept; None: ``nervure`` in the user's folder for caches. A table of another
            machine, engine, batch or number of threads is another file; one of other versions is measured anew.
        progress: show progress.

    Raises:
        ArgumentError: there is no such engine, or ``samples`` or ``threads`` is below 1.
        MissingExtraError: the library of the engine is not installed.
        EngineError: the engine cannot take the network.
        FileError: the folder cannot be written.
    """
    return Stopwatch(model, graph or trace(model, example), Inputs.of(example), engine, threads, cache).table(
        samples=samples, progress=progress
    )


@final
@dataclass(frozen=True, eq=False)
class Stopwatch:
    """What is timed, and where times are kept; see :func:`latency_table`."""

    model: nn.Module
    graph: Graph
    inputs: Inputs
    engine: str = "eager"
    threads: int | None = None
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        require_engine(self.engine)
        if self.threads is not None:
            require_positive(self.threads, "threads")

    @cached_property
    def key(self) -> dict[str, str]:
        """What is timed, as text."""
        return {
            "engine": self.engine,
            "threads": str(self.threads or torch.get_num_threads()),
            "batch": str(self.inputs.samples),
            "network": _network(self.graph),
            "machine": machine(device_of(self.model)),
            VERSIONS: engine_versions(self.engine),
        }

    @cached_property
    def path(self) -> Path:
        """The file of the table: another one for whatever differs but versions."""
        told = json.dumps({name: value for name, value in self.key.items() if name != VERSIONS})
        folder = Path(self.cache) if self.cache is not None else cache_folder() / "latency"
        return require_folder(folder) / f"{self.engine}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"

    def table(self, *, samples: int = SAMPLES, progress: bool = True) -> LatencyTable:
        """The table, from its file or measured now; see :func:`latency_table`."""
        return done_by_first(partial(self._table, samples, progress), LatencyTable.to_json, LatencyTable.from_json)

    def _table(self, samples: int, progress: bool) -> LatencyTable:
        found = self._read_table()
        if found.rates and len(found.samples) >= samples:
            return found
        with progressing(f"timing on {self.engine}", samples - len(found.samples), enabled=progress) as advance:
            while len(found.samples) < samples:
                numbers = range(len(found.samples), min(samples, len(found.samples) + TOGETHER))
                found = self._with_more(found, [random_plan(self.graph, number) for number in numbers])
                self._keep(found)
                for _ in numbers:
                    advance()
        table = replace(fit_table(self.graph, found.key, found.dense, found.samples), checks=found.checks)
        self._keep(table)
        return table

    def ratio(self, plan: Plan) -> float:
        """The share of the dense network's time that ``plan`` takes when it is timed; it is remembered."""
        return self.ratios([plan])[0]

    def ratios(self, plans: Sequence[Plan]) -> list[float]:
        """The same for several plans, timed in turn."""
        return done_by_first(partial(self._ratios, plans), list, list)

    def _ratios(self, plans: Sequence[Plan]) -> list[float]:
        table = self._read_table()
        unknown = [plan for plan in plans if plan and table.measured_share(plan) is None]
        for first in range(0, len(unknown), TOGETHER):
            asked = unknown[first : first + TOGETHER]
            timed = self._time_plans(asked, CHECK_ROUNDS, CHECK_SECONDS)
            more = [Sample.of(plan, timed.row(str(number)).ratio) for number, plan in enumerate(asked)]
            table = replace(table, checks=(*table.checks, *more))
            self._keep(table)
        # The empty plan is the dense network.
        return [table.measured_share(plan) or 1.0 for plan in plans]

    def _with_more(self, table: LatencyTable, plans: Sequence[Plan]) -> LatencyTable:
        timed = self._time_plans(plans, ROUNDS, SECONDS)
        more = [Sample.of(plan, timed.row(str(number)).ratio) for number, plan in enumerate(plans)]
        # A machine that is disturbed is slower, never faster: of several medians the least is nearest to the truth.
        dense = min(d for d in (table.dense, timed.median("dense")) if d > 0)
        return replace(table, dense=dense, samples=(*table.samples, *more))

    @cached_property
    def _dense(self) -> Built:
        """The dense network in the engine, made ready once for all timings."""
        return Built(self.engine, self.model, self.inputs)

    def _time_plans(self, plans: Sequence[Plan], rounds: int, seconds: float) -> Latency:
        """The dense network and what ``plans`` make of it, numbered, in turn."""
        cut = {str(number): apply(self.model, self.graph, plan).eval() for number, plan in enumerate(plans)}
        built = {name: Built(self.engine, model, self.inputs) for name, model in cut.items()}
        batch, threads = int(self.key["batch"]), int(self.key["threads"])
        return Latency(tuple(in_turn({"dense": self._dense, **built}, batch, threads, rounds=rounds, seconds=seconds)))

    def _read_table(self) -> LatencyTable:
        """What the file holds, where that is about the same thing; else an empty table."""
        empty = LatencyTable(self.key, 0.0, 1, {})
        if not self.path.exists():
            return empty
        try:
            found = LatencyTable.from_json(read_json(self.path, "a table of latencies"))
        except FileError:
            # A cache that cannot be read is no loss but of time.
            return empty
        return found if found.key == self.key else empty

    def _keep(self, table: LatencyTable) -> None:
        write_json(self.path, table.to_json())


def random_plan(graph: Graph, number: int) -> Plan:
    """The ``number``-th of a fixed row of random plans: all groups smaller by about one share, some blocks gone.

    Args:
        graph: of the network.
        number: 0 or more; the same number, the same plan.
    """
    lot = np.random.default_rng(number)
    level, step = lot.uniform(LEAST_LEVEL, 1), STEPS[number % len(STEPS)]
    drops = tuple(_random_drops(graph, lot)) if number % len(STEPS) == 1 else ()
    left = {graph.block(drop.block).group for drop in drops}
    cuts = []
    for group in graph.prunable:
        share = min(1.0, level * float(np.exp(lot.normal(0, SPREAD))))
        # Small groups in quarters at least, so that they shrink too; heads one by one.
        unit = max(1, min(step, group.size // 4)) if group.kind == "channels" else 1
        size = group.round_up(max(1, round(share * group.size / unit)) * unit)
        if size < group.size and group.name not in left:
            cuts.append(Cut(group.name, Keep.of(torch.arange(group.size) < size)))
    return Plan((*cuts, *drops), graph.fingerprint)


def _random_drops(graph: Graph, lot: np.random.Generator) -> Iterator[Drop]:
    """Some blocks, none with a module of another."""
    gone: list[Block] = []
    for block in graph.blocks:
        if not block.pinned and lot.uniform() < DROPPED and not any(_meet(block, other) for other in gone):
            gone.append(block)
            yield Drop(block.name)


def _meet(one: Block, other: Block) -> bool:
    pairs = ((f"{a}.", f"{b}.") for a in one.modules for b in other.modules)
    return any(a.startswith(b) or b.startswith(a) for a, b in pairs)


def cache_folder() -> Path:
    """Where nervure keeps what can be measured again: ``nervure`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nervure"


def machine(device: torch.device) -> str:
    """What computes, in words: the accelerator, or the processor and its instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} processors, {torch.backends.cpu.get_cpu_capability()}"


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def engine_versions(engine: str) -> str:
    """The libraries that an engine runs networks with, and their versions, in a line."""
    libraries: Mapping[str, str] = {"torch": torch.__version__}
    more = {name.partition(".")[0]: _version(name.partition(".")[0]) for name in ENGINES[engine].libraries}
    return ", ".join(f"{name} {version}" for name, version in sorted({**libraries, **more}.items()))


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _network(graph: Graph) -> str:
    """A digest of the network and the size of its input."""
    works = [[w.layer, w.op, w.fixed] for w in graph.work]
    return f"{graph.fingerprint}-{hashlib.sha256(json.dumps(works).encode()).hexdigest()[:8]}"
