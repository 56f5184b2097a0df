"""What several reference networks share."""

from typing import Annotated, TypeAlias

from msgspec import Meta
from torch import nn

Channels: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 16)]
Side: TypeAlias = Annotated[int, Meta(ge=1, le=512, description="the side of an image")]
Width: TypeAlias = Annotated[float, Meta(gt=0, le=8, description="by which every channel count is multiplied")]


def scale_width(channels: int, width: float) -> int:
    """``channels`` times a width multiplier, rounded, 1 or more."""
    return max(1, round(channels * width))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size at stride 1, without the bias that the batch norm after it would undo."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def initialise(model: nn.Module) -> None:
    """He initialisation of every convolution (fan out), in place, from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
