"""Branches are trained to give what the dense network gives there."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import Cut, Drop, Keep, Link, Mask, Plan, Pruned, count, load, prune, save, trace
from nervure.errors import ArgumentError, DataError, FileError
from nervure.plan import Route
from nervure.refit import Reconstruct, reconstruct, refit

module = importlib.import_module("nervure.refit.train_branches")
HOW = Reconstruct(steps=40, lr=0.01)
SOME = Keep.of([unit % 3 > 0 for unit in range(18)])


class Layer(nn.Module):
    """Two branches beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(18, 6)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        found: Tensor = x + scale * self.down(F.gelu(self.up(self.norm(x))))
        return found


class Network(nn.Module):
    """Four of them, with something that all are given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.stem(x), x.new_full((), 1.5)
        for layer in self.layers:
            x = layer(x, scale=scale)
        found: Tensor = self.head(x)
        return found


def data() -> list[Tensor]:
    return [torch.randn(32, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def pruned_by(*edits: Cut | Mask | Drop | Link) -> tuple[nn.Module, Pruned]:
    model = Network().eval()
    return model, prune(model, data()[0][:2], Plan(edits), progress=False)


def cut() -> tuple[nn.Module, Pruned]:
    return pruned_by(Cut("layers.1.up", SOME), Cut("layers.2.up", SOME))


def masked() -> tuple[nn.Module, Pruned]:
    keep = torch.rand(18, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    return pruned_by(Mask("layers.1.up.weight", Keep.of(keep)))


def dropped() -> tuple[nn.Module, Pruned]:
    block = next(b.name for b in trace(Network().eval(), data()[0][:2]).blocks if b.name.startswith("layers.2"))
    return pruned_by(Drop(block))


def narrowed() -> tuple[nn.Module, Pruned]:
    """The stream is cut itself."""
    model = Network().eval()
    return model, prune(model, data()[0][:2], Plan((Cut("stem", Keep.of([True] * 4 + [False] * 2)),)), progress=False)


def bypassed() -> tuple[nn.Module, Pruned]:
    """A linear map goes around a block that leaves; it starts at nothing."""
    around = Link("", "", Keep.of(torch.ones(6, 6, dtype=torch.bool)), Route(reads="layers.2", joins="layers.2"))
    return pruned_by(Drop("layers.2"), around)


def gap(pruned: Pruned, model: nn.Module) -> float:
    x = torch.randn(256, 5, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((pruned.model(x) - model(x)).square().mean())


@pytest.mark.parametrize("make", [cut, masked, dropped, narrowed, bypassed])
def test_what_is_left_is_nearer_and_no_branch_is_worse_on_samples_left_out(make) -> None:  # type: ignore[no-untyped-def]
    model, pruned = make()
    before = {name: tensor.clone() for name, tensor in pruned.model.state_dict().items()}
    found = reconstruct(pruned, data(), reference=model, how=HOW, progress=False)
    fitted = [fit for fit in found.branches if not fit.reason]
    assert fitted
    assert all(fit.held_after <= fit.held_before for fit in fitted)
    assert any(fit.held_after < 0.8 * fit.held_before for fit in fitted)
    assert gap(found.result, model) < gap(pruned, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.model.state_dict().items())
    assert all(p.grad is None for p in found.result.model.parameters())


def test_an_uncut_model_and_uncut_branches_stay_bit_for_bit() -> None:
    model, pruned = cut()
    found = reconstruct(pruned, data(), reference=model, how=HOW, progress=False)
    assert {fit.branch for fit in found.branches if not fit.reason} == {"layers.1", "layers.2"}
    assert "it is as in the dense network" in {fit.reason for fit in found.branches}
    for name, tensor in found.result.model.state_dict().items():
        if not name.startswith(("layers.1.", "layers.2.")):
            assert torch.equal(tensor, pruned.model.state_dict()[name]), name
    whole = reconstruct(model, data(), reference=model, how=HOW, progress=False).result
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_a_link_around_a_dropped_block_is_fitted_and_counted(tmp_path: Path) -> None:
    model, pruned = bypassed()
    found = reconstruct(pruned, data(), reference=model, how=HOW, progress=False)
    assert [fit.branch for fit in found.branches if not fit.reason] == ["layers.2"]
    weight = found.result.model.state_dict()["layers.2.link_0.map.weight"]
    assert weight.abs().max() > 0.01
    without = pruned_by(Drop("layers.2"))[1]
    assert sum(p.numel() for p in found.result.model.parameters()) == 36 + sum(
        p.numel() for p in without.model.parameters()
    )
    assert count(found.result.model, data()[0][:2]).macs > count(without.model, data()[0][:2]).macs
    save(tmp_path / "it.safetensors", found.result)
    again = load(tmp_path / "it.safetensors", Network)
    assert torch.equal(again.model.state_dict()["layers.2.link_0.map.weight"], weight)


def test_a_branch_that_was_refitted_is_trained_again() -> None:
    model, pruned = bypassed()
    refitted = refit(pruned, data(), reference=model, progress=False).result
    found = reconstruct(refitted, data(), reference=model, how=HOW, progress=False)
    assert {fit.branch for fit in found.branches if not fit.reason} == {"layers.2", "layers.3"}


def test_zeros_of_masks_stay_exactly_zero() -> None:
    model, pruned = masked()
    found = reconstruct(pruned, data(), reference=model, how=HOW, progress=False).result
    new, keep = found.model.state_dict()["layers.1.up.weight"], pruned.masks["layers.1.up.weight"]
    assert bool((new[~keep] == 0).all())
    assert not torch.equal(new, pruned.model.state_dict()["layers.1.up.weight"])


def test_frozen_and_shared_parameters_stay() -> None:
    model, pruned = cut()
    pruned.model.layers[1].down.weight.requires_grad_(False)
    pruned.model.layers[2].norm = pruned.model.layers[0].norm
    found = reconstruct(pruned, data(), reference=model, how=HOW, progress=False).result.model.state_dict()
    for name in ("layers.1.down.weight", "layers.2.norm.weight"):
        assert torch.equal(found[name], pruned.model.state_dict()[name])
    assert not torch.equal(found["layers.1.up.weight"], pruned.model.state_dict()["layers.1.up.weight"])


def test_answers_are_the_same_again_and_random_numbers_outside_go_on() -> None:
    model, pruned = cut()
    torch.manual_seed(3)
    first = reconstruct(pruned, data(), reference=model, how=HOW, progress=False).result.model.state_dict()
    drawn = torch.rand(2)
    second = reconstruct(pruned, data(), reference=model, how=HOW, progress=False).result.model.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def test_what_was_stopped_goes_on_behind_the_branches_that_are_done(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model, pruned = cut()
    whole = reconstruct(pruned, data(), reference=model, how=HOW, progress=False)
    trained: list[str] = []
    train = module._Trainer._train

    def stop_at_second(self, branch):  # type: ignore[no-untyped-def]
        trained.append(branch.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(self, branch)

    monkeypatch.setattr(module._Trainer, "_train", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(pruned, data(), reference=model, how=HOW, checkpoint=tmp_path, progress=False)
    again = reconstruct(pruned, data(), reference=model, how=HOW, checkpoint=tmp_path, progress=False)
    assert trained == ["layers.1", "layers.2", "layers.2"]
    assert again.branches == whole.branches
    state = whole.result.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.result.model.state_dict().items())
    with pytest.raises(FileError, match="another folder"):
        reconstruct(pruned, data(), reference=model, how=Reconstruct(steps=3), checkpoint=tmp_path, progress=False)


def test_one_branch_is_held_at_a_time(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Branches in front do not run again: what the last of them gave is kept."""
    model, pruned = cut()
    runs: list[int] = []
    norm = pruned.model.layers[0].norm
    norm.is_counted, forward = True, type(norm).forward

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        runs.extend([1] if hasattr(self, "is_counted") else [])
        found: Tensor = forward(self, x)
        return found

    # Modules that are hooked into are run each time, so no hook counts.
    monkeypatch.setattr(type(norm), "forward", counting)
    few, many = [], []
    for counted, names in ((few, ["layers.1"]), (many, ["layers.1", "layers.2", "layers.3"])):
        runs.clear()
        reconstruct(pruned, data(), reference=model, how=HOW, names=names, progress=False)
        counted.extend(runs)
    assert len(many) <= len(few)


