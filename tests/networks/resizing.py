"""Pooling, resizing and padding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Between, Head, cbr, conv, covers, image


@covers(image)
class Pooling(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 6), nn.MaxPool2d(3, 1, 1), cbr(6, 7), nn.AvgPool2d(2), nn.Dropout(0.5), cbr(7, 5),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 5),
        )  # fmt: skip


@covers(image)
class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 6, stride=2), cbr(6, 6, stride=2), cbr(6, 5)
        self.up, self.head = nn.Upsample(scale_factor=2, mode="nearest"), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = F.interpolate(self.b(a), size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.c(self.up(a + b)))


@covers(image)
class GridSample(Between):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("theta", torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.8, 0.1]]))

    def middle(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta.expand(x.shape[0], 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@covers(image)
class PaddingModes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.5),
            nn.Conv2d(6, 7, 3, padding=1, padding_mode="circular"), nn.ReplicationPad2d(1), nn.Conv2d(7, 5, 3), Head(5),
        )  # fmt: skip


@covers(image)
class ZeroPadChannels(nn.Module):
    """A shortcut that widens by padding channels with zeros (as in ResNets for CIFAR, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = cbr(3, 4), cbr(4, 6, stride=2), conv(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.b(self.a(x)))
