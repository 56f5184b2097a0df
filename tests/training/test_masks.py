import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nervure.errors import ArgumentError, NervureWarning
from nervure.training import hold, masks_of

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "sgd maximize": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.1, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, foreach=True),
    "adam with decay": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True, weight_decay=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "fused adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def some_masks(model, share=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    return {n: torch.rand(p.shape, generator=generator) < share for n, p in weights.items()}


def take_steps(model, optimizer, count):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        x = torch.randn(8, 2, 4, 4, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def assert_zero_where_masked(model, optimizer, masks):
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert torch.equal(parameter[~mask], torch.zeros(int((~mask).sum())))
        for moment in optimizer.state[parameter].values():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                assert not moment[~mask].any()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masked_entries_and_their_moments_are_exactly_zero_after_every_one_of_300_steps(kind):
    model = network()
    masks = some_masks(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = OPTIMIZERS[kind](model.parameters())
    hold(model, optimizer, masks)
    assert_zero_where_masked(model, optimizer, masks)
    for _ in range(6):
        take_steps(model, optimizer, 50)
        assert_zero_where_masked(model, optimizer, masks)
    assert all((model.get_parameter(n)[m] != before[n][m]).all() for n, m in masks.items())


def test_kept_entries_move_as_if_the_masked_inputs_were_never_there():
    torch.manual_seed(0)
    wide, narrow = nn.Linear(4, 2), nn.Linear(2, 2)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:, :2])
        narrow.bias.copy_(wide.bias)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (wide, narrow)]
    mask = torch.tensor([[True, True, False, False]] * 2)
    hold(wide, optimizers[0], {"weight": mask})
    for _ in range(20):
        x = torch.randn(5, 4)
        for model, optimizer, inputs in zip((wide, narrow), optimizers, (x, x[:, :2]), strict=True):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    assert torch.allclose(wide.weight[:, :2], narrow.weight, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*not zero where masks hold")
def test_moments_that_are_replaced_or_laid_out_anew_are_zero_after_the_next_step():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask = torch.ones(4, 4, dtype=torch.bool).triu()
    held = hold(model, optimizer, {"weight": mask})

    def step():
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        assert not model.weight[~mask].any() and not optimizer.state[model.weight]["momentum_buffer"][~mask].any()

    step()
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(4, 4)
    step()
    # The same memory, read in another order.
    model.weight.data = model.weight.data.t().add_(1)
    step()
    model.weight.data = torch.ones(4, 4)
    step()
    assert len(held._veils["weight"]._seen) == 2


def test_gradients_are_whole_until_the_optimizer_steps():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hold(model, optimizer, {"weight": torch.tensor([[True, False, True]])})
    model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad.tolist() == [[2.0, 2.0, 2.0]]


def test_nan_gradients_of_masked_entries_do_no_harm():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask = torch.tensor([[True, False, True]])
    hold(model, optimizer, {"weight": mask})
    model(torch.ones(2, 3)).sum().backward()
    model.weight.grad[0, 1] = float("nan")
    optimizer.step()
    assert model.weight[0, 1] == 0 and torch.isfinite(model.weight).all()


def test_the_model_stays_ordinary_through_deepcopy_and_state_dict():
    model = network()
    names = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    masks = some_masks(model)
    hold(model, optimizer, masks)
    take_steps(model, optimizer, 3)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(twin(x), model(x)) and torch.equal(fresh(x), model(x))
    found = masks_of(twin)
    assert found.keys() == masks.keys() and all(torch.equal(found[n], masks[n]) for n in masks)


def test_rewiring_zeroes_what_leaves_and_lets_what_returns_start_at_zero_without_momentum():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    held = hold(model, optimizer, {"weight": torch.tensor([[True, False]])})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    held.update({"weight": torch.tensor([[False, True]])})
    assert model.weight.tolist() == [[0.0, 0.0]]
    assert not optimizer.state[model.weight]["momentum_buffer"].any()
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert model.weight[0].tolist() == pytest.approx([0.0, -0.1])


def test_a_refused_update_leaves_the_old_masks_holding():
    model = nn.Linear(2, 1)
    mask = torch.tensor([[True, False]])
    held = hold(model, torch.optim.SGD(model.parameters(), lr=0.1), {"weight": mask})
    with pytest.raises(ArgumentError):
        held.update({"weight": torch.ones(3, 3, dtype=torch.bool)})
    assert torch.equal(held.masks["weight"], mask)


def test_masks_are_copied_and_cannot_be_replaced_behind_the_back():
    model = nn.Linear(2, 1)
    mask = torch.tensor([[True, False]])
    held = hold(model, torch.optim.SGD(model.parameters(), lr=0.1), {"weight": mask})
    mask[:] = True
    assert held.masks["weight"].tolist() == [[True, False]]
    with pytest.raises(TypeError):
        held.masks["weight"] = mask


def test_after_letting_go_weights_move_again():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hold(model, optimizer, {"weight": torch.tensor([[True, False]])}) as held:
        pass
    held.remove()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert model.weight[0, 1] != 0


def test_tied_weights_are_held_under_either_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hold(model, optimizer, {"b.weight": torch.eye(2, dtype=torch.bool)})
    model["a"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert model["a"].weight[0, 1] == 0 and model["a"].weight[0, 0] != 0


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"wieght": torch.ones(1, 2, dtype=torch.bool)}, "Did you mean 'weight'"),
        ({"weight": torch.ones(2, 1, dtype=torch.bool)}, r"shape \(2, 1\).*\(1, 2\)"),
        ({"weight": torch.ones(1, 2)}, "torch.float32.*bool"),
        ({"weight": [[True, False]]}, "masks is a mapping from a text to a torch.Tensor"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(masks, words):
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with pytest.raises(ArgumentError, match=words):
        hold(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
    assert torch.equal(model.weight, before)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ArgumentError, match="steps no parameter of this model"):
        hold(nn.Linear(2, 1), torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), {})


