"""What no example reaches follows the others of its list: experts without tokens, heads that were not asked."""

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Keep, Magnitude, Plan, apply, prune, trace
from nervure.errors import NervureWarning
from tests.networks import noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:not reached by the example:nervure.errors.NervureWarning")


class Experts(nn.Module):
    """A stream with experts around it, of which a call runs those it names."""

    def __init__(self, number: int = 3, own: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 10)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(10), nn.Linear(10, own), nn.ReLU(), nn.Linear(own, 10)) for _ in range(number)
        )
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor, which: tuple[int, ...] = (0, 1)) -> Tensor:
        x = self.embed(x)
        for i in which:
            x = x + self.experts[i](x)
        y: Tensor = self.head(x)
        return y


def narrowed(model: Experts, stays: Tensor, which: tuple[int, ...], x: Tensor) -> Tensor:
    """What the original says with these units of its stream, by hand."""
    x = model.embed(x)[:, stays]
    for i in which:
        norm, up, _, down = model.experts[i]
        h = nn.functional.layer_norm(x, (int(stays.sum()),), norm.weight[stays], norm.bias[stays])
        h = torch.relu(nn.functional.linear(h, up.weight[:, stays], up.bias))
        x = x + nn.functional.linear(h, down.weight[stays], down.bias[stays])
    return nn.functional.linear(x, model.head.weight[:, stays], model.head.bias)


def test_an_expert_without_tokens_follows_the_stream() -> None:
    model = seeded(Experts)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    stays = torch.arange(10) % 3 > 0
    graph = trace(model, noise(5, 4))
    cut = apply(model, graph, Plan((Cut("embed", Keep.of(stays)),), graph.fingerprint))
    for which in ((2,), (0, 2), (0, 1)):
        torch.testing.assert_close(cut(noise(7, 4), which), narrowed(model, stays, which, noise(7, 4)))


def test_units_that_only_the_reached_experts_have_stay_in_the_others() -> None:
    model = seeded(Experts)
    pruned = prune(model, noise(5, 4), Magnitude(keep=0.5))
    assert pruned.model.experts[0][1].out_features < 6
    assert pruned.model.experts[2][1].out_features == 6
    assert pruned.model(noise(2, 4), (2,)).shape == (2, 3)


def test_a_single_reached_expert_keeps_its_own_units_to_itself() -> None:
    model = seeded(lambda: Experts(2))
    graph = trace(model, {"x": noise(5, 4), "which": (0,)})
    assert {s.tensor for s in graph["experts.0.1"].slots if s.tensor.startswith("experts.1.")} == set()
    assert {s.tensor for s in graph["embed"].slots if s.tensor.startswith("experts.1.")} == {
        "experts.1.0.weight",
        "experts.1.0.bias",
        "experts.1.1.weight",
        "experts.1.3.weight",
        "experts.1.3.bias",
    }


def test_the_user_is_told_that_nothing_checks_them() -> None:
    with pytest.warns(
        NervureWarning, match=r"experts\.2\.0, .*They lose what the others of their list lose, which nothing"
    ):
        trace(seeded(Experts), noise(5, 4))
