"""What a step of training costs on a GPU beside its arithmetic: reads, feeding, held masks, all that `train` adds."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.common import Settings, medians, seconds_of, settings, wait
from benchmarks.gpu.networks import DecoderLayer
from nervure import hold, train
from nervure.core.late import send
from nervure.tasks import classification
from nervure.zoo import build

Batch = tuple[Tensor, Tensor]


class Loader:
    """Batches that are given again and again, so many in an epoch."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (self.batches[number % len(self.batches)] for number in range(self.steps))


class Reads(TorchDispatchMode):
    """Counts numbers that are read from a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it where it reads a number."""
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].device.type != "cpu"
        return func(*args, **(kwargs or {}))


def random_batches(count: int, size: int, shape: tuple[int, ...], device: torch.device | str) -> list[Batch]:
    """So many batches of noise in ten classes."""
    made = [(torch.randn(size, *shape), torch.randint(10, (size,))) for _ in range(count)]
    return [(x.to(device), y.to(device)) for x, y in made]


WAYS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "with a callback": {"callbacks": [lambda point: None]},
    "labels that do not count": {"task": classification(ignore=-1)},
}


def reads(told: Settings) -> None:
    """How often a step of ``train`` looks at a number, and how often CUDA says that it waits."""
    batches = random_batches(4, 8, (3, 16, 16), told.device)

    def run(steps: int, how: Mapping[str, Any]) -> Any:
        return train(build("resnet8").to(told.device), Loader(batches, steps), progress=False, **how)

    for way, how in WAYS.items():
        with told.trying(kind="reads", way=way):
            found = list[tuple[int, int]]()
            for steps in (4, 12):
                with Reads() as mode:
                    run(steps, how)
                found.append((mode.count, count_waits(partial(run, steps, how), told)))
            read, waited = ((many - few) / 8 for few, many in zip(*found, strict=True))
            told.add(kind="reads", way=way, reads=read, waits=waited)


def count_waits(work: Callable[[], Any], told: Settings) -> int:
    """How often CUDA warns that it waits."""
    if not told.on_gpu:
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def steps_of(told: Settings) -> None:
    """Milliseconds of a step: ``train``, the same with losses read at once, and a loop by hand that reads none."""
    cases = {"ResNet-20, 32 px": ("resnet20", 128, 32), "ResNet-50, 128 px": ("resnet50", 64, 128)}
    for name, (network, size, side) in cases.items():
        with told.trying(kind="step", network=name):
            shape = (4, 3, 32, 32) if told.quick else (size, 3, side, side)
            batches = random_batches(4, shape[0], shape[1:], told.device)
            ways: Mapping[str, Callable[[int], Any]] = {
                "by hand": partial(by_hand, network, batches),
                "train": partial(trained, network, batches, ()),
                "train, losses read at once": partial(trained, network, batches, (lambda point: None,)),
            }
            count = 2 if told.quick else 60
            for way, run in ways.items():
                run(2)
                few, many = (clock(partial(run, steps), told) for steps in (count, 3 * count))
                told.add(kind="step", network=name, way=way, ms=1e3 * (many - few) / (2 * count))


def trained(network: str, batches: list[Batch], callbacks: tuple[Any, ...], steps: int) -> None:
    """Some steps of ``train``."""
    model = build(network).to(batches[0][0].device)
    train(model, Loader(batches, steps), lr=1e-3, precision="bf16", progress=False, callbacks=callbacks)


def clock(work: Callable[[], Any], told: Settings) -> float:
    """Seconds by the clock, until the device is done."""
    wait(told.device)
    start = time.perf_counter()
    work()
    wait(told.device)
    return time.perf_counter() - start


