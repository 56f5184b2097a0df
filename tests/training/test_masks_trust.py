"""Masks hold, to the last bit, in the ways that people train."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nervure import ERK, Keep, Magnitude, Mask, Plan, load, prune, save, train
from nervure.errors import ArgumentError, FileError, PlanError
from nervure.export import save_state
from nervure.training import TrainingStep, hold, masks_of
from tests.training.processes import run_in_two

Masks = Mapping[str, Tensor]
Loop = Callable[[nn.Module, torch.optim.Optimizer, Any], None]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, weight_decay=0.1),
}


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
        )


def batches(number: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(number)
    ]


def sparse() -> tuple[nn.Module, Masks]:
    found = prune(network(), torch.ones(2, 2, 4, 4), ERK(density=0.2), progress=False, verify=False)
    return found.model.train(), found.masks


def assert_exactly_zero(model: nn.Module, optimizer: torch.optim.Optimizer | None, masks: Masks) -> None:
    """In the weights and in every moment; and what stays is not zero."""
    assert masks
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        values = [parameter] if optimizer is None else [parameter, *moments(optimizer, parameter)]
        assert optimizer is None or len(values) > 1
        for value in values:
            assert int(torch.count_nonzero(value[~mask])) == 0, name
        assert bool((parameter[mask] != 0).all()), name


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state[parameter].values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]


def plainly(model: nn.Module, optimizer: torch.optim.Optimizer, _held: Any) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, _held: Any) -> None:
    for number, (x, y) in enumerate(batches()):
        (F.cross_entropy(model(x), y) / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()


def in_bfloat16(model: nn.Module, optimizer: torch.optim.Optimizer, _held: Any) -> None:
    for x, y in batches():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def clipping(model: nn.Module, optimizer: torch.optim.Optimizer, held: Any) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        held.mask_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def with_a_closure(model: nn.Module, optimizer: torch.optim.Optimizer, _held: Any) -> None:
    def closure(x: Tensor, y: Tensor) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return float(loss.detach())

    for batch in batches():
        optimizer.step(partial(closure, *batch))


LOOPS: tuple[Loop, ...] = (plainly, accumulating, in_bfloat16, clipping, with_a_closure)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_masked_is_exactly_zero_after_training(kind: str, loop: Loop) -> None:
    model, masks = sparse()
    before = copy.deepcopy(model)
    optimizer = OPTIMIZERS[kind](model.parameters())
    with hold(model, optimizer, masks) as held:
        loop(model, optimizer, held)
        assert_exactly_zero(model, optimizer, masks)
    assert all(not torch.equal(model.get_parameter(name), before.get_parameter(name)) for name in masks)


def test_gradients_that_are_masked_before_clipping_do_not_count_in_the_norm() -> None:
    model, masks = sparse()
    held = hold(model, OPTIMIZERS["sgd"](model.parameters()), masks)
    (x, y), *_ = batches()
    F.cross_entropy(model(x), y).backward()
    kept = [p.grad[masks[n]] if n in masks else p.grad for n, p in model.named_parameters() if p.grad is not None]
    held.mask_gradients()
    assert nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) == pytest.approx(
        float(torch.cat([g.flatten() for g in kept]).norm())
    )


def test_a_moving_average_of_the_weights_is_as_sparse() -> None:
    model, masks = sparse()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    with hold(model, optimizer, masks):
        for _ in range(3):
            plainly(model, optimizer, None)
            average.update_parameters(model)
    assert_exactly_zero(average.module, None, masks)
    assert not torch.equal(average.module.get_parameter("4.weight"), model.get_parameter("4.weight"))


def test_a_compiled_model_trains_with_the_same_masks() -> None:
    model, masks = sparse()
    twin = copy.deepcopy(model)
    for one, run in ((model, torch.compile(model, backend="aot_eager")), (twin, twin)):
        optimizer = OPTIMIZERS["sgd"](one.parameters())
        with hold(one, optimizer, masks):
            plainly(run, optimizer, None)
            assert_exactly_zero(one, optimizer, masks)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_copies_and_state_dicts_are_ordinary_and_as_sparse() -> None:
    model, masks = sparse()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with hold(model, optimizer, masks):
        plainly(model, optimizer, None)
        twin = copy.deepcopy(model)
        fresh = network()
        fresh.load_state_dict(model.state_dict())
    for other in (twin, fresh):
        assert_exactly_zero(other, None, masks)
        found = masks_of(other)
        assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_a_dense_state_that_is_loaded_while_masks_hold_is_sparse_after_the_next_step() -> None:
    dense = network()
    wide = OPTIMIZERS["adamw"](dense.parameters())
    plainly(dense, wide, None)
    model, masks = sparse()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with hold(model, optimizer, masks):
        model.load_state_dict(dense.state_dict())
        optimizer.load_state_dict(copy.deepcopy(wide.state_dict()))
        plainly(model, optimizer, None)
        assert_exactly_zero(model, optimizer, masks)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_training_that_was_stopped_goes_on_to_the_same_sparse_weights(tmp_path: Path, precision: str) -> None:
    def run(name: str, *hooks: Callable[[TrainingStep], None]) -> nn.Module:
        model, masks = sparse()
        train(
            model, batches(), epochs=3, lr=0.05, masks=masks, hooks=hooks, precision=precision,
            checkpoint=tmp_path / name, progress=False,
        )  # fmt: skip
        return model

    def stop(step: TrainingStep) -> None:
        if step.number == 6:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop)
    parts = run("parts")
    assert_exactly_zero(parts, None, sparse()[1])
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_saved_sparse_model_comes_back_with_its_masks_and_trains_on(tmp_path: Path) -> None:
    found = prune(network(), torch.ones(2, 2, 4, 4), ERK(density=0.2), progress=False)
    train(found.model, batches(), epochs=1, masks=found.masks, progress=False)
    again = load(save(tmp_path / "sparse.safetensors", found), network)
    assert all(torch.equal(again.masks[name], mask) for name, mask in found.masks.items())
    train(again.model, batches(), epochs=1, masks=again.masks, progress=False)
    assert_exactly_zero(again.model, None, found.masks)


WORKER = """
from torch.nn.parallel import DistributedDataParallel
from nervure.training import hold, same_everywhere
from tests.training.test_masks_trust import OPTIMIZERS, batches, sparse

