"""What is trained on besides the data: views that no test has, answers that agree, steps that look around."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import audio_shifts, table_shifts, text_shifts, token_shifts
from nervure.evaluation.corruptions import _MADE, CORRUPTIONS, HELD_OUT
from nervure.evaluation.shifts import Shift
from nervure.tasks import language_modelling, regression, segmentation
from nervure.training import (
    SAM,
    Passes,
    augmented,
    consistent,
    cross_entropy,
    jensen_shannon,
    passes_of,
    picture_views,
    shift_views,
    train,
    with_distillation,
)
from nervure.training.augmix import MOVING_OPERATIONS, OPERATIONS, augmix
from nervure.training.views import KINDS

quiet = partial(train, progress=False)
SIDE = 12


def pictures(count=6, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, SIDE, SIDE, generator=generator)


def batches(number=3):
    found = [pictures(8, 1, seed) for seed in range(number)]
    return [(x, (x.mean((1, 2, 3)) * 300).long() % 3) for x in found]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(100, 3)
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


# -- views ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_of_a_view_stays_in_range_and_does_something(name, channels):
    x = pictures(64, channels)
    x = F.avg_pool2d(x, 3, 1, 1) if name in ("equalize", "autocontrast") else x
    large = F.interpolate(x, size=(40, 40), mode="bilinear")  # equal shares of 256 levels take more than 255 pixels
    found = OPERATIONS[name](large, torch.linspace(-1, 1, 64))
    assert found.shape == large.shape and bool(found.isfinite().all())
    assert float(found.min()) >= -1e-6 and float(found.max()) <= 1 + 1e-6
    assert float((found - large).abs().mean()) > 1e-3


@pytest.mark.parametrize("name", sorted(MOVING_OPERATIONS | {"solarize"}))
def test_an_operation_without_strength_leaves_the_picture(name):
    x = pictures()
    assert torch.allclose(OPERATIONS[name](x, torch.zeros(len(x))), torch.where(x >= 1, 0, x), atol=1e-5)


def test_operations_do_what_their_names_say():
    ramp = torch.linspace(0.2, 0.7, 16).expand(1, 1, 16, 16)
    full = torch.ones(1)
    assert torch.allclose(OPERATIONS["autocontrast"](ramp, full), (ramp - 0.2) / 0.5, atol=1e-6)
    assert torch.allclose(OPERATIONS["solarize"](ramp, 0.4 * full)[..., -3:], 1 - ramp[..., -3:])
    assert len(OPERATIONS["posterize"](pictures(1, 1), full * 0).unique()) <= 16
    assert torch.allclose(OPERATIONS["translate_x"](ramp, 3 / 16 * full)[..., :-1], ramp[..., 1:], atol=1e-5)
    half = OPERATIONS["rotate"](OPERATIONS["rotate"](ramp, full), -full)[..., 6:10, 6:10]
    assert torch.allclose(half, ramp[..., 6:10, 6:10], atol=0.02)
    tilted = OPERATIONS["rotate"](ramp, 3 * full)  # 90 degrees: what ran along the rows runs along the columns
    assert torch.allclose(tilted, ramp.mT, atol=1e-4) or torch.allclose(tilted, ramp.mT.flip(2), atol=1e-4)
    levels = OPERATIONS["equalize"](torch.rand(1, 1, 64, 64) ** 3, full)
    assert abs(float(levels.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_in_range_and_follow_from_content_and_seed(channels):
    x = pictures(12, channels)
    found = augmix(x, seed=3)
    assert found.shape == x.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    assert torch.equal(found, augmix(x, seed=3))
    assert torch.equal(found[4:7], augmix(x[4:7], seed=3))
    assert not torch.equal(found, augmix(x, seed=4))
    assert 0.005 < float((found - x).abs().mean()) < 0.3


def test_no_operation_of_a_view_is_a_corruption_of_a_test():
    assert not set(OPERATIONS) & set(CORRUPTIONS)
    for name, corruption in _MADE.items():
        assert all(one is not corruption for one in OPERATIONS.values()), name
    # Nothing of their code either: what blurs, makes noise or weather stands in those modules.
    used = {
        getattr(value, "__module__", "") for value in vars(__import__("nervure.training.augmix", fromlist="x")).values()
    }
    made = {one.__module__ for name, one in _MADE.items()}
    assert len(made) > 3 and not used & made


def test_views_do_not_turn_or_move_where_that_is_tested():
    plain, kept = picture_views(), picture_views(tested=["geometric"])
    assert set(plain.operations) - set(kept.operations) == {"rotate", "translate_x", "translate_y"}
    assert set(picture_views(tested=["rotate"]).operations) == set(OPERATIONS) - {"rotate"}


def test_views_of_normalised_and_eight_bit_pictures_are_those_of_the_pictures():
    x, labels = pictures(), torch.arange(6)
    seen, kept = picture_views()((x, labels), 5)
    assert torch.equal(kept, labels) and torch.equal(seen, augmix(x, seed=5))
    normal = picture_views(normalisation=([0.5] * 3, [0.25] * 3))(((x - 0.5) / 0.25, labels), 5)[0]
    assert torch.allclose(normal * 0.25 + 0.5, seen, atol=1e-5)
    rough = (x * 255).round().to(torch.uint8)
    assert torch.equal(
        picture_views()((rough, labels), 5)[0], (augmix(rough / 255, seed=5) * 255).round().to(torch.uint8)
    )
    with pytest.raises(DataError, match="normalis"):
        picture_views()((x * 3 - 1, labels), 5)


def test_what_labels_say_of_places_stays_true():
    x = torch.zeros(2, 3, 16, 16)
    x[:, :, 4:8, 4:8] = torch.rand(2, 3, 1, 1)
    mask = (x.sum(1) > 0).long()
    for seed in range(8):
        seen, kept = picture_views()((x, mask), seed)
        assert torch.equal(kept, mask)
        for picture in seen:
            assert all(float(picture[:, part].std(1).max()) < 1e-5 for part in (mask[0] == 1, mask[0] == 0))
    moved = picture_views()((x, torch.tensor([0, 1])), 0)[0]
    assert float(moved[0][:, mask[0] == 1].std(1).max()) > 1e-3


def test_shifts_that_are_tested_are_no_views():
    quieter = audio_shifts(["quiet", "band_limit"], rate=8000)
    views = shift_views(quieter, tested=["white_noise", "reverberation"])
    sounds = (torch.randn(2, 800, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1]))
    one, other = views(sounds, 1), views(sounds, 1)
    assert torch.equal(one[0], other[0]) and one[0].shape == sounds[0].shape and torch.equal(one[1], sounds[1])
    assert len({float(views(sounds, seed)[0].square().sum()) for seed in range(20)}) > 3
    for tested in (["quiet"], ["all"], audio_shifts(["quiet"], rate=8000)):
        with pytest.raises(ArgumentError, match="'quiet' is tested"):
            shift_views(quieter, tested=tested)
    with pytest.raises(ArgumentError, match="at least one"):
        shift_views([], tested=[])


@pytest.mark.parametrize(("mine", "tested"), [("letter_swaps", "keyboard_slips"), ("accents", "unicode")])
def test_shifts_of_one_kind_with_a_tested_one_are_no_views(mine, tested):
    with pytest.raises(ArgumentError, match="of one kind"):
        shift_views(text_shifts(mine), tested=[tested])
    shift_views(text_shifts(mine), tested=["casing"])


def test_the_four_held_out_corruptions_are_of_the_kinds_of_the_others():
    assert {KINDS[name] for name in HELD_OUT} == {"noise", "blur", "weather", "digital"}
    assert set(CORRUPTIONS) <= KINDS.keys()


def test_rows_and_shifts_of_your_own_make_views():
    rows = torch.randn(64, 5)
    views = shift_views(
        [*table_shifts(rows, ["scale_drift"]), Shift("mine", lambda batch, severity, seed: (batch[0] + 1, batch[1]))],
        tested=["feature_noise"],
    )
    model = nn.Linear(5, 2)
    history = quiet(model, [(rows, (rows[:, 0] > 0).long())], objective=augmented(cross_entropy, views), epochs=2)
    assert history.steps == 2


# -- objectives ----------------------------------------------------------------------------------------------------


def test_the_divergence_is_nothing_for_equal_answers_symmetric_and_bounded():
    one, other, third = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0)) * 4
    assert abs(float(jensen_shannon([one, one, one]))) < 1e-6
    assert torch.equal(jensen_shannon([one, other]), jensen_shannon([other, one]))
    for count in (2, 3):
        values = [float(jensen_shannon(order)) for order in itertools.permutations((one, other, third), count)]
        assert all(0 < value < math.log(count) for value in values)
    extremes = torch.eye(3)[:, None] * 1e4
    assert float(jensen_shannon(list(extremes))) == pytest.approx(math.log(3), abs=1e-5)
    p, q = one.softmax(1), other.softmax(1)
    middle = (p + q) / 2
    by_hand = ((p * (p / middle).log() + q * (q / middle).log()).sum(1) / 2).mean()
    assert float(jensen_shannon([one, other])) == pytest.approx(float(by_hand), rel=1e-4)
    leaf = extremes.clone().requires_grad_()
    jensen_shannon(list(leaf)).backward()
    assert bool(leaf.grad.isfinite().all())
    assert torch.equal(jensen_shannon([one, other], -1), jensen_shannon([one, other]))
    for wrong in ([one], [one, other[:2]]):
        with pytest.raises(ArgumentError, match="two or more"):
            jensen_shannon(wrong)


def test_augmented_is_the_loss_on_a_view():
    model, batch = network().eval(), batches(1)[0]
    torch.manual_seed(4)
    seed = int(torch.randint(1 << 62, ()))
    seen = F.cross_entropy(model(augmix(batch[0], seed=seed)), batch[1])
    torch.manual_seed(4)
    assert torch.allclose(augmented(cross_entropy, picture_views())(model, batch), seen)
    torch.manual_seed(4)
    both = augmented(cross_entropy, picture_views(), clean=0.25)(model, batch)
    assert torch.allclose(both, 0.25 * cross_entropy(model, batch) + 0.75 * seen)


def test_consistent_adds_how_far_answers_are_apart():
    model, batch = network().eval(), batches(1)[0]
    nothing = consistent(cross_entropy, lambda batch, seed: batch)(model, batch)
    assert torch.allclose(nothing, cross_entropy(model, batch), atol=1e-5)
    torch.manual_seed(4)
    seeds = [int(torch.randint(1 << 62, ())) for _ in range(2)]
    apart = jensen_shannon([model(batch[0]), *(model(augmix(batch[0], seed=seed)) for seed in seeds)]).detach()
    torch.manual_seed(4)
    found = consistent(cross_entropy, picture_views(), 3.0)(model, batch)
    assert torch.allclose(found, cross_entropy(model, batch) + 3 * apart) and float(apart) > 0


def test_a_teacher_sees_the_view_that_the_model_sees():
    model = network().eval()
    pull = with_distillation(cross_entropy, model, weight=1.0)
    assert float(augmented(pull, picture_views())(model, batches(1)[0]).detach()) < 1e-6


def test_answers_that_cannot_be_compared_are_refused():
    model, (x, labels) = network().eval(), batches(1)[0]
    swap = shift_views([Shift("other labels", lambda batch, *_: (batch[0], 2 - batch[1]))], tested=[])
    with pytest.raises(ArgumentError, match="labels have changed"):
        consistent(cross_entropy, swap)(model, (x, labels))
    with pytest.raises(ArgumentError, match="no|none for the task"):
        consistent(regression(), picture_views())(model, (x, labels[:, None].float().expand(-1, 3)))
    with pytest.raises(ArgumentError, match="did not run the model"):
        consistent(lambda model, batch: torch.ones(()), picture_views())(model, (x, labels))


def test_pixels_agree_too():
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 1), pictures()
    batch = (x, torch.randint(4, (6, SIDE, SIDE)))
    loss = consistent(segmentation(), picture_views(), count=1)(model, batch)
    assert float(loss.detach()) > float(segmentation()(model, batch).detach())


@pytest.mark.parametrize("make", [augmented, consistent])
def test_a_training_with_views_holds_masks_and_goes_on_where_it_was_stopped(make, tmp_path):
    mask = {"5.weight": torch.rand(3, 100, generator=torch.Generator().manual_seed(0)) < 0.3}
    how = {"objective": make(cross_entropy, picture_views()), "masks": mask, "epochs": 3, "lr": 0.02}
    how["sharpness"] = SAM(0.1, adaptive=make is consistent)
    whole, parts = network(), network()
    quiet(whole, batches(), **how)

    class Stop(Exception):
        pass

    def stop(point):
        if point.kind == "epoch" and point.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        quiet(parts, batches(), **how, checkpoint=tmp_path / "c.safetensors", callbacks=[stop])
    again = network(seed=1)
    assert quiet(again, batches(), **how, checkpoint=tmp_path / "c.safetensors").interrupted
    assert same(weights(whole), weights(again))
    assert not whole[5].weight[~mask["5.weight"]].any()


# -- sharpness -----------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """A quadratic, w'Aw / 2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
        self.register_buffer("curvature", torch.diag(torch.tensor([1.0, 3.0, 0.5])))

    def forward(self, x):
        return (self.w @ self.curvature @ self.w.T).sum() / 2 + 0 * x.sum()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_sharpness_aware_step_is_that_of_the_formula(adaptive, masked):
    model, rho, lr = Bowl(), 0.3, 0.1
    keep = torch.tensor([[True, False, True]]) if masked else torch.ones(1, 3, dtype=torch.bool)
    w = model.w.detach() * keep
    gradient = (w @ model.curvature) * keep
    scale = w.abs() if adaptive else torch.ones_like(w)
    step = rho * scale**2 * gradient / (scale * gradient).norm()
    expected = (w - lr * ((w + step) @ model.curvature)) * keep
    options = {"masks": {"w": keep}} if masked else {}
    quiet(
        model,
        [torch.zeros(1, 1)],
        objective=lambda model, batch: model(batch),
        lr=lr,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        sharpness=SAM(rho, adaptive=adaptive),
        **options,
    )
    assert torch.allclose(model.w.detach(), expected, atol=1e-6)
    assert not model.w[~keep].any()