def by_hand(network: str, batches: list[Batch], steps: int) -> None:
    """The loop that one would write."""
    device = batches[0][0].device
    model = build(network).to(device)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for number in range(steps):
        x, y = batches[number % len(batches)]
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def feeding(told: Settings) -> None:
    """Milliseconds of a step by how its batch comes to the device."""
    size, side, count = (2, 16, 2) if told.quick else (128, 128, 24)
    here, there = (random_batches(6, size, (3, side, side), device) for device in ("cpu", told.device))
    model = build("resnet18").to(told.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: Batch) -> None:
        with torch.autocast(told.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(batch[0]).float(), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    ways: Mapping[str, Callable[[], Iterator[Batch]]] = {
        "already there": lambda: (there[n % 6] for n in range(count)),
        "from pageable memory": lambda: (tuple(t.to(told.device) for t in here[n % 6]) for n in range(count)),
        "pinned, not waited for": lambda: (tuple(send(t, told.device) for t in here[n % 6]) for n in range(count)),
        "pinned, one ahead on a stream of its own": lambda: ahead((here[n % 6] for n in range(count)), told),
    }
    for way, batches in ways.items():
        with told.trying(kind="feeding", way=way):
            run = lambda b=batches: [step(batch) for batch in b()]  # noqa: E731
            run()
            told.add(kind="feeding", way=way, ms=1e3 * min(clock(run, told) for _ in range(3)) / count)


def ahead(batches: Iterator[Batch], told: Settings) -> Iterator[Batch]:
    """Each batch, while the next is on its way."""
    if not told.on_gpu:
        yield from batches
        return
    stream, coming = torch.cuda.Stream(told.device), None
    for batch in batches:
        ready, coming = coming, None
        with torch.cuda.stream(stream):
            coming = tuple(send(t, told.device) for t in batch), stream.record_event()
        if ready is not None:
            yield arrive(*ready)
    if coming is not None:
        yield arrive(*coming)


def arrive(batch: Any, event: Any) -> Batch:
    """The batch, for the stream that works on it."""
    event.wait()
    for tensor in batch:
        tensor.record_stream(torch.cuda.current_stream())
    return batch


def mlp() -> nn.Module:
    """784-512-256-128-10."""
    layers = [m for a, b in pairwise((784, 512, 256, 128, 10)) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def holding(told: Settings) -> None:
    """What held masks of a tenth of the weights add to a step."""
    cases: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "MLP 784-512-256-128-10, batch 512": (mlp, (512, 784)),
        "ResNet-50, 64 px, batch 64": (lambda: build("resnet50"), (64, 3, 64, 64)),
        "decoder layer of 8 B, 4 x 128 tokens": (DecoderLayer, (4, 128, 4096)),
    }
    if told.quick:
        cases = {"MLP 784-512-256-128-10, batch 512": (mlp, (8, 784))}
    optimizers: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
    }
    for name, (make, shape) in cases.items():
        for kind, optimize in optimizers.items():
            with told.trying(kind="masks", network=name, optimizer=kind):
                works = {way: masked_step(make, shape, optimize, way == "held", told) for way in ("dense", "held")}
                found = medians(works, told.device, 0.3 if told.on_gpu else 0.05, rounds=7)
                told.add(kind="masks", network=name, optimizer=kind, **{f"{w}_ms": 1e3 * s for w, s in found.items()})


def masked_step(
    make: Callable[[], nn.Module], shape: tuple[int, ...], optimize: Callable[[Any], Any], held: bool, told: Settings
) -> Callable[[], None]:
    """A step of a network, with its masks held or without."""
    torch.manual_seed(0)
    model, x = make().to(told.device).train(), torch.randn(shape, device=told.device)
    optimizer = optimize(model.parameters())
    if held:
        hold(model, optimizer, {n: torch.rand_like(p) < 0.1 for n, p in model.named_parameters() if p.ndim > 1})

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(told.device.type, torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()

    seconds_of(step, told.device, 2)
    return step


def main() -> None:
    """One after the other."""
    told = settings()
    for part in (reads, steps_of, feeding, holding):
        with told.trying(kind=part.__name__):
            part(told)


if __name__ == "__main__":
    main()
