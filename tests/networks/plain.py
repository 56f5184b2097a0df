"""Chains and sums."""

from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Between, Head, cbr, conv, covers, image, noise


@covers(image)
class Chain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), Head(6))


@covers(image)
class ConvBnRelu(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 6), Head(6))


@covers(lambda: noise(4, 6))
class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Sigmoid(), nn.Linear(8, 3))


@covers(image)
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.a, self.b = cbr(8, 6), nn.Sequential(conv(6, 8), nn.BatchNorm2d(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))


@covers(image)
class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 6)
        self.a, self.b = cbr(6, 7, stride=2), nn.Sequential(conv(7, 8), nn.BatchNorm2d(8))
        self.shortcut = nn.Sequential(conv(6, 8, 1, stride=2), nn.BatchNorm2d(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.shortcut(x) + self.b(self.a(x))))


@covers(image)
class Bottlenecks(nn.Module):
    """Two residual blocks on one trunk, pre-activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1), nn.ReLU(), conv(4, 8)) for _ in range(2)
        )
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@covers(image)
class UnusedLayer(Between):
    """A layer that the forward pass never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.never = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return x
