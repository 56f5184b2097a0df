import pytest
import torch
from torch import nn

from nervure.core.inputs import Inputs
from nervure.sparse.dead import without_dead_units
from tests.networks import noise, seeded
from tests.sparse.test_compile import compiled


def cut_dead(model, example):
    return without_dead_units(model, Inputs.of(example))


def widths(model):
    return [tuple(m.weight.shape[:2]) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def without_rows(model, layer, rows):
    with torch.no_grad():
        model.get_submodule(layer).weight[rows] = 0
    return model


ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Softplus, lambda: nn.BatchNorm1d(8), nn.Identity)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_a_dead_unit_says_is_handed_on(activation, bias):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 5, bias=bias)))
    without_rows(model, "0", [1, 4, 5])
    smaller, note = cut_dead(model, noise(4, 6))
    assert widths(smaller) == [(5, 6), (5, 5)] and note == "3 dead units of 1 groups are cut"
    torch.testing.assert_close(smaller(noise(9, 6)), model(noise(9, 6)), rtol=1e-5, atol=1e-6)


def test_the_constant_of_a_dead_unit_has_the_known_value():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    model.load_state_dict(
        {
            "0.weight": torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
            "0.bias": torch.tensor([0.0, 3.0]),
            "2.weight": torch.tensor([[1.0, 10.0]]),
            "2.bias": torch.tensor([5.0]),
        }
    )
    smaller, _ = cut_dead(model, noise(4, 2))
    assert smaller[2].weight.tolist() == [[1]] and smaller[2].bias.tolist() == [5 + 10 * 3]


def test_death_spreads_through_the_layers():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        # Units 0 and 1 of the second layer hear units 0 and 1 of the first only, which hear nothing.
        model[0].weight[:2], model[2].weight[:2, 2:] = 0, 0
    smaller, _ = cut_dead(model, noise(4, 6))
    assert widths(smaller) == [(6, 6), (6, 6), (3, 6)]
    torch.testing.assert_close(smaller(noise(9, 6)), model(noise(9, 6)), rtol=1e-5, atol=1e-6)


class Residual(nn.Module):
    """Two writers of one stream."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.second(x).relu())


def test_a_unit_of_a_sum_is_dead_where_all_its_writers_are():
    model = without_rows(seeded(Residual), "first", [0, 1])
    assert widths(cut_dead(model, noise(4, 6))[0]) == widths(model)
    without_rows(model, "second", [1, 2])
    smaller, _ = cut_dead(model, noise(4, 6))
    assert widths(smaller) == [(7, 6), (7, 7), (3, 7)]
    torch.testing.assert_close(smaller(noise(9, 6)), model(noise(9, 6)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("padding", "left"), [(0, 4), (1, 6)])
def test_at_the_edge_of_a_padded_picture_a_constant_is_none(padding, left):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid(), nn.Conv2d(6, 4, 3, padding=padding)))
    without_rows(model, "0", [0, 3])
    smaller, _ = cut_dead(model, noise(2, 3, 8, 8))
    assert widths(smaller)[0] == (left, 3)
    torch.testing.assert_close(smaller(noise(3, 3, 6, 6)), model(noise(3, 3, 6, 6)), rtol=1e-5, atol=1e-5)


def test_a_dead_unit_that_says_zero_leaves_before_a_padded_convolution_too():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)))
    smaller, _ = cut_dead(without_rows(model, "0", [0, 3]), noise(2, 3, 8, 8))
    assert widths(smaller)[0] == (4, 3)


class Scaled(nn.Module):
    """A stream divided by a number that depends on the sample: a dead unit of it says something else each time."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x) / (1 + x.abs().sum(-1, keepdim=True)))


def test_what_changes_with_the_sample_is_no_constant():
    model = without_rows(seeded(Scaled), "first", [0, 1])
    # Also where the example's samples are all alike.
    for example in (noise(4, 6), noise(1, 6).expand(4, 6)):
        assert widths(cut_dead(model, example)[0]) == [(8, 6), (3, 8)]


class Twice(nn.Module):
    """A reader that is called twice, or two that share a weight, and hear other constants."""

    def __init__(self, *, shared):
        super().__init__()
        self.first, self.last, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        if shared:
            self.other.weight = self.last.weight
        else:
            self.other = self.last

    def forward(self, x):
        x = self.first(x)
        return self.last(x.tanh()) + self.other(x.sigmoid())


@pytest.mark.parametrize("shared", [False, True])
def test_a_weight_that_hears_several_constants_keeps_its_columns(shared):
    model = without_rows(seeded(lambda: Twice(shared=shared)), "first", [0, 1])
    smaller, _ = cut_dead(model, noise(4, 6))
    assert torch.equal(smaller(noise(9, 6)), model(noise(9, 6)))


def test_under_a_norm_over_units_all_stay():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
    assert cut_dead(without_rows(model, "0", [0]), noise(4, 6))[0] is model


def test_a_model_without_dead_units_comes_back_as_it_is():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)))
    assert cut_dead(model, noise(4, 6)) == (model, "")


def test_a_model_that_cannot_be_traced_keeps_its_dead_units_and_that_is_said():
    class Opaque(nn.Sequential):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).numpy().copy())

    model = without_rows(seeded(lambda: Opaque(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))), "0", [0])
    found = compiled(model, noise(4, 6), "sparse", "csr")
    torch.testing.assert_close(found(noise(4, 6)), model.requires_grad_(False)(noise(4, 6)))
