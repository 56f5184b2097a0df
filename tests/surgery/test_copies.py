"""Models as training and their own forward leave them: with computed tensors, caches, locks, other memory formats."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, MagnitudeMasks, apply, compile_sparse, load, prune, save, trace
from nervure.errors import CopyError
from nervure.graph.copies import copy_model

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """Auxiliary losses and activations that stay in attributes, also deep in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.losses: list[Tensor] = []
        self.nested: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        if self.training:
            self.loss = h.mean()
            self.losses.append(self.loss)
            self.nested["h"] = (h, {"twice": 2 * h})
            self.register_buffer("state", h, persistent=False)
        return self.last(h)


def trained(model: nn.Module) -> nn.Module:
    model.train()(X).sum().backward()
    return model


def test_what_training_left_is_no_hindrance(tmp_path: Path) -> None:
    pruned = prune(Keeps().eval(), X, Magnitude(keep=0.5), progress=False)
    trained(pruned.model)
    again = prune(pruned, X, Magnitude(keep=0.5), progress=False)
    assert again.model.first.out_features == 4
    assert again.model.losses[0] is again.model.loss and not again.model.loss.requires_grad
    assert pruned.model.loss.requires_grad
    apply(pruned.model, trace(pruned.model, X), again.plan)
    save(tmp_path / "a.safetensors", pruned)
    assert load(tmp_path / "a.safetensors", Keeps).model.first.out_features == 8
    copy.deepcopy(again.model)


def test_a_masked_model_that_was_trained_is_compiled() -> None:
    pruned = prune(Keeps().eval(), X, MagnitudeMasks(density=0.5), progress=False)
    trained(pruned.model)
    compile_sparse(pruned.model.eval(), X, verbose=False)


class Caches(nn.Module):
    """A grid made on the first run, and a table with a column per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.grid, self.table = nn.Linear(6, 16), nn.Linear(16, 3), None, None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.table is None or self.table.shape != y.shape:
            self.table = torch.linspace(0, 1, len(x))[:, None].expand(y.shape).clone()
        if self.grid is None or len(self.grid) != 3:
            self.grid = torch.linspace(-1, 1, 3)
        return self.last(y + self.table) + self.grid


@pytest.mark.parametrize("has_run", [False, True])
def test_cached_tensors_are_no_part_of_what_a_file_or_a_plan_expects(has_run: bool, tmp_path: Path) -> None:
    model = Caches().eval()
    if has_run:
        model(X)
    pruned = prune(model, X, Magnitude(keep=0.5), progress=False)
    save(tmp_path / "a.safetensors", pruned)
    again = load(tmp_path / "a.safetensors", Caches)
    assert torch.equal(again.model.eval()(X), pruned.model.eval()(X))
    assert apply(Caches().eval(), pruned.graph, pruned.plan)(X).shape == (4, 3)
    pruned.model(torch.cat([X, X]))
    assert prune(pruned, X, Magnitude(keep=0.5), progress=False).model(X).shape == (4, 3)


class Locked(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.body.held = held

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


@pytest.mark.parametrize("held", [threading.Lock(), (n for n in range(3)), {"deep": [threading.Lock()]}])
def test_an_attribute_that_cannot_be_copied_is_named(held: Any) -> None:
    model = Locked(held)
    assert trace(model, X).prunable
    with pytest.raises(CopyError, match="'body.held'.*Leave it out"):
        prune(model, X, Magnitude(keep=0.5), progress=False)


def test_an_attribute_that_cannot_be_copied_is_named_where_a_group_is_tried() -> None:
    class Tried(Locked):
        def forward(self, x: Tensor) -> Any:
            y = self.body[0](x)
            return self.body[2](y / y.shape[1])

    with pytest.raises(CopyError, match=r"'body.held'"):
        trace(Tried(threading.Lock()), X)


def test_cuts_keep_the_order_of_axes_in_memory() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    pruned = prune(model.eval(), torch.randn(1, 3, 8, 8), Magnitude(keep=0.5), progress=False)
    for module in pruned.model[0], pruned.model[2]:
        assert module.weight.is_contiguous(memory_format=torch.channels_last) and not module.weight.is_contiguous()
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    pruned = prune(plain, torch.randn(1, 3, 8, 8), Magnitude(keep=0.5), progress=False)
    assert all(p.is_contiguous() for p in pruned.model.parameters())


def test_copies_are_those_that_python_makes() -> None:
    """Whatever has a way of its own to be copied goes it, and what is held twice is held twice."""

    class Counted(nn.Linear):
        def __getstate__(self) -> dict[str, Any]:
            return vars(self) | {"copied": True}

    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Own":
            return self

    model = nn.Sequential(Counted(3, 3), nn.Linear(3, 3), Own(3, 3), nn.Linear(3, 3), nn.LSTM(3, 3))
    model[1].note, model.again, model.table = ["a"], model[3], {"one": model[3].weight, "two": {}}
    model[3].bias, model.shared = model[0].bias, model.table["two"]
    twin = copy_model(model)
    assert twin[0].copied and not hasattr(model[0], "copied")
    assert twin[1].note == ["a"] and twin[1].note is not model[1].note
    assert twin[2] is model[2]
    assert twin.again is twin[3] is not model[3] and twin.table["one"] is twin[3].weight
    assert twin[3].bias is twin[0].bias is not model[0].bias and twin.shared is twin.table["two"]
    assert torch.equal(twin[4](X[:, :3])[0], model[4](X[:, :3])[0])
