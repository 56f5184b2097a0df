"""Agreement with a dense model: nothing moved gives nothing, and no labels are asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError
from nervure.tasks import evaluate_task
from tests.tasks.small import Tokens

X, IDS = torch.randn(6, 3), torch.randint(0, 9, (4, 7))


def moved(model: nn.Module, *args: Any) -> nn.Module:
    other = type(model)(*args)
    other.load_state_dict({k: v + torch.randn_like(v) for k, v in model.state_dict().items()})
    return other


@pytest.mark.parametrize("batch", [X, (X, torch.zeros(6)), {"input": X}, {"x": X, "labels": ["a"] * 6}])
def test_the_model_itself_agrees_with_itself(batch: Any) -> None:
    model = nn.Linear(3, 5)
    assert float(tasks.agreement(model)(model, batch).detach()) == 0
    assert float(tasks.agreement(model, "values")(model, batch).detach()) == 0


def test_the_loss_is_the_divergence_from_the_dense_model() -> None:
    dense = nn.Linear(3, 5)
    model = moved(dense, 3, 5)
    p, q = dense(X).softmax(1), model(X).softmax(1)
    loss = tasks.agreement(dense)(model, X)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(1).mean())
    loss.backward()
    assert model.weight.grad is not None and dense.weight.grad is None
    torch.testing.assert_close(tasks.agreement(dense, "values")(model, X), nn.functional.mse_loss(model(X), dense(X)))


def test_tokens_that_are_padding_do_not_count() -> None:
    dense, mask = Tokens(9, 5), torch.ones_like(IDS)
    mask[:, 4:] = 0
    model, task = moved(dense, 9, 5), tasks.agreement(dense)
    padded = {"input_ids": IDS, "attention_mask": mask}
    assert task.total(model, padded).count == 16
    torch.testing.assert_close(task(model, padded), task(model, {"input_ids": IDS[:, :4]}))


def test_classes_are_the_last_axis_or_the_one_that_is_told() -> None:
    dense = nn.Conv2d(3, 4, 1)
    model, pictures = moved(dense, 3, 4, 1), torch.randn(2, 3, 5, 6)
    assert tasks.agreement(dense).total(model, pictures).count == 2 * 5 * 6
    line, lines = nn.Conv1d(3, 4, 1), torch.randn(2, 3, 6)
    assert tasks.agreement(line, axis=1).total(line, lines).count == 2 * 6


def test_the_dense_model_is_asked_once_for_a_batch_and_left_as_it_was() -> None:
    class Counts(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return super().forward(x)

    dense = nn.Sequential(nn.Dropout(), Counts(3, 5)).train()
    task = tasks.agreement(dense)
    model = nn.Linear(3, 5)
    first = [float(task(model, X).detach()) for _ in range(3)]
    assert Counts.calls == 1 and first == [first[0]] * 3
    task(model, X.clone())
    assert Counts.calls == 2 and dense.training and dense[0].training


def test_answers_of_other_shapes_are_told() -> None:
    with pytest.raises(ArgumentError, match=r"the dense model answers \[6, 5\], this one \[6, 4\]"):
        tasks.agreement(nn.Linear(3, 5))(nn.Linear(3, 4), X)
    with pytest.raises(ArgumentError, match="has no loss"):
        tasks.agreement(nn.Linear(3, 5), "boxes")(nn.Linear(3, 5), X)
    with pytest.raises(ArgumentError, match="kind is one of 'classes', 'values', 'boxes'"):
        tasks.agreement(nn.Linear(3, 5), "class")  # type: ignore[arg-type]


def test_flips_are_counted() -> None:
    pytest.importorskip("torchmetrics")
    dense, model = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.eye(2))
        model.weight.copy_(torch.tensor([[0.5, 0.0], [1.0, 1.0]]))
    data = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])]
    found = evaluate_task(model, data, tasks.agreement(dense))
    assert found["flips"] == 0.5 and found["kl"] == pytest.approx(found["loss"])
    assert evaluate_task(dense, data, tasks.agreement(dense)) == {"loss": 0, "kl": 0, "flips": 0}
    same = evaluate_task(dense, data, tasks.agreement(dense, "values"))
    assert same == pytest.approx({"loss": 0, "r2": 1, "cosine": 1})
