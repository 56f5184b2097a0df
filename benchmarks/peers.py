"""What ``trace`` and ``prune`` cost beside Torch-Pruning, in processor seconds and in memory.

Run ``python benchmarks/peers.py``, with models' names for some of them. It takes timm, transformers and torch-pruning;
weights are random, nothing is fetched. Each model has a process of its own, and each measure of memory another one.
Writes ``docs/results/peers.*``.
"""

import copy
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Row, Rows, fields, main
from benchmarks.zoo import allow_torchvision
from nervure import Magnitude, count, prune, trace

ROUNDS, LIMIT, SIDE, TOKENS = 3, 60, 224, 32
"""Interleaved rounds, processor seconds that one call may take, pixels of pictures, tokens of texts."""
WIDTH = 0.3
"""The share of each layer's units that Torch-Pruning takes: half of the multiply-accumulates go with it."""

TIMM = {
    "resnet50": "resnet50",
    "convnext_tiny": "convnext_tiny",
    "mobilenetv3_large_100": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "resnext50_32x4d": "resnext50_32x4d",
    "densenet121": "densenet121",
    "vit_base_patch16_224": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "mixer_b16_224": "mixer_b16_224",
    "cspdarknet53": "cspdarknet53",
}
TEXT = ("bert-base", "llama, 24 layers")
TOOLS = ("trace", "prune", "torch_pruning")

Made = tuple[nn.Module, Any]


def build(name: str) -> Made:
    """A model in evaluation mode, and what it is called with."""
    torch.manual_seed(0)
    if name in TEXT:
        return _text_model(name)
    allow_torchvision()
    import timm

    model = timm.create_model(TIMM[name], pretrained=False).eval()
    return model, torch.randn(1, *model.default_cfg["input_size"])


def _text_model(name: str) -> Made:
    allow_torchvision()
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    words = torch.randint(0, 1000, (1, TOKENS))
    if name == "bert-base":
        return BertModel(BertConfig()).eval(), {"input_ids": words}
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "vocab_size": 16_000}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)
    return LlamaForCausalLM(config).eval(), {"input_ids": words, "use_cache": False}


def run(model: nn.Module, example: Any) -> Any:
    """One forward pass."""
    return model(**example) if isinstance(example, dict) else model(example)


# -- what is measured --------------------------------------------------------------------------------------------------


def ours(model: nn.Module, example: Any) -> nn.Module:
    """Half of the multiply-accumulates by magnitude, cut on a copy and verified."""
    method = Magnitude(keep=0.5, budget="macs")
    pruned = prune(model, example, method, verify=True, refit=False, progress=False)
    if pruned.verification is None:
        raise RuntimeError(f"not verified: {pruned.unverified}")
    return pruned.model


def theirs(model: nn.Module, example: Any) -> nn.Module:
    """Torch-Pruning's graph and one step of its pruner, in place; nothing is checked."""
    import torch_pruning as tp

    ends = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name in _heads(model)]
    pruner = tp.pruner.MagnitudePruner(
        model, example, tp.importance.MagnitudeImportance(), pruning_ratio=WIDTH, ignored_layers=ends
    )
    pruner.step()
    return model


