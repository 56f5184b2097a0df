"""Energy and Depth: which blocks leave, how many, and what is said where that cannot be decided."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import Depth, Energy, Graph, Plan, count, measure, prune, trace
from nervure.dependence import energy_distance, energy_r2
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning, ScoreError
from nervure.methods import View
from nervure.methods.dropping import BlockScore, droppable
from nervure.methods.judge import Judge
from nervure.plan import Drop
from nervure.surgery.price import price
from nervure.zoo import build
from nervure.zoo.data import fake
from nervure.zoo.models.densenet import DenseNet

# Few samples are told by a warning; one test below looks for it.
pytestmark = pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")

METHODS = [
    Energy(drop=2),
    Energy(keep=0.6, score="dcor", target="probabilities", policy="rank"),
    Energy(keep=0.7, budget="macs", score="max_ref", unbiased=False, reduce="flatten", target="labels", rounds=1),
    Energy(keep=0.5, budget="blocks", score="coefficient", back=True, reduce="gap", stages=2),
    Energy(keep=0.6, score="dcor", target="outputs", policy="rank", reduce="random"),
    Depth(drop=3),
    Depth(keep=0.6, score="branch"),
    Depth(keep=0.7, budget="macs", score="cka"),
    Depth(keep=0.5, budget="blocks", score="random", seed=3),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=repr)


class Net(nn.Module):
    """Five residual blocks on an 8 x 8 picture; the third is dead."""

    def __init__(self, width: int = 6, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)) for _ in range(5)
        )
        self.head = nn.Linear(width, 4)
        nn.init.zeros_(self.blocks[2][1].weight)
        nn.init.zeros_(self.blocks[2][1].bias)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x.relu())
        x = self.head(x.mean((2, 3)))
        return {"answer": x, "twice": 2 * x} if self.form == "dict" else x


def batches(samples: int = 96, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(fake(samples, validation=0.1).train.batches(size, shuffle_seed=0))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A net that knows the four pictures."""
    from nervure import train

    torch.manual_seed(0)
    model = Net()
    train(model, batches(), epochs=3, lr=0.05, progress=False)
    nn.init.zeros_(model.blocks[2][1].weight)
    nn.init.zeros_(model.blocks[2][1].bias)
    return model.eval()


@pytest.fixture(scope="module")
def view(trained: nn.Module) -> View:
    example = torch.randn(1, 3, 8, 8)
    graph = trace(trained, example)
    stats = measure(trained, graph, batches(), want={"blocks", "outputs", "labels"}, progress=False)
    return View(graph, {}, stats, 0, trained, example, batches())


def names(plan: Plan) -> list[str]:
    return [d.block for d in plan.drops]


@every_method
def test_a_method_is_a_value_and_its_plan_only_drops(method: Any, trained: nn.Module, view: View) -> None:
    assert eval(repr(method)) == method
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    first = prune(trained, torch.ones(1, 3, 8, 8), method, data=batches(), progress=False)
    assert first.plan == method.plan(replace(view, stats=None))
    assert first.plan.edits == first.plan.drops != ()
    assert first.verification is not None
    assert price(first.graph, first.plan) == (first.cost_after.params, first.cost_after.macs)
    assert all(t.equal(before[name]) for name, t in trained.state_dict().items())
    if method.drop is None:
        assert first.plan.reached["keep"] <= method.keep
    assert replace(method, keep=1.0, drop=None).plan(View(first.graph, {})).edits == ()


@pytest.mark.parametrize("score", ["r2", "max_ref", "coefficient", "dcor"])
def test_a_dead_block_tells_nothing_and_leaves_first(score: Any, view: View) -> None:
    method = Energy(drop=1, score=score, policy="rank")
    scores = method.scores(view)
    assert scores["blocks.2"].mean == 0
    assert all(s.mean > 0 for name, s in scores.items() if name != "blocks.2")
    assert names(method.plan(view)) == ["blocks.2"]


@pytest.mark.parametrize("score", ["influence", "branch", "cka"])
def test_yardsticks_also_drop_the_dead_block_first(score: Any, view: View) -> None:
    method = Depth(drop=1, score=score)
    wanted = replace(view, stats=None)
    assert method.scores(wanted)["blocks.2"].mean == pytest.approx(0, abs=1e-6)
    assert names(method.plan(wanted)) == ["blocks.2"]


def test_scores_are_the_statistics_of_the_feature_maps(view: View) -> None:
    assert view.stats is not None
    assert view.stats.labels is not None
    x, y = view.stats.blocks["blocks.1"], view.stats.labels
    r2 = Energy(target="labels", rounds=1).scores(view)["blocks.1"]
    assert r2.mean == pytest.approx(float(energy_r2(x, y)))
    faithful = Energy(score="max_ref", unbiased=False, target="labels", rounds=1).scores(view)["blocks.1"].mean
    reference = int(torch.bincount(y).argmax())
    others = [k for k in range(4) if k != reference]
    expected = max(float(energy_distance(x[y == reference], x[y == k], unbiased=False)) for k in others)
    assert faithful == pytest.approx(expected)


