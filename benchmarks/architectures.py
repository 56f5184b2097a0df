# ruff: noqa: D102
"""Small members of families of networks that the libraries lack or hide, each by the idea that makes it awkward."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

Example = Tensor | tuple[Any, ...] | dict[str, Any]
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Example]]] = {}


def noise(*shape: int) -> Tensor:
    """Standard normal values, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def image() -> Tensor:
    """A batch of two small images."""
    return noise(2, 3, 32, 32)


def words(high: int = 50) -> Tensor:
    """Two sentences of ten words."""
    return torch.randint(0, high, (2, 10), generator=torch.Generator().manual_seed(0))


def member(example: Callable[[], Example]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Put a class on the list under its name in snake case."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")
        ARCHITECTURES[name] = (kind, example)
        return kind

    return register


def cbr(i: int, o: int, k: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
    )


# -- detection, segmentation, generation -------------------------------------------------------------------------


@member(lambda: noise(1, 3, 64, 64))
class FeaturePyramid(nn.Module):
    """A pyramid that returns a dict, with heads shared over its levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([cbr(3, 16, stride=2), cbr(16, 24, stride=2), cbr(24, 32, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (16, 24, 32)])
        self.smooth = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(cbr(16, 16), cbr(16, 16))
        self.classes, self.boxes = nn.Conv2d(16, 3 * 5, 1), nn.Conv2d(16, 3 * 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        maps = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        towers = [self.tower(smooth(m)) for smooth, m in zip(self.smooth, maps, strict=True)]
        logits = [self.classes(t).permute(0, 2, 3, 1).reshape(t.shape[0], -1, 5) for t in towers]
        boxes = [self.boxes(t).permute(0, 2, 3, 1).reshape(t.shape[0], -1, 4) for t in towers]
        return OrderedDict(logits=torch.cat(logits, 1), boxes=torch.cat(boxes, 1).sigmoid())


@member(image)
class Detr(nn.Module):
    """Object queries, learned positions over rows and columns, an encoder and a decoder."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(cbr(3, 16, stride=2), cbr(16, 24, stride=2))
        self.squeeze = nn.Conv2d(24, width, 1)
        self.transformer = nn.Transformer(width, 4, 2, 2, 48, dropout=0.0, batch_first=False)
        self.queries = nn.Parameter(torch.rand(5, width))
        self.rows, self.columns = nn.Parameter(torch.rand(20, width // 2)), nn.Parameter(torch.rand(20, width // 2))
        self.classes, self.boxes = (
            nn.Linear(width, 4),
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.squeeze(self.backbone(x))
        height, width = h.shape[-2:]
        columns = self.columns[:width].unsqueeze(0).repeat(height, 1, 1)
        rows = self.rows[:height].unsqueeze(1).repeat(1, width, 1)
        places = torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(1)
        out = self.transformer(
            places + 0.1 * h.flatten(2).permute(2, 0, 1), self.queries.unsqueeze(1).repeat(1, len(x), 1)
        )
        out = out.transpose(0, 1)
        return {"logits": self.classes(out), "boxes": self.boxes(out).sigmoid()}


class _Gate(nn.Module):
    def __init__(self, gate: int, skip: int, inner: int) -> None:
        super().__init__()
        self.gate, self.skip = (
            nn.Sequential(nn.Conv2d(gate, inner, 1), nn.BatchNorm2d(inner)),
            nn.Conv2d(skip, inner, 1),
        )
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        return skip * self.psi(F.relu(self.gate(gate) + self.skip(skip)))


@member(image)
class AttentionUNet(nn.Module):
    """Attention gates on the skips, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([cbr(3, 8), cbr(8, 16), cbr(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.gates = nn.ModuleList([_Gate(16, 16, 8), _Gate(8, 8, 4)])
        self.mix = nn.ModuleList([cbr(32, 16), cbr(16, 8)])
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, down in enumerate(self.down):
            x = down(x)
            if i < 2:
                skips.append(x)
                x = F.max_pool2d(x, 2)
        for up, gate, mix in zip(self.up, self.gates, self.mix, strict=True):
            x = up(x)
            x = mix(torch.cat([gate(x, skips.pop()), x], dim=1))
        return self.out(x)


@member(image)
class SegNet(nn.Module):
    """Pooling indices handed to unpooling."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.up = cbr(3, 16), cbr(16, 16), cbr(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, places = F.max_pool2d(self.down(x), 2, return_indices=True)
        return self.out(self.up(F.max_unpool2d(self.inner(h), places, 2)))


@member(lambda: noise(2, 12))
class Generator(nn.Module):
    """Noise to images: a linear layer viewed as a map, transposed convolutions, pixel shuffle, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(12, 32 * 4 * 4)
        self.body = nn.Sequential(
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8 * 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.body(self.start(z).view(-1, 32, 4, 4)))


@member(lambda: (noise(2, 12), noise(2, 6)))
class StyleGenerator(nn.Module):
    """Adaptive instance norm (scale and shift by a linear layer), a learned constant, modulated weights, noise."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(12, 24), nn.LeakyReLU(0.2), nn.Linear(24, 16))
        self.constant = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.style1, self.style2 = nn.Linear(16, 32), nn.Linear(16, 12)
        self.conv = nn.Conv2d(16, 12, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(8, 12, 3, 3) * 0.1)
        self.rgb, self.extra = nn.Conv2d(8, 3, 1), nn.Linear(6, 16)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        w = self.mapping(z) + self.extra(c)
        x = self.constant.expand(len(z), -1, -1, -1)
        scale, shift = self.style1(w)[:, :, None, None].chunk(2, dim=1)
        x = F.instance_norm(x) * (1 + scale) + shift
        x = F.leaky_relu(self.conv(F.interpolate(x, scale_factor=2)), 0.2)
        batch, channels, height, width = x.shape
        style = self.style2(w).view(batch, 1, channels, 1, 1)
        weight = self.weight.unsqueeze(0) * (style + 1)
        weight = weight * torch.rsqrt(weight.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8)
        x = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=batch)
        return self.rgb(x.reshape(batch, -1, height, width))


@member(lambda: noise(4, 20))
class Vae(nn.Module):
    """Mean and log-variance as two halves of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2 * 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * logvar) * (torch.randn_like(mean) if self.training else 0.0)
        return self.decoder(z), mean, logvar


@member(lambda: noise(2, 3, 16, 16))
class VectorQuantised(nn.Module):
    """Nearest codes by distance, looked up, gradients straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(cbr(3, 16, stride=2), nn.Conv2d(16, 8, 1))
        self.codes = nn.Embedding(12, 8)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1)
        flat = z.reshape(-1, z.shape[-1])
        distance = (
            flat.square().sum(1, keepdim=True) + self.codes.weight.square().sum(1) - 2 * flat @ self.codes.weight.t()
        )
        quantised = self.codes(distance.argmin(1)).view(z.shape)
        return self.decoder((z + (quantised - z).detach()).permute(0, 3, 1, 2))


@member(lambda: (noise(2, 3, 16, 16), torch.tensor([3, 17])))
class Diffusion(nn.Module):
    """A U-Net with time embeddings (scale and shift of a group norm), attention in the middle, concatenated skips."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.start = nn.Conv2d(3, width, 3, padding=1)
        self.first, self.middle, self.last = (
            _TimeBlock(width, width),
            _TimeBlock(width, 2 * width),
            _TimeBlock(3 * width, width),
        )
        self.norm, self.qkv, self.project = nn.GroupNorm(4, 32), nn.Conv1d(32, 96, 1), nn.Conv1d(32, 32, 1)
        self.end = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(8) / 8)
        emb = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        skip = self.first(self.start(x), emb)
        h = self.middle(F.avg_pool2d(skip, 2), emb)
        h = h + self.attend(h)
        h = torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), skip], dim=1)
        return self.end(self.last(h, emb))

    def attend(self, h: Tensor) -> Tensor:
        """Self-attention over places."""
        b, c, *space = h.shape
        q, k, v = self.qkv(self.norm(h).reshape(b, c, -1)).reshape(b * 4, c * 3 // 4, -1).split(c // 4, dim=1)
        scale = 1 / math.sqrt(math.sqrt(c // 4))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(-1)
        out = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, h.shape[-1] * h.shape[-2])
        return self.project(out).reshape(b, -1, *space)


class _TimeBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, i), nn.Conv2d(i, o, 3, padding=1)
        self.time, self.norm2, self.conv2 = nn.Linear(32, 2 * o), nn.GroupNorm(4, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = torch.chunk(self.time(F.silu(emb))[..., None, None], 2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


@member(lambda: noise(2, 3, 16, 16))
class SuperResolution(nn.Module):
    """Residual-in-residual dense blocks with a scale, twice pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 16, 3, padding=1)
        self.dense = nn.ModuleList([nn.Conv2d(16 + 8 * i, 8 if i < 2 else 16, 3, padding=1) for i in range(3)])
        self.tail = nn.Sequential(
            nn.Conv2d(16, 64, 3, padding=1),
            nn.PixelShuffle(2),
            nn.PReLU(16),
            nn.Conv2d(16, 3 * 4, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        parts = [h]
        for i, conv in enumerate(self.dense):
            new = conv(torch.cat(parts, 1))
            parts.append(F.leaky_relu(new, 0.2) if i < 2 else new)
        return self.tail(h + 0.2 * parts[-1])


# -- convolutional classifiers -----------------------------------------------------------------------------------


@member(lambda: noise(2, 3, 32, 32))
class Inception(nn.Module):
    """Parallel branches side by side, an auxiliary head in training only, a named tuple then."""

    class Outputs(NamedTuple):
        """Main and auxiliary logits."""

        logits: Tensor
        aux: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 12, stride=2)
        self.a, self.b, self.c = (
            cbr(12, 8, 1),
            nn.Sequential(cbr(12, 6, 1), cbr(6, 8)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(12, 4, 1)),
        )
        self.aux = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20 * 4, 16), nn.ReLU(), nn.Linear(16, 5)
        )
        self.last = nn.Conv2d(20, 24, (1, 3), padding=(0, 1))
        self.norm, self.head = nn.LocalResponseNorm(3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        aux = self.aux(x) if self.training else None
        logits = self.head(F.relu(self.last(x)).mean((2, 3)))
        return Inception.Outputs(logits, aux) if self.training else logits


@member(image)
class ResponseNorm(nn.Module):
    """Local response norm over neighbouring channels: their order counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3), nn.LocalResponseNorm(5), nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.norm(F.relu(self.first(x))))).amax((-1, -2)))


class _Ghost(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.oup = o
        self.primary = cbr(i, o // 2 + o % 2, 1)
        self.cheap = cbr(o // 2 + o % 2, o // 2 + o % 2, 3, groups=o // 2 + o % 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)[:, : self.oup]


@member(image)
class GhostNet(nn.Module):
    """Cheap copies beside their originals, cut to a width that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = cbr(3, 16), _Ghost(16, 32), _Ghost(32, 16)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.Hardsigmoid()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.up(x)
        x = x + self.down(h * self.attention(h))
        return self.head(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


@member(image)
class ShuffleNet(nn.Module):
    """Halves by chunk, one passes, then the channels are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 24)
        self.units = nn.ModuleList(
            [
                nn.Sequential(cbr(12, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12), cbr(12, 12, 1))
                for _ in range(2)
            ]
        )
        self.head = nn.Sequential(cbr(24, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, unit(right)), dim=1)
            batch, channels, height, width = x.data.size()
            x = (
                x.view(batch, 2, channels // 2, height, width)
                .transpose(1, 2)
                .contiguous()
                .view(batch, -1, height, width)
            )
        return self.head(x)


@member(image)
class RepVgg(nn.Module):
    """Three parallel branches that are added: 3x3, 1x1 and a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 16)
        self.three = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(2)]
        )
        self.one = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)) for _ in range(2)])
        self.norm = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(2)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for three, one, norm in zip(self.three, self.one, self.norm, strict=True):
            x = F.relu(three(x) + one(x) + norm(x))
        return self.head(x.mean([2, 3]))


