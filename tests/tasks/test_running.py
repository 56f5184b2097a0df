"""One pass over data: what is measured, by whom, and what is left as it was."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError, DataError, MissingExtraError
from nervure.tasks import Measure, Task, evaluate_task
from tests.tasks.small import CASES, Tokens


class Counter:
    """A metric in the manner of torchmetrics: the mean of what it is given."""

    higher_is_better = True
    made = 0

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        Counter.made += 1

    def to(self, device: torch.device) -> "Counter":
        return self

    def update(self, found: Tensor, wanted: Tensor) -> None:
        self.values.append((found - wanted).abs())

    def compute(self) -> dict[str, Tensor]:
        return {"mean": torch.cat(self.values).mean(), "most": torch.cat(self.values).max()}

    def clone(self) -> "Counter":
        return Counter()


class Scalar(Counter):
    """One number, not several by name."""

    def compute(self) -> Tensor:  # type: ignore[override]
        return super().compute()["most"]

    def clone(self) -> "Scalar":
        return Scalar()


def read(output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    return output, batch[1]


def make(found: Tensor) -> Counter:
    return Counter()


DATA = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(2)]


def test_metrics_of_your_own_are_measured() -> None:
    model = nn.Linear(3, 2)
    task = Task(
        loss=lambda output, batch: (output - batch[1]).abs().mean(),
        metrics={
            "mean": Measure(make, read, False, "mean"),
            "most": Measure(make, read, False, "most"),
            "own": Scalar(),
        },
    )
    Counter.made = 0
    found = evaluate_task(model, DATA, task)
    far = torch.cat([(model(x) - y).abs() for x, y in DATA])
    expected = {"loss": far.mean(), "mean": far.mean(), "most": far.max(), "own": far.max()}
    assert found == pytest.approx({name: float(value.detach()) for name, value in expected.items()})
    assert Counter.made == 2, "two results of one metric took two metrics"
    assert task.higher_is_better == {"loss": False, "mean": False, "most": False, "own": True}
    assert evaluate_task(model, DATA, task) == found, "a second pass counted on from the first"


def test_an_objective_of_your_own_has_its_metrics_too() -> None:
    model = nn.Linear(3, 2)
    task = Task(objective=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), metrics={"own": Scalar()})
    far = torch.cat([(model(x) - y).detach() for x, y in DATA])
    expected = {"loss": float(far.square().mean()), "own": float(far.abs().max())}
    assert evaluate_task(model, DATA, task) == pytest.approx(expected)


def test_a_metric_that_does_not_apply_is_left_out() -> None:
    task = Task(metrics={"none": Measure(lambda found: None, read, True), "own": Scalar()})
    assert set(evaluate_task(nn.Linear(3, 2), DATA, task)) == {"own"}


def test_what_a_metric_cannot_do_is_told() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ArgumentError, match="'x' computes no 'meen'. Did you mean 'mean'"):
        evaluate_task(model, DATA, Task(metrics={"x": Measure(make, read, True, "meen")}))
    wrong = Measure(make, lambda output, batch: (output, torch.zeros(7, 9)), True, "mean")
    with pytest.raises(DataError, match="batch 0: the metric 'x' cannot be computed"):
        evaluate_task(model, DATA, Task(metrics={"x": wrong}))
    with pytest.raises(ArgumentError, match="neither loss nor metrics"):
        evaluate_task(model, DATA, Task())


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).train()
    model[0].eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    task = replace(tasks.regression(), metrics={})
    first = evaluate_task(model, DATA, task)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert evaluate_task(model, DATA, task) == first, "dropout was on"
    with pytest.raises(DataError):
        evaluate_task(model, [torch.randn(4, 3)], task)
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data gave no batch"),
        ([DATA[0], (torch.full((4, 3), float("nan")), DATA[0][1])], "batch 1: the loss is nan"),
        ([DATA[0], DATA[0][0]], "batch 1: there are no labels"),
    ],
)
def test_what_is_wrong_with_data_is_told(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_task(nn.Linear(3, 2), data, replace(tasks.regression(), metrics={}))


def test_labels_that_are_all_ignored_are_no_zero() -> None:
    batch = (torch.randint(0, 9, (2, 4)), torch.full((2, 4), -100))
    task = replace(tasks.token_classification(), metrics={})
    assert float(task(Tokens(9, 3), batch).detach()) == 0
    with pytest.raises(DataError, match="no label counts"):
        evaluate_task(Tokens(9, 3), [batch], task)


@pytest.mark.parametrize("name", CASES)
def test_without_torchmetrics_the_loss_is_there_and_metrics_name_their_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    case = CASES[name]()
    assert bool(torch.isfinite(case.task(case.model, case.batch).detach()))
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[metrics\]'"):
        evaluate_task(case.model, [case.batch], case.task)