def test_the_second_pass_of_a_step_draws_the_same_chance_and_counts_once():
    seen = []

    def listen(model, batch):
        seen.append(torch.rand(3))
        return cross_entropy(model, batch)

    model = network()
    quiet(model, batches(2), objective=listen, sharpness=SAM())
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert int(model[1].num_batches_tracked) == 2
    still = nn.Linear(2, 2)
    quiet(still, [torch.zeros(1, 2)], objective=lambda model, batch: 0 * model(batch).sum(), sharpness=SAM())
    assert bool(still.weight.isfinite().all())


def test_a_checkpoint_knows_how_steps_were_made(tmp_path):
    quiet(network(), batches(1), checkpoint=tmp_path / "plain")
    with pytest.raises(Exception, match="sharpness=None there"):
        quiet(network(), batches(1), checkpoint=tmp_path / "plain", sharpness=SAM())


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_a_step_that_is_none_is_refused(wrong):
    with pytest.raises(ArgumentError, match="rho"):
        SAM(wrong)


# -- cost ----------------------------------------------------------------------------------------------------------


def test_passes_are_those_that_are_run():
    teacher, model, batch = network(), network(), batches(1)[0]
    views, taught = picture_views(), with_distillation(cross_entropy, teacher)
    for objective in (
        cross_entropy,
        augmented(cross_entropy, views),
        augmented(cross_entropy, views, clean=0.5),
        consistent(cross_entropy, views),
        consistent(augmented(cross_entropy, views), views, count=1),
        taught,
        augmented(taught, views),
        consistent(taught, views, count=1),
    ):
        counts = {"forward": 0, "backward": 0}

        def note(_module, _inputs, output, counts=counts):
            counts["forward"] += 1
            if output.requires_grad:
                output.register_hook(lambda _: counts.__setitem__("backward", counts["backward"] + 1))

        handles = [one.register_forward_hook(note) for one in (model, teacher)]
        objective(model, batch).backward()
        for handle in handles:
            handle.remove()
        assert passes_of(objective) == Passes(**counts)
        assert passes_of(objective, SAM()).work == 2 * passes_of(objective).work
    assert passes_of(taught).work == pytest.approx(4 / 3)


def test_tokens_agree_where_some_are_missing():
    torch.manual_seed(0)
    model, ids = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20)), torch.randint(1, 20, (4, 7))
    views = shift_views(token_shifts("missing_tokens"), tested=["replaced_tokens"])
    task, batch = language_modelling(), {"input": ids, "labels": ids}
    found, plain = (one(model, batch).detach() for one in (consistent(task, views, count=1), task))
    assert float(found) > float(plain)
    torch.manual_seed(3)
    seen = views(batch, int(torch.randint(1 << 62, ())))
    assert torch.equal(seen["labels"], ids) and not torch.equal(seen["input"], ids)
    torch.manual_seed(3)
    apart = jensen_shannon([model(ids), model(seen["input"])], -1)
    torch.manual_seed(3)
    assert torch.allclose(consistent(task, views, 1.0, count=1)(model, batch), task(model, batch) + apart)
