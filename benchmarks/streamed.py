"""What it takes to prune language models of 1.1 and 7 billion parameters layer by layer, from a folder to a folder.

Run ``python benchmarks/streamed.py``; one thread, each case in a process of its own, so that the peak of memory is its
own. The dense folder is made of random weights, file by file, and removed when the case is done: its layers, embeddings
and head are of the sizes of the whole model, and it has as many layers as are measured. Needs transformers. Writes
``docs/results/streamed.*``.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RUNS, Benchmark, Case, Row, Rows, fields, main, peak
from nervure import Activation, Refit, Wanda, prune_folder
from nervure.streaming.sharded_weights import write_index, write_shard

WINDOWS, TOKENS = 8, 256
DEVIATION = 0.02
VOCABULARY = 32_000


@dataclass(frozen=True)
class Size:
    """Of a LLaMA: channels, units of a feed-forward network, heads, those of keys, layers, how many are measured."""

    width: int
    inner: int
    heads: int
    keys: int
    whole: int
    layers: int


SIZES: Mapping[str, Size] = {
    "1.1 B": Size(2048, 5632, 32, 4, 22, 2),
    "7 B": Size(4096, 11008, 32, 32, 32, 2),
}

CASES: Mapping[str, tuple[Any, Refit]] = {
    "a quarter of the width": (Activation(keep=0.75, scope="uniform"), Refit(samples=WINDOWS, ridge=0.01)),
    "masks, two of four": (Wanda(granularity="2:4"), Refit(samples=WINDOWS, ridge=0.01, masks="surgeon")),
}


def write_dense(folder: Path, size: Size) -> None:
    """A folder of random weights, a file for each layer."""
    from transformers import LlamaConfig

    folder.mkdir()
    width, inner = size.width, size.inner
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=size.layers, vocab_size=VOCABULARY,
        num_attention_heads=size.heads, num_key_value_heads=size.keys, architectures=["LlamaForCausalLM"],
        dtype="float32",
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return DEVIATION * torch.randn(*shape, generator=generator)

    keys = size.keys * width // size.heads
    attention = {"q_proj": (width, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, width)}
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    write_shard(folder / "embeddings.safetensors", {"model.embed_tokens.weight": draw(VOCABULARY, width)})
    ends = {"model.norm.weight": torch.ones(width), "lm_head.weight": draw(VOCABULARY, width)}
    write_shard(folder / "head.safetensors", ends)
    for number in range(size.layers):
        name = f"model.layers.{number}"
        layer = {f"{name}.self_attn.{key}.weight": draw(*shape) for key, shape in attention.items()}
        layer |= {f"{name}.mlp.{key}.weight": draw(*shape) for key, shape in mlp.items()}
        layer |= {f"{name}.{key}_layernorm.weight": torch.ones(width) for key in ("input", "post_attention")}
        write_shard(folder / f"layer{number}.safetensors", layer)
    write_index(folder, [path.name for path in folder.glob("*.safetensors")])


def measured(called: str, name: str) -> Row:
    """One case, in this process."""
    return measure(SIZES[called], called, name)


def measure(size: Size, called: str, name: str, device: torch.device | str = "cpu") -> Row:
    """One case of a size, its layers on a device."""
    method, how = CASES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (WINDOWS, TOKENS), generator=generator)
    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS) as place:
        dense = Path(place) / "dense"
        write_dense(dense, size)
        before, begun = peak(), (time.perf_counter(), time.process_time())
        data = tokens.split(4)
        done = prune_folder(dense, Path(place) / "smaller", method, data=data, refit=how, device=device, progress=False)
        seconds, worked = time.perf_counter() - begun[0], time.process_time() - begun[1]
        written = sum(path.stat().st_size for path in done.path.glob("*.safetensors"))
    layers, outside = [layer.seconds for layer in done.layers], 2 * VOCABULARY * size.width
    return {
        "size": called,
        "case": name,
        "layers": size.layers,
        "whole": size.whole,
        "parameters": sum(layer.before for layer in done.layers) // size.layers * size.whole + outside,
        "left": sum(layer.after for layer in done.layers) // size.layers * size.whole + outside,
        "tokens": tokens.numel(),
        "layer_s": sum(layers) / size.layers,
        "outside_s": seconds - sum(layers),
        "total_s": seconds,
        "worked_s": worked,
        "error_before": _mean(done, "held_before"),
        "error_after": _mean(done, "held_after"),
        "difference": done.difference,
        "bytes": written,
        "peak_before_mb": before,
        "peak_mb": peak(),
    }


def _mean(done: Any, name: str) -> float:
    found = [getattr(fit, name) for layer in done.layers for fit in layer.fits if not fit.reason]
    return float(sum(found) / len(found))


def cases(_: Any) -> Iterator[Case]:
    """Both, where transformers is installed."""
    if importlib.util.find_spec("transformers"):
        for called in SIZES:
            for name in CASES:
                yield (called, name), partial(measured, called, name)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    counts = ", ".join(f"{size.layers} of {size.whole} ({name})" for name, size in SIZES.items())
    lines = [
        "# A language model that is pruned layer by layer",
        "",
        f"`python benchmarks/streamed.py`: one thread, float32, random weights, sizes of LLaMAs, of which {counts}",
        f"layers were made and pruned, embeddings and head too; {WINDOWS} windows of {TOKENS} tokens, for the method",
        "and for the refit (one ridge, 0.01). Peak memory is that of the whole process, Python, PyTorch and",
        "transformers included; it does not grow with the number of layers. Hours for all layers are projected. The",
        "machine was busy with other work: by the clock it takes longer than the processor time of the process says.",
        "",
        "| size | case | parameters | left | a layer (s) | the rest (s) | processor / clock | projected (h) "
        "| peak (MiB) | error left out | loaded again |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = r["worked_s"] / r["total_s"]
        hours = (r["layer_s"] * r["whole"] + r["outside_s"]) / 3600
        lines.append(
            f"| {r['size']} | {r['case']} | {r['parameters'] / 1e9:.2f} G | {r['left'] / 1e9:.2f} G "
            f"| {r['layer_s']:.0f} "
            f"| {r['outside_s']:.0f} | {share:.2f} | {hours:.1f}, processor {hours * share:.1f} | {r['peak_mb']:.0f} "
            f"| {r['error_before']:.3f} -> {r['error_after']:.3f} | {r['difference']:.0e} |"
        )
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark("streamed", page, fields("size", "case"), cases, apart=True, packages=("transformers",))

if __name__ == "__main__":
    main(BENCHMARK)
