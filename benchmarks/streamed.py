"""What it takes to prune a language model of 1.1 billion parameters layer by layer, from a folder to a folder.

Run ``python benchmarks/streamed.py``; one thread, each case in a process of its own, so that the peak of memory is its
own. The dense folder is made of random weights, file by file, and removed when the case is done: its layers, embeddings
and head are of the sizes of a model of 22 layers, and it has as many layers as are measured. Needs transformers. Writes
``docs/results/streamed.*``.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import RUNS, Benchmark, Case, Row, Rows, fields, main, peak
from nervure import Activation, Refit, Wanda, prune_folder
from nervure.streaming.sharded_weights import write_index, write_shard

WIDTH, INNER, HEADS, KEYS, VOCABULARY, WHOLE = 2048, 5632, 32, 4, 32_000, 22
LAYERS, WINDOWS, TOKENS = 2, 4, 256
DEVIATION = 0.02

CASES: Mapping[str, tuple[Any, Refit]] = {
    "a quarter of the width": (Activation(keep=0.75, scope="uniform"), Refit(samples=WINDOWS, ridge=0.01)),
    "masks, two of four": (Wanda(granularity="2:4"), Refit(samples=WINDOWS, ridge=0.01, masks="surgeon")),
}


def write_dense(folder: Path) -> None:
    """A folder of random weights, a file for each layer."""
    from transformers import LlamaConfig

    folder.mkdir()
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KEYS}
    config = LlamaConfig(**sizes, **heads, architectures=["LlamaForCausalLM"], dtype="float32")
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return DEVIATION * torch.randn(*shape, generator=generator)

    keys = KEYS * WIDTH // HEADS
    attention = {"q_proj": (WIDTH, WIDTH), "k_proj": (keys, WIDTH), "v_proj": (keys, WIDTH), "o_proj": (WIDTH, WIDTH)}
    mlp = {"gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    write_shard(folder / "embeddings.safetensors", {"model.embed_tokens.weight": draw(VOCABULARY, WIDTH)})
    ends = {"model.norm.weight": torch.ones(WIDTH), "lm_head.weight": draw(VOCABULARY, WIDTH)}
    write_shard(folder / "head.safetensors", ends)
    for number in range(LAYERS):
        name = f"model.layers.{number}"
        layer = {f"{name}.self_attn.{key}.weight": draw(*shape) for key, shape in attention.items()}
        layer |= {f"{name}.mlp.{key}.weight": draw(*shape) for key, shape in mlp.items()}
        layer |= {f"{name}.{key}_layernorm.weight": torch.ones(WIDTH) for key in ("input", "post_attention")}
        write_shard(folder / f"layer{number}.safetensors", layer)
    write_index(folder, [path.name for path in folder.glob("*.safetensors")])


def measured(name: str) -> Row:
    """One case, in this process."""
    method, how = CASES[name]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (WINDOWS, TOKENS), generator=generator)
    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS) as place:
        dense = Path(place) / "dense"
        write_dense(dense)
        before, begun = peak(), (time.perf_counter(), time.process_time())
        done = prune_folder(dense, Path(place) / "smaller", method, data=tokens.split(4), refit=how, progress=False)
        seconds, worked = time.perf_counter() - begun[0], time.process_time() - begun[1]
        size = sum(path.stat().st_size for path in done.path.glob("*.safetensors"))
    layers = [layer.seconds for layer in done.layers]
    return {
        "case": name,
        "layers": LAYERS,
        "parameters": sum(layer.before for layer in done.layers) // LAYERS * WHOLE + 2 * VOCABULARY * WIDTH,
        "left": sum(layer.after for layer in done.layers) // LAYERS * WHOLE + 2 * VOCABULARY * WIDTH,
        "tokens": tokens.numel(),
        "layer_s": sum(layers) / LAYERS,
        "outside_s": seconds - sum(layers),
        "total_s": seconds,
        "worked_s": worked,
        "error_before": _mean(done, "held_before"),
        "error_after": _mean(done, "held_after"),
        "difference": done.difference,
        "bytes": size,
        "peak_before_mb": before,
        "peak_mb": peak(),
    }


def _mean(done: Any, name: str) -> float:
    found = [getattr(fit, name) for layer in done.layers for fit in layer.fits if not fit.reason]
    return float(sum(found) / len(found))


def cases(_: Any) -> Iterator[Case]:
    """Both, where transformers is installed."""
    if importlib.util.find_spec("transformers"):
        for name in CASES:
            yield (name,), partial(measured, name)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [
        "# A language model that is pruned layer by layer",
        "",
        f"`python benchmarks/streamed.py`: one thread, float32, random weights, sizes of a LLaMA of {WHOLE} layers",
        f"and 1.1 billion parameters (4.4 GB), of which {LAYERS} layers were made and pruned, embeddings and head too;",
        f"{WINDOWS} windows of {TOKENS} tokens, for the method and for the refit (one ridge, 0.01). Peak memory is",
        "that of the whole process, Python, PyTorch and transformers included; it does not grow with the number of",
        f"layers. Hours for {WHOLE} layers are projected. The machine was busy with other work: by the clock it takes",
        "longer than the processor time of the process says.",
        "",
        "| case | parameters | left | a layer (s) | the rest (s) | processor / clock | projected (h) | peak (MB) "
        "| error left out | loaded again |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        share = r["worked_s"] / r["total_s"]
        hours = (r["layer_s"] * WHOLE + r["outside_s"]) / 3600
        lines.append(
            f"| {r['case']} | {r['parameters'] / 1e9:.2f} G | {r['left'] / 1e9:.2f} G | {r['layer_s']:.0f} "
            f"| {r['outside_s']:.0f} | {share:.2f} | {hours:.1f}, processor {hours * share:.1f} | {r['peak_mb']:.0f} "
            f"| {r['error_before']:.3f} -> {r['error_after']:.3f} | {r['difference']:.0e} |"
        )
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark("streamed", page, fields("case"), cases, apart=True, packages=("transformers",))

if __name__ == "__main__":
    main(BENCHMARK)
