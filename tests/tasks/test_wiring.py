"""Tasks go through every door: evidence, methods, refit, training, evaluation; with batches of any form."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nervure
from nervure import Refit, evaluate, measure, prune, refit, tasks, trace, train
from nervure.errors import ArgumentError, DataError
from nervure.methods import SNIP, Energy, GraSP, Magnitude, Taylor, View, Wanda
from nervure.tasks.batch_forms import take_samples
from nervure.training import recalibrate, with_distillation
from tests.old_snacs import old_snacs

TOKENS, SIZE = 12, 20


class Tagger(nn.Module):
    """A class for each token."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, 16)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.hidden(self.embedding(input_ids)).relu()
        return {"logits": self.head(hidden if attention_mask is None else hidden * attention_mask[..., None])}


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.body(x))}


@dataclass
class Example:
    """A batch that is a dataclass."""

    x: Tensor
    target: Tensor


def tagged(batches: int = 4) -> list[dict[str, Any]]:
    made = torch.Generator().manual_seed(0)
    listed = []
    for _ in range(batches):
        ids = torch.randint(0, SIZE, (8, TOKENS), generator=made)
        mask = torch.ones_like(ids)
        mask[:, 9:] = 0
        labels = (ids % 3).masked_fill(mask == 0, -100)
        listed.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return listed


def numbers(batches: int = 4) -> list[Example]:
    made = torch.Generator().manual_seed(1)
    xs = [torch.randn(8, 6, generator=made) for _ in range(batches)]
    return [Example(x, x[:, :2] * 3 + 1) for x in xs]


def pictures(batches: int = 6) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(2)
    xs = [torch.rand(4, 1, 8, 8, generator=made) for _ in range(batches)]
    return [(x, (x[:, 0] * 3).long().clamp(max=2)) for x in xs]


CASES = {
    "tokens": (Tagger, tagged, tasks.token_classification()),
    "numbers": (Regressor, numbers, tasks.regression()),
    "pixels": (Segmenter, pictures, tasks.segmentation()),
    "next tokens": (
        lambda: Tagger(SIZE),
        lambda: [{k: v for k, v in b.items() if k != "labels"} for b in tagged()],
        tasks.language_modelling(),
    ),
}
"""A model, its data and its task; guessed where the data say it, but for the last."""


def made(name: str) -> tuple[nn.Module, list[Any], tasks.Task, Any]:
    torch.manual_seed(3)
    build, data, task = CASES[name]
    listed = data()
    first = task.inputs(listed[0])
    example = first["x"] if isinstance(first, dict) and set(first) == {"x"} else first
    return build().eval(), listed, task, example


def slope_by_hand(model: nn.Module, data: list[Any], task: tasks.Task, name: str) -> Tensor:
    model.zero_grad()
    totals = [task.total(model, batch) for batch in data]
    torch.stack([total.loss for total in totals]).sum().backward()
    found = model.get_parameter(name).grad
    assert found is not None
    return found / sum(total.count for total in totals)


@pytest.mark.parametrize("name", CASES)
def test_methods_that_listen_prune_any_task(name: str) -> None:
    model, data, task, example = made(name)
    for method in (Taylor(keep=0.5), old_snacs(keep=0.5, granularity="filters")):
        pruned = prune(model, example, method, data=data, task=task, progress=False)
        assert pruned.verification is not None, method
        assert pruned.cost_after.macs < 0.75 * pruned.cost_before.macs
        assert bool(torch.isfinite(task(pruned.model, data[0])))


@pytest.mark.parametrize("name", ["tokens", "numbers", "pixels"])
def test_a_task_that_the_batch_says_need_not_be_given(name: str) -> None:
    model, data, task, example = made(name)
    graph = trace(model, example)
    told = measure(model, graph, data, want={"gradients"}, task=task)
    seen = measure(model, graph, data, want={"gradients"})
    assert told.gradients.keys() == seen.gradients.keys() != set()
    for group, values in told.gradients.items():
        torch.testing.assert_close(seen.gradients[group], values)


