"""The registry of the networks, their examples and the parts that many are made of."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nervure import Graph, trace

Example = Tensor | tuple[Any, ...] | dict[str, Any]


class Network(NamedTuple):
    """How to make a model (the same weights at every call) and an example that fits it."""

    factory: Callable[[], nn.Module]
    example: Callable[[], Example]


NETWORKS: dict[str, Network] = {}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every constant parameter and every running statistic a random value; returns ``model``, set to eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()):
                shift = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + shift.to(parameter.dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model with seeded weights, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(build(), seed + 1)


def noise(*shape: int, seed: int = 7) -> Tensor:
    """Standard normal values, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, high: int = 11) -> Tensor:
    """Whole numbers in [0, high), the same at every call."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(5))


def image() -> Tensor:
    """A batch of 2 images, 3 x 8 x 8."""
    return noise(2, 3, 8, 8)


def sequence() -> Tensor:
    """A batch of 2 sequences of 5 steps of 6 numbers."""
    return noise(2, 5, 6)


def words() -> Tensor:
    """A batch of 2 sequences of 5 words."""
    return tokens(2, 5)


def covers(example: Callable[[], Example]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Put the decorated class into NETWORKS, under its name in snake case."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        NETWORKS[name] = Network(lambda: seeded(cls), example)
        return cls

    return add


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def cbr(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    """Average over the image, then a linear layer to 5 numbers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Between(nn.Module):
    """Frame for one operation: convolution (3 to ``first``), :meth:`middle`, convolution (``second`` to 6), head."""

    first = second = 8

    def __init__(self) -> None:
        super().__init__()
        self.before = cbr(3, self.first)
        self.after = cbr(self.second, 6)
        self.head = Head(6)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.middle(self.before(x))))


@cache
def traced(name: str) -> tuple[nn.Module, Any, Graph]:
    """A shared network in evaluation mode, its example and its graph; not to be changed, since others get it too."""
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    return model, example, trace(model, example)
