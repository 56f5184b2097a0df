"""What scoring the connections of a 512 x 512 layer costs by each estimator, on 2,000 samples and more.

Run ``python benchmarks/connectivity_speed.py [threads]`` (one thread unless said). Everything runs in one process, on
the same samples: 64 x 64 groups by every estimator, 512 x 512 by the default and the Gaussian one. The spanning tree is
timed on a few pairs spread over the layer, and the hash estimators on a few parents with all children; both are
extrapolated, as each pair (parent) costs the same.
Writes ``docs/results/connectivity_speed.*``.
"""

import platform
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure.dependence import conditional_connectivity, mutual_information

CHANNELS, GROUPS, SAMPLES, MORE_SAMPLES = 512, 64, 2000, 6500
TREES, HASHED_PARENTS, ROUNDS = 4, 2, 3


@cache
def layer(samples: int) -> tuple[Tensor, Tensor]:
    """Correlated ReLU parents and ReLU children, [samples, 512] each."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(samples, CHANNELS // 4, generator=generator)
    parents = torch.relu(hidden @ torch.randn(CHANNELS // 4, CHANNELS, generator=generator) / 8 + 0.3)
    weights = torch.randn(CHANNELS, CHANNELS, generator=generator) / CHANNELS**0.5
    return parents, torch.relu(parents @ weights)


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def tree_pairs() -> tuple[float, float]:
    """The spanning tree on some pairs of groups as vectors, all other parents given; per pair."""
    parents, children = layer(SAMPLES)
    wall = processor = 0.0
    size = CHANNELS // GROUPS
    for k in range(TREES):
        mine = torch.zeros(CHANNELS, dtype=torch.bool)
        start = (k * GROUPS // TREES) * size
        mine[start : start + size] = True
        child = children[:, start : start + size]
        spent = seconds(
            lambda m=mine, c=child: mutual_information(c, parents[:, m], given=parents[:, ~m], estimator="mst")
        )
        wall, processor = wall + spent[0], processor + spent[1]
    return wall / TREES, processor / TREES


def hash_parent(faithful: bool) -> tuple[float, float]:
    """The hash estimator on the first few groups of parents, with as many children groups as there are; per parent."""
    size = CHANNELS // GROUPS
    parents, children = layer(SAMPLES)
    few = parents[:, : HASHED_PARENTS * size]
    # Fewer channels are given than in the whole layer, but any number above six is projected onto seven.
    spent = seconds(
        lambda: conditional_connectivity(
            few, children, estimator="hash", groups=(GROUPS, HASHED_PARENTS), faithful=faithful
        )
    )
    return spent[0] / HASHED_PARENTS, spent[1] / HASHED_PARENTS


def whole(estimator: str, groups: int, samples: int) -> tuple[float, float]:
    """All pairs of groups by an estimator."""
    return seconds(lambda: conditional_connectivity(*layer(samples), estimator=estimator, groups=groups))


def cases(options: Namespace) -> Iterator[Case]:
    """What is timed, how often, and how many times as long all of it would take."""

    def case(name: str, groups: int, samples: int, time: Callable[[], Any], rounds: int, times: int, how: str) -> Case:
        key = options.threads, name, f"{groups} x {groups}{' groups' if groups == GROUPS else ''}", samples
        return key, partial(measured, key, time, rounds, times, how)

    pairs = GROUPS**2
    yield case("mst", GROUPS, SAMPLES, tree_pairs, 1, pairs, f"{TREES} of {pairs} pairs, extrapolated")
    for name, faithful in (("hash, as published", True), ("hash, corrected", False)):
        how = f"{HASHED_PARENTS} of {GROUPS} parents, extrapolated"
        yield case(name, GROUPS, SAMPLES, partial(hash_parent, faithful), 1, GROUPS, how)
    for groups, samples in ((GROUPS, SAMPLES), (CHANNELS, SAMPLES), (CHANNELS, MORE_SAMPLES)):
        rounds = ROUNDS if groups == GROUPS else 1
        how = f"measured, median of {rounds}" if rounds > 1 else "measured"
        for name in ("gaussian", "residual (default)") if samples == SAMPLES else ("residual (default)",):
            time = partial(whole, name.split()[0], groups, samples)
            yield case(name, groups, samples, time, rounds, 1, how)


def measured(key: tuple[Any, ...], time: Callable[[], Any], rounds: int, times: int, how: str) -> Row:
    """A row of the table."""
    torch.set_num_threads(key[0])
    conditional_connectivity(*(v[:, :8] for v in layer(400)), estimator="gaussian")  # tables are made once
    spent = [time() for _ in range(rounds)]
    wall, processor = (median(s[k] for s in spent) * times for k in (0, 1))
    row = dict(zip(("threads", "estimator", "work", "samples"), key, strict=True))
    return row | {"wall_s": wall, "processor_s": processor, "how": how}


def page(rows: Rows) -> str:
    """The results as Markdown."""
    threads = rows[-1]["threads"]
    rows = [row for row in rows if row["threads"] == threads]
    tree = next(r for r in rows if r["estimator"] == "mst")
    ours = next(r for r in rows if r["estimator"].startswith("residual"))
    ratio = tree["processor_s"] / ours["processor_s"]
    lines = [
        "# What scoring connections costs",
        "",
        f"`python benchmarks/connectivity_speed.py {threads}`: a layer of {CHANNELS} parents and {CHANNELS} children,",
        f"{threads} thread(s) of a {platform.machine()} machine that others used too: processor seconds are the",
        "fairer column.",
        "",
        "| estimator | work | samples | wall (s) | processor (s) | how |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        spent = f"{r['wall_s']:.2f} | {r['processor_s']:.2f}"
        lines.append(f"| {r['estimator']} | {r['work']} | {r['samples']} | {spent} | {r['how']} |")
    return "\n".join(
        [
            *lines,
            "",
            f"On the same {GROUPS} x {GROUPS} groups the default takes {ratio:,.0f} times less processor time than the",
            "spanning tree, which scores groups as vectors; the default scores their means.",
            "",
        ]
    )


BENCHMARK = Benchmark(
    "connectivity_speed",
    page,
    fields("threads", "estimator", "work", "samples"),
    cases,
    arguments={"threads": {"nargs": "?", "type": int, "default": 1}},
)

if __name__ == "__main__":
    main(BENCHMARK)
