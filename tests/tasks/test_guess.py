"""The task is guessed where it is certain, with the reason; elsewhere the error says what to give."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError
from nervure.tasks import guess
from tests.tasks.small import CASES, TinyForCausalLM, Tokens
from tests.tasks.test_boxes import PICTURES, TARGETS, Listed

CERTAIN = [
    "classification",
    "multilabel",
    "regression",
    "huber",
    "token classification",
    "causal, padded",
    "segmentation",
]


def named(name: str, base: type[nn.Module] = Tokens, **attributes: Any) -> nn.Module:
    return type(name, (base,), attributes)(9, 9)


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_is_guessed(name: str) -> None:
    case = CASES[name]()
    found = guess(case.model, case.batch)
    assert (found.name, bool(found.reason)) == (case.task.name, True)
    if name != "huber":
        torch.testing.assert_close(found(case.model, case.batch), case.task(case.model, case.batch))


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        ("ForCausalLM", "language modelling, causal"),
        ("LMHeadModel", "language modelling, causal"),
        ("ForMaskedLM", "language modelling, masked"),
        ("ForTokenClassification", "token classification"),
        ("ForCTC", "sequence, ctc"),
        ("ForConditionalGeneration", "sequence, seq2seq"),
        ("ForSemanticSegmentation", "segmentation"),
        ("ForObjectDetection", "detection"),
    ],
)
def test_classes_of_transformers_are_known_by_name(ending: str, name: str) -> None:
    found = guess(named(f"Tiny{ending}"), torch.zeros(2, 3).long())
    assert (found.name, found.reason) == (name, f"the model is a Tiny{ending}")


def test_a_classifier_of_sequences_says_what_it_is_trained_for() -> None:
    batch = (torch.zeros(4, 3), torch.randn(4, 2))
    for kind, name in {"regression": "regression", "multi_label_classification": "multilabel"}.items():
        model = type("TinyForSequenceClassification", (nn.Linear,), {"config": SimpleNamespace(problem_type=kind)})(
            3, 2
        )
        assert guess(model, batch).name == name
    untold = type("TinyForSequenceClassification", (nn.Linear,), {"config": SimpleNamespace(problem_type=None)})(3, 2)
    assert guess(untold, (torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))).name == "classification"


def test_wrappers_are_looked_into() -> None:
    compiled = torch.compile(TinyForCausalLM(9, 9), backend="eager")
    assert guess(compiled, torch.zeros(2, 3).long()).reason == "the model is a TinyForCausalLM"


def test_tokens_that_come_next_are_seen() -> None:
    ids = torch.randint(0, 9, (4, 7))
    found = guess(Tokens(9, 9), (ids[:, :-1], ids[:, 1:]))
    assert found.reason == "each label is the token that comes next"
    torch.testing.assert_close(found(Tokens(9, 9), (ids[:, :-1], ids[:, 1:])).shape, torch.Size([]))


def test_vectors_of_length_one_are_embeddings() -> None:
    class Unit(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.normalize(super().forward(x), dim=1)

    labels = nn.functional.normalize(torch.randn(4, 5), dim=1)
    assert guess(Unit(3, 5), (torch.randn(4, 3), labels)).name == "embedding"
    assert guess(nn.Linear(3, 5), (torch.randn(4, 3), labels)).name == "regression"


def test_boxes_are_seen() -> None:
    assert guess(Listed().eval(), (PICTURES, TARGETS)).name == "detection"


def test_a_loss_of_the_models_own_is_taken_where_nothing_else_is_certain() -> None:
    batch = {"input_ids": torch.zeros(4, 7).long(), "labels": torch.randint(0, 9, (4, 7))}
    batch["input_ids"][0, 0] = 8
    found = guess(Tokens(9, 9), batch)
    assert found.name == "the model's own loss"


def test_labels_of_the_models_own_names_are_its_business() -> None:
    class Spans(nn.Linear):
        def forward(self, x: Tensor, start: Tensor | None = None) -> dict[str, Tensor]:
            found = super().forward(x)
            loss = {} if start is None else {"loss": nn.functional.cross_entropy(found, start)}
            return loss | {"start_logits": found, "end_logits": found}

    model, batch = Spans(3, 5), {"x": torch.randn(4, 3), "start": torch.arange(4)}
    found = guess(model, batch)
    assert found.name == "the model's own loss"
    torch.testing.assert_close(found(model, batch), model(**batch)["loss"])


LINEAR = nn.Linear(3, 5)
X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (LINEAR, X, r"outputs \[4, 5\] and a batch without labels. Give one, e.g. tasks.agreement\(dense\)"),
        (nn.Linear(3, 1), (X, torch.tensor([0, 1, 1, 0])), r"outputs \[4, 1\] and labels \[4\] of torch.int64"),
        (LINEAR, (X, torch.full((4, 5), 0.2)), r"labels \[4, 5\] of torch.float32"),
        (LINEAR, (X, nn.functional.one_hot(torch.arange(4), 5).float()), r"labels \[4, 5\] of torch.float32"),
        (LINEAR, (torch.randn(4, 5, 3), torch.zeros(4, 5).long()), r"outputs \[4, 5, 5\] and labels \[4, 5\]"),
        (nn.LSTM(3, 5), (X, {"a": X, "b": X}), "a dict of a, b|outputs"),
    ],
)
def test_what_is_not_certain_is_not_guessed(model: nn.Module, batch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        guess(model, batch)


def test_a_guess_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5)).train()
    before = model[0].running_mean.clone()
    guess(model, (X, torch.arange(4)))
    assert model.training and torch.equal(model[0].running_mean, before)


def test_no_task_of_another_library_is_taken_for_ours() -> None:
    assert (
        guess(type("SegmentationModel", (nn.Conv2d,), {})(3, 4, 1), CASES["segmentation"]().batch).name
        == "segmentation"
    )
    inherited = type("PoseModel", (type("DetectionModel", (nn.Linear,), {}),), {})(3, 5)
    assert guess(inherited, (X, torch.arange(4))).name == tasks.classification().name