def test_rounds_are_alike_in_classes_and_their_spread_is_the_error(view: View) -> None:
    found = Energy(target="labels", rounds=4).scores(view)["blocks.0"]
    assert len(found.rounds) == 4
    assert found.mean == pytest.approx(sum(found.rounds) / 4)
    assert found.error == pytest.approx(float(torch.tensor(found.rounds).std()) / 2, rel=1e-5)
    assert Energy(target="labels", rounds=1).scores(view)["blocks.0"].error != found.error


def blocks(count: int) -> list[Any]:
    from nervure import Block

    return [Block(str(i), (f"m{i}",), "residual") for i in range(count)]


def test_clusters_keep_their_first_block_or_their_last() -> None:
    scores = [0.1, 5.0, 0.2, 9.0, 5.1]
    assert Energy().removals(scores, blocks(5))[2] == ("2", "4")
    assert Energy(back=True).removals(scores, blocks(5))[2] == ("0", "1")
    assert Energy().removals(scores, blocks(5))[0] == ()
    assert Energy().removals(scores, blocks(5))[5] == tuple("01234")


def test_ranks_drop_the_lowest_and_of_equals_the_latest() -> None:
    scores = [3.0, 1.0, 1.0, 2.0]
    method = Energy(policy="rank")
    assert method.removals(scores, blocks(4))[1:3] == [("2",), ("1", "2")]
    assert replace(method, back=True).removals(scores, blocks(4))[1] == ("1",)


def test_the_budget_is_met_by_the_fewest_blocks(view: View) -> None:
    for budget in ("params", "macs", "blocks"):
        method = Energy(keep=0.55, budget=budget, policy="rank")
        plan = method.plan(view)
        assert plan.reached["keep"] <= 0.55 + 0.05 * (budget == "blocks")
        one_less = Plan(tuple(Drop(n) for n in names(plan)[1:]))
        share = price(view.graph, one_less), price(view.graph, Plan())
        assert getattr(share[0], budget, 5) > 0.55 * getattr(share[1], budget, 5)
    with pytest.raises(BudgetError, match=r"keep=0\.01 of params cannot be met: without all 5 blocks"):
        Energy(keep=0.01).plan(view)
    with pytest.raises(BudgetError, match="drop=6: the model has only 5"):
        Energy(drop=6).plan(view)


def test_a_share_of_the_latency_is_measured(view: View) -> None:
    plan = Depth(keep=0.9, budget="latency", score="influence").plan(replace(view, stats=None))
    assert 1 <= len(plan) <= 5


@pytest.mark.parametrize(("tolerance", "dropped"), [(0.0, 0), (0.2, 2), (0.29, 2), (0.9, 5)])
def test_tolerance_drops_as_many_as_the_held_out_accuracy_allows(
    tolerance: float, dropped: int, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "accuracy", lambda self, names: 1 - 0.1 * len(names))
    assert len(Energy(tolerance=tolerance, policy="rank").plan(view)) == dropped


def test_a_dead_block_costs_no_accuracy(view: View) -> None:
    assert "blocks.2" in names(Energy(tolerance=0.0, policy="rank").plan(view))
    judge = Judge(view, 5)
    assert judge.accuracy(("blocks.2",)) >= judge.accuracy(()) - 0.13


def test_stages_measure_again_on_what_is_left(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    original = Energy.block_scores

    def spy(self: Energy, seen: View, left: Sequence[Any]) -> dict[str, BlockScore]:
        assert seen.model is not None
        asked.append((len(left), count(seen.model, torch.ones(1, 3, 8, 8)).params))
        return original(self, seen, left)

    monkeypatch.setattr(Energy, "block_scores", spy)
    plan = Energy(drop=4, stages=2, policy="rank").plan(view)
    assert len(plan) == 4
    assert [n for n, _ in asked] == [5, 3]
    assert asked[1][1] < asked[0][1]


def test_the_table_shows_near_ties(view: View) -> None:
    text = Energy(drop=1, policy="rank").describe(view)
    row = next(line for line in text.splitlines() if line.startswith("blocks.2"))
    assert row.endswith("x 100%")
    assert len(text.splitlines()) == 6


def test_inner_or_outer_blocks_but_never_both() -> None:
    vit = build("vit_tiny", seed=0, dim=12, depth=2, heads=2, image_size=8, patch=4).eval()
    graph = trace(vit, torch.randn(1, 3, 8, 8))
    assert [b.name for b in droppable(graph, "fine")] == [f"blocks.{i}.{h}" for i in (0, 1) for h in ("attn", "mlp")]
    assert [b.name for b in droppable(graph, "whole")] == ["blocks.0", "blocks.1"]
    pruned = prune(vit, torch.randn(1, 3, 8, 8), Depth(drop=1, granularity="whole"), data=batches(), progress=False)
    whole, half = count(vit, torch.randn(1, 3, 8, 8)), pruned.cost_after
    encoder = sum(p.numel() for p in vit.blocks[0].parameters())
    assert whole.params - half.params == encoder


@pytest.mark.parametrize("name", ["resnet20", "densenet", "vit_tiny"])
def test_zoo_networks_lose_exactly_the_blocks_and_compute_the_rest(name: str) -> None:
    torch.manual_seed(0)
    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet20": lambda: build("resnet20", width=0.25, num_classes=4),
        "densenet": lambda: DenseNet(13, 3, 4, 2, False),
        "vit_tiny": lambda: build("vit_tiny", dim=12, depth=2, heads=2, image_size=8, patch=4, num_classes=4),
    }
    model = makers[name]().eval()
    method = Energy(keep=0.7, target="labels", reduce="gap")
    pruned = prune(model, torch.randn(2, 3, 8, 8), method, data=batches(), progress=False)
    assert pruned.verification is not None
    assert pruned.cost_after.params <= 0.7 * pruned.cost_before.params
    assert price(pruned.graph, pruned.plan) == (pruned.cost_after.params, pruned.cost_after.macs)
    if name != "densenet":
        gone = [pruned.graph.block(n).modules for n in names(pruned.plan)]
        lost = sum(p.numel() for modules in gone for m in modules for p in model.get_submodule(m).parameters())
        assert pruned.cost_before.params - pruned.cost_after.params == lost


