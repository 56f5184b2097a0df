# ruff: noqa: D102
"""Pieces of networks as people write them, to be put together at random: images, sequences, vectors.

A piece is a module made of ``(draw, *shape)``: a source of chance and the shape of one sample that enters, ``(channels,
height, width)``, ``(steps, width)`` or ``(width,)``. What leaves is of one of these kinds too; its shape is found by
running the piece.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

Piece = Callable[..., nn.Module]
PIECES: dict[int, dict[str, Piece]] = {1: {}, 2: {}, 3: {}}


def piece(axes: int) -> Callable[[Any], Any]:
    """Put a class on the list of those that take samples of so many axes."""

    def register(kind: Any) -> Any:
        PIECES[axes][kind.__name__] = kind
        return kind

    return register


def width(draw: Random, low: int = 3, high: int = 14) -> int:
    """A width that is nobody's friend."""
    return draw.randint(low, high)


def divisor(draw: Random, number: int, most: int = 8) -> int:
    """A number that divides ``number``."""
    return draw.choice([n for n in range(1, min(number, most) + 1) if number % n == 0])


def activation(draw: Random, channels: int = 1) -> nn.Module:
    """A non-linearity; some do not keep zero, some are in place, some have a weight for each channel."""
    makers: Sequence[Callable[[], nn.Module]] = [
        nn.ReLU, lambda: nn.ReLU(inplace=True), nn.GELU, lambda: nn.GELU(approximate="tanh"), nn.SiLU, nn.Sigmoid,
        nn.Tanh, lambda: nn.LeakyReLU(0.1, inplace=True), nn.ELU, nn.Softplus, nn.Mish, nn.Hardswish, nn.ReLU6,
        nn.SELU, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.Identity, nn.CELU, nn.Hardsigmoid, nn.PReLU,
        lambda: nn.PReLU(channels),
    ]  # fmt: skip
    return draw.choice(makers)()


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of an image, in one of four ways to write it."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.style, self.shape, self.eps = style, (channels,), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return F.layer_norm(x.permute(0, 2, 3, 1), self.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
        if self.style == 1:
            mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
            x = (x - mean) / torch.sqrt(var + self.eps)
        elif self.style == 2:
            u = x.mean(1, keepdim=True)
            x = (x - u) * torch.rsqrt((x - u).pow(2).mean(1, keepdim=True) + self.eps)
        else:
            x = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias.view(1, -1, 1, 1)


class RMSNorm(nn.Module):
    """As language models have it, in single precision on the way."""

    def __init__(self, size: int, style: int = 0) -> None:
        super().__init__()
        self.weight, self.style, self.scale = nn.Parameter(torch.ones(size)), style, size**-0.5

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * y.to(x.dtype)
        if self.style == 1:
            return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)
        if self.style == 2:
            return F.normalize(x, dim=-1) * self.weight
        return x / x.norm(dim=-1, keepdim=True).mul(self.scale).clamp(min=1e-6) * self.weight


def norm_of_image(draw: Random, channels: int) -> nn.Module:
    kind = draw.choice(["batch", "batch", "batch", "group", "instance", "layer", "none", "group1", "free", "lrn"])
    if kind == "group":
        return nn.GroupNorm(divisor(draw, channels), channels)
    if kind == "group1":
        return nn.GroupNorm(1, channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=draw.random() < 0.5)
    if kind == "layer":
        return LayerNorm2d(channels, draw.randrange(4))
    if kind == "free":
        return nn.BatchNorm2d(channels, affine=False)
    if kind == "lrn" and draw.random() < 0.3:
        return nn.LocalResponseNorm(2)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def norm_of_rows(draw: Random, size: int) -> nn.Module:
    kind = draw.choice(["layer", "layer", "rms", "rms", "plain", "none", "module"])
    if kind == "layer":
        return nn.LayerNorm(size, bias=draw.random() < 0.8)
    if kind == "plain":
        return nn.LayerNorm(size, elementwise_affine=False)
    if kind == "module":
        return nn.RMSNorm(size, eps=1e-6)
    return RMSNorm(size, draw.randrange(4)) if kind == "rms" else nn.Identity()


# -- images ----------------------------------------------------------------------------------------------------------


@piece(3)
class Convolution(nn.Sequential):
    """Convolution, norm, activation, in any order and with any option."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        out, kernel = width(draw), draw.choice([1, 3, 3, 5])
        groups = 1
        if draw.random() < 0.3:
            groups = divisor(draw, c)
            out = groups * draw.randint(1, max(1, 14 // groups))
        dilation = draw.choice([1, 1, 2])
        stride = draw.choice([1, 1, 1, 2]) if min(h, w) >= 6 else 1
        pad = dilation * (kernel // 2)
        mode = draw.choice(["zeros", "zeros", "reflect", "circular", "replicate"]) if pad < min(h, w) else "zeros"
        conv = nn.Conv2d(c, out, kernel, stride, pad, dilation, groups, draw.random() < 0.6, mode)
        if draw.random() < 0.15:
            conv = draw.choice([parametrizations.weight_norm, parametrizations.spectral_norm])(conv)
        if draw.random() < 0.25:
            super().__init__(norm_of_image(draw, c), activation(draw, c), conv)
        else:
            super().__init__(conv, norm_of_image(draw, out), activation(draw, out))


@piece(3)
class Depthwise(nn.Module):
    """Inverted bottleneck with squeeze and excitation written in one of five ways."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        hidden, out = width(draw, 4, 20), draw.choice([c, width(draw)])
        self.expand = nn.Sequential(
            nn.Conv2d(c, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation(draw, hidden)
        )
        self.deep = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.gate = Squeeze(draw, hidden, h, w) if draw.random() < 0.6 else nn.Identity()
        self.project = nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.skip = c == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.deep(self.expand(x))))
        return x + y if self.skip else y


@piece(3)
class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.style, self.channels = draw.randrange(6), c
        small = max(1, c // draw.choice([2, 3, 4]))
        self.down, self.up = nn.Linear(c, small), nn.Linear(small, c)
        if self.style in (1, 4):
            self.down, self.up = nn.Conv2d(c, small, 1), nn.Conv2d(small, c, 1)
        self.act, self.pool = activation(draw, small if self.style not in (1, 4) else 1), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            b, c, _, _ = x.size()
            y = self.pool(x).view(b, c)
            return x * torch.sigmoid(self.up(self.act(self.down(y)))).view(b, c, 1, 1).expand_as(x)
        if self.style == 1:
            return x * torch.sigmoid(self.up(self.act(self.down(self.pool(x)))))
        if self.style == 2:
            return x * torch.sigmoid(self.up(self.act(self.down(x.mean((2, 3))))))[:, :, None, None]
        if self.style == 3:
            y = x.flatten(2).amax(-1) + x.flatten(2).mean(-1)
            return x.mul(F.hardsigmoid(self.up(self.act(self.down(y)))).reshape(-1, self.channels, 1, 1))
        if self.style == 4:
            y = self.up(self.act(self.down(x.mean([2, 3], keepdim=True))))
            return x * (1 + torch.tanh(y))
        return x * torch.softmax(self.up(self.act(self.down(x.mean((2, 3))))), dim=1).unsqueeze(-1).unsqueeze(-1)


@piece(3)
class Bottleneck(nn.Module):
    """Residual block with or without projection, with a scale of its own."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        hidden, out = width(draw), draw.choice([c, c, width(draw)])
        stride = draw.choice([1, 1, 2]) if min(h, w) >= 6 else 1
        groups = divisor(draw, hidden) if draw.random() < 0.3 else 1
        self.conv1, self.bn1 = nn.Conv2d(c, hidden, 1, bias=False), norm_of_image(draw, hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=groups), norm_of_image(draw, hidden)
        self.conv3, self.bn3 = nn.Conv2d(hidden, out, 1, bias=False), norm_of_image(draw, out)
        self.act, self.style = activation(draw), draw.randrange(5)
        self.downsample = None
        if stride != 1 or c != out:
            self.downsample = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.gamma = nn.Parameter(draw.choice([1.0, 1e-2]) * torch.ones(out)) if self.style == 1 else None
        self.alpha = nn.Parameter(torch.full((1, out, 1, 1), 0.7)) if self.style == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.gamma is not None:
            y = self.gamma.reshape(-1, 1, 1) * y
        if self.alpha is not None:
            return torch.lerp(identity, y, torch.sigmoid(self.alpha))
        if self.style == 3:
            y += identity
            return self.act(y)
        return self.act(torch.add(y, identity, alpha=0.5)) if self.style == 4 else identity + y


@piece(3)
class Inception(nn.Module):
    """Branches of different widths side by side."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        widths = [width(draw, 2, 7) for _ in range(draw.randint(2, 4))]
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, n, k, padding=k // 2), activation(draw, n))
            for n, k in zip(widths, (1, 3, 5, 3), strict=False)
        )
        self.with_pool, self.style, self.widths = draw.random() < 0.4, draw.randrange(3), widths

    def forward(self, x: Tensor) -> Tensor:
        outs = [branch(x) for branch in self.branches]
        if self.with_pool:
            outs.append(F.max_pool2d(x, 3, 1, 1))
        if self.style == 0:
            return torch.cat(outs, 1)
        if self.style == 1:
            out = x.new_zeros(x.shape[0], sum(o.shape[1] for o in outs), *x.shape[2:])
            start = 0
            for o in outs:
                out[:, start : start + o.shape[1]] = o
                start += o.shape[1]
            return out
        joined = torch.cat(outs, dim=1)
        first, rest = torch.split(joined, [self.widths[0], joined.size(1) - self.widths[0]], dim=1)
        return torch.cat((rest, first * 2), dim=1)


