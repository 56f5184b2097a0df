"""Values count as far as they make the answer; gates, queries and keys as much as the values that are made of them."""

import pytest
import torch
from torch import Tensor, nn

from nervure import trace, zoo
from nervure.methods import View
from nervure.methods.channels.compensation import CompensationSurvey
from nervure.methods.channels.value_weights import POWER, value_weights
from nervure.refit.input_moments import find_consumers
from nervure.stats.loaders import Batch


def shares(model: nn.Module, x: Tensor) -> dict[str, float]:
    """By parameter the one share of all of its outputs."""
    consumers = find_consumers(model.eval(), Batch(x, len(x)))
    found = value_weights(trace(model, x), consumers, {})
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
    assert shares(Gated(), torch.rand(3, 4)) == {"gate.weight": 0.5, "up.weight": 0.5, "down.weight": 1}


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


class Residual(nn.Module):
    """Two blocks add to a stream; the second has three layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.up(x).relu())
        x = x + self.third(self.second(self.first(x).relu()).relu())
        found: Tensor = self.head(x)
        return found


def test_inside_a_block_less_counts_where_the_block_makes_less_of_its_stream() -> None:
    x = torch.rand(16, 4)
    model = Residual().eval()
    consumers = find_consumers(model, Batch(x, 16))
    at = {c.tensor.removesuffix(".weight"): place for place, c in enumerate(consumers)}
    joined = {at["down"]: torch.full((1, 6), 0.5), at["third"]: torch.linspace(0, 0.5, 6)[None]}
    found = value_weights(trace(model, x), consumers, joined)
    weights = {name: found[place] for name, place in at.items()}
    assert torch.equal(weights["third"], joined[at["third"]])
    assert torch.equal(weights["down"], joined[at["down"]])
    for name, weight in {
        "first": 0.25**POWER,
        "second": 0.25**POWER,
        "up": 0.5**POWER,
        "stem": 1.0,
        "head": 1.0,
    }.items():
        assert weights[name].unique().tolist() == [pytest.approx(weight)], name


def test_a_block_that_adds_little_costs_little() -> None:
    model, x = Residual().eval(), torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    costs = {}
    for scale in (1.0, 0.1):
        model.third.weight.data *= scale
        view = View(model=model, graph=trace(model, x[:2]), weights=model.state_dict(), data=[x], example=x[:2])
        costs[scale] = {name: float(cost.sum()) for name, cost in CompensationSurvey().of(view).costs.items()}
    assert costs[0.1]["first"] < 0.1 * costs[1.0]["first"]
    assert costs[0.1]["up"] == pytest.approx(costs[1.0]["up"], rel=0.3)
