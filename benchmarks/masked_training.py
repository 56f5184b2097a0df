"""What held masks cost in training, and whether zeros stay zeros for 10,000 steps.

Run ``python benchmarks/masked_training.py``; one thread. Overhead: the dense network, the same with masks of a density
of 10 % held, and the same with torch's own ``torch.nn.utils.prune`` take each step in turn, in one process, in an order
that changes with the step; what counts is the median over the steps of the ratio to the dense network's step. Zeros: a
small network trains for 10,000 steps under each optimizer, and every bit of what is masked is looked at, in weights and
moments. Writes ``docs/results/masked_training.*``.
"""

import copy
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise, permutations, product
from pathlib import Path
from statistics import quantiles

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import custom_from_mask
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.runner import Benchmark, Case, Row, Rows, fields, main
from nervure import ERK, hold, prune
from nervure.zoo import build

DENSITY = 0.1
STEPS = 10_000

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
OPTIMIZERS: Mapping[str, MakeOptimizer] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-4, momentum=0.9, weight_decay=1e-4),
}


def mlp() -> nn.Module:
    """784-512-256-128-10."""
    widths = (784, 512, 256, 128, 10)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


# Network, shape of a batch, how many steps are timed.
CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-512-256-128-10, batch 128": (mlp, (128, 784), 300),
    "MLP 784-512-256-128-10, batch 512": (mlp, (512, 784), 120),
    "ResNet-20, 32 px, batch 128": (lambda: build("resnet20"), (128, 3, 32, 32), 18),
    "ViT-tiny, 32 px, batch 64": (lambda: build("vit_tiny"), (64, 3, 32, 32), 24),
}


