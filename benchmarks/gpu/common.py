"""What the parts on a GPU share: what they are told, the lines they write, and a clock that asks the device."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

SHORTEST = 2e-3
"""Seconds that one timing takes at least."""

Work = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """What a part is told.

    Attributes:
        device: where it runs.
        quick: with little of everything.
        out: the file of its lines.
        data: a folder of data; None: where they are installed.
        network: the network of a part that has one.
    """

    device: torch.device
    quick: bool
    out: Path
    data: Path | None
    network: str

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def add(self, **row: Any) -> None:
        """Write a line: at once, since the part may be stopped at any time."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    @contextmanager
    def trying(self, **row: Any) -> Iterator[None]:
        """Write why a piece failed, and go on with the next."""
        try:
            yield
        except Exception as error:
            self.add(**row, failed=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def settings() -> Settings:
    """What the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--network", default="")
    told = parser.parse_args()
    if told.device == "cpu":
        torch.set_num_threads(1)
    return Settings(torch.device(told.device), told.quick, told.out, told.data, told.network)


def wait(device: torch.device) -> None:
    """Until the device has done all that was ordered."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Work, device: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def medians(works: Mapping[str, Work], device: torch.device, seconds: float, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each, called in turn, every other round backwards."""
    repeats, found = {}, {name: list[float]() for name in works}
    for name, work in works.items():
        work()
        repeats[name] = max(1, round(SHORTEST / max(seconds_of(work, device), 1e-6)))
    deadline = time.perf_counter() + seconds * len(works)
    for number in range(1000):
        if number >= rounds and time.perf_counter() > deadline:
            break
        for name in works if number % 2 == 0 else reversed(works):
            found[name].append(seconds_of(works[name], device, repeats[name]))
    return {name: median(values) for name, values in found.items()}


def capture(work: Work, device: torch.device) -> Work:
    """The work as a CUDA graph: one order for all of its kernels."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def parameters_of(model: nn.Module) -> int:
    """How many numbers it has."""
    return sum(p.numel() for p in model.parameters())
