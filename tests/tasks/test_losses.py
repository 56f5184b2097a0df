"""The loss of every task: torch's own formula, a sum over what counts, and errors that say what to do."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nervure import tasks
from nervure.errors import ArgumentError, CallError, DataError
from nervure.tasks import Task, Total, evaluate_task, map_tensors
from nervure.tasks.numeric import Numeric
from tests.tasks.small import CASES, Tokens, Writer


def without_metrics(task: Task) -> Task:
    return replace(task, metrics={})


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_a_batch_is_the_sum_over_its_samples(name: str) -> None:
    case = CASES[name]()
    whole = case.task.total(case.model, case.batch)
    each = [case.task.total(case.model, map_tensors(lambda x, n=n: x[n : n + 1], case.batch)) for n in range(4)]
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in each]).sum())
    assert whole.count == sum(one.count for one in each)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_does_not_depend_on_how_data_are_cut_into_batches(name: str) -> None:
    case = CASES[name]()
    halves = [map_tensors(lambda x, n=n: x[n : n + 3], case.batch) for n in (0, 3)]
    task = without_metrics(case.task)
    assert evaluate_task(case.model, [case.batch], task)["loss"] == pytest.approx(
        evaluate_task(case.model, halves, task)["loss"], rel=1e-5
    )


@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_an_objective_that_every_weight_hears(name: str) -> None:
    case = CASES[name]()
    loss = case.task(case.model, case.batch)
    loss.backward()
    assert loss.ndim == 0 and all(bool(p.grad.abs().sum() > 0) for p in case.model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in case.model.parameters())


@pytest.mark.parametrize("name", [name for name in CASES if name != "agreement"])
def test_a_model_in_double_precision_has_a_loss_in_double_precision(name: str) -> None:
    case = CASES[name]()
    single = case.task.total(case.model, case.batch)
    case.model.double()
    # Labels stay as they are: loaders give numbers in single precision.
    batch = map_tensors(lambda x: x.double() if x.is_floating_point() else x, case.batch)
    if isinstance(batch, tuple) and batch[1].is_floating_point():
        batch = (batch[0], batch[1].float())
    loss = case.task(case.model, batch)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, single.mean.double(), rtol=1e-5, atol=1e-7)
    # Differences of so small steps are lost where a number on the way is in single precision.
    step, parameter = 1e-6, next(case.model.parameters())
    loss.backward()
    slope = float((parameter.grad * parameter.grad).sum())
    with torch.no_grad():
        ahead, back = (float(case.task(_moved(case.model, parameter, sign * step), batch)) for sign in (1, -2))
    assert (ahead - back) / (2 * step) == pytest.approx(slope, rel=1e-5)


def _moved(model: nn.Module, parameter: Tensor, step: float) -> nn.Module:
    """The model, with a parameter a step further along its gradient than it was."""
    parameter += step * parameter.grad
    return model


def test_losses_are_those_of_torch() -> None:
    def both(name: str) -> tuple[Tensor, Any, Any]:
        case = CASES[name]()
        output = case.model(case.batch[0]) if isinstance(case.batch, tuple) else case.model(**case.batch).logits
        labels = case.batch[1] if isinstance(case.batch, tuple) else case.batch["labels"]
        return case.task(case.model, case.batch), output, labels

    for name in ("classification", "mixed"):
        loss, output, labels = both(name)
        torch.testing.assert_close(loss, F.cross_entropy(output, labels))
    loss, output, labels = both("multilabel")
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(output, labels.float()))
    loss, output, labels = both("regression")
    torch.testing.assert_close(loss, F.mse_loss(output, labels))
    loss, output, labels = both("huber")
    torch.testing.assert_close(loss, F.smooth_l1_loss(output[:, 0], labels))
    for name in ("token classification", "masked"):
        loss, output, labels = both(name)
        torch.testing.assert_close(loss, F.cross_entropy(output.flatten(0, 1), labels.flatten()))
    loss, output, labels = both("causal, padded")
    torch.testing.assert_close(loss, F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def test_a_causal_model_learns_its_own_tokens_where_the_mask_is() -> None:
    model, ids = Tokens(9, 9), torch.randint(0, 9, (2, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    labels = ids.masked_fill(mask == 0, -100)
    task = tasks.language_modelling()
    torch.testing.assert_close(
        task(model, {"input_ids": ids, "attention_mask": mask}), task(model, {"input_ids": ids, "labels": labels})
    )
    assert task.total(model, {"input_ids": ids, "attention_mask": mask}).count == 5 + 2


def test_tokens_that_are_padding_never_count() -> None:
    model, ids = Tokens(9, 9), torch.tensor([[1, 2, 3, 0, 0]])
    assert tasks.language_modelling(padding=0).total(model, ids).count == 2


def test_labels_that_are_shifted_already_are_not_shifted_twice() -> None:
    model, ids = Tokens(9, 9), torch.randint(0, 9, (2, 6))
    pair = (ids[:, :-1], ids[:, 1:])
    with pytest.raises(DataError, match="shifted twice. Give shift=False"):
        tasks.language_modelling()(model, pair)
    torch.testing.assert_close(
        tasks.language_modelling(shift=False)(model, pair), tasks.language_modelling()(model, ids)
    )


def test_a_decoder_is_given_its_labels_or_its_own_inputs() -> None:
    case = CASES["seq2seq"]()
    given = {**case.batch, "decoder_input_ids": Writer().prepare_decoder_input_ids_from_labels(case.batch["labels"])}
    torch.testing.assert_close(case.task(case.model, case.batch), case.task(case.model, given))


def test_tokens_become_one_vector_by_their_mask() -> None:
    class Encoder(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
            return {"hidden": torch.zeros(2, 3), "last_hidden_state": input_ids[..., None] * torch.tensor([1.0, 0.0])}

    ids, mask = torch.tensor([[1, 5, 9], [2, 4, 6]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    found, _ = Numeric().vectors(
        Encoder()(ids), {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(2, 2)}
    )
    assert found.tolist() == [[3, 0], [4, 0]]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    assert float(tasks.embedding()(Encoder(), batch)) == pytest.approx(0.5)


def test_the_forms_of_labels_of_sequences_agree() -> None:
    model, x, task = nn.Linear(3, 6), torch.randn(2, 9, 3), tasks.sequence("ctc")
    rows = [torch.tensor([1, 2, 2]), torch.tensor([4])]
    forms = [
        torch.tensor([[1, 2, 2], [4, -100, -100]]),
        torch.tensor([[1, 2, 2], [4, 0, 0]]),
        (torch.tensor([[1, 2, 2], [4, 5, 5]]), torch.tensor([3, 1])),
        (torch.cat(rows), torch.tensor([3, 1])),
        rows,
    ]
    losses = [float(task(model, (x, labels)).detach()) for labels in forms]
    assert losses == pytest.approx([losses[0]] * len(forms))
    log = model(x).log_softmax(-1).transpose(0, 1)
    own = F.ctc_loss(log, torch.cat(rows), torch.tensor([9, 9]), torch.tensor([3, 1]), reduction="sum") / 4
    assert losses[0] == pytest.approx(float(own.detach()))


def test_frames_that_are_padding_do_not_count() -> None:
    model, x, labels = nn.Linear(3, 6), torch.randn(2, 9, 3), torch.tensor([[1, 2], [4, 5]])
    task = tasks.sequence("ctc", inputs="x", lengths="frames")
    short = task(model, {"x": x, "labels": labels, "frames": torch.tensor([5, 5])})
    torch.testing.assert_close(short, task(model, {"x": x[:, :5], "labels": labels, "frames": torch.tensor([9, 9])}))


def test_the_model_may_tell_its_own_loss() -> None:
    model, batch = Tokens(9, 5), {"input_ids": torch.randint(0, 9, (4, 7)), "labels": torch.randint(0, 5, (4, 7))}
    torch.testing.assert_close(tasks.model_loss()(model, batch), tasks.token_classification()(model, batch))
    with pytest.raises(DataError, match="without a 'loss' of its own"):
        tasks.model_loss()(nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2)))


LINEAR, PIXELS = nn.Linear(3, 12), nn.Conv2d(3, 4, 1)
IDS = torch.randint(0, 9, (4, 7))
WRONG: dict[str, tuple[Task, nn.Module, Any, str]] = {
    "a class too many": (
        tasks.classification(),
        LINEAR,
        (torch.randn(4, 3), torch.full((4,), 297)),
        r"label 297 is out of range: the model has 12 outputs, for the labels 0 .. 11. Number .* from 0",
    ),
    "a class too many of a token": (
        tasks.token_classification(),
        Tokens(9, 12),
        (IDS, torch.full((4, 7), 297)),
        r"label 297 is out of range: the model has 12 outputs on axis 2",
    ),
    "-100 where all count": (
        tasks.classification(),
        LINEAR,
        (torch.randn(4, 3), torch.full((4,), -100)),
        r"label -100 is out of range: .* give ignore=-100\.",
    ),
    "-100 where 255 does not count": (
        tasks.segmentation(),
        PIXELS,
        (torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), -100)),
        r"on axis 1, .* give ignore=-100 in place of 255",
    ),
    "one output for two classes": (
        tasks.classification(),
        nn.Linear(3, 1),
        (torch.randn(4, 3), torch.ones(4).long()),
        r"says yes or no .* multilabel\(\)",
    ),
    "no labels": (tasks.classification(), LINEAR, torch.randn(4, 3), "there are no labels in a tensor"),
    "a tuple of labels": (
        tasks.classification(),
        LINEAR,
        (torch.randn(4, 3), (torch.zeros(4), torch.zeros(4))),
        "the labels are a tuple of 2; give them as one tensor",
    ),
    "labels of another shape": (
        tasks.token_classification(),
        Tokens(9, 12),
        (IDS, torch.zeros(4, 6).long()),
        r"labels \[4, 6\] do not fit outputs \[4, 7, 12\]: with the classes on axis 2 they must be \[4, 7\]",
    ),
    "labels that are no classes": (
        tasks.classification(),
        LINEAR,
        (torch.randn(4, 3), torch.rand(4)),
        "labels have dtype torch.float32; give the numbers of the classes",
    ),
    "one number for several outputs": (
        tasks.regression(),
        LINEAR,
        (torch.randn(4, 3), torch.rand(4, 1)),
        r"labels \[4, 1\] do not fit outputs \[4, 12\]",
    ),
    "a number that is missing": (
        tasks.regression(),
        nn.Linear(3, 1),
        (torch.randn(4, 3), torch.tensor([1.0, float("nan"), 0.0, 0.0])),
        "1 of 4 labels are NaN or infinite",
    ),
    "a class in place of yes or no": (
        tasks.multilabel(),
        nn.Linear(3, 2),
        (torch.randn(4, 3), torch.full((4, 2), 3)),
        r"label 3 is out of range: each of the 2 outputs .* classification\(\)",
    ),
    "more labels than frames": (
        tasks.sequence("ctc"),
        nn.Linear(3, 6),
        (torch.randn(2, 3, 3), torch.tensor([[1, 2, 2], [3, 0, 0]])),
        "sample 0 has 3 labels, which take 4 frames, and the model gives 3",
    ),
    "frames first": (
        tasks.sequence("ctc"),
        nn.Linear(3, 6),
        (torch.randn(9, 2, 3), torch.tensor([[1, 2], [3, 0]])),
        "give time_first=True",
    ),
    "a label of a sequence": (
        tasks.sequence("ctc"),
        nn.Linear(3, 6),
        (torch.randn(2, 9, 3), torch.tensor([[1, 6], [3, 0]])),
        "label 6 is out of range: the model has 6 outputs for each frame",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_labels_is_told_with_the_batch(name: str) -> None:
    task, model, batch, message = WRONG[name]
    with pytest.raises(DataError, match=f"^batch 0: .*{message}"):
        evaluate_task(model, [batch], without_metrics(task))


def test_your_own_task_is_a_function() -> None:
    model, batch = nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2))
    objective = Task(objective=lambda model, batch: (model(batch[0]) - batch[1]).abs().mean())
    of_output = Task(loss=lambda output, batch: (output - batch[1]).abs().mean())
    summed = Task(loss=lambda output, batch: Total((output - batch[1]).abs().sum(), output.numel()))
    losses = [float(task(model, batch).detach()) for task in (objective, of_output, summed)]
    assert losses == pytest.approx([losses[0]] * 3)
    assert [task.total(model, batch).count for task in (objective, of_output, summed)] == [4, 4, 8]


@pytest.mark.parametrize("name", CASES)
def test_tasks_are_values_that_go_to_other_processes(name: str) -> None:
    case = CASES[name]()
    again = pickle.loads(pickle.dumps(case.task))
    torch.testing.assert_close(again(case.model, case.batch), case.task(case.model, case.batch))
    assert repr(again) == repr(case.task), "a value is told alike in every process"


def test_tasks_of_other_settings_are_told_apart() -> None:
    told = [repr(task) for task in (tasks.classification(), tasks.classification(smoothing=0.1), tasks.regression())]
    assert len(set(told)) == 3 and told[0].startswith("Task('classification', ") and len(told[0]) < 40


class Many(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.age, self.kind = nn.Linear(3, 1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"age": self.age(x), "kind": self.kind(x)}


def test_several_outputs_have_a_task_each() -> None:
    x, age, kind = torch.randn(4, 3), torch.rand(4), torch.arange(4)
    model = Many()
    heads = {
        "age": tasks.regression(output="age", labels="1.age"),
        "kind": tasks.classification(output="kind", labels="1.kind"),
    }
    both = tasks.multitask(weights={"kind": 0.5}, inputs=0, **heads)
    batch = (x, {"age": age, "kind": kind})
    expected = F.mse_loss(model.age(x)[:, 0], age) + 0.5 * F.cross_entropy(model.kind(x), kind)
    torch.testing.assert_close(both(model, batch), expected)
    assert {"age.rmse", "kind.accuracy"} < both.higher_is_better.keys()
    assert both.higher_is_better["kind.accuracy"] and not both.higher_is_better["age.rmse"]
    assert torch.equal(both.labels(batch)["kind"], kind)
    with pytest.raises(ArgumentError, match=r"weights of \['old'\], which are no tasks"):
        tasks.multitask(weights={"old": 1.0}, **heads)
    with pytest.raises(ArgumentError, match="no tasks"):
        tasks.multitask()
    with pytest.raises(ArgumentError, match="has no loss of an output"):
        tasks.multitask(age=Task(objective=lambda model, batch: model(batch).mean()))


def test_a_task_of_your_own_is_checked() -> None:
    with pytest.raises(ArgumentError, match="both say what the loss is"):
        Task(objective=lambda model, batch: None, loss=lambda output, batch: None)
    with pytest.raises(ArgumentError, match="must be a tensor of one real number"):
        Task(objective=lambda model, batch: torch.zeros(3))(nn.Linear(1, 1), torch.zeros(2, 1))
    with pytest.raises(ArgumentError, match="has no loss"):
        Task()(nn.Linear(1, 1), torch.zeros(2, 1))
    with pytest.raises(ArgumentError, match="objective is a function of 2 arguments or None"):
        Task(objective=lambda model: None)
    with pytest.raises(CallError, match="Did you mean 'objective'"):
        Task(objectiv=None)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="give a metric of torchmetrics, or a Measure"):
        Task(metrics={"accuracy": "accuracy"})
    with pytest.raises(ArgumentError, match="'loss' is measured already"):
        Task(metrics={"loss": None})
