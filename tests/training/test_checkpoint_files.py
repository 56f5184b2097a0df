"""A checkpoint is told from what it should be before any of it is in a model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import train
from nervure.core.container import read_container, write_container
from nervure.errors import FileError
from nervure.training.checkpoint import KIND, read_progress

DATA = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(n)), torch.arange(8) % 3) for n in range(2)]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def run(path: Path, optimizer: str = "adamw", model: nn.Module | None = None, **options: Any) -> Any:
    found = network() if model is None else model
    return train(found, DATA, epochs=2, optimizer=OPTIMIZERS[optimizer], checkpoint=path, progress=False, **options)


def interrupt(step: Any) -> None:
    if step.number == 3:
        raise KeyboardInterrupt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", hooks=[interrupt])
    return tmp_path / "run"


def assert_refused(path: Path, match: str, optimizer: str = "adamw") -> None:
    model = network(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match=match):
        run(path, optimizer, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def resealed(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> Path:
    header, tensors = read_container(path, dict[str, Any], KIND)
    change(header, tensors)
    return write_container(path, tensors, header, KIND)


def test_a_flipped_bit_of_a_weight_is_told(path: Path) -> None:
    _, tensors = read_container(path, dict[str, Any], KIND)
    whole = path.read_bytes()
    at = whole.index(tensors["model.0.weight"].numpy().tobytes())
    path.write_bytes(whole[: at + 3] + bytes([whole[at + 3] ^ 64]) + whole[at + 4 :])
    assert_refused(path, r"tensors do not match their checksum\. Delete it to begin anew")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_to_the_weights_of_a_run_that_never_stopped(optimizer: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", optimizer, hooks=[interrupt])
    assert read_progress(tmp_path / "run").epochs == 1
    model, whole = network(), network()
    run(tmp_path / "run", optimizer, model)
    run(tmp_path / "other", optimizer, whole)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in whole.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("optimizer.0.exp_avg"),
        lambda t: t.update({"optimizer.0.other": t["optimizer.0.exp_avg"]}),
        lambda t: t.update({"optimizer.0.exp_avg": t["optimizer.0.exp_avg"][:1]}),
        lambda t: t.update({"optimizer.0.exp_avg": t["optimizer.0.exp_avg"].double()}),
        lambda t: t.update({"optimizer.77.exp_avg": torch.zeros(1)}),
        lambda t: t.update({"optimizer.x": torch.zeros(1)}),
        lambda t: t.update({"optimizer.²³.exp_avg": torch.zeros(1)}),
        lambda t: t.update({"mask.0.weight": torch.ones(2, dtype=torch.bool)}),
        lambda t: t.update({"extra.log.loss": torch.zeros(7, dtype=torch.float64)}),
        lambda t: t.pop("extra.log.validation"),
    ],
)
def test_tensors_that_are_not_those_of_the_run_are_told(change: Callable[[dict[str, Tensor]], Any], path: Path) -> None:
    assert_refused(resealed(path, lambda _, tensors: change(tensors)), "is damaged: .*Delete it to begin anew")


def test_weights_of_another_precision_are_of_another_model(path: Path) -> None:
    def halve(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["model.0.weight"] = tensors["model.0.weight"].half()

    assert_refused(resealed(path, halve), "is of another model")


def test_a_part_of_an_epoch_that_has_no_samples_is_told(path: Path) -> None:
    for part in ({"batches": 1, "loss": 0.0, "samples": 0.0}, {"batches": 99, "loss": 0.0, "samples": 9.0}):
        resealed(path, lambda header, _, part=part: header.update(part=part))
        assert_refused(path, "no part of an epoch")


def test_another_optimizer_is_told_by_its_name(path: Path) -> None:
    assert_refused(path, "optimizer class='AdamW' there, 'SGD' here", "sgd")


def test_a_curve_with_nan_comes_back(tmp_path: Path) -> None:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        return loss if model.training else loss * math.nan

    data = [(inputs, torch.zeros(8, 3)) for inputs, _ in DATA]
    options: Any = {"epochs": 2, "objective": objective, "validation": data, "checkpoint": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        train(network(), data, hooks=[interrupt], progress=False, **options)
    history = train(network(), data, progress=False, **options)
    assert len(history.validation) == 2
    assert all(math.isnan(value) for value in history.validation)
