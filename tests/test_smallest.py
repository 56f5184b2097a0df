"""As small as possible, and no worse than is tolerated."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Tensor, nn

import nervure.methods.base
from nervure import (
    SNACS,
    Depth,
    Energy,
    Magnitude,
    MagnitudeMasks,
    Pruned,
    Refit,
    RigL,
    Smallest,
    Taylor,
    prune,
    smallest,
    tasks,
)
from nervure.errors import ArgumentError, BudgetError, DataError
from nervure.evaluation.held_out import HeldOutMetric, PartScores
from nervure.evaluation.tolerance import AmountSearch, Attempt, Loss, Tolerance
from nervure.methods import Method, View
from nervure.plan import Plan
from nervure.smallest import bisect
from nervure.tasks import Task
from nervure.tasks.task import Measure

INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
DATA = list(zip(INPUTS.split(32), (INPUTS[:, 0] > 0).long().split(32), strict=True))
WIDTH = 64


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)).eval()


def share_left(model: nn.Module) -> float:
    """Of the hidden units, which are those whose inputs are not all masked."""
    first = model[0].weight  # type: ignore[index]
    return int((first != 0).any(1).sum()) / WIDTH


def falling(curve: Callable[[float], float]) -> Task:
    """A task whose loss is a curve of the hidden units that are left."""
    return Task(objective=lambda model, batch: torch.tensor(curve(share_left(model))))


class Share:
    """A metric that is a curve of what its model has left."""

    def __init__(self, curve: Callable[[float], float]) -> None:
        self.curve, self.left = curve, 0.0

    def update(self, left: float) -> None:
        self.left = left

    def compute(self) -> float:
        return self.curve(self.left)

    def to(self, device: torch.device) -> "Share":
        return self


def scored(curve: Callable[[float], float], *, higher_is_better: bool, relative: bool | None = None) -> Task:
    """A task with a metric that is a curve of the hidden units that are left."""
    measure = Measure(lambda _: Share(curve), lambda output, batch: (output,), higher_is_better, relative=relative)
    return Task(forward=lambda model, batch: share_left(model), metrics={"share": measure}, name="shares")


def find(method: Method | None = None, **options: Any) -> Smallest:
    options = {"data": DATA, "progress": False} | options
    return smallest(network(), method=Magnitude() if method is None else method, **options)


@pytest.mark.parametrize(
    ("judge", "tolerance", "units"),
    [
        (falling(lambda left: 2 - left), 0.2, 52),  # a loss of 1.2 at 51.2 units
        (falling(lambda left: 20 - 10 * left), 1.0, 1),
        (scored(lambda left: left, higher_is_better=True), 0.2, 52),
        (scored(lambda left: 0.5 * left, higher_is_better=True), 0.2, 39),
        (scored(lambda left: 0.5 * left, higher_is_better=True, relative=True), 0.2, 52),
        (scored(lambda left: 1 - left, higher_is_better=False, relative=False), 0.25, 48),
        (scored(lambda left: 1 / left, higher_is_better=False), 1.0, 32),
    ],
)
def test_where_quality_falls_steadily_the_bound_is_found_exactly(judge: Task, tolerance: float, units: int) -> None:
    found = find(judge=judge, tolerance=tolerance)
    assert found.pruned.model[0].out_features == units
    assert found.found.is_inside
    assert found.found.lost is not None and found.found.lost.value <= tolerance + 1e-9
    beyond = max((one.keep for one in found.path if not one.is_inside), default=0.0)
    assert found.keep - beyond <= 0.02 * found.keep or units == 1


def test_what_is_found_is_what_its_method_prunes() -> None:
    found = find(judge=falling(lambda left: 2 - left), tolerance=0.3, refit=True)
    assert found.method == Magnitude(keep=found.keep)
    assert found.pruned.verification is not None
    assert "refit" in found.pruned.plan.reached
    assert found.pruned.plan.edits == prune(network(), INPUTS[:1], found.method, progress=False).plan.edits


@pytest.mark.parametrize("method", [MagnitudeMasks(granularity="kernel", guard="none"), MagnitudeMasks()])
def test_masks_are_looked_for_by_their_density(method: MagnitudeMasks) -> None:
    weights = 6 * WIDTH + 2 * WIDTH
    density = lambda model: sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1) / weights  # noqa: E731
    judge = Task(objective=lambda model, batch: torch.tensor(2 - density(model)))
    found = find(method, judge=judge, tolerance=0.6)
    assert isinstance(found.method, MagnitudeMasks)
    assert 0.4 <= found.method.density < 0.41
    assert found.pruned.masks


class Block(nn.Module):
    """Adds something to what enters."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.branch(x)
        return found


