"""What refit knows of operators is what the one table knows."""

import torch
from torch import Tensor, nn

from nervure.graph.ops.table import KNOWN, family
from nervure.graph.tape import named_tensors
from nervure.refit.consumers import consumers
from nervure.refit.operators import BIAS, MATRICES
from nervure.refit.origins import origins
from nervure.refit.survey import survey
from nervure.stats.loaders import Batch


def test_operators_that_are_read_have_operands_in_the_table() -> None:
    assert all(KNOWN[name].operands for name in MATRICES)
    assert all(KNOWN[name].operands or family(name) == "convolution" for name in BIAS)


class Several(nn.Module):
    """Parameters that are multiplied with as they are, turned, group by group, in part, and put together."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.conv = nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.grouped, self.turned = nn.Conv1d(6, 6, 3, padding=1, groups=2), nn.ConvTranspose1d(6, 6, 3, padding=1)
        self.pieces = nn.Parameter(torch.randn(6, 12))
        self.halves = nn.ParameterList(nn.Parameter(torch.randn(3, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(self.grouped(self.conv(x))).transpose(1, 2)
        x = self.plain(x) @ self.pieces[:, ::2]
        return x @ torch.cat(tuple(self.halves)).T


def test_a_matrix_is_read_and_written_where_it_stands() -> None:
    torch.manual_seed(0)
    model = Several().eval()
    seen = survey(model, Batch(torch.randn(2, 6, 5), 2))
    found = consumers(model, seen, seen, origins(model, ()), dict.fromkeys(named_tensors(model), True))
    views = {}
    for consumer in found:
        tensor = named_tensors(model)[consumer.tensor].detach().clone()
        places, matrix = consumer.places, consumer.matrix_of(tensor)
        there = places >= 0
        assert consumer.shape == places.shape == matrix.shape
        assert torch.equal(consumer.firsts, places[:, :, 0])
        assert torch.equal(matrix[there], tensor.reshape(-1)[places[there]])
        views[consumer.tensor] = matrix.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        if bool(there.all()):
            before, wanted = tensor.clone(), torch.randn(matrix.shape)
            consumer.put(tensor, wanted)
            assert torch.equal(consumer.matrix_of(tensor), wanted)
            untouched = torch.ones(tensor.numel(), dtype=torch.bool)
            untouched[places.reshape(-1)] = False
            assert torch.equal(tensor.reshape(-1)[untouched], before.reshape(-1)[untouched])
    # What is large is a view: nothing is copied, and no places are held.
    assert views == {
        "plain.weight": True, "conv.weight": True, "grouped.weight": True, "turned.weight": False, "pieces": True,
        "halves.0": False, "halves.1": False,
    }  # fmt: skip