def masks_for(model: nn.Module, shape: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Masks of the density by Erdos-Renyi kernels."""
    return prune(model, torch.zeros(1, *shape[1:]), ERK(density=DENSITY), verify=False, progress=False).masks


def dense(model: nn.Module, make: MakeOptimizer, _masks: Mapping[str, Tensor]) -> Optimizer:
    """No masks."""
    return make(model.parameters())


def held(model: nn.Module, make: MakeOptimizer, masks: Mapping[str, Tensor]) -> Optimizer:
    """Masks that ``hold`` keeps."""
    optimizer = make(model.parameters())
    hold(model, optimizer, masks)
    return optimizer


def parametrised(model: nn.Module, make: MakeOptimizer, masks: Mapping[str, Tensor]) -> Optimizer:
    """Masks of ``torch.nn.utils.prune``, which multiplies at every forward pass."""
    for name, mask in masks.items():
        module, _, tensor = name.rpartition(".")
        custom_from_mask(model.get_submodule(module), tensor, mask)
    return make(model.parameters())


CONTENDERS = {"dense": dense, "hold": held, "torch.nn.utils.prune": parametrised}


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> float:
    """Seconds of one step: processor time, which with one thread is wall time on a machine with nothing else to do."""
    start = time.process_time()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return time.process_time() - start


def overhead(case: str, kind: str, share: float) -> Row:
    """Time of a step relative to the dense one's, interleaved."""
    factory, shape, steps = CASES[case]
    torch.manual_seed(0)
    model = factory().train()
    masks = masks_for(model, shape)
    models = {name: copy.deepcopy(model) for name in CONTENDERS}
    optimizers = {name: CONTENDERS[name](models[name], OPTIMIZERS[kind], masks) for name in CONTENDERS}
    orders, found = list(permutations(CONTENDERS)), {name: list[float]() for name in CONTENDERS}
    for number in range(max(6, round(steps * share)) + 2):
        # New data for each step: what is learnt by heart has gradients so small that arithmetic itself is slower.
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        for name in orders[number % len(orders)]:
            seconds = step(models[name], optimizers[name], x, y)
            # The first two make moments and bits, once in a training.
            if number >= 2:
                found[name].append(seconds)
    ratios = {n: [a / b for a, b in zip(found[n], found["dense"], strict=True)] for n in CONTENDERS if n != "dense"}
    return {
        "kind": "overhead",
        "network": case,
        "optimizer": kind,
        "steps": len(found["dense"]),
        "dense_ms": 1e3 * quantiles(found["dense"], n=4)[1],
        "weights": sum(mask.numel() for mask in masks.values()),
        "ratio": {name: quantiles(values, n=4) for name, values in ratios.items()},
    }


def small() -> nn.Module:
    """Convolution, grouped convolution, batch norm, linear: fast enough for 10,000 steps."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def bits(value: Tensor) -> int:
    """How many entries have a bit set: -0 counts, which compares equal to 0."""
    return int(torch.count_nonzero(value.contiguous().view(torch.int32)))


def endurance(kind: str, steps: int) -> Row:
    """Train for many steps; what is not zero where masked, counted at every hundredth step."""
    torch.manual_seed(0)
    model, shape = small().train(), (16, 1, 8, 8)
    masks = masks_for(model, shape)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    optimizer = OPTIMIZERS[kind](model.parameters())
    hold(model, optimizer, masks)
    generator, losses, weights, moments, moved = torch.Generator().manual_seed(1), [0.0], 0, 0, 0
    teacher = torch.randn(64, 10, generator=generator)
    for number in range(1, steps + 1):
        x = torch.randn(shape, generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), (x.flatten(1) @ teacher).argmax(1))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if number % 100 == 0:
            for name, mask in masks.items():
                parameter = model.get_parameter(name)
                state = [v for v in optimizer.state[parameter].values() if v.shape == parameter.shape]
                weights += bits(parameter.detach()[~mask])
                moments += sum(int(torch.count_nonzero(v[~mask])) for v in state)
    for name, mask in masks.items():
        moved += int((model.get_parameter(name).detach()[mask] != before[name][mask]).sum())
    return {
        "kind": "zeros",
        "optimizer": kind,
        "steps": steps,
        "masked": sum(int((~mask).sum()) for mask in masks.values()),
        "weights_not_zero": weights,
        "moments_not_zero": moments,
        "kept": sum(int(mask.sum()) for mask in masks.values()),
        "kept_that_moved": moved,
        "loss_of_first_100": sum(losses[1:101]) / 100,
        "loss_of_last_100": sum(losses[-100:]) / 100,
    }


def page(rows: Rows) -> str:
    """The tables in Markdown."""
    lines = [
        "# What held masks cost in training",
        "",
        "`python benchmarks/masked_training.py`, one thread.",
        "A step is zero_grad, forward, backward, optimizer. Dense, held and parametrised networks take each step in",
        f"turn, in one process; density {DENSITY:.0%}. Overhead: median over steps of the ratio to the dense step,",
        "quartiles in brackets.",
        "",
        "| network | optimizer | masked tensors hold | dense step (ms) | `hold` | `torch.nn.utils.prune` |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["kind"] == "overhead"):
        told = [_percent(row["ratio"][name]) for name in ("hold", "torch.nn.utils.prune")]
        lines.append(
            f"| {row['network']} | {row['optimizer']} | {row['weights']:,} weights | {row['dense_ms']:.1f} | "
            f"{told[0]} | {told[1]} |"
        )
    lines += [
        "",
        "## Zeros after many steps",
        "",
        "A network of two convolutions (one grouped) and two linear layers; what is masked is looked at every 100",
        "steps: every bit of the weights (-0 would count), every moment of their shape.",
        "",
        "| optimizer | steps | masked weights | not zero | moments not zero | kept weights that moved | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row["kind"] == "zeros"):
        lines.append(
            f"| {row['optimizer']} | {row['steps']:,} | {row['masked']:,} | {row['weights_not_zero']} | "
            f"{row['moments_not_zero']} | {row['kept_that_moved']:,} of {row['kept']:,} | "
            f"{row['loss_of_first_100']:.2f} to {row['loss_of_last_100']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _percent(ratio: list[float]) -> str:
    low, middle, high = (100 * (value - 1) for value in ratio)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def cases(options: Namespace) -> Iterator[Case]:
    """The cost for each network and optimizer, then the zeros for each optimizer."""
    share = 0.02 if options.quick else 1.0
    yield from ((("overhead", *key), partial(overhead, *key, share)) for key in product(CASES, OPTIMIZERS))
    yield from ((("zeros", None, kind), partial(endurance, kind, round(STEPS * share))) for kind in OPTIMIZERS)


BENCHMARK = Benchmark("masked_training", page, fields("kind", "network", "optimizer"), cases, quick=True)

if __name__ == "__main__":
    main(BENCHMARK)
