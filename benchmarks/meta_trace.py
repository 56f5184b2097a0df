"""What it takes to trace, plan and cut decoders of more than a billion parameters that are never made.

Run ``python benchmarks/meta_trace.py``; one thread, each model in a process of its own, so that the peak of memory
is its own. Where transformers is installed its LLaMA is traced too. Writes ``docs/results/meta_trace.*``.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main, peak
from benchmarks.zoo import allow_torchvision
from nervure import Random, apply, prune, trace

WIDTH, INNER, HEADS, KEYS, VOCABULARY, TOKENS = 2048, 5632, 32, 4, 32_000, 16


class Layer(nn.Module):
    """Causal attention with shared keys and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.keys, self.head_dim = HEADS, KEYS, WIDTH // HEADS
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, KEYS * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.keys, 1) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.head_dim**-0.5)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(self.norm2(x))) * self.up(self.norm2(x)))


class Decoder(nn.Module):
    """Embedding, layers, norm, head."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.RMSNorm(WIDTH)
        self.layers = nn.Sequential(*[Layer() for _ in range(layers)])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] to logits."""
        return self.head(self.norm(self.layers(self.embed(tokens))))


def llama(width: int = WIDTH, inner: int = INNER, layers: int = 22, heads: int = HEADS, keys: int = KEYS) -> nn.Module:
    """The same sizes, or others, with the code of transformers."""
    allow_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=keys))


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "decoder, 22 layers": (lambda: Decoder(22), "meta"),
    "decoder, 48 layers": (lambda: Decoder(48), "meta"),
    "decoder, 22 layers, fake tensors": (lambda: Decoder(22), "fake"),
    "transformers' LLaMA, 22 layers": (llama, "meta"),
    "transformers' LLaMA, 32 layers, 7 B": (partial(llama, 4096, 11_008, 32, 32, 32), "meta"),
    "transformers' LLaMA, 80 layers, 70 B": (partial(llama, 8192, 28_672, 80, 64, 8), "meta"),
}


def measured(name: str) -> Row:
    """One case, in this process."""
    make, kind = CASES[name]
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        model = make().eval()
    tokens = torch.zeros(1, TOKENS, dtype=torch.long)
    example: Any = {"input_ids": tokens, "use_cache": False} if _is_llama(name) else tokens
    built = peak()
    start = time.perf_counter()
    graph = trace(model, example)
    traced = time.perf_counter()
    plan = Random(keep=0.5).plan(_view(graph))
    planned = time.perf_counter()
    smaller = apply(model, graph, plan)
    applied = time.perf_counter()
    row = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "left": sum(p.numel() for p in smaller.parameters()),
        "groups": len(graph.groups),
        "prunable": len(graph.prunable),
        "trace_s": traced - start,
        "plan_s": planned - traced,
        "apply_s": applied - planned,
        "peak_before_mb": built,
        "peak_mb": peak(),
    }
    if kind == "meta":
        row["prune_s"] = _seconds(lambda: prune(model, example, plan, progress=False))
    return row


def _is_llama(name: str) -> bool:
    return name.startswith("transformers")


def _view(graph: Any) -> Any:
    from nervure.methods import View

    return View(graph, {})


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cases(_: Any) -> Iterator[Case]:
    """Every model that there is the code for."""
    for name in CASES:
        if not _is_llama(name) or importlib.util.find_spec("transformers"):
            yield (name,), partial(measured, name)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [
        "# Tracing what is too big to make",
        "",
        "`python benchmarks/meta_trace.py`: one thread, one run each, on 16 tokens, half of every layer's units kept.",
        "No weight exists: the memory is Python's and PyTorch's own, and what tracing adds to it. (In float32 a",
        "billion parameters are 4,000 MB.) Nothing is tried or verified without weights. The machine was busy with",
        "other work: seconds are good to a factor of two.",
        "",
        "| model | parameters | left | groups | trace (s) | plan (s) | cut (s) | `prune` (s) | MB before | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        whole = f"{r['prune_s']:.1f}" if "prune_s" in r else ""
        lines.append(
            f"| {r['model']} | {r['parameters'] / 1e9:.2f} G | {r['left'] / 1e9:.2f} G | {r['groups']} "
            f"| {r['trace_s']:.1f} | {r['plan_s']:.2f} | {r['apply_s']:.2f} | {whole} "
            f"| {r['peak_before_mb']:.0f} | {r['peak_mb']:.0f} |"
        )
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark("meta_trace", page, fields("model"), cases, apart=True, packages=("transformers",))

if __name__ == "__main__":
    main(BENCHMARK)
