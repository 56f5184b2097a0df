"""Residual networks for ImageNet (He et al. 2016), with the structure and parameter names of torchvision.

A state_dict saved from torchvision's ``resnet18`` or ``resnet50`` loads as it is.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length
from nervure.zoo.models.widths import Channels, Width, convolution, initialise, scale_width

STAGES = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, channels, height / stride, width / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which carries the stride, "v1.5"), and 1 x 1 to four times the channels, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = convolution(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, 4 * channels, height / stride, width / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A stem, four stages of blocks, the average over the image, one linear layer.

    Args:
        block: what the stages are made of.
        blocks: how many in each of the four stages.
        in_channels: channels of an image.
        num_classes: number of logits.
        width: multiplies 64, 128, 256, 512.
        small_images: a 3 x 3 stem that keeps the size and no pooling, as usual for 32 x 32 images.
    """

    @checked
    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        in_channels: Channels,
        num_classes: Length,
        width: Width,
        small_images: bool,
    ) -> None:
        super().__init__()
        channels = [scale_width(base, width) for base in STAGES]
        stem = channels[0]
        self.conv1 = convolution(in_channels, stem, 3) if small_images else convolution(in_channels, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        widths = [stem, *(count * block.expansion for count in channels)]
        self.layer1 = _stage(block, widths[0], channels[0], blocks[0], 1)
        self.layer2 = _stage(block, widths[1], channels[1], blocks[1], 2)
        self.layer3 = _stage(block, widths[2], channels[2], blocks[2], 2)
        self.layer4 = _stage(block, widths[3], channels[3], blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[4], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def resnet18(
    *, in_channels: Channels = 3, num_classes: Length = 1000, width: Width = 1.0, small_images: bool = False
) -> ResNet:
    """ResNet-18, 11,689,512 parameters as it stands. Raises ArgumentError for sizes or widths not above 0."""
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, num_classes, width, small_images)


def resnet50(
    *, in_channels: Channels = 3, num_classes: Length = 1000, width: Width = 1.0, small_images: bool = False
) -> ResNet:
    """ResNet-50, 25,557,032 parameters as it stands. Raises ArgumentError for sizes or widths not above 0."""
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, num_classes, width, small_images)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    rest = (block(channels * block.expansion, channels, 1) for _ in range(count - 1))
    return nn.Sequential(block(inputs, channels, stride), *rest)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