def test_names_are_taken_and_others_are_refused() -> None:
    model, pruned = cut()
    found = reconstruct(pruned, data(), reference=model, how=HOW, names=["layers.2"], progress=False)
    assert [fit.branch for fit in found.branches] == ["layers.2"]
    assert "layers.2" in str(found)
    with pytest.raises(ArgumentError, match="no branch 'layers.9'"):
        reconstruct(pruned, data(), reference=model, names=["layers.9"], progress=False)


def test_a_network_without_branches_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(ArgumentError, match="Name the modules"):
        reconstruct(model, [torch.randn(8, 4)], reference=model, progress=False)


def test_data_that_teach_nothing_are_refused() -> None:
    model, pruned = cut()
    with pytest.raises(DataError, match="all 8 samples are the same"):
        reconstruct(pruned, [torch.ones(8, 5)], reference=model, progress=False)


def test_a_network_that_makes_nan_is_refused() -> None:
    model, pruned = cut()
    with torch.no_grad():
        pruned.model.layers[1].down.bias[0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        reconstruct(pruned, data(), reference=model, how=HOW, progress=False)


def test_another_network_is_no_reference() -> None:
    _, pruned = cut()
    torch.manual_seed(5)
    other = Network().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    with pytest.raises(ArgumentError, match="not the network that this model was pruned from"):
        reconstruct(pruned, data(), reference=other, how=HOW, progress=False)


def test_a_reference_without_weights_says_so() -> None:
    _, pruned = cut()
    with pytest.raises(ArgumentError, match="the reference has no weights"):
        reconstruct(pruned, data(), reference=Network().to("meta"), how=HOW, progress=False)


@pytest.mark.parametrize("how", ["names", "masks"])
def test_a_checkpoint_of_other_branches_or_masks_is_told(tmp_path: Path, how: str) -> None:
    small = Network().eval()
    given: dict[str, Any] = {"reference": Network(), "how": HOW, "checkpoint": tmp_path, "progress": False}
    with torch.no_grad():
        for layer in small.layers:
            layer.up.weight[:, :3] = 0
    reconstruct(small, data(), names=["layers.1"], **given)
    keep = small.layers[1].up.weight != 0
    other: Any = (
        {"names": ["layers.2"]} if how == "names" else {"names": ["layers.1"], "masks": {"layers.1.up.weight": keep}}
    )
    with pytest.raises(FileError, match="other data, branches, masks"):
        reconstruct(small, data(), **other, **given)
