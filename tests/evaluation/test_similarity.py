"""What two sparse networks have in common, beside what chance gives; hidden units in order; areas under curves."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nervure import Keep, Similarity, similarity, trace
from nervure.analysis.unit_matching import best_assignment
from nervure.errors import ArgumentError, DataError
from nervure.evaluation import accuracy_and_auc, align, common, macro_auc, reorder_units


def lots(density: float, seed: int, *, size: int = 400) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, size, generator=generator) < density for name in ("a", "b")}


def test_masks_by_lot_are_as_alike_as_chance_says() -> None:
    for one, other in ((0.1, 0.1), (0.05, 0.3)):
        found = similarity(lots(one, 0), lots(other, 1))
        assert found.chance == pytest.approx(max(one, other), rel=0.02)
        assert found.jaccard_chance == pytest.approx(one * other / (one + other - one * other), rel=0.02)
        assert found.overlap == pytest.approx(found.chance, rel=0.03)
        assert found.jaccard == pytest.approx(found.jaccard_chance, rel=0.03)
        assert abs(found.above_chance) < 0.01


def test_chance_knows_that_layers_differ_in_density() -> None:
    one, other = ({"thin": lots(0.02, s)["a"], "thick": lots(0.8, s)["b"]} for s in (0, 1))
    found = similarity(one, other)
    # As one tensor of density 0.41 half of the connections would be shared less often.
    assert found.chance == pytest.approx((0.02**2 + 0.8**2) / 0.82, rel=0.01) == pytest.approx(found.overlap, rel=0.01)


def test_the_same_masks_and_parts_of_them_are_recognised() -> None:
    masks = lots(0.2, 0)
    half = {name: mask & (torch.arange(400) % 2 == 0) for name, mask in masks.items()}
    assert similarity(masks, masks).overlap == similarity(masks, masks).jaccard == 1
    found = similarity(masks, half)
    assert found.overlap == 1 and found.jaccard == pytest.approx(0.5, abs=0.02)
    packed = {name: Keep.of(mask) for name, mask in masks.items()}
    assert similarity(packed, half) == found == Similarity(*(getattr(found, f) for f in found.__slots__))


def test_what_several_runs_share_is_what_all_have() -> None:
    runs = [lots(0.5, seed) for seed in range(3)]
    found = common(runs)
    assert torch.equal(found.masks["a"], runs[0]["a"] & runs[1]["a"] & runs[2]["a"])
    assert found.similarity == pytest.approx(0.25, rel=0.02) == pytest.approx(found.chance, rel=0.02)
    assert common([runs[0], runs[0]]).similarity == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": lots(0.1, 0)["a"]}, r"mask 'b' has shape \(400, 400\) in one run and none"),
        ({**lots(0.1, 0), "a": torch.ones(2, 2, dtype=torch.bool)}, r"\(2, 2\) in another"),
        ({"a": torch.ones(400, 400), "b": torch.ones(400, 400)}, "give a bool tensor"),
        (lots(0.0, 0), "without any connection"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(other: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        similarity(lots(0.1, 0), other)
    with pytest.raises(ArgumentError, match="two or more"):
        common([lots(0.1, 0)])


# Units in order


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_the_best_assignment_is_the_best_of_all(size: int, seed: int) -> None:
    gain = np.random.default_rng(seed).normal(size=(size, size))
    found = best_assignment(gain)
    best = max(sum(gain[i, p[i]] for i in range(size)) for p in itertools.permutations(range(size)))
    assert sorted(found) == list(range(size)) and gain[np.arange(size), found].sum() == pytest.approx(best)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )


def test_a_network_with_its_units_shuffled_is_found_to_be_the_same() -> None:
    model, x = convolutional().eval(), torch.randn(4, 1, 8, 8)
    graph, weights = trace(model, x), {n: t.detach().clone() for n, t in model.state_dict().items()}
    masks = {n: torch.rand(t.shape) < 0.3 for n, t in model.named_parameters() if t.dim() > 1}
    sparse = weights | {n: weights[n] * mask for n, mask in masks.items()}
    shuffles = {g.name: torch.randperm(g.size) for g in graph.prunable}
    assert len(shuffles) == 2
    shuffled, moved = reorder_units(graph, sparse, shuffles), reorder_units(graph, masks, shuffles)
    assert similarity(masks, moved).overlap < 0.7
    back = align(graph, sparse, shuffled)
    assert similarity(masks, reorder_units(graph, moved, back)).overlap == 1
    expected = model(x)
    model.load_state_dict(reorder_units(graph, weights, shuffles))
    torch.testing.assert_close(model(x), expected)


def test_weights_of_another_network_are_refused() -> None:
    model = convolutional()
    graph, weights = trace(model, torch.randn(2, 1, 8, 8)), model.state_dict()
    with pytest.raises(ArgumentError, match=r"tensor '3\.weight' is missing in one network"):
        align(graph, {n: t for n, t in weights.items() if n != "3.weight"}, weights)


# Areas under curves


@given(st.integers(0, 10**6))
def test_the_area_is_the_chance_of_the_right_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few levels, so that there are ties.
    scores = torch.randint(4, (30, 3), generator=generator).double()
    labels = torch.randint(3, (30,), generator=generator)
    found = []
    for c in labels.unique().tolist():
        own, others = scores[labels == c, c], scores[labels != c, c]
        gap = own[:, None] - others[None]
        found.append(float(((gap > 0) + 0.5 * (gap == 0)).double().mean()))
    assert macro_auc(scores, labels) == pytest.approx(sum(found) / len(found))


def test_quality_is_accuracy_and_area_and_one_class_has_none() -> None:
    model, data = nn.Identity(), [(torch.eye(3), torch.arange(3)), (torch.eye(3)[[1, 0]], torch.tensor([1, 0]))]
    assert accuracy_and_auc(model, data) == (1.0, 1.0)
    with pytest.raises(DataError, match="all of one class"):
        macro_auc(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64))
