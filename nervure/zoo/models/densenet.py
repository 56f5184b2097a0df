"""Densely connected networks for small images (Huang et al. 2017): every layer reads all before it."""

from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length
from nervure.errors import ArgumentError
from nervure.zoo.models.widths import Channels, convolution, initialise

BLOCKS = 3

Growth: TypeAlias = Annotated[int, Meta(ge=1, le=256)]


class DenseLayer(nn.Module):
    """Norm, ReLU, 3 x 3 convolution: ``growth`` new channels behind the old ones; perhaps a 1 x 1 bottleneck before."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        hidden = 4 * growth if bottleneck else inputs
        self.narrow = (
            nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), convolution(inputs, hidden, 1))
            if bottleneck
            else nn.Identity()
        )
        self.norm = nn.BatchNorm2d(hidden)
        self.conv = convolution(hidden, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, inputs + growth, height, width]."""
        new = self.conv(self.norm(self.narrow(x)).relu())
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, 1 x 1 convolution, and half the image size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = convolution(inputs, outputs, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / 2, width / 2]."""
        return self.pool(self.conv(self.norm(x).relu()))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between, the average over the image, one linear layer.

    Args:
        depth: 4 more than a multiple of 3 (of 6 with bottleneck).
        in_channels: channels of an image.
        num_classes: number of logits.
        growth: channels every layer adds ("k").
        bottleneck: 1 x 1 convolutions before the 3 x 3 ones and transitions that halve the channels ("BC").
    """

    @checked
    def __init__(
        self,
        depth: Annotated[int, Meta(ge=4, le=1000)],
        in_channels: Channels,
        num_classes: Length,
        growth: Growth,
        bottleneck: bool,
    ) -> None:
        super().__init__()
        per_layer = 2 if bottleneck else 1
        layers, rest = divmod(depth - BLOCKS - 1, BLOCKS * per_layer)
        if layers < 1 or rest:
            raise ArgumentError(f"depth={depth!r} must be 4 more than a multiple of {BLOCKS * per_layer}, as in 40.")
        channels = 2 * growth if bottleneck else 16
        stages: list[nn.Module] = [convolution(in_channels, channels, 3)]
        for block in range(BLOCKS):
            if block:
                outputs = channels // 2 if bottleneck else channels
                stages.append(Transition(channels, outputs))
                channels = outputs
            dense = (DenseLayer(channels + index * growth, growth, bottleneck) for index in range(layers))
            stages.append(nn.Sequential(*dense))
            channels += layers * growth
        self.features = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.norm(self.features(x)).relu()
        return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def densenet40(
    *, in_channels: Channels = 3, num_classes: Length = 10, growth: Growth = 12, bottleneck: bool = False
) -> DenseNet:
    """DenseNet-40, 1.0 M parameters at growth 12. Raises ArgumentError for sizes below 1."""
    return DenseNet(40, in_channels, num_classes, growth, bottleneck)


def densenet100(
    *, in_channels: Channels = 3, num_classes: Length = 10, growth: Growth = 12, bottleneck: bool = False
) -> DenseNet:
    """DenseNet-100, 7.0 M parameters at growth 12 (0.8 M with bottleneck). Raises ArgumentError for sizes below 1."""
    return DenseNet(100, in_channels, num_classes, growth, bottleneck)
