"""One process against two on the same work, and how far their results are apart.

Run ``python benchmarks/processes.py`` on two cores that do nothing else: each process has one thread. A line of results
is one or two processes that measured, refitted, trained and evaluated a network; runs of one and of two take turns.
Beside ``nervure.train`` stands the shortest loop in torch alone, in two processes with ``DistributedDataParallel``.
"""

import copy
import json
import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import ROOT, Benchmark, Case, Row, Rows, main
from nervure import Refit, Taylor, evaluate, measure, prune, refit, trace, train, zoo
from nervure.distributed import share

BATCH, EPOCHS, REPEATS = 128, 2, 3
LOOP, UNCUT = "train, torch alone", "train, uncut"
WORK = ("measure", UNCUT, "refit", "train", LOOP, "evaluate")
Batches = list[tuple[Tensor, Tensor]]


def four_layers() -> nn.Module:
    """A small convolutional network without batch norms, whose statistics would be those of a share."""
    first = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10))


@dataclass(frozen=True)
class Task:
    """What is worked on.

    Attributes:
        network: makes it.
        samples: of Fashion-MNIST.
        precision: of all numbers.
        repeats: how often it is done.
    """

    network: Callable[[], nn.Module]
    samples: int
    precision: torch.dtype = torch.float32
    repeats: int = REPEATS


TASKS: Mapping[str, Task] = {
    "four layers": Task(four_layers, 9000),
    "ResNet-20": Task(lambda: zoo.build("resnet20", in_channels=1, width=1.0), 2048),
    "four layers, double precision": Task(four_layers, 2048, torch.float64, 1),
}


# -- in each process -------------------------------------------------------------------------------------------------


def work(name: str, rank: int, count: int) -> None:
    """Do all of it; the first process prints seconds and results as JSON."""
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    task = TASKS[name]
    split = zoo.load("fashion-mnist-subset").train
    x, y = split.normalise(split.images[: task.samples]).to(task.precision), split.labels[: task.samples]
    whole = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    data: Any = share(whole)
    torch.manual_seed(0)
    model = task.network().to(task.precision).eval()
    seconds: dict[str, float] = {}

    def timed(what: str, function: Callable[[], Any]) -> Any:
        if count > 1:
            dist.barrier()
        start = time.perf_counter()
        found = function()
        seconds[what] = round(time.perf_counter() - start, 3)
        return found

    warm(x[:4], y[:4])
    want, samples = {"activations", "gradients"}, task.samples
    graph = trace(model, x[:2])
    timed("measure", lambda: measure(model, graph, data, want=want, samples=samples, progress=False))
    dense = copy.deepcopy(model)
    timed(UNCUT, lambda: train(dense, data, epochs=1, lr=0.05, progress=False))
    pruned = prune(model, x[:2], Taylor(keep=0.5), data=data, progress=False)
    how = Refit(samples=min(samples, 512), positions=784)
    small = timed("refit", lambda: refit(pruned, data, reference=model, how=how, progress=False)).result.model
    # Before train moves the weights; the steps are as long for any.
    timed(LOOP, partial(loop, small, list(data)))
    history = timed("train", lambda: train(small, data, epochs=EPOCHS, lr=0.05, progress=False))
    quality = timed("evaluate", lambda: evaluate(small, data, progress=False))
    if rank == 0:
        weights = [float(p.detach().double().sum()) for p in small.parameters()]
        print(json.dumps(seconds | {"loss": history.loss, "accuracy": quality.accuracy, "weights": weights}))
    if count > 1:
        dist.destroy_process_group()


def warm(x: Tensor, y: Tensor) -> None:
    """Step once: torch imports its compiler for the first optimizer, which takes two seconds in each process."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(x)
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def loop(model: nn.Module, data: Batches) -> None:
    """What ``train`` does, without masks, checks, schedules and histories; the model is a copy."""
    other = copy.deepcopy(model).train()
    trained = DistributedDataParallel(other) if dist.is_initialized() else other
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for _ in range(EPOCHS):
        for x, y in data:
            loss = nn.functional.cross_entropy(trained(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


# -- one or two of them ----------------------------------------------------------------------------------------------


def run(name: str, count: int, repeat: int) -> Row:
    """Start so many processes; what the first one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = f"from benchmarks.processes import work; work({name!r}, RANK, {count})"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", command.replace("RANK", str(rank))],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE if rank == 0 else None,
            text=True,
        )
        for rank in range(count)
    ]
    told, _ = started[0].communicate()
    if any(process.wait() for process in started):
        raise RuntimeError(f"{count} processes on {name} failed")
    return {"key": [name, count, repeat]} | json.loads(told.splitlines()[-1])


def cases(options: Namespace) -> Iterator[Case]:
    """One and two take turns."""
    for repeat, (name, task), count in product(range(REPEATS), TASKS.items(), (1, 2)):
        if repeat < task.repeats:
            yield (name, count, repeat), partial(run, name, count, repeat)


# -- the page --------------------------------------------------------------------------------------------------------

INTRODUCTION = """# One process and two

`python benchmarks/processes.py`; a thread for each process, medians of three runs that took turns; seconds by the
clock. Each does the same work on images of Fashion-MNIST: measure the network, train a copy for an epoch (*uncut*),
cut half of its units, refit on 512 images, train for two epochs in batches of 128, which two processes share, and
evaluate. *Torch alone* is the shortest loop of the steps that `train` does, in two processes with
`DistributedDataParallel`, on the same weights: what it does not reach is the machine's, the network's or torch's."""


def page(rows: Rows) -> str:
    """The results as Markdown."""
    text = [INTRODUCTION, ""]
    for name, task in TASKS.items():
        one, two = (values(rows, name, count) for count in (1, 2))
        if task.repeats > 1 and one and two:
            text += [
                f"## {name}, {task.samples:,} images",
                "",
                "| | one process | two | times as fast |",
                "|---|---|---|---|",
            ]
            text += [line(what, one[what], two[what]) for what in WORK] + [""]
    return "\n".join([*text, *apart(rows)]) + "\n"


def values(rows: Rows, name: str, count: int) -> dict[str, float]:
    """The median seconds of each work."""
    found = [row for row in rows if row["key"][:2] == [name, count]]
    return {what: median(row[what] for row in found) for what in WORK} if found else {}


def line(what: str, one: float, two: float) -> str:
    """A line of the table."""
    return f"| {what} | {one:.1f} | {two:.1f} | {one / two:.2f} |"


def apart(rows: Rows) -> list[str]:
    """How far the results of two processes are from those of one."""
    text = ["## How far apart the results are", ""]
    text += ["Of two epochs after the refit: mean loss of the last one, accuracy on the same images, and the largest"]
    text += ["difference between sums of weights of a tensor.", ""]
    text += ["| | loss, one | two | accuracy, one | two | sums of weights |", "|---|---|---|---|---|---|"]
    for name in TASKS:
        one, two = (next((row for row in rows if row["key"][:2] == [name, count]), None) for count in (1, 2))
        if one and two:
            sums = max(abs(a - b) for a, b in zip(one["weights"], two["weights"], strict=True))
            losses = f"{one['loss'][-1]:.6f} | {two['loss'][-1]:.6f}"
            text.append(f"| {name} | {losses} | {one['accuracy']:.4f} | {two['accuracy']:.4f} | {sums:.1e} |")
    return text


BENCHMARK = Benchmark("processes", page, cases=cases)

if __name__ == "__main__":
    main(BENCHMARK)
