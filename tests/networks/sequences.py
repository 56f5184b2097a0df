"""Sequences, tokens and recurrent layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.registry import NETWORKS, Network, covers, image, seeded, sequence, words


@covers(words)
class EmbeddingLinear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(11, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


@covers(sequence)
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 7)), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.einsum("nsc,cd->nsd", torch.sigmoid(self.fc(x)), self.weight)))


@covers(sequence)
class Matmul(nn.Module):
    """Attention without heads: two activations are multiplied, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 3.0
        return self.out(scores.softmax(-1) @ self.v(x))


@covers(image)
class MlpMixer(nn.Module):
    """Tokens are mixed by a linear layer along them, then channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 5)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.channels = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """Linear layer, recurrent layers, linear layer on the last step."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 7, directions: int = 1, **options: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.rnn = kind(8, hidden, batch_first=True, bidirectional=directions > 1, **options)
        self.out = nn.Linear(directions * hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(F.relu(self.fc(x)))[0][:, -1])


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    _name = _kind.__name__.lower()
    NETWORKS[_name] = Network(lambda k=_kind: seeded(lambda: Recurrent(k)), sequence)  # type: ignore[misc]
NETWORKS["lstm_stacked"] = Network(lambda: seeded(lambda: Recurrent(nn.LSTM, num_layers=2)), sequence)
NETWORKS["lstm_bidirectional"] = Network(lambda: seeded(lambda: Recurrent(nn.LSTM, directions=2)), sequence)
NETWORKS["gru_stacked_bidirectional"] = Network(
    lambda: seeded(lambda: Recurrent(nn.GRU, directions=2, num_layers=2)), sequence
)


@covers(sequence)
class LstmCell(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.shape[0], self.cell.hidden_size), x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.out(h)
