"""Layers that are added to a stream are fitted to the stream."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Drop, Keep, Plan, Pruned, prune, trace
from nervure.refit import Refit, refit


class Branch(nn.Module):
    """Normed, widened, bent, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return found


class Network(nn.Module):
    """A stream that four branches are added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(Branch() for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        found: Tensor = self.head(x)
        return found


def data() -> Tensor:
    return torch.randn(256, 3, 8, generator=torch.Generator().manual_seed(1))


def dropped(model: nn.Module) -> Pruned:
    blocks = [block.name for block in trace(model, data()[:2]).blocks if "1" in block.name]
    return prune(model, data()[:2], Plan((Drop(blocks[0]),)))


def cut(model: nn.Module) -> Pruned:
    some = Keep.of([unit % 3 > 0 for unit in range(24)])
    return prune(model, data()[:2], Plan(tuple(Cut(f"branches.{n}.up", some) for n in range(4))))


def distance(pruned: Pruned, model: nn.Module) -> float:
    x = torch.randn(256, 3, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((pruned.model(x) - model(x)).square().mean())


@pytest.mark.parametrize("make", [dropped, cut], ids=["dropped", "cut"])
def test_a_stream_that_is_corrected_is_nearer_than_layers_on_their_own(make) -> None:  # type: ignore[no-untyped-def]
    model = Network().eval()
    pruned = make(model)
    alone, together = (
        refit(pruned, [data()], reference=model, how=Refit(streams=streams), progress=False).result
        for streams in (False, True)
    )
    assert distance(together, model) < distance(alone, model) < distance(pruned, model)


def test_what_is_before_a_dropped_block_takes_over_from_it() -> None:
    model = Network().eval()
    found = refit(dropped(model), [data()], reference=model, progress=False)
    before = next(layer for layer in found.layers if layer.tensor == "branches.0.down.weight")
    assert before.after < before.before
    assert before.freedom == "ridge"


class Written(nn.Module):
    """Three branches by name, which are no list: one that is dropped leaves zeros in its place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.head = Branch(), Branch(), Branch(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        x = x + self.second(x)
        x = x + self.third(x)
        found: Tensor = self.head(x)
        return found


def test_what_is_before_zeros_takes_over_as_well() -> None:
    model = Written().eval()
    pruned = prune(model, data()[:2], Plan((Drop("second"),)))
    found = refit(pruned, [data()], reference=model, progress=False)
    before = next(layer for layer in found.layers if layer.tensor == "first.down.weight")
    assert before.after < before.before


def test_a_stream_of_an_uncut_network_stays() -> None:
    model = Network().eval()
    found = refit(model, [data()], reference=model, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(found.result.parameters(), model.parameters(), strict=True))
