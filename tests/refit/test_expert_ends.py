"""Experts that stay take over what those that left said, however they are computed."""

import importlib
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nervure import Cut, Plan, Pruned, Refit, prune, refit, trace
from nervure.errors import NervureWarning
from nervure.graph.mixtures import Mixture as Found
from nervure.graph.mixtures import mixture_of
from nervure.graph.tape import named_tensors
from nervure.refit import Refitted
from nervure.refit.expert_ends import mixture_ends
from nervure.refit.origins import origins
from nervure.stats.loaders import batches
from tests.surgery.test_experts import EXPERTS, INNER, KEEP, NETS, WIDTH, Dense, Grouped, Mixture, Picked

KEPT = KEEP.nonzero()[:, 0]
SAMPLES, HELD = 320, 4


def network(kind: type[Mixture]) -> nn.Sequential:
    """A mixture, which adds to what it is given, between two layers."""
    torch.manual_seed(1)
    mixture = kind()
    mixture.embed, mixture.head = nn.Identity(), nn.Identity()
    return nn.Sequential(nn.Linear(5, WIDTH), mixture, nn.Linear(WIDTH, 3)).eval()


def cut(net: nn.Module, x: Tensor) -> Pruned:
    """Without two of its experts."""
    graph = trace(net, x[:8])
    (group,) = [group for group in graph.groups if group.kind == "experts"]
    return prune(net, x[:8], Plan((Cut(group.name, KEEP.tolist()),), graph.fingerprint), refit=False, progress=False)


