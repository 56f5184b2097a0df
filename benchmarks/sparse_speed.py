"""What ``compile_sparse`` is worth: masked networks end to end, beside the drop-in kernel and smaller dense networks.

Run ``python benchmarks/sparse_speed.py`` on a quiet machine; one thread. For each network, share of zeros and batch
size these take turns in one process, and what counts is the median over the rounds of the ratio to the dense network's
time in the same round:

* the network as it is, zeros and all ("dense");
* ``compile_sparse`` of it;
* every layer with zeros as ``F.linear(x, csr)``, the drop-in (linear networks only);
* a dense network of as many weights as the masked one has left: what removing rows gives ("rows removed").

Masks are drawn at random, each layer alike. The last layer is dense ("hidden layers") or masked as the others ("all
layers"), which leaves hidden units unread. Writes ``docs/results/sparse_speed.*``.
"""

import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import compile_sparse, latency
from nervure.sparse import CompiledSparse

DENSITIES = (0.1, 0.05, 0.02)
BATCHES = (1, 16, 128)
WIDTHS = (3072, 2048, 2048, 2048, 10)
CHANNELS = (64, 256, 64, 256, 128, 512, 128, 512)
SIDE = 16

Network = tuple[Callable[[float], nn.Module], tuple[int, ...]]


def mlp(share: float = 1.0) -> nn.Module:
    """3072-2048-2048-2048-10, or one with hidden layers so much narrower that ``share`` of the weights is left."""
    hidden = [narrowed(lambda scale: weights(mlp_widths(scale)), share)] * 3
    widths = (WIDTHS[0], *(max(1, round(scale * w)) for scale, w in zip(hidden, WIDTHS[1:-1], strict=True)), WIDTHS[-1])
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def mlp_widths(scale: float) -> list[tuple[float, float]]:
    """Inputs and outputs of the layers of the MLP with hidden layers ``scale`` times as wide."""
    return list(pairwise((WIDTHS[0], *(scale * w for w in WIDTHS[1:-1]), WIDTHS[-1])))


