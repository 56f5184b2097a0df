"""Residual networks for small images: three stages of 16, 32, 64 channels (He et al. 2016, section 4.2)."""

from typing import Literal

import torch
from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length
from nervure.zoo.models.widths import Channels, Width, convolution, initialise, scale_width

STAGES = (16, 32, 64)

Shortcut = Literal["projection", "pad"]


class PadShortcut(nn.Module):
    """Option A of the paper: every other pixel, and black channels around what there was."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        return torch.nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is the identity where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        return (out + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """A stem, three stages of ``blocks`` basic blocks, the average over the image, one linear layer.

    Args:
        blocks: blocks per stage; the depth is 6 * blocks + 2.
        in_channels: channels of an image.
        num_classes: number of logits.
        width: multiplies 16, 32, 64.
        stem_stride: 2 halves the image at once: a quarter of the work.
        shortcut: where a stage changes the shape: "projection" (option B, 1 x 1 convolution) or "pad" (option A).
    """

    @checked
    def __init__(
        self,
        blocks: int,
        in_channels: Channels,
        num_classes: Length,
        width: Width,
        stem_stride: Literal[1, 2],
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        first, second, third = (scale_width(base, width) for base in STAGES)
        self.conv1 = convolution(in_channels, first, 3, stem_stride)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def resnet8(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    width: Width = 2.0,
    stem_stride: Literal[1, 2] = 2,
    shortcut: Shortcut = "projection",
) -> CifarResNet:
    """ResNet-8, by default wide (32, 64, 128) with a stem of stride 2: the network of the demonstrations.

    308,074 parameters and 10.15 M multiply-accumulates on 28 x 28 grey images. Raises ArgumentError as ``resnet20``.
    """
    return CifarResNet(1, in_channels, num_classes, width, stem_stride, shortcut)


def resnet20(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    width: Width = 1.0,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "projection",
) -> CifarResNet:
    """ResNet-20, 0.27 M parameters at width 1; see :class:`CifarResNet` for the options.

    Raises:
        ArgumentError: sizes or width not above 0, a stride other than 1 or 2, an unknown shortcut.
    """
    return CifarResNet(3, in_channels, num_classes, width, stem_stride, shortcut)


def resnet32(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    width: Width = 1.0,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "projection",
) -> CifarResNet:
    """ResNet-32, 0.47 M parameters at width 1. Raises ArgumentError as ``resnet20``."""
    return CifarResNet(5, in_channels, num_classes, width, stem_stride, shortcut)


def resnet56(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    width: Width = 1.0,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "projection",
) -> CifarResNet:
    """ResNet-56, 0.86 M parameters at width 1. Raises ArgumentError as ``resnet20``."""
    return CifarResNet(9, in_channels, num_classes, width, stem_stride, shortcut)


def resnet110(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 10,
    width: Width = 1.0,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "projection",
) -> CifarResNet:
    """ResNet-110, 1.7 M parameters at width 1. Raises ArgumentError as ``resnet20``."""
    return CifarResNet(18, in_channels, num_classes, width, stem_stride, shortcut)


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def _shortcut(inputs: int, outputs: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