@pytest.mark.parametrize("method", [Depth(score="random"), Energy(budget="blocks")])
def test_blocks_are_looked_for_by_what_their_budget_counts(method: Depth) -> None:
    model = nn.Sequential(Block(), Block(), Block(), nn.Linear(6, 2)).eval()
    whole = sum(p.numel() for p in model.parameters())
    left = lambda model: sum(p.numel() for p in model.parameters()) / whole  # noqa: E731
    judge = Task(objective=lambda model, batch: torch.tensor(1.0 if left(model) == 1 else 1.05))
    found = smallest(model, method=method, data=list(INPUTS.split(8)), judge=judge, tolerance=0.1, progress=False)
    assert len(found.pruned.plan.drops) == len([block for block in found.pruned.graph.blocks if not block.pinned])


def test_without_labels_networks_are_judged_by_the_answers_of_the_dense_one() -> None:
    model = network()
    found = smallest(
        model,
        method=Magnitude(),
        data=list(INPUTS.split(32)),
        judge=tasks.agreement(model),
        tolerance=0.2,
        held_out=0.5,
        progress=False,
    )
    assert found.search.tolerance.metric == "flips"
    assert found.search.tolerance.dense == 0
    assert found.found.quality is not None and found.found.quality <= 0.2


def test_labels_of_classes_are_told_from_the_first_batch() -> None:
    found = find(tolerance=0.9)
    assert found.search.tolerance.metric == "accuracy"
    assert found.search.tolerance.samples == 24


@final
@dataclass(frozen=True)
class Watching:
    """Notes the data that it is shown, and cuts as many units as it is told."""

    wants: ClassVar[frozenset[str]] = frozenset({"activations"})
    seen: ClassVar[list[Any]] = []
    keep: float = 0.5

    def plan(self, view: View) -> Plan:
        self.seen.append(view.data)
        return Magnitude(keep=self.keep).plan(view)


def test_the_method_never_sees_what_it_is_judged_on() -> None:
    judged: list[Tensor] = []

    def note(model: nn.Module, batch: Any) -> Tensor:
        judged.append(batch[0])
        return torch.tensor(1.0)

    Watching.seen.clear()
    find(Watching(), judge=Task(objective=note), tolerance=0.1)
    shown = {tuple(row.tolist()) for data in Watching.seen for inputs, _ in data for row in inputs}
    assert len(shown) == 72
    assert not shown & {tuple(row.tolist()) for inputs in judged for row in inputs}


def test_other_data_to_judge_on_leave_all_of_the_first_for_evidence() -> None:
    Watching.seen.clear()
    others = [(inputs + 1, labels) for inputs, labels in DATA[:2]]
    found = find(Watching(), judge=falling(lambda left: 1.0), tolerance=0.1, validation=others)
    assert found.search.tolerance.samples == 64
    assert sum(len(inputs) for inputs, _ in Watching.seen[0]) == 96


def test_evidence_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, measure = [], nervure.methods.base.measure

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return measure(*args, **options)

    monkeypatch.setattr(nervure.methods.base, "measure", counting)
    found = find(Taylor(), tolerance=0.5)
    assert len(found.path) > 3
    assert len(calls) == 1


def test_a_seed_decides_and_nothing_else() -> None:
    first, again, other = (find(tolerance=0.5, seed=seed, held_out=0.5) for seed in (0, 0, 1))
    assert first.path == again.path
    assert [one.lost for one in first.path] != [one.lost for one in other.path]


def test_what_was_stopped_goes_on_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lines, calls = network(), list[str](), list[str]()
    score, measure = HeldOutMetric.score, nervure.methods.base.measure

    def counting(self: HeldOutMetric, *args: Any) -> PartScores:
        calls.append("score")
        return score(self, *args)

    def measuring(*args: Any, **options: Any) -> Any:
        calls.append("measure")
        return measure(*args, **options)

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(HeldOutMetric, "score", counting)
    monkeypatch.setattr(nervure.methods.base, "measure", measuring)
    options: dict[str, Any] = {"data": DATA, "method": Taylor(), "tolerance": 0.2, "progress": False, "refit": True}
    fresh = smallest(model, **options)
    whole = calls[:]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        smallest(model, folder=tmp_path, say=stop, **options)
    assert calls == ["score", "measure", *["score"] * 3]
    found = smallest(model, folder=tmp_path, **options)
    assert calls == whole
    assert found.path == fresh.path
    assert all(
        torch.equal(mine, other)
        for mine, other in zip(found.pruned.model.parameters(), fresh.pruned.model.parameters(), strict=True)
    )


