"""Heat against the dense matrix exponential, and what must hold of it."""

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from nervure.analysis import heat as heat_module
from nervure.analysis.build import draw_circuit
from nervure.analysis.heat import Laplacian

scipy_linalg = pytest.importorskip("scipy.linalg")
TIMES = (0.0, 0.03, 0.7, 4.0, 50.0, math.inf)
Normalize = Literal["none", "meandeg", "sym"]
EVERY: tuple[Normalize, ...] = ("none", "meandeg", "sym")


def sparse_mlp(density: float, seed: int, widths: tuple[int, ...] = (9, 14, 11, 4)) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(generator=generator)
            layer.weight *= torch.rand(layer.weight.shape, generator=generator) < density
    return nn.Sequential(*layers)


def mesh(net: nn.Module, normalize: Normalize = "none", shape: tuple[int, ...] = (1, 9)) -> Laplacian:
    return Laplacian.of(draw_circuit(net, torch.zeros(shape)), normalize)


def dense_laplacian(net: nn.Sequential, normalize: Normalize) -> np.ndarray:
    """Written from the definition: units of all layers in a row, |weights| between neighbours."""
    weights = [m.weight.detach().double().abs().numpy() for m in net]
    starts = np.cumsum([0, weights[0].shape[1], *(w.shape[0] for w in weights)])
    joined = np.zeros((starts[-1], starts[-1]))
    for i, w in enumerate(weights):
        joined[starts[i + 1] : starts[i + 2], starts[i] : starts[i + 1]] = w
    joined += joined.T
    if normalize == "meandeg":
        joined /= joined.sum(1)[joined.sum(1) > 0].mean()
    degree = joined.sum(1)
    if normalize == "sym":
        root = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
        return np.diag((degree > 0).astype(float)) - root[:, None] * joined * root[None]
    return np.diag(degree) - joined


@pytest.mark.parametrize("normalize", EVERY)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.1])
def test_heat_is_the_matrix_exponential(normalize: Normalize, density: float) -> None:
    net = sparse_mlp(density, seed=1)
    graph, laplacian = mesh(net, normalize), dense_laplacian(net, normalize)
    start = np.zeros(len(laplacian))
    start[:9] = 1
    for t, found in zip(TIMES, graph.heat(TIMES), strict=True):
        expected = scipy_linalg.expm(-min(t, 1e7) * laplacian) @ start
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("normalize", EVERY)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.1])
def test_the_gap_is_the_first_eigenvalue_above_zero(normalize: Normalize, density: float) -> None:
    net = sparse_mlp(density, seed=2)
    values = np.linalg.eigvalsh(dense_laplacian(net, normalize))
    graph = mesh(net, normalize)
    assert graph.gap == pytest.approx(values[values > 1e-9][0], rel=1e-5)
    assert graph.components.max() + 1 == (values <= 1e-9).sum()
    assert graph.bound >= values[-1] - 1e-9


def test_the_gap_of_many_nodes_is_found_without_a_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    net = sparse_mlp(0.5, seed=3, widths=(40, 60, 50, 10))
    exact = mesh(net, shape=(1, 40)).gap
    monkeypatch.setattr(heat_module, "DENSE", 10)
    assert mesh(net, shape=(1, 40)).gap == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("normalize", ["none", "meandeg"])
def test_heat_is_conserved(normalize: Normalize) -> None:
    graph = mesh(sparse_mlp(0.15, seed=4), normalize)
    assert [found.sum() for found in graph.heat(TIMES)] == pytest.approx([9.0] * len(TIMES))


def test_heat_in_the_end_is_the_mean_of_each_component() -> None:
    graph = mesh(sparse_mlp(0.12, seed=5))
    (end,) = graph.heat([math.inf])
    for component in range(graph.components.max() + 1):
        members = graph.components == component
        np.testing.assert_allclose(end[members], graph.sources[members].mean())


def test_a_long_time_gone_through_in_parts_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = sparse_mlp(1.0, seed=6)
    whole = mesh(net).heat(TIMES)
    monkeypatch.setattr(heat_module, "STEPS", 16)
    for expected, found in zip(whole, mesh(net).heat(TIMES), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equal_weights_between_two_layers_have_known_eigenvalues() -> None:
    layer = nn.Linear(3, 5, bias=False)
    nn.init.ones_(layer.weight)
    graph = mesh(layer, shape=(1, 3))
    assert graph.gap == pytest.approx(3.0)  # of the complete bipartite graph: 0, 3 (4 times), 5 (twice), 8
    assert graph.bound == pytest.approx(8.0)


def test_the_order_of_hidden_units_makes_no_difference() -> None:
    net, order = sparse_mlp(0.3, seed=7), torch.randperm(14)
    moved = sparse_mlp(0.3, seed=7)
    with torch.no_grad():
        moved[0].weight.copy_(net[0].weight[order])
        moved[1].weight.copy_(net[1].weight[:, order])
    for one, two in zip(mesh(net).heat(TIMES), mesh(moved).heat(TIMES), strict=True):
        np.testing.assert_allclose(one[9:23][order.numpy()], two[9:23], atol=1e-8)
        np.testing.assert_allclose(one[23:], two[23:], atol=1e-8)


@pytest.mark.parametrize("normalize", ["meandeg", "sym"])
def test_the_scale_of_weights_makes_no_difference_to_normalised_heat(normalize: Normalize) -> None:
    net = sparse_mlp(0.4, seed=8)
    before = mesh(net, normalize).heat(TIMES)
    with torch.no_grad():
        for layer in net:
            layer.weight *= 3
    for one, two in zip(before, mesh(net, normalize).heat(TIMES), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-8)


class Summed(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.skip = nn.Linear(3, 4) if skip else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.two(self.one(x).relu())
        if self.skip is not None:
            hidden = hidden + self.skip(x).relu()
        return self.three(hidden.relu())


def test_a_connection_that_skips_layers_adds_edges_and_no_nodes() -> None:
    plain, skipping = (draw_circuit(Summed(skip), torch.zeros(1, 3)) for skip in (False, True))
    one, two = Laplacian.of(plain), Laplacian.of(skipping)
    assert one.size == two.size == 13
    assert two.degrees.sum() > one.degrees.sum()
    assert len(two.isolated) == 0


def test_a_network_without_connections_keeps_its_heat_where_it_is() -> None:
    net = sparse_mlp(0.0, seed=9)
    graph = mesh(net)
    assert graph.gap == 0
    assert len(graph.isolated) == graph.size == graph.components.max() + 1
    assert all(np.array_equal(found, graph.sources) for found in graph.heat(TIMES))


@pytest.mark.parametrize("zeros", [(), ((1, 2),), ((0, 0), (1, 0), (2, 0), (3, 0)), ((2, 0), (2, 1), (2, 2))])
def test_components_of_layers_that_are_nearly_dense(zeros: tuple[tuple[int, int], ...]) -> None:
    net = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
        for place in zeros:
            net.weight[place] = 0.0
    found = mesh(net, shape=(1, 3))
    joined = torch.zeros(7, 7)
    joined[3:, :3] = net.weight.detach()
    parts = scipy_linalg.null_space((joined + joined.T).sum(1).diag() - joined - joined.T).shape[1]
    assert found.components.max() + 1 == parts
