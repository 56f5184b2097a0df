"""One process against two on the same work, and how far their results are apart.

    python benchmarks/processes.py

Each process has one thread; the machine should have two cores that do nothing else.
"""

import argparse
import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

import nervure
from nervure.distributed import share
from nervure.methods import Taylor
from nervure.zoo import load


def network() -> nn.Module:
    """A small convolutional network without batch norms, whose statistics would be those of a share."""
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10)).eval()


def work(samples: int) -> None:
    """Measure, prune, refit, train and evaluate; the first process prints seconds and results."""
    split = load("fashion-mnist-subset").train
    x, y = split.normalise(split.images[:samples]), split.labels[:samples]
    data = share(list(zip(x.split(128), y.split(128), strict=True)))
    model, seconds = network(), {}
    graph = nervure.trace(model, x[:2])

    def timed(name: str, function):
        start = time.perf_counter()
        found = function()
        seconds[name] = time.perf_counter() - start
        return found

    want = {"activations", "gradients"}
    timed("measure", lambda: nervure.measure(model, graph, data, want=want, samples=samples, progress=False))
    pruned = nervure.prune(model, x[:2], Taylor(keep=0.5), data=data, progress=False)
    how = nervure.Refit(samples=min(samples, 512), positions=784)
    fitted = timed("refit", lambda: nervure.refit(pruned, data, reference=model, how=how, progress=False))
    history = timed("train", lambda: nervure.train(fitted.result.model, data, epochs=2, lr=0.05, progress=False))
    quality = timed("evaluate", lambda: nervure.evaluate(fitted.result.model, data, progress=False))
    if not dist.is_initialized() or dist.get_rank() == 0:
        times = "  ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        weights = sum(float(p.detach().double().sum()) for p in fitted.result.model.parameters())
        print(f"{times}  loss {history.loss[-1]:.8f}  accuracy {quality.accuracy:.4f}  sum of weights {weights:.6f}")


def main() -> None:
    """Start one process, then two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.rank is not None:
        dist.init_process_group("gloo", rank=given.rank, world_size=2)
        work(given.samples)
        dist.destroy_process_group()
        return
    print("one process ", end="", flush=True)
    work(given.samples)
    print("two         ", end="", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--samples", str(given.samples), "--rank"]
    started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    for process in started:
        process.wait()


if __name__ == "__main__":
    main()
