"""What is concatenated, split, sliced and indexed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Between, Head, cbr, conv, covers, image


@covers(image)
class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 4), cbr(3, 6), cbr(10, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)))


@covers(image)
class ConcatTwice(nn.Module):
    """One branch enters the same concatenation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 4), cbr(3, 3), cbr(11, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(self.c(torch.cat([a, self.b(x), a], 1)))


@covers(image)
class ConcatPlus(nn.Module):
    """The sum of a concatenation and a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.wide, self.c = cbr(3, 4), cbr(3, 6), conv(3, 10), cbr(10, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1) + self.wide(x)))


@covers(image)
class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4 + 3 * i), nn.ReLU(), conv(4 + 3 * i, 3)) for i in range(3)
        )
        self.norm = nn.BatchNorm2d(13)
        self.head = Head(13)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.relu(self.norm(torch.cat(features, 1))))


@covers(image)
class SplitSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 6]
        self.stem = cbr(3, 10)
        self.a, self.b = cbr(4, 5), cbr(6, 5)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.sizes, dim=1)
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


@covers(image)
class ChunkGate(Between):
    """The two halves meet in a product: they must shrink together."""

    second = 4

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)


@covers(image)
class ChunkApart(nn.Module):
    """The two halves go to different readers, yet must stay equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.a, self.b = cbr(4, 5), cbr(4, 6)
        self.head = Head(11)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.head(torch.cat([self.a(a), self.b(b)], 1))


@covers(image)
class Unbind(Between):
    second = 4

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        a, b = x.view(n, 2, c // 2, h, w).unbind(1)
        return a - 2 * b


@covers(image)
class LiteralSlices(nn.Module):
    """Channels sliced at a number written in the code, which no cut can rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 10)
        self.a, self.b = cbr(4, 5), cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x[:, :4]) + self.b(x[:, 4:]))


@covers(image)
class AttributeSlices(nn.Module):
    """Channels sliced at a number that the module remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 4
        self.stem = cbr(3, 10)
        self.a, self.b = cbr(4, 5), cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x[:, : self.first]) + self.b(x[:, self.first :]))


@covers(image)
class EveryOther(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.a, self.b = cbr(4, 6), cbr(4, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x[:, ::2]) + self.b(x[:, 1::2]))


@covers(image)
class IndexSelect(Between):
    """Channels reordered by an index kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]))

    def middle(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


@covers(image)
class StackSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 6), cbr(3, 6), cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], 0)
        return self.head(self.c(both.sum(0)))


@covers(image)
class Maxout(Between):
    first, second = 8, 4

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).amax(2)


@covers(image)
class Glu(Between):
    second = 4

    def middle(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


@covers(image)
class Repeat(Between):
    second = 16

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1)


@covers(image)
class RepeatInterleave(Between):
    second = 16

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1)


@covers(image)
class Roll(Between):
    """Rolls the image sideways: channels stay in place."""

    def middle(self, x: Tensor) -> Tensor:
        return x.roll(2, 3)


@covers(image)
class RollChannels(Between):
    def middle(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 1)


@covers(image)
class FlipChannels(Between):
    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1)
