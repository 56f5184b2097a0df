"""How much of a cut in multiply-accumulates becomes speed, engine by engine, and where a cut makes a network slower.

Run ``python benchmarks/engine_speed.py`` (or a part of it: name networks and engines behind it); one thread. Networks
have random weights: time does not ask what they know. A line of ``docs/results/engine_speed.jsonl`` is one network on
one engine; all its variants are timed in turn with the dense network.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import view_of
from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import Depth, Magnitude, apply, count, latency, trace
from nervure.budget import allocate
from nervure.engines import ENGINES
from nervure.errors import BudgetError
from nervure.evaluation.timing import machine
from nervure.graph.types import Graph
from nervure.methods import View
from nervure.plan import Plan
from nervure.report.markdown import table_text
from nervure.report.tables import Table
from nervure.zoo import build

KEEPS = (0.5, 0.25)
BATCHES: Mapping[str, tuple[int, ...]] = {name: (1, 32, 128) for name in ENGINES} | {"compile": (32,)}
"""torch.compile compiles for each batch anew, most of a minute each time."""
ROUNDS, SECONDS = 10, 3.0
WIDTHS, INNER, BLOCKS = "all widths alike", "inner widths alike", "whole blocks"


@dataclass(frozen=True)
class Network:
    """A network; where it has blocks, how the groups inside them end: all widths, those or whole blocks are cut."""

    make: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    inner: tuple[str, ...] = ()
    side: int = 32


NETWORKS: Mapping[str, Network] = {
    "vgg16": Network(lambda: build("vgg16"), lambda: build("vgg16", width=0.25)),
    "resnet20": Network(lambda: build("resnet20"), lambda: build("resnet20")),
    "resnet56": Network(lambda: build("resnet56"), lambda: build("resnet20"), (".conv1",)),
    "mobilenetv2": Network(
        lambda: build("mobilenetv2", image_size=32, num_classes=10),
        lambda: build("mobilenetv2", image_size=32, num_classes=10, width=0.25),
    ),
    "vit": Network(lambda: build("vit_tiny"), lambda: build("vit_tiny", depth=2, dim=96), (".qkv", ".fc1")),
}


def variants(
    network: Network, model: nn.Module, graph: Graph, example: Any
) -> Iterator[tuple[str, float, int, Plan | None]]:
    """What is timed: how it is cut, the share of the MACs asked, what sizes are multiples of, and the plan."""
    view = view_of(model, example, graph=graph, data=[example] * 4)
    for keep in KEEPS:
        for multiple in (1, 16):
            yield from planned(
                "ranked", keep, multiple, lambda k, m: Magnitude(keep=k, budget="macs", multiple=m), view
            )
            if network.inner:
                layers = lambda k, m: Magnitude(keep=k, budget="macs", scope="layer", multiple=m)  # noqa: E731
                yield from planned(WIDTHS, keep, multiple, layers, view)
                inner = lambda k, m: Inner(k, m, network.inner)  # noqa: E731
                yield from planned(INNER, keep, multiple, inner, view)
        if network.inner:
            yield from planned(BLOCKS, keep, 1, lambda k, m: Depth(keep=k, budget="macs", score="random"), view)


@dataclass(frozen=True)
class Inner:
    """Cut what is inside residual blocks alone (groups whose names end so), the same share of each."""

    keep: float
    multiple: int
    names: tuple[str, ...]

    def plan(self, view: View) -> Plan:
        """Those of other groups get scores that none inside reaches, and stay by their floors."""
        scores = {g.name: torch.arange(g.size, 0, -1).float() for g in view.graph.prunable}
        floors = {g.name: g.size for g in view.graph.prunable if not g.name.endswith(self.names)}
        options: dict[str, Any] = {"budget": "macs", "scope": "layer", "multiple": self.multiple, "floors": floors}
        return allocate(view.graph, scores, keep=self.keep, **options)


def planned(
    kind: str, keep: float, multiple: int, method: Callable[[float, int], Any], view: View
) -> Iterator[tuple[str, float, int, Plan | None]]:
    """The plan; None where there is none within the budget."""
    try:
        yield kind, keep, multiple, method(keep, multiple).plan(view)
    except BudgetError as error:
        print(f"  {kind}, {keep:.0%}, multiple {multiple}: {error}", flush=True)
        yield kind, keep, multiple, None


def timed(name: str, engine: str, quick: bool) -> Row:
    """All variants of one network on one engine, timed in turn."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = (network.small if quick else network.make)().eval()
    example = torch.randn(4, 3, network.side, network.side)
    graph, whole = trace(model, example[:1]), count(model, example[:1]).macs
    tried = list(variants(network, model, graph, example[:1]))
    found = [(*called, plan) for *called, plan in tried if plan is not None]
    missing = [dict(zip(("kind", "keep", "multiple"), called, strict=True)) for *called, plan in tried if plan is None]
    smaller = {str(place): apply(model, graph, plan).eval() for place, (*_, plan) in enumerate(found)}
    batches = (1, 4) if quick else BATCHES[engine]
    rounds, seconds = (3, 0.0) if quick else (ROUNDS, SECONDS)
    models = {"dense": model, **smaller}
    table = latency(models, example, engine=engine, batch_sizes=batches, rounds=rounds, seconds=seconds)
    rows = [
        {
            "batch": batch,
            "kind": kind,
            "keep": keep,
            "multiple": multiple,
            "macs": count(smaller[str(place)], example[:1]).macs / whole,
            "ratio": table.row(str(place), batch).ratio,
            "quartiles": table.row(str(place), batch).ratio_quartiles,
            "dense_ms": 1e3 * table.median("dense", batch),
        }
        for batch in batches
        for place, (kind, keep, multiple, _) in enumerate(found)
    ]
    return {
        "network": name,
        "engine": engine,
        "machine": machine(torch.device("cpu")),
        "rows": rows,
        "missing": missing,
    }


