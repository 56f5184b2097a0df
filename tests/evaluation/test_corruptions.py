"""Corruptions: what each does to pictures, and that chance belongs to the picture."""

import io
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import CORRUPTIONS, HELD_OUT, SEVERITIES, SHIFTS, corrupt
from nervure.evaluation.corruptions import GROUPS, expand_names
from nervure.evaluation.corruptions.chance import image_keys, normal, uniform
from nervure.zoo import load

ALL = (*CORRUPTIONS, *SHIFTS)
# Where severity 5 is another kind of change than severity 4, or one pixel of distance is not one pixel of change.
NOT_BY_DISTANCE = {"elastic_transform", "invert", "jpeg_compression", "pixelate", "spatter", "glass_blur", "frost"}


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load("fashion-mnist-subset").test.images[:64].float() / 255


def pictures(*shape: int) -> Tensor:
    """Smooth random pictures in [0, 1]."""
    coarse = torch.rand(shape[0], shape[1], 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear")


def test_there_are_fifteen_corruptions_and_four_held_out() -> None:
    assert len(CORRUPTIONS) == 19
    assert set(HELD_OUT) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert not set(SHIFTS) & set(CORRUPTIONS)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 24, 40), (1, 3, 8, 8), (1, 1, 130, 129)])
def test_pictures_of_every_size_come_back_changed_in_range_and_shape(name: str, shape: tuple[int, ...]) -> None:
    images = pictures(*shape)
    before = images.clone()
    for severity in (1, 5):
        result = corrupt(images, name, severity)
        assert result.shape == images.shape
        assert result.dtype == images.dtype
        assert 0 <= result.min() <= result.max() <= 1
        assert not torch.equal(result, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ALL)
def test_any_subset_in_any_order_comes_out_the_same(name: str, clothes: Tensor) -> None:
    picked = torch.tensor([40, 3, 17])
    assert torch.equal(corrupt(clothes[picked], name, 3), corrupt(clothes, name, 3)[picked])


@pytest.mark.parametrize("name", ["gaussian_noise", "snow", "fog", "glass_blur", "rotate"])
def test_another_seed_is_another_chance_and_the_same_seed_the_same(name: str, clothes: Tensor) -> None:
    first = corrupt(clothes, name, 3, seed=0)
    assert torch.equal(first, corrupt(clothes, name, 3, seed=0))
    assert not torch.equal(first, corrupt(clothes, name, 3, seed=1))


@pytest.mark.parametrize("name", sorted(set(ALL) - NOT_BY_DISTANCE))
def test_more_severe_is_further_from_the_picture(name: str, clothes: Tensor) -> None:
    far = [float((corrupt(clothes, name, severity) - clothes).square().mean()) for severity in SEVERITIES]
    assert all(later > sooner for sooner, later in pairwise(far)), far


def test_gaussian_noise_has_the_published_spread() -> None:
    grey = torch.full((20, 1, 32, 32), 0.5)
    noise = corrupt(grey + torch.arange(20).view(-1, 1, 1, 1) / 255 * 0.5, "gaussian_noise", 5) - grey
    assert float(noise.std((1, 2, 3)).mean()) == pytest.approx(0.10, rel=0.03)


def test_shot_noise_counts_photons() -> None:
    grey = torch.full((1, 3, 128, 120), 0.2)
    counts = corrupt(grey, "shot_noise", 5, family="small") * 50
    assert torch.equal(counts.round(), counts.round().clamp(min=0))
    assert (counts - counts.round()).abs().max() < 1e-4
    assert float(counts.mean()) == pytest.approx(10, rel=0.01)
    assert float(counts.var()) == pytest.approx(10, rel=0.03)


def test_impulses_are_white_and_black_in_equal_numbers() -> None:
    grey = torch.full((1, 1, 127, 127), 0.5)
    result = corrupt(grey, "impulse_noise", 5)
    white, black = float((result == 1).float().mean()), float((result == 0).float().mean())
    assert white + black == pytest.approx(0.07, rel=0.1)
    assert white == pytest.approx(black, rel=0.2)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur", "pixelate", "glass_blur"]
)
def test_what_only_moves_light_leaves_a_plain_wall_plain(name: str) -> None:
    wall = torch.full((2, 3, 32, 32), 0.3)
    torch.testing.assert_close(corrupt(wall, name, 5), wall, atol=1e-5, rtol=0)


