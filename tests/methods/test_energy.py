"""Energy and Depth: which blocks leave, how many, and what is said where that cannot be decided."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nervure import Depth, Energy, Graph, Plan, count, measure, prune, trace
from nervure.dependence import cka, distance_correlation, energy_distance, energy_r2
from nervure.errors import ArgumentError, BudgetError, DataError, NervureWarning, ScoreError
from nervure.evaluation import Latency, Timing
from nervure.methods import View
from nervure.methods.blocks.dropping import BlockScore, droppable
from nervure.methods.blocks.evaluator import BlockEvaluator
from nervure.plan import Drop
from nervure.surgery.price import price
from nervure.zoo import build
from nervure.zoo.data import fake
from nervure.zoo.models.densenet import DenseNet

# Few samples are told by a warning; one test below looks for it.
pytestmark = pytest.mark.filterwarnings("ignore::nervure.errors.NervureWarning")

METHODS = [
    Energy(drop=2),
    Energy(keep=0.6, target="outputs", recalibrate=2),
    Energy(keep=0.7, score="r2", budget="macs", policy="ckmeans"),
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


@pytest.mark.parametrize("score", ["skip", "r2", "max_ref", "coefficient", "dcor"])
def test_a_dead_block_tells_nothing_and_leaves_first(score: Any, view: View) -> None:
    method = Energy(drop=1, score=score, policy="rank")
    scores = method.scores(view)
    assert scores["blocks.2"].mean == pytest.approx(0, abs=1e-12)
    assert all(s.mean > 1e-6 for name, s in scores.items() if name != "blocks.2")
    assert names(method.plan(view)) == ["blocks.2"]


@pytest.mark.parametrize("score", ["influence", "branch", "cka"])
def test_yardsticks_also_drop_the_dead_block_first(score: Any, view: View) -> None:
    method = Depth(drop=1, score=score)
    wanted = replace(view, stats=None)
    assert method.scores(wanted)["blocks.2"].mean == pytest.approx(0, abs=1e-6)
    assert names(method.plan(wanted)) == ["blocks.2"]


class Drawing:
    """A loader that draws another order each time it is read, whatever the seeds and whoever copies it."""

    passes = 0

    def __iter__(self) -> Any:
        Drawing.passes += 1
        pairs = [pair for batch in batches() for pair in zip(*batch, strict=True)]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(Drawing.passes)).split(16)
        return iter(
            [tuple(torch.stack(side) for side in zip(*(pairs[i] for i in part), strict=True)) for part in order]
        )


@pytest.mark.parametrize(
    "data", [Drawing(), fake(96, validation=0.1).train.batches(16, shuffle_seed=0)], ids=["any", "epochs"]
)
@pytest.mark.parametrize(
    "method", [Energy(drop=1), Energy(drop=2, stages=2), Depth(drop=1, score="cka")], ids=["skip", "stages", "cka"]
)
def test_answers_are_compared_sample_by_sample_whatever_order_a_loader_draws(
    method: Any, data: Any, view: View
) -> None:
    shuffled = replace(view, stats=None, data=data)
    assert method.scores(shuffled)["blocks.2"].mean == pytest.approx(0, abs=1e-12)
    assert "blocks.2" in names(method.plan(shuffled))


def test_of_a_loader_that_draws_by_lot_the_seed_says_which_samples_are_compared(view: View) -> None:
    pairs: Any = [(x, y) for batch in batches() for x, y in zip(*batch, strict=True)]
    shuffled = replace(view, stats=None, data=DataLoader(pairs, batch_size=16, shuffle=True))
    drawn, state = [], torch.get_rng_state()
    for before in (3, 5):
        torch.manual_seed(before)
        drawn.append(BlockEvaluator(shuffled, 1).measured_without((), {"labels"}).labels)
    torch.set_rng_state(state)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("method", [Energy(rounds=1), Depth(score="cka")], ids=["skip", "cka"])
def test_at_every_stage_it_is_the_whole_network_that_is_compared_with(method: Any, view: View) -> None:
    blocks, judge = droppable(view.graph, "fine"), BlockEvaluator(view, method.recalibrate)
    left = [block for block in blocks if block.name != "blocks.0"]
    scores = method.block_scores(view, left, ("blocks.0",))
    whole = judge.answers_without(())
    for block in left:
        without, before = (judge.answers_without(names) for names in (("blocks.0", block.name), ("blocks.0",)))
        if isinstance(method, Depth):
            expected = 1 - float(cka(whole.double(), without.double(), debiased=False))
        else:
            kept = [float(distance_correlation(whole.softmax(1), x.softmax(1))) for x in (before, without)]
            expected = kept[0] - kept[1]
        assert scores[block.name].mean == pytest.approx(expected, abs=1e-9)


def test_scores_are_the_statistics_of_the_feature_maps(view: View) -> None:
    assert view.stats is not None
    assert view.stats.labels is not None
    x, y = view.stats.blocks["blocks.1"], view.stats.labels
    r2 = Energy(score="r2", target="labels", rounds=1).scores(view)["blocks.1"]
    assert r2.mean == pytest.approx(float(energy_r2(x, y)))
    faithful = Energy(score="max_ref", unbiased=False, target="labels", rounds=1).scores(view)["blocks.1"].mean
    reference = int(torch.bincount(y).argmax())
    others = [k for k in range(4) if k != reference]
    expected = max(float(energy_distance(x[y == reference], x[y == k], unbiased=False)) for k in others)
    assert faithful == pytest.approx(expected)


def test_rounds_are_alike_in_classes_and_their_spread_is_the_error(view: View) -> None:
    found = Energy(score="r2", target="labels", rounds=4).scores(view)["blocks.0"]
    assert len(found.rounds) == 4
    assert found.mean == pytest.approx(sum(found.rounds) / 4)
    assert found.error == pytest.approx(float(torch.tensor(found.rounds).std()) / 2, rel=1e-5)
    assert Energy(score="r2", target="labels", rounds=1).scores(view)["blocks.0"].error != found.error


def blocks(count: int) -> list[Any]:
    from nervure import Block

    return [Block(str(i), (f"m{i}",), "residual") for i in range(count)]


def test_clusters_keep_their_first_block_or_their_last() -> None:
    scores = [0.1, 5.0, 0.2, 9.0, 5.1]
    assert Energy(policy="ckmeans").removals(scores, blocks(5))[2] == ("2", "4")
    assert Energy(policy="ckmeans", back=True).removals(scores, blocks(5))[2] == ("0", "1")
    assert Energy(policy="ckmeans").removals(scores, blocks(5))[0] == ()
    assert Energy(policy="ckmeans").removals(scores, blocks(5))[5] == tuple("01234")


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


def test_a_knapsack_gives_up_the_lowest_sum_of_scores_that_is_enough() -> None:
    scores, savings = [1.0, 2.5, 0.5], {"0": 0.2, "1": 0.5, "2": 0.1}
    sets = Energy().removals(scores, blocks(3), savings)
    enough = {need: next(s for s in sets if sum(savings[n] for n in s) >= need) for need in (0.1, 0.2, 0.25, 0.35)}
    assert enough == {0.1: ("2",), 0.2: ("0",), 0.25: ("0", "2"), 0.35: ("1",)}
    assert Energy().removals(scores, blocks(3)) == Energy(policy="rank").removals(scores, blocks(3))
    assert Energy().removals([1.0, 1.0], blocks(2), {"0": 1.0, "1": 1.0})[1] == ("1",)
    assert Energy(back=True).removals([1.0, 1.0], blocks(2), {"0": 1.0, "1": 1.0})[1] == ("0",)


def test_blocks_that_save_much_leave_before_many_that_save_little() -> None:
    torch.manual_seed(0)
    model = build("resnet20", width=0.25, num_classes=4).eval()
    graph = trace(model, torch.randn(2, 3, 8, 8))
    view = View(graph, {}, None, 0, model, torch.randn(2, 3, 8, 8), batches())
    alike = Depth(keep=0.5, score="random", policy="knapsack").plan(view)
    assert len(alike) < len(Depth(keep=0.5, score="random").plan(view))
    assert alike.reached["keep"] <= 0.5


def test_the_time_of_each_block_is_what_a_knapsack_saves_of_latency(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = BlockEvaluator(view, 1).savings_of(droppable(view.graph, "fine"))
    assert len(seconds) == 5
    assert all(s > 0 for s in seconds.values())
    times = {f"blocks.{i}": t for i, t in enumerate((0.1, 0.1, 0.1, 0.4, 0.1))}
    monkeypatch.setattr(BlockEvaluator, "savings_of", lambda self, blocks: times)
    monkeypatch.setattr(BlockEvaluator, "latency", lambda self, gone: 1 - sum(times[n] for n in gone))
    flat = dict.fromkeys(times, 1.0)
    monkeypatch.setattr(Depth, "block_scores", lambda self, *a: {n: BlockScore.of(n, [v]) for n, v in flat.items()})
    plan = Depth(keep=0.6, budget="latency", policy="knapsack", score="random").plan(view)
    assert names(plan) == ["blocks.3"]


def test_skipping_a_block_loses_what_the_answers_share(view: View) -> None:
    method = Energy(rounds=1, recalibrate=3)
    score = method.scores(view)["blocks.1"].mean
    judge = BlockEvaluator(view, 3)
    whole, part = (judge.answers_without(gone).softmax(1) for gone in ((), ("blocks.1",)))
    assert score == pytest.approx(1 - float(distance_correlation(whole, part)))
    assert 0 < score <= 1
    plain = replace(method, unbiased=False).scores(view)["blocks.1"].mean
    assert plain == pytest.approx(1 - float(distance_correlation(whole, part, unbiased=False)))


def test_an_ignored_block_stays(trained: nn.Module) -> None:
    example = torch.ones(1, 3, 8, 8)
    pruned = prune(trained, example, Energy(drop=4), data=batches(), ignore=["blocks.2"], progress=False)
    assert names(pruned.plan) == [f"blocks.{i}" for i in (0, 1, 3, 4)]
    assert pruned.graph.block("blocks.2").pinned == "ignored by the user"
    chosen = trace(trained, example, only=["blocks.1", "stem"])
    assert [b.name for b in droppable(chosen, "fine")] == ["blocks.1"]
    with pytest.raises(BudgetError, match=r"drop=5: the model has only 4"):
        prune(trained, example, Energy(drop=5), data=batches(), ignore=["blocks.2"], progress=False)


class Stairs:
    """Stands for ``latency``: a network takes a second, and two for each block that is left; notes who asked."""

    def __init__(self) -> None:
        self.engines: set[str] = set()

    def __call__(self, models: dict[str, nn.Module], example: Any, **options: Any) -> Latency:
        self.engines.add(options["engine"])
        took = {
            name: 1.0 + 2 * sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
            for name, model in models.items()
        }
        dense = next(iter(took.values()))
        rows = (Timing(n, 1, 1, t, (t, t), t / dense, (t / dense,) * 2, 3, options["engine"]) for n, t in took.items())
        return Latency(tuple(rows))


@pytest.mark.parametrize(
    ("options", "dropped"),
    [({"latency": 0.7}, 2), ({"latency": "7 s"}, 2), ({"latency": "6999 ms"}, 3), ({"keep": 0.3}, 4)],
)
@pytest.mark.parametrize("policy", ["rank", "knapsack"])
def test_blocks_leave_until_an_engine_meets_the_target(
    options: dict[str, Any], dropped: int, policy: Any, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nervure.methods.blocks.evaluator.latency", clock := Stairs())
    method = Depth(budget="latency", engine="openvino", policy=policy, score="influence", **options)
    plan = method.plan(view)
    assert len(plan) == dropped
    assert plan.reached["keep"] == pytest.approx((11 - 2 * dropped) / 11)
    assert plan.asked["engine"] == "openvino"
    assert clock.engines == {"openvino"}
    assert eval(repr(method)) == method


def test_a_latency_that_blocks_cannot_give_is_told(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nervure.methods.blocks.evaluator.latency", Stairs())
    with pytest.raises(BudgetError, match=r"latency='500 ms' of latency cannot be met: .* 0\.091 is left") as caught:
        Depth(budget="latency", engine="compile", latency="500 ms").plan(view)
    assert caught.value.keep == 0.091
    with pytest.raises(ArgumentError, match="say it in one way"):
        Depth(budget="latency", latency=0.5, drop=2)
    with pytest.raises(ArgumentError, match="needs budget='latency'"):
        Depth(latency=0.5)


def test_a_share_of_the_latency_is_measured(view: View) -> None:
    plan = Depth(keep=0.9, budget="latency", score="influence").plan(replace(view, stats=None))
    assert 1 <= len(plan) <= 5


@pytest.mark.parametrize(("tolerance", "dropped"), [(0.0, 0), (0.2, 2), (0.29, 2), (0.9, 5)])
def test_tolerance_drops_as_many_as_the_held_out_accuracy_allows(
    tolerance: float, dropped: int, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockEvaluator, "quality", lambda self, names: 1 - 0.1 * len(names))
    assert len(Energy(tolerance=tolerance, policy="rank").plan(view)) == dropped


@pytest.mark.parametrize("labels", ["floating", "none"])
def test_without_classes_tolerance_is_a_share_of_what_the_outputs_spread(labels: str, view: View) -> None:
    data: list[Any] = [(x, torch.zeros(len(x), 4)) if labels == "floating" else x for x, _ in batches()]
    regression = replace(view, stats=None, data=data)
    judge = BlockEvaluator(regression, 5)
    assert judge.quality(()) == 1
    assert view.model is not None
    smaller = judge._smaller(("blocks.1",))
    (raw,) = judge._split()[1]
    held = raw[0] if labels == "floating" else raw
    with torch.no_grad():
        whole, part = view.model(held), smaller(held)
    expected = 1 - (whole - part).square().sum() / (whole - whole.mean(0)).square().sum()
    assert judge.quality(("blocks.1",)) == pytest.approx(float(expected), rel=1e-4)
    method = Energy(target="outputs", recalibrate=5, budget="blocks")
    assert "blocks.2" in names(replace(method, tolerance=0.9).plan(regression))
    assert len(replace(method, tolerance=0.9).plan(regression)) >= len(replace(method, tolerance=0.0).plan(regression))


def test_what_cannot_be_judged_is_told(view: View) -> None:
    for data, message in (
        (batches()[:1], "one batch of data cannot be parted"),
        ([(x, y + 9) for x, y in batches()], r"label 1\d is out of range"),
    ):
        with pytest.raises(DataError, match=message):
            Energy(tolerance=0.1, score="r2").plan(replace(view, data=data))
    constant = Net()
    nn.init.zeros_(constant.head.weight)
    assert isinstance(view.graph, Graph)
    with pytest.raises(DataError, match="outputs are the same for all"):
        still = replace(view, model=constant.eval(), data=[x for x, _ in batches()])
        Depth(tolerance=0.1, score="random").plan(still)


def test_a_dead_block_costs_no_accuracy(view: View) -> None:
    assert "blocks.2" in names(Energy(tolerance=0.0, policy="rank").plan(view))
    judge = BlockEvaluator(view, 5)
    assert judge.quality(("blocks.2",)) >= judge.quality(()) - 0.13


@pytest.mark.parametrize("method", [Energy(policy="rank"), Energy(score="r2"), Depth(), Depth(score="cka")], ids=repr)
def test_stages_measure_again_on_what_is_left(method: Any, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[str, ...]]] = []
    original = type(method).block_scores

    def spy(self: Any, seen: View, left: Sequence[Any], gone: tuple[str, ...] = ()) -> dict[str, BlockScore]:
        asked.append((len(left), gone))
        return original(self, seen, left, gone)

    monkeypatch.setattr(type(method), "block_scores", spy)
    once, twice = (replace(method, drop=3, stages=s).plan(replace(view, stats=None)) for s in (1, 2))
    assert len(twice) == len(once) == 3
    assert [n for n, _ in asked] == [5, 5, 3]
    assert asked[2][1] != ()
    assert set(asked[2][1]) < set(names(twice))
    kept = [n for n in once.reached["scores"] if n not in asked[2][1]]
    assert any(once.reached["scores"][n] != twice.reached["scores"][n] for n in kept)


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
    method = Energy(keep=0.7, score="r2", target="labels", reduce="gap")
    pruned = prune(model, torch.randn(2, 3, 8, 8), method, data=batches(), progress=False)
    assert pruned.verification is not None
    assert pruned.cost_after.params <= 0.7 * pruned.cost_before.params
    assert price(pruned.graph, pruned.plan) == (pruned.cost_after.params, pruned.cost_after.macs)
    if name != "densenet":
        gone = [pruned.graph.block(n).modules for n in names(pruned.plan)]
        lost = sum(p.numel() for modules in gone for m in modules for p in model.get_submodule(m).parameters())
        assert pruned.cost_before.params - pruned.cost_after.params == lost


@pytest.mark.parametrize(
    "method", [Energy(drop=1), Energy(drop=1, score="dcor", target="outputs", policy="rank")], ids=repr
)
def test_regression_and_embeddings_take_continuous_outputs(method: Any) -> None:
    torch.manual_seed(1)
    model = Net()
    model.head = nn.Linear(6, 1)
    data = [(x, y.float()) for x, y in batches()]
    found = prune(model.eval(), torch.randn(1, 3, 8, 8), method, data=data, progress=False)
    assert names(found.plan) == ["blocks.2"]
    with pytest.raises(DataError, match="one output per sample, so it predicts no classes"):
        prune(model, torch.randn(1, 3, 8, 8), replace(method, score="r2", target="auto"), data=data, progress=False)


def test_one_of_several_outputs_is_named() -> None:
    torch.manual_seed(0)
    model = Net(form="dict").eval()
    for output in ("answer", "twice"):
        method = Energy(drop=1, output=output)
        assert names(prune(model, torch.randn(1, 3, 8, 8), method, data=batches(), progress=False).plan) == ["blocks.2"]
    with pytest.raises(ArgumentError, match="no tensor called 'logits'"):
        method = Energy(drop=1, output="logits")
        prune(model, torch.randn(1, 3, 8, 8), method, data=batches(), progress=False)


def test_few_samples_of_a_class_are_told(view: View) -> None:
    with pytest.warns(NervureWarning, match="only 5 samples in a round"):
        Energy(score="r2", target="labels", rounds=4).scores(view)


def changed(view: View, **stats: Any) -> View:
    assert view.stats is not None
    return replace(view, stats=replace(view.stats, **stats))


def test_what_tells_nothing_is_refused_with_the_reason(view: View) -> None:
    assert view.stats is not None
    assert view.stats.labels is not None
    one = torch.zeros_like(view.stats.labels)
    with pytest.raises(ScoreError, match="labels of all 88 samples are class 0"):
        Energy(drop=1, score="r2", target="labels").plan(changed(view, labels=one))
    with pytest.raises(ScoreError, match="predictions of all 88 samples are class 2"):
        Energy(drop=1, score="r2").plan(changed(view, outputs=torch.tensor([[0.0, 0.0, 1.0]]).expand(88, 3)))
    with pytest.raises(ScoreError, match="outputs are the same for all 88 samples"):
        Energy(drop=1, score="dcor", target="outputs").plan(changed(view, outputs=torch.ones(88, 3)))
    with pytest.raises(ScoreError, match="block 'blocks.0' has no evidence: it did not run"):
        Energy(drop=1, score="r2").plan(changed(view, blocks={}, skipped={"block blocks.0": "it did not run"}))
    with pytest.raises(ScoreError, match="fewer than two classes with two of them"):
        few = changed(view, labels=torch.arange(88), blocks=view.stats.blocks)
        Energy(drop=1, score="r2", target="labels", rounds=1).plan(few)
    with pytest.raises(DataError, match="no data were given"):
        Energy(drop=1).plan(replace(view, stats=None, data=None))
    with pytest.raises(DataError, match="the data gave 3 samples; dependence takes 4"):
        Energy(drop=1).plan(replace(view, stats=None, data=[(torch.randn(3, 3, 8, 8), torch.arange(3))]))
    assert isinstance(view.model, Net)
    for broken, error, message in (
        (0.0, ScoreError, "the probabilities are the same"),
        (float("nan"), DataError, "NaN"),
    ):
        model = copy.deepcopy(view.model)
        nn.init.constant_(model.head.weight, broken)
        with pytest.raises(error, match=message):
            Energy(drop=1).plan(replace(view, stats=None, model=model))
    with pytest.raises(ScoreError, match='take target="outputs"'):
        model = copy.deepcopy(view.model)
        model.head = nn.Linear(6, 1)
        graph = trace(model, torch.randn(1, 3, 8, 8))
        Energy(drop=1, target="probabilities").plan(View(graph, {}, None, 0, model, None, batches()))


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
        {"score": "skip", "target": "labels"},
    ],
)
def test_hyper_parameters_are_checked_when_they_are_given(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Energy(**wrong)
    with pytest.raises(ArgumentError):
        Depth(score="energy")
