"""A tensor that several modules share is found by the name of each of them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nervure import Magnitude, MagnitudeMasks, apply, prune, refit, trace
from nervure.errors import ArgumentError, PlanError
from nervure.graph.tape import names_of_tensors
from nervure.plan import Keep, Mask, Plan
from tests.networks import seeded


class Tied(nn.Module):
    """As language models do: the head has no tensor but the table's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        found: Tensor = self.head(x + self.down(self.up(x).relu()))
        return found


@pytest.fixture
def model() -> nn.Module:
    return seeded(Tied).eval()


TOKENS = torch.arange(6).reshape(2, 3)


def test_every_name_of_a_shared_tensor_is_known_by_its_first(model: nn.Module) -> None:
    assert names_of_tensors(model)["table.weight"] == ["table.weight", "head.weight"]
    twice = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    twice.append(twice[0])
    assert names_of_tensors(twice) == {"0.weight": ["0.weight", "2.weight"]}


@pytest.mark.parametrize("name", ["head", "head.weight", "he*", "table"])
def test_what_is_ignored_by_either_name_stays(model: nn.Module, name: str) -> None:
    graph = trace(model, TOKENS, ignore=[name])
    assert [group.name for group in graph.prunable] == ["up"]
    pruned = prune(model, TOKENS, MagnitudeMasks(density=0.5, guard="none"), ignore=[name], progress=False)
    assert set(pruned.masks) == {"up.weight", "down.weight"}
    assert "table.weight" not in prune(model, TOKENS, MagnitudeMasks(dense=(name,)), progress=False).masks


def test_a_module_may_be_given_itself(model: nn.Module) -> None:
    assert trace(model, TOKENS, ignore=model.head) == trace(model, TOKENS, ignore="head")


def test_only_means_the_shared_tensor_by_either_name(model: nn.Module) -> None:
    both = [trace(model, TOKENS, only=[name, "down"]) for name in ("head", "table")]
    assert len({tuple(group.name for group in graph.prunable) for graph in both}) == 1
    assert both[0].prunable
    smaller = prune(model, TOKENS, Magnitude(keep=0.5), only=["head", "down"], progress=False).model
    assert smaller.head.weight is smaller.table.weight


def test_a_name_that_is_none_is_still_refused(model: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="matches no module"):
        trace(model, TOKENS, ignore=["heads"])


def test_a_plan_that_masks_by_another_name_is_told_the_first(model: nn.Module) -> None:
    graph, keep = trace(model, TOKENS), Keep.of(torch.ones(11, 8) > 0)
    with pytest.raises(PlanError, match=r"head.weight.*calls this tensor 'table.weight'"):
        apply(model, graph, Plan((Mask("head.weight", keep),), graph.fingerprint))


def test_a_refit_holds_masks_by_either_name() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False)).eval()
    dense[2].weight = dense[0].weight
    keep = torch.rand(6, 6) > 0.5
    sparse, data = copy.deepcopy(dense), [torch.randn(64, 6), torch.randn(64, 6)]
    sparse[0].weight.data *= keep
    for name in ("0.weight", "2.weight"):
        result = refit(sparse, data, reference=dense, masks={name: keep}, progress=False).result
        assert not result[0].weight[~keep].any()
        assert not torch.equal(result[0].weight, sparse[0].weight)