def test_an_objective_of_the_users_is_a_task() -> None:
    model, data, task, example = made("numbers")

    def objective(model: nn.Module, batch: Example) -> Tensor:
        return (model(batch.x) - batch.target).square().mean()

    by_task = prune(model, example, Taylor(keep=0.5), data=data, task=task, progress=False)
    by_function = prune(model, example, Taylor(keep=0.5), data=data, task=objective, progress=False)
    assert by_task.plan.edits == by_function.plan.edits


def test_an_objective_takes_batches_apart_that_nobody_else_can() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    batches = [(torch.randn(6, 4), torch.randn(6, 2), torch.ones(6, 2), 6) for _ in range(2)]

    def objective(model: nn.Module, batch: Any) -> Tensor:
        x, y, weight, _ = batch
        return (weight * (model(x) - y).square()).mean()

    pruned = nervure.prune(model, batches[0][0], Taylor(keep=0.5), data=batches, task=objective, progress=False)
    assert pruned.cost_after.params < pruned.cost_before.params
    train(pruned.model, batches, task=objective, epochs=1, progress=False)
    with pytest.raises(DataError, match=r"forward=lambda model, batch: model\(batch\[0\]\)"):
        refit(pruned, batches, reference=model, task=objective)
    task = tasks.Task(objective=objective, forward=lambda model, batch: model(batch[0]))
    assert refit(pruned, batches, reference=model, task=task).layers


def test_gradients_are_those_of_the_sum_however_data_are_cut() -> None:
    model, data, task, example = made("tokens")
    graph = trace(model, example)
    whole = {key: torch.cat([batch[key] for batch in data]) for key in data[0]}
    parts = measure(model, graph, data, want={"gradients"}, task=task).gradients
    once = measure(model, graph, [whole], want={"gradients"}, task=task).gradients
    for group, values in parts.items():
        torch.testing.assert_close(once[group], values)


@pytest.mark.parametrize("name", CASES)
def test_masks_by_slopes_are_those_of_the_tasks_loss(name: str) -> None:
    model, data, task, example = made(name)
    found = slope_by_hand(model, data, task, "head.weight")
    pruned = prune(model, example, SNIP(density=0.5, batches=4, statistics="running"), data=data, task=task)
    scores = (model.get_parameter("head.weight") * found).abs().detach()
    kept = pruned.masks["head.weight"]
    assert scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("name", ["tokens", "pixels"])
def test_grasp_and_wanda_take_any_batch(name: str) -> None:
    model, data, task, example = made(name)
    for method in (GraSP(density=0.5), Wanda(density=0.5)):
        pruned = prune(model, example, method, data=data, task=task, progress=False)
        assert pruned.verification is not None
        assert all(0 < float(mask.float().mean()) <= 1 for mask in pruned.masks.values())


def test_grasp_says_what_to_do_where_a_loss_follows_from_no_output() -> None:
    model, data, _, example = made("numbers")
    task = tasks.Task(objective=lambda model, batch: model(batch.x).square().mean())
    with pytest.raises(ArgumentError, match="no loss of an output"):
        prune(model, example, GraSP(density=0.5), data=data, task=task, progress=False)


@pytest.mark.parametrize("name", CASES)
def test_any_task_is_trained_validated_and_better_for_it(name: str) -> None:
    model, data, task, _ = made(name)
    before = evaluate_loss(model, data, task)
    history = train(model, data, task=task, epochs=8, lr=3e-3, optimizer="adamw", validation=data, progress=False)
    assert evaluate_loss(model, data, task) < before
    assert len(history.validation) == 8
    if task.classes is None:
        assert history.validation[-1] == pytest.approx(evaluate_loss(model, data, task), rel=1e-4)
    else:
        assert history.validation[-1] == pytest.approx(accuracy_by_hand(model, data, task))


def evaluate_loss(model: nn.Module, data: list[Any], task: tasks.Task) -> float:
    bare = nervure.tasks.Task(loss=task.loss, forward=task.forward, labels=task.labels, samples=task.samples)
    return evaluate(model.eval(), data, task=bare, progress=False)["loss"]


def accuracy_by_hand(model: nn.Module, data: list[Any], task: tasks.Task) -> float:
    assert task.classes is not None
    pairs = [task.classes(task.forward(model, batch), batch) for batch in data]
    return float(torch.cat([logits.argmax(1) == labels for logits, labels in pairs]).double().mean())


