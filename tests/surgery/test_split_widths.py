"""What a module says of how wide the parts are that it splits an axis into."""

import torch
from torch import Tensor, nn

from nervure import prune, trace


class Bottleneck(nn.Module):
    """Two convolutions and a shortcut; what is between them is as wide as what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu()).relu()


class Split(nn.Module):
    """Halves of one convolution, one of them refined; the number of their channels is read in one of two ways only."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.c = made // 2
        self.cv1, self.cv2 = nn.Conv2d(given, 2 * self.c, 1), nn.Conv2d(3 * self.c, made, 1)
        self.m = nn.ModuleList([Bottleneck(self.c)])

    def forward(self, x: Tensor) -> Tensor:
        return self.join(list(self.cv1(x).relu().chunk(2, 1)))

    def forward_split(self, x: Tensor) -> Tensor:
        return self.join(list(self.cv1(x).relu().split((self.c, self.c), 1)))

    def join(self, parts: list[Tensor]) -> Tensor:
        return self.cv2(torch.cat([*parts, *(m(parts[-1]) for m in self.m)], 1))  # type: ignore[no-any-return]


class Net(nn.Module):
    """What the split is given is as wide as one of its halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split, self.head = nn.Conv2d(3, 16, 1), Split(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.split(self.stem(x).relu()).relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_a_number_that_splits_channels_says_how_wide_a_part_is_and_not_another_group_of_that_size() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(net, x)
    assert [(d.module, d.attribute, d.groups) for d in graph.declared] == [("split", "c", ("split.cv1.widths",))]
    split = prune(net, x, keep=0.5).model.split
    stem = torch.randn(2, split.cv1.in_channels, 4, 4)
    assert split.c == split.cv1.out_channels // 2 < 16
    assert split.c != split.cv1.in_channels
    assert torch.equal(split.forward_split(stem), split(stem))


class Gated(nn.Module):
    """A gate and a value of one layer; the width of the residual stream is that of the gate by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = self.intermediate_size = 8
        self.both, self.back = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return x + self.back(gate.sigmoid() * value)  # type: ignore[no-any-return]


def test_a_gate_has_a_width_of_its_own_that_the_stream_does_not_share() -> None:
    net = nn.Sequential(nn.Linear(3, 8), Gated(), nn.Linear(8, 2))
    said = {d.attribute: d.groups for d in trace(net, torch.randn(2, 3)).declared}
    assert said == {"dim": ("0",), "intermediate_size": ("1.both.widths",)}
