"""Pruned decoders in llama.cpp: perplexity and every token's probability beside PyTorch's, for plans drawn by lot.

Run ``python benchmarks/gguf_files.py --model FOLDER --llamacpp FOLDER``: a folder of transformers with a decoder and
its tokenizer, and a folder in which ``npm install node-llama-cpp`` was run (node 20). One thread; it needs
``pip install 'nervure[transformers,gguf]'``. Writes ``docs/results/gguf_files.*``.
"""

import json
import math
import random
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import ROOT, Benchmark, Case, Row, Rows, fields, main
from nervure import Cut, Drop, Graph, Keep, Plan, apply, export, trace
from nervure.scores import magnitude

PLANS, WINDOWS, LENGTH = 20, 2, 64
ONE_WIDTH = (0.6, 1.0)
"""Of these shares one is drawn where all layers are to be alike."""
LOWER = ("float16", "bf16", "q8_0")
ALLOWED = 0.01
"""Largest difference of perplexities, as a share of PyTorch's."""
TEXTS = ("docs/concepts.md", "docs/tutorial.md")


@cache
def dense(folder: str) -> tuple[nn.Module, Any, Graph]:
    """The model, its tokenizer, and what is coupled in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder), trace(model, example())


def example() -> dict[str, Any]:
    """Tokens on which it is traced."""
    return {"input_ids": torch.arange(32)[None], "use_cache": False}


def windows(tokenizer: Any) -> Tensor:
    """Windows of our own pages [windows, length], without overlap."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in TEXTS)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(tokens[: WINDOWS * LENGTH]).view(WINDOWS, LENGTH)


# -- plans ---------------------------------------------------------------------------------------------------------


def draw_plan(model: nn.Module, graph: Graph, seed: int) -> Plan:
    """Widths of all feed-forward networks, fewer heads in three layers, branches and a layer to drop, by lot.

    Where llama.cpp has one width for all layers, that alone.
    """
    lot, layers = random.Random(seed), len(model.get_submodule("model.layers"))
    if not has_own_widths(model):
        share, scores = lot.uniform(*ONE_WIDTH), magnitude(graph, dict(model.state_dict()))
        names = [f"model.layers.{i}.mlp.gate_proj" for i in range(layers)]
        cuts = (Cut(name, strongest(scores[name], round(share * graph[name].size))) for name in names)
        return Plan(tuple(cuts), graph.fingerprint)
    order = lot.sample(range(2, layers - 1), 6)
    drops = [f"model.layers.{order[0]}.self_attn", f"model.layers.{order[1]}.mlp"]
    # Every other plan also loses a layer, and those behind it another number.
    drops += [f"model.layers.{order[2]}"] if seed % 2 else []
    gone = {number for number, drop in zip(order, drops, strict=False) if not drop.endswith("self_attn")}
    scores = magnitude(graph, dict(model.state_dict()))
    counts = {f"model.layers.{i}.mlp.gate_proj": lot.uniform(0.85, 1) for i in range(layers) if i not in gone}
    counts |= {f"model.layers.{i}.self_attn.q_proj": 0.7 for i in order[3:]}
    keeps = {name: strongest(scores[name], max(1, round(share * graph[name].size))) for name, share in counts.items()}
    edits = (*(Cut(name, keep) for name, keep in keeps.items()), *map(Drop, drops))
    return Plan(edits, graph.fingerprint)


def has_own_widths(model: nn.Module) -> bool:
    """Whether llama.cpp runs such a decoder with another width in each layer: as ``deci``, which is a LLaMA inside."""
    config: Any = model.config
    return config.model_type == "llama"


def strongest(scores: Tensor, number: int) -> Keep:
    """The highest of these scores."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:number]] = True
    return Keep.of(kept)


# -- what is measured ----------------------------------------------------------------------------------------------


def compare(name: str, options: Namespace, plan: str, precision: str) -> Row:
    """A model in both, on the same windows."""
    model, tokenizer, graph = dense(str(options.model))
    cut = apply(model, graph, draw_plan(model, graph, int(plan))).eval() if plan != "dense" else model
    tokens = windows(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        file = export(cut, example(), Path(folder) / "m.gguf", precision=precision, tokenizer=options.model)
        theirs = in_engine(file.path, tokens, options.llamacpp)
        bytes_ = file.path.stat().st_size
        architecture = architecture_of(file.path)
    ours = in_torch(cut, tokens)
    log_a, log_b = ([p for p, _ in row] for row in (ours, theirs))
    return {
        "model": name,
        "plan": plan,
        "precision": precision,
        "architecture": architecture,
        "params": sum(parameter.numel() for parameter in cut.parameters()),
        "bytes": bytes_,
        "torch": math.exp(-mean(log_a)),
        "engine": math.exp(-mean(log_b)),
        "largest": max(abs(a - b) for a, b in zip(log_a, log_b, strict=True)),
        "middle": median(abs(a - b) for a, b in zip(log_a, log_b, strict=True)),
        "same": mean(float(a == b) for (_, a), (_, b) in zip(ours, theirs, strict=True)),
        "checked": file.checks["random"].largest,
    }


def architecture_of(path: Path) -> str:
    """What the file says that it is."""
    from nervure.export.gguf import GgufReader

    return str(GgufReader(path).settings["general.architecture"])


@torch.no_grad()
def in_torch(model: nn.Module, tokens: Tensor) -> list[tuple[float, int]]:
    """Log-probability of every next token, and the most probable one."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
    found = logits.gather(2, tokens[:, 1:, None]).flatten().tolist()
    return list(zip(found, logits.argmax(-1).flatten().tolist(), strict=True))


