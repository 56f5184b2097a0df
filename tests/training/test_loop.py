import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nervure.core.late import STEPS_LATE, LateReader
from nervure.errors import ArgumentError, DataError, FileError
from nervure.evaluation import evaluate
from nervure.tasks import classification
from nervure.training import History, cross_entropy, label_smoothing, masks_of, train, with_distillation

quiet = partial(train, progress=False)


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, classes))


def blobs(batches=6, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    labels = torch.randint(3, (batches, size), generator=generator)
    return [(centres[y] + 0.3 * torch.randn(size, 4, generator=generator), y) for y in labels]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_labels_that_are_no_classes_are_validated_by_the_objective():
    def distance(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    teacher, model = nn.Linear(4, 8), nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    data = [(x, teacher(x).detach()) for x in torch.randn(5, 6, 4)]
    short = [(data[0][0][:2], data[0][1][:2]), data[1]]
    history = quiet(model, data, epochs=3, objective=distance, validation=short)
    by_hand = [distance(model, batch).item() for batch in short]
    assert history.validation[-1] == pytest.approx((2 * by_hand[0] + 6 * by_hand[1]) / 8)
    assert history.validation[-1] < history.validation[0]


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 1e-2)])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant", lambda done: 1 - done])
def test_training_learns_and_tells_what_happened(optimizer, lr, schedule):
    model = network()
    history = quiet(model, blobs(), epochs=5, optimizer=optimizer, lr=lr, schedule=schedule, validation=blobs(seed=1))
    assert len(history.loss) == len(history.validation) == 5 and history.steps == 30
    assert history.loss[-1] < history.loss[0]
    assert history.validation[-1] > 0.9
    assert history.seconds > 0 and not history.interrupted
    assert json.loads(json.dumps(history.to_json()))["loss"] == list(history.loss)


def test_the_model_is_left_in_evaluation_mode_also_when_training_fails():
    model = network().train()
    quiet(model, blobs())
    assert not any(m.training for m in model.modules())
    model.train()
    with pytest.raises(DataError):
        quiet(model, [])
    assert not any(m.training for m in model.modules())


def test_same_seed_gives_the_same_weights_and_the_outer_random_numbers_go_on_undisturbed():
    one, two, three = network(), network(), network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = quiet(one, blobs(), epochs=2, seed=7)
    assert torch.equal(torch.rand(3), expected)
    second = quiet(two, blobs(), epochs=2, seed=7)
    quiet(three, blobs(), epochs=2, seed=8)
    assert same(weights(one), weights(two)) and first.loss == second.loss
    assert not same(weights(one), weights(three))


def test_a_loader_is_shuffled_by_the_seed():
    x, y = torch.cat([b[0] for b in blobs()]), torch.cat([b[1] for b in blobs()])
    runs = []
    for _ in range(2):
        model = network()
        quiet(model, DataLoader(TensorDataset(x, y), 16, shuffle=True), epochs=2)
        runs.append(weights(model))
    assert same(*runs)


def test_masks_hold_through_training_and_are_given_back():
    model = network()
    mask = torch.rand(16, 4) < 0.5
    history = quiet(model, blobs(), epochs=3, masks={"0.weight": mask})
    assert not model[0].weight[~mask].any() and model[0].weight[mask].all()
    assert torch.equal(history.masks["0.weight"], mask)
    assert "masks" not in history.to_json()


def test_a_hook_sees_whole_gradients_and_rewires():
    model = network()
    seen = []

    def swap(step):
        seen.append((step.number, step.epoch, round(step.done, 3)))
        assert step.model is model and step.model.training
        assert step.loss > 0 and len(step.batch[1]) == 16
        if step.number == 0:
            return {"0.weight": torch.arange(64).reshape(16, 4) % 2 == 0}
        assert model[0].weight.grad.reshape(-1)[1::2].any()
        return {"0.weight": ~step.masks["0.weight"]} if step.number == 3 else None

    history = quiet(model, blobs(batches=2), epochs=3, hooks=[swap])
    assert seen == [(0, 0, 0.0), (1, 0, 0.167), (2, 1, 0.333), (3, 1, 0.5), (4, 2, 0.667), (5, 2, 0.833)]
    flat = model[0].weight.reshape(-1)
    assert not flat[0::2].any() and flat[1::2].all()
    assert history.masks["0.weight"].sum() == 32