@piece(3)
class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        growth = width(draw, 2, 5)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c + i * growth), nn.ReLU(), nn.Conv2d(c + i * growth, growth, 3, padding=1))
            for i in range(draw.randint(1, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


@piece(3)
class Shuffle(nn.Module):
    """Half passes, half is worked on, channels are shuffled; the shuffle in one of three ways."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        half = width(draw, 2, 7)
        self.stem, self.half, self.style = nn.Conv2d(c, 2 * half, 1), half, draw.randrange(4)
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half), nn.Conv2d(half, half, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.chunk(2, dim=1) if self.style % 2 else (x[:, : self.half], x[:, self.half :])
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.size()
        if self.style == 0:
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        if self.style == 1:
            return x.reshape(n, 2, self.half, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)
        if self.style == 2:
            return F.channel_shuffle(x, 2)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


@piece(3)
class CrossStage(nn.Module):
    """Partial cross-stage block, as detectors have it: a list that grows, then one convolution over all."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.c, out, n = width(draw, 2, 7), width(draw), draw.randint(1, 2)
        self.cv1, self.cv2 = nn.Conv2d(c, 2 * self.c, 1, bias=False), nn.Conv2d((2 + n) * self.c, out, 1)
        self.bn, self.act = nn.BatchNorm2d(2 * self.c), activation(draw)
        self.m = nn.ModuleList(nn.Sequential(nn.Conv2d(self.c, self.c, 3, padding=1), nn.SiLU()) for _ in range(n))
        self.add, self.style = draw.random() < 0.5, draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.cv1(x)))
        y = list(x.chunk(2, 1)) if self.style else list(x.split((self.c, self.c), 1))
        y.extend(m(y[-1]) + (y[-1] if self.add else 0) for m in self.m)
        return self.cv2(torch.cat(y, 1))


@piece(3)
class PyramidPool(nn.Module):
    """Pools of a pool of a pool, side by side; or pools of several sizes, brought back to size."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        hidden, self.style = width(draw, 2, 7), draw.randrange(2)
        self.cv1 = nn.Conv2d(c, hidden, 1)
        self.cv2 = nn.Conv2d(hidden * 4 if self.style == 0 else hidden * 2 + c, width(draw), 1)
        self.m = nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            y = [self.cv1(x)]
            y.extend(self.m(y[-1]) for _ in range(3))
            return self.cv2(torch.cat(y, 1))
        pools = [F.interpolate(self.cv1(F.adaptive_avg_pool2d(x, n)), x.shape[2:], mode="bilinear") for n in (1, 2)]
        return self.cv2(torch.cat([x, *pools], 1))


@piece(3)
class Hourglass(nn.Module):
    """Down and up again, with a skip: transposed convolution, pixel shuffle or interpolation."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        deep, up = width(draw), width(draw)
        self.down = nn.Sequential(nn.Conv2d(c, deep, 3, 2, 1), activation(draw, deep))
        self.style = draw.randrange(4)
        if self.style == 0:
            groups = math.gcd(deep, up)
            self.up: nn.Module = nn.ConvTranspose2d(deep, up, 2, 2, groups=groups if draw.random() < 0.5 else 1)
        elif self.style == 1:
            self.up = nn.Sequential(nn.Conv2d(deep, 4 * up, 1), nn.PixelShuffle(2))
        else:
            mode = "nearest" if self.style == 2 else "bilinear"
            self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(deep, up, 3, padding=1))
        self.fuse, self.join = nn.Conv2d(c + up, width(draw), 3, padding=1), draw.random() < 0.7
        self.add = nn.Conv2d(up, c, 1) if not self.join else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(x))
        if y.shape[-2:] != x.shape[-2:]:
            y = y[..., : x.shape[-2], : x.shape[-1]]
        return self.fuse(torch.cat([x, y], 1)) if self.add is None else x + self.add(y)


@piece(3)
class Unshuffle(nn.Module):
    """Space into channels and what comes of it: pixel unshuffle, slices side by side, patches by view."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.style = draw.randrange(3)
        self.conv = nn.Conv2d(4 * c, width(draw), 1)
        self.norm = nn.LayerNorm(4 * c) if draw.random() < 0.4 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        if self.style == 0:
            y = F.pixel_unshuffle(x, 2)
        elif self.style == 1:
            y = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        else:
            b, c, h, w = x.shape
            y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.conv(self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@piece(3)
class NextBlock(nn.Module):
    """ConvNeXt: channels last in the middle; the second edition with its response norm."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        hidden = width(draw, 4, 24)
        self.dwconv, self.norm = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.pwconv1, self.pwconv2 = nn.Linear(c, hidden), nn.Linear(hidden, c)
        self.gamma = nn.Parameter(draw.choice([1e-6, 0.1, 1.0]) * torch.ones(c)) if draw.random() < 0.5 else None
        self.response = draw.random() < 0.4
        if self.response:
            self.scale, self.shift = nn.Parameter(torch.randn(1, 1, 1, hidden)), nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = F.gelu(self.pwconv1(y))
        if self.response:
            g = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
            y = self.scale * (y * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + self.shift + y
        y = self.pwconv2(y)
        if self.gamma is not None:
            y = self.gamma * y
        return x + y.permute(0, 3, 1, 2)


@piece(3)
class SelectiveKernel(nn.Module):
    """Softmax over branches, a gate for every channel."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.out, self.paths, small = width(draw), draw.randint(2, 3), width(draw, 2, 5)
        self.convs = nn.ModuleList(nn.Conv2d(c, self.out, 3, padding=i + 1, dilation=i + 1) for i in range(self.paths))
        self.down, self.up = nn.Linear(self.out, small), nn.Linear(small, self.out * self.paths)
        self.style = draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        feats = torch.stack([conv(x) for conv in self.convs], 1)
        s = self.up(F.relu(self.down(feats.sum(1).mean((-1, -2)))))
        if self.style == 0:
            s = s.view(-1, self.paths, self.out, 1, 1).softmax(1)
        else:
            s = torch.softmax(s.reshape(x.size(0), self.paths, -1), dim=1)[..., None, None]
        return (feats * s).sum(1)


@piece(3)
class ConvAttentionGate(nn.Module):
    """CBAM: gates by channel, then by place, with mean and maximum over channels."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        small = width(draw, 2, 5)
        self.mlp = nn.Sequential(nn.Linear(c, small), nn.ReLU(), nn.Linear(small, c))
        self.conv, self.style = nn.Conv2d(2, 1, 3, padding=1), draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * torch.sigmoid(gate)[..., None, None]
        if self.style == 0:
            y = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        else:
            y = torch.stack([torch.mean(x, dim=1), torch.amax(x, dim=1)], dim=1)
        return x * torch.sigmoid(self.conv(y))


@piece(3)
class ChannelConvolution(nn.Module):
    """ECA: a convolution that runs along the channels."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.pre, self.conv = nn.Conv2d(c, width(draw), 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * y.sigmoid()[:, :, None, None]


@piece(3)
class NonLocal(nn.Module):
    """Attention over pixels with half the channels."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.inner, self.style = max(1, c // 2), draw.randrange(3)
        self.theta, self.phi, self.g = (nn.Conv2d(c, self.inner, 1) for _ in range(3))
        self.out = nn.Conv2d(self.inner, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        theta = self.theta(x).view(b, self.inner, -1).permute(0, 2, 1)
        phi, g = self.phi(x).flatten(2), self.g(x).reshape(b, self.inner, h * w).transpose(1, 2)
        if self.style == 0:
            attn = torch.softmax(torch.matmul(theta, phi), dim=-1)
        elif self.style == 1:
            attn = torch.bmm(theta, phi) / phi.size(-1)
        else:
            attn = F.softmax(theta @ phi / math.sqrt(self.inner), -1)
        y = torch.matmul(attn, g).permute(0, 2, 1).reshape(b, -1, h, w)
        return x + self.out(y)


@piece(3)
class ChannelAttention(nn.Module):
    """Channels attend to channels (transposed attention)."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.heads, each = draw.randint(1, 3), width(draw, 2, 4)
        inner = self.heads * each
        self.qkv, self.deep = (
            nn.Conv2d(c, 3 * inner, 1),
            nn.Conv2d(3 * inner, 3 * inner, 3, padding=1, groups=3 * inner),
        )
        self.project, self.temperature = nn.Conv2d(inner, c, 1), nn.Parameter(torch.ones(self.heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.deep(self.qkv(x)).chunk(3, dim=1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        return x + self.project((attn @ v).reshape(b, -1, h, w))


@piece(3)
class Window(nn.Module):
    """Attention in windows, shifted by a roll, with a table of relative positions."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.win = 2
        self.heads = draw.randint(1, 4)
        self.dim = self.heads * width(draw, 2, 4)
        self.embed, self.norm = nn.Conv2d(c, self.dim, 1), nn.LayerNorm(self.dim)
        self.qkv, self.proj = nn.Linear(self.dim, 3 * self.dim), nn.Linear(self.dim, self.dim)
        self.table = nn.Parameter(torch.randn((2 * self.win - 1) ** 2, self.heads))
        at = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        offset = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", offset[..., 0] * 3 + offset[..., 1])
        self.shift = draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        qkv = self.qkv(y).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.heads) ** -0.5, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1)
        attn = attn + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        y = self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return (x + torch.roll(y, (self.shift, self.shift), (1, 2))).permute(0, 3, 1, 2)


