"""How long models take, measured so that the comparison is fair.

Models are timed in turn, round after round, within one run: a machine that warms up or gets busy slows all of them.
What counts are medians with quartiles, and the ratio to the first model *within each round*.
"""

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import nn

from nervure.core.check import checked
from nervure.core.collectives import done_by_first, require_unsharded
from nervure.core.inputs import Inputs
from nervure.core.markup import listing
from nervure.core.schema import Length, Rounds, Seconds, Threads, Warmup, convert
from nervure.engines import ENGINES, EngineName, Program, Runner, prepare, require_engine
from nervure.engines.engine import FLOAT32, threads_of_torch
from nervure.errors import ArgumentError
from nervure.graph.models import device_of, evaluating
from nervure.graph.preserve import restore_after

# The clock and the call around it cost about a microsecond: one timing should last a thousand times as long.
SHORTEST_TIMING = 1e-3
MOST_ROUNDS = 1000
WARMUP = 3


@final
@dataclass(frozen=True, slots=True)
class Timing:
    """One model at one batch size and thread count. Times are seconds for one forward pass of the whole batch.

    Attributes:
        name: the name the model was given.
        batch: samples per forward pass.
        threads: CPU threads.
        median: median time over the rounds.
        quartiles: first and third quartile of the time.
        ratio: median over the rounds of this time divided by the first model's time in the same round and engine.
        ratio_quartiles: first and third quartile of that ratio.
        rounds: how many timings each of these numbers comes from.
        engine: what ran it.
    """

    name: str
    batch: int
    threads: int
    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    engine: str = "eager"


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """A table of timings; the first model is the one the others are compared with, engine by engine."""

    rows: tuple[Timing, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that were timed, in order."""
        return tuple(dict.fromkeys(row.engine for row in self.rows))

    def row(self, name: str, batch: int | None = None, threads: int | None = None, engine: str | None = None) -> Timing:
        """The row of one model; by default at the first engine, batch size and thread count measured.

        Raises:
            ArgumentError: if nothing of the kind was measured.
        """
        asked = {"name": name, "batch": batch, "threads": threads, "engine": engine}
        for row in self.rows:
            if all(value in (None, getattr(row, key)) for key, value in asked.items()):
                return row
        known = ", ".join(f"{r.name!r} (batch {r.batch}, threads {r.threads}, {r.engine})" for r in self.rows)
        raise ArgumentError(
            f"{name!r} at batch={batch}, threads={threads}, engine={engine} was not measured; there are: {known}."
        )

    def median(
        self, name: str, batch: int | None = None, threads: int | None = None, engine: str | None = None
    ) -> float:
        """Median seconds of one forward pass."""
        return self.row(name, batch, threads, engine).median

    def speedup(
        self, name: str, batch: int | None = None, threads: int | None = None, engine: str | None = None
    ) -> float:
        """How many times faster than the first model in the same engine; above 1 is faster."""
        return 1 / self.row(name, batch, threads, engine).ratio

    def to_json(self) -> dict[str, Any]:
        """Plain data: the engines and the rows."""
        return {"engines": list(self.engines), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Latency":
        """Inverse of :meth:`to_json`; raises :class:`FileError` on anything else."""
        return cls(tuple(convert(row, Timing, "this row of a table of timings") for row in data["rows"]))

    def __str__(self) -> str:
        width = max((len(engine) for engine in self.engines), default=0)
        lines = [f"{'model':<20} {'engine':<{width}} batch threads   median ms  quartiles ms         time / first"]
        for row in self.rows:
            low, high = (1e3 * q for q in row.quartiles)
            first = self.median(self.rows[0].name, row.batch, row.threads, row.engine)
            # Of the times as they are shown: whoever divides them finds the same.
            factor = round(1e3 * row.median, 3) / (round(1e3 * first, 3) or math.nan)
            lines.append(
                f"{row.name:<20} {row.engine:<{width}} {row.batch:>5} {row.threads:>7} {1e3 * row.median:>11.3f}"
                f"  {low:>8.3f} .. {high:<8.3f} {factor:>6.3f}"
            )
        return listing(lines)


@checked
def latency(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batch_sizes: Sequence[Length] = (1,),
    threads: Sequence[Threads] = (1,),
    engine: EngineName | Sequence[EngineName] = "eager",
    precision: str = FLOAT32,
    rounds: Rounds = 20,
    seconds: Seconds = 1.0,
    warmup: Warmup = WARMUP,
) -> Latency:
    """Time models against each other, in turn within one run.

    Models run in evaluation mode without gradients, each on the device it is on, where the engine runs there; modes and
    thread count come back. What an engine does once (export, compile, optimise) is done before, and not timed. Engines
    are measured one after the other: threads of one that still wait for work would take the processor from the next.

    In a process group the first process measures while the others wait, and all get what it found.

    Args:
        models: by name; the first is the one the others are compared with.
        example: see :class:`nervure.Inputs`. Samples are repeated or left out to make each batch size.
        batch_sizes: samples per forward pass, one part of the table each.
        threads: CPU threads, one part of the table each.
        engine: ``"eager"``: the modules as they are; ``"compile"``: through torch.compile; ``"onnxruntime"`` or
            ``"openvino"``, on the CPU; or several of them.
        precision: that of the computation, see :func:`nervure.engines.runner`.
        rounds: timings per row at least, 3 or more.
        seconds: go on for this long per batch size and thread count, if the rounds are done sooner.
        warmup: forward passes of each model before the first timing.

    Raises:
        ArgumentError: if there is no model, fewer than 3 rounds, an unknown engine or precision, a batch size or thread
            count below 1, or an example without a tensor that has samples.
        MissingExtraError: if the library of an engine is not installed.
        EngineError: if an engine cannot take a model.
    """
    for name, model in models.items():
        require_unsharded(model.parameters(), f"timing {name!r} in one process")
    engines, inputs = (engine,) if isinstance(engine, str) else tuple(engine), Inputs.of(example)
    if not engines:
        raise ArgumentError("engine is empty; name at least one.")
    _require_measurable(models, batch_sizes, threads, rounds, seconds, warmup)
    for name in engines:
        require_engine(name, precision)

    def measured() -> Latency:
        rows: list[Timing] = []
        for name in engines:
            built = {key: Built(name, model, inputs, precision) for key, model in models.items()}
            for batch, count in itertools.product(batch_sizes, threads):
                rows.extend(in_turn(built, batch, count, rounds=rounds, seconds=seconds, warmup=warmup))
        return Latency(tuple(rows))

    return done_by_first(measured, Latency.to_json, Latency.from_json)


class Built:
    """A model in an engine, made ready once; again for each batch size only where the model fixes it.

    Args:
        engine: what runs it.
        model: the model.
        inputs: what batches are made of.
        precision: of the computation.
    """

    def __init__(self, engine: str, model: nn.Module, inputs: Inputs, precision: str = FLOAT32) -> None:
        self.engine, self.model, self.precision = engine, model, precision
        self.device = device_of(model) if ENGINES[engine].follows else torch.device("cpu")
        self.inputs = inputs.to(self.device)
        self.program: Program | None = None

    def runner(self, inputs: Any, batch: int, threads: int) -> Runner:
        """What runs batches of this size."""
        if self.program is None or self.program.samples not in (None, batch):
            self.program = prepare(self.engine, self.model, inputs, precision=self.precision)
        return self.program.runner(threads)


def in_turn(
    models: Mapping[str, Built], batch: int, threads: int, *, rounds: int, seconds: float, warmup: int = WARMUP
) -> Iterator[Timing]:
    """Time models of one engine at one batch size and thread count, in turn; see :func:`latency`."""
    with ExitStack() as stack:
        for built in models.values():
            stack.enter_context(restore_after(built.model, built.inputs))
            stack.enter_context(evaluating(built.model))
        with threads_of_torch(threads):
            runs = {name: _LatencyRun(built, batch, threads) for name, built in models.items()}
            times = _measure(runs, rounds, seconds, warmup)
    yield from _rows(times, batch, threads, next(iter(models.values())).engine)


class _LatencyRun:
    """A model in an engine, bound to its inputs; timing it gives seconds per forward pass."""

    def __init__(self, built: Built, batch: int, threads: int) -> None:
        self.device = built.device
        self.inputs = built.inputs.resize(batch).plain()
        self.call = built.runner(self.inputs, batch, threads)
        self.repeats = 1

    def seconds(self) -> float:
        # An accelerator takes orders and answers later: its own clock knows how long it worked.
        passes = self.by_events() if self.device.type == "cuda" else self.by_clock()
        return passes / self.repeats

    def by_clock(self) -> float:
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.call(self.inputs)
        return time.perf_counter() - start

    def by_events(self) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            start.record()
            for _ in range(self.repeats):
                self.call(self.inputs)
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def warm(self, passes: int) -> None:
        for _ in range(passes):
            self.call(self.inputs)
        # A zero can come from a coarse clock.
        self.repeats = max(1, round(SHORTEST_TIMING / max(self.seconds(), 1e-7)))


def _measure(runs: Mapping[str, _LatencyRun], rounds: int, seconds: float, warmup: int) -> dict[str, list[float]]:
    for run in runs.values():
        run.warm(warmup)
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    deadline = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= rounds and time.perf_counter() >= deadline:
            break
        # Every other round backwards, so that none always runs on what the same other one left in the caches.
        for name in order if done % 2 == 0 else reversed(order):
            times[name].append(runs[name].seconds())
    return times


def _rows(times: Mapping[str, Sequence[float]], batch: int, threads: int, engine: str) -> Iterator[Timing]:
    reference = next(iter(times.values()))
    for name, own in times.items():
        low, median, high = statistics.quantiles(own, n=4, method="inclusive")
        ratios = [t / r for t, r in zip(own, reference, strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4, method="inclusive")
        yield Timing(name, batch, threads, median, (low, high), ratio, (ratio_low, ratio_high), len(own), engine)


def _require_measurable(
    models: Mapping[str, nn.Module],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    seconds: float,
    warmup: int,
) -> None:
    if not models:
        raise ArgumentError('there is no model to time; give {"name": model, ...}.')
    for name, values in (("batch_sizes", batch_sizes), ("threads", threads)):
        if not values:
            raise ArgumentError(f"{name} is empty; give at least one number.")
    if not 3 <= rounds <= MOST_ROUNDS:
        raise ArgumentError(f"rounds={rounds} must be 3 .. {MOST_ROUNDS}: a median with quartiles takes at least 3.")