def test_a_damaged_record_is_measured_again(tmp_path: Path) -> None:
    first = find(tolerance=0.5, folder=tmp_path)
    for file in tmp_path.glob("*/scores.json"):
        file.write_text("{")
    assert find(tolerance=0.5, folder=tmp_path).path == first.path


def test_a_pruned_model_is_pruned_further_and_compared_with_what_it_is() -> None:
    earlier = prune(network(), INPUTS[:1], Magnitude(keep=0.5), progress=False)
    judge = falling(lambda left: 2 - left)
    found = smallest(earlier, method=Magnitude(), data=DATA, judge=judge, tolerance=0.1, refit=Refit(), progress=False)
    assert isinstance(found.pruned, Pruned)
    assert [step.plan for step in found.pruned.earlier] == [earlier.plan]
    assert found.pruned.model[0].out_features == 23  # 2 - 23/64 is within a tenth of 1.5
    assert found.pruned.cost_before == earlier.cost_before


def test_without_a_method_units_of_least_magnitude_leave() -> None:
    found = smallest(network(), data=DATA, tolerance=0.5, progress=False)
    assert found.method == Magnitude(keep=found.keep, budget="macs")


def test_the_path_is_told_line_by_line_and_as_a_table() -> None:
    lines: list[str] = []
    found = find(judge=scored(lambda left: left, higher_is_better=True), tolerance=0.2, say=lines.append)
    assert len(lines) == len(found.path)
    assert "lost 50.00 points, beyond the tolerance" in lines[0]
    text = str(found)
    assert "is the smallest found within 20.00 points" in text
    assert text.count("\n|") >= len(found.path)
    assert AmountSearch.from_json(found.search.to_json()) == found.search


def test_nothing_within_the_tolerance_is_an_error_that_tells_the_dense_network() -> None:
    judge = scored(lambda left: 0.9 if left == 1 else 0.2, higher_is_better=True)
    with pytest.raises(BudgetError, match=r"Nothing smaller is within 1\.00 points \(share 0\.9 of the dense network"):
        find(judge=judge, tolerance=0.01)


