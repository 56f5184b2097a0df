"""Paths from inputs to outputs, against brute force and against what a network without non-linearities does."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nervure.analysis.build import draw_circuit
from nervure.analysis.paths import census, heard, masses, read


def masked(net: nn.Module, density: float, seed: int) -> nn.Module:
    """Positive weights, no biases, each weight there with this probability."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                drawn = 0.1 + torch.rand(parameter.shape, generator=generator)
                parameter.copy_(drawn * (torch.rand(parameter.shape, generator=generator) < density))
            elif "bias" in name:
                parameter.zero_()
    return net.eval()


def all_paths(weights: list[Tensor]) -> list[tuple[int, ...]]:
    """Every way from an input to an output along weights that are not zero, unit by unit."""
    units = [range(weights[0].shape[1]), *(range(len(w)) for w in weights)]
    return [
        path
        for path in itertools.product(*units)
        if all(w[b, a] != 0 for w, a, b in zip(weights, path, path[1:], strict=False))
    ]


@given(density=st.floats(0.15, 0.9), seed=st.integers(0, 1000), middle=st.integers(1, 4))
def test_live_connections_are_those_on_some_path(density: float, seed: int, middle: int) -> None:
    widths = (3, 4, middle, 2)
    net = masked(
        nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths))),
        density,
        seed,
    )
    weights = [layer.weight.detach() for layer in net]  # type: ignore[union-attr]
    paths = all_paths(weights)
    circuit = draw_circuit(net, torch.zeros(1, 3))
    found = census(circuit, heard(circuit), read(circuit))
    assert [c.live for c in found] == [len({(p[i], p[i + 1]) for p in paths}) for i in range(3)]
    assert [c.connections for c in found] == [int((w != 0).sum()) for w in weights]
    mass = masses(circuit)
    products = [math.prod(float(w[b, a]) for w, a, b in zip(weights, p, p[1:], strict=False)) for p in paths]
    for layer, stage in enumerate(circuit.stages):
        for unit in range(stage.size):
            through = sum(m for p, m in zip(paths, products, strict=True) if p[layer] == unit)
            assert np.exp(mass.through[stage.start + unit]) == pytest.approx(through, rel=1e-6)


class Convolutions(nn.Module):
    """Grouped, depthwise, strided and pointwise convolutions, a shortcut, a concatenation, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.grouped, self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.strided, self.norm = nn.Conv2d(12, 4, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = x + F.relu(self.depthwise(F.relu(self.grouped(x))))
        return self.head(F.relu(self.strided(torch.cat([y, x], 1))).flatten(1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.v, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.out(self.v(x).mean(1, keepdim=True))
        return self.head(x + self.down(F.relu(self.up(x))))


def said_and_needed(net: nn.Module, example: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer which units are active on positive inputs, and which the outputs' sum changes with."""
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, args: object, out: Tensor) -> None:
            out.retain_grad()
            outputs[name] = out

        return hook

    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [m.register_forward_hook(note(n)) for n, m in layers.items()]  # type: ignore[arg-type]
    for layer in layers.values():
        # A unit that hears nothing is pushed off zero, so that its rectifier lets the gradient pass all the same.
        layer.bias.data.fill_(1e-3)
    net(example.requires_grad_()).sum().backward()
    needed = {n: _by_unit(out.grad, layers[n]) for n, out in outputs.items()}  # type: ignore[arg-type]
    for layer in layers.values():
        layer.bias.data.zero_()
    net(example)
    said = {n: _by_unit(out, layers[n]) for n, out in outputs.items()}
    for handle in handles:
        handle.remove()
    return {n: (said[n], needed[n]) for n in outputs}


def _by_unit(values: Tensor, layer: nn.Module) -> Tensor:
    axis = 1 if isinstance(layer, nn.Conv2d) else values.dim() - 1
    return (values.detach() != 0).movedim(axis, 0).flatten(1).any(1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Convolutions, (1, 2, 6, 6)), (Attending, (1, 5, 3))],
    ids=["convolutions", "tokens"],
)
@pytest.mark.parametrize("seed", range(6))
def test_units_are_dead_where_activity_or_gradient_says_so(
    make: type[nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    net = masked(make(), 0.12 + 0.05 * seed, seed)
    circuit = draw_circuit(net, torch.zeros(shape))
    is_heard, is_read = heard(circuit), read(circuit)
    truth = said_and_needed(net, 0.5 + torch.rand(shape))
    for stage in circuit.stages:
        if stage.name in truth:
            said, needed = truth[stage.name]
            assert is_heard[stage.nodes].tolist() == said.tolist(), stage.name
            assert is_read[stage.nodes].tolist() == needed.tolist(), stage.name


def test_masses_of_deep_networks_do_not_overflow() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(400)))
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(10.0)
    circuit = draw_circuit(net, torch.zeros(1, 8))
    total = float(np.logaddexp.reduce(masses(circuit).arrived[circuit.outputs]))
    assert total == pytest.approx(400 * math.log(80) + math.log(8))


def test_a_weight_read_twice_is_counted_once_and_lives_where_either_reading_does() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).relu())[:, :1]

    net = Twice()
    net.fc.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    circuit = draw_circuit(net, torch.ones(1, 2))
    (found,) = census(circuit, heard(circuit), read(circuit))
    assert (found.places, found.connections, found.live, len(found.stages)) == (4, 2, 2, 2)


def test_groups_live_by_the_units_that_they_read() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 3, groups=2))
    with torch.no_grad():
        net[0].weight[2:] = 0.0  # what the second group reads
        net[1].weight[0, 1] = 0.0
    circuit = draw_circuit(net, torch.zeros(1, 1, 4, 4))
    found = census(circuit, heard(circuit), read(circuit))
    assert [(c.places, c.connections, c.live) for c in found] == [(4, 2, 2), (108, 99, 45)]