@piece(3)
class Fourier(nn.Module):
    """A filter in the frequency domain: one weight for each channel, or a mixing of channels."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.mix, self.h, self.w, self.out = draw.random() < 0.5, h, w, width(draw, 2, 8)
        shape = (c, self.out, 2, 2) if self.mix else (c, h, w // 2 + 1)
        self.weight = nn.Parameter(torch.randn(*shape, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        freq = torch.fft.rfft2(x, norm="ortho")
        weight = torch.view_as_complex(self.weight)
        if not self.mix:
            return torch.fft.irfft2(freq * weight, s=(self.h, self.w), norm="ortho")
        low = torch.einsum("bixy,ioxy->boxy", freq[:, :, :2, :2], weight[:, :, : freq.shape[2], : freq.shape[3]])
        full = torch.zeros(x.size(0), self.out, *freq.shape[2:], dtype=freq.dtype, device=x.device)
        full[:, :, :2, :2] = low
        return torch.fft.irfft2(full, s=(self.h, self.w), norm="ortho")


@piece(3)
class Coordinates(nn.Module):
    """Places beside the features; the grid is made anew, or kept for the next time."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.conv, self.keep, self.grid = nn.Conv2d(c + 2, width(draw), 3, padding=1), draw.random() < 0.5, None

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        if not self.keep or self.grid is None or self.grid.shape[-2:] != (h, w) or self.grid.dtype != x.dtype:
            ys, xs = torch.linspace(-1, 1, h).to(x), torch.linspace(-1, 1, w).to(x)
            self.grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))[None]
        return self.conv(torch.cat([x, self.grid.expand(b, -1, -1, -1)], 1))


@piece(3)
class Maxout(nn.Module):
    """Pairs of channels compete: maximum over a view, over slices, over chunks."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.out, self.style = width(draw, 2, 8), draw.randrange(4)
        self.conv = nn.Conv2d(c, 2 * self.out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.style == 0:
            return x.view(x.size(0), self.out, 2, *x.shape[2:]).amax(2)
        if self.style == 1:
            return torch.max(x[:, : x.size(1) // 2], x[:, x.size(1) // 2 :])
        if self.style == 2:
            return F.glu(x, dim=1)
        a, b = torch.chunk(x, 2, dim=1)
        return a * torch.sigmoid(b)


@piece(3)
class DynamicConvolution(nn.Module):
    """The kernel is a mixture of experts, mixed for each sample, applied by a grouped convolution."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.experts, self.c, self.out = draw.randint(2, 3), c, width(draw)
        self.route = nn.Linear(c, self.experts)
        self.weight = nn.Parameter(torch.randn(self.experts, self.out, c, 3, 3) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        mix = torch.softmax(self.route(x.mean((2, 3))), -1)
        weight = torch.mm(mix, self.weight.view(self.experts, -1)).view(b * self.out, self.c, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, self.out, h, w)


@piece(3)
class StandardWeights(nn.Conv2d):
    """Weights are standardised before they are used."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__(c, width(draw), 3, padding=1)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)) if draw.random() < 0.5 else None
        self.style = draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
            weight = (self.weight - mean) / (self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        else:
            weight = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
            )
            weight = weight.reshape_as(self.weight)
        weight = weight * self.gain if self.gain is not None else weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@piece(3)
class Warp(nn.Module):
    """Features are sampled where a flow says."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.flow = nn.Conv2d(c, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        theta = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(b, 2, 3)
        grid = F.affine_grid(theta, [b, 1, h, w], align_corners=False)
        return F.grid_sample(x, grid + 0.2 * torch.tanh(self.flow(x)).permute(0, 2, 3, 1), align_corners=False)


@piece(3)
class Blur(nn.Module):
    """Anti-aliased striding: one kernel repeated for every channel."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        kernel = (row[:, None] * row) / 16
        self.c, self.style = c, draw.randrange(3)
        self.register_buffer("kernel", kernel[None, None].repeat(c, 1, 1, 1) if self.style == 0 else kernel[None, None])
        self.conv = nn.Conv2d(c, width(draw), 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            kernel, groups = self.kernel, self.c
        elif self.style == 1:
            kernel, groups = self.kernel.expand(x.size(1), -1, -1, -1), x.size(1)
        else:
            kernel, groups = self.kernel.repeat(self.c, 1, 1, 1), self.c
        return self.conv(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=groups))


@piece(3)
class Unfolded(nn.Module):
    """Patches taken apart and put together by hand: attention to the neighbours."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.c, self.attn = c, nn.Conv2d(c, 9, 1)
        self.style, self.linear = draw.randrange(2), nn.Linear(c * 9, width(draw))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        patches = F.unfold(x, 3, padding=1)
        if self.style == 0:
            patches = patches.view(b, c, 9, h, w)
            return (patches * self.attn(x).softmax(1).unsqueeze(1)).sum(2)
        return self.linear(patches.transpose(1, 2)).transpose(1, 2).reshape(b, -1, h, w)


@piece(3)
class Extremes(nn.Module):
    """Places, not values, of the strongest channels; or only the strongest pass."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.inner = width(draw, 4, 9)
        self.pre, self.post, self.style = (
            nn.Conv2d(c, self.inner, 1),
            nn.Conv2d(self.inner, width(draw), 1),
            draw.randrange(6),
        )
        self.one, self.table = nn.Conv2d(1, 3, 1), nn.Embedding(self.inner, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        if self.style == 0:
            return self.one(x.argmax(1, keepdim=True).to(x.dtype) / self.inner)
        if self.style == 1:
            best = x.mean((2, 3)).topk(3, dim=1).indices
            return self.one(torch.gather(x, 1, best[..., None, None].expand(-1, -1, *x.shape[2:])).sum(1, keepdim=True))
        if self.style == 2:
            least = x.topk(2, dim=1).values[:, -1:]
            return self.post(x * (x >= least))
        if self.style == 3:
            return self.table(x.argmax(1)).permute(0, 3, 1, 2)
        if self.style == 4:
            value, place = x.max(dim=1, keepdim=True)
            return self.one(value + place.to(x.dtype))
        return self.one(x.sort(dim=1).values[:, 1:2])


@piece(3)
class ReParameterised(nn.Module):
    """Three branches of one shape, summed (and a norm alone as the third)."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        self.point = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
        self.same, self.act = nn.BatchNorm2d(c), activation(draw, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x) + self.point(x) + self.same(x))


