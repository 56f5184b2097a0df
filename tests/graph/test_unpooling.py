"""Unpooling puts values where a pooling found its largest: the channels of both are the same units."""

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Magnitude, prune, trace
from tests.networks import noise, seeded


class SegNet(nn.Module):
    """Places of a pooling are handed to an unpooling of other values."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dimensions]
        self.unpool = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}[dimensions]
        self.down, self.inner, self.out = conv(2, 6, 1), conv(6, 6, 1), conv(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, places = self.pool(self.down(x), 2, return_indices=True)
        y: Tensor = self.out(self.unpool(self.inner(h), places, 2))
        return y


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_channels_of_values_and_of_places_leave_together(dimensions: int) -> None:
    model, x = seeded(lambda: SegNet(dimensions)), noise(2, 2, *[4] * dimensions)
    writers = {s.tensor for s in trace(model, x)["down"].writers}
    assert writers == {"down.weight", "inner.weight"}
    pruned = prune(model, x, Magnitude(keep=0.5))
    assert pruned.model.inner.out_channels == pruned.model.down.out_channels == 3
    assert pruned.verification is not None
