"""What tracing and cutting cost in forward passes of the model, beside Torch-Pruning where that is installed.

Run ``python benchmarks/trace_cost.py``; one thread, everything called in turn in one process, medians of the rounds.
Writes ``docs/results/trace_cost.*``.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Row, Rows, fields, main
from nervure import Cut, Keep, Plan, apply, trace
from nervure.zoo import build

ROUNDS = 5


class DecoderLayer(nn.Module):
    """Pre-norm causal attention and a gated MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2) for p in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """24 layers over 64 tokens."""

    def __init__(self, width: int = 512, heads: int = 8, layers: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.layers = nn.Sequential(*[DecoderLayer(width, heads) for _ in range(layers)])
        self.head = nn.Linear(width, 1000, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] to logits."""
        return self.head(self.layers(self.embed(tokens)))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-50, 224 px": (lambda: build("resnet50"), lambda: torch.randn(1, 3, 224, 224)),
    "ViT-B/16, 224 px": (
        lambda: build("vit_small", image_size=224, patch=16, dim=768, depth=12, heads=12, num_classes=1000),
        lambda: torch.randn(1, 3, 224, 224),
    ),
    "decoder, 24 layers of 512": (Decoder, lambda: torch.randint(0, 1000, (1, 64))),
}


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call: with one thread that is wall time on a machine that has nothing else to do."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ours(model: nn.Module, example: Tensor) -> tuple[float, float]:
    """Seconds to trace, and to cut half of every group."""
    found: list[Any] = []
    tracing = seconds(lambda: found.append(trace(model, example)))
    graph = found[0]
    plan = Plan(tuple(Cut(g.name, Keep.of(torch.arange(g.size) % 2 == 0)) for g in graph.prunable))
    return tracing, seconds(lambda: apply(model, graph, plan))


def theirs(model: nn.Module, example: Tensor) -> tuple[float, float] | str:
    """The same with Torch-Pruning: building its graph and pruner, and one step at half."""
    if importlib.util.find_spec("torch_pruning") is None:
        return "not installed"
    import copy

    import torch_pruning as tp

    model = copy.deepcopy(model)
    ends = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner: list[Any] = []
    options = {"importance": tp.importance.MagnitudeImportance(), "pruning_ratio": 0.5, "ignored_layers": ends}
    try:
        graph = seconds(lambda: pruner.append(tp.pruner.BasePruner(model, example, **options)))
        return graph, seconds(pruner[0].step)
    except Exception as error:
        return f"fails: {type(error).__name__}"


def measured(name: str) -> Row:
    """The medians of one model."""
    torch.manual_seed(0)
    make, example_of = CASES[name]
    model, example = make().eval(), example_of()
    with torch.no_grad():
        model(example)
        rounds: list[tuple[float, tuple[float, float], Any]] = []
        for _ in range(ROUNDS):
            forward = seconds(lambda: model(example))
            rounds.append((forward, ours(model, example), torch.enable_grad()(theirs)(model, example)))
    peers = [r[2] for r in rounds if not isinstance(r[2], str)]
    return {
        "model": name,
        "forward_s": median(r[0] for r in rounds),
        "trace_s": median(r[1][0] for r in rounds),
        "cut_s": median(r[1][1] for r in rounds),
        "trace_forwards": median(r[1][0] / r[0] for r in rounds),
        "torch_pruning": [median(p[i] for p in peers) for i in (0, 1)] if peers else rounds[0][2],
    }


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [
        "# What tracing costs",
        "",
        f"`python benchmarks/trace_cost.py`: processor seconds of one thread, medians of {ROUNDS} interleaved rounds.",
        "Tracing includes blocks, and trying the groups whose sizes cannot be solved; Torch-Pruning's time is for its",
        "graph and pruner, then one step.",
        "",
        "| model | forward (s) | trace (s) | in forwards | cut half (s) | Torch-Pruning: graph (s) | prune (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        peer = r["torch_pruning"]
        told = f"{peer[0]:.2f} | {peer[1]:.2f}" if isinstance(peer, list) else f"{peer} | "
        lines.append(
            f"| {r['model']} | {r['forward_s']:.3f} | {r['trace_s']:.2f} | {r['trace_forwards']:.1f} "
            f"| {r['cut_s']:.2f} | {told} |"
        )
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "trace_cost",
    page,
    fields("model"),
    lambda options: [((name,), partial(measured, name)) for name in CASES],
    packages=("torch_pruning",),
)

if __name__ == "__main__":
    main(BENCHMARK)