def test_regression_and_embeddings_take_distance_correlation() -> None:
    torch.manual_seed(1)
    model = Net()
    model.head = nn.Linear(6, 1)
    data = [(x, y.float()) for x, y in batches()]
    method = Energy(drop=1, score="dcor", target="outputs", policy="rank")
    found = prune(model.eval(), torch.randn(1, 3, 8, 8), method, data=data, progress=False)
    assert names(found.plan) == ["blocks.2"]
    with pytest.raises(DataError, match="one output per sample, so it predicts no classes"):
        prune(model, torch.randn(1, 3, 8, 8), Energy(drop=1), data=data, progress=False)


def test_one_of_several_outputs_is_named() -> None:
    torch.manual_seed(0)
    model = Net(form="dict").eval()
    for output in ("answer", "twice"):
        method = Energy(drop=1, output=output, score="dcor", target="outputs", policy="rank")
        assert names(prune(model, torch.randn(1, 3, 8, 8), method, data=batches(), progress=False).plan) == ["blocks.2"]
    with pytest.raises(ArgumentError, match="no tensor called 'logits'"):
        method = Energy(drop=1, output="logits")
        prune(model, torch.randn(1, 3, 8, 8), method, data=batches(), progress=False)


def test_few_samples_of_a_class_are_told(view: View) -> None:
    with pytest.warns(NervureWarning, match="only 5 samples in a round"):
        Energy(target="labels", rounds=4).scores(view)


def changed(view: View, **stats: Any) -> View:
    assert view.stats is not None
    return replace(view, stats=replace(view.stats, **stats))


def test_what_tells_nothing_is_refused_with_the_reason(view: View) -> None:
    assert view.stats is not None
    assert view.stats.labels is not None
    one = torch.zeros_like(view.stats.labels)
    with pytest.raises(ScoreError, match="labels of all 88 samples are class 0"):
        Energy(drop=1, target="labels").plan(changed(view, labels=one))
    with pytest.raises(ScoreError, match="predictions of all 88 samples are class 2"):
        Energy(drop=1).plan(changed(view, outputs=torch.tensor([[0.0, 0.0, 1.0]]).expand(88, 3)))
    with pytest.raises(ScoreError, match="outputs are the same for all 88 samples"):
        Energy(drop=1, score="dcor", target="outputs").plan(changed(view, outputs=torch.ones(88, 3)))
    with pytest.raises(ScoreError, match="block 'blocks.0' has no evidence: it did not run"):
        Energy(drop=1).plan(changed(view, blocks={}, skipped={"block blocks.0": "it did not run"}))
    with pytest.raises(ScoreError, match="fewer than two classes with two of them"):
        few = changed(view, labels=torch.arange(88), blocks=view.stats.blocks)
        Energy(drop=1, target="labels", rounds=1).plan(few)
    with pytest.raises(DataError, match="no data were given"):
        Energy(drop=1).plan(replace(view, stats=None, data=None))


def test_a_model_without_blocks_or_with_pinned_ones_says_why() -> None:
    chain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(BudgetError, match="no residual or dense block was found"):
        prune(chain, torch.randn(1, 3, 8, 8), Depth(drop=1, score="random"), progress=False)
    pinned = Graph((), blocks=(replace(blocks(1)[0], pinned="shared"),))
    with pytest.raises(BudgetError, match="0: shared"):
        droppable(pinned, "fine")


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0},
        {"budget": "channels"},
        {"drop": -1},
        {"tolerance": 1.5},
        {"policy": "best"},
        {"granularity": "half"},
        {"stages": 0},
        {"score": "mi"},
        {"target": "classes"},
        {"reduce": "mean"},
        {"rounds": 0},
        {"score": "r2", "target": "outputs"},
    ],
)
def test_hyper_parameters_are_checked_when_they_are_given(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Energy(**wrong)
    with pytest.raises(ArgumentError):
        Depth(score="energy")
