"""Masks hold wherever a model and its optimizer go; where they cannot, hold or the next step says so."""

import copy
import importlib.util
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError, NervureWarning
from nervure.training import hold, masks_of
from nervure.training.masks import Held
from tests.training.processes import run_in_two

Pair = tuple[nn.Module, torch.optim.Optimizer]
MASKED = ("0.weight", "2.weight")


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {name: torch.rand(network().get_parameter(name).shape, generator=generator) < 0.5 for name in MASKED}
    # Every hidden unit is read, so that all that stays can learn.
    found["2.weight"][0] = True
    return found


def inner(model: nn.Module) -> nn.Module:
    for name in ("module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> None:
    generator = torch.Generator().manual_seed(2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4, generator=generator)).square().mean()
        loss.backward()
        return loss

    for _ in range(count):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def assert_held(model: nn.Module, optimizer: Any | None = None) -> None:
    """The weights and everything of their shape in the optimizer's state; what stays has moved."""
    before = network()
    for name, mask in masks().items():
        parameter = inner(model).get_parameter(name)
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for value in (parameter, *state.values()):
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                assert not bool(value.detach().cpu()[~mask].any()), name
        assert bool((parameter.detach().cpu() != before.get_parameter(name))[mask].all()), name


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def held_pair(early: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, Held]:
    model = network()
    optimizer = adam(model)
    return model, optimizer, hold(model, optimizer, masks(), early=early)


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "python's own pickle": lambda value: pickle._loads(pickle._dumps(value, protocol=2)),  # type: ignore[attr-defined]
    "torch.save": saved,
    "a copy of a copy": lambda value: pickle.loads(pickle.dumps(copy.deepcopy(value))),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("stepped", [0, 2])
@pytest.mark.parametrize("early", [False, True])
def test_a_copy_of_model_and_optimizer_is_held_and_the_original_is_left_alone(way, stepped, early):
    model, optimizer, _ = held_pair(early)
    steps(model, optimizer, stepped)
    before = copy.deepcopy(model.state_dict())
    twin, other = COPIES[way]((model, optimizer))
    steps(twin, other)
    assert_held(twin, other)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    steps(model, optimizer)
    assert_held(model, optimizer)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("way", COPIES)
def test_the_handle_of_a_copy_updates_and_frees_the_copy_alone(way):
    model, optimizer, _ = original = held_pair()
    held, other, twin = COPIES[way](original[::-1])
    steps(twin, other)
    held.update({"0.weight": torch.zeros(6, 4, dtype=torch.bool)})
    steps(twin, other)
    assert not bool(twin[0].weight.any())
    held.remove()
    steps(twin, other, 5)
    assert bool(twin[0].weight.all()) and bool(twin[2].weight.all())
    steps(model, optimizer)
    assert_held(model, optimizer)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_an_early_hold_masks_gradients_early_and_once_it_lets_go_no_more(way):
    twin, _, held = COPIES[way](held_pair(early=True))
    twin(torch.ones(2, 4)).sum().backward()
    assert not bool(twin[0].weight.grad[~masks()["0.weight"]].any())
    held.remove()
    twin(torch.ones(2, 4)).sum().backward()
    assert bool(twin[0].weight.grad[~masks()["0.weight"]].any())


def test_a_copy_after_letting_go_is_free():
    model, optimizer, held = held_pair()
    held.remove()
    twin, other = copy.deepcopy((model, optimizer))
    steps(twin, other)
    assert bool(twin[0].weight.all())


def test_hooks_of_others_stay_with_the_original_as_torch_has_it():
    model, optimizer, _ = held_pair()
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    steps(twin, other)
    assert called == []
    steps(model, optimizer)
    assert called == [1, 1, 1]


