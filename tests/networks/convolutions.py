"""Convolutions: grouped, depthwise, transposed, of one and three dimensions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import Head, cbr, conv, covers, image, noise


@covers(image)
class GroupedConv(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 12, groups=4), cbr(12, 6), Head(6))


@covers(image)
class GroupedChain(nn.Sequential):
    """Two grouped convolutions with different numbers of groups."""

    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 8, groups=2), cbr(8, 12, groups=4), cbr(12, 6), Head(6))


@covers(image)
class ResNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 8), Head(8)
        self.branch = nn.Sequential(cbr(8, 12, 1), cbr(12, 12, groups=3), conv(12, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.branch(x)))


@covers(image)
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), cbr(8, 8, groups=8), cbr(8, 6, 1), Head(6))


@covers(image)
class DepthMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 6), cbr(6, 12, groups=6), cbr(12, 5, 1), Head(5))


@covers(image)
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 6), Head(6)
        self.branch = nn.Sequential(
            cbr(6, 12, 1), cbr(12, 12, groups=12), nn.Hardswish(), conv(12, 6, 1), nn.BatchNorm2d(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(x))


@covers(lambda: noise(2, 3, 12))
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3, dilation=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.norm(self.a(x))))).amax(2))


@covers(lambda: noise(1, 2, 4, 6, 6))
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 3)
        self.pool, self.fc = nn.MaxPool3d(2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.norm(self.a(x))), (1, 2, 2), (1, 1, 1))
        return self.fc(F.adaptive_avg_pool3d(self.pool(self.b(x)), 1).flatten(1))


@covers(image)
class ConvTranspose(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 6),
            nn.ConvTranspose2d(6, 8, 2, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            conv(8, 4),
            nn.ReLU(),
            Head(4),
        )


@covers(image)
class GroupedTranspose(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2), nn.ReLU(), cbr(8, 4), Head(4))


@covers(image)
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 4), cbr(4, 6), cbr(6, 8)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.d, self.e = cbr(12, 6), cbr(8, 4)
        self.out = conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up1(c), b], 1))
        return self.out(self.e(torch.cat([self.up2(d), a], 1)))


@covers(image)
class Unfold(nn.Module):
    """A convolution by hand: ``unfold`` and a linear layer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.head = cbr(3, 4), nn.Linear(36, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.stem(x), 3, padding=1).transpose(1, 2)
        return self.head(F.relu(self.fc(patches)).mean(1))
