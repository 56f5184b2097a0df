"""Distance correlation: time and memory against dcor, growth with samples and dimensions, digits kept in float32.

Run ``python benchmarks/distance_correlation.py`` (with ``dcor`` installed for the comparison); one thread.
Writes ``docs/results/distance_correlation.json`` and ``.md``.
"""

import importlib.util
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nervure.dependence import distance_correlation
from nervure.dependence.distances import TILE

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
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


def measured(engine: str, samples: int, dimensions: int, tile: int) -> dict[str, Any]:
    """One call in this process: seconds of the processor, the statistic, and memory above that of the data (MiB)."""
    torch.set_num_threads(1)
    x, y = data(samples, dimensions)
    small_x, small_y = x[:50], y[:50]
    if engine == "dcor":
        a, b = x.double().numpy(), y.double().numpy()
        _with_dcor(a[:50], b[:50])
        before, start = _peak(), time.process_time()
        value = _with_dcor(a, b)
    else:
        distance_correlation(small_x, small_y)
        before, start = _peak(), time.process_time()
        value = float(distance_correlation(x, y, tile=tile))
    return {"seconds": time.process_time() - start, "value": value, "memory_mib": _peak() - before}


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


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(engine: str, samples: int, dimensions: int, tile: int = TILE) -> dict[str, Any]:
    """The same in a process of its own, whose peak of memory is then its own."""
    command = [sys.executable, __file__, engine, str(samples), str(dimensions), str(tile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = {"engine": engine, "samples": samples, "dimensions": dimensions, "tile": tile}
    found: dict[str, Any] = row | json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure in turn, and write the tables."""
    here = [apart("nervure", SAMPLES, DIMENSIONS) for _ in range(RUNS)]
    there = []
    if importlib.util.find_spec("dcor") is not None:
        there = [apart("dcor", SAMPLES, DIMENSIONS)]
    growth = [*(apart("nervure", n, d) for n, d in GROWTH), here[0]]
    tiles = [*(apart("nervure", SAMPLES, DIMENSIONS, tile) for tile in TILES), here[0]]
    facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    results = facts | {"nervure": here, "dcor": there, "growth": growth, "tiles": tiles}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "distance_correlation.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "distance_correlation.md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    here, there = sorted(results["nervure"], key=lambda r: r["seconds"]), results["dcor"]
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
    for title, name in (("Growth", "growth"), ("Tiles", "tiles")):
        lines += ["", f"## {title}", "", "| samples | dimensions | tile | seconds | memory (MiB) | value |"]
        lines.append("|---|---|---|---|---|---|")
        lines += [
            f"| {r['samples']:,} | {r['dimensions']:,} | {r['tile']} | {r['seconds']:.2f} "
            f"| {r['memory_mib']:.0f} | {r['value']:.9f} |"
            for r in results[name]
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        main()