def test_hooks_that_are_added_to_a_copy_do_not_take_the_place_of_the_masks(monkeypatch):
    model, optimizer, _ = held_pair()
    content = pickle.dumps((model, optimizer))
    # As in a new process, where the numbers of hooks begin again.
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)
    twin, other = pickle.loads(content)
    for _ in range(20):
        other.register_step_post_hook(lambda *_: None)
        other.register_step_pre_hook(lambda *_: None)
    steps(twin, other)
    assert_held(twin, other)
    hold(twin, other, masks())
    twin, other = copy.deepcopy((twin, other))
    steps(twin, other)
    assert_held(twin, other)


def train_in_another_process(model: nn.Module, optimizer: torch.optim.Optimizer, answer: Any) -> None:
    steps(model, optimizer)
    answer.put({name: value.numpy() for name, value in model.state_dict().items()})


def test_what_another_process_is_sent_is_held_there(tmp_path):
    model, optimizer, _ = held_pair()
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=train_in_another_process, args=(model, optimizer, answer))
    process.start()
    found = answer.get(timeout=120)
    process.join()
    twin = network()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in found.items()})
    assert_held(twin)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.DataParallel,
    "compiled and data parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("given", ["none", "inner", "outer"])
def test_a_wrapped_model_is_held_by_either_name(wrapper, given):
    model = network()
    wrapped = WRAPPERS[wrapper](model)
    optimizer = adam(wrapped)
    if given == "none":
        with torch.no_grad():
            for name, mask in masks().items():
                model.get_parameter(name).mul_(mask)
    outer = next(name for name, p in wrapped.named_parameters() if p is model[0].weight).removesuffix("0.weight")
    found = {outer * (given == "outer") + name: mask for name, mask in masks().items()}
    held = hold(wrapped, optimizer, None if given == "none" else found)
    assert held.masks.keys() == found.keys()
    steps(wrapped, optimizer)
    assert_held(model, optimizer)


def test_parts_that_are_compiled_within_a_model_keep_their_plain_names():
    model = network()
    model[0] = torch.compile(model[0], backend="eager")
    optimizer = adam(model)
    hold(model, optimizer, masks())
    steps(model, optimizer)
    assert not bool(model[0]._orig_mod.weight[~masks()["0.weight"]].any())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_model_is_held(alone):
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = adam(model)
    hold(model, optimizer, masks())
    steps(model, optimizer)
    assert_held(model, optimizer)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.parametrize("kind", ["foreach adamw", "adagrad"])
def test_a_sharded_model_is_held(alone, kind):
    model = sharded(network())
    optimizer = OPTIMIZERS[kind](model.parameters())
    held = hold(model, optimizer, masks())
    steps(model, optimizer)
    held.mask_gradients()
    for name, mask in masks().items():
        parameter = model.get_parameter(name)
        moments = [m for m in optimizer.state[parameter].values() if m.shape == parameter.shape]
        assert moments
        for value in (parameter, parameter.grad, *moments):
            assert not bool(value.full_tensor()[~mask].any())
    found = masks_of(model)
    assert {name: bool((found[name] == mask).all()) for name, mask in masks().items()} == dict.fromkeys(MASKED, True)


IN_TWO = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from nervure.training import hold, masks_of
from tests.training.test_masks_of_copies import adam, masks, network, steps

model = network()
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = adam(model)
hold(model, optimizer, masks())
steps(model, optimizer)
for name, mask in masks().items():
    parameter = model.get_parameter(name)
    assert parameter.to_local().shape != mask.shape
    for value in (parameter, *(m for m in optimizer.state[parameter].values() if m.shape == mask.shape)):
        assert torch.equal(value.full_tensor() != 0, mask)
    assert torch.equal(masks_of(model)[name], mask)
    require_same(parameter.full_tensor().detach())
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_a_model_that_is_sharded_over_two_processes_is_held(tmp_path):
    run_in_two(IN_TWO, tmp_path)


