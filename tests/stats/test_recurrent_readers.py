"""What the loss would lose with units that recurrent layers read."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Activation, Taylor, prune, trace
from nervure.errors import ScoreError
from nervure.stats import measure
from tests.stats.test_readers import loss_of

LAYERS = [
    (nn.LSTM, {"num_layers": 2, "batch_first": True}),
    (nn.GRU, {"num_layers": 2, "batch_first": True}),
    (nn.LSTM, {"bidirectional": True, "batch_first": True}),
    (nn.GRU, {}),
    (nn.RNN, {"batch_first": True}),
]


class Sequences(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase], options: dict[str, object]) -> None:
        super().__init__()
        self.embed, self.inner = nn.Linear(3, 6), kind(6, 8, **options)
        self.head = nn.Linear(16 if self.inner.bidirectional else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        y = self.inner(x if self.inner.batch_first else x.transpose(0, 1))[0]
        return self.head(y[:, -1] if self.inner.batch_first else y[-1])  # type: ignore[no-any-return]


def sequences(kind: type[nn.RNNBase], options: dict[str, object]) -> tuple[Sequences, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x, y = torch.randn(7, 5, 3), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    return Sequences(kind, options).eval(), [(x[:4], y[:4]), (x[4:], y[4:])]


@pytest.mark.parametrize(("kind", "options"), LAYERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_effects_are_what_the_loss_falls_by_when_all_kernels_that_read_a_unit_hear_a_little_less(
    kind: type[nn.RNNBase], options: dict[str, object], frozen: bool
) -> None:
    model, data = sequences(kind, options)
    graph = trace(model, data[0][0])
    stats = measure(model.requires_grad_(not frozen), graph, data, want={"effects"})
    assert all(p.requires_grad is not frozen for p in model.parameters())
    exact, share = [(x.double(), y) for x, y in data], 1e-5
    before = loss_of(model.double(), exact)
    for group in graph.prunable:
        for unit in range(group.size):
            less = sequences(kind, options)[0].double()
            for slot in group.readers:
                columns = torch.tensor(slot.units.array) == unit
                less.get_parameter(slot.tensor).data[:, columns] *= 1 - share
            fall = (before - loss_of(less, exact)) / share
            assert torch.allclose(stats.effects[group.name][:, unit].double(), fall, rtol=1e-3, atol=1e-5)
    assert len(graph.prunable) > 1


class Steps(nn.Module):
    """A cell that is called once for each step, its state by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, hx=state)
        return self.head(state)  # type: ignore[no-any-return]


def test_of_a_cell_every_step_counts() -> None:
    torch.manual_seed(0)
    cell, x, y = Steps().eval(), torch.randn(4, 5, 3), torch.tensor([0, 1, 2, 3])
    graph = trace(cell, x)
    (name,) = [group.name for group in graph.prunable]
    found = measure(cell, graph, [(x, y)], want={"effects"}).effects[name]
    loss = F.cross_entropy(cell(x), y, reduction="sum")
    kernels = (cell.cell.weight_hh, cell.head.weight)
    expected = sum((w * s).sum(0) for w, s in zip(kernels, torch.autograd.grad(loss, kernels), strict=True))
    assert torch.allclose(found.sum(0), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_criteria_of_effects_prune_what_only_recurrent_layers_read(kind: type[nn.RNNBase]) -> None:
    model, data = sequences(kind, {"batch_first": True})
    pruned = prune(model, data[0][0], Taylor(keep=0.5), data=data)
    assert pruned.model.inner.hidden_size < 8
    assert pruned.verification is not None


def test_what_arrives_inside_is_not_heard_and_said_to_be_so() -> None:
    model, data = sequences(nn.LSTM, {"batch_first": True})
    with pytest.raises(ScoreError, match="no group that can be cut was measured"):
        prune(model, data[0][0], Activation(keep=0.5), data=data)
    both = measure(model, trace(model, data[0][0]), data, want={"effects", "readings"})
    assert "inner.widths" not in both.readings
