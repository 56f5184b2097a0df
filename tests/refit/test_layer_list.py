"""Lists of layers of which each reads what the one before it gives."""

import torch
from torch import Tensor, nn

from nervure.refit.layer_list import layer_list
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
    assert layer_list(Network(), batch()) == tuple(f"layers.{n}" for n in range(5))
    assert layer_list(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), batch()) == ("0", "1")


def test_layers_that_something_else_looks_at_are_run() -> None:
    assert layer_list(Network(peeks=True), batch()) == ()


def test_layers_that_share_their_weights_are_run() -> None:
    model = Network()
    model.layers[1].up.weight = model.layers[3].up.weight
    assert layer_list(model, batch()) == ()


class Stages(nn.Module):
    """Two lists, one behind the other, and nothing between them."""

    def __init__(self, *, between: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        runs: list[int] = []
        self.stem, self.head, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between
        self.first = nn.Sequential(*(Layer(runs, number) for number in range(2)))
        self.second = nn.Sequential(*(Layer(runs, number) for number in range(2, 5)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        found: Tensor = self.head(self.second(2 * x if self.between else x))
        return found


def test_lists_on_end_are_one() -> None:
    names = ("first.0", "first.1", "second.0", "second.1", "second.2")
    assert layer_list(Stages(), batch()) == names
    assert layer_list(Stages(between=True), batch()) == names[2:]


class Block(nn.Module):
    """A list of layers of other widths, around which what enters is added."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.body(x)
        return found


def test_a_list_whose_input_is_looked_at_again_takes_nothing_up() -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 6))
    model = nn.ModuleDict({"stem": stem, "block": Block(), "head": nn.Linear(6, 3)})
    model.forward = lambda x: model["head"](model["block"](model["stem"](x)))  # type: ignore[method-assign]
    assert layer_list(model, batch()) == tuple(f"stem.{n}" for n in range(5))


class EncoderDecoder(nn.Module):
    """A U-Net: what the layers of one list give is read again by all but the last of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.up = nn.ModuleList(Up() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        for layer, skip in zip(self.up, (seen[1], seen[0], None), strict=True):
            x = layer(x, skip)
        return x


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        found: Tensor = self.body(x if skip is None else x + skip).relu()
        return found


def test_an_encoder_that_a_decoder_reads_again_is_run() -> None:
    assert layer_list(EncoderDecoder(), batch()) == tuple(f"up.{n}" for n in range(3))
