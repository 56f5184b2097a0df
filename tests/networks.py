"""Tiny seeded networks, each for one thing that networks do; ``NETWORKS[name]`` makes the model and an example.

All are in evaluation mode, and nothing in them is trivially right: norm statistics, affine weights, biases and scales
are random, so that a channel read at the wrong place changes the output.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

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


# -------------------------------------------------------------------------------------------------- chains and sums


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


# --------------------------------------------------------------------------------------------- concatenating, splitting


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


# ------------------------------------------------------------------------------------------------ flattening, reshaping


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


# --------------------------------------------------------------------------------------------------- convolutions


@covers(image)
class GroupedConv(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 12, groups=4), cbr(12, 6), Head(6))


@covers(image)
class GroupedChain(nn.Sequential):
    """Two grouped convolutions with different numbers of groups."""

    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 8, groups=2), cbr(8, 12, groups=4), cbr(12, 6), Head(6))


@covers(image)
class ResNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 8), Head(8)
        self.branch = nn.Sequential(cbr(8, 12, 1), cbr(12, 12, groups=3), conv(12, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.branch(x)))


@covers(image)
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 8, groups=8), cbr(8, 6, 1), Head(6))


@covers(image)
class DepthMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 6), cbr(6, 12, groups=6), cbr(12, 5, 1), Head(5))


@covers(image)
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 6), Head(6)
        self.branch = nn.Sequential(
            cbr(6, 12, 1), cbr(12, 12, groups=12), nn.Hardswish(), conv(12, 6, 1), nn.BatchNorm2d(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(x))


@covers(lambda: noise(2, 3, 12))
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3, dilation=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.norm(self.a(x))))).amax(2))


@covers(lambda: noise(1, 2, 4, 6, 6))
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 3)
        self.pool, self.fc = nn.MaxPool3d(2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.norm(self.a(x))), (1, 2, 2), (1, 1, 1))
        return self.fc(F.adaptive_avg_pool3d(self.pool(self.b(x)), 1).flatten(1))


@covers(image)
class ConvTranspose(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 6),
            nn.ConvTranspose2d(6, 8, 2, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            conv(8, 4),
            nn.ReLU(),
            Head(4),
        )


@covers(image)
class GroupedTranspose(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), nn.ReLU(), cbr(8, 4), Head(4))


@covers(image)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 4), cbr(4, 6), cbr(6, 8)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.d, self.e = cbr(12, 6), cbr(8, 4)
        self.out = conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up1(c), b], 1))
        return self.out(self.e(torch.cat([self.up2(d), a], 1)))


@covers(image)
class Unfold(nn.Module):
    """A convolution by hand: ``unfold`` and a linear layer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.head = cbr(3, 4), nn.Linear(36, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.stem(x), 3, padding=1).transpose(1, 2)
        return self.head(F.relu(self.fc(patches)).mean(1))


# ------------------------------------------------------------------------------------------- norms, activations, scales


@covers(image)
class GroupNorm(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@covers(image)
class InstanceNorm(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@covers(image)
class InstanceNormLive(Between):
    """Instance norm that computes its statistics at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(8, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@covers(sequence)
class LayerNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))


@covers(image)
class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(6, 5)
        self.depthwise, self.norm = conv(6, 6, groups=6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.5))
        self.final = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(self.final((x + y).mean((2, 3))))


class RmsNormByHand(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@covers(words)
class RmsNorm(nn.Module):
    """A gated feed-forward block after a hand-written norm, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 6), RmsNormByHand(6)
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@covers(image)
class GlobalResponseNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = cbr(3, 6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.gamma, self.beta = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        norm = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = self.gamma * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta + y
        return self.head(x + self.down(y).permute(0, 3, 1, 2))


@covers(image)
class PRelu(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), Head(6))


@covers(image)
class WeightNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            parametrizations.weight_norm(conv(3, 8)), nn.ReLU(), parametrizations.weight_norm(conv(8, 6)), Head(6)
        )


@covers(image)
class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 8), Head(6)
        self.squeeze, self.excite, self.after = conv(8, 4, 1), conv(4, 8, 1), cbr(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.after(x * gate))


