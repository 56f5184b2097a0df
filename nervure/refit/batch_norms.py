"""Statistics of batch norms, moved as far as what enters them has moved from what enters those of the dense network.

A norm of the dense network knows the mean and the variance of many more samples than are at hand. Of those at hand only
the difference is taken: where nothing has changed, nothing changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from nervure.graph.tape import named_tensors
from nervure.surgery.cut import tensor_of

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Mean and variance of each channel."""


@final
@dataclass(frozen=True, slots=True)
class NormTensors:
    """The tensors of a batch norm by name; weight and bias are empty where it has none."""

    mean: str
    var: str
    weight: str = ""
    bias: str = ""
    eps: float = 0.0

    def slope(self, model: nn.Module) -> Tensor:
        """What each channel is multiplied by in evaluation mode, in double precision."""
        tensors = named_tensors(model)
        found = (tensors[self.var].detach().double() + self.eps).rsqrt()
        return found * tensors[self.weight].detach().double() if self.weight else found

    def is_trained(self, model: nn.Module) -> bool:
        """Whether its weight and bias are there and may change."""
        tensors = named_tensors(model)
        return all(name and tensors[name].requires_grad for name in (self.weight, self.bias))

    def shift(self, model: nn.Module, by: Tensor) -> None:
        """Add to what it gives, in place: through its bias, or its mean where that may not change."""
        tensors = named_tensors(model)
        with torch.no_grad():
            if self.is_trained(model):
                tensors[self.bias] += by.to(tensors[self.bias])
            else:
                slope = self.slope(model)
                tensors[self.mean] -= torch.where(slope == 0, 0, by / slope).to(tensors[self.mean])

    def restate(self, model: nn.Module, now: Pair) -> None:
        """Take these statistics, with weight and bias such that it gives the same as before in evaluation mode.

        In training mode it then does nearly so, too.
        """
        tensors, slope = named_tensors(model), self.slope(model)
        mean, var = tensors[self.mean].double(), tensors[self.var].double()
        new_var = torch.where(now[1] > 0, now[1], var)
        with torch.no_grad():
            tensors[self.bias] += (slope * (now[0] - mean)).to(tensors[self.bias])
            tensors[self.weight].copy_(slope * (new_var + self.eps).sqrt())
            tensors[self.mean].copy_(now[0])
            tensors[self.var].copy_(new_var)


@final
class Entered:
    """Mean and variance of each channel of what enters a norm, over samples and positions."""

    TERMS = ("count", "sum", "square")

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add a batch, [samples, channels, ...]."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self._sum = self._sum.to(values) + values.sum(1)
        self._square = self._square.to(values) + values.square().sum(1)

    def terms(self) -> dict[str, Tensor]:
        """The sums."""
        return {"count": torch.tensor(self.count), "sum": self._sum, "square": self._square}

    @staticmethod
    def of(terms: Mapping[str, Tensor]) -> "Entered":
        """Mean and variance from what :meth:`terms` gave."""
        found = Entered()
        found.count, found._sum, found._square = int(terms["count"]), terms["sum"], terms["square"]
        return found

    @property
    def mean(self) -> Tensor:
        """[channels]."""
        return self._sum / self.count

    @property
    def var(self) -> Tensor:
        """[channels]."""
        return (self._square / self.count - self.mean.square()).clamp(min=0)


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
