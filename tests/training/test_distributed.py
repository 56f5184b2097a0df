"""Two processes that share the data do what one does that has all of it. One start of both, one test for each law."""

import json
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import nervure
import nervure.distributed
from nervure.core import collectives
from nervure.core.collectives import done_by_first
from nervure.distributed import reduce_over, share
from nervure.errors import ArgumentError, DataError, NervureError, NervureWarning, PlanError, TraceError
from nervure.export import load_state, save_state
from nervure.methods import SNIP, Magnitude, MagnitudeMasks, RigL, Synthesis, Taylor
from nervure.refit import Refit
from nervure.stats import Stats
from nervure.zoo import load
from tests.training.processes import run_in_two

CLOSE = 1e-5


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 16), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(16, 10)).eval()


def normed() -> nn.Module:
    model = network()
    return nn.Sequential(model[0], nn.BatchNorm2d(8), *model[1:]).eval()


def pictures(count: int = 500, size: int = 48) -> list[tuple[Tensor, Tensor]]:
    """Fashion-MNIST, in batches of even and odd sizes."""
    split = load("fashion-mnist-subset").train
    x, y = split.normalise(split.images[:count]), split.labels[:count]
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(count: int = 400) -> Any:
    x, y = (torch.cat(parts) for parts in zip(*pictures(count), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=45, shuffle=True)


def gap(first: nn.Module, second: nn.Module) -> float:
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in states)


def evidence(stats: Stats) -> dict[str, Tensor]:
    kinds = ("activations", "gradients", "moments", "effects", "readings", "connections", "blocks", "shifts", "routing")
    found = {f"{kind} {name}": tensor for kind in kinds for name, tensor in getattr(stats, kind).items()}
    return found | {name: getattr(stats, name) for name in ("labels", "outputs") if getattr(stats, name) is not None}


def require_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() and first
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=CLOSE, atol=CLOSE, msg=name)


def same_everywhere(*tensors: Tensor) -> bool:
    flat = torch.cat([t.detach().double().reshape(-1) for t in tensors])
    both = [torch.empty_like(flat) for _ in range(2)]
    torch.distributed.all_gather(both, flat)
    return torch.equal(*both)


LAWS: dict[str, Callable[[int, Path], None]] = {}


def law(function: Callable[[int, Path], None]) -> Callable[[int, Path], None]:
    LAWS[function.__name__] = function
    return function


@law
def measured_evidence_is_that_of_one_process(rank: int, folder: Path) -> None:
    model, data = network(), pictures(200, 33)
    graph = nervure.trace(model, data[0][0])
    want = {"activations", "gradients", "effects", "readings", "connections", "outputs", "labels"}
    for samples in (2048, 77):
        with reduce_over(None):
            one = nervure.measure(model, graph, data, want=want, samples=samples)
        two = nervure.measure(model, graph, share(data), want=want, samples=samples)
        assert one.samples == two.samples == min(samples, 200) and one.skipped == two.skipped
        require_close(evidence(one), evidence(two))


@law
def a_distributed_sampler_gives_the_same_evidence(rank: int, folder: Path) -> None:
    from torch.utils.data.distributed import DistributedSampler

    model, data = network(), loader(200).dataset
    graph = nervure.trace(model, data[0][0][None])
    mine = torch.utils.data.DataLoader(data, batch_size=20, sampler=DistributedSampler(data, shuffle=False))
    whole = torch.utils.data.DataLoader(data, batch_size=40)
    with reduce_over(None):
        one = nervure.measure(model, graph, whole, want={"activations", "labels"})
    require_close(evidence(one), evidence(nervure.measure(model, graph, mine, want={"activations", "labels"})))


@law
def training_is_that_of_one_process(rank: int, folder: Path) -> None:
    data = loader()
    for how in ({}, {"optimizer": "adamw", "lr": 1e-3}, {"sharpness": nervure.training.SAM()}):
        options: dict[str, Any] = {"lr": 0.05, "epochs": 2, "progress": False} | how
        one, two = network(), network(seed=rank)
        with reduce_over(None):
            alone = nervure.train(one, data, validation=data, **options)
        history = nervure.train(two, share(data), validation=share(data), **options)
        assert gap(one, two) < CLOSE and alone.steps == history.steps
        assert history.loss == pytest.approx(alone.loss, abs=CLOSE)
        assert history.validation == pytest.approx(alone.validation, abs=1e-9)
        assert same_everywhere(*two.parameters())


