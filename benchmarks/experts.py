"""Half of the experts of a small language model, chosen in several ways, before and after what stays takes over.

Run ``python benchmarks/experts.py --models FOLDER`` (or set ``NERVURE_REAL_MODELS``): texts are those of
``benchmarks/real_data.py``. Needs transformers. Mixtures of eight experts are trained on one text, byte by byte, and
kept in ``runs/experts/``; one thread. Writes ``docs/results/experts.*``.
"""

import importlib
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_data import Batches, read_texts
from benchmarks.real_models import PLACE
from benchmarks.runner import RUNS, Benchmark, Case, Row, Rows, main
from nervure import Cut, Plan, Pruned, Refit, Rerouted, apply, measure, prune, refit, trace, train
from nervure.graph import Graph, Group
from nervure.graph.copies import copy_model
from nervure.refit.calls import heard
from nervure.refit.expert_ends import mixture_ends, mixture_problem
from nervure.refit.origins import origins
from nervure.refit.replay import Replay
from nervure.refit.ridge import solve
from nervure.refit.split import split
from nervure.scores import frequency, magnitude, reap
from nervure.tasks.guessing import as_task

LAYERS, WIDTH, INNER, EXPERTS, CHOSEN, LENGTH = 3, 128, 192, 8, 2, 256
STEPS, BATCH, RATE = 1500, 16, 1e-3
CALIBRATED, TESTED = 48, 24
RECOVERED, GENTLE = 60, 3e-4
RIDGE = 1e-2
LEFT = (6, 4)
SCORES = ("random", "magnitude", "frequency", "reap", "rerouted", "taken over")
TWELFTHS, HELD = 12, (3, 7, 11)


# -- the networks ----------------------------------------------------------------------------------------------------


