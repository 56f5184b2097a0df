"""Sound and tables under shift: stronger is further, padding changes nothing, other columns stay."""

import pytest
import torch
from torch import Tensor

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import AUDIO_SHIFTS, SEVERITIES, TABLE_SHIFTS, audio_shifts, table_shifts

RATE = 8000


def sound(samples: int = 2, time: int = 4000) -> Tensor:
    """Tones of two pitches that swell, as speech does."""
    places = torch.arange(time) / RATE
    pitches = torch.tensor([220.0, 1400.0])[:samples, None]
    return torch.sin(6.283 * pitches * places) * (0.3 + 0.7 * torch.sin(6.283 * 3 * places).abs()) + 0.1 * torch.sin(
        6.283 * 3100 * places
    )


@pytest.mark.parametrize("name", AUDIO_SHIFTS)
def test_a_stronger_shift_moves_sound_further(name: str) -> None:
    (shift,) = audio_shifts(name, rate=RATE)
    x = sound()
    moved = [float((shift(x, severity) - x).square().mean()) for severity in SEVERITIES]
    assert moved[0] > 0 and moved == sorted(moved) and moved[-1] > 1.02 * moved[0]
    assert torch.equal(shift(x, 3, seed=4), shift(x, 3, seed=4))


@pytest.mark.parametrize("name", AUDIO_SHIFTS)
def test_sound_comes_out_the_same_with_padding_and_in_any_batch(name: str) -> None:
    (shift,) = audio_shifts(name, rate=RATE)
    x = sound()
    padded = torch.nn.functional.pad(x, (0, 777))
    found = shift({"input_values": padded, "labels": torch.tensor([1, 0])}, 4, seed=2)
    alone = shift(x[1:], 4, seed=2)
    assert torch.allclose(found["input_values"][1:, :4000], alone, atol=1e-5)
    assert not bool(found["input_values"][:, 4000:].any()) and found["labels"].tolist() == [1, 0]


def test_noise_and_gain_are_as_loud_as_said() -> None:
    x = sound()
    noise = audio_shifts("white_noise", rate=RATE)[0](x, 3) - x
    assert torch.allclose(10 * torch.log10(x.square().mean(1) / noise.square().mean(1)), torch.tensor(15.0), atol=0.5)
    assert torch.allclose(audio_shifts("quiet", rate=RATE)[0](x, 1), x * 10 ** (-6 / 20))
    clipped = audio_shifts("clipping", rate=RATE)[0](x, 2)
    assert torch.allclose(clipped.abs().amax(1), 0.3 * x.abs().amax(1))
    echoes = audio_shifts("reverberation", rate=RATE)[0](x, 5) - x
    assert torch.allclose(echoes.square().mean(1), x.square().mean(1), rtol=1e-3)


def test_a_band_keeps_what_is_inside_only() -> None:
    (shift,) = audio_shifts("band_limit", rate=16000)
    places = torch.arange(16000) / 16000
    tones = torch.stack([torch.sin(6.283 * hertz * places) for hertz in (60, 1000, 5000)])
    left = shift(tones, 3)[:, 1000:-1000].square().mean(1) / tones[:, 1000:-1000].square().mean(1)
    assert float(left[0]) < 0.05 and 0.9 < float(left[1]) < 1.1 and float(left[2]) < 1e-3


def test_sound_may_have_channels_or_be_a_list() -> None:
    (shift,) = audio_shifts("white_noise", rate=RATE)
    x = sound()
    stereo = shift(torch.stack([x, x], 1), 2)
    assert stereo.shape == (2, 2, 4000) and not torch.equal(stereo[:, 0] - x, stereo[:, 1] - x)
    listed, _ = shift(([x[0], x[1, :3000]], torch.tensor([0, 1])), 2)
    assert [len(one) for one in listed] == [4000, 3000] and torch.equal(listed[0], shift(x, 2)[0])
    assert torch.equal(shift(torch.zeros(1, 50), 5), torch.zeros(1, 50))
    with pytest.raises(DataError, match="prepare="):
        shift(torch.ones(3), 1)
    with pytest.raises(ArgumentError, match="rate"):
        audio_shifts(rate=0)


def table(rows: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 4, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0]) + 5
    x[:, 3] = torch.randint(0, 4, (rows,), generator=generator).float()
    return x


@pytest.mark.parametrize("name", TABLE_SHIFTS)
def test_a_stronger_shift_moves_rows_further_and_none_depends_on_others(name: str) -> None:
    x = table()
    (shift,) = table_shifts(x, name)
    moved = [float(((shift(x, severity) - x) / x.std(0)).square().mean()) for severity in SEVERITIES]
    assert moved[0] > 0 and moved == sorted(moved) and moved[-1] > 2 * moved[0]
    whole, labels = shift((x, torch.arange(400)), 3, seed=6)
    assert torch.equal(whole[100:110], shift(x[100:110], 3, seed=6)) and torch.equal(labels, torch.arange(400))


def test_only_the_columns_that_were_named_shift() -> None:
    x = table()
    for shift in table_shifts([(x[:200], None), (x[200:], None)], columns=(0, 3)):
        found = shift({"x": x, "label": torch.zeros(400)}, 5)["x"]
        assert torch.equal(found[:, 1:3], x[:, 1:3]) and not torch.equal(found[:, 0], x[:, 0])


def test_swapped_values_are_values_of_the_same_column() -> None:
    x = table()
    found = table_shifts(x, "swapped_values")[0](x, 5)
    assert set(found[:, 3].tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert 0.2 < float((found[:, 0] != x[:, 0]).float().mean()) < 0.4


def test_tables_that_cannot_be_known_are_told() -> None:
    with pytest.raises(DataError, match="no rows"):
        table_shifts(torch.zeros(0, 3))
    with pytest.raises(DataError, match="NaN"):
        table_shifts(torch.full((2, 3), float("nan")))
    with pytest.raises(DataError, match="columns"):
        table_shifts(table(), columns=(4,))
    with pytest.raises(DataError, match="3 columns"):
        table_shifts(table(), "feature_noise")[0](torch.rand(2, 3), 1)
    with pytest.raises(DataError, match="no tables"):
        table_shifts(table(), "feature_noise")[0](torch.rand(2, 3, 4), 1)