def _heads(model: nn.Module) -> set[str]:
    """Layers whose outputs the model returns; here they are called so."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return {last, "classifier", "fc", "head", "head.fc", "lm_head"}


WORK: dict[str, Callable[[nn.Module, Any], Any]] = {"trace": trace, "prune": ours, "torch_pruning": theirs}


class TooLateError(Exception):
    """A call took longer than it may."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise where what is inside takes more processor time."""

    def stop(_: int, __: Any) -> None:
        raise TooLateError(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def timed(tool: str, model: nn.Module, example: Any) -> tuple[float, Any]:
    """Processor seconds, and what came out; the copy that Torch-Pruning edits is not counted."""
    given = copy.deepcopy(model) if tool == "torch_pruning" else model
    with limited(LIMIT):
        start = time.process_time()
        found = WORK[tool](given, example)
        return time.process_time() - start, found


def _is_running(model: nn.Module, example: Any) -> str:
    """Whether it answers; else why not."""
    try:
        with torch.no_grad():
            run(model, example)
    except Exception as error:
        return _told(error)
    return ""


def beyond_weights(tool: str, name: str) -> float | str:
    """The most memory of one call in a process of its own, less what was held before it (MiB); or why it fails."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure_memory, args=(tool, name, sender))
    process.start()
    sender.close()
    try:
        found: float | str = receiver.recv()
    except EOFError:
        found = "the process ended"
    process.join()
    return found


def _measure_memory(tool: str, name: str, sender: Any) -> None:
    """In a fresh process: the kernel forgets the peak of building the model before the call."""
    model, example = build(name)
    if tool == "torch_pruning":
        import torch_pruning  # noqa: F401 - what a library takes when it is imported is not counted
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    try:
        with limited(LIMIT):
            WORK[tool](model, example)
        sender.send(_held("VmHWM") - before)
    except Exception as error:
        sender.send(_told(error))


def _told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:120]


def _held(what: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def measured(name: str) -> Row:
    """The medians of one model; a tool that fails is left out of further rounds."""
    memory = {tool: beyond_weights(tool, name) for tool in TOOLS}
    model, example = build(name)
    with torch.no_grad():
        run(model, example)
    seconds: dict[str, list[float]] = {tool: [] for tool in ("forward", *TOOLS)}
    told = {tool: found for tool, found in memory.items() if isinstance(found, str)}
    left: dict[str, float] = {}
    for _ in range(ROUNDS):
        start = time.process_time()
        with torch.no_grad():
            run(model, example)
        seconds["forward"].append(time.process_time() - start)
        for tool in (tool for tool in TOOLS if tool not in told):
            try:
                took, found = timed(tool, model, example)
            except Exception as error:
                told[tool] = _told(error)
                continue
            seconds[tool].append(took)
            if isinstance(found, nn.Module) and tool not in left:
                left[tool] = 0.0
                if broken := _is_running(found, example):
                    told[tool] = f"what it makes does not run: {broken}"
                else:
                    left[tool] = count(found, example).macs / count(model, example).macs
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": {tool: median(found) for tool, found in seconds.items() if found},
        "memory": {tool: None if isinstance(found, str) else found for tool, found in memory.items()},
        "left": left,
        "told": told,
    }


# -- the page ----------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """The results as Markdown."""
    names = [*TIMM, *TEXT]
    rows = sorted(rows, key=lambda row: names.index(row["model"]))
    lines = [
        "# Beside Torch-Pruning",
        "",
        f"`python benchmarks/peers.py`: processor seconds of one thread, medians of {ROUNDS} interleaved rounds;",
        f"batch 1, random weights, pictures of {SIDE} to 256 px, {TOKENS} tokens. `prune` is",
        '`prune(model, example, Magnitude(keep=0.5, budget="macs"), verify=True, refit=False)`: it traces, plans, cuts',
        "a copy, and checks that the copy computes what the original does without the removed units. Torch-Pruning is",
        f"its graph and one step of `MagnitudePruner`, {WIDTH:.0%} of every layer, in place; it checks nothing, and",
        "that its result runs is looked at afterwards. The machine did other work too, which makes each second longer",
        "or shorter by half: what differs by less does not differ. Neither is given a hint; Torch-Pruning takes some",
        "(the number of heads, layers to leave alone), with which more models of attention come out right.",
        "",
        "| model | forward | trace | prune, verified | Torch-Pruning | theirs / ours | MACs left: ours, theirs |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [_row(row) for row in rows]
    lines += [
        "",
        "Memory (MiB) at its peak, beyond what the process held with the model in it; each in a fresh process:",
        "",
        "| model | weights | trace | prune, verified | Torch-Pruning |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        held = [row["memory"].get(tool) for tool in TOOLS]
        told = " | ".join("fails" if one is None else f"{one:.0f}" for one in held)
        lines.append(f"| {row['model']} | {row['parameters'] * 4 / 2**20:.0f} | {told} |")
    lines += ["", *_where_we_lose(rows)]
    lines += [f"* {row['model']}, {_NAMES[tool]}: {text}" for row in rows for tool, text in row["told"].items()]
    return "\n".join(lines) + "\n"


_NAMES = {"trace": "trace", "prune": "prune", "torch_pruning": "Torch-Pruning"}


def _row(row: Row) -> str:
    seconds, told = row["seconds"], row["told"]
    ratio = f"{seconds['torch_pruning'] / seconds['prune']:.2f}" if _both(row) else ""
    left = ", ".join(f"{row['left'][tool]:.0%}" if row["left"].get(tool) else "-" for tool in TOOLS[1:])

    def show(tool: str) -> str:
        if tool not in seconds:
            return "fails"
        return f"{seconds[tool]:.2f}{' (does not run)' if tool in told else ''}"

    cells = [f"{seconds['forward']:.3f}", *map(show, TOOLS), ratio, left]
    return f"| {row['model']} | {' | '.join(cells)} |"


def _both(row: Row) -> bool:
    return not row["told"] and {"prune", "torch_pruning"} <= row["seconds"].keys()


def _where_we_lose(rows: Rows) -> list[str]:
    """What is slower or larger with nervure, in words."""
    both = [row for row in rows if _both(row)]
    slower = [row for row in both if row["seconds"]["prune"] > 1.1 * row["seconds"]["torch_pruning"]]
    larger = [row for row in both if (row["memory"]["prune"] or 0) > 1.1 * (row["memory"]["torch_pruning"] or 0)]

    def named(found: Rows, of: Callable[[Row], float]) -> str:
        return ", ".join(f"{r['model']} ({of(r):.1f} times)" for r in sorted(found, key=of, reverse=True)) or "none"

    def by_time(row: Row) -> float:
        return float(row["seconds"]["prune"] / row["seconds"]["torch_pruning"])

    def by_memory(row: Row) -> float:
        return float(row["memory"]["prune"] / max(row["memory"]["torch_pruning"], 1))

    return [
        "## Where we lose",
        "",
        f"* In time, of {len(both)} models that both prune: {named(slower, by_time)}.",
        f"* In memory: {named(larger, by_memory)}. Checking holds a copy of the model in double precision.",
        "  Torch-Pruning edits the model itself; a user who keeps the original pays for that copy too.",
    ]


BENCHMARK = Benchmark(
    "peers",
    page,
    fields("model"),
    lambda options: [((name,), partial(measured, name)) for name in (*TIMM, *TEXT)],
    apart=True,
    seconds=600,
    packages=("torch_pruning", "timm", "transformers"),
    tell=lambda row: f"{row['model']}: {row['seconds']} {row['memory']} {row['left']} {row['told']}",
)

if __name__ == "__main__":
    main(BENCHMARK)