@covers(image)
class ChannelAttention(nn.Module):
    """Squeeze and excitation through linear layers and ``view``, then attention in space from the mean and the max."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.after, self.head = cbr(3, 8), cbr(8, 6), Head(6)
        self.mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.shape
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate.view(n, c, 1, 1)
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(self.after(x * torch.sigmoid(self.spatial(maps))))


@covers(image)
class EfficientChannelAttention(nn.Module):
    """A convolution *along* the channels: their order matters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.after, self.head = cbr(3, 8), cbr(8, 6), Head(6)
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.along(x.mean((2, 3))[:, None]))[:, 0, :, None, None]
        return self.head(self.after(x * gate))


@covers(image)
class BufferedScale(Between):
    """Buffers with one value per channel, used in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(-1, 1, 8).view(1, 8, 1, 1))
        self.register_buffer("scale", torch.linspace(0.5, 2, 8), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.scale[:, None, None]


@covers(image)
class ScaleParameter(Between):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.zeros(1, 8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


@covers(image)
class CumulativeSum(Between):
    """Along the image's width: channels stay apart."""

    def middle(self, x: Tensor) -> Tensor:
        return x.cumsum(3) / 8


@covers(image)
class CumulativeChannels(Between):
    def middle(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@covers(image)
class SoftmaxChannels(Between):
    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


@covers(image)
class SortChannels(Between):
    """No cut can be right here: which channel comes where depends on the data."""

    def middle(self, x: Tensor) -> Tensor:
        return x.sort(1).values


@covers(image)
class Where(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 6), conv(3, 6), cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(self.c(torch.where(a > b, a, 0.5 * b)))


@covers(image)
class Activations(nn.Module):
    """Many activations, none of which keeps 0 at 0 throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.a(x)) + torch.exp(-(self.a(x) ** 2))
        x = F.hardsigmoid(self.b(x)).clamp(min=0.1) - F.elu(self.b(x)) / (1 + x.abs())
        return self.head(torch.cos(self.c(x)) * F.leaky_relu(self.c(x), 0.2))


# --------------------------------------------------------------------------------------------------- pooling, resizing


@covers(image)
class Pooling(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 6), nn.MaxPool2d(3, 1, 1), cbr(6, 7), nn.AvgPool2d(2), nn.Dropout(0.5), cbr(7, 5),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 5),
        )  # fmt: skip


@covers(image)
class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 6, stride=2), cbr(6, 6, stride=2), cbr(6, 5)
        self.up, self.head = nn.Upsample(scale_factor=2, mode="nearest"), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = F.interpolate(self.b(a), size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.c(self.up(a + b)))


@covers(image)
class GridSample(Between):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("theta", torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.8, 0.1]]))

    def middle(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta.expand(x.shape[0], 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@covers(image)
class PaddingModes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.5),
            nn.Conv2d(6, 7, 3, padding=1, padding_mode="circular"), nn.ReplicationPad2d(1), nn.Conv2d(7, 5, 3), Head(5),
        )  # fmt: skip


@covers(image)
class ZeroPadChannels(nn.Module):
    """A shortcut that widens by padding channels with zeros (as in ResNets for CIFAR, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 4), cbr(4, 6, stride=2), conv(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.b(self.a(x)))


# ---------------------------------------------------------------------------------------------- sharing, calling styles


@covers(image)
class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = cbr(3, 6), cbr(6, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x))))


@covers(image)
class SharedBranches(nn.Module):
    """One module object under two names, on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 6), cbr(3, 6)
        self.left = self.right = cbr(6, 5)
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.left(self.a(x)) * self.right(self.b(x)))


@covers(lambda: noise(4, 6))
class TiedTransposed(nn.Module):
    """An auto-encoder whose decoder is its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        y = torch.tanh(self.b(x))
        return self.out(torch.tanh(F.linear(y, self.b.weight.t())) + x)


@covers(words)
class TiedEmbedding(nn.Module):
    """A language model whose head is its embedding: one parameter, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.hidden(x))


@covers(lambda: noise(4, 6))
class RawParameters(nn.Module):
    """Weights kept as bare parameters and used by ``F.linear``, ``@`` and ``addmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8))
        self.second, self.third = nn.Parameter(torch.randn(8, 7)), nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(F.linear(x, self.weight, self.bias))
        return torch.addmm(torch.zeros(3, dtype=x.dtype), torch.relu(x @ self.second), self.third)


@covers(image)
class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


