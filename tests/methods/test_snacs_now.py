"""SNACS as it is by default: filters, compensated, refitted; and kernels by what they say."""

import pytest
import torch
from torch import nn

from nervure import SNACS, Compensated, Magnitude, prune, trace
from nervure.errors import ArgumentError
from nervure.methods import CountsOnRefit, View, gather_evidence
from nervure.scores.bundles import layers

PICTURES = nn.functional.avg_pool2d(torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(0)), 3, 1, 1)
DATA = [(PICTURES, torch.arange(96) % 4)]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def with_edges() -> nn.Module:
    """Half of the second layer's parents are read by kernels that sum to zero, half by faint ones."""
    model = network()
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    with torch.no_grad():
        model[2].weight.mul_(0.02)  # type: ignore[index]
        model[2].weight[:, :4] = sobel * (0.5 + torch.rand(8, 4))[..., None, None]  # type: ignore[index]
    return model


def test_it_cuts_what_compensated_cuts_and_refits() -> None:
    model = network()
    mine = prune(model, PICTURES[:2], SNACS(keep=0.5), data=DATA, progress=False)
    theirs = prune(model, PICTURES[:2], Compensated(keep=0.5, budget="macs", samples=2048), data=DATA, progress=False)
    assert mine.plan.edits == theirs.plan.edits
    assert "refit" in mine.plan.reached
    plain = prune(model, PICTURES[:2], SNACS(keep=0.5), data=DATA, refit=False, progress=False)
    assert plain.plan.edits == mine.plan.edits
    assert "refit" not in plain.plan.reached
    assert "refit" not in prune(model, PICTURES[:2], Magnitude(), data=DATA, progress=False).plan.reached


def test_kernels_and_published_ones_do_not_count_on_a_refit() -> None:
    methods = (SNACS(), Compensated(), SNACS(granularity="kernels"), SNACS(paper=True))
    assert [isinstance(m, CountsOnRefit) and m.refits for m in methods] == [True, True, False, False]
    assert [m.granularity for m in methods[2:]] == ["kernels", "kernels"]  # type: ignore[union-attr]
    assert SNACS(budget="weights").granularity == "kernels"


@pytest.mark.parametrize("granularity", ["kernels", "filters"])
def test_kernels_that_sum_to_zero_stay(granularity: str) -> None:
    model = with_edges()
    method = SNACS(
        keep=0.5, granularity=granularity, ranking="connectivity", limits=False, protect=False, sizes="threshold"
    )
    found = prune(model, PICTURES[:2], method, data=DATA, refit=False, progress=False)
    if granularity == "kernels":
        kept = found.masks["2.weight"].flatten(2).any(2)
        assert kept[:, :4].float().mean() > kept[:, 4:].float().mean() + 0.5
    else:
        kept = next(cut.keep.tensor() for cut in found.plan.cuts if cut.group == "0")
        assert kept[:4].sum() > kept[4:].sum()


def test_kernels_take_the_sizes_of_magnitude() -> None:
    model = network()
    mine = prune(model, PICTURES[:2], SNACS(keep=0.5, granularity="kernels", limits=False, protect=False), data=DATA)
    graph = trace(model, PICTURES[:2])
    listed = layers(graph, {n: p.detach() for n, p in model.named_parameters()}, ["2.weight", "6.weight"])
    strengths = torch.cat([layer.strength().flatten() for layer in listed])
    entries = torch.cat([layer.entries().expand(layer.children, -1).flatten() for layer in listed])
    order = strengths.argsort(descending=True)
    stays = order[entries[order].cumsum(0) <= 0.5 * entries.sum()]
    expected = int((stays < listed[0].strength().numel()).sum())
    kept = int(mine.masks["2.weight"].flatten(2).any(2).sum())
    assert abs(kept - expected) <= 2


def test_limits_of_the_network_hold_compensated_units_too() -> None:
    model = network()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    view = View(trace(model, PICTURES[:2]), weights, None, 0, model, PICTURES[:2], DATA)
    method = SNACS(keep=0.8, limits=True)
    found = method.evidence(gather_evidence(method, view))
    assert set(found.limits) == {"0", "2"}
    assert all(limit.slack == 0.15 for limit in found.limits.values())


def test_contradictions_are_told() -> None:
    with pytest.raises(ArgumentError, match="ranks filters"):
        SNACS(granularity="kernels", ranking="compensated")
    with pytest.raises(ArgumentError, match="leave it out"):
        SNACS(ranking="dependence", of="patches")


def test_limits_decide_where_nothing_says_how_much_stays() -> None:
    model = network()
    mine = prune(model, PICTURES[:2], SNACS(keep=None, slack=0.5), data=DATA, progress=False)
    theirs = prune(model, PICTURES[:2], Compensated(keep=None, slack=0.5, samples=2048), data=DATA, progress=False)
    assert mine.plan.edits == theirs.plan.edits != ()
    assert mine.plan.asked["keep"] == "limits" and mine.cost_after.macs < mine.cost_before.macs
    assert "refit" in mine.plan.reached
    protected = SNACS(keep=None, slack=0.5, protect=True)
    assert prune(model, PICTURES[:2], protected, data=DATA, refit=False, progress=False).plan.cuts


@pytest.mark.parametrize("options", [{}, {"paper": True}, {"protect": False}])
def test_kernels_are_masked_to_the_limits_of_their_layers(options: dict[str, bool]) -> None:
    model = network()
    given = {"granularity": "kernels", "protect": False, "slack": 0.4} | options
    if options.get("paper"):
        pytest.importorskip("sklearn")
    method = SNACS(keep=None, **given)  # type: ignore[arg-type]
    view = View(trace(model, PICTURES[:2]), dict(model.state_dict()), None, 0, model, PICTURES[:2], DATA)
    found = method.evidence(view)
    plan = method.decide(view, found)
    assert plan.asked["keep"] == "limits"
    assert found.limits and {mask.tensor for mask in plan.masks} <= set(found.limits)
    for name, limit in found.limits.items():
        children, parents = found.scores[name].shape
        masked = [m.keep.tensor() for m in plan.masks if m.tensor == name]
        gone = int((~masked[0].reshape(children, parents, -1)[..., 0]).sum()) if masked else 0
        # Paths to the outputs stay, and nothing goes beyond the limit.
        assert gone <= limit.upper * children * parents + 1e-6
        assert gone >= int(limit.upper * children * parents + 1e-9) - max(children, parents)


def test_where_neither_keep_nor_limits_say_how_much_stays_it_says_what_to_do() -> None:
    with pytest.raises(ArgumentError, match="limits=False.*Say keep=, the fraction, or leave out limits=False"):
        SNACS(keep=None, limits=False, granularity="kernels")
    with pytest.raises(ArgumentError, match="slack=1.*leave out slack=1"):
        SNACS(keep=None, slack=1.0, limits=True)
    with pytest.raises(ArgumentError, match="limits know no time"):
        SNACS(keep=None, budget="latency")
    assert [SNACS(keep=None).slack, SNACS(keep=None, limits=True).slack, SNACS().slack] == [0.1, 0.15, 0.15]
    assert SNACS(keep=None, paper=True).slack == 0.7
    assert SNACS(keep=None, slack=1.0).slack == 1  # of a curve, the knee
