"""Is it worth measuring again while layers leave? Energy in one, two and four stages, and block by block.

Run ``python benchmarks/depth_stages.py`` after ``benchmarks/depth.py`` (it uses the networks that it trained); name
networks or seeds for a part, ``--table`` for the page alone. Validation images; no test image is touched. Every line of
``docs/results/depth_stages.jsonl`` is one selection, written when it is done: a run that was stopped goes on.
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

import torch
from depth import LOTS, RESULTS, SEEDS, Log, Rows, Trial, prepared, recovered, spread, tested, without

from nervure import Depth, Energy
from nervure.errors import NervureWarning
from nervure.methods.blocks.dropping import BlockBudget, Dropping, droppable

NETWORKS = ("resnet20", "vit", "densenet")
BUDGETS: tuple[tuple[BlockBudget, float], ...] = (("params", 0.5), ("blocks", 2 / 3), ("blocks", 0.4))
JUDGED_ON, RECALIBRATED_ON = 2000, 3
ONE_BY_ONE, INFLUENCE = "block by block", "block influence"
WAYS = ("1 stage", "2 stages", "4 stages", ONE_BY_ONE, INFLUENCE, *LOTS)


def methods(trial: Trial, budget: BlockBudget, keep: float) -> Iterator[tuple[str, Dropping]]:
    """What is compared for one budget."""
    total = len(droppable(trial.graph, "fine"))
    shared = {"keep": keep, "budget": budget}
    stages = {"1 stage": 1, "2 stages": 2, "4 stages": 4, ONE_BY_ONE: total - round(keep * total)}
    for way, number in stages.items():
        yield way, Energy(**shared, stages=number, recalibrate=RECALIBRATED_ON)  # type: ignore[arg-type]
    yield INFLUENCE, Depth(**shared, policy="knapsack")  # type: ignore[arg-type]
    for way, seed in zip(LOTS, (0, 1000), strict=True):
        yield way, Depth(**shared, score="random", seed=seed)  # type: ignore[arg-type]


def study(name: str, seed: int, log: Log) -> None:
    """One network: what each way drops, and what is left of it."""
    trial = prepared(name, seed, Log(RESULTS / "depth.jsonl"))
    trial = replace(trial, data=replace(trial.data, test=trial.data.validation.sample(JUDGED_ON, 0)))
    for budget, keep in BUDGETS:
        for way, method in methods(trial, budget, keep):
            key = {"network": name, "seed": seed, "budget": budget, "keep": round(keep, 2), "way": way}
            if log.find(**key) is not None:
                continue
            start = time.perf_counter()
            dropped = sorted(drop.block for drop in method.plan(trial.view).drops)
            key["seconds"] = round(time.perf_counter() - start, 1)
            same = log.find(network=name, seed=seed, dropped=dropped)
            if same is None:
                smaller = without(trial, dropped)
                same = {"unrecovered": tested(trial, smaller), "recovered": recovered(trial, smaller)}
            log.add(key | {"dropped": dropped} | {what: same[what] for what in ("unrecovered", "recovered")})


def page(rows: Rows) -> str:
    """The results as Markdown."""
    lines = [HEAD]
    for budget, keep in BUDGETS:
        lines += ["", f"## {keep:.0%} of {budget} kept"]
        for name in NETWORKS:
            own = [r for r in rows if (r["network"], r["budget"], r["keep"]) == (name, budget, round(keep, 2))]
            whole = [seed for seed in SEEDS if {r["way"] for r in own if r["seed"] == seed} >= set(WAYS)]
            if not whole:
                continue
            lines += [
                "",
                f"{name}, seeds {whole}",
                "",
                "| way | unrecovered | recovered | above random | seconds |",
            ]
            lines.append("|---|---|---|---|---|")
            lines += [_row([r for r in own if r["seed"] in whole], way) for way in WAYS]
    return "\n".join(lines) + "\n"


def _row(rows: Rows, way: str) -> str:
    of = {w: {r["seed"]: r["recovered"] for r in rows if r["way"] == w} for w in (way, *LOTS)}
    above = [value - mean(of[lot][seed] for lot in LOTS) for seed, value in of[way].items()]
    mine = [r for r in rows if r["way"] == way]
    cells = (spread(r["unrecovered"] for r in mine), spread(of[way].values()), spread(above))
    return f"| {way} | {' | '.join(cells)} | {mean(r['seconds'] for r in mine):.0f} |"


HEAD = f"""# In how many stages

`python benchmarks/depth_stages.py`: the default score and policy of `Energy` on networks of [the study](depth.md), in
several stages: after each the scores are made anew, of what else is lost without each block of the answers of the
whole network. Accuracy in percent on {JUDGED_ON:,} validation images, mean and standard deviation over seeds; "above
random" is the difference of recovered accuracies to the mean of two lots, seed by seed. Seconds are those of the plan,
on one thread of a shared processor."""


def main(names: Sequence[str]) -> None:
    """Go through seeds and networks."""
    warnings.simplefilter("ignore", NervureWarning)
    torch.set_num_threads(1)
    log = Log(RESULTS / "depth_stages.jsonl")
    if "--table" not in names:
        for seed in [s for s in SEEDS if str(s) in names] or SEEDS:
            for name in [n for n in NETWORKS if n in names] or NETWORKS:
                study(name, seed, log)
    (RESULTS / "depth_stages.md").write_text(page(log.rows))


if __name__ == "__main__":
    main(sys.argv[1:])