@law
def tokens_count_and_not_samples(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 20, (40, 7))
    labels = torch.where(torch.arange(7) < torch.randint(1, 8, (40, 1)), words % 3, -100)
    data = [{"x": w, "labels": la} for w, la in zip(words.split(10), labels.split(10), strict=True)]
    models = []
    task = nervure.tasks.token_classification()
    for seed in (0, rank):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3)))
    with reduce_over(None):
        nervure.train(models[0], data, task=task, epochs=2, progress=False)
    nervure.train(models[1], share(data), task=task, epochs=2, progress=False)
    assert gap(*models) < CLOSE


@law
def rewiring_is_that_of_one_process(rank: int, folder: Path) -> None:
    data = loader()
    options: dict[str, Any] = {"epochs": 2, "lr": 0.05, "progress": False}
    # One decides by gradients, which the training has averaged; the other by what flows, which the hook averages.
    flowing = Synthesis(density=0.5, start=0.3, events=4, strength="activation", drop="activation", pool=1.0)
    for method in (RigL(density=0.3, events=4), flowing):
        one, two = network(), network(seed=rank)
        with reduce_over(None):
            alone = nervure.train(one, data, hooks=[method], **options)
        history = nervure.train(two, share(data), hooks=[method], **options)
        assert sum(event.grown for event in history.events) > 0
        assert all(torch.equal(mask, history.masks[name]) for name, mask in alone.masks.items())
        assert gap(one, two) < CLOSE and same_everywhere(*two.parameters())


@law
def a_training_that_was_stopped_goes_on_to_the_same_weights(rank: int, folder: Path) -> None:
    def stop(step: Any) -> None:
        if step.number == 13:
            raise KeyboardInterrupt

    data, whole, parts = loader(), network(), network(seed=rank)
    options: dict[str, Any] = {"epochs": 3, "lr": 0.05, "progress": False}
    nervure.train(whole, share(data), hooks=[RigL(density=0.3, events=4)], **options)
    with pytest.raises(KeyboardInterrupt):
        hooks: list[Any] = [RigL(density=0.3, events=4), stop]
        nervure.train(parts, share(data), hooks=hooks, checkpoint=folder / "run", **options)
    torch.distributed.barrier()
    again = network(seed=5 + rank)
    hooks = [RigL(density=0.3, events=4), lambda step: None]
    history = nervure.train(again, share(data), hooks=hooks, checkpoint=folder / "run", **options)
    assert history.interrupted and gap(whole, again) == 0 and same_everywhere(*again.parameters())


@law
def what_norms_have_counted_is_the_same_everywhere(rank: int, folder: Path) -> None:
    model = normed()
    before = model[1].running_mean.clone()
    nervure.train(model, share(pictures()), epochs=1, lr=0.05, progress=False)
    assert not torch.equal(before, model[1].running_mean)
    assert same_everywhere(*model.parameters(), *model.buffers())


@law
def plans_and_refits_are_those_of_one_process(rank: int, folder: Path) -> None:
    data, dense = pictures(), normed()
    for method in (Magnitude(keep=0.5), Taylor(keep=0.5)):
        options: dict[str, Any] = {"refit": Refit(samples=300, positions=10_000), "verify": False, "progress": False}
        with reduce_over(None):
            one = nervure.prune(dense, data[0][0][:2], method, data=data, **options)
        two = nervure.prune(dense, data[0][0][: 2 + rank], method, data=share(data), **options)
        assert one.plan.edits == two.plan.edits
        assert one.plan.reached["refit"]["samples"] == two.plan.reached["refit"]["samples"] == 225
        assert gap(one.model, two.model) < CLOSE and same_everywhere(*two.model.parameters())


@law
def plans_that_ask_the_network_are_the_same_everywhere(rank: int, folder: Path) -> None:
    data = share(pictures())
    masks = nervure.prune(network(), pictures()[0][0][:2], SNIP(density=0.3), data=data, progress=False).masks
    assert masks and same_everywhere(*(torch.as_tensor(keep.cpu()) for keep in masks.values()))


