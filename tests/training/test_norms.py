import pytest
import torch
from torch import nn

from nervure import SNIP, Energy, GraSP, prune, tasks
from nervure.errors import ArgumentError, DataError
from nervure.training import recalibrate
from nervure.zoo import build


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


def test_batches_count_by_their_samples_and_empty_ones_do_not():
    model, (large, small) = network(), batches(2)
    small = (small[0][:3], small[1][:3])
    empty = (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert recalibrate(model, [empty, large, small]) == 2
    hidden = [model[0](x).detach() for x, _ in (large, small)]
    assert torch.allclose(model[1].running_mean, torch.cat(hidden).mean(0), atol=1e-5)
    assert torch.allclose(model[1].running_var, (8 * hidden[0].var(0) + 3 * hidden[1].var(0)) / 11, atol=1e-5)


@pytest.mark.parametrize("place", [0, 2])
def test_a_batch_of_one_sample_has_no_variance_and_is_passed_by(place):
    model, same, data = network(), network(), batches(2)
    recalibrate(same, data)
    single = (torch.randn(1, 3), torch.zeros(1, dtype=torch.long))
    assert recalibrate(model, [*data[:place], single, *data[place:]]) == 3
    assert torch.equal(model[1].running_mean, same[1].running_mean)
    assert torch.equal(model[1].running_var, same[1].running_var)


def test_batches_that_all_hold_one_value_are_refused_and_one_picture_is_enough():
    model, image = network(), nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    before = model[1].running_mean.clone()
    with pytest.raises(DataError, match="larger batches"):
        recalibrate(model, [(x[:1], y[:1]) for x, y in batches(3)])
    assert torch.equal(model[1].running_mean, before) and model[1].momentum == 0.3
    picture = torch.randn(1, 1, 8, 8)
    assert recalibrate(image, [(picture, torch.zeros(1))]) == 1
    assert torch.allclose(image[1].running_mean, image[0](picture).mean((0, 2, 3)), atol=1e-6)
    assert image[1].training


def test_a_norm_that_the_data_do_not_reach_keeps_its_statistics():
    model = network()
    model.aside = nn.BatchNorm1d(2)
    model.aside.running_mean.fill_(3.0)
    model.forward = lambda x: model[1](model[0](x))
    recalibrate(model, batches(2))
    assert torch.equal(model.aside.running_mean, torch.full((2,), 3.0))


@pytest.mark.parametrize(
    "method", [SNIP(density=0.5, statistics="batch"), GraSP(density=0.5), Energy(drop=1)], ids=repr
)
def test_methods_survive_a_last_batch_of_one_sample(method):
    model = build("resnet8", in_channels=1, width=0.25).eval()
    data = [(torch.randn(n, 1, 8, 8), torch.arange(n) % 10) for n in (20, 20, 1)]
    assert prune(model, data[0][0][:2], method, data=data, progress=False).plan.edits


def test_pictures_without_boxes_count_as_well():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images, targets=None):
            return self.norm(torch.stack(images))

    def target(boxes):
        return {"boxes": torch.zeros(boxes, 4), "labels": torch.zeros(boxes, dtype=torch.long)}

    data = [([torch.rand(3, 4, 4) + k] * 2, [target(k), target(1)]) for k in (0, 1)]
    model = Detector()
    assert recalibrate(model, data, task=tasks.detection()) == 2
    expected = torch.stack([images[0].mean((1, 2)) for images, _ in data]).mean(0)
    assert torch.allclose(model.norm.running_mean, expected, atol=1e-5)
