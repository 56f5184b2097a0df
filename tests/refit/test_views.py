"""What is fitted holds for views of another kind as well."""

import pytest
import torch
from torch import Tensor, nn

from nervure import Cut, Keep, Plan, Pruned, prune
from nervure.errors import DataError
from nervure.refit import Refit, refit


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def data(kind: int, seed: int = 1) -> Tensor:
    """Of the second kind three inputs are never other than zero in the first."""
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(seed))
    seen = torch.arange(6) < 3
    return torch.where(seen, x, 0) if kind == 0 else torch.where(seen, -x - 1, 2 * x)


def cut(dense: nn.Module) -> Pruned:
    return prune(dense, data(0)[:2], Plan((Cut("0", Keep.of([unit % 2 > 0 for unit in range(24)])),)), progress=False)


def gap(pruned: Pruned, dense: nn.Module, kind: int) -> float:
    x = data(kind, seed=2)
    with torch.no_grad():
        return float((pruned.model(x) - dense(x)).square().mean())


def test_what_is_fitted_on_views_too_is_nearer_there_and_the_errors_are_told() -> None:
    dense = model()
    pruned = cut(dense)
    alone = refit(pruned, [data(0)], reference=dense, progress=False)
    both = refit(pruned, [data(0)], reference=dense, views=[data(1)], progress=False)
    assert gap(both.result, dense, 1) < gap(alone.result, dense, 1)
    assert gap(both.result, dense, 0) < gap(pruned, dense, 0)
    fitted = [layer for layer in both.layers if not layer.reason]
    assert all(f.shifted_after <= f.shifted_before and f.held_after <= f.held_before for f in fitted)
    assert any(f.shifted_after < 0.8 * f.shifted_before for f in fitted)
    assert "on views" in both.describe()
    assert both.samples == alone.samples
    assert both.result.plan.reached["refit"]["shifted_after"] < both.result.plan.reached["refit"]["shifted_before"]
    assert "shifted_after" not in alone.result.plan.reached["refit"]


def test_an_uncut_network_stays_as_it_is() -> None:
    dense = model()
    found = refit(dense, [data(0)], reference=dense, views=[data(1)], progress=False).result
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), dense.parameters(), strict=True))


def test_views_are_checked_like_data() -> None:
    dense = model()
    with pytest.raises(DataError, match="too few"):
        refit(cut(dense), [data(0)], reference=dense, views=[data(1)[:2]], progress=False)
    with pytest.raises(DataError):
        refit(cut(dense), [data(0)], reference=dense, views=[data(1) * float("nan")], how=Refit(), progress=False)
