"""One network at full width on all of Fashion-MNIST, trained to its end, pruned, refitted and trained again.

Pruned to half and a quarter of its multiply-accumulates by SNACS, Taylor, magnitude and by lot. Pictures live on the
device, and are shifted and mirrored there. Nothing is chosen by test pictures.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.common import Settings, parameters_of, settings
from nervure import SNACS, Magnitude, Random, Taylor, evaluate, prune, refit, train, zoo
from nervure.graph.copies import copy_model
from nervure.training import label_smoothing
from nervure.zoo.data import fake

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "ResNet-20": {"name": "resnet20", "lr": 0.3},
    "ResNet-56": {"name": "resnet56", "lr": 0.3},
    "VGG-16": {"name": "vgg16", "lr": 0.15},
}
METHODS = {
    "SNACS": lambda keep: SNACS(keep=keep, budget="macs"),
    "Taylor": lambda keep: Taylor(keep=keep, budget="macs"),
    "Magnitude": lambda keep: Magnitude(keep=keep, budget="macs"),
    "Random": lambda keep: Random(keep=keep, budget="macs"),
}
EPOCHS, AFTER, BATCH, SHIFT = 15, 5, 512, 3


class OnDevice:
    """Batches of a split whose pictures live on the device; training ones are shifted and mirrored there."""

    def __init__(self, split: Any, told: Settings, *, augment: bool, seed: int = 0) -> None:
        self.x = split.normalise(split.images.to(told.device))
        self.y = split.labels.to(told.device)
        self.augment, self.seed, self.epoch = augment, seed, 0

    def __len__(self) -> int:
        return -(-len(self.y) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.x.device).manual_seed(1000 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.y), generator=generator, device=self.x.device)
        for rows in order.split(BATCH) if self.augment else torch.arange(len(self.y), device=order.device).split(BATCH):
            x = self.x[rows]
            yield (
                (shift(x, generator) if self.augment else x).contiguous(memory_format=torch.channels_last),
                self.y[rows],
            )


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [samples, channels, height, width], each cut out anew up to three pixels away, half of them mirrored."""
    count, _, height, width = x.shape
    black = x.amin()
    padded = F.pad(x - black, (SHIFT,) * 4) + black
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator, device=x.device)
    mirrored = torch.rand(count, 1, generator=generator, device=x.device) < 0.5
    across = torch.arange(width, device=x.device).expand(count, width)
    columns = right + torch.where(mirrored, width - 1 - across, across)
    rows = down + torch.arange(height, device=x.device)
    places = torch.arange(count, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def accuracy(model: nn.Module, data: OnDevice) -> float:
    """In percent."""
    return round(100 * evaluate(model, data, progress=False).accuracy, 2)


def main() -> None:
    """Train, then method by method and share by share."""
    told = settings()
    data = fake(256, 4, 1, 28) if told.quick else zoo.load("fashion-mnist", told.data)
    how = NETWORKS[told.network]
    torch.manual_seed(0)
    options = {"width": 0.125} if told.quick and how["name"] == "vgg16" else {}
    model = zoo.build(how["name"] if not told.quick or options else "resnet8", seed=0, in_channels=1, **options)
    model = model.to(told.device, memory_format=torch.channels_last)
    training = OnDevice(data.train, told, augment=True)
    splits = {
        "held_out": OnDevice(data.validation, told, augment=False),
        "test": OnDevice(data.test, told, augment=False),
    }
    recipe = {"objective": label_smoothing(0.1), "precision": "bf16" if told.on_gpu else "float32", "progress": False}
    start = time.perf_counter()
    train(model, training, epochs=1 if told.quick else EPOCHS, lr=how["lr"], **recipe)
    told.add(
        network=told.network,
        method="dense",
        images=len(training.y),
        parameters=parameters_of(model),
        seconds=time.perf_counter() - start,
        **{name: accuracy(model, split) for name, split in splits.items()},
    )
    for keep, name in product((0.5, 0.25), METHODS):
        with told.trying(network=told.network, method=name, keep=keep):
            start = time.perf_counter()
            seen = OnDevice(data.train, told, augment=False)
            pruned = prune(model, data.example(1), METHODS[name](keep), data=seen, refit=False, progress=False)
            planned = time.perf_counter() - start
            seen.epoch = 0
            again = refit(pruned, seen, reference=model, progress=False).result
            fitted = time.perf_counter() - start - planned
            small = copy_model(again.model).to(memory_format=torch.channels_last)
            rate = 0.2 * how["lr"]
            train(small, training, epochs=1 if told.quick else AFTER, lr=rate, seed=1, **recipe)
            told.add(
                network=told.network,
                method=name,
                keep=keep,
                parameters=parameters_of(small),
                error=pruned.verification,
                cut=accuracy(pruned.model, splits["test"]),
                refitted=accuracy(again.model, splits["test"]),
                seconds={"plan": planned, "refit": fitted, "all": time.perf_counter() - start},
                **{split: accuracy(small, batches) for split, batches in splits.items()},
            )


if __name__ == "__main__":
    main()
