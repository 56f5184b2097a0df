"""Callbacks hold masks in the loops of others: in the real ones where they are installed, in their order elsewhere."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import ERK, prune
from nervure.errors import ArgumentError, MissingExtraError

# What other packages warn of while they train is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = ("nervure.integrations.lightning", "nervure.integrations.transformers")


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def sparse() -> tuple[nn.Module, dict[str, Tensor]]:
    found = prune(network(), torch.ones(2, 6), ERK(density=0.3), progress=False, verify=False)
    return found.model.train(), dict(found.masks)


def assert_sparse_and_learnt(model: nn.Module, masks: dict[str, Tensor]) -> None:
    before, _ = sparse()
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().cpu()
        assert not weight[~mask].any()
        assert (weight[mask] != before.get_parameter(name)[mask]).all()


@pytest.fixture(autouse=True)
def modules_are_imported_anew() -> Iterator[None]:
    kept = {name: sys.modules.pop(name, None) for name in MODULES}
    yield
    for name, module in kept.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize(("module", "extra"), [(MODULES[0], "lightning"), (MODULES[1], "transformers")])
def test_without_the_library_the_error_names_the_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{extra}\]'"):
        importlib.import_module(module)


# ------------------------------------------------------------------------------------- doubles that call in their order


def double(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_called_as_lightning_calls_masks_hold_and_gradients_are_masked_before_clipping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double(monkeypatch, "lightning")
    double(monkeypatch, "lightning.pytorch", Callback=type("Callback", (), {}))
    callback_of = importlib.import_module(MODULES[0]).HoldMasks
    net, masks = sparse()
    module = nn.ModuleDict({"net": net})
    optimizers = [torch.optim.AdamW(net[0].parameters(), lr=0.1), torch.optim.SGD(net[2].parameters(), lr=0.1)]
    callback = callback_of(masks, module="net")
    trainer = SimpleNamespace(optimizers=optimizers)
    callback.on_train_start(trainer, module)

    def closure() -> Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(torch.randn(8, 6)), torch.randint(3, (8,)))
        loss.backward()
        callback.on_before_optimizer_step(trainer, module, optimizers[0])
        assert all(not net.get_parameter(name).grad[~mask].any() for name, mask in masks.items())
        return loss.detach()

    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step(closure)
    callback.on_train_end(trainer, module)
    assert_sparse_and_learnt(net, masks)
    again = callback_of()
    again.load_state_dict(callback.state_dict())
    assert all(torch.equal(again.masks[name], mask) for name, mask in masks.items())
    net(torch.randn(8, 6)).sum().backward()
    optimizers[0].step()
    assert any(net.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_called_as_transformers_calls_masks_hold_through_the_optimizer_that_accelerate_wraps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double(monkeypatch, "transformers", TrainerCallback=type("TrainerCallback", (), {}))
    callback_of = importlib.import_module(MODULES[1]).HoldMasks
    net, masks = sparse()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    callback = callback_of()
    assert callback.masks is None
    callback.on_train_begin(None, None, None, model=net, optimizer=SimpleNamespace(optimizer=optimizer))
    assert all(torch.equal(callback.masks[name], mask) for name, mask in masks.items())
    for _ in range(3):
        F.cross_entropy(net(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
        assert all(not net.get_parameter(name).grad[~mask].any() for name, mask in masks.items())
        optimizer.step()
        optimizer.zero_grad()
    callback.on_train_end(None, None, None)
    assert_sparse_and_learnt(net, masks)
    dense = network()
    with pytest.raises(ArgumentError, match="no weight of this model holds a zero"):
        callback_of().on_train_begin(None, None, None, model=dense, optimizer=torch.optim.SGD(dense.parameters()))
    with pytest.raises(ArgumentError, match=r"shape \(12, 6\).*\(5, 6\)"):
        other = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        callback_of(masks).on_train_begin(None, None, None, model=other, optimizer=torch.optim.SGD(other.parameters()))


# --------------------------------------------------------------------------------------------------- the real libraries


def samples() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.TensorDataset(
        torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)
    )


def test_in_lightning_masks_hold_are_saved_and_go_on(tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")
    callback_of = importlib.import_module(MODULES[0]).HoldMasks

    class Wrapped(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _number: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
            for name, mask in masks.items():
                state = optimizer.state.get(self.net.get_parameter(name), {}).values()
                assert all(not v[~mask].any() for v in state if v.shape == mask.shape)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    def trainer(callback: Any, epochs: int) -> Any:
        return lightning.Trainer(
            max_epochs=epochs, callbacks=[callback], gradient_clip_val=0.1, accelerator="cpu", logger=False,
            default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    loader = torch.utils.data.DataLoader(samples(), batch_size=16)
    net, masks = sparse()
    whole = trainer(callback_of(masks, module="net"), 2)
    whole.fit(Wrapped(net), loader)
    assert_sparse_and_learnt(net, masks)
    whole.save_checkpoint(tmp_path / "two.ckpt")
    again = callback_of({name: torch.ones_like(mask) for name, mask in masks.items()}, module="net")
    other = network(seed=7)
    trainer(again, 3).fit(Wrapped(other), loader, ckpt_path=tmp_path / "two.ckpt")
    assert all(torch.equal(again.masks[name], mask) for name, mask in masks.items())
    assert_sparse_and_learnt(other, masks)


def test_in_transformers_masks_hold_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    callback_of = importlib.import_module(MODULES[1]).HoldMasks

    class Model(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data = [{"x": x, "labels": y} for x, y in samples()]

    def trained(net: nn.Module, callback: Any, steps: int, go_on: bool = False) -> None:
        told = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, save_steps=4, per_device_train_batch_size=16, learning_rate=0.01,
            weight_decay=0.1, gradient_accumulation_steps=2, report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=Model(net), args=told, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=go_on)
        for name, mask in masks.items():
            state = trainer.optimizer.state[net.get_parameter(name)].values()
            assert all(not v[~mask].any() for v in state if v.shape == mask.shape)

    net, masks = sparse()
    trained(net, callback_of(masks, module="net"), 4)
    assert_sparse_and_learnt(net, masks)
    other, callback = network(seed=7), callback_of(module="net")
    trained(other, callback, 8, go_on=True)
    assert all(torch.equal(callback.masks[name], mask) for name, mask in masks.items())
    assert_sparse_and_learnt(other, masks)
