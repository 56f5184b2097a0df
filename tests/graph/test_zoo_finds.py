"""What the wide zoo taught: small networks in which a rule was missing, wrong or shy, each cut and verified."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Graph, apply, trace, verify
from tests.networks import noise, seeded
from tests.oracle import halved, plan_of


class ComplexPairs(nn.Module):
    """Pairs of channels turned as complex numbers: pairs go whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.up(x).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(4, 1), torch.arange(4.0)[:, None]))
        return self.down(turned.flatten(-2))


class RecurrentConv(nn.Module):
    """A state that starts as zeros of a width that the module keeps, put beside the input of the gates."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 6
        self.gates, self.out = nn.Conv2d(2 + 6, 4 * 6, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden, x.size(3), x.size(4))
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, t], h], 1)), self.hidden, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class NormedWeights(nn.Module):
    """Weights standardised by a batch norm in training mode: its statistic runs over what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = (nn.Conv2d(i, o, 3) for i, o in ((3, 6), (6, 8), (8, 5)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.fc):
            flat = layer.weight.reshape(1, layer.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(layer.weight)
            x = F.conv2d(F.silu(x), weight, layer.bias)
        return x.mean((2, 3))


class SizeOfAnother(nn.Module):
    """A map is reshaped with the width of another one: both are cut alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.fc = nn.Linear(5, 8), nn.Conv2d(8, 8, 2, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, c = x.shape
        small = self.reduce(x.transpose(1, 2).reshape(n, c, 4, 4)).reshape(n, c, -1)
        return self.fc(x + small.mean(2)[:, None])


class ProductSlices(nn.Module):
    """Queries, keys and values sliced at products and sums of numbers that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.width = 4, 2, 3
        self.embed, self.qkv, self.out = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        qkv, n, at = self.qkv(self.embed(x)), len(x), self.heads * self.width
        q, k, v = (
            part.view(n, -1, count, self.width).transpose(1, 2)
            for part, count in (
                (qkv[..., :at], self.heads),
                (qkv[..., at : at + self.shared * self.width], self.shared),
                (qkv[..., at + self.shared * self.width :], self.shared),
            )
        )
        k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


# The network, an example, and the groups that must be found to be prunable.
FINDS: dict[type[nn.Module], tuple[Any, set[str]]] = {
    ComplexPairs: (noise(2, 4, 5), {"up.blocks"}),
    RecurrentConv: (noise(2, 3, 2, 4, 4), {"gates.widths"}),
    NormedWeights: (noise(2, 3, 12, 12), {"a", "b"}),
    SizeOfAnother: (noise(2, 16, 5), {"stem"}),
    ProductSlices: (noise(2, 6, 5), {"embed", "qkv"}),
}


@pytest.mark.parametrize("kind", FINDS, ids=lambda kind: kind.__name__)
def test_what_was_missed_is_offered_and_cut_right(kind: type[nn.Module]) -> None:
    example, prunable = FINDS[kind]
    model = seeded(kind)
    graph: Graph = trace(model, example)
    assert {g.name for g in graph.prunable} == prunable, graph.describe()
    for only in [None, *(g.name for g in graph.prunable)]:
        plan = plan_of(graph, halved(graph, only=only))
        smaller = apply(model, graph, plan)
        assert verify(model, SimpleNamespace(model=smaller, graph=graph, plan=plan), example)
        assert smaller(example).isfinite().all()


def test_tracing_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from nervure import trace; "
        "trace(torch.nn.Linear(3, 4), torch.randn(2, 3)); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
