"""Layers that run one after the other are found, and only these."""

import torch
from torch import Tensor, nn

from nervure.refit.layer_lists import list_of_layers
from nervure.stats.loaders import Batch


class Layer(nn.Module):
    """Adds to a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(self.up(x).relu())
        return found


class Network(nn.Module):
    """Five layers between two others; the first is looked at by the last, where ``peeks``."""

    def __init__(self, *, peeks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.peeks = nn.Linear(4, 6), nn.Linear(6, 3), peeks
        self.layers = nn.ModuleList(Layer() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        found: Tensor = self.head(x + seen[0] if self.peeks else x)
        return found


def batch() -> Batch:
    return Batch(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), 8)


def test_layers_that_follow_each_other_are_found() -> None:
    assert list_of_layers(Network(), batch()) == tuple(f"layers.{n}" for n in range(5))
    assert list_of_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), batch()) == ("0", "1")


def test_layers_that_something_else_looks_at_are_no_list() -> None:
    assert list_of_layers(Network(peeks=True), batch()) == ()


def test_layers_that_share_their_weights_are_no_list() -> None:
    model = Network()
    model.layers[1].up.weight = model.layers[3].up.weight
    assert list_of_layers(model, batch()) == ()


def test_the_model_comes_back_as_it_was() -> None:
    model = Network()
    list_of_layers(model, batch())
    assert all("forward" not in vars(module) and not module._forward_hooks for module in model.modules())
