"""Any criterion as a method, and which units compete with one another."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nervure import FPGM, Magnitude, Random, Ranking, Slimming, Taylor, prune, trace, zoo
from nervure.budget import allocate
from nervure.budget.allocate import kind_of, stream_floors, structure_of
from nervure.errors import ArgumentError, ScoreError
from nervure.methods import Method, View
from nervure.methods.channels.timed import cut_lowest
from nervure.scores import Scores, magnitude, random_scores, wants
from tests.graphs import residual, weights_of


def largest(graph: Any, weights: Any, *, power: float = 1.0) -> Scores:
    """A criterion of one's own."""
    return {name: value**power for name, value in magnitude(graph, weights).items()}


@wants("readings")
def loudest(graph: Any, stats: Any) -> Scores:
    return {group.name: stats.readings[group.name][:, 1] for group in graph.prunable}


def silent(graph: Any, stats: Any) -> Scores:
    return {}


def scoreless(graph: Any) -> Any:
    return {group.name: [0.0] * group.size for group in graph.prunable}


def view() -> View:
    graph = residual(16, [8, 12])
    return View(graph, weights_of(graph), seed=1)


@pytest.mark.parametrize(
    ("criterion", "options", "named"),
    [
        ("magnitude", {"norm": 2}, Magnitude(keep=0.4, norm=2)),
        ("fpgm", {"normalise": "none"}, FPGM(keep=0.4, normalise="none")),
        ("random", {}, Random(keep=0.4, scope="global")),
    ],
)
def test_a_criterion_by_name_plans_as_the_method_of_its_paper(criterion: str, options: Any, named: Method) -> None:
    assert Ranking(keep=0.4, criterion=criterion, options=options).plan(view()).cuts == named.plan(view()).cuts


def test_a_criterion_of_ones_own_is_a_function_or_its_name_and_its_options_reach_it() -> None:
    given = Ranking(criterion=largest, options={"power": -1.0}, scope="layer")
    assert given.criterion == f"{__name__}:largest"
    assert given == Ranking(criterion=f"{__name__}:largest", options=(("power", -1.0),), scope="layer")
    assert eval(repr(given)) == given and hash(eval(repr(given))) == hash(given)
    kept, other = given.plan(view()).cuts[0].keep.tensor(), Ranking(criterion=largest, scope="layer").plan(view())
    assert torch.equal(kept, ~other.cuts[0].keep.tensor())


def test_a_function_of_the_library_is_told_by_its_name() -> None:
    assert Ranking(criterion=magnitude) == Ranking(criterion="magnitude") == Ranking()


