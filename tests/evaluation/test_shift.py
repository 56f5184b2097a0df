"""Evaluation under shift: what is counted, against what, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import (
    CORRUPTIONS,
    FEATURE_SHIFTS,
    TOKEN_SHIFTS,
    Metrics,
    Shifted,
    corrupt,
    corrupt_features,
    corrupt_tokens,
    evaluate,
    evaluate_shift,
)
from nervure.evaluation.shift import shift_batches
from nervure.zoo.data import fake


class Brightness(nn.Module):
    """Says class 1 where the mean pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack((0.5 - mean, mean - 0.5), 1) * 50


def walls() -> list[tuple[Tensor, Tensor]]:
    """Dark walls (class 0) and light ones (class 1), in two batches."""
    values = torch.tensor([0.25, 0.3, 0.35, 0.45, 0.6, 0.7, 0.8, 0.9])
    images = values.view(-1, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
    labels = (values > 0.5).long()
    return [(images[:5], labels[:5]), (images[5:], labels[5:])]


def metrics(accuracy: float) -> Metrics:
    return Metrics(accuracy, None, 1.0, 0.0, 0.5, (accuracy, accuracy), 100, (0.0, 1.0))


def test_accuracy_under_brightness_is_what_arithmetic_says() -> None:
    found = evaluate(Brightness(), walls(), shift="brightness", progress=False)
    assert found.clean.accuracy == 1
    # +0.05 .. +0.3 push 0.45, then 0.35, 0.3 and 0.25 over the line (severity 5 adds 0.3, severity 4 adds 0.2).
    wrong = [sum(v + added > 0.5 for v in (0.25, 0.3, 0.35, 0.45)) for added in (0.05, 0.1, 0.15, 0.2, 0.3)]
    for severity, missed in zip((2, 4, 5), (wrong[1], wrong[3], wrong[4]), strict=True):
        assert found.rows["brightness", severity].accuracy == 1 - missed / 8
    assert found.worst == ("brightness", 5)
    assert found.worst_class[0] == 0


def test_normalised_batches_are_corrupted_as_the_pictures_they_were() -> None:
    mean, std = (0.3,), (0.2,)
    batches = [((x - 0.3) / 0.2, y) for x, y in walls()]
    raw = evaluate(Brightness(), walls(), shift=["brightness", "contrast"], progress=False)

    class Undoing(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0.2 + 0.3)

    given = evaluate(Undoing(), batches, shift=["brightness", "contrast"], normalisation=(mean, std), progress=False)
    assert {k: row.accuracy for k, row in given.rows.items()} == {k: row.accuracy for k, row in raw.rows.items()}


def test_batches_of_a_split_know_their_normalisation() -> None:
    data = fake(samples=32, channels=3)
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 4)

    evaluate(Watching(), data.test.batches(32), shift="fog", severities=[2], progress=False)
    expected = data.test.normalise(corrupt(data.test.images.float() / 255, "fog", 2))
    torch.testing.assert_close(seen[1], expected, atol=1e-4, rtol=1e-4)


def test_all_is_the_nineteen_at_five_severities() -> None:
    found = evaluate(Brightness(), walls(), shift="all", progress=False)
    assert found.names == CORRUPTIONS
    assert len(found.rows) == 95
    assert set(found.by_group) == {"noise", "blur", "weather", "digital", "held out"}
    assert found.accuracy == pytest.approx(sum(found.by_corruption.values()) / 19)
    assert found.gap == pytest.approx(found.clean.accuracy - found.accuracy)


def test_models_are_measured_together_as_they_would_be_alone_and_come_back_as_they_were() -> None:
    first, second = Brightness(), nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout(0.5))
    together = evaluate_shift({"a": first, "b": second}, walls(), shift="noise", progress=False)
    assert together["a"] == evaluate(first, walls(), shift="noise", progress=False)
    assert together["b"] == evaluate(second, walls(), shift="noise", progress=False)
    assert second.training
    assert second[2].training


