import pytest
import torch
from torch import nn

from nervure.errors import ArgumentError, DataError
from nervure.training import recalibrate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.Linear(4, 2))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, generator=generator) + 5, torch.zeros(8, dtype=torch.long)) for _ in range(count)]


def test_statistics_become_the_plain_average_over_batches():
    model, data = network(), batches(5)
    assert recalibrate(model, data) == 5
    hidden = torch.stack([model[0](x) for x, _ in data]).detach()
    assert torch.allclose(model[1].running_mean, hidden.mean((0, 1)), atol=1e-5)
    assert torch.allclose(model[1].running_var, hidden.var(1).mean(0), atol=1e-5)


def test_no_more_batches_than_asked_are_used_and_nothing_else_changes():
    model, twin = network(), network()
    model[1].eval()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    assert recalibrate(model, batches(5), batches=2) == 2
    recalibrate(twin, batches(2))
    assert torch.equal(model[1].running_mean, twin[1].running_mean)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert [m.training for m in model.modules()] == modes and model[1].momentum == 0.3


def test_failure_brings_the_old_statistics_back():
    model = network()
    recalibrate(model, batches(2))
    before = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.raises(DataError, match="no batch"):
        recalibrate(model, [])
    with pytest.raises(DataError, match="NaN or infinite"):
        recalibrate(model, [(torch.full((4, 3), float("nan")), torch.zeros(4))])
    with pytest.raises(ArgumentError):
        recalibrate(model, batches(1), batches=0)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers()) and model[1].momentum == 0.3


def test_a_model_without_batch_norms_stays_as_it_is():
    assert recalibrate(nn.Linear(3, 2), []) == 0
