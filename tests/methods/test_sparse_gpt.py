"""SparseGPT against the paper's algorithm written down step by step, and against magnitude with the same update."""

import pytest
import torch
from torch import Tensor, nn

from nervure import MagnitudeMasks, Refit, SparseGPT, Wanda, prune
from nervure.budget.layer_ratios import hill_exponent
from nervure.errors import ArgumentError, BudgetError, DataError
from nervure.refit import obs_update
from nervure.refit.surgeon import obs_select


def naive(weight: Tensor, gram: Tensor, density: float, width: int, most: tuple[int, int] | None = None) -> Tensor:
    """Algorithm 1 with the inverse of what is left of the Gram made anew for each column; the mask."""
    left, kept = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    inverses = [torch.linalg.inv(gram[j:, j:]) for j in range(columns)]
    together = most[1] if most else width
    for j in range(columns):
        if j % together == 0:
            ahead = range(j, min(j + together, columns))
            costs = torch.stack([left[:, k] ** 2 / inverses[k][0, 0] for k in ahead], 1)
            if most:
                order = costs.argsort(1, descending=True)[:, : most[0]]
                chosen = torch.zeros_like(costs, dtype=torch.bool).scatter_(1, order, True)
            else:
                flat = costs.reshape(-1).argsort(descending=True)[: round(density * costs.numel())]
                chosen = torch.zeros(costs.numel(), dtype=torch.bool).index_fill_(0, flat, True).reshape(costs.shape)
            kept[:, j : j + len(ahead)] = chosen
        error = torch.where(kept[:, j], 0.0, left[:, j] / inverses[j][0, 0])
        left[:, j:] -= error[:, None] * inverses[j][0]
    return kept


