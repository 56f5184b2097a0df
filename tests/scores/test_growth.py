"""Rules of growth and of dropping: a few numbers in, a few numbers out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nervure.errors import ScoreError
from nervure.training.dynamic.counts import Ramp, drop_weakest, grow_best, protected_connections
from nervure.training.dynamic.drop_rules import DROPS
from nervure.training.dynamic.growth import GROWTH, Ask, Reading, wants_of
from nervure.training.dynamic.sites import Site, draw_scores, noise

KNOWN = [0.10360976016952017, 0.41363494068229967]


def site(weight: Any, **others: Any) -> Site:
    """A linear layer of these weights, [outputs, inputs]; zeros are free places."""
    laid = torch.tensor(weight, dtype=torch.float32)[:, :, None]
    found = {name: torch.as_tensor(value) for name, value in others.items()}
    found = {name: value[:, :, None] if name in {"gradient", "age"} else value for name, value in found.items()}
    return Site("w", laid, laid != 0, found.pop("age", torch.full(laid.shape, 99)), **found)


def ask(count: int = 1, seed: int = 0, **reading: Any) -> Ask:
    return Ask(count, noise(seed, 0, "w"), Reading(**reading))


def grown(rule: str, layer: Site, count: int, asked: Ask) -> set[tuple[int, int]]:
    """The places (output, input) that a rule takes."""
    scores = {"w": GROWTH[rule](layer, asked)}
    masks = grow_best([layer], {"w": layer.mask}, scores, {"w": layer.count() + count})
    new = (masks["w"] & ~layer.mask)[:, :, 0]
    return {(int(o), int(i)) for o, i in new.nonzero()}


def frequencies(layer: Site, draws: int = 300, **reading: Any) -> Tensor:
    """How often each place is the one that grows, [outputs, inputs]."""
    scores = (GROWTH["strategic"](layer, ask(seed=seed, **reading)) for seed in range(draws))
    firsts = torch.stack([score.masked_fill(layer.mask, -math.inf).reshape(-1).argmax() for score in scores])
    counts = torch.bincount(firsts, minlength=layer.mask.numel())
    return counts.reshape(layer.mask.shape[:2]) / draws


def test_the_same_seed_step_and_name_draw_the_same_everywhere() -> None:
    size = torch.Size([3])
    assert torch.equal(noise(1, 2, "a")(size), noise(1, 2, "a")(size))
    drawn_ = [noise(*key)(size) for key in ((1, 2, "a"), (0, 2, "a"), (1, 3, "a"), (1, 2, "b"))]
    assert len({tuple(values.tolist()) for values in drawn_}) == 4
    # Known numbers: another version, or another machine, must go on with the same chance.
    assert noise(0, 0, "w")(torch.Size([2])).tolist() == KNOWN


def test_gumbel_noise_draws_in_proportion() -> None:
    odds = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    firsts = [int(draw_scores(odds.log(), noise(seed, 0, "")).argmax()) for seed in range(2000)]
    shares = torch.bincount(torch.tensor(firsts), minlength=3) / 2000
    assert torch.allclose(shares.double(), odds, atol=0.03)


def test_gradient_growth_takes_the_largest_gradients_of_free_places() -> None:
    layer = site([[1.0, 0, 0], [0, 0, 2.0]], gradient=[[9.0, 0.1, -3.0], [2.0, 0.5, 9.0]])
    assert grown("gradient", layer, 2, ask()) == {(0, 2), (1, 0)}
    with pytest.raises(ScoreError, match="no gradient to grow by"):
        GROWTH["gradient"](site([[1.0, 0]]), ask())


def test_links_are_predicted_where_three_steps_lead() -> None:
    # 0 hears 0; 1 hears 0 and 1: so 0 should hear 1. Nothing leads to input 2.
    layer = site([[1.0, 0, 0], [1.0, 1.0, 0], [0, 0, 1.0]])
    assert grown("links", layer, 1, ask()) == {(0, 1)}
    scores = GROWTH["links"](layer, ask())[:, :, 0]
    assert float(scores[0, 1]) == pytest.approx(1 / math.sqrt(2 * 2), abs=1e-6)


def test_soft_origins_are_drawn_by_what_leaves_them_and_arrives_behind_them() -> None:
    layer = site([[3.0, 1.0, 0], [0, 0, 0.0], [0, 0, 0.0]], incoming=[0.0, 0.0, 4.0])
    spread = float(layer.weight[layer.mask].square().mean().sqrt())
    origins = frequencies(layer, endpoints="uniform").sum(0)
    expected = torch.tensor([3 / spread, 1 / spread, 4.0])
    assert torch.allclose(origins, expected / expected.sum(), atol=0.07)


def test_activation_counts_where_it_was_heard() -> None:
    layer = site([[1.0, 1.0], [0, 0]], activation=[[9.0, 1.0]])
    by_weight = frequencies(layer, endpoints="uniform").sum(0)
    by_activation = frequencies(layer, endpoints="uniform", strength="activation").sum(0)
    assert torch.allclose(by_weight, torch.tensor([0.5, 0.5]), atol=0.08)
    assert torch.allclose(by_activation, torch.tensor([0.9, 0.1]), atol=0.08)


@pytest.mark.parametrize("endpoints", ["density", "rank", "tail", "strong", "uniform"])
def test_end_points_follow_the_reading(endpoints: Any) -> None:
    strengths = [4.0, 2.0, 1.0, 1.0]
    layer = site([[s, 0.0] for s in strengths], activation=[[1.0, 1.0]])
    found = frequencies(layer, endpoints=endpoints, origins="all").sum(1)
    z = torch.tensor(strengths) / layer.weight[layer.mask].square().mean().sqrt()
    z = (z - z.mean()) / z.std(correction=0)
    odds = {
        "density": (-z.square() / 2).exp(),
        "rank": torch.tensor([(-((r / (4 / 3)) ** 2) / 2) for r in range(4)]).exp(),
        "tail": (z > 0).float(),
        "strong": z.exp(),
        "uniform": torch.ones(4),
    }[endpoints]
    assert torch.allclose(found, odds / odds.sum(), atol=0.08)


def test_hard_growth_starts_in_the_strongest_share_as_long_as_there_is_room() -> None:
    weight = torch.zeros(6, 10)
    weight[0] = torch.arange(1, 11)
    layer = site(weight.tolist())
    places = grown("strategic", layer, 9, ask(origins="hard", share=0.2))
    assert {i for _, i in places} <= {8, 9} and len(places) == 9
    # Two inputs have ten free places; the eleventh is found elsewhere rather than lost.
    assert len(grown("strategic", layer, 11, ask(origins="hard", share=0.2))) == 11


def test_without_sampling_the_likeliest_are_taken() -> None:
    layer = site([[3.0, 1.0], [0, 0], [0, 0]])
    places = [grown("strategic", layer, 2, ask(seed=s, sample=False, endpoints="strong")) for s in range(5)]
    assert all(found == {(1, 0), (2, 0)} for found in places)


def test_gradients_choose_among_the_candidates_of_the_strategy() -> None:
    weight, gradient = torch.zeros(4, 10), torch.zeros(4, 10)
    weight[0] = torch.arange(1, 11)
    gradient[3, 9], gradient[2, 0] = 1.0, 5.0
    layer = site(weight.tolist(), gradient=gradient.tolist())
    hard = {"origins": "hard", "share": 0.1, "endpoints": "uniform"}
    # The three free places of input 9 are the candidates, however steep it is elsewhere.
    assert grown("strategic", layer, 1, ask(pool=3.0, **hard)) == {(3, 9)}
    assert grown("strategic", layer, 1, ask(pool=30.0, **hard)) == {(2, 0)}
    assert wants_of("strategic", Reading(pool=2.0)) == {"gradients"}
    assert wants_of("strategic", Reading(strength="activation")) == {"activations"}
    assert wants_of("random", Reading(pool=2.0)) == frozenset()


def kept(rule: str, layer: Site, keep: int, **options: Any) -> set[tuple[int, int]]:
    spare = {"w": protected_connections(layer, grace=0, lifelines=False, **options)}
    masks = drop_weakest([layer], {"w": DROPS[rule](layer, noise(0, 0, "w"))}, spare, {"w": keep})
    return {(int(o), int(i)) for o, i in masks["w"][:, :, 0].nonzero()}


def test_dropping_leaves_the_best() -> None:
    layer = site([[3.0, -1.0, 2.0, 0]], gradient=[[0.1, 9.0, 1.0, 99.0]], activation=[[1.0, 5.0, 1.0, 1.0]])
    assert kept("magnitude", layer, 2) == {(0, 0), (0, 2)}
    assert kept("saliency", layer, 2) == {(0, 1), (0, 2)}
    assert kept("activation", layer, 2) == {(0, 1), (0, 0)}
    assert len(kept("random", layer, 2)) == 2
    with pytest.raises(ScoreError, match="no gradient to drop by"):
        DROPS["saliency"](site([[1.0]]), noise(0, 0, "w"))


def test_by_sign_the_same_share_of_positive_and_negative_weights_goes() -> None:
    # By size all negative weights would go.
    layer = site([[5.0, 6.0, 7.0, 8.0, -1.0, -2.0, -3.0, -4.0]])
    assert kept("signs", layer, 4) == {(0, 2), (0, 3), (0, 6), (0, 7)}


def test_the_young_and_the_last_of_an_output_are_spared() -> None:
    layer = site([[0.1, 5.0], [0.2, 0.3]], age=[[1, 9], [9, 9]])
    assert protected_connections(layer, grace=1, lifelines=False)[:, :, 0].tolist() == [[True, False], [False, False]]
    assert protected_connections(layer, grace=0, lifelines=True)[:, :, 0].tolist() == [[False, True], [False, True]]
    scores = {"w": layer.weight.abs()}
    # More is spared than may stay: just these stay.
    masks = drop_weakest([layer], scores, {"w": protected_connections(layer, grace=1, lifelines=True)}, 1)
    assert masks["w"][:, :, 0].tolist() == [[True, True], [False, True]]


def test_kernels_are_whole_and_cost_what_they_hold() -> None:
    weight = torch.zeros(2, 3, 4)
    weight[0, 0] = torch.tensor([1.0, 0, 2.0, 0])
    layer = Site("w", weight, weight != 0, torch.full(weight.shape, 3), gradient=torch.ones(2, 3, 4)).in_kernels()
    assert layer.mask[:, :, 0].tolist() == [[True, False, False], [False] * 3] and layer.count() == 4
    assert float(layer.weight[0, 0]) == pytest.approx(math.sqrt(5)) and float(layer.gradient[1, 1]) == 2.0  # type: ignore[index]
    masks = grow_best([layer], {"w": layer.mask}, {"w": torch.arange(6.0).reshape(2, 3, 1)}, 11)
    # Eleven weights pay for two kernels.
    assert int(masks["w"].sum()) == 2 and bool(masks["w"][1, 2])


@pytest.mark.parametrize("shape", ["cosine", "linear", "cubic", "constant"])
def test_ramps_begin_and_end_where_they_say(shape: Any) -> None:
    ramp = Ramp(shape, 0.5, 0.1)
    assert ramp(0.0) == pytest.approx(0.5)
    assert ramp(1.0) == pytest.approx(0.5 if shape == "constant" else 0.1)
    values = [ramp(x / 10) for x in range(11)]
    assert values == sorted(values, reverse=True) and eval(repr(ramp)) == ramp


def test_the_strongest_connections_name_both_ends() -> None:
    # The two strongest join input 1 to output 0 and input 3 to output 2; the others are the weak half.
    layer = site([[0, 9, 0, 0.1], [0.1, 0, 0, 0], [0, 0, 0, 8]])
    asked = ask(origins="edges", share=0.5, sample=False)
    assert grown("strategic", layer, 1, asked) == {(2, 1)}
    assert grown("strategic", site([[0, 9, 0, 0], [0.1, 0, 0, 0], [0, 0, 0, 8]]), 2, asked) == {(2, 1), (0, 3)}
    drawn = {next(iter(grown("strategic", layer, 1, ask(seed=s, origins="edges", share=0.5)))) for s in range(20)}
    assert drawn == {(2, 1)}


def test_gradients_choose_among_a_share_of_the_free_places() -> None:
    steep = [[0.0, 0, 1, 2], [0, 0, 3, 4]]
    layer = site([[5, 0, 0, 0], [0, 1, 0, 0]], gradient=steep)
    reading: dict[str, Any] = {"strength": "weight", "endpoints": "strong", "sample": False}
    assert grown("strategic", layer, 1, ask(**reading)) == {(1, 0)}
    assert grown("strategic", layer, 1, ask(candidates=0.99, **reading)) == {(1, 3)}
    assert grown("strategic", layer, 1, ask(candidates=0.1, **reading)) == {(1, 0)}
    assert wants_of("strategic", Reading(candidates=0.5)) == {"gradients"}


def test_places_on_no_path_are_no_candidates() -> None:
    opened = torch.tensor([[True, False, False, True], [True, False, False, False]])[:, :, None]
    layer = site([[5, 0, 0, 0], [0, 1, 0, 0]], gradient=[[0.0, 9, 9, 1], [2, 0, 9, 9]]).with_open(opened)
    scores = GROWTH["strategic"](layer, ask(candidates=0.9, strength="weight", sample=False))
    assert int(scores.masked_fill(layer.mask, -math.inf).argmax()) == 4