def test_later_hooks_see_the_masks_of_earlier_ones():
    mask = torch.zeros(16, 4, dtype=torch.bool)
    seen = []
    quiet(network(), blobs(1), hooks=[lambda s: {"0.weight": mask}, lambda s: seen.append(dict(s.masks))])
    assert torch.equal(seen[0]["0.weight"], mask)


def test_an_optimizer_can_be_passed_in_as_a_function():
    model = network()
    made = []

    def make(parameters):
        made.append(torch.optim.RMSprop(parameters, lr=1e-2))
        return made[0]

    rates = []
    quiet(
        model,
        blobs(),
        optimizer=make,
        schedule="cosine",
        hooks=[lambda s: rates.append(s.optimizer.param_groups[0]["lr"])],
    )
    assert rates[0] == pytest.approx(1e-2) and rates == sorted(rates, reverse=True)


def test_biases_and_norms_do_not_decay():
    model = nn.Linear(2, 2)
    nn.init.ones_(model.bias)
    batch = (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    before = model.weight.detach().clone()
    quiet(model, [batch], lr=0.1, momentum=0.0, weight_decay=0.5, schedule="constant")
    assert torch.allclose(model.weight, before * 0.95) and torch.allclose(model.bias, torch.ones(2))


def test_frozen_parameters_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    quiet(model, blobs())
    assert torch.equal(model[0].weight, before)


def test_bfloat16_trains_float32_weights():
    model = network()
    history = quiet(model, blobs(), epochs=3, precision="bf16")
    assert model[0].weight.dtype == torch.float32 and history.loss[-1] < history.loss[0]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, *, x, shift):
        return {"logits": self.body(x + shift), "other": None}


def test_inputs_by_name_and_outputs_with_logits_are_understood():
    data = [({"x": x, "shift": torch.zeros(1)}, y) for x, y in blobs()]
    history = quiet(Named(), data, epochs=5, validation=data)
    assert history.validation[-1] > 0.9


# What is refused


def test_a_label_out_of_range_in_any_batch_of_a_list_is_refused_before_any_step():
    model = network()
    before = weights(model)
    data = blobs()
    data[-1][1][2] = 3
    with pytest.raises(DataError, match=r"label 3 .* 3 outputs"):
        quiet(model, data)
    assert same(weights(model), before)
    data[-1][1][2] = -1
    with pytest.raises(DataError, match="label -1"):
        quiet(model, data)
    with pytest.raises(DataError, match="label -1"):
        quiet(model, blobs(), validation=data)
    assert same(weights(model), before)


def test_a_label_out_of_range_in_a_loader_is_refused_before_its_step():
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 9])), 4)
    with pytest.raises(DataError, match=r"label 9 .* 3 outputs"):
        quiet(network(), loader)


@pytest.fixture
def late(monkeypatch):
    """Losses are read as late as on a GPU."""
    monkeypatch.setattr("nervure.training.loop.steps_late", lambda place: STEPS_LATE)


def test_losses_that_are_read_late_are_the_same(late, monkeypatch):
    def run():
        model = network()
        history = quiet(model, blobs(), epochs=2, objective=label_smoothing(0.1), validation=blobs(seed=1))
        return history, weights(model)

    history, last = run()
    monkeypatch.undo()
    expected, also = run()
    assert (history.loss, history.validation) == (expected.loss, expected.validation) and same(last, also)