def test_what_is_strict_counts_the_whole_interval() -> None:
    model = network()
    options: dict[str, Any] = {"data": DATA, "judge": tasks.agreement(model), "held_out": 0.5, "progress": False}
    loose, strict = (smallest(model, tolerance=0.2, strict=strict, **options) for strict in (False, True))
    assert strict.is_sure
    assert strict.keep >= loose.keep
    assert strict.found.lost is not None and strict.found.lost.high <= 0.2


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tolerance": -0.1}, ArgumentError, "tolerance is a finite number, 0 or more"),
        ({"tolerance": 1.5}, ArgumentError, "tolerance=1.5 is all that a share such as accuracy can lose"),
        ({"tolerance": 0.01, "strict": True}, DataError, "24 samples tell a share to 11.3"),
        ({"data": list(INPUTS.split(32))}, DataError, r"judge=nervure\.tasks\.agreement\(model\)"),
        ({"metric": "acuracy"}, ArgumentError, "accuracy"),
        ({"method": RigL()}, ArgumentError, "changes its masks while a network trains"),
        ({"method": Energy(drop=1)}, ArgumentError, "says how much leaves by drop=1 already"),
        ({"method": MagnitudeMasks(density=0.5, granularity="2:4")}, ArgumentError, "2:4"),
        ({"method": [Magnitude()]}, ArgumentError, "method"),
        (
            {"judge": Task(objective=lambda model, batch: torch.tensor(0.0))},
            ArgumentError,
            "loss of the dense network is 0",
        ),
        ({"judge": Task()}, ArgumentError, "it has none"),
        (
            {"data": [(INPUTS[:2], torch.tensor([0, 1]))]},
            DataError,
            "2 samples with a share of 0.25 held out are too few",
        ),
    ],
)
def test_what_cannot_be_looked_for_says_what_to_do(
    options: Mapping[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        find(**options)


def test_bisection_ends_where_two_amounts_are_close_and_says_what_it_tried() -> None:
    for bound in (0.9, 0.5, 0.31, 0.04):
        path = bisect(lambda keep, bound=bound: Attempt(keep, is_inside=keep >= bound), 0.02)
        inside = min(one.keep for one in path if one.is_inside)
        assert bound <= inside <= bound / 0.98
        assert len(path) == len({one.keep for one in path}) <= 12


def test_where_quality_does_not_fall_steadily_a_bound_between_two_that_were_tried_is_found() -> None:
    path = bisect(lambda keep: Attempt(keep, is_inside=keep >= 0.8 or 0.3 <= keep < 0.45), 0.02)
    inside, outside = ([one.keep for one in path if one.is_inside is wanted] for wanted in (True, False))
    assert min(inside) == pytest.approx(0.8, abs=0.02)
    assert max(outside) < min(inside)


def tolerance(**options: Any) -> Tolerance:
    told = {"value": 0.01, "metric": "accuracy", "higher_is_better": True, "is_relative": False}
    return Tolerance(**(told | {"dense": 0.9, "samples": 1000} | options))


def test_an_interval_is_students_of_the_differences_of_parts() -> None:
    dense, pruned = PartScores(0.9, (0.9,) * 4), PartScores(0.85, (0.84, 0.86, 0.83, 0.87))
    lost = tolerance().lost(dense, pruned, (250,) * 4)
    # Differences 6, 4, 7 and 3 points: a standard deviation of 1.826, a standard error of 0.913, times 3.182.
    assert lost.value == pytest.approx(0.05)
    assert lost.high - lost.value == pytest.approx(0.02905, abs=1e-4)


def test_a_share_is_not_surer_than_one_answer_won_and_one_lost() -> None:
    same = PartScores(0.9, (0.9,) * 20)
    lost = tolerance().lost(same, same, (50,) * 20)
    assert lost.high == -lost.low == pytest.approx(2.093 * math.sqrt(2) / 1002, rel=1e-3)
    relative = tolerance(metric="perplexity", higher_is_better=False, is_relative=True)
    assert relative.lost(same, same, (50,) * 20) == Loss(0.0, 0.0, 0.0)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        # Of answers that were right with 0.9 every tenth changes, which costs 0.08 of all on average.
        before = torch.rand(20, 25, generator=generator) < 0.9
        changed = torch.rand(20, 25, generator=generator) < 0.1
        after = torch.where(changed, ~before, before).double().mean(1)
        each = before.double().mean(1)
        dense, pruned = (PartScores(float(x.mean()), tuple(x.tolist())) for x in (each, after))
        lost = tolerance(samples=500).lost(dense, pruned, (25,) * 20)
        inside += lost.low <= 0.08 <= lost.high
    assert 0.92 <= inside / 300 <= 0.98


def test_of_a_perplexity_a_tenth_is_ten_percent() -> None:
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 20)).eval()
    texts = list(torch.randint(20, (64, 8)).split(16))
    found = smallest(model, data=texts, task=tasks.language_modelling(), tolerance=0.1, progress=False)
    told = found.search.tolerance
    assert (told.metric, told.is_relative, told.higher_is_better) == ("perplexity", True, False)
    assert found.found.quality is not None and found.found.lost is not None
    assert found.found.lost.value == pytest.approx(found.found.quality / told.dense - 1)


def test_a_method_that_counts_on_a_refit_gets_one_as_in_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fitted = network(), list[float]()
    module: Any = import_module("nervure.smallest")
    fit = module.refit_pruned

    def note(dense: nn.Module, pruned: Pruned, *rest: Any, **more: Any) -> Pruned:
        fitted.append(pruned.cost_after.params)
        return fit(dense, pruned, *rest, **more)

    monkeypatch.setattr(module, "refit_pruned", note)
    options: dict[str, Any] = {"data": list(INPUTS.split(16)), "judge": tasks.agreement(model), "tolerance": 0.3}
    options["precision"] = 0.5
    smallest(model, method=SNACS(), progress=False, **options)
    assert fitted
    fitted.clear()
    smallest(model, method=SNACS(), refit=False, progress=False, **options)
    smallest(model, method=Magnitude(), progress=False, **options)
    assert not fitted