@member(image)
class HighResolution(nn.Module):
    """Branches of several resolutions that exchange by sums; a list is rewritten in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = cbr(3, 16), nn.ModuleList([cbr(16, 8), cbr(16, 16, stride=2)])
        self.branch = nn.ModuleList([cbr(8, 8), cbr(16, 16)])
        self.down, self.up = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        xs = [split(x) for split in self.split]
        for i, branch in enumerate(self.branch):
            xs[i] = branch(xs[i])
        low, high = (
            xs[0] + F.interpolate(self.up(xs[1]), size=xs[0].shape[2:], mode="bilinear"),
            xs[1] + self.down(xs[0]),
        )
        xs = [F.relu(low), F.relu(high)]
        xs[1] = F.interpolate(xs[1], size=(xs[0].size(2), xs[0].size(3)), mode="bilinear", align_corners=False)
        return self.head(torch.cat(xs, 1))


class _StandardConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(
            x,
            (self.weight - mean) / torch.sqrt(var + 1e-5),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


@member(image)
class BigTransfer(nn.Module):
    """Weights standardised in forward, group norms, before the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _StandardConv(3, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(4, 16), _StandardConv(16, 24, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, 24), _StandardConv(24, 16, 3, padding=1)
        self.head = nn.Sequential(
            nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 5, 1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x)))))))


