"""Metrics of torchmetrics are fed what they measure: figures that can be counted by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.tasks import Task, evaluate_task, map_tensors
from tests.tasks.small import CASES

torchmetrics = pytest.importorskip("torchmetrics")


class Says(nn.Module):
    """A model that says its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def measured(task: Task, *batches: Any) -> dict[str, float]:
    return evaluate_task(Says(), batches, task)


def logits(classes: Any, count: int) -> Tensor:
    """Sure of these classes, which become the last axis."""
    return 20 * nn.functional.one_hot(torch.as_tensor(classes), count).float()


@pytest.mark.parametrize("name", CASES)
def test_every_task_measures_what_it_says(name: str) -> None:
    case = CASES[name]()
    found = evaluate_task(case.model, [case.batch], case.task)
    assert all(math.isfinite(value) for value in found.values())
    assert set(found) <= set(case.task.higher_is_better)
    assert set(case.task.higher_is_better) - set(found) <= {"top5"}


def test_directions_are_those_that_torchmetrics_knows() -> None:
    for name, make in CASES.items():
        case = make()
        output = case.task.forward(case.model, case.batch)
        for metric, measure in case.task.metrics.items():
            made = measure.make(measure.read(output, case.batch)[0])
            if made is not None and made.higher_is_better is not None:
                assert made.higher_is_better == measure.higher_is_better, f"{metric} of {name}"


def test_classification() -> None:
    said, labels = logits([0, 1, 2, 2, 6, 6], 7), torch.tensor([0, 1, 2, 0, 5, 6])
    found = measured(tasks.classification(), (said[:3], labels[:3]), (said[3:], labels[3:]))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["calibration_error"] == pytest.approx(2 / 6, abs=1e-4)
    assert "top5" in found and "top5" not in measured(tasks.classification(), (said[:, :4], labels.clamp(max=3)))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_may_be_a_part_of_something_larger(name: str) -> None:
    case = CASES[name]()
    whole = evaluate_task(case.model, [case.batch], case.task)
    # As the first columns of a table: what views its tensors cannot take them.
    part = map_tensors(lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]] if x.ndim else x, case.batch)
    assert evaluate_task(case.model, [part], case.task) == pytest.approx(whole)


def test_labels_that_do_not_count_are_not_measured() -> None:
    batch = (logits([0, 1, 2, 2], 3), torch.tensor([0, 1, -100, -100]))
    assert measured(tasks.classification(ignore=-100), batch)["accuracy"] == 1
    tokens = (logits([[0, 1, 2, 2]], 3), torch.tensor([[0, 0, -100, 2]]))
    assert measured(tasks.token_classification(), tokens)["accuracy"] == pytest.approx(2 / 3)


def test_multilabel() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 0]])
    said = torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, -9.0]])
    found = measured(tasks.multilabel(), (said, labels))
    assert (found["accuracy"], found["f1"]) == (pytest.approx(2 / 3), pytest.approx(0.5))
    # Small logits are no probabilities, whatever they look like.
    one = measured(tasks.multilabel(), (torch.tensor([0.2, 0.3, 0.1]), torch.tensor([1, 1, 1])))
    assert one["accuracy"] == 1


def test_regression() -> None:
    found = measured(tasks.regression(), (torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [4.0]])))
    assert found == pytest.approx({"loss": 2.0, "rmse": math.sqrt(2), "mae": 1.0, "r2": 1 - 4 / 4.5})


def test_language_modelling() -> None:
    ids = torch.tensor([[0, 1, 2, 1]])
    said = logits([[1, 2, 0, 0]], 3)
    found = evaluate_task(nn.Embedding.from_pretrained(said[0, [0, 1, 2]]), [ids], tasks.language_modelling())
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-4)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_segmentation() -> None:
    labels = torch.tensor([[[0, 0], [1, 255]]])
    said = logits([[[0, 1], [1, 1]]], 2).movedim(-1, 1)
    found = measured(tasks.segmentation(), (said, labels))
    assert (found["accuracy"], found["mean_iou"]) == (pytest.approx(2 / 3), pytest.approx(0.5))


def test_what_frames_spell() -> None:
    said, labels = logits([[1, 1, 0, 1, 2], [3, 3, 3, 0, 0]], 4), torch.tensor([[1, 1, 2], [3, 1, 0]])
    assert measured(tasks.sequence("ctc"), (said, labels))["label_error_rate"] == pytest.approx(1 / 5)
    texts = tasks.sequence("ctc", decode=lambda numbers: " ".join("_abc"[n] for n in numbers))
    found = measured(texts, (said, labels))
    assert found["word_error_rate"] == pytest.approx(1 / 5)
    assert found["character_error_rate"] == pytest.approx(2 / 8)


def test_embedding() -> None:
    found = measured(
        tasks.embedding(), (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
    )
    assert found == pytest.approx({"loss": 0.5, "cosine": 0.5})


def test_a_metric_of_torchmetrics_is_given_logits_and_labels() -> None:
    metric = torchmetrics.classification.MulticlassRecall(3, average="micro")
    task = Task(objective=lambda model, batch: model(batch["x"]).mean(), metrics={"recall": metric})
    batch = {"x": logits([0, 1, 2], 3), "label": torch.tensor([0, 1, 1])}
    assert measured(task, batch)["recall"] == pytest.approx(2 / 3)
    assert task.higher_is_better["recall"]