def test_a_criterion_says_what_it_wants_and_gets_it() -> None:
    model, example = zoo.build("resnet8", width=0.25), torch.randn(2, 3, 16, 16)
    method = Ranking(criterion=loudest)
    assert method.wants == {"readings"} and Ranking(criterion="taylor").wants == Taylor.wants == {"effects"}
    assert prune(model, example, method, data=[(example, torch.zeros(2, dtype=torch.long))], progress=False).plan.cuts
    with pytest.raises(ScoreError, match="needs evidence. Measure want="):
        method.plan(view())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magnitud"}, "'magnitud' is unknown. Did you mean 'magnitude'.*package.module:function"),
        ({"criterion": "no_such_module:score"}, "module 'no_such_module' cannot be imported: No module named"),
        ({"criterion": f"{__name__}:largets"}, "has no function 'largets'. Did you mean 'largest'"),
        ({"criterion": "math:sqrt"}, "takes no argument named graph"),
        ({"criterion": lambda graph: {}}, "cannot be found again by its name. Define it with def"),
        ({"criterion": silent}, "silent takes stats and does not say which. .*wants"),
        ({"criterion": "fpgm", "options": {"norm": 2}}, "fpgm has no option 'norm'"),
        ({"options": {"normalise": "median"}}, "normalise='median' is not one of"),
        ({"options": {"norm": [1, 2]}}, "options"),
        ({"scope": "kinds"}, "scope is one of 'global', 'layer', 'kind', 'isomorphic'"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Ranking(**options).plan(view())


def test_what_are_no_scores_is_said() -> None:
    with pytest.raises(ScoreError, match="scoreless returned .*, not a tensor"):
        Ranking(criterion=scoreless).plan(view())


def test_a_criterion_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text(
        "import torch\ndef even(graph):\n    return {g.name: torch.ones(g.size) for g in graph.prunable}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert Ranking(criterion="my_scores:even").plan(view()).cuts


@pytest.mark.parametrize("name", ["resnet8", "vit_tiny"])
@pytest.mark.parametrize("keep", [0.3, 0.5])
def test_each_kind_keeps_its_share_and_is_ranked_within_itself(name: str, keep: float) -> None:
    graph = trace(zoo.build(name), torch.randn(1, 3, 32, 32))
    kinds = {kind: [g for g in graph.prunable if kind_of(g) == kind] for kind in map(kind_of, graph.prunable)}
    # A kind of low scores would go first among all.
    level = {kind: 10.0 * place for place, kind in enumerate(kinds)}
    scores = {n: value + level[kind_of(graph[n])] for n, value in random_scores(graph, seed=0).items()}
    cuts = {cut.group: cut.keep.tensor() for cut in allocate(graph, scores, keep=keep, scope="kind").cuts}
    assert len(kinds) > 1

    def values_of(group: Any) -> tuple[torch.Tensor, torch.Tensor]:
        # The best of a group stays whatever it scores.
        return scores[group.name], scores[group.name] == scores[group.name].max()

    for members in kinds.values():
        kept = torch.cat([cuts.get(g.name, torch.ones(g.size, dtype=torch.bool)) for g in members])
        assert int(kept.sum()) == max(round(keep * len(kept)), len(members))
        values, best = (torch.cat(each) for each in zip(*map(values_of, members), strict=True))
        assert values[~kept].max() < torch.cat([values[kept & ~best], torch.tensor([torch.inf])]).min()


def test_kinds_are_streams_channels_heads_and_widths() -> None:
    resnet = trace(zoo.build("resnet8"), torch.randn(1, 3, 32, 32))
    assert {kind_of(group) for group in resnet.prunable} == {"streams", "channels"}
    assert kind_of(resnet["layer1.0.conv1"]) == "channels"
    vit = trace(zoo.build("vit_tiny"), torch.randn(1, 3, 32, 32))
    assert {kind_of(group) for group in vit.groups} == {"streams", "channels", "heads", "head widths"}


@pytest.mark.parametrize("budget", ["params", "macs"])
def test_within_a_cost_every_kind_pays(budget: Any) -> None:
    graph = trace(zoo.build("resnet8"), torch.randn(1, 3, 32, 32))
    level = {"streams": 10.0, "channels": 0.0}
    scores = {n: value + level[kind_of(graph[n])] for n, value in random_scores(graph, seed=0).items()}
    cut = {scope: allocate(graph, scores, keep=0.6, scope=scope, budget=budget) for scope in ("global", "kind")}
    assert {kind_of(graph[c.group]) for c in cut["global"].cuts} == {"channels"}
    assert {kind_of(graph[c.group]) for c in cut["kind"].cuts} == {"streams", "channels"}
    assert cut["kind"].reached["keep"] <= 0.6


def test_only_the_thin_classes_differ_from_ranking() -> None:
    assert Slimming(keep=0.6).plan.__func__ is Ranking().plan.__func__ is Magnitude().plan.__func__  # type: ignore[attr-defined]


def test_groups_are_isomorphic_where_as_many_tensors_of_the_same_roles_hang_together() -> None:
    graph = trace(zoo.build("resnet8"), torch.randn(1, 3, 32, 32))
    alike: dict[Any, set[str]] = {}
    for group in graph.prunable:
        alike.setdefault(structure_of(group, graph), set()).add(group.name)
    hidden = {group.name for group in graph.prunable if kind_of(group) == "channels"}
    assert hidden in alike.values()
    # The stream of the last stage ends in the classifier, and so has another reader than the others.
    streams = [names for names in alike.values() if not names & hidden]
    assert len(streams) > 1
    scores = random_scores(graph, seed=0)
    plan = allocate(graph, scores, keep=0.5, scope="isomorphic")
    kept = {cut.group: int(cut.keep.tensor().sum()) for cut in plan.cuts}
    for names in alike.values():
        assert sum(kept.get(n, graph[n].size) for n in names) == round(0.5 * sum(graph[n].size for n in names))


@pytest.mark.parametrize("budget", ["channels", "macs"])
def test_streams_keep_the_share_that_they_are_promised(budget: str) -> None:
    model, example = zoo.build("resnet8"), torch.randn(1, 3, 32, 32)
    graph = trace(model, example)
    low = {g.name: torch.full((g.size,), float(kind_of(g) != "streams")) + torch.rand(g.size) for g in graph.prunable}

    def shares(streams: float) -> list[float]:
        method = Magnitude(keep=0.6, budget=budget, streams=streams)
        plan = cut_lowest(method, View(graph, {}), low)
        kept = {cut.group: float(cut.keep.tensor().float().mean()) for cut in plan.cuts}
        return [kept.get(g.name, 1.0) for g in graph.prunable if kind_of(g) == "streams"]

    assert min(shares(0.0)) < 0.7 <= min(shares(0.7))
    assert stream_floors(graph, 0.5) and not stream_floors(graph, 0.0)
    assert Random(streams=0.5).streams == Ranking(streams=0.5).streams == 0.5
    with pytest.raises(ArgumentError, match="streams"):
        FPGM(streams=1.5)
