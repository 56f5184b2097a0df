"""What pruning models that no machine holds would cost: a model of memory, disk, network and time, beside measurements.

Run ``python benchmarks/scale_costs.py``: it times products and Cholesky factors on this machine, takes what
``benchmarks/streamed.py`` measured, and writes ``docs/results/scale_costs.*``. The rest of the page is arithmetic.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RESULTS, Benchmark, Case, Row, Rows, main, read_rows
from benchmarks.streamed import CASES, SIZES, TOKENS, VOCABULARY, WINDOWS
from nervure.refit.expert_ends import WIDEST
from nervure.refit.moments import FEW
from nervure.refit.ridge import PLENTY

FLOAT, DOUBLE, HALF = 4, 8, 2
BASE = 0.8e9
"""Bytes of Python, PyTorch and transformers."""
KEEP = 0.75
PASSES = 8
PAPER = (128, 2048)
"""Windows and tokens of each."""


# -- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A decoder.

    Attributes:
        width: channels.
        inner: units of a feed-forward network, or of one expert.
        queries, keys: width of all heads, and of those of keys.
        layers: how many.
        vocabulary: tokens.
        experts, chosen: in a layer, and those that a token goes to.
    """

    width: int
    inner: int
    queries: int
    keys: int
    layers: int
    vocabulary: int
    experts: int = 1
    chosen: int = 1

    @property
    def attention(self) -> int:
        """Weights of a layer's attention."""
        return 2 * self.width * (self.queries + self.keys)

    @property
    def expert(self) -> int:
        """Weights of one feed-forward network."""
        return 3 * self.width * self.inner

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return self.attention + self.experts * self.expert

    @property
    def whole(self) -> int:
        """All weights."""
        return self.layers * self.layer + 2 * self.vocabulary * self.width


SHAPES = {
    "8 B": Shape(4096, 14336, 4096, 1024, 32, 128_256),
    "70 B": Shape(8192, 28672, 8192, 1024, 80, 128_256),
    "405 B": Shape(16384, 53248, 16384, 1024, 126, 128_256),
    "1 T, 384 experts": Shape(7168, 2048, 8192, 1024, 60, 163_840, experts=384, chosen=8),
}
"""Rounded shapes of LLaMA 3 (8 B, 70 B, 405 B) and of a mixture such as Kimi K2."""


@dataclass(frozen=True)
class Machine:
    """What a machine does in a second.

    Attributes:
        single, double: operations in these precisions, of each of its parts.
        disk: bytes read.
        memory: bytes that a part has.
        network: bytes sent between its parts.
        count: its parts, which share the tokens of a layer.
    """

    single: float
    double: float
    disk: float
    memory: float
    network: float = 0.0
    count: int = 1


MACHINES = {
    "laptop, 8 cores": Machine(4e11, 2e11, 2e9, 16e9),
    "one H100": Machine(4e13, 4e13, 5e9, 80e9),
    "eight H100": Machine(4e13, 4e13, 1e10, 80e9, network=3e11, count=8),
    "64 H100 on 8 nodes": Machine(4e13, 4e13, 4e10, 80e9, network=4e10, count=64),
}
"""What vendors promise, times .6 or so."""


@dataclass(frozen=True)
class Cost:
    """Of one layer, pruned by width with a refit: bytes held, bytes of streams on the disk, operations."""

    memory: float
    streams: float
    single: float
    double: float
    shared: float


def solving(inputs: int, outputs: int, tokens: int, ridges: int) -> tuple[float, float]:
    """Operations and bytes, in double precision, of fitting one matrix: a quarter of the tokens are left out."""
    square, cross = inputs**2, inputs * outputs
    work, seen, held = 0.0, 0.75 * tokens, 0.25 * tokens
    factor, columns = inputs**3 / 3, 2 * square * outputs
    if seen < PLENTY * inputs:
        # A factor for each input.
        work += factor + columns
    few = [count <= FEW * inputs for count in (seen, held)]
    error = [4 * count * cross if is_few else columns for count, is_few in zip((seen, held), few, strict=True)]
    work += 3 * error[0] + (ridges + 2) * error[1]
    if few[0]:
        work += 4 * seen * square + ridges * (seen**3 / 3 + 2 * seen**2 * outputs + 2 * seen * cross)
    else:
        work += ridges * (factor + columns)
    # One with a ridge, which becomes its factor; sums of what is fitted on, and of what is left out.
    matrices = 1 + sum(not is_few for is_few in few)
    positions = FLOAT * (inputs + outputs) * sum(n for n, is_few in zip((seen, held), few, strict=True) if is_few)
    return work, DOUBLE * (matrices * square + (2 + matrices) * cross) + positions


