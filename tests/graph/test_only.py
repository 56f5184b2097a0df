"""``only=`` names the modules that may lose units: nothing else does."""

import torch
from torch import Tensor, nn

from nervure import Magnitude, prune, trace
from tests.networks import seeded


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.norm(self.up(x)).relu())
        return x + y


def _network() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), Residual(), Residual(), nn.Linear(8, 3))).eval()  # type: ignore[return-value]


def test_a_chosen_block_loses_its_inner_units_and_nothing_else_changes() -> None:
    model, x = _network(), torch.randn(2, 5)
    smaller = prune(model, x, Magnitude(keep=0.5), only=["2"], progress=False).model
    before = dict(model.named_parameters())
    changed = {name for name, p in smaller.named_parameters() if p.shape != before[name].shape}
    assert changed == {"2.up.weight", "2.up.bias", "2.norm.weight", "2.norm.bias", "2.down.weight"}


def test_a_shared_stream_is_free_where_all_that_make_it_are_chosen() -> None:
    model, x = _network(), torch.randn(2, 5)
    assert not trace(model, x, only=["0", "1.down", "2.down"])["0"].pinned
    pinned = trace(model, x, only=["0", "1"])["0"].pinned
    assert "only" in pinned
    assert "2.down would lose units too" in pinned


def test_what_only_reads_units_follows_though_it_was_not_chosen() -> None:
    graph = trace(_network(), torch.randn(2, 5), only=["1.up"])
    assert [g.name for g in graph.prunable] == ["1.up"]
    assert trace(_network(), torch.randn(2, 5), only=["1.norm"]).prunable == ()