def test_what_is_ignored_counts_in_nothing() -> None:
    model, data, task, _ = made("tokens")
    assert task.classes is not None
    logits, labels = task.classes(task.forward(model, data[0]), data[0])
    assert logits.shape == (8 * 9, 3)
    assert labels.tolist() == data[0]["labels"][:, :9].flatten().tolist()


def test_training_without_a_task_guesses_it() -> None:
    model, data, task, _ = made("numbers")
    twin, _, _, _ = made("numbers")
    how: dict[str, Any] = {"epochs": 2, "lr": 0.01, "progress": False}
    one, two = train(model, data, **how), train(twin, data, task=task, **how)
    assert one.loss == two.loss


def test_a_task_that_cannot_be_told_is_asked_before_a_weight_changes() -> None:
    model = nn.Linear(4, 1)
    before = model.weight.clone()
    data = [(torch.randn(4, 4), torch.tensor([[0.0], [1.0], [1.0], [0.0]]))]
    with pytest.raises(ArgumentError, match="cannot be told"):
        train(model, data, progress=False)
    assert model.weight.equal(before)


def test_bad_labels_are_told_before_a_weight_changes() -> None:
    model, data, task, _ = made("tokens")
    before = model.head.weight.clone()
    data[2]["labels"][0, 0] = 7
    with pytest.raises(DataError, match=r"batch 2 of data: label 7 is out of range: the model has 3 outputs on axis 2"):
        train(model, data, task=task, progress=False)
    assert model.head.weight.equal(before)


def test_a_language_model_is_taught_by_another() -> None:
    model, data, task, _ = made("next tokens")
    teacher, _, _, _ = made("next tokens")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective = with_distillation(task, teacher, weight=1.0)
    divergence = objective(model, data[0])
    train(model, data, objective=objective, epochs=5, lr=3e-3, optimizer="adamw", progress=False)
    assert objective(model, data[0]) < divergence
    student, taught = (one(**data[0])["logits"] / 4 for one in (model, teacher))
    each = nn.functional.kl_div(student.log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(objective(model, data[0]), 16 * each.sum(-1).mean())


@pytest.mark.parametrize("name", CASES)
def test_any_task_is_refitted(name: str) -> None:
    model, data, task, example = made(name)
    pruned = prune(model, example, Magnitude(keep=0.5), progress=False)
    refitted = refit(pruned, data, reference=model, task=task, how=Refit(samples=32), progress=False)
    dense = [task.forward(model, batch) for batch in data]

    def distance(other: nn.Module) -> float:
        pairs = zip(dense, (task.forward(other, batch) for batch in data), strict=True)
        return sum(float((tensors(a) - tensors(b)).square().sum().detach()) for a, b in pairs)

    assert distance(refitted.result.model) < distance(pruned.model)
    at_once = prune(model, example, Magnitude(keep=0.5), data=data, task=task, refit=Refit(samples=32), progress=False)
    assert distance(at_once.model) == pytest.approx(distance(refitted.result.model))


def tensors(output: Any) -> Tensor:
    return next(iter(output.values())) if isinstance(output, dict) else output


def test_blocks_are_judged_by_the_accuracy_of_what_counts() -> None:
    class Deep(Tagger):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(3))

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
            hidden = self.hidden(self.embedding(input_ids)).relu()
            for block in self.blocks:
                hidden = hidden + block(hidden)
            return {"logits": self.head(hidden)}

    torch.manual_seed(0)
    model, data, task = Deep().eval(), tagged(12), tasks.token_classification()
    pruned = prune(model, task.inputs(data[0]), Energy(drop=1), data=data, task=task, progress=False)
    assert len(pruned.plan.edits) == 1


def test_norms_are_recalibrated_on_any_batch() -> None:
    model, data, _, _ = made("numbers")
    assert recalibrate(model, data) == len(data)
    norm = model.body[1]
    raw = torch.cat([model.body[0](batch.x) for batch in data])
    torch.testing.assert_close(norm.running_mean, raw.mean(0), atol=1e-5, rtol=1e-5)


