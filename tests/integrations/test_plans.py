"""Plans travel in the checkpoints of others, and their classes build what was pruned."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, Pruned, prune
from nervure.errors import ArgumentError, FileError
from nervure.integrations.plans import replay_plans, write_plans
from nervure.integrations.ultralytics import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


def smaller(model: nn.Module) -> Pruned:
    """Pruned twice, so that there are two steps."""
    once = prune(model, X, Magnitude(keep=0.7), progress=False)
    return prune(once, X, Magnitude(keep=0.5), progress=False)


def test_steps_are_replayed_in_their_order() -> None:
    pruned = smaller(network())
    again = replay_plans(network(), write_plans(pruned))
    again.load_state_dict(pruned.model.state_dict())
    assert torch.equal(again(X), pruned.model(X))


def test_what_is_damaged_or_of_another_model_is_told() -> None:
    text = write_plans(smaller(network()))
    for damaged in (text[:-9], text.replace('"fingerprint":"', '"fingerprint":"0', 1), "{}", 3, None):
        with pytest.raises(FileError, match="plan in this checkpoint"):
            replay_plans(network(), damaged)
    with pytest.raises(FileError, match="does not fit what Sequential builds"):
        replay_plans(network(width=15), text)
    with pytest.raises(ArgumentError, match="give what nervure.prune returned"):
        write_plans(network())  # type: ignore[arg-type]


def test_a_class_of_lightning_takes_the_plan_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called as Lightning calls, where it is not installed."""
    for name, content in (("lightning", {}), ("lightning.pytorch", {"Callback": type("Callback", (), {})})):
        double = ModuleType(name)
        vars(double).update(content)
        monkeypatch.setitem(sys.modules, name, double)
    monkeypatch.delitem(sys.modules, "nervure.integrations.lightning", raising=False)
    module: Any = importlib.import_module("nervure.integrations.lightning")
    sys.modules.pop("nervure.integrations.lightning")
    told: list[Any] = []

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self._trainer = network(), told

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self._trainer.append(self.net[0].out_features)

    pruned, checkpoint = smaller(network()), dict[str, Any]()
    model = Digits()
    model.net = pruned.model  # type: ignore[assignment]
    module.KeepPlan(pruned, module="net").on_save_checkpoint(None, model, checkpoint)
    checkpoint["state_dict"] = model.state_dict()
    assert module.accept_pruned(Digits) is module.accept_pruned(Digits) is Digits
    for fresh in (Digits(), model):
        fresh.on_load_checkpoint(checkpoint)
        fresh.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(fresh.net(X), pruned.model(X))
        assert fresh._trainer is told
    Digits().on_load_checkpoint({"state_dict": {}})
    assert told == [pruned.model[0].out_features] * 2 + [16]  # type: ignore[index]


def test_lightning_loads_goes_on_and_prunes_a_part(tmp_path: Path) -> None:
    lightning: Any = pytest.importorskip("lightning.pytorch")
    from nervure.integrations.lightning import KeepPlan, accept_pruned

    @accept_pruned
    class Digits(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network(width)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _number: int) -> Tensor:
            return self(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    def fit(model: nn.Module, callback: Any, epochs: int, **given: Any) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=2), **given)
        return trainer.checkpoint_callback.best_model_path

    whole = smaller(Digits())
    path = fit(whole.model, KeepPlan(whole), 1)
    assert torch.equal(Digits.load_from_checkpoint(path)(X), whole.model(X))
    dense = Digits()
    fit(dense, KeepPlan(whole), 2, ckpt_path=path)
    assert dense.net[0].out_features == whole.model.net[0].out_features  # type: ignore[union-attr, index]
    assert not torch.equal(dense(X), whole.model(X))

    part, model = smaller(network()), Digits()
    model.net = part.model
    path = fit(model, KeepPlan(part, module="net"), 1)
    assert torch.equal(Digits.load_from_checkpoint(path)(X), model(X))


class Conv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)


class Halves(nn.Module):
    """As blocks of ultralytics that halve what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.cv1 = 8, Conv(width=10)

    def forward_split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.cv1.conv(x).split((self.c, self.c), 1)


def test_a_trainer_of_ultralytics_takes_the_model_as_it_is() -> None:
    class Trainer:
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            return network()

    model = nn.Sequential(Halves(), network())
    kind = make_trainer(Trainer, model)
    assert kind().get_model(cfg="a.yaml", weights=None, verbose=False) is model
    assert issubclass(kind, Trainer) and kind.__name__ == "Trainer"
    assert Trainer().get_model() is not model
    assert [half.shape[1] for half in model[0].forward_split(torch.rand(1, 3, 2, 2))] == [5, 5]
