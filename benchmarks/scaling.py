"""How time and memory of each step grow with width, depth, samples and parameters.

Run ``python benchmarks/scaling.py``; one thread, each size in a process of its own, about five minutes in all. Writes
``docs/results/scaling.*``.
"""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Row, Rows, fields, main
from nervure import SNACS, Magnitude, MagnitudeMasks, measure, refit
from nervure.prune import PruneInputs, Traced, trace_to_prune

SWEEPS: dict[str, tuple[int, ...]] = {
    "width": (16, 32, 64, 128),
    "depth": (2, 4, 8, 16),
    "samples": (128, 256, 512, 1024),
}
"""What grows, and how large it is; the others stay at their second size."""
FIXED = {"width": 32, "depth": 4, "samples": 256}
SIDE, BATCH, REPEATS = 8, 64, 2
NEEDS_SAMPLES = ("measure", "refit", "SNACS")
STEPS = ("forward", "trace", "plan", "cut and verify", "measure", "refit", "SNACS", "masks")
SHORT = 0.1
"""Seconds in which a short call is repeated: clocks of processors tick every few milliseconds."""
LIMIT = 1.3
"""Exponents up to this, over the three largest sizes, count as n log n; above it a reason is due."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, height, width] to the same."""
        return (x + self.norm2(self.second(self.norm1(self.first(x)).relu()))).relu()


class Network(nn.Module):
    """A stem, ``depth`` blocks, a head of ten classes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to logits."""
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


# -- the steps ---------------------------------------------------------------------------------------------------------


def measured(sweep: str, size: int) -> Row:
    """Median seconds and memory of every step that the sweep is about, at one size."""
    sizes = FIXED | {sweep: size}
    torch.manual_seed(0)
    model = Network(sizes["width"], sizes["depth"]).eval()
    example = torch.randn(1, 3, SIDE, SIDE)
    data = [
        (torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 10, (BATCH,))) for _ in range(sizes["samples"] // BATCH)
    ]
    steps = _steps(model, example, data, sizes["samples"])
    found: dict[str, list[float]] = {}
    for name in STEPS if sweep != "samples" else NEEDS_SAMPLES:
        steps[name]()
        taken = [_used(steps[name]) for _ in range(REPEATS)]
        found[name] = [median(seconds for seconds, _ in taken), median(memory for _, memory in taken)]
    return {
        "sweep": sweep,
        "size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "units": sum(m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d)),
        "steps": found,
    }


def _steps(model: nn.Module, example: Tensor, data: Sequence[Any], samples: int) -> dict[str, Callable[[], Any]]:
    def traced() -> Traced:
        chosen: dict[str, Any] = {"ignore": (), "only": None}
        return trace_to_prune(model, example, data=data, task=None, chosen=chosen, seed=0)

    ready = traced()
    plan = Magnitude(keep=0.5).plan(ready.view)
    pruned = ready.prune(PruneInputs(plan), ready.view, verify=False)
    snacs, masks = SNACS(keep=0.5, samples=samples), MagnitudeMasks(density=0.2)
    return {
        "forward": lambda: torch.no_grad()(model)(data[0][0]),
        "trace": traced,
        "plan": lambda: Magnitude(keep=0.5).plan(ready.view),
        "cut and verify": lambda: ready.prune(PruneInputs(plan), ready.view, verify=True),
        "measure": lambda: measure(model, ready.view.graph, data, samples=samples, progress=False),
        "refit": lambda: refit(pruned, data, reference=model, progress=False),
        "SNACS": lambda: snacs.plan(ready.gather(snacs)),
        "masks": lambda: masks.plan(ready.view),
    }


def _used(work: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds of a call, and the most memory that it took beyond what was held before (MiB)."""
    gc.collect()
    # What was freed goes back to the system, so that what the call takes is seen.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    calls, start = 0, time.process_time()
    while not calls or time.process_time() - start < SHORT:
        work()
        calls += 1
    return (time.process_time() - start) / calls, _held("VmHWM") - before


def _held(what: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


# -- the page ----------------------------------------------------------------------------------------------------------


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of growth: the slope of a line through the logarithms of both."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def last_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent over the three largest sizes, where what is constant matters least."""
    return slope(sizes[-3:], values[-3:])


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [
        "# How it scales",
        "",
        f"`python benchmarks/scaling.py`: residual networks on pictures of {SIDE} px, one thread, {REPEATS} times",
        f"each. Where something else grows, the width is {FIXED['width']}, there are {FIXED['depth']} blocks and",
        f"{FIXED['samples']} samples. The exponent is the slope of seconds over size, both as logarithms, over all",
        "sizes, and over the three largest, where what is constant matters least. Memory is the peak beyond what was",
        "held before the call; it is good to a few MiB. Seconds are of the processor, on a machine that did other work",
        "too. `cut and verify` is all that `prune` does after tracing with a plan at hand.",
    ]
    for sweep in SWEEPS:
        mine = sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row["size"])
        if len(mine) > 1:
            lines += _table(sweep, mine)
    lines += _above(rows)
    return "\n".join(lines) + "\n"


def _table(sweep: str, rows: Rows) -> list[str]:
    sizes = [row["size"] for row in rows]
    lines = ["", f"## {sweep.capitalize()}", ""]
    if sweep != "samples":
        told = ", ".join(f"{row['parameters']:,} parameters and {row['units']:,} units" for row in (rows[0], rows[-1]))
        lines += [f"From the smallest to the largest: {told}.", ""]
    parameters = ["in parameters"] if sweep == "width" else []
    titles = [
        "seconds",
        *map(str, sizes),
        "exponent",
        "of the last three",
        *parameters,
        "MiB at the largest",
        "its exponent",
    ]
    lines += [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    for step in rows[0]["steps"]:
        seconds, memory = ([row["steps"][step][i] for row in rows] for i in (0, 1))
        cells = [*(f"{s:.4f}" for s in seconds), f"{slope(sizes, seconds):.2f}", f"{last_slope(sizes, seconds):.2f}"]
        cells += [f"{slope([row['parameters'] for row in rows], seconds):.2f}"] if sweep == "width" else []
        cells += [f"{memory[-1]:.1f}", f"{last_slope(sizes, memory):.1f}" if memory[-2] > 1 else ""]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return lines


def _above(rows: Rows) -> list[str]:
    """What grows faster than n log n, with the reason."""
    lines = ["", "## Above n log n", ""]
    for sweep in SWEEPS:
        mine = sorted((row for row in rows if row["sweep"] == sweep), key=lambda row: row["size"])
        if len(mine) < 2:
            continue
        for step in mine[0]["steps"]:
            seconds = [row["steps"][step][0] for row in mine]
            steep = last_slope([row["size"] for row in mine], seconds)
            if steep > LIMIT:
                lines.append(f"* {step} with {sweep}: {steep:.2f}. {_reason(sweep, step, mine)}")
    return lines


def _reason(sweep: str, step: str, rows: Rows) -> str:
    """Why a step grows so fast, as far as that is known."""
    if sweep != "width":
        return "No reason is known."
    inside = last_slope([row["parameters"] for row in rows], [row["steps"][step][0] for row in rows])
    return f"Every weight is worked on, of which there are the square of the width; in weights it is {inside:.2f}."


BENCHMARK = Benchmark(
    "scaling",
    page,
    fields("sweep", "size"),
    lambda options: [((sweep, size), partial(measured, sweep, size)) for sweep in SWEEPS for size in SWEEPS[sweep]],
    apart=True,
    seconds=120,
)

if __name__ == "__main__":
    main(BENCHMARK)
