"""Masks of every weight that multiplies: recurrent layers, stacks of experts, weights that are computed from others."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from nervure import ERK, SNIP, GraSP, MagnitudeMasks, Pruned, RigL, SynFlow, Wanda, hold, prune, train
from nervure.errors import NervureWarning
from nervure.methods.masks.activation_norm import input_norms
from nervure.tracing import trace


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0].mean(1))


class Experts(nn.Module):
    """Three experts in one tensor each way, as ``bmm`` and ``einsum`` want them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 8)), nn.Parameter(torch.randn(3, 8, 6))
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bti,eio->ebto", x, self.up).relu()
        return self.out(torch.bmm(hidden.flatten(1, 2), self.down).unflatten(1, x.shape[:2]).mean((0, 2)))


class Normed(nn.Module):
    """Weights that are divided by norms: of outputs, and of inputs (a transposed convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(6, 8))
        self.second = parametrizations.weight_norm(nn.ConvTranspose1d(8, 8, 3))
        self.third, self.out = parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu().mT).mT
        return self.out(self.third(x).relu().mean(1))


class Conv1D(nn.Module):
    """A linear layer whose weight is inputs by outputs, as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).unflatten(0, x.shape[:-1])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = Conv1D(6, 8), Conv1D(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x).relu().mean(1))


NETS: tuple[type[nn.Module], ...] = (Speech, Experts, Normed, Reader)
METHODS: tuple[Any, ...] = (
    MagnitudeMasks(density=0.3), MagnitudeMasks(density=0.3, guard="none"), Wanda(density=0.3), SNIP(density=0.3),
    GraSP(density=0.3), SynFlow(density=0.3, steps=3), ERK(density=0.3), MagnitudeMasks(density=0.4, guard="units"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _same_chance() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def example() -> Tensor:
    return torch.randn(4, 5, 6)


def batches(number: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(example(), torch.randint(5, (4,))) for _ in range(number)]


def masked(model: nn.Module, method: Any) -> Pruned:
    return prune(model.eval(), example(), method, data=batches(), progress=False)


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """All parameters that multiply: those of two axes or more, but for the lengths that norms give their weights."""
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("original0")}


@pytest.mark.sampled(times=1)
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("net", NETS)
def test_the_density_is_that_of_all_matrices_that_multiply(net: type[nn.Module], method: Any) -> None:
    found = masked(net(), method)
    there = matrices(found.model)
    whole = sum(weight.numel() for weight in there.values())
    stay = sum(int(weight.count_nonzero()) for weight in there.values())
    assert found.masks.keys() <= there.keys()
    assert stay == round(method.density * whole)
    assert found.plan.reached["density"] == stay / whole
    assert all(bool(torch.isfinite(out).all()) for out in (found.model(example()), found.model.train()(example())))


@pytest.mark.parametrize("net", NETS)
def test_zeros_stay_through_training_in_weights_and_moments(net: type[nn.Module]) -> None:
    found = masked(net(), MagnitudeMasks(density=0.3))
    model = found.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    hold(model, optimizer, found.masks)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, mask in found.masks.items():
        parameter = model.get_parameter(name)
        moments = [v for v in optimizer.state[parameter].values() if v.shape == parameter.shape]
        assert all(int(v[~mask].count_nonzero()) == 0 for v in (parameter.detach(), *moments))


def test_behind_a_norm_the_weight_that_multiplies_is_zero_where_its_direction_is_masked() -> None:
    found = masked(Normed(), MagnitudeMasks(density=0.3))
    for layer in (found.model.first, found.model.second, found.model.third):
        name = next(n for n in ("original1", "original") if hasattr(layer.parametrizations.weight, n))
        direction = getattr(layer.parametrizations.weight, name)
        assert torch.equal(layer.weight == 0, direction == 0)


def test_behind_a_norm_what_multiplies_is_ranked_not_its_direction() -> None:
    layer = parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original1[0].mul_(100)  # of no consequence: the length says how large it is
    found = prune(layer, torch.randn(2, 6), MagnitudeMasks(density=0.5, guard="none"), progress=False)
    (mask,) = found.masks.values()
    assert 0 < int(mask[0].sum()) < 6


def test_what_a_mask_of_its_own_has_left_out_goes_first_and_is_counted_as_gone() -> None:
    layer = torch_prune.random_unstructured(nn.Linear(10, 8), "weight", 0.5)
    for method in (ERK(density=0.3), MagnitudeMasks(density=0.3)):
        found = prune(layer, torch.randn(2, 10), method, progress=False)
        found.model(torch.randn(2, 10))
        assert int(found.model.weight.count_nonzero()) == 24
    wide = prune(layer, torch.randn(2, 10), MagnitudeMasks(density=0.75), progress=False)
    assert wide.plan.reached["density"] == 0.5


def test_wanda_hears_every_step_of_a_recurrent_layer_and_what_each_expert_is_given() -> None:
    gru, x = nn.GRU(6, 8, batch_first=True).eval(), example()
    norms = input_norms(gru, trace(gru, x).products, [x], 4)
    states = torch.cat([torch.zeros(4, 1, 8), gru(x)[0][:, :-1]], 1).detach().flatten(0, 1)
    assert torch.allclose(norms["weight_ih_l0"].float(), x.flatten(0, 1).norm(dim=0).expand(24, 6), rtol=1e-5)
    assert torch.allclose(norms["weight_hh_l0"].float(), states.norm(dim=0).expand(24, 8), rtol=1e-5)
    experts = Experts().eval()
    norms = input_norms(experts, trace(experts, x).products, [x], 4)
    hidden = torch.einsum("bti,eio->ebto", x, experts.up).relu().detach().flatten(1, 2)
    assert torch.allclose(norms["down"].float(), hidden.norm(dim=1).repeat_interleave(6, 0), rtol=1e-5)


def test_what_cannot_be_masked_is_named_with_its_share_and_counted() -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)

    model = nn.Sequential(Standardised(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.warns(NervureWarning, match=r"0\.weight \(60\.0%: .*\) stay dense"):
        found = prune(model, torch.randn(2, 6), MagnitudeMasks(density=0.5), progress=False)
    assert found.masks.keys() == {"2.weight"}
    assert found.plan.reached["density"] == (48 + 16) / 80
    assert "0.weight (60.0%" in found.plan.reached["dense"]


def test_layers_of_other_multiples_are_named_and_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    found = prune(model, torch.randn(2, 6), MagnitudeMasks(density=0.5, granularity="2:4"), progress=False)
    assert found.plan.reached == {"density": (48 + 16) / 80, "weights": 16, "dense": "0.weight (60.0%)"}


@pytest.mark.parametrize("net", NETS)
def test_rewiring_keeps_norms_and_counts(net: type[nn.Module]) -> None:
    found = masked(net(), RigL(density=0.3, events=3))
    history = train(found.model, batches(4), epochs=3, lr=0.01, masks=found.masks, hooks=[RigL(density=0.3, events=3)])
    kept = sum(int(mask.sum()) for mask in history.masks.values())
    assert kept == sum(int(mask.sum()) for mask in found.masks.values())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in found.model.parameters())


def test_the_weight_norm_of_before_can_be_masked_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Conv1d(6, 8, 3))
    found = prune(layer, torch.randn(2, 6, 5), MagnitudeMasks(density=0.25), progress=False)
    found.model(torch.randn(2, 6, 5))
    assert found.masks.keys() == {"weight_v"}
    assert int(found.model.weight.count_nonzero()) == 36