def test_contrast_keeps_the_mean_and_scales_the_spread() -> None:
    images = pictures(4, 3, 32, 32)
    result = corrupt(images, "contrast", 2)
    torch.testing.assert_close(result.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(result.std((2, 3)), 0.5 * images.std((2, 3)))


def test_brightness_keeps_hue_and_saturation() -> None:
    images = 0.6 * pictures(4, 3, 16, 16) + 0.05
    result = corrupt(images, "brightness", 2)
    torch.testing.assert_close(result.amax(1), images.amax(1) + 0.1)
    torch.testing.assert_close(result.amin(1) / result.amax(1), images.amin(1) / images.amax(1))


def test_saturate_moves_colours_away_from_grey_and_back() -> None:
    images = 0.4 + 0.2 * pictures(2, 3, 16, 16)

    def saturation(x: Tensor) -> Tensor:
        return 1 - x.amin(1) / x.amax(1)

    torch.testing.assert_close(saturation(corrupt(images, "saturate", 1)), 0.3 * saturation(images))
    torch.testing.assert_close(saturation(corrupt(images, "saturate", 3)), 1.5 * saturation(images))
    torch.testing.assert_close(corrupt(images, "saturate", 3).amax(1), images.amax(1))


def test_the_strongest_inversion_is_the_negative() -> None:
    images = pictures(2, 1, 16, 16)
    torch.testing.assert_close(corrupt(images, "invert", 5), 1 - images)


def test_translation_moves_by_whole_pixels_where_the_side_is_28() -> None:
    blob = torch.zeros(1, 1, 28, 28)
    blob[0, 0, 14, 14] = 1
    for severity in SEVERITIES:
        row, column = divmod(int(corrupt(blob, "translate", severity).argmax()), 28)
        assert abs(row - 14) + abs(column - 14) == severity


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_loses_what_an_independent_codec_loses(channels: int, severity: int) -> None:
    image = pytest.importorskip("PIL.Image")
    quality = (80, 65, 58, 50, 40)[severity - 1]
    generator = torch.Generator().manual_seed(1)
    rough = pictures(1, channels, 64, 48) * 0.8 + 0.2 * torch.rand(1, channels, 64, 48, generator=generator)
    levels = (rough[0] * 255).round().to(torch.uint8)
    array = levels[0].numpy() if channels == 1 else levels.permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    image.fromarray(array).save(stream, "jpeg", quality=quality)
    decoded = torch.tensor(list(image.open(stream).tobytes()), dtype=torch.float32).view(*array.shape)
    decoded = decoded[None] if channels == 1 else decoded.permute(2, 0, 1)
    ours = corrupt(levels[None].float() / 255, "jpeg_compression", severity)[0] * 255
    lost = (decoded - levels).square().mean().sqrt()
    # The codec interpolates halved colours and works in integers; grey has only the latter.
    assert (ours - decoded).square().mean().sqrt() < (0.2 if channels == 1 else 0.45) * lost


def test_chance_is_uniform_normal_and_independent() -> None:
    keys = image_keys(pictures(500, 1, 8, 8), "any", 0)
    assert len(keys.unique()) == 500
    lots = uniform(keys, 400)
    histogram = torch.histc(lots, 50, 0, 1)
    expected = lots.numel() / 50
    assert float(((histogram - expected) ** 2 / expected).sum()) < 85  # 49 degrees of freedom, p = 0.001
    assert (torch.corrcoef(lots[:100]) - torch.eye(100)).abs().max() < 0.25
    draws = normal(keys, 400)
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    assert float(draws.std()) == pytest.approx(1, abs=0.01)
    assert (
        abs(float(torch.corrcoef(torch.stack((lots.flatten(), uniform(keys, 400, stream=1).flatten())))[0, 1])) < 0.01
    )


def test_kinds_and_names_mix() -> None:
    assert expand_names("all") == CORRUPTIONS
    assert expand_names(["noise", "fog"]) == (*GROUPS["noise"], "fog")
    assert expand_names("rotate") == ("rotate",)
    with pytest.raises(ArgumentError, match="Did you mean 'gaussian_noise'|gaussian_noise"):
        expand_names("gausian_noise")
    with pytest.raises(ArgumentError, match="no corruption"):
        expand_names([])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 32, 32) * 255, "divide by 255"),
        (torch.randn(2, 3, 32, 32), "normalised"),
        (torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8), "uint8"),
        (torch.rand(2, 32, 32, 3), "permute"),
        (torch.rand(3, 32, 32), "expected"),
        (torch.rand(2, 1, 4, 4), "too small"),
        (torch.full((1, 1, 16, 16), float("nan")), "NaN"),
        (torch.rand(0, 1, 16, 16), "expected"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(images: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupt(images, "fog", 1)


def test_an_unknown_name_severity_or_family_is_refused() -> None:
    images = pictures(1, 1, 8, 8)
    with pytest.raises(ArgumentError, match=r"jpg.*jpeg_compression"):
        corrupt(images, "jpg", 1)
    for severity in (0, 6, 1.5):
        with pytest.raises(ArgumentError, match="severity"):
            corrupt(images, "fog", severity)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="family"):
        corrupt(images, "fog", 1, family="medium")


def test_turned_pictures_lie_at_the_stated_angle() -> None:
    bar = torch.zeros(1, 1, 65, 65)
    bar[0, 0, 32, 8:57] = 1
    for severity, degrees in enumerate((5, 10, 15, 20, 30), 1):
        rows, columns = (corrupt(bar, "rotate", severity)[0, 0] > 0.3).nonzero().double().T
        slope = torch.cov(torch.stack((columns, rows)))
        angle = torch.rad2deg(torch.atan2(slope[0, 1], slope[0, 0])).abs()
        assert float(angle) == pytest.approx(degrees, abs=1)