def layer_cost(shape: Shape, tokens: int, ridges: int, keep: float = KEEP) -> Cost:
    """Of a layer that is looked at on so many tokens, with so many ridges tried.

    Experts are fitted together where they fit in blocks, and each hears the tokens that come to it.
    """
    d, f = shape.width, int(keep * shape.inner)
    readers = [(d, shape.queries), (d, shape.keys), (d, shape.keys), (shape.queries, d)]
    readers += [(d, f), (d, f), (f, d)] if shape.experts == 1 else []
    active = shape.attention + shape.chosen * shape.expert
    single, double, most = 2 * PASSES * active * tokens, 0.0, 0.0
    for inputs, outputs in readers:
        work, memory = solving(inputs, outputs, tokens, ridges)
        single, double, most = single + 2 * tokens * inputs * (inputs + outputs), double + work, max(most, memory)
    if shape.experts > 1:
        blocks = -(-shape.experts * f // WIDEST)
        # Each unit is heard through an output of its own: the mixture runs so often again.
        single += 2 * shape.chosen * shape.expert * tokens * (shape.experts * f / d) + 2 * tokens * WIDEST**2 * blocks
        work, memory = solving(WIDEST, d, tokens, ridges)
        double, most = double + blocks * work, max(most, memory)
    widest = max(inputs for inputs, _ in readers) if shape.experts == 1 else max(d, WIDEST)
    held = FLOAT * shape.layer * (1 + keep)
    memory = BASE + held + max(DOUBLE * shape.layer, most)
    return Cost(memory, 2 * FLOAT * tokens * d, single, double, shared=DOUBLE * (widest**2 + widest * d))


def seconds(cost: Cost, machine: Machine) -> float:
    """Of one layer: passes and sums are shared by all, factors are not; sums go over the network once."""
    work = cost.single / machine.single / machine.count + cost.double / machine.double
    return work + (cost.shared / machine.network if machine.network else 0)


# -- what is measured ------------------------------------------------------------------------------------------------


def rate(run: Callable[[], Any], operations: float) -> float:
    """Operations a second of processor time, the median of five."""
    run()
    found = []
    for _ in range(5):
        start = time.process_time()
        run()
        found.append(operations / (time.process_time() - start))
    return median(found)


def machine_row(_: Namespace) -> Row:
    """How fast one thread of this machine multiplies."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n, dtype=torch.float64)
    spd = b @ b.T + n * torch.eye(n, dtype=torch.float64)
    return {
        "key": ["machine"],
        "single": rate(lambda: a @ a, 2 * n**3),
        "double": rate(lambda: b @ b, 2 * n**3),
        "factor": rate(lambda: torch.linalg.cholesky(spd), n**3 / 3),
    }


def cases(options: Namespace) -> Iterator[Case]:
    """One."""
    yield ("machine",), partial(machine_row, options)


def measured_lines(row: Row) -> list[str]:
    """The model's lines beside what was measured here."""
    lines = [
        "| model | tokens | memory, model | measured | processor seconds a layer, model | measured |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for found in read_rows(RESULTS / "streamed.jsonl"):
        if found.get("size") not in SIZES or found["case"] != next(iter(CASES)):
            continue
        size = SIZES[found["size"]]
        keys = size.keys * size.width // size.heads
        shape = Shape(size.width, size.inner, size.width, keys, size.whole, VOCABULARY)
        cost = layer_cost(shape, WINDOWS * TOKENS, ridges=1)
        here = Machine(row["single"], row["double"], 0, 0)
        worked = found["layer_s"] * found["worked_s"] / found["total_s"]
        peak = found["peak_mb"] * 2**20
        lines.append(
            f"| {found['size']} | {WINDOWS * TOKENS:,} | {cost.memory / 1e9:.1f} GB | {peak / 1e9:.1f} GB "
            f"| {seconds(cost, here):.0f} | {worked:.0f} |"
        )
    return lines


def describe(machine: Machine) -> str:
    """What is assumed of a machine."""
    between = f", {machine.network / 1e9:g} GB/s between them" if machine.network else ""
    return (
        f"{machine.single / 1e12:g} and {machine.double / 1e12:g} trillion operations a second in single and double "
        f"precision, {machine.memory / 1e9:.0f} GB of memory each, {machine.disk / 1e9:g} GB/s from the disk{between}"
    )


def table(tokens: int, ridges: int) -> list[str]:
    """All shapes on all machines."""
    lines = [
        "| model | read from disk | streams on disk | a layer in memory | " + " | ".join(MACHINES) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(MACHINES),
    ]
    for name, shape in SHAPES.items():
        cost = layer_cost(shape, tokens, ridges)
        cells = []
        for machine in MACHINES.values():
            hours = shape.layers * seconds(cost, machine) / 3600 + HALF * shape.whole / machine.disk / 3600
            room = "" if cost.memory <= machine.memory else " (no room)"
            cells.append(f"{hours:,.0f} h{room}" if hours >= 2 else f"{60 * hours:.0f} min{room}")
        lines.append(
            f"| {name} | {HALF * shape.whole / 1e9:,.0f} GB | {cost.streams / 1e9:.1f} GB | {cost.memory / 1e9:.0f} GB "
            f"| {' | '.join(cells)} |"
        )
    return lines


def page(rows: Rows) -> str:
    """The results as Markdown."""
    row = rows[0]
    rates = [f"{row[name] / 1e9:.0f}" for name in ("single", "double", "factor")]
    lines = [*INTRODUCTION.splitlines(), "", "## Beside what was measured", ""]
    lines += [
        f"One thread of this machine: {rates[0]} billion operations a second in single precision, {rates[1]} in",
        f"double, {rates[2]} in a Cholesky factor.",
        "",
        *measured_lines(row),
        "",
        "## On paper",
        "",
        f"{PAPER[0]} windows of {PAPER[1]:,} tokens, four ridges tried in each layer. Machines, as assumed:",
        "",
        *(f"* {name}: {describe(machine)}" for name, machine in MACHINES.items()),
        "",
        *table(PAPER[0] * PAPER[1], ridges=4),
    ]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# What size would cost

`python benchmarks/scale_costs.py`. Layer-by-layer pruning to three quarters of the width of each feed-forward network
(of each expert), with a refit. The model counts, for one layer: its weights in single precision, twice (dense and
smaller), and once in double where it is checked, or what a fit of the widest input holds in double precision: sums over
it, one matrix that becomes a factor (positions and no sums where they are few), and products with outputs; eight passes
of both networks over all tokens; sums over inputs; and for each ridge a factor, a solution and its error. It does not
count Python, checks, copies, hashes and files in its time: what was measured took 4 to 24 % longer.
[What it means](../scale.md)."""

BENCHMARK = Benchmark("scale_costs", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
