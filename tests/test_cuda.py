"""What a device can change, on a GPU where there is one: the same numbers, kept where they are, and no waiting.

``NERVURE_TEST_DEVICE=cpu`` runs all of it on the CPU, to see that the tests themselves are right; ``second`` runs it on
a device of the processor's own memory that is as strict as a GPU, see ``tests/second_device``.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from nervure import (
    SNACS,
    Compensated,
    Depth,
    Energy,
    Fisher,
    Magnitude,
    MagnitudeMasks,
    RigL,
    Taylor,
    Wanda,
    evaluate,
    hold,
    latency,
    load,
    measure,
    prune,
    refit,
    save,
    trace,
    train,
    verify,
)
from nervure.core.late import STEPS_LATE
from nervure.dependence import cka, conditional_connectivity, distance_correlation, hsic, mutual_information
from nervure.distributed import share
from nervure.evaluation.memory import peak_memory
from nervure.export import load_state, save_state
from nervure.tasks import move_batch
from nervure.zoo import build
from nervure.zoo.data import fake
from tests.old_snacs import old_snacs
from tests.second_device import chosen, is_there

DEVICE = chosen()
ON_GPU = DEVICE.type == "cuda"
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.skipif(not is_there(DEVICE), reason="no GPU on this machine"),
    # Of torch's compiler, which warns of parts of torch.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
compiles = pytest.mark.skipif(DEVICE.type not in ("cuda", "cpu"), reason="torch compiles nothing for this device")
needs_a_gpu = pytest.mark.skipif(not ON_GPU, reason="graphs and warnings of CUDA")


@pytest.fixture(autouse=True)
def from_the_start() -> None:
    """This file runs without the settings of the others, too."""
    torch.manual_seed(0)


DATA = fake(samples=256, classes=4, side=16)
MODELS = ["resnet20", "mobilenetv2", "vit_tiny", "densenet40"]


def small(device: torch.device = DEVICE) -> nn.Module:
    """A residual network that has learnt a little, the same each time."""
    return build("resnet8", seed=0, num_classes=4, in_channels=3).to(device)


def batches(device: torch.device = DEVICE, size: int = 32) -> Any:
    return DATA.train.batches(size, device=device)


def assert_lives(model: nn.Module, device: torch.device = DEVICE) -> None:
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {device.type}


def copy_to(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return batch[0].to(device), batch[1].to(device)


# -- trace, prune, verify, save, load -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_where_it_is_verified_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, image = build(name, num_classes=10).to(DEVICE), torch.randn(2, 3, 32, 32)
    pruned = prune(model, image, Magnitude(keep=0.5, budget="macs"))
    assert pruned.verification is not None
    assert_lives(pruned.model)
    path = save(tmp_path / "model.safetensors", pruned)
    again = load(path, model)
    assert_lives(again.model)
    with torch.no_grad():
        found, expected = again.model.eval()(image.to(DEVICE)), pruned.model.eval()(image.to(DEVICE))
    assert torch.equal(found, expected)
    # What was saved here is read where there is no GPU.
    elsewhere = load(path, build(name, num_classes=10)).model.eval()
    assert_lives(elsewhere, CPU)
    with torch.no_grad():
        torch.testing.assert_close(elsewhere(image), expected.cpu(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_and_the_plan_are_the_same_on_both_devices(name: str) -> None:
    image = torch.randn(1, 3, 32, 32)
    here, there = build(name, seed=0), build(name, seed=0).to(DEVICE)
    # Operators may be others: attention is one on one device, and a few on the other.
    ours, theirs = (replace(trace(model, image), work=(), memory=()) for model in (here, there))
    assert theirs == ours
    method = Magnitude(keep=0.5, budget="macs")
    assert prune(there, image, method).plan == prune(here, image, method).plan


def test_a_wrong_cut_is_found_there() -> None:
    model, image = small(), DATA.example(2).to(DEVICE)
    pruned = prune(model, image, Magnitude(keep=0.5))
    assert verify(model, pruned, image).ok
    with torch.no_grad():
        pruned.model.fc.weight.add_(0.5)
    with pytest.raises(Exception, match="differs from the original"):
        verify(model, pruned, image)


@pytest.mark.parametrize("method", [Energy(drop=1), MagnitudeMasks(density=0.2), Wanda(density=0.5), Fisher(keep=0.6)])
def test_other_edits_are_made_there(method: Any) -> None:
    pruned = prune(small(), DATA.example(2), method, data=batches(), progress=False)
    assert pruned.verification is not None or pruned.unverified
    assert_lives(pruned.model)
    assert all(mask.device == CPU for mask in pruned.masks.values())
    hold(pruned.model, torch.optim.SGD(pruned.model.parameters(), lr=0.1), pruned.masks)


def test_a_plan_for_a_latency_is_timed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pruned = prune(small(), DATA.example(8), Depth(budget="latency", latency=0.9), data=batches(), progress=False)
    assert pruned.plan.drops
    assert_lives(pruned.model)


# -- measuring, refit, SNACS ----------------------------------------------------------------------------------------


def test_what_is_measured_is_the_same_on_both_devices() -> None:
    graph = trace(small(CPU), DATA.example(1))
    here = measure(small(CPU), graph, batches(CPU), progress=False)
    there = measure(small(), graph, batches(), progress=False)
    assert here.samples == there.samples
    for name, values in here.activations.items():
        torch.testing.assert_close(there.activations[name].cpu(), values, rtol=1e-3, atol=1e-4)


def test_refit_fits_there_as_it_does_here() -> None:
    found = {}
    for device in (CPU, DEVICE):
        model = small(device)
        pruned = prune(model, DATA.example(2), Magnitude(keep=0.5), progress=False)
        again = refit(pruned, batches(device), reference=model, progress=False).result.model.eval()
        assert_lives(again, device)
        with torch.no_grad():
            found[device] = again(DATA.test.images[:32].float().div(255).to(device)).cpu()
    torch.testing.assert_close(found[DEVICE], found[CPU], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "method",
    [
        SNACS(keep=0.6),
        SNACS(keep=0.6, limits=True),
        Compensated(keep=0.6),
        Taylor(keep=0.6),
        old_snacs(keep=0.7, granularity="kernels"),
        old_snacs(keep=0.7, granularity="filters"),
    ],
    ids=["costs of answers", "limits", "compensated", "taylor", "kernels", "filters"],
)
def test_methods_that_measure_plan_there(method: Any) -> None:
    pruned = prune(small(), DATA.example(2), method, data=batches(size=64), progress=False)
    assert pruned.plan.edits
    assert_lives(pruned.model)


def test_what_answers_lose_is_the_same_on_both_devices() -> None:
    plans = []
    for device in (CPU, DEVICE):
        pruned = prune(
            small(device), DATA.example(2), SNACS(keep=0.5), data=batches(device), refit=False, progress=False
        )
        plans.append({cut.group: int(cut.keep.tensor().sum()) for cut in pruned.plan.cuts})
    assert plans[0].keys() == plans[1].keys()
    assert abs(sum(plans[0].values()) - sum(plans[1].values())) <= 2


def samples(count: int = 800) -> tuple[Tensor, Tensor]:
    """Six parents that know of one another, and four children of theirs."""
    generator = torch.Generator().manual_seed(2)
    parents = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    parents += 0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    mixing = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return parents, (parents @ mixing).relu() + 0.3 * torch.randn(count, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["residual", "gaussian", "hash", "mst"])
def test_dependence_is_the_same_on_both_devices(estimator: Any) -> None:
    parents, children = (values[:150] if estimator == "mst" else values for values in samples())
    ours = conditional_connectivity(parents, children, estimator=estimator, bins=4)
    theirs = conditional_connectivity(parents.to(DEVICE), children.to(DEVICE), estimator=estimator, bins=4)
    assert theirs.device.type == DEVICE.type
    assert ours.max() > 0.01
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4)
    x, y, given = parents[:, :1], children[:, :1], parents[:, 1:3]
    for others in (None, given):
        here = mutual_information(x, y, given=others, estimator=estimator, bins=4)
        there = None if others is None else others.to(DEVICE)
        found = mutual_information(x.to(DEVICE), y.to(DEVICE), given=there, estimator=estimator, bins=4)
        torch.testing.assert_close(found.cpu(), here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("measure_of", [cka, hsic, distance_correlation])
def test_kernels_and_distances_are_the_same_on_both_devices(measure_of: Any) -> None:
    x, y = samples(300)
    torch.testing.assert_close(measure_of(x.to(DEVICE), y.to(DEVICE)).cpu(), measure_of(x, y), rtol=1e-5, atol=1e-6)


# -- training -------------------------------------------------------------------------------------------------------


def test_training_evaluating_and_timing_run_there() -> None:
    model = small()
    history = train(model, batches(), epochs=2, precision="bf16", validation=batches(), progress=False)
    assert len(history.loss) == len(history.validation) == 2
    # Batches that are elsewhere follow the model.
    metrics = evaluate(model, DATA.test.batches(64), progress=False)
    assert 0 <= metrics.accuracy <= 1
    times = latency({"one": model, "two": model}, DATA.example(2).to(DEVICE), seconds=0.1, rounds=3)
    assert times.median("one") > 0
    assert peak_memory(model, DATA.example(2)).activations > 0


def test_batches_from_pinned_memory_train_as_batches_that_are_there() -> None:
    losses = [train(small(), list(batches(device)), epochs=2, progress=False).loss for device in (CPU, DEVICE)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    moved = move_batch({"x": torch.arange(6.0), "names": ["a"]}, DEVICE)
    assert moved["x"].device.type == DEVICE.type
    assert moved["x"].tolist() == list(range(6))


def test_a_run_that_was_stopped_goes_on_there(tmp_path: Path) -> None:
    whole, parts = small(), small()
    train(whole, batches(), epochs=3, progress=False)

    def stop(point: Any) -> None:
        if point.kind == "epoch" and point.epoch == 1:
            raise KeyboardInterrupt

    how = {"epochs": 3, "progress": False, "checkpoint": tmp_path / "run.safetensors"}
    with pytest.raises(KeyboardInterrupt):
        train(parts, batches(), callbacks=[stop], **how)
    train(parts, batches(), **how)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    path = save_state(tmp_path / "state.safetensors", whole)
    assert_lives(load_state(path, small()))


def test_a_loss_that_is_no_number_is_found_and_named() -> None:
    data = [(torch.randn(8, 3, 16, 16), torch.randint(4, (8,))) for _ in range(6)]
    data[2][0][0] = float("nan")
    with pytest.raises(Exception, match=r"nan at step 2 .*inputs of this batch"):
        train(small(), data, progress=False)
    labels = torch.tensor([0, 1, 2, 3, 9, 0, 1, 2])
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 16, 16), labels), 4)
    with pytest.raises(Exception, match=r"label 9 is out of range"):
        train(small(), loader, progress=False)
    # The device is still of use: no kernel was let loose on that label.
    assert float(torch.ones(2, device=DEVICE).sum()) == 2


def test_a_process_group_of_one_changes_nothing(tmp_path: Path) -> None:
    alone = train(small(), batches(), epochs=1, progress=False)
    kind = "nccl" if ON_GPU else "gloo"
    torch.distributed.init_process_group(
        kind, store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model, data = small(), share(batches())
        measured = measure(model, trace(model, DATA.example(1)), data, progress=False)
        pruned = prune(model, DATA.example(2), Magnitude(keep=0.5), data=data, refit=True, progress=False)
        assert_lives(pruned.model)
        assert measured.samples > 0
        assert train(model, data, epochs=1, progress=False).loss == pytest.approx(alone.loss, rel=1e-3)
    finally:
        torch.distributed.destroy_process_group()


def test_topologies_change_there() -> None:
    history = train(small(), batches(), epochs=2, hooks=[RigL(density=0.3)], progress=False)
    assert history.masks
    assert all(mask.device.type == DEVICE.type for mask in history.masks.values())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adam, capturable": lambda p: torch.optim.Adam(p, lr=1e-3, capturable=ON_GPU),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


@pytest.mark.sampled(share=0.2, times=0)
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masks_hold_in_mixed_precision_and_in_fused_optimizers(kind: str, precision: str) -> None:
    model = small().train()
    masks = {name: torch.rand_like(p) > 0.7 for name, p in model.named_parameters() if p.ndim > 1}
    optimizer, scaler = (
        OPTIMIZERS[kind](model.parameters()),
        torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16"),
    )
    lower = {"float32": nullcontext, "bf16": lambda: torch.autocast(DEVICE.type, torch.bfloat16)}
    lower["fp16"] = lambda: torch.autocast(DEVICE.type, torch.float16)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    with hold(model, optimizer, masks):
        for x, y in batches():
            optimizer.zero_grad()
            with lower[precision]():
                loss = F.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        assert not weight[~mask].any()
        assert (weight[mask] != before[name][mask]).any()
        for moment in optimizer.state[model.get_parameter(name)].values():
            assert moment.shape != mask.shape or not moment[~mask].any()


@compiles
def test_masks_hold_through_a_compiled_step() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).to(DEVICE)
    masks = {"0.weight": torch.rand(64, 32, device=DEVICE) > 0.7}
    optimizer = torch.optim.AdamW(model.parameters())
    hold(model, optimizer, masks)
    compiled = torch.compile(model)
    for _ in range(3):
        optimizer.zero_grad()
        compiled(torch.randn(16, 32, device=DEVICE)).square().mean().backward()
        optimizer.step()
    assert not model[0].weight[~masks["0.weight"]].any()


# -- compiled, and as a graph ---------------------------------------------------------------------------------------


@compiles
def test_a_smaller_model_compiles_there() -> None:
    pruned = prune(small().eval(), DATA.example(2), Magnitude(keep=0.5)).model.eval()
    x = DATA.example(8).to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(pruned)(x), pruned(x), rtol=1e-2, atol=1e-2)


@needs_a_gpu
def test_a_smaller_model_is_captured_as_a_graph() -> None:
    pruned = prune(small().eval(), DATA.example(2), Magnitude(keep=0.5)).model.eval()
    x, graph, side = DATA.example(8).to(DEVICE), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(side):
            pruned(x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            out = pruned(x)
        graph.replay()
        torch.testing.assert_close(out, pruned(x), rtol=1e-3, atol=1e-3)


# -- no waiting -----------------------------------------------------------------------------------------------------


class _Reads(TorchDispatchMode):
    """Counts numbers that are read."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _reads(steps: int, mode: str) -> int:
    """How often a training of so many steps looks at a number, or waits."""
    data = [(torch.randn(8, 3, 16, 16, device=DEVICE), torch.randint(4, (8,), device=DEVICE)) for _ in range(steps)]
    model, loader = small(), _Loader(data)
    if mode == "reads":
        with _Reads() as reads:
            train(model, loader, progress=False)
        return reads.count
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(model, loader, progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


class _Loader:
    """Batches that are not looked through before, as those of a list are."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


@pytest.mark.parametrize("mode", ["reads", pytest.param("waits", marks=needs_a_gpu)])
def test_a_step_looks_at_one_number_at_most_and_waits_for_none(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.training.loop.steps_late", lambda place: STEPS_LATE)
    few, many = _reads(4, mode), _reads(12, mode)
    # The loss is read from the processor's memory, two steps after it was ordered.
    assert many - few <= (8 if mode == "reads" else 0)


@needs_a_gpu
def test_what_is_traced_and_verified_is_not_rounded_to_ten_bits() -> None:
    before = torch.backends.cudnn.allow_tf32
    seen = set[bool]()
    model = small().eval()
    model.conv1.register_forward_pre_hook(lambda *_: seen.add(torch.backends.cudnn.allow_tf32))
    prune(model, DATA.example(2), Magnitude(keep=0.5))
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 == before


def test_copies_stay_there() -> None:
    pruned = prune(small(), DATA.example(2), Magnitude(keep=0.5))
    assert_lives(copy.deepcopy(pruned.model))