def layer(seed: int, outputs: int = 8, inputs: int = 256, samples: int = 1024) -> tuple[Tensor, Tensor]:
    """Weights and inputs that have to do with one another, [samples, inputs]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, inputs)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x


def one_layer(weight: Tensor, bias: bool = False) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(weight.shape[1], len(weight), bias=bias)).double().eval()
    net[0].weight.data.copy_(weight)
    return net


def gram_of(x: Tensor) -> Tensor:
    gram = x.T @ x
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


@pytest.mark.parametrize("most", [None, (2, 4)])
def test_the_mask_is_that_of_the_paper_column_by_column(most: tuple[int, int] | None) -> None:
    weight, x = layer(0)
    granularity = "2:4" if most else "element"
    method = SparseGPT(density=0.5, granularity=granularity, guard="none", samples=len(x))
    found = prune(one_layer(weight), x[:2], method, data=[x[:700], x[700:]], progress=False).masks["0.weight"]
    assert torch.equal(found, naive(weight, gram_of(x), 0.5, 128, most))


def test_the_update_along_the_way_is_that_for_the_mask_it_chose() -> None:
    weight, x = layer(1, inputs=40)

    def strongest(start: int, costs: Tensor) -> Tensor:
        return costs > costs.median()

    found, kept = obs_select(weight, gram_of(x), strongest, columns=16, together=8)
    assert torch.allclose(found, obs_update(weight, gram_of(x), kept))
    assert not found[~kept].any()


def test_choosing_on_the_way_loses_less_on_average_than_magnitude_with_the_same_update() -> None:
    ratios = []
    for seed in range(6):
        weight, x = layer(seed, inputs=64, samples=400)
        net = one_layer(weight)
        errors = []
        for method in (SparseGPT(samples=400), MagnitudeMasks(density=0.5, distribution="uniform")):
            mask = prune(net, x[:2], method, data=[x], progress=False).masks["0.weight"]
            errors.append(float(((obs_update(weight, gram_of(x), mask) - weight) @ x.T).square().sum()))
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / len(ratios) < 0.9


def deep(seed: int = 0) -> tuple[nn.Sequential, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)) for _ in range(3)]
    net = nn.Sequential(nn.Sequential(*blocks), nn.Linear(24, 5)).eval()
    mix = torch.randn(24, 24, generator=generator) * torch.logspace(0, -1, 24)
    return net, [torch.randn(64, 24, generator=generator) @ mix for _ in range(4)]


def test_layers_behind_are_chosen_on_what_the_sparse_network_says() -> None:
    net, data = deep()
    found = prune(net, data[0][:2], SparseGPT(density=0.3, samples=256), data=data, progress=False)
    last = found.masks["0.2.2.weight"]
    alone = naive_last(net, data)
    assert int(last.sum()) == int(alone.sum())
    assert not torch.equal(last, alone)


def naive_last(net: nn.Sequential, data: list[Tensor]) -> Tensor:
    """The mask of the last hidden layer on what the dense network says."""
    with torch.no_grad():
        x = torch.cat([net[0][2][:2](net[0][:2](batch)) for batch in data]).double()
    return naive(net[0][2][2].weight.detach().double(), gram_of(x), int(last_share(net)) / 768, 128)


def last_share(net: nn.Sequential) -> int:
    return round(0.3 * net[0][2][2].weight.numel())


def test_counts_are_exact_every_output_hears_and_a_refit_makes_it_good() -> None:
    net, data = deep()
    method = SparseGPT(density=0.2, samples=256)
    plain = prune(net, data[0][:2], method, data=data, progress=False)
    total = sum(mask.numel() for mask in plain.masks.values())
    assert sum(int(mask.sum()) for mask in plain.masks.values()) == round(0.2 * total)
    assert all(bool(mask.any(1).all()) for mask in plain.masks.values())
    fitted = prune(net, data[0][:2], method, data=data, refit=Refit(masks="surgeon"), progress=False)
    assert all(torch.equal(fitted.masks[name], mask) for name, mask in plain.masks.items())
    x = torch.cat(data)
    with torch.no_grad():
        errors = [float((one.model(x) - net(x)).square().sum()) for one in (plain, fitted)]
    assert errors[1] < errors[0] / 2
    assert all(not p[~plain.masks[n]].any() for n, p in fitted.model.named_parameters() if n in plain.masks)


def test_weights_that_are_zero_leave_first_and_stay_zero() -> None:
    net, data = deep()
    zero = torch.rand(32, 24) < 0.4
    net[0][0][0].weight.data[zero] = 0
    found = prune(net, data[0][:2], SparseGPT(samples=256), data=data, refit=Refit(masks="surgeon"), progress=False)
    assert not found.masks["0.0.0.weight"][zero].any()
    assert not found.model[0][0][0].weight[zero].any()


def test_convolutions_keep_two_of_every_four_channels_at_each_position_of_the_kernel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(96, 3)
    ).eval()
    data = [torch.randn(32, 3, 8, 8) for _ in range(3)]
    found = prune(net, data[0][:2], SparseGPT(granularity="2:4", samples=96), data=data, progress=False)
    assert set(found.masks) == {"2.weight", "4.weight"}
    assert (found.masks["2.weight"].sum(1) == 2).all()
    assert (found.masks["4.weight"].reshape(3, -1, 4).sum(2) == 2).all()


def test_layers_are_as_dense_as_outliers_and_spectra_say() -> None:
    net, data = deep()
    for heavy, plain, methods in (
        ("0.1.0.weight", "0.2.0.weight", [
            MagnitudeMasks(density=0.4, distribution="spectrum"),
            SparseGPT(density=0.4, distribution="spectrum", samples=256),
        ]),
        ("1.weight", "0.0.0.weight", [Wanda(density=0.4, distribution="outliers", spread=0.2)]),
    ):  # fmt: skip
        weight = net.get_parameter(heavy).data
        weight[:, ::4] *= torch.logspace(0, 2, weight[:, ::4].shape[1])
        for method in methods:
            found = prune(net, data[0][:2], method, data=data, progress=False).masks
            assert sum(int(m.sum()) for m in found.values()) == round(0.4 * sum(m.numel() for m in found.values()))
            shares = {name: float(mask.float().mean()) for name, mask in found.items()}
            assert shares[heavy] > shares[plain] + 0.05, method
        exponents = [hill_exponent(net.get_parameter(name).detach()) for name in (heavy, plain)]
        assert exponents[0] < exponents[1]


def test_what_cannot_be_chosen_layer_by_layer_is_refused() -> None:
    for options in ({"distribution": "global"}, {"granularity": "kernel"}, {"guard": "paths"}):
        with pytest.raises(ArgumentError, match="SparseGPT"):
            SparseGPT(**options)  # type: ignore[arg-type]
    net, data = deep()
    with pytest.raises(DataError, match="data="):
        prune(net, data[0][:2], SparseGPT(), progress=False)
    with pytest.raises(BudgetError, match="5:7"):
        prune(net, data[0][:2], SparseGPT(density=5 / 7, granularity="5:7"), data=data, progress=False)