@cache
def windows(folder: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """By text, windows of bytes to learn from and others to test on: of different twelfths of the text."""
    found = {}
    for name, text in read_texts(folder / "texts").items():
        raw = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        parts = raw[: len(raw) // LENGTH * LENGTH].view(-1, LENGTH).tensor_split(TWELFTHS)
        tested = torch.cat([parts[place] for place in HELD])
        learnt = torch.cat([part for place, part in enumerate(parts) if place not in HELD])
        found[name] = learnt, tested[torch.linspace(0, len(tested) - 1, TESTED).round().long()]
    return found


def draw(folder: Path, seed: int, count: int, size: int) -> Batches:
    """Batches of windows of the first text."""
    learnt = windows(folder)["faq"][0]
    order = torch.randperm(len(learnt), generator=torch.Generator().manual_seed(seed))
    rows = order.repeat(-(-count // len(order)))[:count]
    return [{"input_ids": part, "use_cache": False} for part in learnt[rows].split(size)]


def build(seed: int) -> nn.Module:
    """A Mixtral of eight experts, of which two are chosen for each byte."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(seed)
    config = transformers.MixtralConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, max_position_embeddings=LENGTH,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, router_aux_loss_coef=0.02,
    )  # fmt: skip
    model: nn.Module = transformers.MixtralForCausalLM(config)
    return model.eval()


def next_byte(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the next byte, and what balances experts."""
    found = model(**batch, output_router_logits=True)
    return bits(found.logits, batch["input_ids"]) + 0.02 * found.aux_loss


def bits(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy, in nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def recover(model: nn.Module, folder: Path, seed: int, steps: int, rate: float) -> nn.Module:
    """So many steps of training."""
    batches = draw(folder, seed, steps * BATCH, BATCH)
    train(model, batches, epochs=1, lr=rate, optimizer="adamw", objective=next_byte, seed=seed, progress=False)
    return model.eval()


@cache
def dense(folder: Path, seed: int) -> nn.Module:
    """A trained network; from its file where it was trained before."""
    model, file = build(seed), RUNS / "experts" / f"{LAYERS}-{WIDTH}-{INNER}-{STEPS}-{seed}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(recover(model, folder, seed, STEPS, RATE).state_dict(), file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


@torch.no_grad()
def perplexities(model: nn.Module, folder: Path) -> dict[str, float]:
    """Of a byte, text by text."""
    return {
        name: math.exp(fmean(float(bits(model(part, use_cache=False).logits, part)) for part in tested.split(8)))
        for name, (_, tested) in windows(folder).items()
    }


# -- what leaves -----------------------------------------------------------------------------------------------------


def experts_of(graph: Graph) -> list[Group]:
    """The groups of experts, layer by layer."""
    return [group for group in graph.groups if group.kind == "experts"]


def plan_of(graph: Graph, kept: Mapping[str, Sequence[int]]) -> Plan:
    """These experts stay."""
    cuts = [Cut(name, [unit in stay for unit in range(EXPERTS)]) for name, stay in kept.items()]
    return Plan(tuple(cuts), graph.fingerprint)


def loudest(scores: Mapping[str, Tensor], graph: Graph, left: int) -> dict[str, list[int]]:
    """The experts of the highest scores in each layer."""
    return {g.name: sorted(scores[g.name].topk(left).indices.tolist()) for g in experts_of(graph)}


def chosen(score: str, model: nn.Module, graph: Graph, data: Batches, left: int, seed: int) -> dict[str, list[int]]:
    """The experts that stay, by a score."""
    if score == "taken over":
        return {g.name: eliminate(model, graph, g.name, data, left) for g in experts_of(graph)}
    if score == "rerouted":
        method = Rerouted(keep=left / EXPERTS, samples=CALIBRATED)
        cuts = prune(model, data[0], method, data=data, refit=False, progress=False).plan.cuts
        return {cut.group: cut.keep.tensor().nonzero()[:, 0].tolist() for cut in cuts}
    if score == "random":
        dice = torch.Generator().manual_seed(seed)
        return loudest({g.name: torch.rand(EXPERTS, generator=dice) for g in experts_of(graph)}, graph, left)
    if score == "magnitude":
        return loudest(magnitude(graph, model.state_dict()), graph, left)
    stats = measure(model, graph, data, want={"routing"}, progress=False)
    score_of = {"frequency": frequency, "reap": reap}[score]
    return loudest(score_of(graph, model.state_dict(), stats), graph, left)


def eliminate(model: nn.Module, graph: Graph, name: str, data: Batches, left: int) -> list[int]:
    """One expert after the other leaves a layer: that without which the others come nearest to the whole layer.

    Tokens go where the gate then sends them, and the others take over before they are compared.
    """
    parts = split(data, CALIBRATED, as_task(None))
    stay = list(range(EXPERTS))
    while len(stay) > left:
        errors = {}
        for unit in stay:
            plan = plan_of(graph, {name: [other for other in stay if other != unit]})
            smaller, came = apply(model, graph, plan), origins(model, [(graph, plan)])
            end = next(
                e for e in mixture_ends(smaller, model, graph, came, parts[0].batch) if name.startswith(e.theirs)
            )
            width = (len(stay) - 1) * INNER
            problem = mixture_problem(
                (Replay(smaller), Replay(model)), end, slice(0, width), parts, None, by_surgeon=False
            )
            assert not isinstance(problem, str)
            errors[unit] = max(problem.held_errors(solve(problem, (RIDGE,))))
        stay.remove(min(errors, key=errors.__getitem__))
    return stay


# -- merging, as a control -------------------------------------------------------------------------------------------


@torch.no_grad()
def merged(model: nn.Module, graph: Graph, data: Batches, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Experts that leave are averaged, by how often they are chosen, into that which the gate likes for alike tokens.

    After Li et al., "Merge, then Compress" (2024), without the matching of units.
    """
    stats = measure(model, graph, data, want={"routing"}, progress=False)
    often, changed = frequency(graph, model.state_dict(), stats, normalise="none"), copy_model(model)
    for group in experts_of(graph):
        path = group.name.rpartition(".gate")[0]
        given = [
            args[0].flatten(0, -2)
            for part in split(data, CALIBRATED, as_task(None))
            for args, _, _ in heard(Replay(model), [path], 0, part.batch)[path]
        ]
        logits = torch.cat(given) @ model.get_submodule(path).gate.weight.T
        alike, stay = torch.corrcoef(logits.T), list(kept[group.name])
        homes: dict[int, list[int]] = {unit: [unit] for unit in stay}
        for unit in set(range(EXPERTS)) - set(stay):
            homes[stay[int(alike[unit, stay].argmax())]].append(unit)
        for stack in changed.get_submodule(path).experts.parameters():
            for home, units in homes.items():
                weights = often[group.name][units].clamp(min=1e-9)
                stack[home] = (stack[units] * (weights / weights.sum())[:, None, None]).sum(0)
    return changed


# -- cells -----------------------------------------------------------------------------------------------------------


def run_cell(left: int, score: str, seed: int, options: Namespace) -> Row:
    """Experts that leave by one score: cut, what reads them refitted, they themselves too, and trained a little."""
    folder = options.models
    model, data = dense(folder, seed), draw(folder, 1000 + seed, CALIBRATED, 8)
    graph = trace(model, data[0])
    start = time.process_time()
    kept = chosen(score.removesuffix(", merged"), model, graph, data, left, seed)
    row = Row(key=[left, score, seed], dense=perplexities(model, folder))
    row["seconds"] = round(time.process_time() - start, 1)
    source = merged(model, graph, data, kept) if score.endswith("merged") else model
    cut = prune(source, data[0], plan_of(graph, kept), refit=False, progress=False)
    row["cut"] = perplexities(cut.model, folder)
    row["others refitted"] = perplexities(refitted(cut, model, data, is_frozen=True), folder)
    whole = refitted(cut, model, data, is_frozen=False)
    row["refitted"] = perplexities(whole, folder)
    for name, start_from in (("cut, trained", cut.model), ("refitted, trained", whole)):
        row[name] = perplexities(recover(copy_model(start_from), folder, 2000 + seed, RECOVERED, GENTLE), folder)
    return row


def refitted(cut: Pruned, model: nn.Module, data: Batches, *, is_frozen: bool) -> nn.Module:
    """What stays takes over; frozen: all but the experts do."""
    stacks = [p for name, p in cut.model.named_parameters() if name.endswith("experts.down_proj")]
    for stack in stacks:
        stack.requires_grad_(not is_frozen)
    found: nn.Module = refit(cut, data, reference=model, how=Refit(samples=CALIBRATED), progress=False).result.model
    for stack in (*stacks, *found.parameters()):
        stack.requires_grad_(True)
    return found


def dense_cell(seed: int, options: Namespace) -> Row:
    """The dense network, and after the same training."""
    model = dense(options.models, seed)
    row = Row(key=[EXPERTS, "dense", seed], dense=perplexities(model, options.models))
    trained = recover(copy_model(model), options.models, 2000 + seed, RECOVERED, GENTLE)
    row["cut, trained"] = perplexities(trained, options.models)
    return row


def cases(options: Namespace) -> Iterator[Case]:
    """Networks, amounts, scores."""
    if not options.models:
        print(f"Nothing is run: say where the texts are, --models FOLDER or {PLACE}; see benchmarks/real_data.py.")
        return
    for seed in range(options.seeds):
        yield (EXPERTS, "dense", seed), partial(dense_cell, seed, options)
        for left in LEFT:
            for score in (*SCORES, "frequency, merged"):
                yield (left, score, seed), partial(run_cell, left, score, seed, options)


# -- the page --------------------------------------------------------------------------------------------------------

STAGES = ("cut", "others refitted", "refitted", "cut, trained", "refitted, trained")


def told(rows: Rows, stage: str, text: str) -> str:
    """Mean over networks in multiples of the dense perplexity, and its spread."""
    values = [row[stage][text] / row["dense"][text] for row in rows if stage in row]
    if not values:
        return "–"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = INTRODUCTION.splitlines()
    dense_rows = [row for row in rows if row["key"][1] == "dense"]
    for text, where in TEXTS.items():
        values = [row["dense"][text] for row in dense_rows]
        lines += ["", f"## {where}", ""]
        if values:
            lines += [f"Dense: {', '.join(f'{value:.3f}' for value in values)}, network by network.", ""]
        lines += [
            f"| experts left | chosen by | {' | '.join(STAGES)} | choosing takes | networks |",
            f"|---|---|{'---:|' * (len(STAGES) + 2)}",
        ]
        for left, score in dict.fromkeys((row["key"][0], row["key"][1]) for row in rows):
            mine = [row for row in rows if row["key"][:2] == [left, score]]
            cells = [told(mine, stage, text) for stage in STAGES]
            seconds = f"{fmean(row['seconds'] for row in mine):.0f} s" if "seconds" in mine[0] else "–"
            lines.append(f"| {left} | {score} | {' | '.join(cells)} | {seconds} | {len(mine)} |")
    return "\n".join(lines) + "\n"


TEXTS = {"faq": "At home", "manual": "Abroad: a manual", "bible": "Abroad: the Bible"}
INTRODUCTION = f"""# Experts that leave, and those that take over

`python benchmarks/experts.py --models FOLDER`; processor seconds of one thread. Language models of {LAYERS} layers of
width {WIDTH} with {EXPERTS} experts of {INNER}, of which {CHOSEN} are chosen (a small Mixtral), trained for {STEPS}
steps of {BATCH} windows of {LENGTH} bytes on the first text, a political FAQ. Perplexity of a byte, in multiples of the
dense network's, on {TESTED} windows of each text that were never trained or calibrated on. ± is the spread over
networks, which differ in their first weights and their data; it is no error of the mean.

*Others refitted*: all layers are refitted but the experts, on {CALIBRATED} windows. *Refitted*: the experts' last
matrices too, all experts of a layer at once. *Trained*: {RECOVERED} steps like those before. *Rerouted*: an expert's
score is how far its layer then is from what it gave, its tokens sent on by the gate; one leaves after the other
(`Rerouted`). *Taken over*: the same after the others were fitted (ridge {RIDGE:g}), on samples left out of the fit.
*Merged*: what leaves is averaged into the expert whose gate follows it most."""

BENCHMARK = Benchmark(
    "experts",
    page,
    cases=cases,
    arguments={
        "--models": {"type": Path, "default": os.environ.get(PLACE), "help": "the folder of the unpacked packages"},
        "--seeds": {"type": int, "default": 3, "help": "networks"},
    },
    packages=("transformers",),
)

if __name__ == "__main__":
    main(BENCHMARK)
