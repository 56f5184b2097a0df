"""The pipeline on a GPU, where there is one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nervure import Magnitude, evaluate, hold, latency, load, measure, prune, save, trace, train
from nervure.dependence import cka, conditional_connectivity, distance_correlation, hsic, mutual_information
from nervure.zoo import build
from nervure.zoo.data import fake
from tests.old_snacs import old_snacs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit_tiny", "densenet40"])
def test_a_model_on_the_gpu_is_pruned_there_and_verified(name: str, tmp_path: Path) -> None:
    model, image = build(name, num_classes=10).cuda(), torch.randn(2, 3, 32, 32)
    pruned = prune(model, image, Magnitude(keep=0.5, budget="macs"))
    assert pruned.verification is not None
    assert all(p.is_cuda for p in pruned.model.parameters())
    path = save(tmp_path / "model.safetensors", pruned)
    again = load(path, model)
    with torch.no_grad():
        found, expected = again.model.eval()(image.cuda()), pruned.model.eval()(image.cuda())
    assert torch.equal(found, expected)


def test_the_graph_is_the_same_on_both_devices() -> None:
    image = torch.randn(1, 3, 32, 32)
    model = build("resnet20", seed=0)
    assert trace(model, image) == trace(build("resnet20", seed=0).cuda(), image)


def test_training_measuring_and_evaluating_run_on_the_gpu() -> None:
    data = fake(samples=256, classes=4, side=16)
    model = build("resnet8", num_classes=4, in_channels=3).cuda()
    history = train(model, data.train.batches(32, device="cuda"), epochs=2, precision="bf16", progress=False)
    assert len(history.loss) == 2
    metrics = evaluate(model, data.test.batches(64), progress=False)
    assert 0 <= metrics.accuracy <= 1
    graph = trace(model, data.example(2))
    stats = measure(model, graph, data.train.batches(32, device="cuda"), progress=False)
    assert stats.samples > 0
    masks = {"fc.weight": torch.rand(model.fc.weight.shape, device="cuda") > 0.5}
    optimizer = torch.optim.AdamW(model.parameters())
    with hold(model, optimizer, masks):
        model(torch.randn(4, 3, 16, 16, device="cuda")).sum().backward()
        optimizer.step()
    assert not model.fc.weight[~masks["fc.weight"]].any()
    times = latency({"one": model, "two": model}, data.example(2).cuda(), seconds=0.1, rounds=3)
    assert times.median("one") > 0


def samples(count: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
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
    theirs = conditional_connectivity(parents.cuda(), children.cuda(), estimator=estimator, bins=4)
    assert theirs.is_cuda
    assert ours.max() > 0.01
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4)
    x, y, given = parents[:, :1], children[:, :1], parents[:, 1:3]
    for others in (None, given):
        here = mutual_information(x, y, given=others, estimator=estimator, bins=4)
        there = None if others is None else others.cuda()
        found = mutual_information(x.cuda(), y.cuda(), given=there, estimator=estimator, bins=4)
        torch.testing.assert_close(found.cpu(), here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("measure_of", [cka, hsic, distance_correlation])
def test_kernels_and_distances_are_the_same_on_both_devices(measure_of: Any) -> None:
    x, y = samples(300)
    torch.testing.assert_close(measure_of(x.cuda(), y.cuda()).cpu(), measure_of(x, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_snacs_plans_on_the_gpu(granularity: Any) -> None:
    data = fake(samples=256, classes=4, side=16)
    model = build("resnet8", num_classes=4, in_channels=3).cuda()
    batches = data.train.batches(64, device="cuda")
    pruned = prune(model, data.example(2), old_snacs(keep=0.7, granularity=granularity), data=batches, progress=False)
    assert pruned.plan.reached["keep"] <= 0.7 + 1e-6
    assert all(p.is_cuda for p in pruned.model.parameters())
