"""SNIP, GraSP, SynFlow, ERK and Wanda against what their papers' equations give by hand."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import ERK, SNIP, GraSP, MagnitudeMasks, Pruned, SynFlow, Wanda, prune, train
from nervure.errors import ArgumentError, BudgetError, DataError
from nervure.methods import METHODS, Method

EXAMPLES = (SNIP(), GraSP(), SynFlow(steps=3), ERK(), Wanda(), MagnitudeMasks())
every_method = pytest.mark.parametrize("method", EXAMPLES, ids=lambda m: type(m).__name__)


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*[m for a, b in pairwise(widths) for m in (nn.Linear(a, b, bias=bias), nn.ReLU())][:-1])


def batches(inputs: int, classes: int, number: int = 2, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, inputs, generator=generator), torch.randint(classes, (size,), generator=generator))
        for _ in range(number)
    ]


def pruned(model: nn.Module, method: Method, data: Any = None, example: Any = None, **options: Any) -> Pruned:
    example = torch.ones(1, next(model.parameters()).shape[1]) if example is None else example
    return prune(model, example, method, data=data, progress=False, **options)


def top(scores: dict[str, Tensor], kept: int) -> dict[str, Tensor]:
    """The highest of all, by sorting."""
    cut = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values[kept - 1]
    return {name: s >= cut for name, s in scores.items()}


def assert_masks(found: Pruned, expected: dict[str, Tensor]) -> None:
    assert found.masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(found.masks[name], mask), name


def reached(found: Pruned) -> Tensor:
    """Which outputs of a chain of linear layers hear an input."""
    alive = torch.ones(1, dtype=torch.bool)
    for mask in found.masks.values():
        alive = (mask & alive).any(1)
    return alive


def density(found: Pruned) -> float:
    return sum(int(m.sum()) for m in found.masks.values()) / sum(m.numel() for m in found.masks.values())


def test_snip_keeps_what_moves_the_mean_loss_when_its_gate_is_moved() -> None:
    model, data = mlp(6, 8, 3), batches(6, 3)
    found = pruned(model, SNIP(density=0.3, guard="none", batches=2), data)
    double, scores = copy.deepcopy(model).double(), {}

    def loss() -> Tensor:
        return torch.stack([F.cross_entropy(double(x.double()), y) for x, y in data]).mean()

    for name, parameter in double.named_parameters():
        if parameter.ndim > 1:
            flat, slopes = parameter.data.view(-1), []
            for place in range(len(flat)):
                weight, losses = flat[place].clone(), []
                for gate in (1 + 1e-5, 1 - 1e-5):
                    flat[place] = weight * gate
                    losses.append(loss().detach())
                flat[place] = weight
                slopes.append((losses[0] - losses[1]) / 2e-5)
            scores[name] = torch.stack(slopes).abs().reshape(parameter.shape)
    assert_masks(found, top(scores, round(0.3 * 72)))


def test_iterative_snip_never_takes_back_what_it_masked_and_force_does() -> None:
    model, data = mlp(6, 40, 3), batches(6, 3)
    once = pruned(model, SNIP(density=0.05), data)
    iterated = pruned(model, SNIP(density=0.05, steps=6), data)
    revived = pruned(model, SNIP(density=0.05, steps=6, revive=True), data)
    assert density(once) == density(iterated) == density(revived)
    differing = [not torch.equal(iterated.masks[n], other.masks[n]) for other in (once, revived) for n in once.masks]
    assert any(differing)
    half = pruned(model, SNIP(density=0.05**0.5), data)
    second = pruned(model, SNIP(density=0.05, steps=2), data)
    assert all(bool((half.masks[n] | ~m).all()) for n, m in second.masks.items())


def test_grasp_keeps_the_highest_weight_times_hessian_times_gradient() -> None:
    model, data = mlp(4, 5, 3), batches(4, 3)
    found = pruned(model, GraSP(density=0.4, temperature=2.0, guard="none", batches=2), data)
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    start = torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[:20].reshape(5, 4), flat[20:].reshape(3, 5)
        total = torch.zeros(())
        for x, y in data:
            hidden = F.linear(x, first, model[0].bias.detach()).relu()
            total = total + F.cross_entropy(F.linear(hidden, second, model[2].bias.detach()) / 2.0, y)
        return total / len(data)

    slope: Any = torch.autograd.functional.jacobian(loss, start)
    hessian: Any = torch.autograd.functional.hessian(loss, start)
    scores = start * (hessian @ slope)
    assert_masks(found, top({names[0]: scores[:20].reshape(5, 4), names[1]: scores[20:].reshape(3, 5)}, 14))


def test_synflow_keeps_the_strongest_paths_of_absolute_weights() -> None:
    model = mlp(5, 6, 4)
    found = pruned(model, SynFlow(density=0.3, steps=1, guard="none"))
    first, second = (model[i].weight.detach().abs().double() for i in (0, 2))
    scores = {
        "0.weight": first * second.sum(0)[:, None],
        "2.weight": second * first.sum(1)[None],
    }
    assert scores["0.weight"].sum() == pytest.approx(float(scores["2.weight"].sum()))
    assert_masks(found, top(scores, round(0.3 * 54)))


def test_synflow_in_many_rounds_does_not_collapse_where_one_round_does() -> None:
    model = mlp(20, 100, 100, 4, bias=False)
    model[4].weight.data.mul_(0.01)
    model[2].weight.data[:50] *= 0.01
    many, one = (pruned(model, SynFlow(density=0.004, steps=n, guard="none")) for n in (50, 1))
    assert reached(many).any()
    assert not reached(one).any()


def test_erk_draws_the_densities_of_the_formula_and_every_output_hears() -> None:
    model = mlp(100, 50, 10)
    found = pruned(model, ERK(density=0.05))
    counts = {name: int(mask.sum()) for name, mask in found.masks.items()}
    assert sum(counts.values()) == 275
    assert counts["0.weight"] == pytest.approx(275 * 150 / 210, abs=1)
    assert all(bool(mask.any(1).all()) for mask in found.masks.values())
    other = pruned(model, ERK(density=0.05, seed=1))
    assert not torch.equal(other.masks["0.weight"], found.masks["0.weight"])
    uniform = pruned(model, ERK(density=0.05, distribution="uniform"))
    assert [int(mask.sum()) for mask in uniform.masks.values()] == [250, 25]


def test_magnitude_keeps_the_largest_weights_of_all_or_of_each_layer_before_and_after_training() -> None:
    model, data = mlp(10, 12, 4), batches(10, 4)
    for _ in range(2):
        weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.ndim > 1}
        assert_masks(pruned(model, MagnitudeMasks(density=0.3, guard="none")), top(weights, round(0.3 * 168)))
        each = pruned(model, MagnitudeMasks(density=0.25, distribution="uniform", guard="none"))
        assert_masks(each, {name: top({name: w}, w.numel() // 4)[name] for name, w in weights.items()})
        train(model, data, epochs=2, lr=0.1, progress=False)


def test_wanda_ranks_each_row_by_weight_times_the_norm_of_what_enters() -> None:
    model, data = mlp(8, 6, 4), [x for x, _ in batches(8, 4)]
    found = pruned(model, Wanda(density=0.5, samples=24), data)
    heard = torch.cat(data)[:24]
    with torch.no_grad():
        for name, layer, x in (("0.weight", model[0], heard), ("2.weight", model[2], model[0](heard).relu())):
            scores = layer.weight.abs() * x.norm(dim=0)
            places = scores.argsort(1, descending=True)[:, : scores.shape[1] // 2]
            expected = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, places, True)
            assert torch.equal(found.masks[name], expected)


def test_wanda_hears_grouped_and_transposed_convolutions_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, 3, groups=2, padding=1)
            self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.up(self.grouped(x).relu()).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(5, 4, 3, 3)
    x[:, 2:] *= 100
    found = pruned(net, Wanda(density=0.5, rows=False), [x], x[:1])
    assert set(found.masks) == {
        "grouped.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight",
    }  # fmt: skip
    assert found.masks["grouped.weight"][4:].sum() > 3 * found.masks["grouped.weight"][:4].sum()
    with torch.no_grad():
        norms = net.grouped(x).relu().transpose(0, 1).flatten(1).norm(dim=1)
    scores = net.up.weight.detach().abs() * norms[:, None, None, None]
    mask = found.masks["up.weight"]
    fixed = scores.transpose(0, 1).flatten(1).amax(1)
    assert int(mask.sum()) == round(0.5 * scores.numel())
    assert scores[mask & (scores < fixed.min())].min() > scores[~mask].max()


@every_method
def test_a_method_that_masks_is_a_value_with_a_name(method: Any) -> None:
    assert METHODS[type(method).__name__] is type(method)
    assert eval(repr(method)) == method
    assert hash(eval(repr(method))) == hash(method)
    assert not pruned(mlp(4, 5, 2), type(method)(density=1.0)).masks


@every_method
def test_at_the_least_density_every_output_still_hears_the_inputs(method: Any) -> None:
    model, data = mlp(30, 20, 20, 6, bias=False), batches(30, 6)
    with pytest.raises(BudgetError, match=r"'\d.weight' alone takes .* Give density=") as error:
        pruned(model, type(method)(density=0.001), data)
    least = float(str(error.value).rpartition("density=")[2].split()[0])
    found = pruned(model, type(method)(density=least), data)
    assert reached(found).all()
    assert density(found) == pytest.approx(least, abs=1e-3)


@pytest.mark.parametrize("method", [SNIP(), GraSP(), Wanda()], ids=lambda m: type(m).__name__)
def test_data_and_labels_are_asked_for_where_they_are_needed(method: Any) -> None:
    with pytest.raises(DataError, match="data="):
        pruned(mlp(4, 5, 2), method)
    if not isinstance(method, Wanda):
        with pytest.raises(DataError, match="labels"):
            pruned(mlp(4, 5, 2), method, [torch.ones(3, 4)])
        with pytest.raises(DataError, match="label 7"):
            pruned(mlp(4, 5, 2), method, [(torch.ones(3, 4), torch.tensor([0, 1, 7]))])


@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"distribution": "even"},
        {"granularity": "2:4", "density": 0.3},
        {"granularity": "rows"},
        {"block": (0, 4)},
        {"block": 4},
        {"guard": "all"},
        {"dense": "fc"},
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(ArgumentError):
        ERK(**options)


def test_what_is_ignored_stays_dense_and_is_not_counted() -> None:
    model = mlp(10, 20, 20, 5)
    for found in (
        pruned(model, ERK(density=0.2, dense=("0", "4"))),
        pruned(model, ERK(density=0.2), ignore=["0", model[4]]),
        pruned(model, ERK(density=0.2), only=["2"]),
    ):
        assert {name: int(mask.sum()) for name, mask in found.masks.items()} == {"2.weight": 80}
    with pytest.raises(ArgumentError, match="fits no layer"):
        pruned(model, ERK(density=0.2, dense=("head",)))
    with pytest.raises(BudgetError, match="all stay dense"):
        pruned(model, ERK(density=0.2, dense=("*",)))


def test_a_table_is_masked_only_where_a_head_multiplies_with_it_and_either_name_keeps_it_dense() -> None:
    class Tied(nn.Module):
        def __init__(self, tied: bool = True) -> None:
            super().__init__()
            self.embedding, self.fc, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            if tied:
                self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.fc(self.embedding(tokens)).relu().mean(1))

    example = torch.arange(8).reshape(2, 4)
    method = SynFlow(density=0.5, steps=2)
    assert set(pruned(Tied(), method, example=example).masks) == {"embedding.weight", "fc.weight"}
    assert set(pruned(Tied(tied=False), method, example=example).masks) == {"fc.weight", "head.weight"}
    for name in ("embedding", "head"):
        assert set(pruned(Tied(), replace(method, dense=(name,)), example=example).masks) == {"fc.weight"}


def test_batch_norms_are_asked_with_the_statistics_that_were_chosen_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))
    model[1].running_var.mul_(torch.logspace(-3, 3, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = batches(6, 3)
    batch, running = (pruned(model, SNIP(density=0.3, statistics=s), data) for s in ("batch", "running"))  # type: ignore[arg-type]
    assert not torch.equal(batch.masks["0.weight"], running.masks["0.weight"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_what_comes_back_is_ready_to_train_sparse() -> None:
    data = batches(6, 3, number=4)
    found = pruned(mlp(6, 20, 3), SNIP(density=0.25), data)
    history = train(found.model, data, epochs=3, lr=0.1, masks=found.masks, progress=False)
    assert history.loss[-1] < history.loss[0]
    for name, mask in found.masks.items():
        assert int((found.model.get_parameter(name) != 0).sum()) == int(mask.sum())
