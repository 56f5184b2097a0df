"""A clock without time: what a network takes is worked out from its widths, on a staircase."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from nervure.core.inputs import Inputs
from nervure.evaluation import Timing
from nervure.evaluation.latency import Built


class Clock:
    """Stands for ``in_turn``: counts products on stairs of ``step``; ``slower`` makes cut networks slower than that."""

    def __init__(self, step: int = 4, slower: float = 1.0, stops_after: int | None = None) -> None:
        self.step, self.slower, self.stops_after = step, slower, stops_after
        self.timed = 0

    def __call__(self, models: Mapping[str, Built], batch: int, threads: int, **options: Any) -> Iterator[Timing]:
        if self.stops_after is not None and self.timed >= self.stops_after:
            raise KeyboardInterrupt
        self.timed += len(models) - 1
        seconds = {name: self.seconds(built.model, built.inputs.resize(batch)) for name, built in models.items()}
        dense = next(iter(seconds.values()))
        for place, (name, took) in enumerate(seconds.items()):
            ratio = took / dense * (self.slower if place else 1)
            yield Timing(name, batch, threads, took, (took, took), ratio, (ratio, ratio), 3, models[name].engine)

    def seconds(self, model: nn.Module, example: Any) -> float:
        """A millisecond for every million products on stairs, and one for every layer."""
        spent: list[float] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            weight = module.weight
            out, into = (-(-size // self.step) * self.step for size in weight.shape[:2])
            area = output[0].numel() // weight.shape[0]
            spent.append(1e-3 + 1e-6 * out * into * area * weight[0, 0].numel())

        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        with torch.no_grad():
            Inputs.of(example).call(model)
        for handle in handles:
            handle.remove()
        return sum(spent)


def installed(monkeypatch: pytest.MonkeyPatch, folder: Any, clock: Clock) -> Clock:
    """Time by ``clock`` from now on, and keep tables in ``folder``."""
    monkeypatch.setattr("nervure.evaluation.timing.in_turn", clock)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return clock
