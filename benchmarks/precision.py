"""Cut, in eight bits, and both: what each gives in time, size and accuracy, by engine.

Run ``python benchmarks/precision.py`` (or name networks behind it) on a quiet machine; one thread. Networks, data and
training are those of ``latency_plans.py``, three seeds. The network as trained, and cut by magnitudes to a quarter of
its multiply-accumulates (in multiples of 16) and recovered, are exported in every precision that the format has,
calibrated on training images; files of one engine are timed in turn. Writes ``docs/results/precision.*``.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import latency_plans as plans
from benchmarks.dense import view_of
from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import Magnitude, apply, export
from nervure.evaluation.timing import machine
from nervure.report.markdown import table_text
from nervure.report.tables import Table
from nervure.surgery.price import price
from nervure.zoo.dataset import Dataset

KEEP, MULTIPLE = 0.25, 16
PRECISIONS: Mapping[str, Sequence[str]] = {"onnxruntime": ("float32", "int8"), "openvino": ("float32", "bf16", "int8")}
SUFFIX = {"onnxruntime": "onnx", "openvino": "xml"}
BATCHES, ROUNDS, SHORTEST = (1, 32), 60, 2e-3
Run: TypeAlias = Callable[[np.ndarray], np.ndarray]


def opened(engine: str, file: Path, precision: str) -> Run:
    """What runs a file, with one thread, as its engine's own guide says."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: np.asarray(session.run(None, {name: images})[0])
    import openvino

    hint = {"bf16": "bf16"}.get(precision, "f32")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda images: np.asarray(compiled(images)[0])


def in_turn(runs: Mapping[str, Run], images: np.ndarray) -> dict[str, list[float]]:
    """Seconds of a pass, round by round, each model in turn."""
    repeats = {}
    for name, run in runs.items():
        run(images)
        start = time.perf_counter()
        run(images)
        repeats[name] = max(1, round(SHORTEST / max(time.perf_counter() - start, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run(images)
            found[name].append((time.perf_counter() - start) / repeats[name])
    return found


def accuracy(run: Run, data: Dataset) -> float:
    """On the test images."""
    hits = [int((run(x.numpy()).argmax(1) == y.numpy()).sum()) for x, y in data.test.batches(500)]
    return sum(hits) / len(data.test)


def networks(name: str, seed: int, data: Dataset) -> tuple[dict[str, nn.Module], float]:
    """The trained one and the cut one, and the share of the multiply-accumulates that is left."""
    model, network = plans.dense(name, seed, data, plans.KEPT), plans.TRAINED[name]
    view = view_of(model, data.example(1), seed=seed)
    graph = view.graph
    plan = Magnitude(keep=KEEP, budget="macs", multiple=MULTIPLE).plan(view)
    smaller = apply(model, graph, plan)
    plans.learned(smaller, network, data, seed + 1, epochs=1, lr=network.recovery_lr)
    return {"dense": model, "cut": smaller}, price(graph, plan).macs / graph.macs()


def measured(name: str, seed: int) -> list[Row]:
    """All files of one trained network."""
    data = plans.dataset()
    models, macs = networks(name, seed, data)
    example, rows = data.example(2), []
    calibration = data.train.sample(512, seed).batches(32)
    with tempfile.TemporaryDirectory() as folder:
        for engine, precisions in PRECISIONS.items():
            runs, sizes = {}, {}
            for kind, model in models.items():
                for precision in precisions:
                    path = Path(folder) / f"{engine}-{kind}-{precision}.{SUFFIX[engine]}"
                    given = calibration if precision == "int8" else None
                    done = export(model, example, path, precision=precision, calibration=given)
                    label = f"{kind}, {precision}"
                    runs[label] = opened(engine, path, precision)
                    sizes[label] = sum(f.stat().st_size for f in done.files if ".card." not in f.name)
            times = {batch: in_turn(runs, data.example(batch).numpy()) for batch in BATCHES}
            for label, run in runs.items():
                ratios = {
                    batch: [a / b for a, b in zip(took["dense, float32"], took[label], strict=True)]
                    for batch, took in times.items()
                }
                rows.append(
                    {
                        "network": name,
                        "seed": seed,
                        "engine": engine,
                        "what": label,
                        "macs": macs if label.startswith("cut") else 1.0,
                        "accuracy": accuracy(run, data),
                        "bytes": sizes[label],
                        "ms": {str(batch): 1e3 * median(took[label]) for batch, took in times.items()},
                        "speedup": {str(batch): median(ratio) for batch, ratio in ratios.items()},
                        "quartiles": {str(batch): quantiles(ratio)[::2] for batch, ratio in ratios.items()},
                        "machine": machine(torch.device("cpu")),
                    }
                )
    return rows


def page(lines: Rows) -> str:
    """The page."""
    text = [
        "# Cut, and in fewer bits",
        "",
        f"Made by `python benchmarks/precision.py` on {lines[0]['machine']}; one thread; means over "
        f"{len({line['seed'] for line in lines})} seeds, accuracy with its standard deviation. Speed-ups are over the "
        "dense network in float32 in the same engine, medians of passes timed in turn.",
    ]
    for name in dict.fromkeys(line["network"] for line in lines):
        mine = [line for line in lines if line["network"] == name]
        text += ["", f"## {name}", "", table_text(_table(mine))]
    return "\n".join(text) + "\n"


def _table(lines: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for engine, what in dict.fromkeys((line["engine"], line["what"]) for line in lines):
        mine = [line for line in lines if (line["engine"], line["what"]) == (engine, what)]
        accuracies = [100 * line["accuracy"] for line in mine]
        spread = f" ± {stdev(accuracies):.1f}" if len(mine) > 1 else ""
        speeds = (
            f"{mean(line['speedup'][str(b)] for line in mine):.2f}x ({mean(line['ms'][str(b)] for line in mine):.2f})"
            for b in BATCHES
        )
        rows.append(
            (
                engine,
                what,
                f"{mean(line['macs'] for line in mine):.0%}",
                f"{mean(accuracies):.1f}{spread}",
                f"{mean(line['bytes'] for line in mine) / 1000:,.0f} kB",
                *speeds,
            )
        )
    return Table(("engine", "network", "MACs", "accuracy", "file", *(f"batch {b} (ms)" for b in BATCHES)), tuple(rows))


def cases(_: Namespace) -> Iterator[Case]:
    """Every trained network; all its files are timed together."""
    yield from (((name, seed), partial(measured, name, seed)) for seed, name in product(plans.SEEDS, plans.TRAINED))


BENCHMARK = Benchmark("precision", page, fields("network", "seed", "engine", "what"), cases)

if __name__ == "__main__":
    main(BENCHMARK)