@law
def evaluations_are_those_of_one_process(rank: int, folder: Path) -> None:
    model, data = network(), pictures()
    task = nervure.tasks.classification()
    with reduce_over(None):
        one, named = nervure.evaluate(model, data), nervure.evaluate(model, data, task=task)
    two = nervure.evaluate(model, share(data))
    assert (one.accuracy, one.per_class, one.samples) == (two.accuracy, two.per_class, two.samples)
    assert two.loss == pytest.approx(one.loss, abs=CLOSE) and two.ece == pytest.approx(one.ece, abs=CLOSE)
    assert nervure.evaluate(model, share(data), task=task) == pytest.approx(named, abs=CLOSE)


@law
def data_that_are_no_share_are_evaluated_alone(rank: int, folder: Path) -> None:
    if rank == 0:
        assert nervure.evaluate(network(), pictures()).samples == 500
        assert nervure.evaluate(network(), pictures(), task=nervure.tasks.classification())["loss"] > 0
    pairs = [(x, int(y)) for xs, ys in pictures() for x, y in zip(xs, ys, strict=True)]
    dealt = DataLoader(pairs, batch_size=25, sampler=DistributedSampler(pairs, shuffle=False))
    assert len(dealt) == 10
    assert nervure.evaluate(network(), dealt).samples == 500


@law
def one_process_may_work_alone(rank: int, folder: Path) -> None:
    model, example = network(), pictures()[0][0]
    if rank == 0:
        with reduce_over(None):
            assert nervure.prune(model, example, Magnitude(keep=0.5), progress=False).masks is not None
    with pytest.raises(ArgumentError, match=r"group=3 is no process group.*None to work alone"):
        reduce_over(3)


@law
def who_waits_says_for_what_and_who_calls_something_else_is_told(rank: int, folder: Path) -> None:
    with patch.object(collectives, "PATIENCE", 0.2), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if rank == 1:
            time.sleep(1)
        collectives.meet("measure")
        time.sleep(0.3)
    said = [str(one.message) for one in caught if one.category is NervureWarning]
    told = ["process 0 has waited 0.2 s for the others to call measure as well."] if rank == 0 else []
    assert [one.partition(" All ")[0] for one in said] == told
    with pytest.raises(ArgumentError, match=r"process 0 has prune, process 1 has train\. All processes call the same"):
        collectives.meet("train" if rank else "prune")


@law
def times_are_the_same_everywhere(rank: int, folder: Path) -> None:
    row = nervure.latency({"dense": network()}, pictures()[0][0][:1], seconds=0, rounds=3).rows[0]
    assert row.median > 0 and same_everywhere(torch.tensor([row.median, *row.quartiles]))


@law
def what_the_first_cannot_do_no_process_waits_for(rank: int, folder: Path) -> None:
    with pytest.raises(NervureError, match="no model" if rank == 0 else "process 0 failed.*no model") as error:
        done_by_first(_fail, list, list)
    assert isinstance(error.value, ArgumentError) == (rank == 0)


def _fail() -> list[Any]:
    raise ArgumentError("there is no model")


@law
def what_cannot_be_shared_is_refused_everywhere(rank: int, folder: Path) -> None:
    data, model = pictures(), network()
    with pytest.raises(ArgumentError, match=r"process 0 has 1 epochs of 11 .*process 1 has 1 epochs of 10 .*share"):
        nervure.train(model, data[rank:], epochs=1, progress=False)
    masks = {"4.weight": torch.rand(16, 128, generator=torch.Generator().manual_seed(rank)) > 0.5}
    with pytest.raises(ArgumentError, match="process 1 has masks .*same_everywhere"):
        nervure.train(model, data, epochs=1, masks=masks, progress=False)
    other = network(seed=rank)
    for ask in (
        lambda: nervure.evaluate(other, share(data)),
        lambda: nervure.measure(other, nervure.trace(other, data[0][0]), share(data)),
        lambda: nervure.prune(other, data[0][0], Magnitude(keep=0.5), progress=False),
        lambda: nervure.refit(other, share(data), reference=network(1), progress=False),
    ):
        with pytest.raises(ArgumentError, match=r"process 1 has weights .*send_model"):
            ask()
    nervure.distributed.send_model(other)
    assert gap(other, network()) == 0
    with pytest.raises(ArgumentError, match="samples=1 is less than the 2 processes"):
        nervure.measure(model, nervure.trace(model, data[0][0]), data, samples=1)
    with pytest.raises(ArgumentError, match=r"steps=5 trains branches in one process.*steps=0"):
        nervure.refit(model, data, reference=network(1), how=Refit(steps=5), progress=False)
    with pytest.raises(ArgumentError, match="smallest looks for an amount in one process.*reduce_over"):
        nervure.smallest(model, Magnitude(), data=data)
    with pytest.raises(DataError, match="batch 1 has 1 samples for 2 processes.*drop_last"):
        list(share([(torch.ones(4, 2), torch.ones(4)), (torch.ones(1, 2), torch.ones(1))]))