def test_no_loss_is_read_before_two_more_steps_were_ordered(late, monkeypatch):
    taken, read = [], []
    note, step = LateReader._read, torch.optim.SGD.step
    monkeypatch.setattr(LateReader, "_read", lambda self: (read.append(len(taken)), note(self)))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (taken.append(1), step(self)))
    quiet(network(), blobs(batches=5))
    assert read == [2, 3, 4, 5, 5]
    taken.clear(), read.clear()
    quiet(network(), blobs(batches=3), callbacks=[lambda point: None])
    assert read == [0, 1, 2]


@pytest.mark.parametrize("objective", [None, label_smoothing(0.1), classification(ignore=7)])
@pytest.mark.parametrize("wrong", [9, -1])
def test_a_label_that_was_not_looked_at_is_named_all_the_same(late, objective, wrong):
    labels = torch.tensor([0, 1, 2, 0, 1, wrong, 0, 2] + [0] * 16)
    loader = DataLoader(TensorDataset(torch.randn(24, 4), labels), 4)
    with pytest.raises(DataError, match=rf"label {wrong} .* 3 outputs"):
        quiet(network(), loader, objective=objective)


def test_labels_that_do_not_count_are_left_out_of_a_loss_that_is_read_late(late):
    data = blobs()
    data[0][1][:3] = 7
    assert quiet(network(), data, task=classification(ignore=7)).loss[0] > 0


def test_a_loss_that_is_read_late_names_its_step_and_the_cause(late):
    data = blobs(batches=5)
    data[1][0][0, 0] = float("nan")
    with pytest.raises(DataError, match=r"nan at step 1 \(epoch 0\).*inputs of this batch"):
        quiet(nn.Linear(4, 3), data)
    with pytest.raises(DataError, match=r"at step \d.*'weight' is not, by now"):
        quiet(nn.Linear(4, 3), blobs(), lr=1e38, schedule="constant")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch"),
        (DataLoader([], 4), "no batch"),
        (iter(blobs()), "once only"),
        ([torch.zeros(2, 4)], "there are no labels"),
        ([(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))], "no sample"),
        ([(torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.long))], "do not fit"),
        ([(torch.zeros(2, 4), torch.zeros(2))], "labels .2. of torch.float32"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(data, words):
    with pytest.raises((ArgumentError, DataError), match=words):
        quiet(network(), data)


def test_nan_inputs_name_the_step_and_the_cause_and_spare_the_weights():
    model = nn.Linear(4, 3)
    data = blobs(batches=3)
    data[2][0][0, 0] = float("nan")
    steps = []
    with pytest.raises(DataError, match=r"nan at step 2 \(epoch 0\).*inputs of this batch"):
        quiet(model, data, hooks=[lambda s: steps.append(s.number)])
    assert steps == [0, 1] and torch.isfinite(model.weight).all()


def test_an_exploding_run_and_a_broken_objective_are_named():
    with pytest.raises(DataError, match="Lower lr"):
        quiet(nn.Linear(4, 3), blobs(), epochs=20, lr=1e38, schedule="constant")
    with pytest.raises(DataError, match=r"inf at step 0.*divides by zero"):
        quiet(network(), blobs(), objective=lambda m, b: m(b[0]).sum() / 0)
    with pytest.raises(ArgumentError, match=r"shape \(16, 3\)"):
        quiet(network(), blobs(), objective=lambda m, b: m(b[0]))
    sick = network()
    nn.init.constant_(sick[4].bias, float("nan"))
    with pytest.raises(DataError, match=r"'4.bias'"):
        quiet(sick, blobs())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"optimizer": "lion"}, "one of 'sgd', 'adamw'.*got 'lion'"),
        ({"schedule": "linear"}, "'onecycle', 'cosine', 'constant'"),
        ({"precision": "fp16"}, "'float32', 'bf16'"),
        ({"masks": {"0.wieght": torch.ones(1, dtype=torch.bool)}}, "Did you mean '0.weight'"),
    ],
)
def test_arguments_out_of_range_are_refused_in_words(options, words):
    with pytest.raises(ArgumentError, match=words):
        quiet(network(), blobs(1), **options)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ArgumentError, match="no parameter that can be trained"):
        quiet(network().requires_grad_(False), blobs())