@covers(lambda: (noise(2, 3, 8, 8), noise(2, 4, seed=8)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 6), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(self.a(x).mean((2, 3)) * torch.sigmoid(self.b(y)))


@covers(lambda: ({"image": noise(2, 3, 8, 8), "facts": noise(2, 4, seed=8)},))
class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 6), nn.Linear(4, 7), nn.Linear(13, 5)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.fc(torch.cat([self.a(inputs["image"]).amax((2, 3)), self.b(inputs["facts"])], 1))


@covers(lambda: {"x": noise(2, 3, 8, 8), "scale": 2.0, "deep": True})
class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 6), cbr(6, 6), Head(6)

    def forward(self, x: Tensor, *, scale: float = 1.0, deep: bool = False) -> Tensor:
        x = scale * self.a(x)
        return self.head(self.b(x) if deep else x)


@covers(image)
class TupleOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.one, self.two = cbr(3, 6), cbr(6, 7), Head(6), Head(7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        return self.one(x), self.two(self.b(x))


@covers(image)
class DictOutput(nn.Module):
    """One of the outputs is a feature map: its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 6), cbr(6, 7), Head(7)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = self.a(x)
        b = self.b(a)
        return {"logits": self.head(b), "features": [b]}


@dataclass
class Answer:
    """What :class:`DataclassOutput` returns."""

    logits: Tensor
    boxes: Tensor | None = None


@covers(image)
class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.logits, self.boxes = cbr(3, 6), Head(6), conv(6, 4, 1)

    def forward(self, x: Tensor) -> Answer:
        x = self.a(x)
        return Answer(self.logits(x), self.boxes(x))


@covers(image)
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.a(x))
        y = self.b(x)
        y += x
        y.add_(0.1).mul_(2.0)
        return self.head(F.leaky_relu_(self.c(y)))


@covers(image)
class SliceWrites(nn.Module):
    """An output buffer that is filled by writing into slices of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 4), cbr(3, 6), cbr(10, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        both = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], x.shape[2], x.shape[3])
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :] = b
        return self.head(self.c(both))


@covers(image)
class PartialConv(nn.Module):
    """Only the first channels are convolved, written over a copy (as in FasterNet); their number is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.part = 3
        self.stem, self.partial, self.after, self.head = cbr(3, 8), conv(3, 3), cbr(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.clone()
        y[:, : self.part] = self.partial(x[:, : self.part])
        return self.head(self.after(y))


@covers(image)
class ControlFlow(nn.Module):
    """How often a layer runs, and whether another does, depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 6), cbr(6, 6), cbr(6, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        energy = float(x.abs().mean())
        x = self.a(x)
        for _ in range(2 if energy > 0.1 else 1):
            x = x + self.b(x)
        return self.head(self.c(x) if energy > 0 else x[:, :5])


# ------------------------------------------------------------------------------------------------- sequences and tokens


@covers(words)
class EmbeddingLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(11, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


@covers(sequence)
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 7)), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.einsum("nsc,cd->nsd", torch.sigmoid(self.fc(x)), self.weight)))


