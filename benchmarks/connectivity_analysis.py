"""What the connectivity analysis costs: processor seconds by part and memory, dense and sparse.

Run ``python benchmarks/connectivity_analysis.py``; one thread, every case in a process of its own.
Writes ``docs/results/connectivity_analysis.*``.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy read it
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Row, Rows, fields, main, peak
from nervure import Connectivity, connectivity
from nervure.zoo import build

DENSITY = 0.05


def mlp() -> nn.Module:
    """38 million weights in four layers."""
    return nn.Sequential(
        nn.Linear(3072, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 2048), nn.Linear(2048, 100)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50, 224 px": (lambda: build("resnet50"), (1, 3, 224, 224)),
    "ViT-S/16, 224 px": (
        lambda: build("vit_small", image_size=224, patch=16, dim=384, depth=12, heads=6, num_classes=1000),
        (1, 3, 224, 224),
    ),
    "MLP 3072-4096-4096-2048-100": (mlp, (1, 3072)),
}


def sparse(model: nn.Module) -> nn.Module:
    """A random twentieth of the weights of every layer stays."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < DENSITY)
    return model


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of one call, and what it returned."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def measured(name: str, density: float) -> Row:
    """One case, by part."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, example = make().eval(), torch.randn(shape)
    model = sparse(model) if density < 1 else model
    with torch.no_grad():
        model(example)
        forward, _ = seconds(lambda: model(example))
    connectivity(nn.Linear(2, 2), torch.zeros(1, 2)).times  # noqa: B018 - imports scipy
    before = peak()
    drawing, found = seconds(lambda: connectivity(model, example))
    assert isinstance(found, Connectivity)
    paths, _ = seconds(lambda: (found.layers, found.dead, found.effective_density, found.directed_heat))
    spectrum, _ = seconds(lambda: (found.components, found.spectral_gap))
    heat, _ = seconds(lambda: found.heats(found.times))
    return {
        "case": name,
        "density": density,
        "weights": found.places,
        "units": found.circuit.size,
        "edges": _edges(found),
        "forward_s": forward,
        "draw_s": drawing,
        "paths_s": paths,
        "spectrum_s": spectrum,
        "heat_s": heat,
        "total_s": drawing + paths + spectrum + heat,
        "memory_mib": peak() - before,
        "components": found.components,
        "spectral_gap": found.spectral_gap,
        "effective_density": found.effective_density,
    }


def _edges(found: Connectivity) -> int:
    return sum(len(values) for bundle in found.circuit.bundles for _, _, values in bundle.edges())


def page(rows: Rows) -> str:
    """The page."""
    lines = [
        "# What the connectivity analysis costs",
        "",
        "`python benchmarks/connectivity_analysis.py`: processor seconds of one thread; memory is what the process",
        "holds beyond model and libraries at the peak. Sparse: a random 5 % of the weights of every layer. Paths are",
        "live connections, dead units, path mass and directed heat; heat is that at `times`, the slowest of all.",
        "",
        "| network | density | weights | edges | forward | graph | paths | components, gap | heat | **all** | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['case']} | {r['density']:.0%} | {r['weights'] / 1e6:.1f} M | {r['edges'] / 1e6:.1f} M | "
        f"{r['forward_s']:.2f} | {r['draw_s']:.2f} | {r['paths_s']:.2f} | {r['spectrum_s']:.2f} | {r['heat_s']:.2f} | "
        f"**{r['total_s']:.1f}** | {r['memory_mib']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "connectivity_analysis",
    page,
    fields("case", "density"),
    lambda options: [(key, partial(measured, *key)) for key in product(CASES, (1.0, DENSITY))],
    apart=True,
)

if __name__ == "__main__":
    main(BENCHMARK)