# Objectives


def test_objectives_are_the_formulas_they_say():
    model = network().eval()
    x, y = blobs(1)[0]
    assert torch.equal(cross_entropy(model, (x, y)), F.cross_entropy(model(x), y))
    assert torch.equal(label_smoothing(0.1)(model, (x, y)), F.cross_entropy(model(x), y, label_smoothing=0.1))
    soft = F.one_hot(y, 3).float() * 0.9 + 0.1 / 3
    assert torch.allclose(cross_entropy(model, (x, soft)), label_smoothing(0.1)(model, (x, y)))
    teacher = network(seed=1).eval()
    t = 3.0
    divergence = F.kl_div((model(x) / t).log_softmax(1), (teacher(x) / t).softmax(1), reduction="batchmean")
    expected = 0.7 * F.cross_entropy(model(x), y) + 0.3 * t * t * divergence
    assert torch.allclose(with_distillation(cross_entropy, teacher, 0.3, t)(model, (x, y)), expected)


def test_the_classes_of_a_function_are_on_the_second_axis():
    model, teacher, batch = nn.Identity(), nn.Linear(5, 5), (torch.randn(2, 4, 5), torch.zeros(2, 5).long())

    def objective(net, pair):
        return F.cross_entropy(net(pair[0]), pair[1])

    found = [with_distillation(objective, teacher, 1.0, axis=axis)(model, batch) for axis in (None, 1, -1)]
    assert found[0] == found[1] != found[2]


def test_distillation_runs_the_model_once_and_leaves_the_teacher_alone():
    model, teacher = network(), network(seed=1).train()
    before = weights(teacher)
    quiet(model, blobs(batches=4), objective=with_distillation(label_smoothing(0.1), teacher))
    assert model[1].num_batches_tracked == 4
    assert same(weights(teacher), before) and teacher[3].training
    assert all(p.grad is None for p in teacher.parameters()) and not model._forward_hooks


def test_a_student_learns_from_a_teacher_without_labels():
    teacher, student = network(), network(seed=3)
    quiet(teacher, blobs(), epochs=5)
    wrong = [(x, torch.zeros_like(y)) for x, y in blobs()]
    quiet(student, wrong, epochs=8, objective=with_distillation(cross_entropy, teacher, weight=1.0))
    assert evaluate(student, blobs(seed=2), progress=False).accuracy > 0.9


def test_wrapped_objectives_check_labels_before_any_step_too():
    data = blobs()
    data[-1][1][0] = 7
    steps = []
    with pytest.raises(DataError, match="label 7"):
        quiet(network(), data, objective=with_distillation(label_smoothing(0.1), network()), hooks=[steps.append])
    assert not steps


def test_objectives_out_of_range_are_refused():
    for make in (
        lambda: label_smoothing(1.0),
        lambda: with_distillation(cross_entropy, network(), 2.0, 1.0),
        lambda: with_distillation(cross_entropy, network(), 0.5, 0.0),
    ):
        with pytest.raises(ArgumentError):
            make()
    with pytest.raises(ArgumentError, match="same classes"):
        with_distillation(cross_entropy, network(classes=5))(network(), blobs(1)[0])


# Interruption


def interrupt_at(number):
    def hook(step):
        if step.number == number:
            raise KeyboardInterrupt

    return hook


@pytest.mark.parametrize("stop", [0, 5, 6, 13])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_was_stopped_goes_on_to_the_very_same_weights(tmp_path, stop, optimizer):
    options = {"epochs": 3, "optimizer": optimizer, "lr": 0.01, "masks": {"0.weight": torch.ones(16, 4).triu() == 0}}
    whole, stopped, fresh = network(), network(), network(seed=9)
    expected = quiet(whole, blobs(), validation=blobs(seed=1), **options)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        quiet(stopped, blobs(), validation=blobs(seed=1), checkpoint=path, hooks=[interrupt_at(stop)], **options)
    history = quiet(fresh, blobs(), validation=blobs(seed=1), checkpoint=path, **options)
    assert same(weights(whole), weights(fresh))
    assert history.loss == expected.loss and history.validation == expected.validation
    assert history.steps == expected.steps and history.interrupted
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