@covers(sequence)
class Matmul(nn.Module):
    """Attention without heads: two activations are multiplied, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 3.0
        return self.out(scores.softmax(-1) @ self.v(x))


@covers(image)
class MlpMixer(nn.Module):
    """Tokens are mixed by a linear layer along them, then channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 5)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """Linear layer, recurrent layers, linear layer on the last step."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 7, directions: int = 1, **options: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.rnn = kind(8, hidden, batch_first=True, bidirectional=directions > 1, **options)
        self.out = nn.Linear(directions * hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(F.relu(self.fc(x)))[0][:, -1])


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    _name = _kind.__name__.lower()
    NETWORKS[_name] = Network(lambda k=_kind: seeded(lambda: Recurrent(k)), sequence)  # type: ignore[misc]
NETWORKS["lstm_stacked"] = Network(lambda: seeded(lambda: Recurrent(nn.LSTM, num_layers=2)), sequence)
NETWORKS["lstm_bidirectional"] = Network(lambda: seeded(lambda: Recurrent(nn.LSTM, directions=2)), sequence)
NETWORKS["gru_stacked_bidirectional"] = Network(
    lambda: seeded(lambda: Recurrent(nn.GRU, directions=2, num_layers=2)), sequence
)


@covers(sequence)
class LstmCell(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.shape[0], self.cell.hidden_size), x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.out(h)


# --------------------------------------------------------------------------------------------------------- attention


@covers(sequence)
class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` on itself, then a feed-forward pair."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(F.relu(self.up(x)))


@covers(sequence)
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.fc(x)))


class FusedAttention(nn.Module):
    """One linear layer makes queries, keys and values; sizes are remembered."""

    def __init__(self, size: int, heads: int, kernel: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.kernel = heads, size // heads, kernel
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, s, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kernel:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, s, self.num_heads * self.head_dim))


class VitBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a shortcut."""

    def __init__(self, attention: nn.Module, size: int = 8) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, size), nn.Linear(size, 3)
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(size), attention, nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 12), nn.Linear(12, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attn(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


NETWORKS["vit"] = Network(lambda: seeded(lambda: VitBlock(FusedAttention(8, 2))), sequence)
NETWORKS["vit_kernel"] = Network(lambda: seeded(lambda: VitBlock(FusedAttention(8, 4, kernel=True))), sequence)


class SplitAttention(nn.Module):
    """Separate queries, keys and values; fewer key and value heads than query heads where ``shared`` > 1.

    Args:
        size: width of the input.
        heads: number of query heads.
        shared: how many query heads read one key head.
        gqa: let the attention kernel share the keys, instead of repeating them.
        rotary: turn queries and keys by their position.
        bias: add a learned bias per head and relative position.
    """

    def __init__(
        self, size: int, heads: int, shared: int = 1, gqa: bool = False, rotary: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim = heads, heads // shared, 4
        self.gqa, self.rotary = gqa, rotary
        self.q_proj = nn.Linear(size, heads * 4)
        self.k_proj, self.v_proj = nn.Linear(size, self.kv_heads * 4), nn.Linear(size, self.kv_heads * 4)
        self.o_proj = nn.Linear(heads * 4, size)
        self.table = nn.Parameter(torch.randn(9, heads)) if bias else None
        place = torch.arange(5)
        self.register_buffer("relative", place[:, None] - place[None, :] + 4)
        angle = place[:, None] / torch.tensor([1.0, 10.0])
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], 1))
        self.register_buffer("sin", torch.cat([angle.sin(), angle.sin()], 1))

    def heads(self, x: Tensor, count: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], count, self.head_dim).transpose(1, 2)

    def turn(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos + turned * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.heads(self.q_proj(x), self.num_heads), self.heads(self.k_proj(x), self.kv_heads)
        v = self.heads(self.v_proj(x), self.kv_heads)
        if self.rotary:
            q, k = self.turn(q), self.turn(k)
        if not self.gqa and self.kv_heads != self.num_heads:
            k, v = (t.repeat_interleave(self.num_heads // self.kv_heads, 1) for t in (k, v))
        mask = None if self.table is None else self.table[self.relative].permute(2, 0, 1)[None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.gqa)
        return self.o_proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


_SPLIT: dict[str, dict[str, Any]] = {
    "separate_qkv": {},
    "gqa_repeat": {"shared": 2},
    "gqa_kernel": {"shared": 2, "gqa": True},
    "relative_bias": {"bias": True},
    "rotary": {"rotary": True},
}
for _name, _options in _SPLIT.items():
    NETWORKS[_name] = Network(
        lambda o=_options: seeded(lambda: VitBlock(SplitAttention(8, 4, **o))),  # type: ignore[misc]
        sequence,
    )


class WindowAttention(nn.Module):
    """Attention inside windows of 2 x 2 pixels, with a relative position bias and cyclic shift (as in Swin)."""

    def __init__(self, size: int = 8, heads: int = 2, window: int = 2) -> None:
        super().__init__()
        self.window, self.attention = window, FusedAttention(size, heads)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        k = self.window
        x = torch.roll(x, (-1, -1), (1, 2))
        x = x.view(n, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)
        x = self.attention(x).view(n, h // k, w // k, k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(x, (1, 1), (1, 2))


@covers(image)
class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.attn = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8), WindowAttention()
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = x + self.attn(self.norm(x))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean((1, 2)))


@covers(image)
class PatchMerging(nn.Module):
    """Four neighbours concatenated, normed and reduced (as in Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.reduce, self.head = (
            cbr(3, 4),
            nn.LayerNorm(16),
            nn.Linear(16, 7, bias=False),
            Head(7),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(F.relu(self.reduce(self.norm(x))).permute(0, 3, 1, 2))


@covers(image)
class ChannelCovariance(nn.Module):
    """Attention across channels: a channel by channel matrix weighs the channels (as in XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, s, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, s, 3, self.num_heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(s)).softmax(-1)
        y = (weights @ v).permute(0, 3, 1, 2).reshape(n, s, -1)
        return self.head((x + self.proj(y)).mean(1))


# ----------------------------------------------------------------------------------------------------- combinations


@covers(lambda: noise(4, 5))
class ShuffleLinear(nn.Module):
    """A shuffle between linear layers: its two blocks have no layer that would forbid to cut one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.view(x.shape[0], 2, x.shape[1] // 2).transpose(1, 2).reshape(x.shape))


@covers(image)
class DepthMultiplierBeside(nn.Module):
    """Channels and what a depthwise convolution makes of them (two of each), concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.fc = cbr(3, 6), conv(6, 12, groups=6), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(torch.cat([x, F.relu(self.wide(x))], 1).mean((2, 3)))


@covers(image)
class GateBeside(nn.Module):
    """Channels that are also gated in halves, concatenated with others once the gate has run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.after, self.fc = conv(3, 6), conv(3, 4), conv(3, 5), nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        gated = self.after(F.glu(a, 1))
        return self.fc(torch.cat([b, a, gated], 1).mean((2, 3)))


@covers(sequence)
class BiasOfThree(nn.Module):
    """A projection to queries, keys and values whose bias is put together from three, one of them zero (as in BEiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 8), nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("k_bias", torch.zeros(8))
        self.heads, self.up, self.down = 2, nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.down(F.relu(self.up(x + self.out(y.transpose(1, 2).flatten(2)))))


@covers(sequence)
class SizesOfTheStream(nn.Module):
    """Attention that takes all its sizes from the width of the stream (as in minGPT): they leave together."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out, self.heads, self.width = (
            nn.Linear(6, 8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            2,
            8,
        )
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.size()
        parts = self.qkv(x).split(self.width, dim=2)
        q, k, v = (p.view(n, t, self.heads, c // self.heads).transpose(1, 2) for p in parts)
        y = (q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).contiguous().view(n, t, c))
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


@covers(image)
class SlicesOfThree(nn.Module):
    """A buffer for the channels of three layers, its size and the places of its slices added up from theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.after, self.head = cbr(3, 4), cbr(3, 6), cbr(3, 5), cbr(15, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        first, second = a.size(1), a.size(1) + b.size(1)
        all_ = x.new_empty(x.size(0), second + c.size(1), *x.shape[2:])
        all_[:, :first], all_[:, first:second], all_[:, second:] = a, b, c
        return self.head(self.after(all_))


@covers(sequence)
class TwoTowers(nn.Module):
    """The cosine of what two branches say, by lengths that are spread over their units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.to_a, self.to_b = nn.Linear(6, 9), nn.Linear(6, 7), nn.Linear(9, 8), nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.to_a(F.relu(self.a(x))), self.to_b(F.relu(self.b(x)))
        return F.cosine_similarity(a, b, dim=2) + (F.normalize(a, dim=2) * F.normalize(b, dim=2)).sum(2)


@covers(image)
class FixedBuffer(nn.Module):
    """A buffer of a fixed size for channels whose number the module remembers: it must not be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 4
        self.a, self.b, self.after, self.head = cbr(3, 4), cbr(3, 6), cbr(10, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        all_ = x.new_zeros(x.shape[0], 10, *x.shape[2:])
        all_[:, : self.number], all_[:, self.number :] = self.a(x), self.b(x)
        return self.head(self.after(all_))


@covers(sequence)
class ScaleFromAttribute(nn.Module):
    """A width that is a size and a scale at once: as a scale it must not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.width, self.up, self.head = nn.Linear(6, 8), 8, nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x).reshape(x.shape[0], -1, self.width)
        return self.head(F.relu(self.up(x * self.width**-0.5 + x / self.width)))


@cache
def traced(name: str) -> tuple[nn.Module, Any, Graph]:
    """A shared network in evaluation mode, its example and its graph; not to be changed, since others get it too."""
    network = NETWORKS[name]
    model, example = network.factory().eval(), network.example()
    return model, example, trace(model, example)