def share(row: Mapping[str, Any]) -> float:
    """How much of the cut in MACs became speed: 1 where the network is as much faster as it has fewer MACs."""
    return float(row["macs"] / row["ratio"])


def page(lines: Rows) -> str:
    """The page: a table for each network, and what was slower than the dense network."""
    engines = [name for name in ENGINES if any(line["engine"] == name for line in lines)]
    text = [
        "# How much of a cut becomes speed",
        "",
        f"Made by `python benchmarks/engine_speed.py` on {lines[0]['machine']}; one thread, random weights. A cell is "
        "the share of the cut in multiply-accumulates that became speed (speed-up / MAC ratio; 1 is all), and the "
        "speed-up itself. *ranked*: one ranking of magnitudes over all layers; *alike*: the same share of each layer.",
    ]
    for network in dict.fromkeys(line["network"] for line in lines):
        mine = {line["engine"]: line["rows"] for line in lines if line["network"] == network}
        text += ["", f"## {network}", "", table_text(_table(mine, [e for e in engines if e in mine]))]
        missing = next(line["missing"] for line in lines if line["network"] == network)
        if missing:
            text += ["", f"No plan reaches: {'; '.join(_called(m) for m in missing)}."]
    slower = [
        f"* {line['network']}, {line['engine']}, batch {row['batch']}: {_called(row)}, {row['ratio']:.2f} of the dense "
        f"time for {row['macs']:.0%} of the MACs"
        for line in lines
        for row in line["rows"]
        if row["ratio"] > 1
    ]
    text += ["", "## Slower than the dense network", "", *(slower or ["None."])]
    return "\n".join(text) + "\n"


def _called(row: Mapping[str, Any]) -> str:
    return f"{row['kind']}, {row['keep']:.0%}" + (f", multiples of {row['multiple']}" if row["multiple"] > 1 else "")


def _table(mine: Mapping[str, Sequence[Mapping[str, Any]]], engines: Sequence[str]) -> Table:
    columns = [(engine, batch) for engine in engines for batch in dict.fromkeys(r["batch"] for r in mine[engine])]
    cells = {(e, r["batch"], _called(r)): r for e in engines for r in mine[e]}
    rows = []
    for name in dict.fromkeys(_called(row) for e in engines for row in mine[e]):
        found = [cells.get((engine, batch, name)) for engine, batch in columns]
        macs = next(row["macs"] for row in found if row)
        rows.append((name, f"{macs:.1%}", *(f"{share(r):.2f} ({1 / r['ratio']:.2f}x)" if r else "" for r in found)))
    return Table(("cut", "MACs", *(f"{engine}, batch {batch}" for engine, batch in columns)), tuple(rows))


def cases(options: Namespace) -> Iterator[Case]:
    """Every network on every engine."""
    yield from ((key, partial(timed, *key, options.quick)) for key in product(NETWORKS, ENGINES))


BENCHMARK = Benchmark("engine_speed", page, fields("network", "engine"), cases, quick=True)

if __name__ == "__main__":
    main(BENCHMARK)
