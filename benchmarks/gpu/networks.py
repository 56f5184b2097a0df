"""Networks whose shapes matter on a GPU: an image network, a transformer of images, a layer of an 8 B decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure.zoo import build


class RootMeanSquare(nn.Module):
    """What decoders have in place of a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class DecoderLayer(nn.Module):
    """Causal attention whose queries share keys in fours, and a gated MLP; 8 B models have 32 such layers."""

    def __init__(self, width: int = 4096, heads: int = 32, shared: int = 4, hidden: int = 14336) -> None:
        super().__init__()
        self.width, self.shared = width // heads, shared
        self.norm1, self.norm2 = RootMeanSquare(width), RootMeanSquare(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, width // shared, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[samples, tokens, width] to the same."""
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.width)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.shared, dim=1) for t in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@dataclass(frozen=True)
class Network:
    """A network, and one sample for it.

    Attributes:
        make: the network with fresh weights.
        sample: the shape of a sample.
        is_image: whether it likes its channels last in memory.
    """

    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    is_image: bool = False


NETWORKS: Mapping[str, Network] = {
    "ResNet-50, 224 px": Network(lambda: build("resnet50", num_classes=1000), (3, 224, 224), True),
    "ViT-B/16, 224 px": Network(
        lambda: build("vit_small", image_size=224, patch=16, dim=768, depth=12, heads=12, num_classes=1000),
        (3, 224, 224),
    ),
    "decoder layer of 8 B, 128 tokens": Network(DecoderLayer, (128, 4096)),
}
SMALL: Mapping[str, Network] = {
    "ResNet-50, 224 px": Network(lambda: build("resnet50", width=0.25), (3, 32, 32), True),
    "ViT-B/16, 224 px": Network(
        lambda: build("vit_small", image_size=32, patch=16, dim=128, depth=2, heads=4), (3, 32, 32)
    ),
    "decoder layer of 8 B, 128 tokens": Network(lambda: DecoderLayer(256, 8, 4, 512), (16, 256)),
}
"""The same in small, to see that all of it runs."""
