"""Samples held out, and what a metric says of them part by part."""

import math

import pytest
import torch
from torch import Tensor, nn

from nervure import tasks
from nervure.errors import ArgumentError, DataError
from nervure.evaluation.held_out import PARTS, HeldOut, HeldOutMetric, draw_samples, hold_out
from nervure.tasks import Task


def numbered(samples: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Samples that are their own numbers."""
    numbers = torch.arange(samples, dtype=torch.float32)[:, None]
    return [(part, part.long()[:, 0] % 2) for part in numbers.split(size)]


def numbers_in(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [int(number) for inputs, _ in batches for number in inputs[:, 0]]


@pytest.mark.parametrize("size", [1, 7, 32, 500])
def test_samples_held_out_are_none_of_the_others_and_nothing_is_lost(size: int) -> None:
    used, held = hold_out(draw_samples(numbered(120, size), 100), 0.25, seed=3)
    ours, theirs = numbers_in([batch.raw for batch in used]), numbers_in(list(held.batches))
    assert not set(ours) & set(theirs)
    assert sorted(ours + theirs) == list(range(100))
    assert len(theirs) == held.samples == 25


def test_another_seed_holds_out_others_and_the_same_seed_the_same() -> None:
    first, again, other = (hold_out(draw_samples(numbered(64, 16), 64), 0.5, seed=seed)[1] for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(("samples", "size"), [(2, 1), (19, 19), (64, 16), (1000, 1), (1000, 256), (83, 40)])
def test_parts_are_of_about_one_size_and_none_is_empty(samples: int, size: int) -> None:
    held = HeldOut.of(draw_samples(numbered(samples, size), samples))
    assert len(held.sizes) == min(PARTS, samples)
    assert sum(held.sizes) == samples
    assert min(held.sizes) > 0
    assert max(held.sizes) <= 2 * -(-samples // len(held.sizes))
    assert numbers_in(list(held.batches)) == list(range(samples))


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="2 samples with a share of 0.25 held out are too few"):
        hold_out(draw_samples(numbered(2, 2), 2), 0.25)


class Parity(nn.Module):
    """Knows the parity of the first so many numbers, and says 0 beyond."""

    def __init__(self, knows: int) -> None:
        super().__init__()
        self.knows = knows

    def forward(self, x: Tensor) -> Tensor:
        odd = (x[:, 0] % 2 == 1) & (x[:, 0] < self.knows)
        return nn.functional.one_hot(odd.long(), 2).float()


def test_an_accuracy_is_counted_without_torchmetrics_and_parts_add_up() -> None:
    held = HeldOut.of(draw_samples(numbered(100, 10), 100))
    scores = HeldOutMetric.of(tasks.classification(), "accuracy").score(Parity(50), held)
    assert scores.value == 0.75
    assert scores.parts == (1.0,) * 10 + (0.6, 0.4) * 5
    mean = sum(size * part for size, part in zip(held.sizes, scores.parts, strict=True)) / held.samples
    assert mean == pytest.approx(scores.value)


def test_flips_are_counted_without_torchmetrics_and_labels() -> None:
    held = HeldOut.of(draw_samples([inputs for inputs, _ in numbered(100, 10)], 100))
    judge = HeldOutMetric.of(tasks.agreement(Parity(100)), "flips")
    assert (judge.higher_is_better, judge.is_relative) == (False, False)
    assert judge.score(Parity(50), held).value == 0.25
    assert judge.score(Parity(100), held).value == 0


def test_a_loss_is_relative_and_the_mean_over_all_that_counts() -> None:
    task = Task(objective=lambda model, batch: batch[0].mean())
    judge = HeldOutMetric.of(task, "loss")
    assert judge.is_relative and not judge.higher_is_better
    assert judge.score(nn.Identity(), HeldOut.of(draw_samples(numbered(83, 40), 83))).value == pytest.approx(41)


def test_a_metric_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="accuracy"):
        HeldOutMetric.of(tasks.classification(), "acuracy")


def test_what_is_no_number_says_so() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2)

    held = HeldOut.of(draw_samples([(x, torch.full((len(x),), -100)) for x, _ in numbered(40, 10)], 40))
    scores = HeldOutMetric.of(tasks.classification(ignore=-100), "accuracy").score(Nothing(), held)
    assert math.isnan(scores.value) and not scores.is_finite
