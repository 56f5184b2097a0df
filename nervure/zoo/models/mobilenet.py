"""MobileNetV2 (Sandler et al. 2018), with the parameter names of torchvision."""

from typing import Literal

from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length, Share
from nervure.zoo.models.widths import Channels, Width, convolution, initialise, scale_width

# Expansion, channels, blocks, stride of the first block: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, HEAD = 32, 1280
MULTIPLE = 8


class ConvNormActivation(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        convolved = convolution(inputs, outputs, kernel, stride, groups)
        super().__init__(convolved, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter every channel by itself, narrow by 1 x 1; with a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [ConvNormActivation(inputs, hidden, 1)] if expansion > 1 else []
        layers += [ConvNormActivation(hidden, hidden, 3, stride, groups=hidden)]
        layers += [convolution(hidden, outputs, 1), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, outputs, height / stride, width / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a 1 x 1 head, the average over the image, one linear layer.

    Args:
        in_channels: channels of an image.
        num_classes: number of logits.
        width: multiplies every channel count, rounded to a multiple of 8.
        image_size: 224 for five halvings; 32 leaves out the first two, as usual for small images (28 x 28 too).
        dropout: share of the last features dropped while training, 0 or more and below 1.
    """

    @checked
    def __init__(
        self, in_channels: Channels, num_classes: Length, width: Width, image_size: Literal[32, 224], dropout: Share
    ) -> None:
        super().__init__()
        is_small = image_size == 32
        channels = _round_channels(STEM, width)
        stem_stride = 1 if is_small else 2
        layers: list[nn.Module] = [ConvNormActivation(in_channels, channels, 3, stem_stride)]
        for stage, (expansion, base, count, first) in enumerate(STAGES):
            outputs = _round_channels(base, width)
            for block in range(count):
                stride = 1 if block or (is_small and stage == 1) else first
                layers.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = _round_channels(HEAD, max(1.0, width))
        layers.append(ConvNormActivation(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.pool(self.features(x)).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


def mobilenetv2(
    *,
    in_channels: Channels = 3,
    num_classes: Length = 1000,
    width: Width = 1.0,
    image_size: Literal[32, 224] = 224,
    dropout: Share = 0.2,
) -> MobileNetV2:
    """MobileNetV2, 3,504,872 parameters as it stands; see :class:`MobileNetV2` for the options.

    Raises:
        ArgumentError: sizes or width not above 0, or an image size other than 32 or 224.
    """
    return MobileNetV2(in_channels, num_classes, width, image_size, dropout)


def _round_channels(channels: int, width: float) -> int:
    """To a multiple of 8, but never more than a tenth below what the multiplier asks."""
    wanted = channels * width
    nearest = max(MULTIPLE, int(scale_width(channels, width) + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return nearest + MULTIPLE if nearest < 0.9 * wanted else nearest
