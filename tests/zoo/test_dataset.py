"""Splits, batches and draws, on made-up data."""

import numpy as np
import pytest
import torch

from nervure.errors import ArgumentError, DataError
from nervure.zoo.data import Split, assemble, fake
from nervure.zoo.dataset import epoch_generator, random_crop
from nervure.zoo.draw import draw_fraction, first_per_class


def numbered(samples: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose every pixel is their own number: which is where can be read off."""
    images = torch.arange(samples, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return images, torch.arange(samples) % classes


def plain(images: torch.Tensor, labels: torch.Tensor, classes: int) -> Split:
    return Split(images, labels, classes, (0.0,) * images.shape[1], (1.0,) * images.shape[1])


def numbers_in(split: Split) -> set[int]:
    return set(split.images[:, 0, 0, 0].tolist())


def test_the_three_splits_are_disjoint_and_lose_no_image():
    train, test = numbered(), numbered(30)
    data = assemble("numbers", train, (test[0] + 100, test[1]), ("a", "b", "c"), validation=0.2)
    assert numbers_in(data.train) | numbers_in(data.validation) == set(range(60))
    assert numbers_in(data.train) & numbers_in(data.validation) == set()
    assert numbers_in(data.test) == set(range(100, 130))


def test_validation_holds_the_same_share_of_every_class():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)
    left, drawn = draw_fraction(labels, 0.1, seed=0)
    assert labels[drawn].bincount().tolist() == [4, 2, 1]
    assert labels[left].bincount().tolist() == [36, 18, 9]


def test_validation_depends_on_the_seed_only():
    labels = torch.arange(100) % 5
    torch.manual_seed(1)
    first = draw_fraction(labels, 0.2, seed=7)[1]
    torch.manual_seed(2)
    assert torch.equal(first, draw_fraction(labels, 0.2, seed=7)[1])
    assert not torch.equal(first, draw_fraction(labels, 0.2, seed=8)[1])


def test_a_small_class_is_on_both_sides_of_a_draw():
    labels = torch.tensor([0] * 50 + [1] * 2)
    left, drawn = draw_fraction(labels, 0.01, seed=0)
    assert labels[left].unique().tolist() == labels[drawn].unique().tolist() == [0, 1]


def test_a_class_of_one_image_is_refused():
    with pytest.raises(DataError, match="Class 2 has a single image"):
        draw_fraction(torch.tensor([0, 0, 1, 1, 2]), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, True])
def test_a_share_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ArgumentError, match="validation="):
        draw_fraction(torch.arange(10) % 2, fraction, seed=0)


def test_the_first_of_every_class_keep_their_order():
    assert first_per_class(np.array([2, 0, 2, 1, 0, 1, 2]), 2).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="Class 0 has 2 images, fewer than the 3"):
        first_per_class(np.array([2, 0, 2, 1, 0, 1, 2]), 3)


def test_batches_are_normalised_float_images_and_whole_labels():
    data = fake(samples=160, channels=2)
    x = torch.cat([x for x, _ in data.train.batches(64)])
    assert x.dtype == torch.float32
    assert x.shape == (120, 2, 8, 8)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_statistics_come_from_the_training_split_alone():
    images, labels = numbered()
    data = assemble("numbers", (images, labels), (images + 100, labels), ("a", "b", "c"))
    assert data.mean[0] == pytest.approx(float(data.train.images.double().mean()) / 255)
    assert data.validation.mean == data.test.mean == data.mean


def test_len_counts_batches_and_the_last_may_be_smaller():
    batches = plain(*numbered(10), 3).batches(4)
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert len(batches) == 3


def order_of(batches) -> list[int]:
    return [round(value * 255) for x, _ in batches for value in x[:, 0, 0, 0].tolist()]


def test_without_a_shuffle_seed_every_epoch_has_the_order_of_the_split():
    batches = plain(*numbered(10), 3).batches(4)
    assert order_of(batches) == order_of(batches) == list(range(10))


def test_epochs_differ_in_order_and_repeat_from_the_same_seed():
    split = plain(*numbered(), 3)
    first, second = split.batches(7, shuffle_seed=5), split.batches(7, shuffle_seed=5)
    epochs = [order_of(first), order_of(first)]
    assert epochs[0] != epochs[1]
    assert [order_of(second), order_of(second)] == epochs
    assert sorted(epochs[1]) == list(range(60))


def test_an_epoch_can_be_asked_for_again():
    batches = plain(*numbered(), 3).batches(7, shuffle_seed=5)
    first = order_of(batches)
    batches.epoch = 0
    assert order_of(batches) == first


def test_neighbouring_seeds_share_no_epoch():
    split = plain(*numbered(), 3)
    one, two = split.batches(7, shuffle_seed=0), split.batches(7, shuffle_seed=1)
    epochs = [order_of(one), order_of(one), order_of(two), order_of(two)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_keep_their_labels_through_shuffling():
    for x, y in plain(*numbered(), 3).batches(7, shuffle_seed=5):
        assert ((x[:, 0, 0, 0] * 255).round().long() % 3 == y).all()


def test_augmentation_is_repeatable_and_differs_between_epochs():
    split = fake(side=16).train
    one, two = split.batches(64, augment=True), split.batches(64, augment=True)
    (first, _), (second, _) = next(iter(one)), next(iter(one))
    assert torch.equal(first, next(iter(two))[0])
    assert not torch.equal(first, second)


def test_an_augmented_image_is_a_shifted_perhaps_mirrored_original():
    image = torch.arange(1, 1 + 2 * 64, dtype=torch.uint8).view(1, 2, 8, 8)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = [padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    candidates = torch.cat(windows + [window.flip(-1) for window in windows])
    made = random_crop(image.expand(300, -1, -1, -1), epoch_generator(0, 0), flip=True)
    equal = (made[:, None] == candidates[None]).flatten(2).all(2)
    assert equal.any(1).all()
    assert equal.any(0).all()


def test_images_are_not_mirrored_where_that_would_change_the_label():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., :5] = 200
    made = random_crop(image.expand(100, -1, -1, -1), epoch_generator(0, 0), flip=False)
    assert (made[..., 8:] == 0).all()


def test_a_sample_keeps_the_classes_balanced():
    part = plain(*numbered(60), 3).sample(15)
    assert part.labels.bincount().tolist() == [5, 5, 5]
    assert len(plain(*numbered(60), 3).sample(1000)) == 60


def test_the_made_up_data_can_be_told_apart_and_are_the_same_every_time():
    data, again = fake(), fake()
    assert torch.equal(data.train.images, again.train.images)
    centres = torch.stack([data.train.images[data.train.labels == c].float().mean(0) for c in range(4)])
    nearest = torch.cdist(data.test.images.float().flatten(1), centres.flatten(1)).argmin(1)
    assert torch.equal(nearest, data.test.labels)


def test_describe_tells_sizes_classes_and_statistics():
    text = fake().describe()
    assert "48 train, 16 validation, 64 test" in text
    assert "3 x 8 x 8" in text
    assert "4: class 0, class 1" in text


def test_an_example_is_ready_for_a_network():
    assert fake(channels=1).example(3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "hold nothing"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), "0 to 3, outside 0..2"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0]), "-1 to 0"),
        (torch.full((2, 1, 4, 4), float("nan")), torch.tensor([0, 1]), "2 of 2 images hold NaN"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0.0, 1.0]), "int64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int32), torch.tensor([0, 1]), "uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), "expected"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]), "do not fit"),
    ],
)
def test_data_that_cannot_be_right_are_refused(images, labels, complaint):
    with pytest.raises(DataError, match=complaint):
        plain(images, labels, 3)


def test_float_images_keep_their_own_unit():
    images = torch.randn(40, 1, 4, 4) * 50 + 7
    data = assemble("floats", (images, torch.arange(40) % 2), (images, torch.arange(40) % 2), ("a", "b"))
    x = next(iter(data.train.batches(100)))[0]
    assert abs(float(x.mean())) < 1e-4


def test_constant_images_stay_finite():
    images = torch.full((8, 1, 4, 4), 9, dtype=torch.uint8)
    data = assemble("flat", (images, torch.arange(8) % 2), (images, torch.arange(8) % 2), ("a", "b"))
    assert torch.isfinite(next(iter(data.train.batches(8)))[0]).all()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"shuffle_seed": -1}])
def test_batches_refuse_arguments_out_of_range(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        fake().train.batches(**options)
