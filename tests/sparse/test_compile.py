import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nervure import MagnitudeMasks, compile_sparse, prune
from nervure.errors import ArgumentError, ForwardError, VerificationError
from nervure.sparse import Compacted, SparseConv2d, SparseLinear, SparseMatrix
from nervure.sparse.agree import agreement
from tests.networks import noise, seeded


def masked(model, share=0.2, seed=0):
    """Weights of layers kept at random, the first of each row and column always: no unit is dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                keep = torch.rand(module.weight.shape, generator=generator) < share
                keep[0], keep[:, 0] = True, True
                module.weight *= keep
    return model


def prefer(*names):
    """A clock by which what is named first is fastest, and what is not named is slower than dense."""

    def clock(models, inputs):
        order = {name: place for place, name in enumerate(dict.fromkeys((*names, "dense")))}
        return {name: 1.0 + order.get(name, 99) for name in models}

    return clock


def compiled(model, example, *names, **options):
    return compile_sparse(model, example, timer=prefer(*names), verbose=False, **options)


def mlp(*, bias=True):
    return seeded(
        lambda: nn.Sequential(nn.Linear(16, 24, bias=bias), nn.ReLU(), nn.Linear(24, 16, bias=bias), nn.Linear(16, 4))
    )


class Residual(nn.Module):
    """Something beside its input."""

    def __init__(self, *inside):
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, x):
        return x + self.inside(x)


PIECES = (
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    lambda: nn.Dropout(0.5),
    lambda: nn.LeakyReLU(0.1, inplace=True),
    nn.Sigmoid,
    nn.SiLU,
)


def chain(seed):
    """A chain drawn by lot: layers with and without biases, norms, activations, residual parts; masks of any kind."""
    draw = random.Random(seed)
    width, parts = draw.choice([8, 16]), []
    for _ in range(draw.randint(2, 4)):
        wider = draw.choice([8, 16, 24])
        parts.append(nn.Linear(width, wider, bias=draw.random() < 0.6))
        if draw.random() < 0.4:
            parts.append(nn.BatchNorm1d(wider))
        if draw.random() < 0.2:
            parts.append(nn.LayerNorm(wider))
        parts.append(draw.choice(PIECES)())
        if draw.random() < 0.4:
            parts.append(Residual(nn.Linear(wider, wider), draw.choice(PIECES)(), nn.Linear(wider, wider)))
        width = wider
    model = nn.Sequential(*parts, nn.Linear(width, 5))
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
            keep = torch.rand(layer.weight.shape) < draw.choice([0.05, 0.2, 1.0])
            keep &= (torch.rand(len(keep)) > draw.choice([0, 0.4]))[:, None]
            keep &= torch.rand(keep.shape[1]) > draw.choice([0, 0.4])
            if draw.random() < 0.3:
                keep = torch.kron(torch.rand(len(keep) // 4 + 1, keep.shape[1] // 4 + 1) < 0.3, torch.ones(4, 4)).bool()
                keep = keep[: layer.out_features, : layer.in_features]
            layer.weight *= keep
        model[0].weight[0, 0] = 0
    return model


@pytest.mark.parametrize(
    "ways", [("sparse", "csr"), ("sparse", "compact"), ("sparse", "bsr4", "csr"), ("dead units cut",)]
)
@pytest.mark.parametrize("seed", range(4))
def test_any_chain_with_any_mask_computes_the_same(seed, ways):
    model = seeded(lambda: chain(seed), seed)
    given = noise(7, model[0].in_features)
    before = copy.deepcopy(model.state_dict())
    found = compiled(model, given, *ways)
    for batch in (7, 1, 2):
        torch.testing.assert_close(found(given[:batch]), model(given[:batch]).detach(), rtol=1e-4, atol=1e-5)
    assert found.error < 1e-5
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_in_double_precision_the_error_is_rounding():
    model = masked(mlp()).double()
    assert compiled(model, noise(4, 16).double(), "sparse", "csr").error < 1e-14


def test_the_choice_follows_the_clock():
    model = masked(mlp(), 0.1)

    def clock(models, inputs):
        # Linear layers of 24 inputs are fastest as CSR, others without their rows of zeros.
        best = {24: "csr", 16: "compact"}.get(inputs.shape[-1])
        return {name: {"dense": 1.0, best: 0.5, "sparse": 0.1}.get(name, 2.0) for name in models}

    with torch.no_grad():
        model[0].weight[:, :8] = 0
        model[0].weight[:, 8] = 1
    found = compile_sparse(model, noise(2, 16), timer=clock, verbose=False)
    assert [(row.layer, row.choice) for row in found.choices][:2] == [("0", "compact"), ("2", "csr")]
    assert isinstance(found.model[0], Compacted) and isinstance(found.model[2], SparseLinear)
    assert found.choice == "sparse" and found.speedup == 10
    assert "compact" in found.describe() and "10.00 times as fast" in found.describe()


def test_what_is_not_clearly_faster_stays_as_it_was():
    model = masked(mlp())
    for gain in (0.96, 1.0, 1.5):
        found = compile_sparse(
            model,
            noise(2, 16),
            timer=lambda models, _, gain=gain: {name: 1.0 if name == "dense" else gain for name in models},
            verbose=False,
        )
        assert found.choice == "dense" and found.error == 0 and found.speedup == 1
        assert {row.choice for row in found.choices} == {"dense"}
        assert all(torch.equal(model.state_dict()[k], v) for k, v in found.model.state_dict().items())


def test_faster_layers_in_a_slower_whole_are_not_taken():
    found = compiled(masked(mlp()), noise(2, 16), "csr", "dense", "sparse")
    assert {row.choice for row in found.choices} == {"csr"} and found.choice == "dense"
    assert type(found.model[0]) is nn.Linear


def test_the_real_clock_measures_every_way_and_the_table_is_printed(capsys):
    found = compile_sparse(masked(mlp(), 0.1), noise(2, 16), rounds=3, threads=1)
    assert all(set(row.times) >= {"dense", "csr"} and min(row.times.values()) > 0 for row in found.choices)
    assert found.describe() in capsys.readouterr().out
    assert "threads=1 on a batch of 2" in found.describe()


def test_a_result_of_pruning_is_compiled():
    model = mlp()
    pruned = prune(model, noise(2, 16), MagnitudeMasks(density=0.2))
    found = compiled(pruned, noise(2, 16), "sparse", "csr")
    torch.testing.assert_close(found(noise(5, 16)), pruned.model(noise(5, 16)).detach())


def test_copies_state_dicts_and_other_types_work_as_ever():
    model, given = masked(mlp()), noise(3, 16)
    found = compiled(model, given, "sparse", "csr")
    copied = copy.deepcopy(found)
    assert torch.equal(copied(given), found(given)) and copied.choices == found.choices
    other = compiled(masked(seeded(mlp, 5)), given, "sparse", "csr")
    twin = copy.deepcopy(found)
    for tensor in twin.state_dict().values():
        tensor.zero_()
    assert not torch.equal(twin(given), found(given))
    twin.load_state_dict(found.state_dict())
    assert torch.equal(twin(given), found(given)) and other is not twin
    torch.testing.assert_close(twin.double()(given.double()).float(), found(given))


def test_no_gradients_and_no_training():
    found = compiled(masked(mlp()), noise(2, 16), "sparse", "csr")
    assert not found(noise(2, 16).requires_grad_()).requires_grad
    assert found.eval() is found
    for module in (found, found.model[0], found.model):
        with pytest.raises(ArgumentError, match=r"cannot be trained.*nervure\.hold"):
            module.train()


def test_features_stay_first_through_a_chain_of_activations():
    first, second = SparseLinear(nn.Linear(16, 24)), SparseLinear(nn.Linear(24, 8))
    between = F.gelu(F.relu(first(noise(4, 16))))
    assert between.shape == (4, 24) and between.t().is_contiguous()
    assert second(between).t().is_contiguous()


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 16), (0, 16)])
def test_a_sparse_linear_layer_takes_any_leading_axes(shape, block):
    layer = seeded(lambda: nn.Linear(16, 8))
    with torch.no_grad():
        layer.weight[:4] = 0
    for bias in (layer.bias, None):
        layer.bias = bias
        sparse = SparseLinear(layer, block)
        assert sparse.weight.values.numel() == 64
        torch.testing.assert_close(sparse(noise(*shape)), layer(noise(*shape)).detach())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "dilation": 2, "padding": (0, 1)},
    ],
)
def test_a_sparse_convolution_computes_what_the_convolution_does(options):
    layer = masked(seeded(lambda: nn.Conv2d(8, 4, **options)))
    for shape in ((3, 8, 9, 7), (1, 8, 9, 7), (8, 9, 7)):
        torch.testing.assert_close(SparseConv2d(layer)(noise(*shape)), layer(noise(*shape)).detach())


def test_a_layer_without_its_rows_and_columns_of_zeros():
    conv = seeded(lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2))
    with torch.no_grad():
        conv.weight[1], conv.weight[:, 2:4] = 0, 0
    small = Compacted(conv)
    assert tuple(small.inner.weight.shape) == (3, 4, 3, 3)
    for shape in ((2, 6, 5, 5), (6, 5, 5)):
        torch.testing.assert_close(small(noise(*shape)), conv(noise(*shape)).detach())


def test_a_matrix_holds_its_entries_with_short_indices():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    matrix = SparseMatrix(weight)
    assert matrix.values.tolist() == [2, 1, 3] and matrix.columns.tolist() == [1, 0, 2]
    assert matrix.starts.dtype == matrix.columns.dtype == torch.int32
    assert torch.equal(matrix.times(torch.eye(3), None), weight)
    assert torch.equal(matrix.times(torch.eye(3)[:, :1], torch.ones(3)), weight[:, :1] + 1)


class Viewed(nn.Module):
    """Code after its layers that takes the usual order in memory for granted."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