model, masks = sparse()
generator = torch.Generator().manual_seed(rank)
own = {name: torch.rand(mask.shape, generator=generator) < 0.3 for name, mask in masks.items()}
masks = same_everywhere(own)
assert all(torch.equal(masks[n], own[n]) for n in own) == (rank == 0)
optimizer = OPTIMIZERS["adamw"](model.parameters())
spread = DistributedDataParallel(model)
with hold(model, optimizer, masks):
    for x, y in batches()[rank::2]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(spread(x), y).backward()
        optimizer.step()
for name, mask in masks.items():
    assert not model.get_parameter(name)[~mask].any()
    require_same(model.get_parameter(name).detach())
    require_same(mask.to(torch.uint8))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch cannot train in several processes")
def test_two_processes_that_train_together_keep_the_same_masks_and_weights(tmp_path: Path) -> None:
    run_in_two(WORKER, tmp_path)


def test_a_checkpoint_of_another_topology_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model, masks = sparse()
    path = tmp_path / "run"
    train(model, batches(), epochs=1, lr=0.05, masks=masks, checkpoint=path, progress=False)
    shifted = {name: mask.roll(1, 0) for name, mask in masks.items()}
    for others in (shifted, None, {name: masks[name] for name in list(masks)[1:]}):
        fresh, _ = sparse()
        with pytest.raises(FileError, match="began with other masks.*Give the masks of that run"):
            train(fresh, batches(), epochs=1, lr=0.05, masks=others, checkpoint=path, progress=False)
    same = dict(reversed(list(masks.items())))
    again, _ = sparse()
    train(again, batches(), epochs=1, lr=0.05, masks=same, checkpoint=path, progress=False)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("use", ["hold", "train", "save"])
def test_masks_of_a_model_that_was_cut_since_are_refused_by_the_name_of_the_parameter(use: str, tmp_path: Path) -> None:
    model, masks = sparse()
    smaller = prune(model, torch.ones(2, 2, 4, 4), Magnitude(keep=0.5), progress=False, verify=False).model
    with pytest.raises(
        ArgumentError, match=r"mask '0.weight' has shape \(6, 2, 3, 3\), its parameter .*make them anew"
    ):
        if use == "hold":
            hold(smaller, OPTIMIZERS["sgd"](smaller.parameters()), masks)
        elif use == "train":
            train(smaller, batches(), epochs=1, masks=masks, progress=False)
        else:
            save_state(tmp_path / "state", smaller, masks=masks)


def test_an_optimizer_of_before_the_cut_is_refused() -> None:
    model, _ = sparse()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    smaller = prune(model, torch.ones(2, 2, 4, 4), Magnitude(keep=0.5), progress=False, verify=False).model
    with pytest.raises(ArgumentError, match="steps no parameter of this model. Make it after the last cut"):
        hold(smaller, optimizer, {})


def test_a_plan_of_masks_for_another_shape_or_name_is_refused() -> None:
    model, example = network(), torch.ones(2, 2, 4, 4)
    for tensor, shape, told in (("4.weight", (8, 25), "shape"), ("9.weight", (8, 24), "no such tensor")):
        plan = Plan((Mask(tensor, Keep.of(torch.ones(shape, dtype=torch.bool))),))
        with pytest.raises(PlanError, match=told):
            prune(model, example, plan, progress=False)
    with pytest.raises(PlanError, match="must be boolean, got dtype torch.float32"):
        Mask("4.weight", Keep.of(torch.ones(8, 24)))
