"""VGG with batch norm for small images (Simonyan & Zisserman 2015, in the form of the CIFAR pruning papers)."""

from collections.abc import Sequence

from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length
from nervure.zoo.models.widths import Channels, Width, convolution, initialise, scale_width

STAGES = (64, 128, 256, 512, 512)
DEPTHS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, halved in between, averaged at the end; one linear layer.

    Args:
        depths: convolutions of each stage.
        in_channels: channels of an image.
        num_classes: number of logits.
        width: multiplies every channel count.
    """

    @checked
    def __init__(self, depths: Sequence[int], in_channels: Channels, num_classes: Length, width: Width) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (depth, base) in enumerate(zip(depths, STAGES, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                outputs = scale_width(base, width)
                layers += [convolution(channels, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                channels = outputs
        self.features = nn.Sequential(*layers)
        # The last halving is an average over what is left, so 28 x 28 images fit as well as 32 x 32.
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width], 16 pixels a side or more."""
        x = self.pool(self.features(x)).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]


def vgg11(*, in_channels: Channels = 3, num_classes: Length = 10, width: Width = 1.0) -> VGG:
    """VGG-11-BN, 9.2 M parameters at width 1. Raises ArgumentError for sizes or widths not above 0."""
    return VGG(DEPTHS[11], in_channels, num_classes, width)


def vgg16(*, in_channels: Channels = 3, num_classes: Length = 10, width: Width = 1.0) -> VGG:
    """VGG-16-BN, 14.7 M parameters at width 1. Raises ArgumentError for sizes or widths not above 0."""
    return VGG(DEPTHS[16], in_channels, num_classes, width)


def vgg19(*, in_channels: Channels = 3, num_classes: Length = 10, width: Width = 1.0) -> VGG:
    """VGG-19-BN, 20.0 M parameters at width 1. Raises ArgumentError for sizes or widths not above 0."""
    return VGG(DEPTHS[19], in_channels, num_classes, width)
