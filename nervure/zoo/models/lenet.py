"""The two LeNets of the pruning papers (LeCun et al. 1998), in their usual forms for 28 x 28 images."""

from torch import Tensor, nn

from nervure.core.check import checked
from nervure.core.schema import Length
from nervure.errors import ArgumentError
from nervure.zoo.models.widths import Channels, Side


class LeNet300(nn.Module):
    """Three fully connected layers: 300, 100, classes."""

    @checked
    def __init__(self, in_channels: Channels, num_classes: Length, image_size: Side) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * image_size**2, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, side, side]."""
        x = self.fc1(x.flatten(1)).relu()
        x = self.fc2(x).relu()
        return self.fc3(x)  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """The Caffe form: two 5 x 5 convolutions of 20 and 50 channels with max pooling, then 500 units."""

    @checked
    def __init__(self, in_channels: Channels, num_classes: Length, image_size: Side) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ArgumentError(f"image_size={image_size} leaves nothing after two 5 x 5 convolutions; use 16 or more.")
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * side**2, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, side, side]."""
        # Caffe rectifies only after fc1; the pruning papers rectify the convolutions too. The counts are the same.
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu())
        x = self.fc1(x.flatten(1)).relu()
        return self.fc2(x)  # type: ignore[no-any-return]


def lenet300(*, in_channels: Channels = 1, num_classes: Length = 10, image_size: Side = 28) -> LeNet300:
    """LeNet-300-100; 266,610 parameters as it stands. Raises ArgumentError for sizes below 1."""
    return LeNet300(in_channels, num_classes, image_size)


def lenet5(*, in_channels: Channels = 1, num_classes: Length = 10, image_size: Side = 28) -> LeNet5:
    """LeNet-5 of 20-50-500; 431,080 parameters as it stands. Raises ArgumentError for sizes below 1 or tiny images."""
    return LeNet5(in_channels, num_classes, image_size)