class _ScaledConv(nn.Conv2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * 0.1).view(-1),
            training=True,
            eps=1e-6,
        )
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


@member(image)
class NormFree(nn.Module):
    """Weights standardised by a batch norm of the weights, no norms of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (_ScaledConv(i, o, 3, padding=1) for i, o in ((3, 16), (16, 24), (24, 16)))
        self.gain, self.head = nn.Parameter(torch.tensor(0.5)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.gain * self.second(F.silu(self.first(F.silu(x) * 1.79)) * 1.79)).mean((2, 3)))


@member(image)
class SelectiveKernel(nn.Module):
    """Branches stacked and weighted by a softmax over them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.paths = cbr(3, 16), nn.ModuleList([cbr(16, 24), cbr(16, 24, dilation=1, groups=4)])
        self.squeeze, self.select, self.head = (
            nn.Linear(24, 8),
            nn.ModuleList([nn.Linear(8, 24) for _ in range(2)]),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        paths = torch.stack([p(x) for p in self.paths], dim=1)
        z = F.relu(self.squeeze(paths.sum(1).mean((-1, -2))))
        weights = torch.stack([s(z) for s in self.select], dim=1).softmax(1)[..., None, None]
        return self.head((paths * weights).sum(dim=1).mean((2, 3)))


@member(image)
class SplitAttention(nn.Module):
    """ResNeSt: radix groups viewed, summed, attended by a softmax over the radix."""

    def __init__(self, width: int = 16, radix: int = 2) -> None:
        super().__init__()
        self.radix, self.width = radix, width
        self.stem, self.conv = cbr(3, 16), cbr(16, width * radix, groups=radix)
        self.fc1, self.fc2, self.head = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width * radix, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        batch, channels = x.shape[:2]
        x = x.reshape(batch, self.radix, channels // self.radix, *x.shape[2:])
        attention = self.fc2(F.relu(self.fc1(x.sum(1).mean((2, 3), keepdim=True))))
        attention = attention.view(batch, 1, self.radix, -1).transpose(1, 2).softmax(dim=1).reshape(batch, -1, 1, 1)
        out = (x * attention.reshape(batch, self.radix, channels // self.radix, 1, 1)).sum(dim=1)
        return self.head(out.mean((2, 3)))


@member(image)
class CoordinateAttention(nn.Module):
    """Pooled rows and columns concatenated over space, split again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.rows, self.columns = (
            cbr(3, 16),
            cbr(16, 8, 1),
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(8, 16, 1),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        height, width = x.shape[2:]
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        rows, columns = torch.split(self.squeeze(torch.cat([rows, columns], dim=2)), [height, width], dim=2)
        return self.head(
            (x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()).mean((2, 3))
        )


@member(image)
class BlockAttention(nn.Module):
    """CBAM: a shared multi-layer perceptron over mean and maximum, then a map over mean and maximum of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp = cbr(3, 16), nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        self.space, self.last, self.head = nn.Conv2d(2, 1, 7, padding=3), cbr(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))[:, :, None, None]
        x = x * self.space(torch.cat([x.mean(1, keepdim=True), x.max(dim=1, keepdim=True).values], 1)).sigmoid()
        return self.head(self.last(x).mean((2, 3)))


@member(image)
class Involution(nn.Module):
    """Kernels computed from the input, applied to unfolded windows per group of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.span = cbr(3, 16), cbr(16, 8, 1), nn.Conv2d(8, 9 * 4, 1)
        self.unfold, self.head = nn.Unfold(3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        kernel = self.span(self.reduce(x)).view(b, 4, 9, h, w).unsqueeze(2)
        windows = self.unfold(x).view(b, 4, c // 4, 9, h, w)
        return self.head((kernel * windows).sum(3).view(b, c, h, w).mean((2, 3)))


@member(image)
class Gather(nn.Module):
    """A multi-scale classifier with adaptive pooling to several sizes, flattened and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(cbr(3, 16), cbr(16, 12)), nn.Linear(12 * (1 + 4 + 9), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in (1, 2, 3)], dim=1))


@member(image)
class SpectralResNet(nn.Module):
    """Spectral and weight norms by both the old and the new way."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.b = parametrizations.weight_norm(nn.Conv2d(16, 24, 3, padding=1))
        self.c = nn.utils.spectral_norm(nn.Conv2d(24, 16, 3, padding=1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(x + self.c(F.relu(self.b(x)))).mean((2, 3)))


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@member(lambda: noise(4, 12))
class Parametrized(nn.Module):
    """A symmetric square weight beside a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        parametrize.register_parametrization(self.square, "weight", _Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.square(F.relu(self.first(x)))))


@member(image)
class Checkpointed(nn.Module):
    """Recomputed in the backward pass, with in-place operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 16), cbr(16, 24), cbr(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = checkpoint(lambda t: self.b(self.a(t)), x, use_reentrant=False)
        h += x
        return self.head(h.mean((2, 3)).mul_(0.5))


# -- sequences ---------------------------------------------------------------------------------------------------


@member(lambda: noise(2, 1, 64))
class WaveNet(nn.Module):
    """Gated dilated causal convolutions, skips summed."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 16, 1)
        self.filters = nn.ModuleList([nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(3)])
        self.residual, self.skip = (nn.ModuleList([nn.Conv1d(16, 16, 1) for _ in range(3)]) for _ in range(2))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.start(x), 0
        for i, (f, residual, skip) in enumerate(zip(self.filters, self.residual, self.skip, strict=True)):
            content, gate = f(F.pad(x, (2**i, 0))).chunk(2, dim=1)
            h = torch.tanh(content) * torch.sigmoid(gate)
            x, skips = residual(h) + x, skip(h) + skips
        return self.end(skips)


class _Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


