"""Attention: fused, separate, shared keys, in windows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import (
    NETWORKS,
    Head,
    Network,
    cbr,
    covers,
    image,
    seeded,
    sequence,
)


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