class Routed(nn.Module):
    """Three equal experts, of which each sample goes through one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out, way = torch.zeros_like(x), x[:, 0].long()
        for number, expert in enumerate(self.experts):
            if bool((way == number).any()):
                out[way == number] = expert(x[way == number])
        return out


@law
def layers_that_others_do_not_run_are_not_added_up(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    dense, model = Routed(), Routed()
    model.load_state_dict(dense.state_dict())
    with torch.no_grad():
        for expert in model.experts:
            expert[2].weight[:, :3] = 0
    batches = [torch.rand(30, 4) for _ in range(3)]
    for batch in batches:
        batch[:, 0] = torch.tensor([0.5, 1.5 + rank] * 15)
    with pytest.raises(ArgumentError, match=r"process 1 has layers .*first batches run through different layers"):
        nervure.refit(model, batches, reference=dense, progress=False)


@law
def every_type_of_tensor_is_sent(rank: int, folder: Path) -> None:
    kinds = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int16, torch.int64, torch.bool, torch.complex64)
    mine = [torch.full((2, 3), rank).to(kind).t() for kind in kinds] + [torch.tensor(rank, dtype=torch.int64)]
    collectives.send_first(mine)
    assert all(not bool(tensor.float().abs().sum()) for tensor in mine if not tensor.is_complex())


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in list(model.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def forget(module: nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.detach().zero_()


def halved() -> nervure.Pruned:
    return nervure.prune(network(), pictures()[0][0][:2], Magnitude(keep=0.5), progress=False)


@law
def shards_hold_masks_through_five_hundred_steps(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = fully_shard(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), mesh=init_device_mesh("cpu", (2,)))
    masks = {"0.weight": torch.rand(8, 6) > 0.5, "2.weight": torch.rand(3, 8) > 0.7}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    nervure.training.hold(model, optimizer, masks)
    before = {name: model.get_parameter(name).full_tensor().clone() for name in masks}
    zeros = [int((model.get_parameter(name).to_local() == 0).sum()) for name in masks]
    for step in range(500):
        optimizer.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2 * step + rank))
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
        assert zeros == [int((model.get_parameter(name).to_local() == 0).sum()) for name in masks]
    for name, mask in masks.items():
        assert model.get_parameter(name).to_local().shape != mask.shape
        whole = model.get_parameter(name).full_tensor()
        assert torch.equal(whole != 0, mask) and not torch.equal(whole, before[name])
        assert torch.equal(nervure.training.masks_of(model)[name], mask)


@law
def training_in_shards_is_training_the_whole(rank: int, folder: Path) -> None:
    data, dense, parts = pictures(384), network(), sharded(network())
    masks = {"4.weight": torch.rand(16, 128, generator=torch.Generator().manual_seed(0)) > 0.5}
    options: dict[str, Any] = {"epochs": 2, "lr": 0.05, "masks": masks, "progress": False}
    with reduce_over(None):
        alone = nervure.train(dense, data, validation=data, **options)
    history = nervure.train(parts, share(data), validation=share(data), **options)
    assert history.loss == pytest.approx(alone.loss, abs=CLOSE) and history.validation == alone.validation
    together = nervure.distributed.put_together(parts, network(1))
    assert gap(dense, together) < CLOSE and not bool(together[4].weight[~masks["4.weight"]].any())


@law
def tensor_parallel_shards_hold_masks_and_train_as_the_whole(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def mlp() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    # All processes of such a mesh see the same samples.
    samples = [
        (torch.randn(4, 6, generator=torch.Generator().manual_seed(i)), torch.tensor([0, 1, 2, 0])) for i in range(5)
    ]
    masks = {"0.weight": torch.rand(8, 6) > 0.5, "2.weight": torch.rand(3, 8) > 0.5}
    options: dict[str, Any] = {"epochs": 3, "lr": 0.1, "masks": masks, "progress": False}
    alone, parts = mlp(), mlp()
    parallelize_module(parts, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    with reduce_over(None):
        expected = nervure.train(alone, samples, **options)
    assert nervure.train(parts, samples, **options).loss == pytest.approx(expected.loss, abs=CLOSE)
    together = nervure.distributed.put_together(parts, mlp())
    assert gap(alone, together) < CLOSE < gap(together, mlp())
    for name, mask in masks.items():
        assert parts.get_parameter(name).to_local().shape != mask.shape
        assert torch.equal(together.get_parameter(name) != 0, mask)
    with pytest.raises(TraceError, match="is sharded.*Prune the whole model first"):
        nervure.trace(parts, samples[0][0])


@law
def weights_beside_sharded_layers_are_put_back_as_shards(rank: int, folder: Path) -> None:
    # The norm is no layer's: the root puts it together in a forward pass, and holds it so afterwards.
    model, dense, data = sharded(normed()), normed(), pictures(96)
    graph = nervure.trace(dense, data[0][0])
    for look in (
        lambda m: nervure.measure(m, graph, share(data), want={"activations"}),
        lambda m: nervure.evaluate(m, share(data)).accuracy,
        lambda m: nervure.tasks.guess(m, data[0]),
    ):
        model(data[0][0])
        look(model)
        look(model)
        torch.testing.assert_close(model(data[0][0]), dense(data[0][0]))
    nervure.train(model, share(data), lr=0.05, progress=False)
    assert gap(nervure.distributed.put_together(model, normed()), dense) > 0


@law
def shards_are_measured_and_evaluated(rank: int, folder: Path) -> None:
    model, data = network(), pictures(200, 33)
    graph = nervure.trace(model, data[0][0])
    want = {"activations", "gradients", "effects", "readings", "connections", "outputs"}
    require_close(*(evidence(nervure.measure(m, graph, share(data), want=want)) for m in (model, sharded(network()))))
    # One process is done with its share a batch before the other.
    assert nervure.measure(sharded(network()), graph, share(data), samples=33).samples in (32, 33)
    assert nervure.evaluate(sharded(network()), share(data)) == nervure.evaluate(model, share(data))


@law
def a_cut_model_is_sharded_trained_and_saved_whole(rank: int, folder: Path) -> None:
    pruned = halved()
    sharded(pruned.model)
    nervure.train(pruned.model, share(pictures(200)), lr=0.05, progress=False)
    nervure.save(folder / "cut.safetensors", pruned)
    save_state(folder / "state.safetensors", pruned.model)
    together = nervure.distributed.put_together(pruned.model, halved().model)
    with reduce_over(None):
        again = nervure.load(folder / "cut.safetensors", network())
        assert gap(again.model, together) == 0 and gap(together, halved().model) > 0
        assert gap(load_state(folder / "state.safetensors", halved().model), together) == 0
    if rank == 0:
        save_state(folder / "together.safetensors", together)


@law
def shards_are_put_together_cut_and_sharded_again(rank: int, folder: Path) -> None:
    parts, graph, plan = sharded(network()), halved().graph, halved().plan
    whole = nervure.distributed.put_together(parts, network(1))
    smaller = sharded(nervure.apply(whole, graph, plan))
    x = pictures()[0][0][:3]
    torch.testing.assert_close(smaller(x), halved().model(x))


def edits_of_all_kinds() -> tuple[nn.Module, nervure.Graph, nervure.Plan]:
    """A network with residual branches and norms, and a plan that cuts, masks and drops."""
    from nervure import zoo

    torch.manual_seed(0)
    model = zoo.build("resnet8", in_channels=1, width=0.5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 1, 28, 28)
    cut = nervure.prune(model, x, Magnitude(keep=0.6), progress=False)
    block = next(block.name for block in cut.graph.blocks if not block.pinned)
    mask = next(name for name, tensor in model.named_parameters() if tensor.dim() == 4)
    keep = nervure.plan.Keep.of(torch.rand(model.get_parameter(mask).shape) > 0.5)
    edits = (*cut.plan.edits, nervure.Mask(mask, keep), nervure.Drop(block))
    return model, cut.graph, nervure.Plan(edits, cut.graph.fingerprint)


@law
def shards_are_cut_one_tensor_at_a_time(rank: int, folder: Path) -> None:
    from torch.distributed.tensor import DTensor

    model, graph, plan = edits_of_all_kinds()
    expected = nervure.apply(model, graph, plan)
    whole, held = DTensor.full_tensor, list[weakref.ref[Tensor]]()

    def one_at_a_time(self: DTensor, **options: Any) -> Tensor:
        assert not any(earlier() is not None for earlier in held)
        found = whole(self, **options)
        held.append(weakref.ref(found))
        return found

    smaller = sharded(nervure.apply(edits_of_all_kinds()[0].to("meta"), graph, plan)).to_empty(device="cpu")
    with patch.object(DTensor, "full_tensor", one_at_a_time):
        parts = sharded(edits_of_all_kinds()[0])
        assert nervure.distributed.cut_shards(parts, graph, plan, smaller) is smaller
    assert len(held) > 8
    for (name, left), right in zip(smaller.named_parameters(), expected.parameters(), strict=True):
        assert left.to_local().numel() < right.numel() or right.numel() < 2
        assert torch.equal(left.full_tensor(), right), name
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(smaller.eval()(x), expected(x))
    # What is not sharded is filled alike.
    alone = nervure.distributed.cut_shards(
        parts, graph, plan, nervure.apply(edits_of_all_kinds()[0], graph, plan).apply(forget)
    )
    assert gap(alone, expected) == 0
    nervure.train(smaller, share(pictures(96)), lr=0.05, progress=False)
    save_state(folder / "cut.safetensors", smaller)
    with reduce_over(None):
        assert gap(load_state(folder / "cut.safetensors", expected), alone) > 0


@law
def tensor_parallel_shards_are_planned_and_cut(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def mlp(device: str = "cpu") -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).to(device)

    def parallel(model: nn.Module) -> nn.Module:
        return parallelize_module(
            model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
        )

    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    graph, parts = nervure.trace(mlp("meta"), x.to("meta")), parallel(mlp())
    method = Magnitude(keep=0.6, multiple=2)
    plan = nervure.distributed.plan_shards(parts, graph, method)
    expected = nervure.prune(mlp(), x, method, progress=False)
    assert plan.edits == expected.plan.edits and plan.edits
    smaller = parallel(nervure.apply(mlp("meta"), graph, plan)).to_empty(device="cpu")
    nervure.distributed.cut_shards(parts, graph, plan, smaller)
    torch.testing.assert_close(smaller(x), expected.model(x))


@law
def shards_are_planned_as_the_whole(rank: int, folder: Path) -> None:
    data, model = pictures(200, 33), network()
    graph = nervure.trace(network().to("meta"), data[0][0].to("meta"))
    methods = (Magnitude(keep=0.5), Taylor(keep=0.5), MagnitudeMasks(density=0.3))
    for method in methods:
        expected = nervure.prune(model, data[0][0], method, data=share(data), progress=False)
        plan = nervure.distributed.plan_shards(sharded(network()), graph, method, share(data))
        assert plan.edits == expected.plan.edits and plan.edits, method
    with pytest.raises(ArgumentError, match=r"SNIP.* no process has it.*such as Magnitude, Taylor"):
        nervure.distributed.plan_shards(sharded(network()), graph, SNIP(density=0.5), share(data))
    with pytest.raises(DataError, match="measures effects: give data="):
        nervure.distributed.plan_shards(sharded(network()), graph, Taylor(keep=0.5))


@law
def shards_are_cut_into_what_the_plan_leaves_only(rank: int, folder: Path) -> None:
    parts, pruned = sharded(network()), halved()
    given = (parts, pruned.graph, pruned.plan)
    with pytest.raises(ArgumentError, match=r"'0.weight' has shape \(8, 1, 5, 5\) in smaller; the plan leaves"):
        nervure.distributed.cut_shards(*given, network())
    with pytest.raises(ArgumentError, match="'0.weight' of smaller is on the meta device.*then to_empty"):
        nervure.distributed.cut_shards(*given, halved().model.to("meta"))
    larger = nn.Sequential(*halved().model, nn.Linear(10, 2))
    with pytest.raises(ArgumentError, match="smaller has '7.weight', which the plan does not leave"):
        nervure.distributed.cut_shards(*given, larger)
    with pytest.raises(PlanError, match="the graph is of another model"):
        nervure.distributed.cut_shards(sharded(normed()), *given[1:], halved().model)
    spectral = network()
    torch.nn.utils.parametrizations.spectral_norm(spectral[4])
    cut = nervure.prune(spectral, pictures()[0][0][:2], Magnitude(keep=0.5), progress=False)
    with pytest.raises(PlanError, match="computes weights from norms.*before it is sharded"):
        nervure.distributed.cut_shards(spectral, cut.graph, cut.plan, cut.model)


@law
def a_plan_made_on_shapes_is_applied_before_weights_come(rank: int, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    pruned, empty = halved(), network().to("meta")
    assert nervure.trace(empty, pictures()[0][0][:2].to("meta")).fingerprint == pruned.graph.fingerprint
    smaller = sharded(nervure.apply(empty, pruned.graph, pruned.plan)).to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(smaller, pruned.model.state_dict() if rank == 0 else {}, options=options)
    x = pictures()[0][0][:3]
    torch.testing.assert_close(smaller(x), pruned.model(x))


@law
def what_shards_cannot_do_is_refused_with_the_way_out(rank: int, folder: Path) -> None:
    parts, data, pruned = sharded(network()), pictures(100), halved()
    out = r"before fully_shard; or put the weights together first"
    with pytest.raises(TraceError, match="is sharded.*Prune the whole model first"):
        nervure.prune(parts, data[0][0], Magnitude(keep=0.5), progress=False)
    with pytest.raises(PlanError, match=f"apply needs whole weights.*{out}.*nervure.distributed.cut_shards"):
        nervure.apply(parts, pruned.graph, pruned.plan)
    with pytest.raises(ArgumentError, match=f"refit needs whole weights.*{out}"):
        nervure.refit(parts, share(data), reference=network(), progress=False)
    with pytest.raises(ArgumentError, match=f"timing 'parts' in one process needs whole weights.*{out}"):
        nervure.latency({"parts": parts}, data[0][0])
    with pytest.raises(ArgumentError, match=r"RigL.* rewires whole weights.*DistributedDataParallel"):
        nervure.train(parts, share(data), hooks=[RigL(density=0.3, events=1)], progress=False)
    with pytest.raises(ArgumentError, match=r"run' takes whole tensors.*torch.distributed.checkpoint"):
        nervure.train(parts, share(data), checkpoint=folder / "run", progress=False)
    with pytest.raises(ArgumentError, match=r"'0.weight' has shape .* in the sharded model.*Give one like it"):
        nervure.distributed.put_together(parts, pruned.model)
    with pytest.raises(ArgumentError, match="model is sharded, too"):
        nervure.distributed.put_together(parts, parts)


SCRIPT = """
from tests.training.test_distributed import run_laws
from pathlib import Path
run_laws(rank, Path(where).parent)
"""


def run_laws(rank: int, folder: Path) -> None:
    """Note of each law how it ended, as text; empty where it holds."""
    told = {}
    for name, function in LAWS.items():
        (folder / name).mkdir(exist_ok=True)
        try:
            function(rank, folder / name)
            told[name] = ""
        except Exception:
            told[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, str]]:
    """For each process what became of each law."""
    if not torch.distributed.is_available():
        pytest.skip("this torch cannot train in several processes")
    run_in_two(SCRIPT, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", LAWS)
def test_in_two_processes(told: list[dict[str, str]], name: str) -> None:
    for rank, found in enumerate(told):
        assert not found[name], f"process {rank}: {found[name]}"


def test_what_shards_wrote_is_read_whole_in_one_process(told: list[dict[str, str]], folder: Path) -> None:
    place = folder / "a_cut_model_is_sharded_trained_and_saved_whole"
    loaded = nervure.load(place / "cut.safetensors", network()).model
    expected = load_state(place / "together.safetensors", halved().model)
    assert gap(loaded, expected) == 0 and gap(loaded, halved().model) > 0
