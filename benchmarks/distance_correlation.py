"""Distance correlation: time and memory against dcor, growth with samples and dimensions, digits kept in float32.

Run ``python benchmarks/distance_correlation.py`` (with ``dcor`` installed for the comparison); one thread.
Writes ``docs/results/distance_correlation.*``.
"""

import importlib.util
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main, peak
from nervure.dependence import distance_correlation
from nervure.dependence.distances import TILE

SAMPLES, DIMENSIONS, OUTPUTS = 5000, 4096, 10
GROWTH = ((1250, 4096), (2500, 4096), (5000, 1024), (5000, 256))
TILES = (256, 5000)
RUNS = 3


def data(samples: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten outputs, and features that hear them under noise; float32."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(samples, OUTPUTS, generator=generator)
    mix = torch.randn(OUTPUTS, dimensions, generator=generator)
    return (y @ mix).relu() + torch.randn(samples, dimensions, generator=generator), y


def measured(engine: str, samples: int, dimensions: int, tile: int, run: int) -> Row:
    """One call in this process: seconds of the processor, the statistic, and memory above that of the data (MiB)."""
    x, y = data(samples, dimensions)
    small_x, small_y = x[:50], y[:50]
    if engine == "dcor":
        a, b = x.double().numpy(), y.double().numpy()
        _with_dcor(a[:50], b[:50])
        before, start = peak(), time.process_time()
        value = _with_dcor(a, b)
    else:
        distance_correlation(small_x, small_y)
        before, start = peak(), time.process_time()
        value = float(distance_correlation(x, y, tile=tile))
    found = {"seconds": time.process_time() - start, "value": value, "memory_mib": peak() - before}
    return {"engine": engine, "samples": samples, "dimensions": dimensions, "tile": tile, "run": run} | found


def _with_dcor(a: Any, b: Any) -> float:
    """Centring and products of dcor, on distances of scipy.

    dcor means to take its distances from scipy too, but with recent versions of array-api-compat it does not recognise
    arrays of numpy and falls back to a routine that asks for samples x samples x dimensions numbers at once.
    """
    import dcor
    from scipy.spatial.distance import cdist

    one, two = dcor.u_centered(cdist(a, a)), dcor.u_centered(cdist(b, b))
    both, first, second = dcor.u_product(one, two), dcor.u_product(one, one), dcor.u_product(two, two)
    return float(both / (first * second) ** 0.5)


def cases(_: Namespace) -> Iterator[Case]:
    """The whole several times, and once with dcor; then less of it, and in other tiles."""
    keys: list[tuple[Any, ...]] = [("nervure", SAMPLES, DIMENSIONS, TILE, run) for run in range(RUNS)]
    if importlib.util.find_spec("dcor") is not None:
        keys.append(("dcor", SAMPLES, DIMENSIONS, TILE, 0))
    keys += [("nervure", *size, TILE, 0) for size in GROWTH]
    keys += [("nervure", SAMPLES, DIMENSIONS, tile, 0) for tile in TILES]
    yield from ((key, partial(measured, *key)) for key in keys)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    ours = {BENCHMARK.key(r)[1:4]: r for r in reversed(rows) if r["engine"] == "nervure"}
    whole = [r for r in rows if r["engine"] == "nervure" and BENCHMARK.key(r)[1:4] == (SAMPLES, DIMENSIONS, TILE)]
    here, there = sorted(whole, key=lambda r: r["seconds"]), [r for r in rows if r["engine"] == "dcor"]
    growth = [*((*size, TILE) for size in GROWTH), (SAMPLES, DIMENSIONS, TILE)]
    tiles = [(SAMPLES, DIMENSIONS, tile) for tile in (*TILES, TILE)]
    best = here[len(here) // 2]
    lines = [
        "# Distance correlation",
        "",
        "`python benchmarks/distance_correlation.py`: unbiased distance correlation of float32 features with ten",
        "outputs, one thread, every call in a process of its own. Seconds are the processor's, so that other work on",
        "the machine does not count; memory is the peak above what the data take.",
        "",
        f"## {SAMPLES:,} samples x {DIMENSIONS:,} dimensions",
        "",
        "| | seconds | memory (MiB) | value |",
        "|---|---|---|---|",
        f"| nervure (median of {len(here)}) | {best['seconds']:.1f} | {best['memory_mib']:.0f} | {best['value']:.9f} |",
    ]
    lines += [
        f"| dcor on scipy's distances (1 run) | {r['seconds']:.1f} | {r['memory_mib']:.0f} | {r['value']:.9f} |"
        for r in there
    ]
    if there:
        ratio, gap = there[0]["seconds"] / best["seconds"], abs(there[0]["value"] - best["value"])
        lines += ["", f"{ratio:.1f} times as fast; the values differ by {gap:.0e}."]
    for title, sizes in (("Growth", growth), ("Tiles", tiles)):
        lines += ["", f"## {title}", "", "| samples | dimensions | tile | seconds | memory (MiB) | value |"]
        lines.append("|---|---|---|---|---|---|")
        lines += [
            f"| {r['samples']:,} | {r['dimensions']:,} | {r['tile']} | {r['seconds']:.2f} "
            f"| {r['memory_mib']:.0f} | {r['value']:.9f} |"
            for r in (ours[size] for size in sizes if size in ours)
        ]
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "distance_correlation",
    page,
    fields("engine", "samples", "dimensions", "tile", "run"),
    cases,
    apart=True,
    packages=("dcor",),
)

if __name__ == "__main__":
    main(BENCHMARK)
