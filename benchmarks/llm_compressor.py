"""Half of the weights of a real language model masked: nervure beside llm-compressor, in one run.

Run ``python benchmarks/llm_compressor.py --models FOLDER`` in an environment that has ``llmcompressor`` (0.6, the last
of those that prune; with ``transformers`` 4) and what ``benchmarks/real_models.py`` needs; one thread. Both see the
same windows of text, and are measured on the same others, by perplexity on the text calibrated on and on two others.
Writes ``docs/results/llm_compressor.*``.
"""

import importlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_data import Batches, Subject, language_model
from benchmarks.real_models import PLACE
from benchmarks.runner import Benchmark, Case, Row, Rows, main
from nervure import Refit, SparseGPT, Wanda, prune
from nervure.graph.copies import copy_model
from nervure.graph.tape import named_tensors

WINDOWS, SAMPLES = 12, 32
"""Windows of 256 tokens that are tested of each text, and that are calibrated on."""
HEAD = ("lm_head*",)
PATTERNS = {"50 % of weights": ("element", "0:0"), "2 of 4 weights": ("2:4", "2:4")}
"""What stays, as the two libraries call it."""


def by_llm_compressor(pipeline: str, subject: Subject, batches: Batches, pattern: str) -> nn.Module:
    """SparseGPT of llm-compressor, on the same windows; its default pipeline traces by FX, which fails here."""
    library, datasets = importlib.import_module("llmcompressor"), importlib.import_module("datasets")
    modifier = importlib.import_module("llmcompressor.modifiers.obcq").SparseGPTModifier
    ids = torch.cat([batch["input_ids"] for batch in batches])
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    model = copy_model(subject.model)
    file = Path(model.config.name_or_path) / "tokenizer.json"
    words = importlib.import_module("transformers").PreTrainedTokenizerFast(tokenizer_file=str(file))
    recipe = modifier(sparsity=0.5, mask_structure=PATTERNS[pattern][1], targets=["Linear"], ignore=["re:.*lm_head"])
    library.oneshot(
        model=model, tokenizer=words, dataset=data, recipe=[recipe],
        pipeline=pipeline, max_seq_length=ids.shape[1], num_calibration_samples=len(ids),
    )  # fmt: skip
    return model.eval()


def by_nervure(method: type, how: Refit | bool, subject: Subject, batches: Batches, pattern: str) -> nn.Module:
    """A method of nervure, refitted or not."""
    chosen = method(density=0.5, granularity=PATTERNS[pattern][0], dense=HEAD)
    pruned = prune(
        subject.model, subject.example, chosen, data=batches, task=subject.objective, refit=how, progress=False
    )
    return pruned.model


ARMS: Mapping[str, Callable[[Subject, Batches, str], nn.Module]] = {
    "llm-compressor, SparseGPT, layer by layer": partial(by_llm_compressor, "layer_sequential"),
    "llm-compressor, SparseGPT, all layers at once": partial(by_llm_compressor, "basic"),
    "Wanda": partial(by_nervure, Wanda, False),
    "Wanda, refitted": partial(by_nervure, Wanda, Refit(samples=SAMPLES)),
    "SparseGPT, refitted by the surgeon": partial(by_nervure, SparseGPT, Refit(samples=SAMPLES, masks="surgeon")),
    "SparseGPT, refitted": partial(by_nervure, SparseGPT, Refit(samples=SAMPLES)),
}


@cache
def load(folder: Path) -> Subject:
    """The model and its texts, once."""
    return language_model(folder, WINDOWS)


def run(pattern: str, arm: str, options: Namespace) -> Row:
    """One line: perplexities, zeros, processor time and the most memory."""
    subject = load(options.models)
    batches = subject.domains["faq"](0, SAMPLES)
    start = time.process_time()
    model = ARMS[arm](subject, batches, pattern)
    seconds = time.process_time() - start
    tensors = [t for name, t in named_tensors(model).items() if "proj" in name and t.ndim == 2]
    zeros = sum(int((t == 0).sum()) for t in tensors) / sum(t.numel() for t in tensors)
    found = {"seconds": round(seconds, 1), "zeros": round(zeros, 4), "dense": subject.score(subject.model)}
    return Row(key=[pattern, arm]) | found | {"sparse": subject.score(model)}


def cases(options: Namespace) -> Iterator[Case]:
    """Patterns, arm by arm."""
    if not options.models:
        print(f"Nothing is run: say where the model is, --models FOLDER or {PLACE}; see benchmarks/real_data.py.")
        return
    for pattern in PATTERNS:
        for arm in ARMS:
            yield (pattern, arm), partial(run, pattern, arm, options)


def page(rows: Rows) -> str:
    """The results as Markdown."""
    text = INTRODUCTION.splitlines()
    for pattern in dict.fromkeys(row["key"][0] for row in rows):
        mine: list[dict[str, Any]] = [row for row in rows if row["key"][0] == pattern]
        domains = list(mine[0]["dense"])
        dense = ", ".join(f"{name} {mine[0]['dense'][name]:.1f}" for name in domains)
        text += ["", f"## {pattern.capitalize()}", "", f"Dense: {dense}.", ""]
        text += [f"| | {' | '.join(domains)} | zeros | processor time |", f"|---|{'---:|' * (len(domains) + 2)}"]
        for row in mine:
            ratios = [f"{row['sparse'][name] / row['dense'][name]:.2f}" for name in domains]
            text.append(f"| {row['key'][1]} | {' | '.join(ratios)} | {row['zeros']:.1%} | {row['seconds']:.0f} s |")
    return "\n".join(text) + "\n"


INTRODUCTION = f"""# Masks of a language model, beside llm-compressor

`python benchmarks/llm_compressor.py --models FOLDER`; one thread. SmolLM2-135M-Instruct, all linear layers but the
head; calibrated on {SAMPLES} windows of 256 tokens of a text, measured on {WINDOWS} other windows of it (faq) and of
two others. Perplexity in multiples of the dense model's. One draw of windows: a few hundredths mean nothing."""

BENCHMARK = Benchmark(
    "llm_compressor",
    page,
    cases=cases,
    arguments={
        "--models": {"type": Path, "default": os.environ.get(PLACE), "help": "the folder of the unpacked packages"},
    },
    packages=("transformers", "llmcompressor"),
)

if __name__ == "__main__":
    main(BENCHMARK)