def test_the_interval_counts_a_sample_once_however_many_corruptions_it_meets() -> None:
    few = evaluate(Brightness(), walls(), shift=["contrast"], progress=False).interval
    # Contrast cannot move a plain wall: every copy of a sample is right or wrong alike.
    many = evaluate(Brightness(), walls() * 4, shift=["contrast", "pixelate"], progress=False).interval
    assert few == many == (1.0, 1.0)


def test_corruption_errors_are_relative_to_the_reference() -> None:
    sparse = Shifted(metrics(0.9), {("fog", 1): metrics(0.8), ("fog", 2): metrics(0.6), ("snow", 1): metrics(0.5)})
    dense = Shifted(metrics(0.95), {("fog", 1): metrics(0.9), ("fog", 2): metrics(0.8), ("snow", 1): metrics(0.75)})
    assert sparse.mce(dense) == pytest.approx(((0.2 + 0.4) / (0.1 + 0.2) + 0.5 / 0.25) / 2)
    assert sparse.relative_mce(dense) == pytest.approx(((0.1 + 0.3) / (0.05 + 0.15) + 0.4 / 0.2) / 2)
    assert dense.mce(dense) == 1
    assert dense.relative_mce(dense) == 1
    with pytest.raises(ArgumentError, match="together"):
        sparse.mce(Shifted(metrics(1), {("fog", 1): metrics(1)}))
    perfect = Shifted(metrics(1), {key: metrics(1) for key in sparse.rows})
    assert math.isnan(sparse.mce(perfect))


def test_results_survive_json() -> None:
    found = evaluate(Brightness(), walls(), shift="blur", severities=[1, 3], progress=False)
    assert Shifted.from_json(found.to_json()) == found


def test_ready_made_shifted_data_are_measured_by_their_names() -> None:
    darker = [(x * 0.5, y) for x, y in walls()]
    found = evaluate(Brightness(), walls(), shift={("darker", 1): darker}, progress=False)
    assert found.rows["darker", 1].accuracy == evaluate(Brightness(), darker, progress=False).accuracy
    assert found.by_group == {}


@pytest.mark.parametrize(
    ("scaled", "normalisation", "message"),
    [
        (lambda x: x * 4 - 2, None, "normalised"),
        (lambda x: x, ((0.5,), (0.5,)), "they\\s+are not"),
        (lambda x: ((x - 0.5) / 0.25 - 0.5) / 0.25, ((0.5,), (0.25,)), "twice"),
        (lambda x: (x - 0.5) / 0.25, ((0.5, 0.5), (0.25, 0.25)), "2 channels"),
    ],
)
def test_loaders_that_are_not_normalised_as_said_are_refused(scaled, normalisation, message) -> None:
    batches = [(scaled(x), y) for x, y in walls()]
    with pytest.raises(DataError, match=message):
        evaluate(Brightness(), batches, shift="fog", normalisation=normalisation, progress=False)