def cnn(share: float = 1.0) -> nn.Module:
    """A stem, seven 1 x 1 convolutions with batch norm and ReLU, one of them over half the picture, and a head."""
    scale = narrowed(lambda scale: weights([(scale * a, scale * b) for a, b in pairwise(CHANNELS)]), share)
    channels = [max(1, round(scale * c)) for c in CHANNELS]
    parts: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
    for number, (a, b) in enumerate(pairwise(channels)):
        conv = nn.Conv2d(a, b, 1, stride=2 if number == 3 else 1, bias=False)
        parts += [conv, nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def weights(layers: Sequence[tuple[float, float]]) -> float:
    """How many weights layers of so many inputs and outputs have."""
    return sum(a * b for a, b in layers)


def narrowed(count: Callable[[float], float], share: float) -> float:
    """The scale of the widths at which ``share`` of the weights is left, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) < share * count(1.0) else (low, middle)
    return high


NETWORKS: Mapping[str, Network] = {
    "MLP 3072-2048-2048-2048-10": (mlp, (WIDTHS[0],)),
    "CNN of 1 x 1 convolutions, 16 px": (cnn, (3, SIDE, SIDE)),
}


def masked(model: nn.Module, density: float, *, last: bool) -> nn.Module:
    """``density`` of the weights of each layer stay; a 3 x 3 stem is left alone, and without ``last`` the head too."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layers = [m for m in layers if not (isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1))]
    with torch.no_grad():
        for layer in layers if last else layers[:-1]:
            layer.weight *= torch.rand_like(layer.weight) < density
    return model.eval()


class DropIn(nn.Module):
    """What a sparse weight in ``F.linear`` comes to."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach().to_sparse_csr(), layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return F.linear(x, self.weight, self.bias)


def dropped_in(model: nn.Module) -> nn.Module | None:
    """The same with sparse weights dropped in; None for convolutions, which have no such kernel."""
    if not all(isinstance(m, nn.Linear | nn.ReLU) for m in model.children()):
        return None
    return nn.Sequential(
        *(DropIn(m) if isinstance(m, nn.Linear) and bool((m.weight == 0).any()) else m for m in model.children())
    ).eval()


def measured(name: str, where: str, density: float, batch: int, rounds: int) -> Row:
    """One row: the times of all networks, and what was chosen."""
    warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = masked(build(1.0), density, last=where == "all layers")
    example = torch.randn(batch, *shape)
    began = time.perf_counter()
    compiled = compile_sparse(model, example, threads=1, verbose=False)
    spent = time.perf_counter() - began
    models = {"dense": model, "compile_sparse": compiled, "F.linear(x, csr)": dropped_in(model)}
    models["rows removed"] = build(density).eval()
    given = {key: value for key, value in models.items() if value is not None}
    table = latency(given, example, batch_sizes=(batch,), threads=(1,), rounds=rounds, seconds=0.0)
    print(f"{name}, {where}, {1 - density:.0%}, batch {batch}: {table}\n{compiled.describe()}\n", flush=True)
    return {
        "network": name,
        "masked": where,
        "density": density,
        "batch": batch,
        "rounds": rounds,
        "rows": [asdict(row) for row in table.rows],
        "seconds to compile": round(spent, 2),
        **told(compiled),
    }


def told(compiled: CompiledSparse) -> dict[str, Any]:
    """What there is to say about a compiled network."""
    return {
        "taken": compiled.choice,
        "layers": {row.layer: row.choice for row in compiled.choices},
        "times when compiled": dict(compiled.times),
        "error": compiled.error,
        "notes": list(compiled.notes),
    }


def table_of(found: Rows) -> str:
    """Speed-ups, a row for each case."""
    names = ("compile_sparse", "F.linear(x, csr)", "rows removed")
    lines = ["| zeros | batch | dense ms | " + " | ".join(names) + " | what was taken |", "| --- " * 7 + "|"]
    for one in found:
        by_name = {row["name"]: row for row in one["rows"]}
        cells = [spread(by_name[name]) if name in by_name else "–" for name in names]
        kinds = list(one["layers"].values())
        layers = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        taken = f"{one['taken']} ({layers})" if one["taken"] == "sparse" else one["taken"]
        dense = 1e3 * by_name["dense"]["median"]
        lines.append(f"| {1 - one['density']:.0%} | {one['batch']} | {dense:.3g} | {' | '.join(cells)} | {taken} |")
    return "\n".join(lines)


def spread(row: Mapping[str, Any]) -> str:
    """How many times as fast as dense, with quartiles."""
    low, high = row["ratio_quartiles"]
    return f"{1 / row['ratio']:.2f} ({1 / high:.2f} to {1 / low:.2f})"


def page(found: Rows) -> str:
    """The page of results."""
    parts = [
        "# Speed from masks",
        f"Written by `python benchmarks/sparse_speed.py` (one thread, {found[0]['rounds']} rounds). How many times as "
        "fast as the dense network, end to end: medians over rounds of the ratio within a round, with quartiles. "
        "*Rows removed* is a dense network of as many weights as are left.",
    ]
    for key in dict.fromkeys((one["network"], one["masked"]) for one in found):
        own = [one for one in found if (one["network"], one["masked"]) == key]
        parts += [f"## {key[0]}, {key[1]} masked", table_of(own)]
    slower = [one for one in found if next(r for r in one["rows"] if r["name"] == "compile_sparse")["ratio"] > 1.02]
    seconds = [one["seconds to compile"] for one in found]
    parts.append(
        f"Slower than dense by more than 2 %: {len(slower)} of {len(found)}. Largest error of an output, relative to "
        f"the largest: {max(one['error'] for one in found):.1e}. Compiling took {min(seconds):.0f} to "
        f"{max(seconds):.0f} s."
    )
    return "\n\n".join(parts) + "\n"


def cases(options: Namespace) -> Iterator[Case]:
    """Every network with every share of zeros."""
    for key in product(NETWORKS, ("hidden layers", "all layers"), DENSITIES, BATCHES):
        yield key, partial(measured, *key, options.rounds)


BENCHMARK = Benchmark(
    "sparse_speed",
    page,
    fields("network", "masked", "density", "batch"),
    cases,
    tell=lambda row: "",
    arguments={"--rounds": {"type": int, "default": 30}},
)

if __name__ == "__main__":
    main(BENCHMARK)