@piece(3)
class Focal(nn.Module):
    """Context at several levels, gated: one projection makes queries, context and gates."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.dim, self.levels = width(draw), draw.randint(1, 3)
        self.pre = nn.Conv2d(c, self.dim, 1)
        self.f = nn.Linear(self.dim, 2 * self.dim + self.levels + 1)
        self.h, self.proj = nn.Conv2d(self.dim, self.dim, 1), nn.Linear(self.dim, self.dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim), nn.GELU())
            for _ in range(self.levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(self.pre(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        q, ctx, gates = torch.split(x, (self.dim, self.dim, self.levels + 1), 1)
        total: Any = 0
        for i, layer in enumerate(self.layers):
            ctx = layer(ctx)
            total = total + ctx * gates[:, i : i + 1]
        total = total + F.gelu(ctx.mean((2, 3), keepdim=True)) * gates[:, self.levels :]
        return self.proj((q * self.h(total)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@piece(3)
class TemporalShift(nn.Module):
    """A part of the channels is moved along space."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.fold = draw.choice([3, 4])
        self.pre = nn.Conv2d(c, self.fold * width(draw, 1, 4), 1)
        self.post = nn.Conv2d(self.pre.out_channels, width(draw), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        fold = x.size(1) // self.fold
        out = torch.zeros_like(x)
        out[:, :fold, :, :-1] = x[:, :fold, :, 1:]
        out[:, fold : 2 * fold, :, 1:] = x[:, fold : 2 * fold, :, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.post(out)


@piece(3)
class Twice(nn.Module):
    """One convolution used several times, each time with a norm of its own."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.norms = nn.ModuleList(norm_of_image(draw, c) for _ in range(draw.randint(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + norm(F.relu(self.conv(x)))
        return x


@piece(3)
class Remembering(nn.Module):
    """Counts its calls and keeps what it saw last."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.conv, self.calls, self.last, self.style = nn.Conv2d(c, width(draw), 1), 0, None, draw.randrange(3)
        self.register_buffer("average", torch.zeros(self.conv.out_channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.calls += 1
        if self.style == 0:
            self.last = y
        elif self.style == 1:
            self.steps += 1
            return y - self.average[:, None, None]
        elif self.training:
            self.average = 0.9 * self.average + 0.1 * y.detach().mean((0, 2, 3))
        return y


@piece(3)
class Noisy(nn.Module):
    """Noise is added while running, scaled by a weight for each channel."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.conv, self.style = nn.Conv2d(c, width(draw), 3, padding=1), draw.randrange(4)
        self.weight = nn.Parameter(0.1 * torch.randn(1, self.conv.out_channels, 1, 1))
        self.mean, self.logvar = nn.Conv2d(c, 5, 1), nn.Conv2d(c, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 3:
            return self.mean(x) + torch.exp(0.5 * self.logvar(x)) * torch.randn_like(self.mean(x))
        y = self.conv(x)
        if self.style == 0:
            return y + self.weight * torch.randn(y.size(0), 1, *y.shape[2:], dtype=y.dtype)
        return y + self.weight * torch.randn_like(y) if self.style == 1 else F.dropout2d(y, 0.3, training=True)


@piece(3)
class SliceBySlice(nn.Module):
    """Res2Net: pieces of the channels one after the other, each with what the last one found."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.scale, self.each = draw.randint(2, 4), width(draw, 1, 4)
        self.conv1 = nn.Conv2d(c, self.scale * self.each, 1)
        self.convs = nn.ModuleList(nn.Conv2d(self.each, self.each, 3, padding=1) for _ in range(self.scale - 1))
        self.conv3 = nn.Conv2d(self.scale * self.each, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        spx = torch.split(self.conv1(x), self.each, 1)
        outs, sp = [], None
        for i, conv in enumerate(self.convs):
            sp = spx[i] if sp is None else sp + spx[i]
            sp = F.relu(conv(sp))
            outs.append(sp)
        return x + self.conv3(torch.cat([*outs, spx[-1]], 1))


@piece(3)
class SplitAttention(nn.Module):
    """ResNeSt: radix and cardinal groups."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.radix, self.groups = 2, draw.randint(1, 2)
        self.out = self.groups * width(draw, 2, 4)
        self.conv = nn.Conv2d(c, self.out * self.radix, 3, padding=1, groups=1)
        self.fc1, self.fc2 = nn.Conv2d(self.out, 4, 1), nn.Conv2d(4, self.out * self.radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        b, rchannel = x.shape[:2]
        x = x.reshape(b, self.radix, rchannel // self.radix, *x.shape[2:])
        gap = x.sum(1).mean((2, 3), keepdim=True)
        attn = self.fc2(F.relu(self.fc1(gap)))
        attn = attn.view(b, self.groups, self.radix, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
        return (x * attn.reshape(b, self.radix, rchannel // self.radix, 1, 1)).sum(1).contiguous()


@piece(3)
class Strips(nn.Module):
    """Coordinate attention: means along either axis, side by side, taken apart again."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        mid = width(draw, 2, 6)
        self.conv1, self.bn = nn.Conv2d(c, mid, 1), nn.BatchNorm2d(mid)
        self.conv_h, self.conv_w = nn.Conv2d(mid, c, 1), nn.Conv2d(mid, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], dim=2)
        y = F.hardswish(self.bn(self.conv1(y)))
        y_h, y_w = torch.split(y, [h, w], dim=2)
        return x * self.conv_h(y_h).sigmoid() * self.conv_w(y_w.permute(0, 1, 3, 2)).sigmoid()


@piece(3)
class ToSequence(nn.Module):
    """Pixels in a row, with a token of the whole in front and positions added."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.dim, self.style = width(draw, 4, 16), draw.randrange(4)
        step = 2 if h >= 4 and w >= 4 else 1
        self.proj = nn.Conv2d(c, self.dim, step, step)
        self.token = nn.Parameter(torch.randn(1, 1, self.dim))
        self.pos = nn.Parameter(torch.randn(1, (h // step) * (w // step) + (self.style > 1), self.dim) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = x.flatten(2).transpose(1, 2) if self.style % 2 else x.permute(0, 2, 3, 1).reshape(x.size(0), -1, self.dim)
        if self.style > 1:
            x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)
        return x + self.pos


@piece(3)
class PoolToVector(nn.Module):
    """An image becomes a vector: mean, maximum, both, generalised mean, flattened, second moments."""

    def __init__(self, draw: Random, c: int, h: int, w: int) -> None:
        super().__init__()
        self.style, self.c, self.p = draw.randrange(8), c, nn.Parameter(torch.tensor(3.0))
        self.reduce = nn.Conv2d(c, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return x.mean((2, 3))
        if self.style == 1:
            return F.adaptive_max_pool2d(x, 1).flatten(1)
        if self.style == 2:
            return torch.cat([x.mean((2, 3)), x.flatten(2).amax(2), x.flatten(2).std(2)], 1)
        if self.style == 3:
            return F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), x.shape[2:]).pow(1.0 / self.p).view(-1, self.c)
        if self.style == 4:
            return F.adaptive_avg_pool2d(x, 2).flatten(1)
        if self.style == 5:
            y = self.reduce(x).flatten(2)
            return (y @ y.transpose(1, 2) / y.size(-1)).flatten(1)
        if self.style == 6:
            return torch.logsumexp(x, dim=(2, 3))
        return x[..., 0, 0] + x.reshape(x.shape[0], self.c, -1).sum(-1)


# -- sequences -------------------------------------------------------------------------------------------------------


@piece(2)
class FeedForward(nn.Module):
    """Norm, up, activation, down, around a shortcut; gated in some of its ways."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        hidden, self.style = width(draw, 3, 20), draw.randrange(8)
        self.norm, self.post = norm_of_rows(draw, d), draw.random() < 0.3
        self.up = nn.Linear(d, 2 * hidden if self.style in (1, 2) else hidden, bias=draw.random() < 0.7)
        self.gate, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.hidden, self.act, self.scale = hidden, activation(draw), nn.Parameter(torch.ones(d))
        self.inner = RMSNorm(hidden, 0)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.post else self.norm(x)
        h = self.up(y)
        if self.style == 1:
            a, b = h.chunk(2, dim=-1)
            h = self.act(a.clone()) * b
        elif self.style == 2:
            h = self.act(h[..., : self.hidden]) * h[..., self.hidden :]
        elif self.style == 3:
            h = self.act(self.gate(y)) * h
        elif self.style == 4:
            h = self.inner(self.act(h))
        elif self.style == 5:
            h = F.relu(h).square()
        else:
            h = self.act(h)
        y = self.down(h)
        if self.style == 6:
            y = y * self.scale
        return self.norm(x + y) if self.post else x + y


@piece(2)
class Attention(nn.Module):
    """Self-attention, with projections, head splits, products and masks each in one of several ways to write them."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.heads, self.head_dim = draw.randint(1, 5), width(draw, 2, 5)
        self.inner = self.heads * self.head_dim
        self.groups = divisor(draw, self.heads) if draw.random() < 0.3 else self.heads
        self.fused = draw.randrange(6) if self.groups == self.heads else 9
        self.norm, self.scale = norm_of_rows(draw, d), self.head_dim**-0.5
        if self.fused < 5:
            self.qkv = nn.Linear(d, 3 * self.inner, bias=draw.random() < 0.6)
        else:
            self.q, kv = nn.Linear(d, self.inner), self.groups * self.head_dim
            self.k, self.v = nn.Linear(d, kv, bias=False), nn.Linear(d, kv)
        self.out, self.product = nn.Linear(self.inner, d), draw.randrange(7)
        self.qk_norm = nn.LayerNorm(self.head_dim) if draw.random() < 0.25 else None
        self.causal, self.rotary = draw.random() < 0.3, draw.random() < 0.25 and self.head_dim % 2 == 0
        self.bias = nn.Parameter(torch.randn(self.heads, t, t)) if draw.random() < 0.2 else None
        self.talk = nn.Linear(self.heads, self.heads, bias=False) if draw.random() < 0.15 else None
        self.gates = nn.Parameter(torch.ones(self.heads)) if draw.random() < 0.2 else None
        self.merge = draw.randrange(4)
        self.repeat = draw.randrange(3)
        self.slopes = draw.random() < 0.15
        self.register_buffer("tril", torch.tril(torch.ones(t, t, dtype=torch.bool)))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [batch, heads, steps, width of a head]."""
        b, n, _ = x.shape
        if self.fused == 0:
            return self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused == 1:
            parts = self.qkv(x).chunk(3, dim=-1)
            return tuple(p.view(b, n, self.heads, -1).transpose(1, 2) for p in parts)
        if self.fused == 2:
            parts = self.qkv(x).split(self.inner, dim=2)
            return tuple(p.view(b, n, self.heads, self.inner // self.heads).permute(0, 2, 1, 3) for p in parts)
        if self.fused == 3:
            qkv = self.qkv(x).view(b, n, self.heads, 3 * self.head_dim)
            return tuple(p.transpose(1, 2) for p in qkv.split(self.head_dim, dim=-1))
        if self.fused == 4:
            qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
            return tuple(qkv[:, :, i].movedim(1, 2) for i in range(3))
        q = self.q(x).view(b, -1, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(b, -1, self.groups, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, -1, self.groups, self.head_dim).transpose(1, 2)
        times = self.heads // self.groups
        if times > 1:
            k, v = (self.repeated(p, times) for p in (k, v))
        return q, k, v

    def repeated(self, p: Tensor, times: int) -> Tensor:
        """Every key or value for each of the queries that share it."""
        if self.repeat == 0:
            return p.repeat_interleave(times, dim=1)
        b, g, n, e = p.shape
        if self.repeat == 1:
            return p[:, :, None].expand(b, g, times, n, e).reshape(b, g * times, n, e)
        return torch.stack([p] * times, dim=2).flatten(1, 2)

    def rotated(self, p: Tensor) -> Tensor:
        """Rotary positions, halves."""
        n, half = p.shape[-2], p.shape[-1] // 2
        inverse = 1.0 / (100 ** (torch.arange(0, half, dtype=p.dtype) / half))
        angle = torch.outer(torch.arange(n, dtype=p.dtype), inverse)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        a, b = p[..., :half], p[..., half:]
        return p * cos + torch.cat((-b, a), dim=-1) * sin

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """How much each step hears each other."""
        n = q.shape[-2]
        if self.product == 1:
            logits = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        elif self.product == 2:
            logits = (q * self.scale) @ k.transpose(-1, -2)
        else:
            logits = torch.matmul(q, k.mT) / math.sqrt(q.size(-1))
        if self.bias is not None:
            logits = logits + self.bias[:, :n, :n]
        if self.slopes:
            slope = torch.tensor([2.0 ** -(i + 1) for i in range(self.heads)]).to(q).view(-1, 1, 1)
            logits = logits - slope * (torch.arange(n)[:, None] - torch.arange(n)).abs().to(q)
        if self.talk is not None:
            logits = self.talk(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.causal:
            lowest = torch.finfo(logits.dtype).min if self.product % 2 else float("-inf")
            logits = logits.masked_fill(~self.tril[:n, :n], lowest)
        if self.product == 3:
            return torch.sigmoid(logits)
        return F.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype) if self.product == 4 else logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.split(self.norm(x))
        if self.qk_norm is not None:
            q, k = self.qk_norm(q), self.qk_norm(k)
        if self.rotary:
            q, k = self.rotated(q), self.rotated(k)
        if self.product == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        elif self.product == 5:
            q, k = F.elu(q) + 1, F.elu(k) + 1
            y = (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)
        elif self.product == 6:
            y = self.weights(F.normalize(q, dim=-1), F.normalize(k, dim=-1)) @ v
        else:
            y = self.weights(q, k) @ v
        if self.gates is not None:
            y = y * self.gates.view(1, -1, 1, 1)
        if self.merge == 0:
            y = y.transpose(1, 2).reshape(b, n, self.inner)
        elif self.merge == 1:
            y = y.permute(0, 2, 1, 3).contiguous().view(b, n, -1)
        elif self.merge == 2:
            y = y.transpose(1, 2).flatten(2)
        else:
            y = torch.cat([y[:, i] for i in range(self.heads)], dim=-1)
        return x + self.out(y)


@piece(2)
class LibraryAttention(nn.Module):
    """torch.nn's own attention and layers."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        heads = draw.choice([1, 2, 3])
        self.dim, self.style = heads * width(draw, 2, 4), draw.randrange(5)
        self.pre = nn.Linear(d, self.dim)
        first = draw.random() < 0.7
        self.first = first
        if self.style < 2:
            self.attn: nn.Module = nn.MultiheadAttention(self.dim, heads, batch_first=first, bias=draw.random() < 0.7)
        elif self.style < 4:
            self.attn = nn.TransformerEncoderLayer(
                self.dim, heads, width(draw), 0.1, draw.choice(["relu", "gelu"]), batch_first=first,
                norm_first=draw.random() < 0.5,
            )  # fmt: skip
        else:
            self.attn = nn.TransformerDecoderLayer(self.dim, heads, width(draw), 0.0, batch_first=first)
            self.memory = nn.Parameter(torch.randn(3, self.dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        x = x if self.first else x.transpose(0, 1)
        if self.style < 2:
            y, _ = self.attn(x, x, x, need_weights=self.style == 1)
            x = x + y
        elif self.style < 4:
            x = self.attn(x)
        else:
            memory = (
                self.memory[None].expand(x.size(0), -1, -1)
                if self.first
                else self.memory[:, None].expand(-1, x.size(1), -1)
            )
            x = self.attn(x, memory)
        return x if self.first else x.transpose(0, 1)


@piece(2)
class Latents(nn.Module):
    """Learned queries read the sequence: a sequence of another length leaves."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.heads, each = draw.randint(1, 3), width(draw, 2, 4)
        inner, latent = self.heads * each, width(draw)
        self.queries = nn.Parameter(torch.randn(draw.randint(2, 5), latent))
        self.q, self.kv, self.out = nn.Linear(latent, inner), nn.Linear(d, 2 * inner), nn.Linear(inner, latent)
        self.style = draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        latents = self.queries.unsqueeze(0).repeat(b, 1, 1) if self.style else self.queries.expand(b, -1, -1)
        q, (k, v) = self.q(latents), self.kv(x).chunk(2, -1)
        q, k, v = (p.view(b, p.shape[1], self.heads, -1).transpose(1, 2) for p in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return latents + self.out(y)


@piece(2)
class Recurrent(nn.Module):
    """torch.nn's recurrent layers."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        hidden, self.kind = width(draw, 3, 8), draw.choice(["LSTM", "GRU", "RNN"])
        options: dict[str, Any] = {"num_layers": draw.choice([1, 1, 2]), "bidirectional": draw.random() < 0.4}
        if self.kind == "LSTM" and draw.random() < 0.2:
            options["proj_size"] = max(1, hidden - 2)
        self.rnn = getattr(nn, self.kind)(d, hidden, batch_first=True, bias=draw.random() < 0.8, **options)
        self.style = draw.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x)
        if self.style == 0:
            h = state[0] if isinstance(state, tuple) else state
            return torch.cat([y, h[-1].unsqueeze(1).expand(-1, y.size(1), -1)], dim=-1)
        return y


@piece(2)
class OwnRecurrence(nn.Module):
    """Recurrence written by hand: cells of torch.nn, a gated unit, a diagonal state."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.hidden, self.style = width(draw, 3, 8), draw.randrange(5)
        self.cell = nn.LSTMCell(d, self.hidden) if self.style == 0 else nn.GRUCell(d, self.hidden)
        self.gates, self.rec = nn.Linear(d, 3 * self.hidden), nn.Linear(self.hidden, 3 * self.hidden, bias=False)
        self.decay, self.inp = nn.Parameter(torch.randn(self.hidden)), nn.Linear(d, self.hidden)
        self.start = nn.Parameter(torch.zeros(1, self.hidden))

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        if self.style == 2:
            h = self.start.expand(x.size(0), -1)
        else:
            h = torch.zeros(x.size(0), self.hidden, dtype=x.dtype, device=x.device)
        c = torch.zeros_like(h)
        for i in range(x.shape[1]):
            if self.style == 0:
                h, c = self.cell(x[:, i], (h, c))
            elif self.style == 1:
                h = self.cell(x[:, i], h)
            elif self.style == 2:
                z, r, n = self.gates(x[:, i]).chunk(3, -1)
                hz, hr, hn = self.rec(h).chunk(3, -1)
                z, r = torch.sigmoid(z + hz), torch.sigmoid(r + hr)
                h = (1 - z) * torch.tanh(n + r * hn) + z * h
            elif self.style == 3:
                h = torch.sigmoid(self.decay) * h + self.inp(x[:, i])
            else:
                h = torch.tanh(self.inp(x[:, i]) + h * self.decay)
            outs.append(h)
        return torch.stack(outs, dim=1)


@piece(2)
class StateSpace(nn.Module):
    """A selective scan with its short convolution and gate."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.inner, self.state, self.rank = width(draw, 3, 8), draw.randint(2, 4), draw.randint(1, 3)
        self.in_proj = nn.Linear(d, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, 3, padding=2, groups=self.inner)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * self.state, bias=False)
        self.dt_proj, self.out_proj = nn.Linear(self.rank, self.inner), nn.Linear(self.inner, d, bias=False)
        self.log_a = nn.Parameter(torch.log(torch.arange(1, self.state + 1).float()).repeat(self.inner, 1))
        self.skip = nn.Parameter(torch.ones(self.inner))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., :n]).transpose(1, 2)
        dt, b, c = torch.split(self.x_proj(u), [self.rank, self.state, self.state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        a = -torch.exp(self.log_a.float())
        h = torch.zeros(x.shape[0], self.inner, self.state, dtype=x.dtype)
        outs = []
        for i in range(n):
            h = torch.exp(dt[:, i, :, None] * a) * h + (dt[:, i] * u[:, i]).unsqueeze(-1) * b[:, i, None, :]
            outs.append(torch.einsum("bds,bs->bd", h, c[:, i]))
        y = torch.stack(outs, 1) + u * self.skip
        return x + self.out_proj(y * F.silu(z))


@piece(2)
class TimeConvolution(nn.Module):
    """Convolution along time: causal by padding, depthwise, gated, pooled."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.out, self.style = width(draw), draw.randrange(4)
        many = 2 * self.out if self.style == 1 else self.out
        groups = math.gcd(d, many) if draw.random() < 0.4 else 1
        self.conv, self.dilation = nn.Conv1d(d, many, 3, dilation=2, groups=groups), 2
        self.norm = draw.choice([nn.BatchNorm1d, nn.InstanceNorm1d, lambda c: nn.GroupNorm(1, c)])(many)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(F.pad(x.transpose(1, 2), (2 * self.dilation, 0))))
        if self.style == 1:
            y = F.glu(y, dim=1)
        elif self.style == 2:
            y = F.max_pool1d(y, 3, stride=1, padding=1)
        return y.transpose(1, 2)


@piece(2)
class Mixer(nn.Module):
    """Steps are mixed: by an MLP over the transposed sequence, by a spatial gate, by a Fourier transform."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.style, hidden = draw.randrange(4), width(draw)
        self.norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(t, hidden), nn.GELU(), nn.Linear(hidden, t))
        self.up, self.down = nn.Linear(d, 2 * hidden), nn.Linear(hidden, d)
        self.inner, self.space = nn.LayerNorm(hidden), nn.Linear(t, t)
        self.conv = nn.Conv1d(t, t, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.style == 0:
            return x + self.mlp(y.transpose(1, 2)).transpose(1, 2)
        if self.style == 1:
            u, v = F.gelu(self.up(y)).chunk(2, dim=-1)
            v = self.space(self.inner(v).transpose(-1, -2)).transpose(-1, -2)
            return x + self.down(u * v)
        if self.style == 2:
            return x + torch.fft.fft(y, dim=1).real
        return x + self.conv(y)


@piece(2)
class Experts(nn.Module):
    """A mixture of experts: dense or routed, as a list or as stacked weights, gathered in one of many ways."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.number, self.top, self.style = draw.randint(2, 4), draw.randint(1, 2), draw.randrange(8)
        hidden, self.dim = width(draw), d
        self.gate = nn.Linear(d, self.number, bias=draw.random() < 0.5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, hidden), activation(draw), nn.Linear(hidden, d)) for _ in range(self.number)
        )
        self.up = nn.Parameter(torch.randn(self.number, d, 2 * hidden) * 0.3)
        self.down = nn.Parameter(torch.randn(self.number, hidden, d) * 0.3)
        self.bias = nn.Parameter(torch.randn(self.number, d))
        self.norm, self.shared = norm_of_rows(draw, d), nn.Linear(d, d) if draw.random() < 0.3 else None

    def stacked(self, x: Tensor) -> Tensor:
        """Every expert on every step, [experts, steps, width]."""
        a, b = torch.bmm(x[None].expand(self.number, -1, -1), self.up).chunk(2, dim=-1)
        return torch.bmm(F.silu(a) * b, self.down) + self.bias[:, None, :]

    def mixed(self, x: Tensor) -> Tensor:
        """The experts' answers, weighed; ``x`` is [steps, width]."""
        probs = self.gate(x).softmax(-1)
        if self.style == 0:
            return sum(probs[:, i, None] * expert(x) for i, expert in enumerate(self.experts))
        if self.style == 1:
            return torch.einsum("enh,ne->nh", self.stacked(x), probs)
        if self.style == 2:
            h = torch.einsum("nd,edf->enf", x, self.up)
            h = F.gelu(h[..., 0::2]) * h[..., 1::2]
            return torch.einsum("enf,efd,ne->nd", h, self.down, probs)
        weights, chosen = torch.topk(probs, self.top, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        if self.style == 3:
            mask = F.one_hot(chosen, self.number).permute(2, 1, 0)
            for i, expert in enumerate(self.experts):
                slot, row = torch.where(mask[i])
                out.index_add_(0, row, (expert(x[row]) * weights[row, slot, None]).to(x.dtype))
            return out
        if self.style == 4:
            for i, expert in enumerate(self.experts):
                row, slot = (chosen == i).nonzero(as_tuple=True)
                if len(row):
                    out[row] += weights[row, slot, None] * expert(x[row])
            return out
        if self.style == 5:
            full = torch.zeros_like(probs).scatter(1, chosen, weights)
            return (self.stacked(x) * full.t().unsqueeze(-1)).sum(0)
        if self.style == 6:
            up, down = self.up[chosen[:, 0]], self.down[chosen[:, 0]]
            a, b = torch.bmm(x.unsqueeze(1), up).chunk(2, -1)
            return torch.bmm(F.silu(a) * b, down).squeeze(1) * weights[:, :1]
        capacity = max(1, x.size(0) // self.number)
        score, rows = probs.t().topk(capacity, dim=-1)
        for i, expert in enumerate(self.experts):
            out = out.index_add(0, rows[i], expert(x[rows[i]]) * score[i, :, None])
        return out

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out = self.mixed(y.reshape(-1, self.dim)).view(x.shape)
        return x + (out + self.shared(y) if self.shared is not None else out)


@piece(2)
class Positions(nn.Module):
    """Positions: learned, looked up, sines made for the width at hand, a buffer of sines, kept between calls."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.dim, self.style, self.cache = 2 * width(draw, 2, 6), draw.randrange(6), {}
        self.pre, self.table = nn.Linear(d, self.dim), nn.Embedding(t + 3, self.dim)
        self.learned = nn.Parameter(torch.randn(1, t + 3, self.dim))
        self.register_buffer("fixed", self.sines(t + 3, self.dim))

    @staticmethod
    def sines(n: int, dim: int) -> Tensor:
        """Sine and cosine, [n, dim]."""
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        angle = torch.arange(n)[:, None] * rate
        out = torch.zeros(n, dim)
        out[:, 0::2], out[:, 1::2] = angle.sin(), angle.cos()
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        n = x.shape[1]
        if self.style == 0:
            return x + self.learned[:, :n]
        if self.style == 1:
            return x + self.table(torch.arange(n, device=x.device))
        if self.style == 2:
            return x + self.sines(n, self.dim).to(x)
        if self.style == 3:
            return x * math.sqrt(self.dim) + self.fixed[:n].unsqueeze(0)
        if self.style == 4:
            if n not in self.cache:
                self.cache[n] = self.sines(n, x.size(-1)).to(x)
            return x + self.cache[n].to(x)
        return x + F.pad(self.learned, (0, 0, 0, max(0, n - self.learned.size(1))))[:, -n:]


@piece(2)
class Conditioned(nn.Module):
    """AdaLN: shift, scale and gate come from the mean of the sequence."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.norm, self.mod, hidden = nn.LayerNorm(d, elementwise_affine=False), nn.Linear(d, 6 * d), width(draw)
        self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))
        self.mix, self.dim, self.style = nn.Linear(d, d), d, draw.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        c = self.mod(F.silu(x.mean(1)))
        if self.style == 0:
            a, b, g, a2, b2, g2 = c[:, None].chunk(6, -1)
        elif self.style == 1:
            a, b, g, a2, b2, g2 = c.view(-1, 6, 1, self.dim).unbind(1)
        else:
            a, b, g, a2, b2, g2 = torch.split(c.unsqueeze(1), self.dim, dim=-1)
        x = x + g * self.mix(self.norm(x) * (1 + a) + b)
        return x + g2 * self.mlp(torch.addcmul(b2, self.norm(x), 1 + a2))


@piece(2)
class Codebook(nn.Module):
    """Vector quantisation: the nearest code replaces what came."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.dim = width(draw, 2, 6)
        self.pre, self.codes, self.style = nn.Linear(d, self.dim), nn.Embedding(7, self.dim), draw.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pre(x)
        flat = z.reshape(-1, self.dim)
        if self.style == 0:
            distance = (
                flat.pow(2).sum(1, keepdim=True) + self.codes.weight.pow(2).sum(1) - 2 * flat @ self.codes.weight.t()
            )
        elif self.style == 1:
            distance = torch.cdist(flat, self.codes.weight)
        else:
            return (-(torch.cdist(flat, self.codes.weight) ** 2)).softmax(-1).matmul(self.codes.weight).view_as(z)
        q = self.codes(distance.argmin(1)).view(z.shape)
        return z + (q - z).detach()


@piece(2)
class BlockDiagonal(nn.Module):
    """Structured weights: blocks, a low rank beside a dense weight, a Kronecker product, raw weights for heads."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.blocks, self.style, self.out = divisor(draw, d), draw.randrange(6), width(draw)
        self.each = d // self.blocks
        self.weight = nn.Parameter(torch.randn(self.blocks, self.each, 3) * 0.5)
        self.linear = nn.Linear(d, self.out)
        rank = draw.randint(1, 3)
        self.a, self.b = nn.Parameter(torch.randn(rank, d)), nn.Parameter(torch.randn(self.out, rank))
        self.raw, self.shift = nn.Parameter(torch.randn(d, 2, 3) * 0.5), nn.Parameter(torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return torch.einsum("btne,nef->btnf", x.unflatten(-1, (self.blocks, self.each)), self.weight).flatten(-2)
        if self.style == 1:
            b, n, _ = x.shape
            y = torch.bmm(x.reshape(b * n, self.blocks, -1).transpose(0, 1), self.weight)
            return y.transpose(0, 1).reshape(b, n, -1)
        if self.style == 2:
            return self.linear(x) + F.linear(F.linear(x, self.a), self.b) * 0.5
        if self.style == 3:
            return F.linear(x, self.linear.weight + self.b @ self.a, self.linear.bias)
        if self.style == 4:
            return (torch.tensordot(x, self.raw, dims=([-1], [0])) + self.shift).flatten(2)
        return x @ torch.block_diag(*self.weight)


@piece(2)
class GraphLayer(nn.Module):
    """Steps as the nodes of a graph: dense neighbours, edges with gather and scatter, attention to neighbours."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.out, self.style = width(draw), draw.randrange(4)
        self.lin, self.own = nn.Linear(d, self.out), nn.Linear(d, self.out)
        self.att = nn.Linear(2 * self.out, 1)
        self.edge = nn.Sequential(nn.Linear(2 * d, 5), nn.ReLU(), nn.Linear(5, self.out))
        self.register_buffer("adjacency", torch.softmax(torch.randn(t, t), -1))
        ring = torch.arange(t)
        self.register_buffer("edges", torch.stack([ring, (ring + 1) % t]))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return F.relu(self.adjacency @ self.lin(x) + self.own(x))
        source, target = self.edges
        if self.style == 1:
            h = self.lin(x)
            return torch.zeros_like(h).index_add(1, target, h[:, source]) + self.own(x)
        if self.style == 2:
            message = self.edge(torch.cat([x[:, source], x[:, target] - x[:, source]], -1))
            out = torch.zeros(x.size(0), x.size(1), self.out, dtype=x.dtype)
            return out.scatter_add(1, target[None, :, None].expand_as(message), message)
        h = self.lin(x)
        n = h.size(1)
        pairs = torch.cat([h[:, :, None].expand(-1, n, n, -1), h[:, None].expand(-1, n, n, -1)], -1)
        return F.elu(torch.softmax(F.leaky_relu(self.att(pairs)).squeeze(-1), -1) @ h)


@piece(2)
class Reordered(nn.Module):
    """Steps chosen, sorted, shifted, accumulated."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.score, self.style, self.keep = nn.Linear(d, 1), draw.randrange(7), max(1, t // 2)
        self.mix, self.out = nn.Parameter(torch.rand(d)), nn.Linear(d, width(draw))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            best = self.score(x).squeeze(-1).topk(self.keep, dim=1).indices
            return x.gather(1, best.unsqueeze(-1).expand(-1, -1, x.size(-1)))
        if self.style == 1:
            return torch.cat([x[:, ::2], x[:, 1::2]], 1)
        if self.style == 2:
            past = F.pad(x, (0, 0, 1, -1))
            return self.out(x * self.mix + past * (1 - self.mix))
        if self.style == 3:
            return x.cumsum(1) / torch.arange(1, x.size(1) + 1).to(x).view(1, -1, 1)
        if self.style == 4:
            order = self.score(x).squeeze(-1).argsort(dim=1)
            return torch.take_along_dim(x, order.unsqueeze(-1), dim=1)
        if self.style == 5:
            return x.flip(1) + torch.roll(x, 1, dims=1)
        return torch.cummax(self.out(x), dim=1).values


@piece(2)
class LinearGate(nn.Module):
    """Highway, normalised gates, softmax and temperature over the width."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.out, self.style = width(draw), draw.randrange(6)
        self.a, self.b, self.c = (nn.Linear(d, self.out) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.style == 0:
            return torch.sigmoid(a) * b + (1 - torch.sigmoid(a)) * self.c(x)
        if self.style == 1:
            return a.softmax(-1) * b
        if self.style == 2:
            gate = torch.sigmoid(a)
            return gate / gate.sum(-1, keepdim=True) * b
        if self.style == 3:
            return F.normalize(a, p=1, dim=-1) * b
        if self.style == 4:
            return b * (a - a.mean(-1, keepdim=True)) / (a.amax(-1, keepdim=True) - a.amin(-1, keepdim=True) + 1e-3)
        return F.gumbel_softmax(a, tau=1.0, dim=-1) * b if self.training else F.log_softmax(a, -1) * b


@piece(2)
class ToImage(nn.Module):
    """A sequence laid out as an image, its width as channels."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.h = max(n for n in range(1, t + 1) if t % n == 0 and n * n <= t)
        self.proj, self.style = nn.Linear(d, width(draw)), draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        b, n, c = x.shape
        if self.style:
            return x.transpose(1, 2).reshape(b, c, self.h, n // self.h)
        return x.view(b, self.h, n // self.h, c).permute(0, 3, 1, 2).contiguous()


@piece(2)
class PoolSteps(nn.Module):
    """A sequence becomes a vector."""

    def __init__(self, draw: Random, t: int, d: int) -> None:
        super().__init__()
        self.style, self.query, self.score = draw.randrange(7), nn.Parameter(torch.randn(d)), nn.Linear(d, 1)
        self.attn = nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return x.mean(1)
        if self.style == 1:
            return x[:, 0]
        if self.style == 2:
            return x.max(dim=1).values
        if self.style == 3:
            return torch.einsum("bt,btd->bd", (x @ self.query).softmax(-1), x)
        if self.style == 4:
            return torch.bmm(self.attn(x).softmax(1).transpose(1, 2), x).squeeze(1)
        if self.style == 5:
            return torch.cat([x.mean(1), x.std(1)], -1)
        return x.flatten(1)


# -- vectors ---------------------------------------------------------------------------------------------------------


@piece(1)
class Layer(nn.Sequential):
    """Linear, norm, activation, dropout."""

    def __init__(self, draw: Random, d: int) -> None:
        out = width(draw, 3, 20)
        norm = draw.choice(
            [nn.BatchNorm1d, nn.LayerNorm, lambda n: nn.Identity(), lambda n: nn.GroupNorm(divisor(draw, n), n)]
        )
        linear = nn.Linear(d, out, bias=draw.random() < 0.7)
        if draw.random() < 0.15:
            linear = draw.choice([parametrizations.weight_norm, parametrizations.spectral_norm])(linear)
        super().__init__(linear, norm(out), activation(draw, out), nn.Dropout(0.1))


@piece(1)
class Residue(nn.Module):
    """A shortcut around two layers, or around one that is used twice."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        hidden = width(draw)
        self.a, self.b, self.shared = nn.Linear(d, hidden), nn.Linear(hidden, d), draw.random() < 0.3
        self.act = activation(draw, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.act(self.a(x)))
        return x + self.b(self.act(self.a(x))) if self.shared else x


@piece(1)
class Interactions(nn.Module):
    """Products of features: pairs of embeddings, factorisation, outer products, bilinear forms."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.fields, self.k, self.style = draw.randint(2, 4), width(draw, 2, 5), draw.randrange(6)
        self.embed = nn.Linear(d, self.fields * self.k)
        self.bilinear = nn.Bilinear(d, d, width(draw))
        self.cross = nn.Linear(d, d)
        self.register_buffer("pairs", torch.triu_indices(self.fields, self.fields, 1))
        self.factors = nn.Parameter(torch.randn(d, self.k))

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x).view(-1, self.fields, self.k)
        if self.style == 0:
            gram = torch.bmm(e, e.transpose(1, 2))
            return torch.cat([x, gram[:, self.pairs[0], self.pairs[1]]], 1)
        if self.style == 1:
            return 0.5 * (e.sum(1).square() - e.square().sum(1))
        if self.style == 2:
            return self.bilinear(x, torch.tanh(x))
        if self.style == 3:
            return x * self.cross(x) + x
        if self.style == 4:
            return torch.einsum("bi,bj->bij", e[:, 0], e[:, 1]).flatten(1)
        v = x @ self.factors
        return torch.cat([v * v, (x**2) @ self.factors**2], -1)


@piece(1)
class Prototypes(nn.Module):
    """Similarities to learned points: distances, cosines, radial functions."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.dim, self.style = width(draw, 2, 8), draw.randrange(4)
        self.pre, self.points = nn.Linear(d, self.dim), nn.Parameter(torch.randn(width(draw, 3, 8), self.dim))

    def forward(self, x: Tensor) -> Tensor:
        z = self.pre(x)
        if self.style == 0:
            return F.linear(F.normalize(z), F.normalize(self.points)) * 10
        if self.style == 1:
            return -torch.cdist(z, self.points)
        if self.style == 2:
            return torch.exp(-(z.unsqueeze(1) - self.points).pow(2).sum(-1))
        return F.cosine_similarity(z[:, None], self.points[None], dim=-1)


@piece(1)
class TiedCoder(nn.Module):
    """Encode and decode with one weight; or with the inverse order of a list of weights."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width(draw), d) * 0.3), nn.Parameter(torch.zeros(d))
        self.inner, self.style = nn.Parameter(torch.zeros(self.weight.shape[0])), draw.randrange(2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.weight, self.inner))
        return F.linear(h, self.weight.t(), self.bias) if self.style else torch.addmm(self.bias, h, self.weight)


@piece(1)
class Hyper(nn.Module):
    """The weights of a layer are computed from the input."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.d, self.out = d, width(draw, 2, 5)
        self.make = nn.Sequential(nn.Linear(d, 6), nn.ReLU(), nn.Linear(6, self.out * d + self.out))

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(x)
        weight, bias = made[:, : self.out * self.d].view(-1, self.out, self.d), made[:, self.out * self.d :]
        return torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1) + bias


@piece(1)
class Ensemble(nn.Module):
    """Several networks of one shape: a list that is stacked and averaged, or weights with an axis for the members."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.members, hidden, out = draw.randint(2, 3), width(draw), width(draw, 2, 6)
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, out)) for _ in range(self.members)
        )
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(self.members, d, hidden) * 0.3),
            nn.Parameter(torch.randn(self.members, hidden, out)),
        )
        self.r, self.s = nn.Parameter(torch.randn(self.members, d)), nn.Parameter(torch.randn(self.members, out))
        self.style, self.shared = draw.randrange(3), nn.Linear(d, out)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == 0:
            return torch.stack([net(x) for net in self.nets]).mean(0)
        if self.style == 1:
            h = F.relu(torch.einsum("bd,mdh->mbh", x, self.w1))
            return torch.matmul(h, self.w2).permute(1, 0, 2).flatten(1)
        y = self.shared((x[None] * self.r[:, None]).flatten(0, 1)).view(self.members, x.size(0), -1)
        return (y * self.s.unsqueeze(1)).sum(0)


@piece(1)
class Choice(nn.Module):
    """Softmax gates and choices over the features: k winners, sparse choices, sorted features, maxout."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.inner, self.style = 2 * width(draw, 2, 6), draw.randrange(8)
        self.pre, self.post = nn.Linear(d, self.inner), nn.Linear(self.inner, width(draw))
        self.code, self.bins = nn.Embedding(self.inner, 3), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        if self.style == 0:
            return self.post(x * x.softmax(-1))
        if self.style == 1:
            mask = torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1.0)
            return self.post(x * mask)
        if self.style == 2:
            return self.post(torch.sort(x, dim=-1).values)
        if self.style == 3:
            return self.code(x.argmax(-1))
        if self.style == 4:
            return x.view(-1, self.inner // 2, 2).max(-1).values
        if self.style == 5:
            value, index = x.max(-1, keepdim=True)
            return torch.cat([value, index.to(x.dtype) / self.inner], -1)
        if self.style == 6:
            return F.one_hot(x.argmin(-1), self.inner).to(x.dtype) @ self.post.weight.t()
        return x.median(-1, keepdim=True).values * self.post(x)


@piece(1)
class Unroll(nn.Module):
    """A vector becomes a sequence or an image."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.t, self.c, self.style = draw.randint(2, 5), width(draw, 3, 8), draw.randrange(3)
        self.proj = nn.Linear(d, self.t * self.c if self.style else self.c * 16)
        self.pos = nn.Parameter(torch.randn(self.t, self.c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if self.style == 0:
            return x.view(-1, self.c, 4, 4)
        if self.style == 1:
            return x.reshape(x.size(0), self.t, self.c) + self.pos
        return torch.stack(x.chunk(self.t, dim=-1), dim=1)


@piece(1)
class Reparameterise(nn.Module):
    """Mean and log variance, and a sample between."""

    def __init__(self, draw: Random, d: int) -> None:
        super().__init__()
        self.z, self.style = width(draw, 2, 6), draw.randrange(3)
        self.both, self.mu, self.logvar = nn.Linear(d, 2 * self.z), nn.Linear(d, self.z), nn.Linear(d, self.z)

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = (self.mu(x), self.logvar(x)) if self.style == 0 else self.both(x).chunk(2, -1)
        std = torch.exp(0.5 * logvar.clamp(-5, 5))
        if self.style == 1:
            return mu + std * torch.randn(x.size(0), self.z, dtype=x.dtype)
        return torch.randn_like(std).mul(std).add_(mu)
