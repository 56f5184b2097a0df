"""Is it worth measuring again while layers leave? Energy in one, two and four stages, and block by block.

Run ``python benchmarks/depth_stages.py`` after ``benchmarks/depth.py`` (it uses the networks that it trained); name
networks or seeds for a part. Validation images; no test image is touched. Writes ``docs/results/depth_stages.*``.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import depth
from benchmarks.depth import LOTS, SEEDS, Trial, prepared, recovered, tested, without
from benchmarks.runner import RESULTS, Benchmark, Results, Rows, fields, main, spread
from nervure import Depth, Energy
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


def compare_ways(name: str, seed: int, log: Results) -> None:
    """One network: what each way drops, and what is left of it."""
    others = Results(RESULTS / "depth.jsonl", depth.key)
    others.about = log.about
    trial = prepared(name, seed, others)
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


def study(log: Results, options: Namespace) -> None:
    """Go through seeds and networks."""
    for seed in [s for s in SEEDS if str(s) in options.names] or SEEDS:
        for name in [n for n in NETWORKS if n in options.names] or NETWORKS:
            compare_ways(name, seed, log)


BENCHMARK = Benchmark("depth_stages", page, fields("network", "seed", "budget", "keep", "way"), study=study)

if __name__ == "__main__":
    main(BENCHMARK)
