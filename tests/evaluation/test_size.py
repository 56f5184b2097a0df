import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from nervure.evaluation import file_size
from nervure.evaluation.size import distinct_tensors


def test_the_size_is_that_of_the_file(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    save_file(model.state_dict(), tmp_path / "m")
    assert file_size(model) == (tmp_path / "m").stat().st_size


def test_tied_weights_count_once(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    free = file_size(model)
    model[1].weight = model[0].weight
    assert free - file_size(model) >= 8 * 8 * 4
    assert list(distinct_tensors(model.state_dict())) == ["0.weight", "0.bias", "1.bias"]
    save_model(model, str(tmp_path / "m"))
    assert abs((tmp_path / "m").stat().st_size - file_size(model)) < 64  # save_model notes the tie in the header


def test_strided_overlapping_and_empty_tensors_are_sized():
    model = nn.Module()
    whole = torch.arange(12.0).reshape(3, 4)
    for name, value in {"a": whole.t(), "b": whole[:2], "c": torch.zeros(0), "d": torch.zeros(0)}.items():
        model.register_buffer(name, value)
    found = distinct_tensors(model.state_dict())
    assert list(found) == ["a", "b", "c", "d"] and torch.equal(found["a"], whole.t())
    assert file_size(model) > (12 + 8) * 4


def test_half_precision_takes_half():
    model = nn.Linear(64, 64)
    full = file_size(model)
    assert full - file_size(model.half()) == 65 * 64 * 2


def test_what_is_sized_can_be_loaded(tmp_path):
    model = nn.Linear(3, 2)
    save_file(distinct_tensors(model.state_dict()), tmp_path / "m")
    model.load_state_dict(load_file(tmp_path / "m"))