def test_a_model_that_is_sharded_after_hold_says_so_at_the_next_step(alone):
    model, optimizer, _ = held_pair()
    sharded(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(ArgumentError, match=r"no longer '0\.weight'.*Call hold again"):
        steps(model, optimizer)


def test_a_sharded_model_says_that_early_does_nothing(alone):
    model = sharded(network())
    with pytest.warns(NervureWarning, match="early=True does nothing"):
        hold(model, adam(model), masks(), early=True)


def test_flattened_weights_are_refused():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Parameter(torch.zeros(10))

    model = nn.Sequential(FullyShardedDataParallel())
    with pytest.raises(ArgumentError, match="'?0'? is a FullyShardedDataParallel.*fully_shard"):
        hold(model, adam(model))


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="Accelerate is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", ["hold", "prepare"])
def test_with_accelerate_masks_hold_whether_before_or_after_prepare(first):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = adam(model)
    if first == "hold":
        hold(model, optimizer, masks())
    model, optimizer = accelerator.prepare(model, optimizer)
    if first == "prepare":
        hold(model, optimizer, masks())
    steps(model, optimizer)
    assert_held(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    steps(twin, other)
    assert_held(twin, other)


class Lookahead(torch.optim.Optimizer):
    """As many are written: without the initialiser of torch's class, around another optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.taken = optimizer, 0
        self.slow = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.taken += 1
        for p, slow in self.slow.items() if self.taken % 3 == 0 else ():
            p.copy_(slow.lerp_(p, 0.5))


def test_a_wrapper_that_moves_weights_after_the_optimizer_does_not_stay_unseen():
    model = network()
    optimizer = Lookahead(adam(model))
    hold(model, optimizer, masks())
    steps(model, optimizer, 3)
    with pytest.warns(NervureWarning, match=r"'0\.weight', '2\.weight': not zero where masks hold, before a step"):
        steps(model, optimizer, 1)


def test_a_second_optimizer_that_hold_does_not_know_does_not_stay_unseen():
    model, optimizer, _ = held_pair()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(model, optimizer, 1)
    steps(model, other, 1)
    with pytest.warns(NervureWarning, match="give hold every optimizer of the model"):
        steps(model, optimizer, 1)
    assert_held(model, optimizer)


def test_masked_parameters_that_the_optimizer_does_not_step_are_named():
    model = network()
    with pytest.warns(NervureWarning, match=r"^'2\.weight': masked, but not among the parameters of the optimizer"):
        hold(model, adam(model[0]), masks())
    model[2].requires_grad_(False)
    hold(model, adam(model[0]), masks())
    model[2].requires_grad_(True)
    both = [adam(model[0]), torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)]
    hold(model, both, masks())
    for optimizer in both:
        steps(model, optimizer)
    assert_held(model, both[0])
    assert_held(model, both[1])


class Plain:
    """An optimizer of a library of its own."""

    def __init__(self, params: Any) -> None:
        self.param_groups, self.state = [{"params": list(params)}], {}

    def step(self) -> None:
        """Move."""


class Uninitialised(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        self.param_groups, self.state = [{"params": list(params)}], {}


@pytest.mark.parametrize("kind", [Plain, Uninitialised])
def test_optimizers_whose_steps_cannot_be_followed_are_refused_by_name(kind):
    model = network()
    with pytest.raises(ArgumentError, match=rf"the steps of .*{kind.__name__} cannot be followed"):
        hold(model, kind(model.parameters()), masks())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "foreach adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, maximize=True),
    "one by one": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_all_kinds_of_optimizers_hold_and_so_do_their_copies(kind):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    hold(model, optimizer, masks())
    steps(model, optimizer)
    assert_held(model, optimizer)
    if kind == "lbfgs":
        pytest.skip("torch makes copies of LBFGS that cannot step")
    twin, other = copy.deepcopy((model, optimizer))
    steps(twin, other)
    assert_held(twin, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="capturable optimizers need a GPU")
def test_a_capturable_optimizer_holds() -> None:
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), capturable=True)
    hold(model, optimizer, masks())
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4, device="cuda")).square().mean().backward()
        optimizer.step()
    assert_held(model, optimizer)


def test_a_closure_that_is_called_many_times_sees_sparse_weights_only():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    hold(model, optimizer, masks())
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(any(bool(model.get_parameter(name)[~mask].any()) for name, mask in masks().items()))
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(seen) > 2 and not any(seen)
    model(torch.ones(2, 4)).sum().backward()
    assert bool(model[2].weight.grad.any())
    assert model[2].weight._post_accumulate_grad_hooks in (None, {})


def test_parameters_that_are_added_to_the_optimizer_later_are_held():
    model = network()
    model[2].requires_grad_(False)
    optimizer = adam(model[0])
    hold(model, optimizer, masks())
    steps(model, optimizer)
    model[2].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.1})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    steps(model, optimizer)
    assert_held(model, optimizer)
    assert list(optimizer.state_dict()["param_groups"][0]) == list(adam(model).state_dict()["param_groups"][0])


def test_states_that_are_loaded_after_hold_are_sparse_after_the_next_step():
    model, optimizer, _ = held_pair()
    dense = network()
    other = adam(dense)
    steps(dense, other)
    model.load_state_dict(dense.state_dict())
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    steps(model, optimizer, 1)
    assert_held(model, optimizer)


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_converted_after_hold_is_held(is_swapped, dtype):
    model, optimizer, _ = held_pair()
    steps(model, optimizer, 1)
    model.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(is_swapped)
    try:
        model.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4, dtype=dtype)).square().mean().backward()
        optimizer.step()
    for name, mask in masks().items():
        assert model.get_parameter(name).dtype == dtype
        assert not bool(model.get_parameter(name)[~mask].any())


def test_parameters_that_are_replaced_in_model_and_optimizer_are_refused_at_the_next_step():
    model, optimizer, _ = held_pair()
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for _ in range(2):
        with pytest.raises(ArgumentError, match="were replaced, so their zeros would grow. Call hold again"):
            steps(model, optimizer)


def test_parameters_that_are_cut_in_place_are_refused_at_the_next_step():
    model, optimizer, _ = held_pair()
    model[0].weight.data, model[0].bias.data = model[0].weight.data[:3], model[0].bias.data[:3]
    model[2].weight.data = model[2].weight.data[:, :3]
    with pytest.raises(ArgumentError, match=r"'0\.weight' has shape \(3, 4\) now, its mask \(6, 4\)"):
        steps(model, optimizer)


def test_freezing_parameters_or_taking_them_from_the_optimizer_is_no_error():
    model, optimizer, _ = held_pair()
    model[0].requires_grad_(False)
    steps(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = list(model[2].parameters())
    steps(model, optimizer)
    assert not bool(model[0].weight[~masks()["0.weight"]].any())
    assert not bool(model[2].weight[~masks()["2.weight"]].any())


def test_two_holds_of_one_model_keep_what_either_leaves_out_and_are_copied_both():
    model, optimizer, first = held_pair()
    other = {name: mask.roll(1, 0) for name, mask in masks().items()}
    hold(model, optimizer, other)
    twin, again = copy.deepcopy((model, optimizer))
    for one, stepper in ((model, optimizer), (twin, again)):
        steps(one, stepper)
        for name in MASKED:
            assert torch.equal(one.get_parameter(name) != 0, masks()[name] & other[name])
    first.remove()
    steps(model, optimizer)
    assert torch.equal(model[0].weight != 0, other["0.weight"])


def test_a_gradient_scaler_steps_through_the_masks():
    model, optimizer, _ = held_pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 4)).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for name, mask in masks().items():
        assert not bool(model.get_parameter(name)[~mask].any())


def test_a_schedule_of_learning_rates_made_for_a_copy_moves_the_copy():
    model, optimizer, _ = held_pair()
    twin, other = copy.deepcopy((model, optimizer))
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(twin, other, 1)
        schedule.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.001)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    steps(twin, other)
    assert_held(twin, other)
