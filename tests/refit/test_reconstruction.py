"""Local reconstruction: branch by branch towards the dense network, and what must not happen on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Drop, Keep, Plan, Refit, prune, refit, trace, zoo
from nervure.errors import DataError
from nervure.methods import Magnitude, MagnitudeMasks
from nervure.refit.branches import find_branches
from nervure.refit.fit import split
from nervure.refit.origins import origins
from nervure.refit.reconstruct import Reconstructor

HOW = Refit(samples=64, steps=24, lr=3e-3)


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Chain(nn.Module):
    """Residual blocks of one width, and a head."""

    def __init__(self, blocks: int = 3, width: int = 12, hidden: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Residual(width, hidden) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def chain(**options: int) -> Chain:
    torch.manual_seed(0)
    return Chain(**options).eval()


def data(count: int = 64) -> list[Tensor]:
    return list(torch.randn(count, 8, generator=torch.Generator().manual_seed(1)).split(10))


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(tensor.equal(two.state_dict()[name]) for name, tensor in one.state_dict().items())


def stream_distance(model: Chain, dense: Chain) -> float:
    """Of what the last block gives, on data of their own."""
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mine, theirs = (nn.Sequential(one.stem, *one.blocks)(x) for one in (model, dense))
        return float((mine - theirs).square().mean())


def test_an_uncut_network_comes_back_bit_for_bit() -> None:
    model = chain()
    found = refit(model, data(), reference=model, how=HOW, progress=False)
    assert same(found.result, model)
    assert [b.steps for b in found.branches] == [0, 0, 0]


def half_of_the_hidden_units(model: Chain) -> Plan:
    graph = trace(model, data()[0])
    hidden = [group for group in graph.prunable if group.size == model.blocks[0].up.out_features]
    kept = torch.arange(hidden[0].size) % 2 == 0
    return Plan(tuple(Cut(group.name, Keep.of(kept)) for group in hidden), graph.fingerprint)


@pytest.mark.parametrize("edit", ["cut", "mask"])
def test_steps_come_nearer_to_the_dense_network_than_the_closed_form(edit: str) -> None:
    model = chain(hidden=64)
    masks = MagnitudeMasks(density=0.3, dense=("head.weight", "stem.weight"))
    pruned = prune(model, data()[0], half_of_the_hidden_units(model) if edit == "cut" else masks, progress=False)
    closed = refit(pruned, data(400), reference=model, how=Refit(samples=400), progress=False)
    how = Refit(samples=400, steps=200, lr=3e-3)
    trained = refit(pruned, data(400), reference=model, how=how, progress=False)
    assert stream_distance(trained.result.model, model) < 0.9 * stream_distance(closed.result.model, model)
    for branch in trained.branches:
        assert branch.held_after <= branch.held_before
        assert branch.reason == ""


def test_masks_hold_exactly() -> None:
    model = chain()
    pruned = prune(model, data()[0], MagnitudeMasks(density=0.3), progress=False)
    found = refit(pruned, data(), reference=model, how=HOW, progress=False).result
    assert any(branch for branch in found.masks)
    for name, keep in found.masks.items():
        assert not bool(found.model.get_parameter(name)[~keep].any())


def test_what_is_frozen_stays_and_what_is_shared_stays_shared() -> None:
    model = chain()
    model.blocks[1].down.weight.requires_grad_(False)
    model.blocks[2].up.weight = model.blocks[0].up.weight
    pruned = prune(model, data()[0], MagnitudeMasks(density=0.3), progress=False)
    found = refit(pruned, data(), reference=model, how=HOW, progress=False)
    assert any(b.steps for b in found.branches)
    blocks = found.result.model.blocks
    assert blocks[1].down.weight.equal(pruned.model.blocks[1].down.weight)
    assert blocks[2].up.weight is blocks[0].up.weight


def test_the_model_that_was_given_and_the_dense_one_stay_as_they_were() -> None:
    model = chain()
    pruned = prune(model, data()[0], Magnitude(keep=0.5), progress=False)
    before, dense = states(pruned.model), states(model)
    refit(pruned, data(), reference=model, how=HOW, progress=False)
    assert all(tensor.equal(before[name]) for name, tensor in pruned.model.state_dict().items())
    assert all(tensor.equal(dense[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in [*model.parameters(), *pruned.model.parameters()])


def test_a_stream_that_lost_channels_is_compared_with_what_is_left_of_it() -> None:
    model = chain()
    graph = trace(model, data()[0])
    stream = next(group for group in graph.prunable if group.size == 12)
    kept = torch.ones(stream.size, dtype=torch.bool)
    kept[::3] = False
    pruned = prune(model, data()[0], Plan((Cut(stream.name, Keep.of(kept)),), graph.fingerprint), progress=False)
    found = refit(pruned, data(), reference=model, how=HOW, progress=False)
    assert all(not b.reason and b.held_after <= b.held_before < 1 for b in found.branches)
    assert any(b.steps for b in found.branches)


def test_behind_a_branch_that_lost_its_follower_is_what_that_one_gave() -> None:
    model = chain(blocks=4)
    graph = trace(model, data()[0])
    names = {block.modules[0].partition(".up")[0]: block.name for block in graph.blocks}
    plan = Plan((Drop(names["blocks.1"] if "blocks.1" in names else graph.blocks[1].name),), graph.fingerprint)
    pruned = prune(model, data()[0], plan, progress=False)
    parts = split(data(), 64)
    came = origins(model, [(pruned.graph, pruned.plan)])
    partners = [b.partner for b in find_branches(pruned.model, model, came, parts)]
    assert len(partners) in (3, 4)
    if len(partners) == 3:
        assert partners == ["blocks.1", "blocks.2", "blocks.3"]


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_behind_the_branches_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain()
    pruned = prune(model, data()[0], Magnitude(keep=0.5), progress=False)
    whole = refit(pruned, data(), reference=model, how=HOW, progress=False)
    train, calls = Reconstructor._train, list[str]()

    def stopping(self: Reconstructor, branch: Any, module: nn.Module) -> Any:
        calls.append(branch.name)
        if calls == ["blocks.0", "blocks.1"]:
            raise Stop
        return train(self, branch, module)

    monkeypatch.setattr(Reconstructor, "_train", stopping)
    with pytest.raises(Stop):
        refit(pruned, data(), reference=model, how=HOW, checkpoint=tmp_path, progress=False)
    again = refit(pruned, data(), reference=model, how=HOW, checkpoint=tmp_path, progress=False)
    assert calls == ["blocks.0", "blocks.1", "blocks.1", "blocks.2"]
    assert same(again.result.model, whole.result.model)
    assert again.branches == whole.branches
    # Another question is asked anew.
    refit(pruned, data(), reference=model, how=Refit(samples=64, steps=8), checkpoint=tmp_path, progress=False)
    assert calls[4:] == ["blocks.0", "blocks.1", "blocks.2"]


def conv_chain() -> nn.Module:
    steps = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


NETWORKS = {
    "layer1.0": lambda: zoo.build("resnet8", seed=0, in_channels=1),
    "blocks.0": lambda: zoo.build("vit_tiny", seed=0, in_channels=1, image_size=16, patch=8, dim=16, depth=2, heads=2),
    "": conv_chain,
}
"""By the first branch: the whole of a plain list of layers is one."""


@pytest.mark.parametrize("first", NETWORKS)
def test_networks_have_branches(first: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[first]().eval()
    pictures = [torch.randn(32, 1, 16, 16) for _ in range(4)]
    pruned = prune(model, pictures[0], Magnitude(keep=0.6), progress=False)
    how = Refit(samples=128, positions=4, steps=4, lr=1e-4)
    found = refit(pruned, pictures, reference=model, how=how, progress=False).branches
    assert found[0].branch == first
    assert all(not b.reason and b.held_after <= b.held_before for b in found), found


def test_ridge_and_freedom_are_chosen_by_other_data_where_these_are_given() -> None:
    model = chain(hidden=64)
    pruned = prune(model, data()[0], Magnitude(keep=0.3), progress=False)
    own = refit(pruned, data(100), reference=model, how=Refit(samples=100), progress=False)
    # Far away, relus are all on or all off: what was learnt at home does not hold there.
    away = [8 * torch.randn(20, 8, generator=torch.Generator().manual_seed(3)) - 20 for _ in range(2)]
    other = refit(pruned, data(100), reference=model, validation=away, how=Refit(samples=100), progress=False)
    assert own.samples == (75, 25)
    assert other.samples == (100, 34)
    assert [f.ridge for f in other.layers] != [f.ridge for f in own.layers]
    assert all(f.held_after <= f.held_before for f in other.layers)


def test_validation_without_samples_is_told() -> None:
    model = chain()
    pruned = prune(model, data()[0], Magnitude(keep=0.5), progress=False)
    with pytest.raises(DataError, match="empty"):
        refit(pruned, data(), reference=model, validation=[], how=HOW, progress=False)


def test_the_report_tells_each_branch() -> None:
    model = chain()
    pruned = prune(model, data()[0], Magnitude(keep=0.5), progress=False)
    told = str(refit(pruned, data(), reference=model, how=HOW, progress=False))
    assert "branch blocks.1: " in told
    assert "steps" in told
