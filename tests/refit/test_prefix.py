"""Layers that are done do not run again, and nothing is different for it."""

import torch
from torch import Tensor, nn

from nervure.refit.prefix import prefix_of
from nervure.stats.loaders import Batch


class Layer(nn.Module):
    """Adds to a stream, and counts its runs."""

    def __init__(self, runs: list[int], number: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.number, self.__dict__["runs"] = number, runs

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(self.number)
        found: Tensor = x + self.down(self.up(x).relu())
        return found


class Network(nn.Module):
    """Five layers between two others; the first is looked at by the last, where ``peeks``."""

    def __init__(self, *, peeks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.runs: list[int] = []
        self.stem, self.head, self.peeks = nn.Linear(4, 6), nn.Linear(6, 3), peeks
        self.layers = nn.ModuleList(Layer(self.runs, number) for number in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        found: Tensor = self.head(x + seen[0] if self.peeks else x)
        return found


def data() -> Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def batch() -> Batch:
    return Batch(data()[:8], 8)


def test_layers_that_follow_each_other_are_found() -> None:
    assert prefix_of(Network(), batch()).names == tuple(f"layers.{n}" for n in range(5))
    assert prefix_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), batch()).names == ("0", "1")


def test_layers_that_something_else_looks_at_are_run() -> None:
    assert prefix_of(Network(peeks=True), batch()).names == ()


def test_layers_that_share_their_weights_are_run() -> None:
    model = Network()
    model.layers[1].up.weight = model.layers[3].up.weight
    assert prefix_of(model, batch()).names == ()


def test_layers_come_back_as_they_were() -> None:
    model = Network().eval()
    prefix = prefix_of(model, batch())
    prefix.advance(3, [batch()])
    expected = model(data()[:8])
    model.runs.clear()
    with prefix.skipped(0), torch.no_grad():
        assert torch.equal(model(data()[:8]), expected)
    assert model.runs == [3, 4]
    assert all("forward" not in vars(module) for module in model.modules())