@member(lambda: noise(2, 4, 30))
class TemporalConv(nn.Module):
    """Weight-normed dilated convolutions whose padding is cut off."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.weight_norm
        self.first = nn.Sequential(
            norm(nn.Conv1d(4, 16, 3, padding=2)),
            _Chomp(2),
            nn.ReLU(),
            norm(nn.Conv1d(16, 16, 3, padding=2)),
            _Chomp(2),
            nn.ReLU(),
        )
        self.second = nn.Sequential(norm(nn.Conv1d(16, 16, 3, padding=4, dilation=2)), _Chomp(4), nn.ReLU())
        self.down, self.head = nn.Conv1d(4, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x) + self.first(x))
        return self.head(F.relu(x + self.second(x))[:, :, -1])


@member(words)
class BidirectionalLstm(nn.Module):
    """Embedding, two-way LSTM, attention over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 12, 2, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Linear(24, 1), nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(self.embed(x))
        weights = F.softmax(self.score(torch.tanh(h)).squeeze(-1), dim=1)
        return self.head(torch.bmm(weights.unsqueeze(1), h).squeeze(1))


@member(words)
class GruSeq2Seq(nn.Module):
    """An encoder's state starts a decoder of cells with attention, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.cell = (
            nn.Embedding(50, 12),
            nn.GRU(12, 16, batch_first=True),
            nn.GRUCell(12 + 16, 16),
        )
        self.combine, self.out = nn.Linear(32, 24), nn.Linear(24, 50)

    def forward(self, x: Tensor) -> Tensor:
        memory, state = self.encoder(self.embed(x))
        h, outs = state[-1], []
        for t in range(3):
            weights = torch.einsum("bh,bth->bt", h, memory).softmax(-1)
            context = torch.einsum("bt,bth->bh", weights, memory)
            h = self.cell(torch.cat([self.embed(x[:, t]), context], -1), h)
            outs.append(self.out(torch.tanh(self.combine(torch.cat((h, context), dim=-1)))))
        return torch.stack(outs, 1)


@member(lambda: noise(2, 3, 2, 12, 12))
class ConvLstm(nn.Module):
    """Gates of a convolution split in four, states made as zeros of a width that the module keeps."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates, self.out = nn.Conv2d(2 + hidden, 4 * hidden, 3, padding=1), nn.Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, steps, _, height, width = x.size()
        h = torch.zeros(b, self.hidden, height, width, device=x.device)
        c = torch.zeros_like(h)
        for t in range(steps):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], dim=1)), self.hidden, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


@member(lambda: noise(4, 16))
class Highway(nn.Module):
    """A gate between a layer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 24)
        self.plain, self.gate = (nn.ModuleList([nn.Linear(24, 24) for _ in range(2)]) for _ in range(2))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for plain, gate in zip(self.plain, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = F.relu(plain(x)) * t + x * (1 - t)
        return self.head(x)


@member(words)
class Mamba(nn.Module):
    """A selective scan written as a loop, with a depthwise causal convolution and a gate."""

    def __init__(self, width: int = 16, inner: int = 24, state: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.embed, self.norm, self.enter = (
            nn.Embedding(50, width),
            nn.RMSNorm(width),
            nn.Linear(width, 2 * inner, bias=False),
        )
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.select, self.delta = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1).float()).repeat(inner, 1))
        self.D, self.leave, self.head = (
            nn.Parameter(torch.ones(inner)),
            nn.Linear(inner, width, bias=False),
            nn.Linear(width, 50),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h, z = self.enter(self.norm(x)).chunk(2, dim=-1)
        h = F.silu(self.conv(h.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2))
        delta, b, c = torch.split(self.select(h), [self.rank, self.state, self.state], dim=-1)
        delta, a = F.softplus(self.delta(delta)), -torch.exp(self.A_log)
        decay, drive = torch.exp(delta.unsqueeze(-1) * a), delta.unsqueeze(-1) * b.unsqueeze(2) * h.unsqueeze(-1)
        state, outs = torch.zeros(len(x), self.inner, self.state), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + drive[:, t]
            outs.append(torch.einsum("bin,bn->bi", state, c[:, t]))
        y = torch.stack(outs, dim=1) + self.D * h
        return self.head(x + self.leave(y * F.silu(z)))


@member(words)
class Rwkv(nn.Module):
    """Token shift by zero padding, a receptance gate, an exponential average over time."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Embedding(50, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.mix = nn.ParameterList([nn.Parameter(torch.rand(1, 1, width)) for _ in range(4)])
        self.decay, self.first = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.key, self.value, self.receptance, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down, self.head = (
            nn.Linear(width, 40, bias=False),
            nn.Linear(40, width, bias=False),
            nn.Linear(width, 50),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = self.norm1(x)
        s = self.shift(h)
        k, v, r = (
            layer(h * m + s * (1 - m))
            for layer, m in zip((self.key, self.value, self.receptance), self.mix, strict=False)
        )
        top, bottom, outs = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
        for t in range(tokens.size(1)):
            now = torch.exp(self.first + k[:, t])
            outs.append((top + now * v[:, t]) / (bottom + now))
            top = torch.exp(-self.decay) * top + torch.exp(k[:, t]) * v[:, t]
            bottom = torch.exp(-self.decay) * bottom + torch.exp(k[:, t])
        x = x + self.output(torch.sigmoid(r) * torch.stack(outs, 1))
        h = self.norm2(x)
        return self.head(x + self.down(F.relu(self.up(h * self.mix[3] + self.shift(h) * (1 - self.mix[3]))).square()))


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))).type_as(x)


