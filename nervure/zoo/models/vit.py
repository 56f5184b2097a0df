"""A vision transformer (Dosovitskiy et al. 2021), pre-norm, with a class token."""

from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nervure.core.check import checked
from nervure.core.schema import Length, Size
from nervure.errors import ArgumentError
from nervure.zoo.models.widths import Channels, Side

EPSILON = 1e-6
POSITION_STD = 0.02

Dim: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
Depth: TypeAlias = Annotated[int, Meta(ge=1, le=256)]


class Attention(nn.Module):
    """Multi-head self-attention; one linear layer makes queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = dim // heads
        # Kept as built: a head that loses units must not change the temperature of the softmax.
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] -> the same."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] -> the same."""
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """Attention, then MLP, each normed before and added to what came in."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """Every patch of the image as one token."""

    def __init__(self, in_channels: Channels, dim: int, patch: Side) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, patches, dim]."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches and a class token, a position table, ``depth`` encoder blocks, the class token read out.

    Args:
        in_channels: channels of an image.
        num_classes: number of logits.
        image_size: side of an image in pixels, a multiple of ``patch``.
        patch: side of a patch in pixels.
        dim: width of a token, a multiple of ``heads``.
        depth: number of encoder blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden units of an MLP per token width.
    """

    @checked
    def __init__(
        self,
        *,
        in_channels: Channels,
        num_classes: Length,
        image_size: Side,
        patch: Side,
        dim: Dim,
        depth: Depth,
        heads: Size,
        mlp_ratio: Annotated[float, Meta(gt=0, le=64)],
    ) -> None:
        super().__init__()
        _check(image_size=image_size, patch=patch, dim=dim, heads=heads)
        hidden = max(1, int(dim * mlp_ratio))
        self.patch_embed = PatchEmbedding(in_channels, dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (image_size // patch) ** 2, dim) * POSITION_STD)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, side, side], of the side the model was built for."""
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1)
        encoded = self.norm(self.blocks(tokens + self.pos_embed))
        return self.head(encoded[:, 0])  # type: ignore[no-any-return]


def vit_tiny(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    image_size: Side = 32,
    patch: Side = 4,
    dim: Dim = 192,
    depth: Depth = 12,
    heads: Size = 3,
    mlp_ratio: Annotated[float, Meta(gt=0, le=64)] = 4.0,
) -> VisionTransformer:
    """ViT-Tiny, 5.4 M parameters as it stands (5,717,416 with patch=16, image_size=224, num_classes=1000).

    Raises:
        ArgumentError: sizes below 1, an image that patches do not tile, or a width that heads do not share evenly.
    """
    return VisionTransformer(
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
    )


def vit_small(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    image_size: Side = 32,
    patch: Side = 4,
    dim: Dim = 384,
    depth: Depth = 12,
    heads: Size = 6,
    mlp_ratio: Annotated[float, Meta(gt=0, le=64)] = 4.0,
) -> VisionTransformer:
    """ViT-Small, 21.3 M parameters as it stands (22,050,664 with patch=16, image_size=224, num_classes=1000).

    Raises:
        ArgumentError: as ``vit_tiny``.
    """
    return VisionTransformer(
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
    )


def _check(**sizes: int) -> None:
    for whole, part in (("image_size", "patch"), ("dim", "heads")):
        if sizes[whole] % sizes[part]:
            raise ArgumentError(f"{whole}={sizes[whole]} must be a multiple of {part}={sizes[part]}.")