def test_masks_of_a_model_leave_biases_and_dense_weights_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0, 1] = 0
    assert {n: m.tolist() for n, m in masks_of(model).items()} == {"0.weight": [[True, False], [True, True]]}
    assert masks_of(model, only=["1.bias"])["1.bias"].tolist() == [False, False]
    with pytest.raises(ArgumentError, match=r"Did you mean '2.weight'"):
        masks_of(model, only=["2.wieght"])


def test_in_one_line_a_sparse_model_keeps_its_zeros_and_the_rest_learns():
    model = network()
    masks = some_masks(model)
    hold(model, torch.optim.SGD(model.parameters(), lr=0.1), masks).remove()
    before = copy.deepcopy(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    held = hold(model, optimizer)
    assert held.masks.keys() == masks.keys()
    take_steps(model, optimizer, 20)
    assert_zero_where_masked(model, optimizer, masks)
    assert all((model.get_parameter(n)[m] != before.get_parameter(n)[m]).all() for n, m in masks.items())
    assert (model[3].bias != before[3].bias).all()


def test_a_dense_model_has_no_zeros_to_keep_and_is_refused():
    model = network()
    with pytest.raises(ArgumentError, match=r"no weight of this model holds a zero.*Give masks"):
        hold(model, torch.optim.SGD(model.parameters(), lr=0.1))
    hold(model, torch.optim.SGD(model.parameters(), lr=0.1), {})


def test_a_matrix_of_zeros_is_left_free_with_a_warning_unless_it_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:, 1] = 0
        model[1].weight.zero_()
    with pytest.warns(NervureWarning, match=r"'1.weight': zero throughout.*only="):
        held = hold(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert held.masks.keys() == {"0.weight"}
    assert not masks_of(model, only=["1.weight"])["1.weight"].any()


def test_a_few_zeros_by_accident_are_held_too_unless_least_says_what_counts_as_sparse():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    with torch.no_grad():
        model[0].weight[0, 0] = 0
        model[1].weight[:, ::2] = 0
    assert masks_of(model).keys() == {"0.weight", "1.weight"}
    assert masks_of(model, least=0.01).keys() == masks_of(model, least=0.5).keys() == {"1.weight"}
    assert not masks_of(model, least=0.51)
    with pytest.raises(ArgumentError, match=r"least=1.0.: least is .* in \[0, 1\)"):
        masks_of(model, least=1.0)


def test_early_zeroes_gradients_with_the_backward_pass_until_it_lets_go():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = hold(model, optimizer, {"weight": torch.tensor([[True, False, True]])}, early=True)
    for _ in range(2):
        model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad.tolist() == [[4.0, 0.0, 4.0]]
    held.update({"weight": torch.tensor([[False, True, True]])})
    optimizer.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad.tolist() == [[0.0, 2.0, 2.0]]
    twin = copy.deepcopy(model)
    twin(torch.ones(2, 3)).sum().backward()
    held.remove()
    optimizer.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad.tolist() == twin.weight.grad.tolist() == [[2.0, 2.0, 2.0]]


class Normed(torch.optim.Optimizer):
    """A step of length one over all entries: what is masked would shorten that of the others."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / p.grad.norm())


def test_optimizers_whose_entries_see_each_other_do_not_see_what_is_masked():
    model = nn.Linear(3, 1, bias=False)
    optimizer = Normed(model.parameters())
    hold(model, optimizer, {"weight": torch.tensor([[True, False, False]])})
    before = model.weight[0, 0].item()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert model.weight[0].tolist() == pytest.approx([before - 1, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
def test_masked_bits_are_zero_in_every_precision_and_in_any_layout(dtype):
    model = nn.ParameterDict({"weight": torch.empty(4, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)})
    weight, mask = model["weight"], torch.rand(4, 4, 3, 3) < 0.5
    with torch.no_grad():
        weight.fill_(-float("inf"))
        weight[0, 0] = float("nan")
    kept = weight.detach()[mask].clone()
    hold(model, torch.optim.SGD(model.parameters(), lr=0.1), {"weight": mask})
    raw = torch.view_as_real(weight.detach()) if dtype.is_complex else weight.detach()
    assert not raw[~mask].contiguous().view(torch.uint8).any()
    assert torch.allclose(weight.detach()[mask], kept, equal_nan=True)
