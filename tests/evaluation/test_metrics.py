import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nervure.errors import ArgumentError, DataError
from nervure.evaluation import (
    accuracy,
    brier_score,
    calibration_error,
    class_accuracies,
    evaluate,
    top_accuracy,
    wilson_interval,
)
from nervure.evaluation.metrics import ranks


def answers(samples=200, classes=8, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(samples, classes, generator=generator)
    return logits, torch.randint(classes, (samples,), generator=generator)


def in_batches(logits, labels, size=32):
    return list(zip(logits.split(size), labels.split(size), strict=True))


def calibration_by_hand(probabilities, labels, bins):
    """The definition, one bin after the other, in plain Python."""
    confidence = [max(row) for row in probabilities.double().tolist()]
    right = [row.index(max(row)) == y for row, y in zip(probabilities.tolist(), labels.tolist(), strict=True)]
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += abs(gap) * len(inside) / len(confidence)
    return total


def test_every_number_agrees_with_an_independent_computation():
    logits, labels = answers()
    found = evaluate(nn.Identity(), in_batches(logits, labels), progress=False)
    p = logits.double().softmax(1)
    assert found.accuracy == pytest.approx((p.argmax(1) == labels).double().mean().item())
    from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score  # slow to import

    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, p, k=5))
    assert found.loss == pytest.approx(log_loss(labels, p, labels=range(8)))
    assert found.brier == pytest.approx(brier_score_loss(labels, p, labels=range(8), scale_by_half=False))
    assert found.ece == pytest.approx(calibration_by_hand(p, labels, 15))
    for k in range(8):
        assert found.per_class[k] == pytest.approx((p[labels == k].argmax(1) == k).double().mean().item())
    assert found.samples == 200
    assert found.interval == wilson_interval(round(found.accuracy * 200), 200)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 20), st.floats(0.1, 10))
def test_calibration_error_is_its_definition(seed, classes, bins, sharpness):
    logits, labels = answers(30, classes, seed, sharpness)
    p = logits.double().softmax(1)
    assert calibration_error(p, labels, bins) == pytest.approx(calibration_by_hand(p, labels, bins), abs=1e-9)


def test_calibration_error_of_known_cases():
    sure = torch.eye(2)[[0, 0, 1, 1]]
    assert calibration_error(sure, torch.tensor([0, 0, 1, 1])) == 0
    assert calibration_error(sure, torch.tensor([1, 1, 0, 0])) == 1
    # One bin compares overall accuracy with mean confidence.
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert calibration_error(p, torch.tensor([0, 1]), bins=1) == pytest.approx(0.25)


def test_brier_of_known_cases():
    assert brier_score(torch.eye(3), torch.tensor([0, 1, 2])) == 0
    assert brier_score(torch.eye(3), torch.tensor([1, 2, 0])) == 2
    assert brier_score(torch.full((1, 4), 0.25), torch.tensor([3])) == pytest.approx(0.75)


def test_ties_go_to_the_lower_class_so_a_constant_answer_scores_one_class():
    p = torch.full((4, 4), 0.25)
    labels = torch.arange(4)
    assert ranks(p, labels).tolist() == [0, 1, 2, 3]
    assert accuracy(p, labels) == 0.25 and top_accuracy(p, labels, 3) == 0.75


@pytest.mark.parametrize(
    ("successes", "samples", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_interval_of_published_cases(successes, samples, low, high):
    assert wilson_interval(successes, samples) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_refuses_what_is_no_share():
    for successes, samples in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ArgumentError):
            wilson_interval(successes, samples)


def test_a_class_without_a_sample_has_no_accuracy():
    assert class_accuracies(torch.tensor([True, False]), torch.tensor([0, 0]), 3) == (0.5, None, None)


def test_top5_takes_six_classes():
    assert evaluate(nn.Identity(), [answers(classes=5)], progress=False).top5 is None
    assert evaluate(nn.Identity(), [answers(classes=6)], progress=False).top5 is not None


def test_how_data_are_cut_into_batches_does_not_matter():
    logits, labels = answers()
    whole = evaluate(nn.Identity(), [(logits, labels)], progress=False)
    parts = evaluate(nn.Identity(), in_batches(logits, labels, 7), progress=False)
    assert (parts.accuracy, parts.top5, parts.per_class) == (whole.accuracy, whole.top5, whole.per_class)
    assert (parts.loss, parts.ece, parts.brier) == pytest.approx((whole.loss, whole.ece, whole.brier))


def test_extreme_logits_give_finite_numbers():
    found = evaluate(nn.Identity(), [(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]))], progress=False)
    assert found.loss == pytest.approx(1e4) and found.brier == pytest.approx(1.0) and math.isfinite(found.ece)


def test_maps_of_labels_count_every_place():
    logits, labels = answers(24, 4)
    maps = logits.reshape(2, 3, 4, 4).permute(0, 3, 1, 2)
    found = evaluate(nn.Identity(), [(maps, labels.reshape(2, 3, 4))], progress=False)
    assert found == evaluate(nn.Identity(), [(logits, labels)], progress=False) and found.samples == 24


def test_the_json_is_plain_and_complete():
    found = evaluate(nn.Identity(), [answers(5, 12)], progress=False)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["accuracy"] == found.accuracy and data["per_class"] == list(found.per_class)
    assert set(data) == {"accuracy", "top5", "loss", "ece", "brier", "per_class", "samples", "interval"}


def test_the_model_comes_back_as_it_was_and_runs_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    seen = []
    model[2].register_forward_hook(lambda m, i, o: seen.append((m.training, o.requires_grad)))
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))]
    assert evaluate(model, data, progress=False) == evaluate(model, data, progress=False)
    assert seen == [(False, False)] * 2
    assert [m.training for m in model] == [True, False, True] and model.training
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    with pytest.raises(DataError):
        evaluate(model, [], progress=False)
    assert model.training and not model[1].training


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no batch"),
        ([(torch.zeros(2, 3), torch.tensor([0, 3]))], "label 3 .* 3 outputs"),
        ([(torch.zeros(2, 3), torch.tensor([0, -100]))], "label -100"),
        ([(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))], "1 of 2 outputs .* batch 0"),
        ([(torch.tensor([[0.0, float("inf")]]), torch.tensor([0]))], "NaN or infinite"),
        ([(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))], "dtype torch.float32"),
        ([(torch.zeros(2, 3), torch.tensor([0, 1, 2]))], "do not fit"),
        ([(torch.zeros(2), torch.tensor([0, 1]))], "do not fit"),
        (["ab"], "pairs"),
    ],
)
def test_data_without_an_honest_answer_are_refused(data, words):
    with pytest.raises(DataError, match=words):
        evaluate(nn.Identity(), data, progress=False)


def test_bins_and_outputs_that_make_no_sense_are_refused():
    with pytest.raises(ArgumentError, match="bins=0"):
        evaluate(nn.Identity(), [answers()], bins=0)

    class Odd(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(ArgumentError, match="returned a str"):
        evaluate(Odd(), [answers()], progress=False)
