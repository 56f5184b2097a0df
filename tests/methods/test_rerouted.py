"""Experts leave by what their mixture says once their tokens went elsewhere."""

import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Rerouted, prune, trace
from nervure.errors import DataError, ScoreError
from nervure.methods import View, gather_evidence
from nervure.methods.channels.rerouted import Departures, apart, together
from tests.refit.test_expert_ends import Writing, network
from tests.surgery.test_experts import EXPERTS, NETS, Grouped, Mixture, Picked, Written, silenced


def inputs(count: int = 60) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(5))


def stays(net: nn.Module, x: Tensor, **how: Any) -> list[bool]:
    """Which experts a method keeps."""
    pruned = prune(net, x, Rerouted(**how), data=[x], refit=False, progress=False)
    (cut,) = pruned.plan.cuts
    return cut.keep.tensor().tolist()


def by_hand(net: nn.Sequential, x: Tensor, left: int) -> list[bool]:
    """One after the other leaves that whose gate, silenced, changes the mixture least."""
    stay, mixture = torch.ones(EXPERTS, dtype=torch.bool), net[1]
    with torch.no_grad():
        y = net[0](x)
        whole = mixture(y)
        while int(stay.sum()) > left:
            costs = {}
            for unit in stay.nonzero()[:, 0].tolist():
                keep = stay.clone()
                keep[unit] = False
                with silenced(mixture.gate, keep):
                    costs[unit] = float((mixture(y) - whole).square().sum())
            stay[min(costs, key=costs.__getitem__)] = False
    return stay.tolist()


@pytest.mark.parametrize("kind", [kind for kind in NETS if kind is not Written])
@pytest.mark.parametrize("left", [4, 3, 2])
def test_those_leave_that_are_missed_least(kind: type[Mixture], left: int) -> None:
    net, x = network(kind), inputs()
    assert stays(net, x, keep=left / EXPERTS) == by_hand(net, x, left)


def test_where_experts_leave_in_pairs_the_pair_leaves_that_is_missed_least() -> None:
    net, x = network(Written), inputs()
    with torch.no_grad():
        y = net[0](x)
        whole, costs = net[1](y), {}
        for pair in combinations(range(EXPERTS), 2):
            keep = torch.ones(EXPERTS, dtype=torch.bool)
            keep[list(pair)] = False
            with silenced(net[1].gate, keep):
                costs[pair] = float((net[1](y) - whole).square().sum())
    kept = stays(net, x, keep=4 / EXPERTS)
    assert tuple(unit for unit, stay in enumerate(kept) if not stay) == min(costs, key=costs.__getitem__)
    assert sum(stays(net, x, keep=2 / EXPERTS)) == 2


def test_of_many_sets_some_are_tried() -> None:
    assert together(range(300), 1) == [(n,) for n in range(300)]
    sets = together(range(100), 2)
    assert 200 < len(sets) <= 256
    assert apart([(0, 1), (1, 2), (2, 3)]) == [(0, 1), (2, 3)]


def test_fewer_rounds_let_several_leave_at_once() -> None:
    net, x = network(Grouped), inputs()
    first = by_hand(net, x, EXPERTS - 1).index(False)
    kept = stays(net, x, keep=0.5, rounds=1)
    assert sum(kept) == EXPERTS // 2
    assert not kept[first]


def test_an_expert_whose_twin_stays_leaves_first() -> None:
    net, x = network(Picked), inputs()
    mixture: Any = net[1]
    with torch.no_grad():
        # Each token that chooses one has the other for its second choice, or the other way round.
        mixture.top_k = 1
        for parameter in (mixture.up, mixture.down, mixture.gate.weight, mixture.gate.bias):
            parameter[4] = parameter[1]
        mixture.gate.bias[4] -= 1e-3
    kept = stays(net, x, keep=(EXPERTS - 1) / EXPERTS)
    assert not kept[4] or not kept[1]


def test_samples_are_those_that_are_given_first() -> None:
    net, x = network(Grouped), inputs(200)
    assert stays(net, x[:40], keep=0.5) == stays(net, x, keep=0.5, samples=40)


def test_what_was_found_is_kept_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(Grouped), inputs()
    view = View(trace(net, x), dict(net.state_dict()), model=net, data=[x])
    first = gather_evidence(Rerouted(keep=0.5), view, folder=tmp_path)
    assert [*tmp_path.rglob("rerouted.safetensors")]
    monkeypatch.setattr(Departures, "_stay", lambda *_: pytest.fail("it is found out again"))
    again = gather_evidence(Rerouted(keep=0.5), view, folder=tmp_path)
    assert Rerouted(keep=0.5).plan(first) == Rerouted(keep=0.5).plan(again)


def test_without_a_mixture_or_data_it_says_so() -> None:
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(ScoreError, match="no expert of this model may leave"):
        prune(plain, inputs(), Rerouted(), data=[inputs()], progress=False)
    with pytest.raises(DataError, match="no data were given"):
        prune(network(Grouped), inputs(), Rerouted(), progress=False)
    alone, x = Grouped().eval(), inputs()
    with pytest.raises(ScoreError, match=r"cannot be heard.*in no module of their own.*ignore="):
        prune(alone, x, Rerouted(), data=[x], progress=False)


def test_all_may_stay() -> None:
    net, x = network(Grouped), inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned = prune(net, x, Rerouted(keep=1.0), data=[x], progress=False)
    assert not pruned.plan.cuts
    assert pruned.cost_before.params == pruned.cost_after.params


def test_a_mixture_may_write_into_what_it_is_given() -> None:
    assert stays(network(Writing), inputs(), keep=0.5) == stays(network(Grouped), inputs(), keep=0.5)
