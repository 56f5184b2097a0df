import pytest
import torch
from torch import nn

from nervure import prune, trace
from nervure.methods import Random


class Rearranged(nn.Module):
    """The places of an image are units of layers that mix them, before channels and places change into each other."""

    def __init__(self, rearrange: nn.Module, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.rows = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 6)
        self.rearrange, self.head = rearrange, nn.Conv2d(channels, 5, 1)

    def forward(self, x):
        return self.head(self.rearrange(self.rows(self.stem(x)))).mean((2, 3))


@pytest.mark.parametrize(("rearrange", "channels"), [(nn.PixelUnshuffle(2), 32), (nn.PixelShuffle(2), 2)])
def test_units_along_space_stay_where_space_and_channels_change_into_each_other(rearrange, channels):
    model, x = Rearranged(rearrange, channels), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert "between space and channels" in graph["rows"].pinned
    assert prune(model, x, Random(keep=0.5), progress=False).verification is not None
