"""What is flattened and reshaped: views of channels as something else."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Between, Head, cbr, conv, covers, image


@covers(image)
class FlattenLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 5))


@covers(image)
class PermuteFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = cbr(3, 6), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).permute(0, 2, 3, 1).flatten(1))


@covers(image)
class ViewLinear(nn.Module):
    """Flattened by ``view`` with a size that the module remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = 6 * 16
        self.features, self.fc = cbr(3, 6, stride=2), nn.Linear(self.flat, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).view(-1, self.flat))


@covers(image)
class ReshapeTokens(nn.Module):
    """Pixels become tokens: channels last, then a linear layer on each."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.mix, self.head = cbr(3, 6), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).transpose(1, 2)
        return self.head(F.gelu(self.mix(x)).mean(1))


@covers(image)
class ConcatFlatten(nn.Module):
    """Two flattened maps of different sizes, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 4, stride=2), cbr(3, 5, stride=4)
        self.fc = nn.Linear(4 * 16 + 5 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x).flatten(1), self.b(x).flatten(1)], 1))


@covers(image)
class PixelShuffle(Between):
    first, second = 16, 4

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)


@covers(image)
class PixelUnshuffle(Between):
    first, second = 4, 16

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


@covers(image)
class SpaceToDepth(Between):
    """Pixel unshuffle by hand: the four corners of each patch, concatenated."""

    first, second = 4, 16

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


@covers(image)
class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 8), cbr(8, 8, groups=2), cbr(8, 8, groups=2)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.c(x))


@covers(image)
class ShuffleUnit(nn.Module):
    """Half of the channels pass by, the others are transformed; then all are shuffled (as in ShuffleNet v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.branch = nn.Sequential(cbr(4, 4, 1), conv(4, 4, groups=4), cbr(4, 4, 1))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
