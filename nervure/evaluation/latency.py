"""How long models take, measured so that the comparison is fair.

Models are timed in turn, round after round, within one run: a machine that warms up or gets busy slows all of them.
What counts are medians with quartiles, and the ratio to the first model *within each round*.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from nervure.check import require_choice, require_positive
from nervure.errors import ArgumentError
from nervure.evaluation.batches import call_only, device_of, to_device
from nervure.graph.example import evaluating

ENGINES = ("eager",)
# The clock and the call around it cost about a microsecond: one timing should last a thousand times as long.
SHORTEST_TIMING = 1e-3
MOST_ROUNDS = 1000


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
        ratio: median over the rounds of this time divided by the first model's time in the same round.
        ratio_quartiles: first and third quartile of that ratio.
        rounds: how many timings each of these numbers comes from.
    """

    name: str
    batch: int
    threads: int
    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """A table of timings; the first model is the one the others are compared with."""

    rows: tuple[Timing, ...]
    engine: str = "eager"

    def row(self, name: str, batch: int | None = None, threads: int | None = None) -> Timing:
        """The row of one model; by default at the first batch size and thread count measured.

        Raises:
            ArgumentError: if nothing of the kind was measured.
        """
        for row in self.rows:
            if row.name == name and batch in (None, row.batch) and threads in (None, row.threads):
                return row
        known = ", ".join(f"{r.name!r} (batch {r.batch}, threads {r.threads})" for r in self.rows)
        raise ArgumentError(f"{name!r} at batch={batch}, threads={threads} was not measured; there are: {known}.")

    def median(self, name: str, batch: int | None = None, threads: int | None = None) -> float:
        """Median seconds of one forward pass."""
        return self.row(name, batch, threads).median

    def speedup(self, name: str, batch: int | None = None, threads: int | None = None) -> float:
        """How many times faster than the first model; above 1 is faster."""
        return 1 / self.row(name, batch, threads).ratio

    def to_json(self) -> dict[str, Any]:
        """Plain data: the engine and the rows."""
        return {"engine": self.engine, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        lines = [f"{'model':<20} batch threads   median ms  quartiles ms         time / first"]
        for row in self.rows:
            low, high = (1e3 * q for q in row.quartiles)
            lines.append(
                f"{row.name:<20} {row.batch:>5} {row.threads:>7} {1e3 * row.median:>11.3f}"
                f"  {low:>8.3f} .. {high:<8.3f} {row.ratio:>6.3f}"
            )
        return "\n".join(lines)


def latency(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    engine: str = "eager",
    rounds: int = 20,
    seconds: float = 1.0,
    warmup: int = 3,
) -> Latency:
    """Time models against each other, in turn within one run.

    Models run in evaluation mode without gradients, each on the device it is on; modes and thread count come back.

    Args:
        models: by name; the first is the one the others are compared with.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments. Samples are repeated or left
            out along the first axis to make each batch size.
        batch_sizes: samples per forward pass, one part of the table each.
        threads: CPU threads, one part of the table each.
        engine: ``"eager"``: the modules as they are.
        rounds: timings per row at least, 3 or more.
        seconds: go on for this long per batch size and thread count, if the rounds are done sooner.
        warmup: forward passes of each model before the first timing.

    Raises:
        ArgumentError: if there is no model, fewer than 3 rounds, an unknown engine, a batch size or thread count below
            1, or an example without a tensor that has samples.
    """
    require_choice(engine, ENGINES, "engine")
    _require_measurable(models, batch_sizes, threads, rounds, seconds, warmup)
    rows: list[Timing] = []
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        for batch, count in itertools.product(batch_sizes, threads):
            with _threads(count):
                runs = {name: _Run(model, resized(example, batch)) for name, model in models.items()}
                times = _measure(runs, rounds, seconds, warmup)
            rows.extend(_rows(times, batch, count))
    return Latency(tuple(rows), engine)


def resized(example: Any, batch: int) -> Any:
    """The example with ``batch`` samples: repeated in order, or the first few.

    Tensors whose first axis is as long as that of the first tensor are resized; whatever else there is stays.

    Raises:
        ArgumentError: if no tensor has samples along a first axis.
    """
    sizes = [t.shape[0] for t in _tensors(example) if t.ndim and t.shape[0]]
    if not sizes:
        raise ArgumentError("the example holds no tensor with samples along its first axis; give one, or several.")
    return _resized(example, sizes[0], torch.arange(batch) % sizes[0])


def _resized(value: Any, size: int, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.ndim and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _resized(entry, size, index) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_resized(entry, size, index) for entry in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


class _Run:
    """A model bound to its inputs; timing it gives seconds per forward pass."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model, self.device = model, device_of(model)
        self.inputs = to_device(inputs, self.device)
        self.repeats = 1

    def seconds(self) -> float:
        self.wait()
        start = time.perf_counter()
        for _ in range(self.repeats):
            call_only(self.model, self.inputs)
        self.wait()
        return (time.perf_counter() - start) / self.repeats

    def wait(self) -> None:
        # An accelerator takes orders and answers later: without waiting, only the ordering would be timed.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm(self, passes: int) -> None:
        for _ in range(passes):
            call_only(self.model, self.inputs)
        # A zero can come from a coarse clock.
        self.repeats = max(1, round(SHORTEST_TIMING / max(self.seconds(), 1e-7)))


def _measure(runs: Mapping[str, _Run], rounds: int, seconds: float, warmup: int) -> dict[str, list[float]]:
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


def _rows(times: Mapping[str, Sequence[float]], batch: int, threads: int) -> Iterator[Timing]:
    reference = next(iter(times.values()))
    for name, own in times.items():
        low, median, high = statistics.quantiles(own, n=4, method="inclusive")
        ratios = [t / r for t, r in zip(own, reference, strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4, method="inclusive")
        yield Timing(name, batch, threads, median, (low, high), ratio, (ratio_low, ratio_high), len(own))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        for value in values:
            require_positive(value, name)
    if not 3 <= rounds <= MOST_ROUNDS:
        raise ArgumentError(f"rounds={rounds} must be 3 .. {MOST_ROUNDS}: a median with quartiles takes at least 3.")
    if seconds < 0 or warmup < 0:
        raise ArgumentError(f"seconds={seconds} and warmup={warmup} must be 0 or more.")