class Shuffled:
    """Batches whose order follows from a count of epochs that every iteration moves on."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 6

    def __iter__(self):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        return (blobs()[i] for i in order.tolist())


def test_data_that_count_epochs_give_the_same_training_when_used_again_and_when_stopped(tmp_path):
    once, again, stopped, data = network(), network(), network(), Shuffled()
    quiet(once, data, epochs=2)
    quiet(again, data, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        quiet(network(), data, epochs=2, checkpoint=tmp_path / "run", hooks=[interrupt_at(8)])
    quiet(stopped, Shuffled(), epochs=2, checkpoint=tmp_path / "run")
    assert same(weights(once), weights(again)) and same(weights(once), weights(stopped))


def test_masks_rewired_before_the_stop_come_back(tmp_path):
    mask = torch.arange(64).reshape(16, 4) % 3 == 0
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        quiet(network(), blobs(), epochs=2, checkpoint=path, hooks=[lambda s: {"0.weight": mask}, interrupt_at(7)])
    model = network()
    history = quiet(model, blobs(), epochs=2, checkpoint=path)
    assert torch.equal(masks_of(model)["0.weight"], mask) and torch.equal(history.masks["0.weight"], mask)


def test_a_finished_run_gives_its_result_without_training(tmp_path):
    path = tmp_path / "run"
    model, again = network(), network(seed=9)
    first = quiet(model, blobs(), epochs=2, checkpoint=path)
    second = quiet(again, blobs(), epochs=2, checkpoint=str(path), hooks=[interrupt_at(0)])
    assert same(weights(model), weights(again)) and second.loss == first.loss and not second.interrupted


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_and_the_model_spared(tmp_path):
    path = tmp_path / "run"
    quiet(network(), blobs(), epochs=2, checkpoint=path)
    model = network(seed=9)
    before = weights(model)
    with pytest.raises(FileError, match="epochs=2 there, 3 here"):
        quiet(model, blobs(), epochs=3, checkpoint=path)
    with pytest.raises(FileError, match="another model"):
        quiet(network(classes=4), blobs(), epochs=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileError, match="Delete it"):
        quiet(model, blobs(), epochs=2, checkpoint=path)
    with pytest.raises(FileError, match="cannot write"):
        quiet(model, blobs(), checkpoint=tmp_path / "nowhere" / "run")
    assert same(weights(model), before)


def test_tied_weights_survive_a_checkpoint(tmp_path):
    def tied():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        model[1].weight = model[0].weight
        return model

    with pytest.raises(KeyboardInterrupt):
        quiet(tied(), blobs(), epochs=2, checkpoint=tmp_path / "run", hooks=[interrupt_at(8)])
    model, whole = tied(), tied()
    quiet(model, blobs(), epochs=2, checkpoint=tmp_path / "run")
    quiet(whole, blobs(), epochs=2)
    assert model[1].weight is model[0].weight and same(weights(model), weights(whole))


def test_histories_compare_by_what_happened():
    assert History((1.0,), (), 1, 2.0, masks={"a": torch.ones(2)}) == History((1.0,), (), 1, 2.0)


class Stream:
    """Batches that do not say how many they are, and count how many are taken."""

    def __init__(self, batches):
        self.batches, self.taken = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


def test_a_validation_stream_is_read_once_an_epoch():
    stream = Stream(blobs(5))
    streamed = quiet(network(), blobs(), epochs=2, validation=stream)
    # And once before the first step: it might have no end.
    assert stream.taken == 2 * 5 + 5 + 1
    model = network()
    assert streamed.validation == quiet(model, blobs(), epochs=2, validation=blobs(5)).validation
    assert streamed.validation[-1] == evaluate(model, blobs(5), progress=False).accuracy
