"""Layers that are added to a stream are fitted to the stream."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Drop, Keep, Plan, Pruned, prune, trace
from nervure.refit import Refit, refit
from nervure.refit.batch_norms import NormTensors

NAMES = ("running_mean", "running_var", "weight", "bias")


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


class Straight(nn.Module):
    """A stream that three matrices are added to, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return F.gelu(x)


@pytest.mark.parametrize("gone", [(1,), (2,), (1, 2)])
def test_what_is_dropped_to_the_end_of_a_stream_is_taken_over_as_well(gone: tuple[int, ...]) -> None:
    """Matrices in a row are one matrix: what stays says all that the whole said, wherever the stream ends."""
    model = Straight().double().eval()
    pruned = prune(model, data()[:2].double(), Plan(tuple(Drop(f"branches.{n}") for n in gone)))
    found = refit(pruned, [data().double()], reference=model, how=Refit(ridge=1e-9), progress=False).result
    x = torch.randn(64, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), model(x), rtol=1e-6, atol=1e-6)


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


class NormedBranch(nn.Module):
    """A residual block as in ResNets: what it adds goes through a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.first = nn.Conv2d(6, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18)
        self.down, self.second = nn.Conv2d(18, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(self.down(F.relu(self.first(self.up(x)))))
        return F.relu(x + branch)


class NormedNetwork(nn.Module):
    """Three of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(NormedBranch() for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = branch(x)
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def pictures(seed: int = 1) -> Tensor:
    return torch.randn(256, 6, 6, 6, generator=torch.Generator().manual_seed(seed))


def normed() -> nn.Module:
    """Its batch norms know what enters them, and two of their channels say nothing, or the opposite."""
    model = NormedNetwork()
    for _ in range(60):
        model(pictures())
    with torch.no_grad():
        for branch in model.branches:
            branch.second.weight[0], branch.second.weight[1] = 0, -0.7
    return model.eval()


def cut_normed(model: nn.Module) -> Pruned:
    some = Keep.of([unit % 3 > 0 for unit in range(18)])
    return prune(model, pictures()[:2], Plan(tuple(Cut(f"branches.{n}.up", some) for n in range(3))))


def normed_distance(pruned: Pruned, model: nn.Module) -> float:
    with torch.no_grad():
        return float((pruned.model(pictures(2)) - model(pictures(2))).square().mean())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stream_behind_batch_norms_is_corrected_too(frozen: bool) -> None:
    model = normed()
    for branch in model.branches:
        branch.second.requires_grad_(not frozen)
    pruned = cut_normed(model)
    alone, together = (
        refit(pruned, [pictures()], reference=model, how=Refit(streams=streams, positions=36), progress=False).result
        for streams in (False, True)
    )
    assert normed_distance(together, model) < normed_distance(alone, model) < normed_distance(pruned, model)
    if frozen:
        name = "branches.0.second.weight"
        assert torch.equal(together.model.state_dict()[name], pruned.model.state_dict()[name])


def test_the_error_that_is_told_is_that_of_the_stream() -> None:
    model = normed()
    pruned = cut_normed(model)
    data = pictures()
    found = refit(pruned, [data], reference=model, how=Refit(positions=36, seed=0), progress=False)
    layer = next(f for f in found.layers if f.tensor == "branches.0.down.weight")
    fitted = data[torch.arange(len(data)) % 4 != 3]

    def stream(network: nn.Module) -> Tensor:
        block = network.branches[0]
        with torch.no_grad():
            return fitted + block.second(block.down(F.relu(block.first(block.up(fitted)))))

    said = stream(model)
    wrong = (said - stream(found.result.model)).square().sum()
    of = (said - said.mean((0, 2, 3), keepdim=True)).square().sum()
    assert layer.after == pytest.approx(float(wrong / of), rel=1e-3)
    assert layer.after < layer.before


def test_a_stream_behind_batch_norms_of_an_uncut_network_stays() -> None:
    model = normed()
    found = refit(model, [pictures()], reference=model, progress=False).result.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_batch_norm_with_other_statistics_gives_what_it_gave() -> None:
    model = normed()
    name = "branches.0.second"
    norm, tensors = model.get_submodule(name), NormTensors(*(f"{name}.{n}" for n in NAMES), eps=1e-5)
    x = torch.randn(4, 6, 3, 3)
    before = norm(x)
    tensors.restate(model, (torch.full((6,), 0.3).double(), torch.tensor([0.5, 2, 0, 1, 3, 1]).double()))
    torch.testing.assert_close(norm(x), before)
    assert norm.running_mean[0] == pytest.approx(0.3)