def in_engine(path: Path, tokens: Tensor, folder: Path) -> list[tuple[float, int]]:
    """The same of llama.cpp."""
    listed = path.with_name("windows.json")
    listed.write_text(json.dumps(tokens.tolist()))
    script = Path(__file__).with_name("gguf_engine.mjs")
    command = ["node", str(script), str(folder), str(path), str(listed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp: {done.stderr[-800:]}")
    return [(p, top) for row in json.loads(done.stdout) for p, top in row]


def cases(options: Namespace) -> Iterator[Case]:
    """The dense model, the plans, and the dense model in lower precisions."""
    if options.model is None or options.llamacpp is None:
        sys.exit("Give --model FOLDER (of a decoder) and --llamacpp FOLDER (where node-llama-cpp is installed).")
    name = options.name or options.model.name
    plans = [("dense", "float32"), *((str(number), "float32") for number in range(PLANS))]
    plans += [("dense", precision) for precision in LOWER]
    for plan, precision in plans:
        yield (name, plan, precision), partial(compare, name, options, plan, precision)


# -- the page ------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Pruned decoders in llama.cpp

`python benchmarks/gguf_files.py`: a decoder of transformers is cut, written by `export` as GGUF, and run by stock
llama.cpp (`node-llama-cpp`, CPU, one thread), beside PyTorch on {windows} windows of {length} tokens of our own pages.
Nothing is trained or fitted after the cut: the plans exercise the format, and their perplexities say nothing about
pruning.

A *plan* draws by lot another width for every feed-forward network (85 to 100 %), leaves two thirds of the heads in
three layers, drops one attention and one feed-forward network, and in every other plan a layer. Of decoders that
llama.cpp runs with one width for all layers alone (all but LLaMA, whose layers may differ as `deci`) it draws that
width, of 60 to 100 %. Perplexities are to be within {allowed:.0%}. {verdict}

| {head} |
|{rule}
"""
HEAD = (
    "model", "plan", "precision", "architecture", "parameters", "MB", "PyTorch", "llama.cpp", "difference",
    "token, median", "token, largest", "same first",
)  # fmt: skip
LINES = """
*token*: difference of the log-probability of one next token; llama.cpp keeps keys and values in half precision. *same
first*: share of places at which both hold the same token for the most probable. In q8_0 llama.cpp also rounds what
enters a matrix to 8 bits.
"""


def difference(row: Row) -> float:
    """Of perplexities, as a share of PyTorch's."""
    return float(row["engine"] / row["torch"] - 1)


def verdict(rows: Sequence[Row]) -> str:
    """How many plans of each model are within what is allowed."""
    return " ".join(verdict_of(name, rows) for name in sorted({row["model"] for row in rows}))


def verdict_of(name: str, rows: Sequence[Row]) -> str:
    """How many plans of a model are within what is allowed."""
    plans = [abs(difference(row)) for row in rows if row["plan"] != "dense" and row["model"] == name]
    if not plans:
        return f"{name}: not measured yet."
    good = sum(apart <= ALLOWED for apart in plans)
    measured = f"the {len(plans)} plans measured so far (of {PLANS})" if len(plans) < PLANS else f"{PLANS} plans"
    return f"{name}: {good} of {measured} are, the largest difference is {max(plans):.2%}."


def line(row: Row) -> str:
    """A row of the table."""
    cells = [
        row["model"],
        row["plan"],
        row["precision"],
        f"`{row['architecture']}`",
        f"{row['params'] / 1e6:.1f} M",
        f"{row['bytes'] / 1e6:.0f}",
        f"{row['torch']:.2f}",
        f"{row['engine']:.2f}",
        f"{difference(row):+.2%}",
        f"{row['middle']:.4f}",
        f"{row['largest']:.3f}",
        f"{row['same']:.1%}",
    ]
    return f"| {' | '.join(cells)} |\n"


def page(rows: Rows) -> str:
    """All rows as Markdown."""
    ordered = sorted(rows, key=lambda row: (row["model"], row["plan"] != "dense", row["plan"].zfill(3)))
    head, rule = " | ".join(HEAD), "---|" * len(HEAD)
    told = {"windows": WINDOWS, "length": LENGTH, "allowed": ALLOWED, "verdict": verdict(rows)}
    return INTRODUCTION.format(**told, head=head, rule=rule) + "".join(map(line, ordered)) + LINES


BENCHMARK = Benchmark(
    "gguf_files",
    page,
    fields("model", "plan", "precision"),
    cases,
    packages=("transformers", "gguf"),
    arguments={
        "--model": {"type": Path, "help": "folder of transformers with a decoder and its tokenizer"},
        "--name": {"help": "of the model, in the table; else that of the folder"},
        "--llamacpp": {"type": Path, "help": "folder in which npm install node-llama-cpp was run"},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