def test_code_that_demands_the_usual_order_gets_copies():
    model = masked(seeded(Viewed))
    found = compiled(model, noise(2, 3, 4, 4), "sparse", "csr")
    assert isinstance(found.model.conv, SparseConv2d) and found.model.conv.contiguous
    torch.testing.assert_close(found(noise(5, 3, 4, 4)), model(noise(5, 3, 4, 4)).detach())


class ReadsWeight(nn.Module):
    """A layer that is called, and its weight read by others."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) + F.linear(x, self.fc.weight)


def test_where_the_model_needs_its_layers_they_stay_and_that_is_said():
    found = compiled(masked(seeded(ReadsWeight)), noise(2, 8), "sparse", "csr")
    assert found.choice == "dense" and any("does not run without them" in note for note in found.notes)
    transformer = masked(seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)))
    found = compiled(transformer, noise(2, 3, 8), "sparse", "csr")
    reasons = {row.layer: row.failed["all"] for row in found.choices}
    assert "fused" in reasons["linear1"] and found.choice == "dense"


def test_a_layer_with_a_hook_of_the_users_stays():
    model, heard = masked(mlp()), []
    model[2].register_forward_hook(lambda module, args, output: heard.append(len(output)))
    found = compiled(model, noise(2, 16), "sparse", "csr")
    assert [row.choice for row in found.choices] == ["csr", "dense", "csr"]
    heard.clear()
    found(noise(5, 16))
    assert heard == [5]


def test_small_outputs_are_held_to_their_own_size():
    small = [1e-6 * noise(4)]
    with pytest.raises(VerificationError, match="relative error"):
        agreement(small, [1.01e-6 * noise(4)], "here", nn.Identity(), lambda _: small)
    mixed = [1e6 * noise(4), torch.arange(3)]
    assert agreement(mixed, [t.clone() for t in mixed], "here", nn.Identity(), lambda _: mixed) == 0


@pytest.mark.parametrize("seed", range(6))
def test_one_of_many_numbers_near_zero_does_not_refuse_a_layer(seed):
    """Of thousands of outputs some are sums that nearly cancel: these are all rounding."""
    model = masked(seeded(lambda: nn.Sequential(nn.Linear(512, 10_000)).eval()), seed=seed)
    assert compiled(model, noise(1, 512, seed=seed), "sparse", "csr").choice == "sparse"


def test_a_layer_that_is_used_twice_is_replaced_everywhere():
    layer = nn.Linear(8, 8)
    model = masked(seeded(lambda: nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(8, 2))))
    found = compiled(model, noise(2, 8), "sparse", "csr")
    assert found.model[0] is found.model[2] and isinstance(found.model[0], SparseLinear)
    torch.testing.assert_close(found(noise(3, 8)), model(noise(3, 8)).detach())


def test_a_kernel_that_differs_is_not_offered(monkeypatch):
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: x.new_ones(len(x), self.weight.shape[0]))
    found = compiled(masked(mlp()), noise(2, 16), "sparse", "csr")
    assert all("relative error" in row.failed["csr"] and row.choice == "dense" for row in found.choices)


def test_a_whole_that_differs_is_refused_with_the_first_layer_to_blame(monkeypatch):
    right = SparseMatrix.times

    def wrong_for_three(self, x, bias):
        return right(self, x, bias) + (x.shape[1] == 3 and self.shape[1] == 24)

    monkeypatch.setattr(SparseMatrix, "times", wrong_for_three)
    with pytest.raises(VerificationError, match="first layer that differs is '2'"):
        compiled(masked(mlp()), noise(2, 16), "sparse", "csr")


def test_what_cannot_be_compiled_is_refused():
    model, given = masked(mlp()), noise(2, 16)
    with pytest.raises(ArgumentError, match=r"training mode.*model\.eval\(\)"):
        compiled(copy.deepcopy(model).train(), given)
    with pytest.raises(ArgumentError, match="nothing to gain"):
        compiled(mlp(), given)
    with pytest.raises(ArgumentError, match="threads"):
        compiled(model, given, threads=0)
    with pytest.raises(ForwardError, match="does not run"):
        compiled(model, noise(2, 15))
    with pytest.raises(ArgumentError, match="example is a"):
        compiled(model, 3)
    pruned = prune(mlp(), given, MagnitudeMasks(density=0.2))
    with torch.no_grad():
        pruned.model[0].weight += 1
    with pytest.raises(ArgumentError, match="without holding"):
        compiled(pruned, given)
