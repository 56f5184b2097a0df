"""What is hard only together with something else."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import (
    Head,
    cbr,
    conv,
    covers,
    image,
    noise,
    sequence,
)


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