def _turned(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


class _LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, shared: int, depth: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = heads, shared, depth
        self.wq, self.wk, self.wv = (nn.Linear(width, n * depth, bias=False) for n in (heads, shared, shared))
        self.wo, self.norm1, self.norm2 = nn.Linear(heads * depth, width, bias=False), _Norm(width), _Norm(width)
        self.w1, self.w2, self.w3 = (
            nn.Linear(width, 48, bias=False),
            nn.Linear(48, width, bias=False),
            nn.Linear(width, 48, bias=False),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        h = self.norm1(x)
        q = self.wq(h).view(b, t, self.n_heads, self.head_dim).transpose(1, 2)
        k, v = (w(h).view(b, t, self.n_kv_heads, self.head_dim).transpose(1, 2) for w in (self.wk, self.wv))
        q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        times = self.n_heads // self.n_kv_heads
        k, v = (
            s[:, :, None].expand(b, self.n_kv_heads, times, t, self.head_dim).reshape(b, self.n_heads, t, self.head_dim)
            for s in (k, v)
        )
        scores = (q @ k.transpose(2, 3)) / math.sqrt(self.head_dim) + mask
        out = (
            (F.softmax(scores, dim=-1, dtype=torch.float32).type_as(q) @ v).transpose(1, 2).contiguous().view(b, t, -1)
        )
        x = x + self.wo(out)
        h = self.norm2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


@member(words)
class Llama(nn.Module):
    """Grouped queries, rotary positions, RMS norm, SwiGLU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(50, 32), _Norm(32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList([_LlamaBlock(32, 4, 2, 8) for _ in range(2)])
        self.register_buffer("inverse", 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        angles = torch.outer(torch.arange(t).float(), self.inverse)
        angles = torch.cat([angles, angles], -1)
        mask = torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
        x = self.embed(tokens) * math.sqrt(32)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin(), mask)
        return self.head(self.norm(x))


@member(words)
class ComplexRotary(nn.Module):
    """Rotary positions by complex numbers."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width // heads
        self.embed, self.qkv, self.out, self.head = (
            nn.Embedding(50, width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Linear(width, 50),
        )
        angles = torch.outer(torch.arange(16).float(), 1.0 / 100 ** (torch.arange(0, 8, 2)[:4].float() / 8))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def _turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(3).type_as(x)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(x).view(*tokens.shape, 3, self.heads, self.width).unbind(2)
        q, k, v = (s.transpose(1, 2) for s in (self._turn(q), self._turn(k), v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.width**-0.5)
        return self.head(x + self.out(out.transpose(1, 2).flatten(2)))


@member(words)
class RelativeBias(nn.Module):
    """T5: a bias per bucket of distance and head, shared by the layers, no scale."""

    def __init__(self, heads: int = 4, depth: int = 8) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.embed, self.bias = nn.Embedding(50, 24), nn.Embedding(9, heads)
        self.q, self.k, self.v = (
            nn.ModuleList([nn.Linear(24, heads * depth, bias=False) for _ in range(2)]) for _ in range(3)
        )
        self.o, self.head = (
            nn.ModuleList([nn.Linear(heads * depth, 24, bias=False) for _ in range(2)]),
            nn.Linear(24, 50),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        b, t = tokens.shape
        steps = torch.arange(t)
        bias = self.bias((steps[None] - steps[:, None]).clamp(-4, 4) + 4).permute([2, 0, 1]).unsqueeze(0)
        x = self.embed(tokens)
        for q, k, v, o in zip(self.q, self.k, self.v, self.o, strict=True):
            heads = [layer(x).view(b, -1, self.heads, self.depth).transpose(1, 2) for layer in (q, k, v)]
            weights = (torch.matmul(heads[0], heads[1].transpose(3, 2)) + bias).softmax(-1)
            x = x + o((weights @ heads[2]).transpose(1, 2).contiguous().view(b, -1, self.heads * self.depth))
        return self.head(x)


@member(words)
class Experts(nn.Module):
    """Mixture of experts: the best two by a router, tokens sent by index and added back."""

    def __init__(self, width: int = 16, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(50, width), nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)) for _ in range(experts)]
        )
        self.head = nn.Linear(width, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        flat = x.view(-1, x.shape[-1])
        weights, chosen = torch.topk(self.router(flat).softmax(-1), 2, dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows, ranks = torch.where(chosen == i)
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, ranks, None])
        return self.head(x + out.view_as(x))


@member(words)
class StackedExperts(nn.Module):
    """Experts as one stacked parameter, all computed by bmm and weighted by a soft router."""

    def __init__(self, width: int = 16, experts: int = 4, inner: int = 24) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Embedding(50, width), nn.Linear(width, experts), nn.Linear(width, 50)
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, width, 2 * inner) * 0.2),
            nn.Parameter(torch.randn(experts, inner, width) * 0.2),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        flat = x.flatten(0, 1)
        gate, up = torch.bmm(flat.expand(len(self.up), -1, -1), self.up).chunk(2, dim=-1)
        out = torch.bmm(F.silu(gate) * up, self.down)
        weights = self.router(flat).softmax(-1)
        return self.head(x + torch.einsum("te,etd->td", weights, out).view(x.shape))


@member(lambda: noise(2, 20, 6))
class Perceiver(nn.Module):
    """A few latent vectors attend to many inputs, then to each other, with one shared block twice."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.latents, self.project = nn.Parameter(torch.randn(5, width)), nn.Linear(6, 16)
        self.cross = nn.MultiheadAttention(width, 4, kdim=16, vdim=16, batch_first=True)
        self.inner = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.mlp, self.head = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width)),
            nn.Linear(width, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        data = self.project(x)
        z = self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)
        for _ in range(2):
            z = z + self.cross(z, data, data, need_weights=False)[0]
            z = z + self.inner(z, z, z)[0]
            z = z + self.mlp(self.norm(z))
        return self.head(z.mean(dim=1))


@member(lambda: noise(2, 30, 8))
class Conformer(nn.Module):
    """Half-step feed-forwards around attention and a gated depthwise convolution."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def feed() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, width))

        self.start, self.first, self.second = nn.Linear(8, width), feed(), feed()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm2, self.up, self.depth = (
            nn.LayerNorm(width),
            nn.Conv1d(width, 2 * width, 1),
            nn.Conv1d(width, width, 5, padding=2, groups=width),
        )
        self.batch, self.down, self.head = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + 0.5 * self.first(x)
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        h = F.glu(self.up(self.norm2(x).transpose(1, 2)), dim=1)
        x = x + self.down(F.silu(self.batch(self.depth(h)))).transpose(1, 2)
        return self.head(x + 0.5 * self.second(x)).log_softmax(-1)


