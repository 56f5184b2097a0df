"""Gates, queries and keys weigh as much as the values that are made of them."""

import pytest
import torch
from torch import Tensor, nn

from nervure import trace, zoo
from nervure.methods import View
from nervure.methods.channels.compensation import CompensationSurvey
from nervure.methods.channels.output_shares import output_shares
from nervure.refit.input_moments import find_consumers
from nervure.stats.loaders import Batch


def shares(model: nn.Module, x: Tensor) -> dict[str, float]:
    """By parameter the one share of all of its outputs."""
    consumers = find_consumers(model.eval(), Batch(x, len(x)))
    found = output_shares(trace(model, x), consumers)
    return {consumers[place].tensor: share.unique().item() for place, share in found.items()}


class Recurrent(nn.Module):
    """A cell between two linear layers."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.cell, self.out = nn.Linear(5, 12), cell(12, 8, batch_first=True), nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.out(self.cell(self.into(x))[0]).relu())
        return found


class Gated(nn.Module):
    """A gated unit: of two numbers one is made."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(torch.sigmoid(self.gate(x)) * self.up(x))
        return found


@pytest.mark.parametrize(("cell", "share"), [(nn.LSTM, 1 / 4), (nn.GRU, 1 / 3), (nn.RNN, 1.0)])
def test_gates_of_a_cell_share_its_value(cell: type[nn.RNNBase], share: float) -> None:
    found = shares(Recurrent(cell), torch.rand(3, 7, 5))
    assert found["into.weight"] == found["out.weight"] == 1
    assert found["cell.weight_ih_l0"] == found["cell.weight_hh_l0"] == pytest.approx(share)


def test_a_gate_and_what_it_lets_through_share_a_value() -> None:
    assert shares(Gated(), torch.rand(3, 4)) == {"gate.weight": 0.5, "up.weight": 0.5}


def test_queries_keys_and_values_share_what_a_head_gives() -> None:
    model = zoo.build("vit_tiny", in_channels=1, image_size=16, depth=1, dim=24, heads=2)
    found = shares(model, torch.rand(2, 1, 16, 16))
    assert found.pop("blocks.0.attn.qkv.weight") == pytest.approx(1 / 3)
    assert set(found.values()) == {1}


def test_a_convolution_after_another_of_the_same_channels_counts_whole() -> None:
    assert set(shares(zoo.build("mobilenetv2", width=0.25), torch.rand(2, 3, 32, 32)).values()) == {1}


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_cell_without_inputs_loses_as_many_values_as_it_makes(cell: type[nn.RNNBase]) -> None:
    model, x = Recurrent(cell).eval(), torch.randn(64, 7, 5, generator=torch.Generator().manual_seed(0))
    view = View(model=model, graph=trace(model, x[:2]), weights=model.state_dict(), data=[x], example=x[:2])
    assert float(CompensationSurvey().of(view).costs["into"].sum()) == pytest.approx(8, rel=0.01)