def test_evaluating_without_a_task_is_for_classifiers() -> None:
    model, data, _, _ = made("numbers")
    with pytest.raises(DataError, match="task="):
        evaluate(model, [(batch.x, batch.target) for batch in data], progress=False)


def test_snacs_finds_limits_by_the_loss() -> None:
    model, data, task, example = made("numbers")
    train(model, data * 8, task=task, epochs=10, lr=0.01, optimizer="adamw", progress=False)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    view = View(trace(model, example), weights, None, 0, model, example, data, task=task)
    limits = old_snacs(keep=0.7, granularity="filters").evidence(view).limits
    assert limits
    for limit in limits.values():
        assert limit.quality[0] == 1
        assert 0 < limit.upper < 1


@pytest.mark.parametrize(
    ("batch", "size", "first"),
    [
        (([torch.zeros(3, 4, 4), torch.ones(3, 5, 5)], [{"boxes": 1}, {"boxes": 2}]), 2, [{"boxes": 1}]),
        ({"x": torch.arange(3), "text": ["a", "b", "c"]}, 3, ["a"]),
    ],
)
def test_lists_of_samples_are_cut_with_the_tensors(batch: Any, size: int, first: list[Any]) -> None:
    found = take_samples(batch, slice(1), size)
    assert (found["text"] if isinstance(found, dict) else found[1]) == first
    if isinstance(found, tuple):
        assert len(found[0]) == 1


def test_a_list_of_inputs_is_cut_input_by_input() -> None:
    first, second = torch.arange(2), torch.arange(2) + 5
    inputs, labels = take_samples(([first, second], torch.tensor([0, 1])), torch.tensor([1]), 2)
    assert [int(x) for x in inputs] == [1, 6]
    assert labels.tolist() == [1]


def test_pictures_are_cut_with_their_own_boxes() -> None:
    batch = {
        "img": torch.arange(3).reshape(3, 1, 1, 1).expand(3, 3, 4, 4).float(),
        "batch_idx": torch.tensor([0.0, 2.0, 2.0]),
        "bboxes": torch.rand(3, 4),
        "cls": torch.tensor([[4.0], [5.0], [6.0]]),
    }
    taken = tasks.detection().take(batch, torch.tensor([1, 2]), 3)
    assert taken["img"][:, 0, 0, 0].tolist() == [1, 2]
    assert taken["cls"].flatten().tolist() == [5, 6]
    assert taken["batch_idx"].tolist() == [1, 1]


def test_a_task_is_evaluated_under_shift() -> None:
    model, data, task, _ = made("pixels")
    bare = tasks.Task(loss=task.loss, labels=task.labels)
    found = evaluate(model, data, task=bare, shift=["gaussian_noise"], severities=[5], progress=False)
    assert found.clean["loss"] == evaluate(model, data, task=bare, progress=False)["loss"]
    assert found.rows["gaussian_noise", 5]["loss"] != found.clean["loss"]


def test_a_task_has_the_same_name_in_every_process() -> None:
    code = (
        "from nervure import tasks\n"
        "made = [tasks.classification(), tasks.regression(), tasks.language_modelling(), tasks.detection(), "
        "tasks.sequence('ctc'), tasks.multitask(a=tasks.segmentation(ignore=9)), tasks.segmentation(ignore=8)]\n"
        "print(made)"
    )
    one, two = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in "12")
    assert one == two
    assert len(set(one.split())) > 6
    assert repr(tasks.segmentation(ignore=9)) != repr(tasks.segmentation(ignore=8))
    own = [tasks.Task(objective=lambda model, batch: model(batch)) for _ in range(2)]
    assert repr(own[0]) != repr(own[1])


@pytest.mark.parametrize("given", [{"bins": 5}, {"cache": "somewhere"}])
def test_what_is_for_classifiers_is_refused_beside_a_task(given: dict[str, Any]) -> None:
    model, data = nn.Linear(3, 1), [(torch.ones(4, 3), torch.ones(4, 1))]
    with pytest.raises(ArgumentError, match="for classifiers"):
        evaluate(model, data, task=tasks.regression(), progress=False, **given)
