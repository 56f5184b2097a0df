"""MINT finds the parent that a child depends on, by blocks, and cuts or masks the rest."""

import pytest
import torch
from torch import Tensor, nn

from nervure import MINT, prune, trace
from nervure.errors import ArgumentError, ScoreError
from nervure.graph.tape import named_tensors
from nervure.methods import View
from nervure.scores.bundles import layers
from nervure.scores.mint import mint
from nervure.stats import measure


def listening(heard: dict[int, int]) -> nn.Sequential:
    """Four parents that are copies of the inputs; child c hears parent heard[c], and the others in a whisper."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, len(heard), bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[2].weight.fill_(1e-3)
        for child, parent in heard.items():
            model[2].weight[child, parent] = 1.0
    return model


def data(samples: int = 240) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(samples, 4, generator=generator), torch.zeros(samples, dtype=torch.long))]


def scored(model: nn.Module, groups: int) -> Tensor:
    graph = trace(model, data()[0][0][:1])
    stats = measure(model, graph, data(), want={"connections"})
    (layer,) = layers(graph, dict(named_tensors(model)), ["2.weight"])
    return mint(layer, stats.connections["2.weight"], groups=groups)


def test_the_parent_that_a_child_hears_scores_highest() -> None:
    scores = scored(listening({0: 2, 1: 0, 2: 3}), groups=4)
    assert scores.shape == (3, 4)
    assert scores.argmax(1).tolist() == [2, 0, 3]
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1
    assert bool((scores.max(1).values > scores.median(1).values + 0.2).all())


def test_filters_of_a_block_have_one_score() -> None:
    scores = scored(listening({0: 3, 1: 2}), groups=2)
    assert scores[:, 0].equal(scores[:, 1])
    assert scores[:, 2].equal(scores[:, 3])
    assert bool((scores[:, 2] > 2 * scores[:, 0]).all())


def test_a_child_with_a_single_parent_depends_on_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))
    x = torch.rand(8, 1, 4, 4)
    graph = trace(model, x[:1])
    stats = measure(model, graph, [(x, torch.zeros(8))], want={"connections"})
    (layer,) = layers(graph, dict(named_tensors(model)), ["1.weight"])
    assert mint(layer, stats.connections["1.weight"]).tolist() == [[1.0]] * 4


def test_what_no_child_hears_is_cut() -> None:
    model = listening({0: 2, 1: 2, 2: 0})
    pruned = prune(model, data()[0][0][:1], MINT(keep=0.5, budget="channels", groups=4), data=data(), progress=False)
    (cut,) = pruned.plan.cuts
    assert cut.keep.tensor().tolist() == [True, False, True, False]


def test_kernels_are_masked_and_no_layer_loses_more_than_its_limit() -> None:
    model, example = listening({0: 2, 1: 0, 2: 3}), data()[0][0][:1]
    loose = MINT(keep=0.25, granularity="kernels", budget="connections", groups=4)
    plan = prune(model, example, loose, data=data(), progress=False).plan
    (mask,) = plan.masks
    assert mask.keep.tensor().nonzero().tolist() == [[0, 2], [1, 0], [2, 3]]
    tight = MINT(keep=0.75, granularity="kernels", budget="connections", groups=4, upper=0.25)
    assert prune(model, example, tight, data=data(), progress=False).plan.masks[0].keep.count == 9


def test_evidence_is_asked_for_and_hyper_parameters_are_checked() -> None:
    model = listening({0: 1})
    graph = trace(model, data()[0][0][:1])
    with pytest.raises(ScoreError, match="Measure want={'connections'}"):
        MINT().plan(View(graph, dict(named_tensors(model))))
    assert not MINT(keep=1.0).plan(View(graph, dict(named_tensors(model)))).edits
    for wrong in ({"groups": 0}, {"samples": 0}, {"upper": 0.0}, {"keep": 2.0}, {"granularity": "layers"}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            MINT(**wrong)  # type: ignore[arg-type]