@member(lambda: noise(2, 800))
class SpeechFrontEnd(nn.Module):
    """Power spectrum of short windows, mel filters as a buffer, then convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("mel", torch.rand(33, 12, generator=torch.Generator().manual_seed(0)))
        self.body, self.head = (
            nn.Sequential(nn.Conv1d(12, 24, 3), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 16, 3), nn.ReLU()),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 64, 32, window=self.window, return_complex=True).abs().square()
        mel = torch.matmul(spectrum.transpose(1, 2), self.mel).clamp_min(1e-5).log().transpose(1, 2)
        return self.head(self.body(mel).mean(-1))


@member(lambda: noise(2, 600))
class RawAudio(nn.Module):
    """HuBERT: strided convolutions with a group norm of one channel a group, a weight-normed positional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv1d(1, 16, 10, 5, bias=False), nn.Conv1d(16, 16, 3, 2, bias=False)
        self.norm0, self.norm, self.project = nn.GroupNorm(16, 16, affine=True), nn.LayerNorm(16), nn.Linear(16, 24)
        self.places = parametrizations.weight_norm(nn.Conv1d(24, 24, 8, padding=4, groups=4), name="weight", dim=2)
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=True)
        self.mask = nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv1(F.gelu(self.norm0(self.conv0(x.unsqueeze(1))))))
        h = self.project(self.norm(h.transpose(1, 2)))
        hidden = torch.zeros(h.shape[:2], dtype=torch.bool)
        hidden[:, 3:5] = True
        h[hidden] = self.mask.to(h.dtype)
        h = h + F.gelu(self.places(h.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        return self.layer(h)


@member(lambda: noise(2, 16, 12))
class Fourier(nn.Module):
    """FNet: a Fourier transform over tokens and widths instead of attention."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.start, self.norm, self.head = nn.Linear(12, width), nn.LayerNorm(width), nn.Linear(width, 5)
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return self.head(x + self.mlp(x))


@member(lambda: noise(2, 3, 16, 16))
class FourierOperator(nn.Module):
    """Spectral convolution: complex weights on the low frequencies."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.lift, self.skip, self.down = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, 2, 1)
        self.weight = nn.Parameter(torch.randn(width, width, 4, 4, dtype=torch.cfloat) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        low = torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], x.shape[1], x.size(-2), x.size(-1) // 2 + 1, dtype=torch.cfloat)
        out[:, :, :4, :4] = torch.einsum("bixy,ioxy->boxy", low[:, :, :4, :4], self.weight)
        return self.down(F.gelu(torch.fft.irfft2(out, s=(x.size(-2), x.size(-1))) + self.skip(x)))


@member(lambda: noise(2, 16, 12))
class Mixer(nn.Module):
    """Multi-layer perceptrons over tokens and over channels."""

    def __init__(self, tokens: int = 16, width: int = 24) -> None:
        super().__init__()
        self.start, self.norm1, self.norm2 = nn.Linear(12, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 20), nn.GELU(), nn.Linear(20, tokens))
        self.channels, self.head = (
            nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)),
            nn.Linear(width, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


@member(lambda: noise(2, 16, 12))
class GatedMlp(nn.Module):
    """gMLP: half of the channels gates the other through a projection over tokens."""

    def __init__(self, tokens: int = 16, width: int = 24) -> None:
        super().__init__()
        self.start, self.norm, self.up, self.gate = (
            nn.Linear(12, width),
            nn.LayerNorm(width),
            nn.Linear(width, 48),
            nn.LayerNorm(24),
        )
        self.space, self.down, self.head = nn.Conv1d(tokens, tokens, 1), nn.Linear(24, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        return self.head((x + self.down(u * self.space(self.gate(v)))).mean(1))


class _Windows(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift = heads, window, shift
        self.scale = (width // heads) ** -0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        between = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", between[..., 0] * (2 * window - 1) + between[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window_size
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        y = y.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(y).reshape(y.size(0), n * n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        weights = (q * self.scale @ k.transpose(-2, -1) + bias).softmax(-1)
        y = self.proj((weights @ v).transpose(1, 2).reshape(y.size(0), n * n, c))
        y = y.view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)


@member(image)
class ShiftedWindows(nn.Module):
    """Swin: windows, shifted ones, patches merged four to one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.first = nn.Conv2d(3, 16, 4, 4), nn.ModuleList([_Windows(16, 4, 4, 0), _Windows(16, 4, 4, 2)])
        self.norm, self.merge, self.second = nn.LayerNorm(64), nn.Linear(64, 32, bias=False), _Windows(32, 4, 4, 0)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        for block in self.first:
            x = block(x)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.second(self.merge(self.norm(x))).mean((1, 2)))


# -- sets, graphs, and the rest ----------------------------------------------------------------------------------


@member(lambda: noise(2, 3, 40))
class PointNet(nn.Module):
    """A learned transform of the points and of their features by bmm, the maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.k = 16
        self.small = nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.ReLU())
        self.matrix3, self.first = nn.Linear(12, 9), nn.Conv1d(3, 16, 1)
        self.matrix, self.second, self.head = nn.Linear(16, 16 * 16), nn.Conv1d(16, 32, 1), nn.Linear(32 + 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        turn = (self.matrix3(torch.max(self.small(x), 2, keepdim=True)[0].view(-1, 12)) + torch.eye(3).view(1, 9)).view(
            -1, 3, 3
        )
        x = F.relu(self.first(torch.bmm(x.transpose(2, 1), turn).transpose(2, 1)))
        matrix = (self.matrix(x.max(2)[0]) + torch.eye(self.k).flatten()).view(-1, self.k, self.k)
        local = torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1)
        return self.head(torch.cat([F.relu(self.second(local)).max(-1)[0], local.mean(-1)], dim=1))


@member(lambda: (noise(12, 6), (noise(12, 12) > 0.5).float()))
class GraphConv(nn.Module):
    """Neighbours averaged by a product with the adjacency matrix, attention masked by it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 24), nn.Linear(24, 16, bias=False), nn.Linear(16, 3)
        self.attend = nn.Parameter(torch.randn(32, 1) * 0.3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        joined = adjacency + torch.eye(len(x))
        degree = joined.sum(1).pow(-0.5)
        h = F.relu(degree[:, None] * joined * degree[None] @ self.first(x))
        w = self.second(h)
        scores = F.leaky_relu(w @ self.attend[:16] + (w @ self.attend[16:]).T, 0.2)
        weights = torch.where(joined > 0, scores, -9e15 * torch.ones_like(scores)).softmax(1)
        return self.head(F.elu(weights @ w))


@member(lambda: (noise(12, 6), torch.randint(0, 12, (2, 30), generator=torch.Generator().manual_seed(1))))
class MessagePassing(nn.Module):
    """Messages along a list of edges, gathered by index and added by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.message, self.update = (
            nn.Linear(6, 16),
            nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)),
            nn.GRUCell(16, 16),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.start(x))
        source, target = edges
        for _ in range(2):
            messages = self.message(torch.cat([h[source], h[target]], dim=-1))
            total = torch.zeros_like(h).scatter_add_(0, target[:, None].expand_as(messages), messages)
            h = self.update(total, h)
        return self.head(h)


def _squash(x: Tensor) -> Tensor:
    norm = x.square().sum(-1, keepdim=True)
    return norm / (1 + norm) * x / (norm.sqrt() + 1e-8)


@member(image)
class Capsules(nn.Module):
    """Capsules squashed and routed by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary = cbr(3, 16, stride=2), nn.Conv2d(16, 4 * 8, 9, 2)
        self.weight = nn.Parameter(torch.randn(1, 4 * 16, 5, 6, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.primary(self.stem(x))
        u = _squash(u.view(len(x), 4, 8, -1).permute(0, 1, 3, 2).reshape(len(x), -1, 8))
        votes = (self.weight @ u[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(*votes.shape[:3], 1)
        for _ in range(2):
            v = _squash((logits.softmax(dim=2) * votes).sum(dim=1, keepdim=True))
            logits = logits + (votes * v).sum(dim=-1, keepdim=True)
        return v.squeeze(1).norm(dim=-1)


@member(lambda: (noise(4, 3, 16, 16), noise(4, 3, 16, 16).flip(0)))
class Siamese(nn.Module):
    """One encoder for two inputs, their distance and a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(cbr(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))
        self.bilinear, self.head = nn.Bilinear(12, 12, 8), nn.Linear(8 + 12, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x, y = F.normalize(self.encoder(a), dim=-1), F.normalize(self.encoder(b), dim=-1)
        return self.head(torch.cat([self.bilinear(x, y), (x - y).abs()], 1)), F.cosine_similarity(x, y)


@member(lambda: {"wide": noise(4, 10), "words": words(30)[:, :4].reshape(-1), "offsets": torch.tensor([0, 2, 4, 6])})
class Recommender(nn.Module):
    """Bags of embeddings, factorised interactions between all pairs, wide beside deep, several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.table = nn.EmbeddingBag(30, 12, mode="sum"), nn.EmbeddingBag(30, 12, mode="mean")
        self.bottom, self.top, self.wide = (
            nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 12)),
            nn.Sequential(nn.Linear(15, 16), nn.ReLU()),
            nn.Linear(10, 1),
        )
        self.heads = nn.ModuleDict({"click": nn.Linear(16, 1), "buy": nn.Linear(16, 3)})

    def forward(self, wide: Tensor, words: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        parts = torch.stack([self.bottom(wide), self.bag(words, offsets), self.table(words, offsets)], dim=1)
        pairs = torch.bmm(parts, parts.transpose(1, 2))
        i, j = torch.tril_indices(3, 3, -1)
        h = self.top(torch.cat([parts[:, 0], pairs[:, i, j]], dim=1))
        return {name: head(h) + (self.wide(wide) if name == "click" else 0) for name, head in self.heads.items()}


@member(lambda: noise(4, 8))
class Kan(nn.Module):
    """Kolmogorov-Arnold: bases of every input, summed by an einsum with a coefficient per pair."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, 6))
        self.one, self.two = nn.Parameter(torch.randn(16, 8, 6) * 0.2), nn.Parameter(torch.randn(5, 16, 6) * 0.2)
        self.base1, self.base2 = nn.Linear(8, 16), nn.Linear(16, 5)

    def _bases(self, x: Tensor) -> Tensor:
        return torch.exp(-((x.unsqueeze(-1) - self.centres) ** 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bik,oik->bo", self._bases(x), self.one) + self.base1(F.silu(x))
        return torch.einsum("bik,oik->bo", self._bases(x), self.two) + self.base2(F.silu(x))


@member(lambda: (noise(4, 8), noise(4, 6)))
class Hyper(nn.Module):
    """Weights of a layer computed from another input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed = nn.Linear(8, 16), nn.Sequential(nn.Linear(6, 20), nn.ReLU())
        self.weights, self.biases, self.last = nn.Linear(20, 16 * 12), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h, c = F.relu(self.first(x)), self.embed(condition)
        weights = self.weights(c).view(-1, 12, 16)
        return self.last(F.relu(torch.bmm(weights, h.unsqueeze(-1)).squeeze(-1) + self.biases(c)))


@member(lambda: noise(4, 10))
class Parameters(nn.Module):
    """Layers as lists and dicts of bare parameters, applied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(10, 24) * 0.3, torch.randn(24, 16) * 0.3])
        self.biases = nn.ParameterList([torch.randn(24), torch.randn(16)])
        self.last = nn.ParameterDict({"w": torch.randn(16, 5) * 0.3, "scale": torch.rand(16)})

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.addmm(bias, x, weight).relu()
        return (x * self.last["scale"]) @ self.last["w"]


@dataclass
class Answer:
    """Two logits and hidden states."""

    logits: Tensor
    extra: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


@member(image)
class MultiTask(nn.Module):
    """Shared trunk, several heads, a dataclass that also returns hidden states' means."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = (
            nn.Sequential(cbr(3, 16), cbr(16, 24)),
            nn.ModuleDict({"depth": cbr(24, 16), "edges": cbr(24, 12)}),
        )
        self.out, self.head = (
            nn.ModuleDict({"depth": nn.Conv2d(16, 1, 1), "edges": nn.Conv2d(12, 1, 1)}),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Answer:
        h = self.trunk(x)
        maps = [self.out[k](b(h)) for k, b in self.branch.items()]
        return Answer(self.head(h.mean((2, 3))), torch.cat(maps, 1), (h.mean(),))


@member(image)
class StochasticDepth(nn.Module):
    """Residual branches left out at random in training; scales per layer, drop path by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList([nn.Sequential(cbr(16, 24), nn.Conv2d(24, 16, 1)) for _ in range(3)])
        self.scales = nn.ParameterList([nn.Parameter(torch.full((16, 1, 1), 0.1)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            h = block(x) * scale
            if self.training:
                h = h * torch.empty(len(x), 1, 1, 1).bernoulli_(0.8).div_(0.8)
            x = x + h
        return self.head(x.flatten(2).mean(-1))


@member(image)
class Deformable(nn.Module):
    """A spatial transformer: places computed by a small network, sampled with grid_sample."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            cbr(3, 8, stride=2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 6)
        )
        self.stem, self.offsets, self.last, self.head = (
            cbr(3, 16),
            nn.Conv2d(16, 2, 3, padding=1),
            cbr(16, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.grid_sample(
            x, F.affine_grid(self.locate(x).view(-1, 2, 3), list(x.shape), align_corners=False), align_corners=False
        )
        x = self.stem(x)
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, x.size(2)), torch.linspace(-1, 1, x.size(3)), indexing="ij")
        grid = torch.stack([xs, ys], -1)[None] + 0.1 * self.offsets(x).permute(0, 2, 3, 1).tanh()
        return self.head(self.last(F.grid_sample(x, grid, align_corners=True)).mean((2, 3)))


@member(lambda: (noise(2, 3, 16, 16), noise(2, 3, 16, 16)))
class Correlation(nn.Module):
    """Optical flow: a cost volume by an einsum of two feature maps, a recurrent refinement."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.context = (
            nn.Sequential(cbr(3, 16, stride=2), nn.Conv2d(16, 24, 1)),
            nn.Sequential(cbr(3, 16, stride=2)),
        )
        self.motion, self.gate, self.candidate, self.flow = (
            nn.Conv2d(64 + 2, 12, 1),
            nn.Conv2d(28, 16, 3, padding=1),
            nn.Conv2d(28, 16, 3, padding=1),
            nn.Conv2d(16, 2, 3, padding=1),
        )

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        first, second = torch.chunk(self.features(torch.cat([a, b], dim=0)), 2, dim=0)
        volume = torch.einsum("bchw,bcuv->bhwuv", first, second) / first.shape[1] ** 0.5
        volume = volume.flatten(3).permute(0, 3, 1, 2)
        h, flow, flows = torch.tanh(self.context(a)), torch.zeros(len(a), 2, 8, 8), []
        for _ in range(2):
            x = F.relu(self.motion(torch.cat([volume, flow], 1)))
            z = torch.sigmoid(self.gate(torch.cat([h, x], 1)))
            h = (1 - z) * h + z * torch.tanh(self.candidate(torch.cat([z * h, x], 1)))
            flow = flow + self.flow(h)
            flows.append(flow)
        return flows


@member(lambda: noise(2, 2, 12, 12))
class NonLocal(nn.Module):
    """Attention over places by bmm of flattened maps, second-order pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.theta, self.phi, self.g = (
            cbr(2, 16),
            nn.Conv2d(16, 8, 1),
            nn.Conv2d(16, 8, 1),
            nn.Conv2d(16, 8, 1),
        )
        self.out, self.reduce, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 6, 1), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        theta, phi, g = (layer(x).view(b, -1, h * w) for layer in (self.theta, self.phi, self.g))
        attention = torch.matmul(theta.permute(0, 2, 1), phi).softmax(-1)
        x = x + self.out(torch.matmul(attention, g.permute(0, 2, 1)).permute(0, 2, 1).contiguous().view(b, -1, h, w))
        r = self.reduce(x).flatten(2)
        return self.head((r @ r.transpose(1, 2) / r.shape[-1]).flatten(1))


@member(lambda: noise(4, 12))
class Maxout(nn.Module):
    """The maximum over pieces of a layer; then a mixture-density head split by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16 * 3), nn.Linear(16, 24), nn.Linear(24, 3 * (1 + 2 * 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.second(self.first(x).view(len(x), 16, 3).max(-1).values).relu()
        weights, means, widths = torch.split(self.head(x), [3, 6, 6], dim=1)
        return weights.softmax(-1), means.view(-1, 3, 2), widths.exp().view(-1, 3, 2)


@member(lambda: noise(4, 12))
class Flow(nn.Module):
    """An affine coupling with masks, an invertible linear layer and its log-determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(12) % 2).float())
        self.nets = nn.ModuleList([nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24)) for _ in range(2)])
        self.turn = nn.Parameter(torch.eye(12) + 0.1 * torch.randn(12, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = torch.linalg.slogdet(self.turn)[1].expand(len(x))
        x = x @ self.turn
        for i, net in enumerate(self.nets):
            mask = self.mask if i == 0 else 1 - self.mask
            scale, shift = net(x * mask).chunk(2, -1)
            scale = scale.tanh() * (1 - mask)
            x = x * scale.exp() + shift * (1 - mask)
            logdet = logdet + scale.sum(-1)
        return x, logdet


@member(lambda: noise(2, 24, 5))
class LinearAttention(nn.Module):
    """Kernel feature maps, key-value products first; channel attention over the transposed product beside it."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.start, self.q, self.k, self.v, self.out = nn.Linear(5, width), *(nn.Linear(width, width) for _ in range(4))
        self.temperature, self.qkv, self.head = (
            nn.Parameter(torch.ones(heads, 1, 1)),
            nn.Linear(width, 3 * width),
            nn.Linear(width, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bhnd,bhne->bhde", k, v)
        norm = 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=-2))
        x = x + self.out(torch.einsum("bhnd,bhde,bhn->bhne", q, context, norm).transpose(1, 2).reshape(b, n, -1))
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        return self.head((x + (weights @ v).permute(0, 3, 1, 2).flatten(2)).mean(1))


@member(image)
class MultiAxis(nn.Module):
    """MaxViT: a squeeze-and-excite mobile block, then attention in windows and on a grid, einops written out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.width = cbr(3, width, stride=2), width
        self.up, self.depth, self.squeeze, self.down = (
            cbr(width, 32, 1),
            cbr(32, 32, groups=32),
            nn.Sequential(nn.Conv2d(32, 8, 1), nn.SiLU(), nn.Conv2d(8, 32, 1), nn.Sigmoid()),
            nn.Conv2d(32, width, 1),
        )
        self.window, self.grid = (
            nn.TransformerEncoderLayer(width, 4, 32, batch_first=True),
            nn.TransformerEncoderLayer(width, 4, 32, batch_first=True),
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.depth(self.up(x))
        x = x + self.down(h * self.squeeze(h.mean((2, 3), keepdim=True)))
        b, c, height, width = x.shape
        x = x.reshape(b, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = (
            self.window(x)
            .reshape(b, height // 4, width // 4, 4, 4, c)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(b, c, height, width)
        )
        x = x.view(b, c, 4, height // 4, 4, width // 4).permute(0, 3, 5, 2, 4, 1).reshape(-1, 16, c)
        x = self.grid(x).reshape(b, -1, 16, c)
        return self.head(x.mean((1, 2)))
