"""What several reference networks share."""

from torch import nn

from nervure.errors import ArgumentError


def scaled(channels: int, width: float) -> int:
    """``channels`` times a width multiplier, rounded, 1 or more. Raises ArgumentError for a width not above 0."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not width > 0:
        raise ArgumentError(f"width={width!r} must be above 0. It multiplies every channel count: 0.5 is half as wide.")
    return max(1, round(channels * width))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size at stride 1, without the bias that the batch norm after it would undo."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def initialise(model: nn.Module) -> None:
    """He initialisation of every convolution (fan out), in place, from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
