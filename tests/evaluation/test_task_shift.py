"""What a task measures under shift: counted as by hand, for tasks of every kind."""

import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError, DataError, FileError
from nervure.evaluation import Shift, TaskShift, corrupt, evaluate_task_shift, picture_shifts, table_shifts, text_shifts
from nervure.tasks import Task, evaluate_task


def squares(output: Tensor, batch: Any) -> Tensor:
    return (output - batch[1]).square().mean()


def add(batch: Any, severity: int, seed: int) -> Any:
    """Inputs larger by the severity."""
    return batch[0] + severity, batch[1]


PLUS = Shift("plus", add)
BATCHES = [(torch.ones(4, 1), torch.zeros(4, 1)), (torch.ones(2, 1), torch.zeros(2, 1))]
TASK = Task(loss=squares)


def test_what_is_measured_is_what_arithmetic_says() -> None:
    found = evaluate_task_shift({"a": nn.Identity()}, BATCHES, TASK, shift=PLUS, severities=[1, 2], progress=False)["a"]
    assert found.clean == {"loss": 1.0}
    assert found.rows == {("plus", 1): {"loss": 4.0}, ("plus", 2): {"loss": 9.0}}
    assert found.shifted == {"loss": 6.5} and found.drops == {"loss": 5.5}
    assert found.worst("loss") == ("plus", 2) and found.by_severity("loss") == {1: 4.0, 2: 9.0}
    assert "550.0 % worse; worst: plus at 2" in found.describe() and "| loss | 1 | 6.5 | 550.0 % |" in found.table()
    assert TaskShift.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(FileError):
        TaskShift.from_json({"clean": 3})
    with pytest.raises(ArgumentError, match="accuracy"):
        found.by_shift("accuracy")


def test_a_metric_that_is_better_when_higher_drops_downwards() -> None:
    found = TaskShift({"f1": 0.8}, {("a", 1): {"f1": 0.6}, ("b", 1): {"f1": 0.2}}, {"f1": True})
    assert found.drops["f1"] == pytest.approx(0.5) and found.worst("f1") == ("b", 1)


def test_domains_that_the_user_names_are_measured_beside_shifts() -> None:
    other = [(torch.full((3, 1), 3.0), torch.zeros(3, 1))]
    models = {"a": nn.Identity(), "b": nn.Linear(1, 1)}
    found = evaluate_task_shift(models, BATCHES, TASK, shift=[PLUS, {"kjv": other}], severities=[1], progress=False)
    assert found["a"].rows["kjv", 1] == {"loss": 9.0} == evaluate_task(models["a"], other, TASK, progress=False)
    assert found["a"].shifted == {"loss": 6.5} and set(found["b"].rows) == {("plus", 1), ("kjv", 1)}
    alone = evaluate_task_shift({"a": nn.Identity()}, BATCHES, TASK, shift={("kjv", 4): other}, progress=False)
    assert set(alone["a"].rows) == {("kjv", 4)}


def test_batches_are_prepared_after_they_were_shifted() -> None:
    def prepare(batch: Any) -> Any:
        texts, labels = batch
        return torch.tensor([[float(len(text))] for text in texts]), labels

    data = [(["abc def ghi jkl mno pqr stu"] * 2, torch.full((2, 1), 27.0))]
    shift = text_shifts("missing_letters")
    found = evaluate_task_shift({"a": nn.Identity()}, data, TASK, shift=shift, prepare=prepare, progress=False)["a"]
    assert found.clean == {"loss": 0.0} and found.rows["missing_letters", 5]["loss"] > 0


def test_names_mean_what_suits_the_batches() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    pictures = [(torch.rand(4, 1, 8, 8), torch.zeros(4, 2))]
    model(pictures[0][0])
    found = evaluate_task_shift({"a": model}, pictures, TASK, shift="noise", severities=[3], progress=False)["a"]
    noisy = [(corrupt(pictures[0][0], "shot_noise", 3), pictures[0][1])]
    assert found.rows["shot_noise", 3] == evaluate_task(model, noisy, TASK, progress=False)
    whole = evaluate_task_shift({"a": nn.Linear(1, 1)}, BATCHES, TASK, severities=[1], progress=False)["a"]
    assert set(whole.names) == {shift.name for shift in table_shifts(BATCHES)}
    words = [torch.randint(0, 9, (2, 6))]
    task = Task(objective=lambda model, batch: batch.float().mean())
    assert set(evaluate_task_shift({"a": nn.Identity()}, words, task, severities=[1], progress=False)["a"].names) == {
        "missing_tokens",
        "replaced_tokens",
    }


def test_segmentation_and_language_models_are_measured() -> None:
    pictures, masks = torch.rand(2, 3, 16, 16), torch.randint(0, 4, (2, 16, 16))
    model = nn.Conv2d(3, 4, 1)
    loss = Task(loss=tasks.segmentation().loss)
    (shift,) = picture_shifts("scale")
    found = evaluate_task_shift({"a": model}, [(pictures, masks)], loss, shift=shift, severities=[5], progress=False)
    assert found["a"].rows["scale", 5] == evaluate_task(model, [shift((pictures, masks), 5)], loss, progress=False)


def test_shifts_go_to_other_processes() -> None:
    for shift in (*picture_shifts(["fog", "rotate"]), *text_shifts("accents"), *table_shifts(torch.rand(4, 2))):
        assert pickle.loads(pickle.dumps(shift)).name == shift.name


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ("fogg", "'fogg' is unknown.*fog"),
        ("accents", "text_shifts\\('accents', tokenizer="),
        ("white_noise", "audio_shifts\\('white_noise', rate="),
        ([], "names no shift"),
        ([PLUS, PLUS], "two shifts are called 'plus'"),
        ([PLUS, {"plus": BATCHES}], "both called 'plus'"),
    ],
)
def test_shifts_that_are_none_are_told(shift: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        evaluate_task_shift({"a": nn.Identity()}, BATCHES, TASK, shift=shift, progress=False)


@pytest.mark.parametrize("shift", ["all", "scale_drift"])
def test_shifts_that_look_at_the_data_first_need_them_twice(shift: str) -> None:
    with pytest.raises(DataError, match=f"shift='{shift}' looks at the data first, and a list_iterator"):
        evaluate_task_shift({"a": nn.Identity()}, iter(BATCHES), TASK, shift=shift, progress=False)
    with pytest.raises(DataError, match="no batch"):
        evaluate_task_shift({"a": nn.Identity()}, [], TASK, shift=shift, progress=False)


def test_the_batch_that_cannot_be_shifted_is_named() -> None:
    data = [*BATCHES, (torch.ones(2, 2, 2, 2), torch.zeros(1))]
    with pytest.raises(DataError, match="batch 2: there are no tables"):
        evaluate_task_shift(
            {"a": nn.Identity()}, data, TASK, shift=table_shifts(torch.rand(4, 1)), severities=[1], progress=False
        )
    with pytest.raises(ArgumentError, match="at least one model"):
        evaluate_task_shift({}, BATCHES, TASK)
