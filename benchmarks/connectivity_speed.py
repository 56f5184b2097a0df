"""What scoring the connections of a 512 x 512 layer costs by each estimator, on 2,000 samples and more.

Run ``python benchmarks/connectivity_speed.py [threads]`` (one thread unless said). Everything runs in one process, on
the same samples: 64 x 64 groups by every estimator, 512 x 512 by the default and the Gaussian one. The spanning tree is
timed on a few pairs spread over the layer, and the hash estimators on a few parents with all children; both are
extrapolated, as each pair (parent) costs the same.
Writes ``docs/results/connectivity_speed.json`` and ``docs/results/connectivity_speed.md``.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nervure.dependence import conditional_connectivity, mutual_information

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
CHANNELS, GROUPS, SAMPLES, MORE_SAMPLES = 512, 64, 2000, 6500
TREES, HASHED_PARENTS, ROUNDS = 4, 2, 3


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


def tree_pairs(parents: Tensor, children: Tensor) -> tuple[float, float]:
    """The spanning tree on some pairs of groups as vectors, all other parents given; per pair."""
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


def hash_parent(parents: Tensor, children: Tensor, *, faithful: bool) -> tuple[float, float]:
    """The hash estimator on the first few groups of parents, with as many children groups as there are; per parent."""
    size = CHANNELS // GROUPS
    few = parents[:, : HASHED_PARENTS * size]
    # Fewer channels are given than in the whole layer, but any number above six is projected onto seven.
    spent = seconds(
        lambda: conditional_connectivity(
            few, children, estimator="hash", groups=(GROUPS, HASHED_PARENTS), faithful=faithful
        )
    )
    return spent[0] / HASHED_PARENTS, spent[1] / HASHED_PARENTS


def measured() -> list[dict[str, Any]]:
    """Rows of the table."""
    parents, children = layer(SAMPLES)
    many = layer(MORE_SAMPLES)
    pairs = GROUPS**2
    rows: list[dict[str, Any]] = []

    def add(name: str, work: str, samples: int, spent: list[tuple[float, float]], times: int, how: str) -> None:
        wall, processor = (median(s[k] for s in spent) * times for k in (0, 1))
        rows.append(
            {"estimator": name, "work": work, "samples": samples, "wall_s": wall, "processor_s": processor, "how": how}
        )
        print(json.dumps(rows[-1]), flush=True)

    grouped, whole = f"{GROUPS} x {GROUPS} groups", f"{CHANNELS} x {CHANNELS}"
    add("mst", grouped, SAMPLES, [tree_pairs(parents, children)], pairs, f"{TREES} of {pairs} pairs, extrapolated")
    for faithful in (True, False):
        name = "hash, as published" if faithful else "hash, corrected"
        spent = hash_parent(parents, children, faithful=faithful)
        add(name, grouped, SAMPLES, [spent], GROUPS, f"{HASHED_PARENTS} of {GROUPS} parents, extrapolated")
    cases = [
        ("gaussian", GROUPS, SAMPLES, (parents, children)),
        ("residual (default)", GROUPS, SAMPLES, (parents, children)),
        ("gaussian", CHANNELS, SAMPLES, (parents, children)),
        ("residual (default)", CHANNELS, SAMPLES, (parents, children)),
        ("residual (default)", CHANNELS, MORE_SAMPLES, many),
    ]
    for name, groups, samples, (p, x) in cases:
        estimator = name.split()[0]
        rounds = ROUNDS if groups == GROUPS else 1
        spent_all = [
            seconds(lambda p=p, x=x, g=groups, e=estimator: conditional_connectivity(p, x, estimator=e, groups=g))
            for _ in range(rounds)
        ]
        how = f"measured, median of {rounds}" if rounds > 1 else "measured"
        add(name, grouped if groups == GROUPS else whole, samples, spent_all, 1, how)
    return rows


def table(rows: list[dict[str, Any]], threads: int) -> str:
    """The results as Markdown."""
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


def main() -> None:
    """Measure and write the table."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    conditional_connectivity(*(v[:, :8] for v in layer(400)), estimator="gaussian")  # tables are made once
    rows = measured()
    RESULTS.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": threads, "rows": rows}
    (RESULTS / "connectivity_speed.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "connectivity_speed.md").write_text(table(rows, threads))


if __name__ == "__main__":
    main()
