"""The pipeline on a GPU, where there is one."""

from pathlib import Path

import pytest
import torch

from nervure import Magnitude, evaluate, hold, latency, load, measure, prune, save, trace, train
from nervure.zoo import build
from nervure.zoo.data import fake

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
