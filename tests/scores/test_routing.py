"""Experts are scored by how often a gate chooses them and by how much they add, however they are computed."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import measure, prune, trace
from nervure.errors import ScoreError
from nervure.methods import Ranking
from nervure.scores import frequency, magnitude, reap

EXPERTS, WIDTH, INNER = 4, 8, 6


class Stacked(nn.Module):
    """Experts as a stack, of which each token picks two; and one that all tokens share."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.gate, self.shared = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, WIDTH)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen."""
        weights, ids = torch.topk(self.gate(x).softmax(-1), self.top_k, dim=-1)
        return weights, ids

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        hidden = F.silu(torch.einsum("tkoi,ti->tko", self.up[ids], x))
        return self.shared(x) + (torch.einsum("tkio,tko->tki", self.down[ids], hidden) * weights[..., None]).sum(1)


class Net(nn.Module):
    """A mixture between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixture, self.head = nn.Linear(5, WIDTH), Stacked(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixture(self.embed(x)))


def made() -> tuple[Net, Tensor]:
    """A model, and inputs that one expert gets few of."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Net().eval(), torch.randn(30, 5)
    net.mixture.gate.bias.data[2] = -3.0
    return net, x


def by_hand(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of tokens and mean norms, expert by expert."""
    layer = net.mixture
    with torch.no_grad():
        y = net.embed(x)
        weights, ids = layer.route(y)
        shares, means = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
        for expert in range(EXPERTS):
            rows, ranks = torch.where(ids == expert)
            added = F.silu(y[rows] @ layer.up[expert].T) @ layer.down[expert].T * weights[rows, ranks, None]
            shares[expert] = len(rows) / len(x)
            means[expert] = added.norm(dim=1).mean() if len(rows) else 0.0
    return shares, means


def test_frequency_and_reap_are_what_their_formulas_say() -> None:
    net, x = made()
    graph = trace(net, x)
    stats = measure(net, graph, [x[:11], x[11:]], want={"routing"}, progress=False)
    shares, means = by_hand(net, x)
    assert shares.min() < 0.2 < shares.max()
    weights = net.state_dict()
    name = "mixture.gate"
    assert torch.allclose(frequency(graph, weights, stats, normalise="none")[name], shares)
    assert torch.allclose(reap(graph, weights, stats, normalise="none")[name], means, rtol=1e-4)


def test_a_method_takes_them_by_name() -> None:
    net, x = made()
    pruned: Any = prune(net, x, Ranking(criterion="nervure.scores:reap", keep=0.5), data=[x], progress=False)
    assert pruned.model.mixture.up.shape[0] == 2
    assert pruned.verification < 1e-4


def test_magnitude_of_an_expert_counts_its_matrices() -> None:
    net, x = made()
    graph = trace(net, x)
    net.mixture.down.data[1] *= 100
    scores = magnitude(graph, net.state_dict())["mixture.gate"]
    assert scores.argmax() == 1


def test_without_experts_there_is_nothing_to_score() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(6, 5)
    graph = trace(net, x)
    stats = measure(net, graph, [x], want={"routing"}, progress=False)
    with pytest.raises(ScoreError, match="no group that can be cut was measured"):
        reap(graph, net.state_dict(), stats)


class Pair(nn.Module):
    """Two mixtures in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.other = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 3)
        self.maps = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))
        self.more = nn.Parameter(torch.randn(3, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for gate, maps in ((self.gate, self.maps), (self.other, self.more)):
            weights, ids = gate(x).softmax(-1).topk(1)
            x = x + torch.einsum("tkoi,ti->to", maps[ids], x) * weights
        return x


def test_two_mixtures_of_one_module_are_both_heard() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, WIDTH), Pair(), nn.Linear(WIDTH, 2)).eval()
    x = torch.randn(40, 5)
    graph = trace(net, x)
    stats = measure(net, graph, [x], want={"routing"}, progress=False)
    shares = frequency(graph, net.state_dict(), stats, normalise="none")
    assert shares["1.gate"].sum() == pytest.approx(1, abs=1e-6)
    assert shares["1.other"].sum() == pytest.approx(1, abs=1e-6)


class Values(nn.Module):
    """The largest of a gate choose among numbers: there are no matrices to hear."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, EXPERTS)
        self.head = nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.value(x).gather(1, self.gate(x).topk(2).indices))


def test_what_has_no_matrices_is_not_scored_as_never_used() -> None:
    net = nn.Sequential(nn.Linear(5, WIDTH), Values(), nn.Linear(WIDTH, 2)).eval()
    x = torch.randn(20, 5)
    graph = trace(net, x)
    assert [group.name for group in graph.groups if group.kind == "experts"] == ["1.value"]
    stats = measure(net, graph, [x], want={"routing"}, progress=False)
    with pytest.raises(ScoreError, match="no group that can be cut was measured"):
        reap(graph, net.state_dict(), stats)
