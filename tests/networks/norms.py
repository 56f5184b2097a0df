"""Norms, activations and scales."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.networks.registry import Between, Head, cbr, conv, covers, image, sequence, words


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