def test_bad_choices_are_refused_before_any_work() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    for options in ({"severities": [7]}, {"severities": []}, {"normalisation": ((0.5,), (0.0,))}):
        with pytest.raises(ArgumentError):
            evaluate(Never(), walls(), shift="fog", progress=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", FEATURE_SHIFTS)
def test_rows_of_features_shift_in_units_of_their_spread(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 5, generator=generator) * torch.tensor([1.0, 10, 100, 0.1, 0.0]) + 7
    statistics = (rows.mean(0), rows.std(0, correction=0))
    result = corrupt_features(rows, name, 4, statistics=statistics)
    far = (result - rows).square().mean(0).sqrt()
    torch.testing.assert_close(far[4], torch.tensor(0.0), atol=1e-4, rtol=0)
    assert (far[:4] > 0).all()
    picked = torch.tensor([7, 2, 300])
    torch.testing.assert_close(corrupt_features(rows[picked], name, 4, statistics=statistics), result[picked])
    if name == "missing_values":
        assert float((result != rows)[:, :4].float().mean()) == pytest.approx(0.35, abs=0.05)
    if name == "feature_noise":
        torch.testing.assert_close(far[:4] / statistics[1][:4], torch.full((4,), 0.7), atol=0.08, rtol=0)
    if name == "covariate_shift":
        moved = result - rows
        torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", TOKEN_SHIFTS)
def test_tokens_are_lost_or_mistaken_in_the_stated_share(name: str) -> None:
    tokens = torch.randint(1, 1000, (200, 30), generator=torch.Generator().manual_seed(0))
    result = corrupt_tokens(tokens, name, 5)
    share = {"missing_tokens": 0.5, "replaced_tokens": 0.3}[name]
    assert float((result != tokens).float().mean()) == pytest.approx(share, abs=0.02)
    assert result.dtype == tokens.dtype
    if name == "missing_tokens":
        assert (result[result != tokens] == 0).all()


def test_tables_and_texts_are_evaluated_by_their_own_shifts() -> None:
    rows = [(torch.randn(16, 6), torch.randint(0, 3, (16,)))]
    found = evaluate(nn.Linear(6, 3), rows, shift="all", progress=False)
    assert found.names == FEATURE_SHIFTS
    tokens = [(torch.randint(0, 20, (16, 6)), torch.randint(0, 3, (16,)))]
    text = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 3))
    assert evaluate(text, tokens, shift="all", progress=False).names == TOKEN_SHIFTS
    with pytest.raises(ArgumentError, match="shift"):
        evaluate(text, tokens, shift="fog", progress=False)


class Counted(Brightness):
    """Counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.scale


def test_what_was_asked_once_is_remembered_and_what_is_new_is_added(tmp_path: Path) -> None:
    model, data = Counted(), walls()
    options: dict[str, Any] = {"severities": [2], "progress": False}
    truth = evaluate(model, data, shift=["fog", "brightness"], **options)
    evaluate(model, data, shift=["fog"], cache=tmp_path, **options)
    model.calls = 0
    assert evaluate(model, data, shift=["fog", "brightness"], cache=tmp_path, **options) == truth
    assert model.calls == len(data)
    assert evaluate(model, data, shift=["fog", "brightness"], cache=tmp_path, **options) == truth
    assert model.calls == len(data)


@pytest.mark.parametrize("change", ["weights", "data", "labels", "seed"])
def test_nothing_is_remembered_of_another_question(tmp_path: Path, change: str) -> None:
    model, data, options = Counted(), walls(), {"shift": ["noise"], "severities": [3], "progress": False}
    evaluate(model, data, cache=tmp_path, **options)
    model.calls, seed = 0, 0
    if change == "weights":
        model.scale.data += 1
    elif change == "data":
        data = [(inputs * 0.9, labels) for inputs, labels in data]
    elif change == "labels":
        data = [(inputs, 1 - labels) for inputs, labels in data]
    else:
        seed = 1
    found = evaluate(model, data, cache=tmp_path, seed=seed, **options)
    assert model.calls == (1 + len(found.rows)) * len(data)


def test_what_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shift": ["fog"], "severities": [1], "progress": False}
    truth = evaluate(Counted(), walls(), cache=tmp_path, **options)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert evaluate(Counted(), walls(), cache=tmp_path, **options) == truth


def test_ready_data_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="ready data"):
        evaluate(Counted(), walls(), shift={("rain", 1): walls()}, cache=tmp_path, progress=False)


def test_batches_of_several_shifts_at_once_are_refused() -> None:
    with pytest.raises(ArgumentError, match="'noise' names 3 shifts: gaussian_noise, shot_noise, impulse_noise"):
        next(shift_batches([(torch.rand(2, 3, 8, 8), torch.zeros(2))], "noise", 1))