def fitted(net: nn.Module, x: Tensor, **how: Any) -> tuple[Pruned, Refitted[Any]]:
    """The network without two experts, and refitted."""
    pruned = cut(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruned, refit(pruned, [x], reference=net, how=Refit(samples=len(x), **how), progress=False)


def by_hand(net: nn.Sequential, small: nn.Sequential, x: Tensor, ridge: float) -> Tensor:
    """The last matrices of what stays by normal equations, token by token: [experts, width, inner]."""
    mixture: Any = small[1]
    rows = torch.arange(len(x)) % HELD != HELD - 1
    with torch.no_grad():
        y = net[0](x[rows])
        weights, ids = mixture.route(y)
        gate, up = torch.einsum("tkoi,ti->tko", mixture.up[ids], y).chunk(2, -1)
        heard = torch.zeros(len(y), len(KEPT), INNER, dtype=torch.float64)
        heard.scatter_(1, ids[..., None].expand(-1, -1, INNER), (F.silu(gate) * up * weights[..., None]).double())
        heard = heard.flatten(1)
        wrong = (net[1](y) - small[1](y)).double()
    gram = heard.T @ heard
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    change = torch.linalg.solve(gram, heard.T @ wrong)
    old = mixture.down.detach().double()
    return old + change.reshape(len(KEPT), INNER, WIDTH).transpose(1, 2)


@pytest.mark.parametrize("kind", NETS)
def test_the_last_matrices_solve_the_normal_equations(kind: type[Mixture]) -> None:
    net, x = network(kind), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    pruned, done = fitted(net, x, ridge=1e-2)
    (layer,) = [layer for layer in done.layers if layer.tensor == "1.down"]
    assert (layer.freedom, layer.inputs, layer.outputs) == ("ridge", len(KEPT) * INNER, WIDTH)
    assert layer.after < 0.8 * layer.before
    assert torch.allclose(done.result.model[1].down.double(), by_hand(net, pruned.model, x, 1e-2), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [Picked, Grouped, Dense])
def test_new_samples_are_answered_better(kind: type[Mixture]) -> None:
    net, draw = network(kind), torch.Generator().manual_seed(3)
    pruned, done = fitted(net, torch.randn(SAMPLES, 5, generator=draw))
    new = torch.randn(400, 5, generator=draw)
    with torch.no_grad():
        before, after = ((model(new) - net(new)).square().mean() for model in (pruned.model, done.result.model))
    assert after < 0.8 * before
    (layer,) = [layer for layer in done.layers if layer.tensor == "1.down"]
    assert layer.held_after < layer.held_before


def test_many_experts_are_fitted_some_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(Grouped), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    _, together = fitted(net, x)
    monkeypatch.setattr(importlib.import_module("nervure.refit.expert_ends"), "WIDEST", 2 * INNER)
    pruned, apart = fitted(net, x)
    (whole,), (parts,) = ([f for f in done.layers if f.tensor == "1.down"] for done in (together, apart))
    assert whole.after <= parts.after < parts.before
    assert parts.before == pytest.approx(whole.before)
    assert parts.inputs == whole.inputs
    assert not torch.equal(pruned.model[1].down, apart.result.model[1].down)


def test_masked_weights_stay_zero() -> None:
    net, x = network(Grouped), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    pruned = cut(net, x)
    mask = torch.rand(pruned.model[1].down.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    pruned.model[1].down.data.mul_(mask)
    done = refit(pruned, [x], reference=net, how=Refit(samples=SAMPLES), masks={"1.down": mask}, progress=False)
    down = done.result.model[1].down
    assert not down[~mask].any()
    assert not torch.equal(down, pruned.model[1].down)


def test_units_of_experts_that_left_are_taken_over() -> None:
    net, x = network(Grouped), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    graph = trace(net, x[:8])
    group = next(g for g in graph.prunable if any((s.tensor, s.axis) == ("1.down", 2) for s in g.slots))
    keep = [unit >= group.multiple for unit in range(group.size)]
    pruned = prune(net, x[:8], Plan((Cut(group.name, keep),), graph.fingerprint), refit=False, progress=False)
    done = refit(pruned, [x], reference=net, how=Refit(samples=SAMPLES), progress=False)
    (layer,) = [layer for layer in done.layers if layer.tensor == "1.down"]
    assert layer.after < layer.before
    assert layer.inputs == EXPERTS * sum(keep)


def test_what_is_frozen_stays() -> None:
    net, x = network(Grouped), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    pruned = cut(net, x)
    pruned.model[1].down.requires_grad_(False)
    done = refit(pruned, [x], reference=net, how=Refit(samples=SAMPLES), progress=False)
    (layer,) = [layer for layer in done.layers if layer.tensor == "1.down"]
    assert "frozen" in layer.reason
    assert torch.equal(done.result.model[1].down, pruned.model[1].down)


class Writing(Grouped):
    """Takes what it is given for its own work."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        x.zero_()
        return found


def test_a_mixture_may_write_into_what_it_is_given() -> None:
    x = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    plain, writing = (fitted(network(kind), x)[1].result.model[1].down for kind in (Grouped, Writing))
    assert torch.equal(plain, writing)


class Beside(nn.Module):
    """A mixture, and two layers beside it that are fitted at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = network(Grouped)[1]
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x) + self.second(torch.relu(self.first(x)))


def test_what_enters_a_mixture_is_heard_though_its_beginning_is_not_run_again() -> None:
    net, x = nn.Sequential(nn.Linear(5, WIDTH), Beside(), nn.Linear(WIDTH, 3)).eval(), torch.randn(SAMPLES, 5)
    pruned, done = fitted(net, x)
    (layer,) = [layer for layer in done.layers if layer.tensor == "1.mixture.down"]
    assert layer.after < layer.before
    with torch.no_grad():
        before, after = ((model(x) - net(x)).square().mean() for model in (pruned.model, done.result.model))
    assert after < before


def test_without_mixtures_nothing_runs() -> None:
    net, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(8, 5)
    graph = trace(net, x)
    net[0].register_forward_hook(lambda *_: pytest.fail("it runs"))
    (batch,) = batches([x], len(x), labelled=False)
    assert mixture_ends(net, net, graph, origins(net, ()), batch) == []


def test_too_few_samples_are_told() -> None:
    net, x = network(Grouped), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    pruned = cut(net, x)
    with pytest.warns(NervureWarning, match=r"too few samples.*1\.down \(4 positions"):
        refit(pruned, [x[:5]], reference=net, how=Refit(samples=5), progress=False)


class Bent(Picked):
    """What the experts say together goes through a function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


def test_a_mixture_that_is_not_linear_in_its_last_matrices_stays() -> None:
    net, x = network(Bent), torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(2))
    pruned, done = fitted(net, x)
    assert torch.equal(done.result.model[1].down, pruned.model[1].down)


def test_where_a_mixture_lies() -> None:
    net, x = network(Grouped), torch.randn(8, 5)
    (group,) = [group for group in trace(net, x).groups if group.kind == "experts"]
    found = mixture_of(group, named_tensors(net))
    assert isinstance(found, Found)
    assert (found.path, sorted(found.stacks)) == ("1", ["down", "up"])
    alone = Grouped().eval()
    (group,) = [group for group in trace(alone, x).groups if group.kind == "experts"]
    assert mixture_of(group, named_tensors(alone)) == "its gate and its experts are in no module of their own"


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss", "Jamba"])
def test_mixtures_of_transformers_are_fitted(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    more: dict[str, Any] = {
        "Mixtral": {},
        "GptOss": {"head_dim": 8, "layer_types": ["full_attention"] * 2},
        "Jamba": {"num_experts": 6, "expert_layer_period": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"use_mamba_kernels": False},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_experts_per_tok=2,
        **({} if kind == "Jamba" else {"num_local_experts": 6}), **more,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.set_experts_implementation("grouped_mm")
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    data = [{"input_ids": rows, "use_cache": False} for rows in torch.randint(96, (24, 16)).split(8)]
    graph = trace(model, data[0])
    cuts = [Cut(g.name, [True, False, True, True, False, False]) for g in graph.groups if g.kind == "experts"]
    pruned = prune(model, data[0], Plan(tuple(cuts), graph.fingerprint), refit=False, progress=False)
    done = refit(pruned, data, reference=model, how=Refit(samples=24), progress=False)
    ends = [layer for layer in done.layers if layer.tensor.endswith("experts.down_proj")]
    assert len(ends) == len(cuts)
    for layer in ends:
        assert not layer.reason
        assert layer.held_after < layer.held_before
