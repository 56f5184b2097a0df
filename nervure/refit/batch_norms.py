"""Statistics of batch norms, moved as far as what enters them has moved from what enters those of the dense network.

A norm of the dense network knows the mean and the variance of many more samples than are at hand. Of those at hand only
the difference is taken: where nothing has changed, nothing changes.
"""

from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.surgery.cut import tensor_of


@final
class Entered:
    """Mean and variance of each channel of what enters a norm, over samples and positions."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add a batch, [samples, channels, ...]."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self._sum = self._sum.to(values) + values.sum(1)
        self._square = self._square.to(values) + values.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """[channels]."""
        return self._sum / self.count

    @property
    def var(self) -> Tensor:
        """[channels]."""
        return (self._square / self.count - self.mean.square()).clamp(min=0)


Pair: TypeAlias = tuple[Tensor, Tensor]
"""Mean and variance of each channel."""


def remeasure(model: nn.Module, names: tuple[str, str], known: Pair, was: Pair, now: Pair) -> None:
    """Set running mean and variance, in place.

    Args:
        model: whose statistics are set.
        names: of the two buffers.
        known: what the norm of the dense network knows of the channels that are left.
        was: what enters it in the dense network.
        now: what enters it in this one.
    """
    mean = known[0].double() + now[0] - was[0]
    has_variance = (was[1] > 0) & (now[1] > 0)
    var = known[1].double() * torch.where(has_variance, now[1] / was[1].clamp(min=torch.finfo(torch.float64).tiny), 1)
    with torch.no_grad():
        for name, value in zip(names, (mean, var), strict=True):
            buffer = tensor_of(model, name)
            buffer.copy_(value.to(buffer))


def drift(mean: Tensor, known: Pair) -> float:
    """How far a mean is from the running one, in standard deviations, on average over channels."""
    far = (mean - known[0].double()).abs() / known[1].double().clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return float(far.mean())
